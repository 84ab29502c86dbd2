"""Streams that are read while training goes on: Grain reads and decodes in threads (or processes), ahead of the step.

The unit of Grain's random access is one whole batch, a pure function of the step: so the state of the stream is the
step number, and neither threads nor workers nor processes can change what a batch holds.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import grain
import jax.numpy as jnp
import numpy as np
from absl import flags

from transfer_jax.core.errors import UserError
from transfer_jax.data.decoding import UnreadableImage
from transfer_jax.data.stream import Batch, Stream, read_example

TRIES = 100  # substitutes looked at in place of one unreadable example


class HostStream(Stream):
    """Batches are numpy arrays [S, B, ...] with augmented uint8 images; `batch` finishes them on the device."""

    storage = "host"

    @functools.cached_property
    def example_shapes(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        place = int(self.drawn(0, self.seeds[0], np.zeros(1, np.int64))[0])
        example = self._training_example(0, place, 0)
        return self._shapes({key: np.asarray(value) for key, value in example.items() if key != "weight"})

    def feed(self) -> None:
        """Nothing is put on the device beforehand."""
        return None

    def feed_axes(self) -> int:
        """vmap in_axes of a fed batch over members."""
        return 0

    def host_batches(self, start_step: int, slots: np.ndarray | None = None,
                     turns: np.ndarray | None = None) -> Iterator[Batch]:
        """Training batches [S, B, ...] from `start_step` on, without end; `slots`: only these places of a batch.

        `turns` int [S, T]: the stream's own step at every step of the stage, where it is not the same; a batch whose
        turn comes again was not used, and is not read before its last time.
        """
        slots = np.arange(self.spec.batch_size) if slots is None else slots
        batches = _ahead(functools.partial(self._training_batch, slots=slots, turns=turns), start_step, sys.maxsize,
                         self.spec.threads, self.spec.workers)
        return self._audited(batches, start_step, slots, turns) if self.spec.workers else batches

    def batch(self, fed: Batch, seed: Any, step: Any) -> Batch:
        """Finishes one member's fed batch [B, ...]: float, mixing augmentations, normalisation. Traced."""
        return self._finish(fed, self.augment_seed(seed, jnp), step, None, per_example=False)

    def evaluation_batches(self, batch_size: int, slots: np.ndarray | None = None, start: int = 0,
                           stop: int | None = None) -> Iterator[Batch]:
        """An exact pass in order: `batches_of(batch_size)` batches [S, B, ...], from number `start` on and before
        `stop`; padding has weight 0. `slots`: only these places of a batch."""
        slots = np.arange(batch_size) if slots is None else slots
        make = functools.partial(self._evaluation_batch, slots=slots, batch_size=batch_size)
        stop = self.batches_of(batch_size) if stop is None else stop
        return _ahead(make, start, stop, self.spec.threads, self.spec.workers)

    def evaluation_batch(self, fed: Batch, number: Any = None, batch_size: int | None = None) -> Batch:
        """Finishes one member's fed evaluation batch. Traced."""
        return self._finish(fed)

    def _training_batch(self, step: int, slots: np.ndarray, turns: np.ndarray | None) -> Batch:
        members = []
        for member, seed in enumerate(self.seeds):
            own = _own_step(turns, member, step)
            if own is None:
                members.append([self._training_template] * len(slots))
                continue
            places = self.drawn(own, seed, slots)
            positions = [own * self.spec.batch_size + int(slot) for slot in slots]
            members.append([self._training_example(member, int(place), position)
                            for place, position in zip(places, positions, strict=True)])
        return self._stack(members)

    def _training_example(self, member: int, place: int, position: int) -> dict[str, np.ndarray]:
        """The example at `place` of the member's rows, augmented by numbers drawn from (seed, position) alone. An
        unreadable example gives way to the next one."""
        rows = self.indices[member]
        native = self.plan.crops_to_size and self.spec.image_size is not None
        for offset in range(min(TRIES, len(rows))):
            taken = (place + offset) % len(rows)
            row = int(rows[taken])
            try:
                example = read_example(self.dataset, row, self.spec, native)
                break
            except UnreadableImage as error:
                self._note(row, error)
        else:
            raise UserError(f"stream {self.name!r}: {TRIES} examples in a row cannot be read; check the data")
        if self.plan.host:
            generator = np.random.default_rng([self._member_words[member], position])
            example = self.plan.apply_host(example, generator, self.spec.image_size)
        return {**example, "position": np.int32(taken), "weight": np.float32(1)}

    def _evaluation_batch(self, number: int, slots: np.ndarray, batch_size: int) -> Batch:
        members: list[list[dict]] = []
        for member in range(len(self.seeds)):
            if member and self.shared_rows:
                members.append(members[0])
                continue
            places = number * batch_size + slots
            members.append([self._evaluation_example(member, int(place)) for place in places])
        return self._stack(members)

    def _evaluation_example(self, member: int, place: int) -> dict[str, np.ndarray]:
        """Padding, and an example that cannot be read, are blank with weight 0."""
        rows = self.indices[member]
        row = int(rows[min(place, len(rows) - 1)])
        if place < len(rows):
            try:
                return {**read_example(self.dataset, row, self.spec), "weight": np.float32(1)}
            except UnreadableImage as error:
                self._note(row, error)
        blank = {key: np.zeros_like(value) for key, value in self._evaluation_template.items()}
        return {**blank, "index": np.int32(row), "weight": np.float32(0)}

    @functools.cached_property
    def _training_template(self) -> dict[str, np.ndarray]:
        place = int(self.drawn(0, self.seeds[0], np.zeros(1, np.int64))[0])
        return {key: np.zeros_like(value) for key, value in self._training_example(0, place, 0).items()}

    @functools.cached_property
    def _evaluation_template(self) -> dict[str, np.ndarray]:
        for row in self.indices[0]:
            try:
                return read_example(self.dataset, int(row), self.spec)
            except UnreadableImage as error:
                self._note(int(row), error)
        raise UserError(f"stream {self.name!r}: not one example can be read; check the data")

    @functools.cached_property
    def _member_words(self) -> list[int]:
        return [int(self.augment_seed(seed)) for seed in self.seeds]

    def _audited(self, batches: Iterator[Batch], step: int, slots: np.ndarray,
                 turns: np.ndarray | None) -> Iterator[Batch]:
        """Enters into the ledger what worker processes skipped: their own copies of it are out of reach."""
        for number, batch in enumerate(batches, step):
            for member, seed in enumerate(self.seeds):
                own = _own_step(turns, member, number)
                if own is None:
                    continue
                expected = self.indices[member][self.drawn(own, seed, slots)]
                for row in expected[expected != batch["index"][member]]:
                    self.ledger[self.dataset.name_of(int(row))] = "skipped by a worker process: it cannot be read"
            yield batch

    def _note(self, row: int, error: UnreadableImage) -> None:
        if self.spec.on_bad_example == "error":
            raise error
        self.ledger[self.dataset.name_of(row)] = str(error)

    def _stack(self, members: list[list[dict[str, np.ndarray]]]) -> Batch:
        """[S][B] examples -> arrays [S, B, ...]."""
        first = members[0][0].get("image", np.zeros(())).shape
        for example in (example for examples in members for example in examples if "image" in example):
            if example["image"].shape != first:
                raise UserError(f"stream {self.name!r}: {self.dataset.name_of(int(example['index']))} has the shape "
                                f"{example['image'].shape}, others have {first}; set image_size and channels")
        keys = members[0][0]
        return {key: np.stack([np.stack([example[key] for example in examples]) for examples in members])
                for key in keys}


def _own_step(turns: np.ndarray | None, member: int, step: int) -> int | None:
    """The stream's own step at this one of the stage; None where its batch is not used."""
    if turns is None:
        return step
    if step + 1 < turns.shape[1] and turns[member, step] == turns[member, step + 1]:
        return None
    return int(turns[member, min(step, turns.shape[1] - 1)])


def _ahead(make: Callable[[int], Batch], start: int, stop: int, threads: int, workers: int) -> Iterator[Batch]:
    """make(start), make(start + 1), ... computed ahead by threads, in order."""
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    dataset = grain.MapDataset.range(start, stop).map(make).to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():  # Grain's workers read absl flags, which only `app.run` parses
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return iter(dataset)
