"""A pass over a stream: a function of the model and a batch, for every batch in order, all seeds together."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transfer_jax.core.compilation import compiled
from transfer_jax.core.members import over_members
from transfer_jax.core.mesh import fetch, own_slots, place_batch, shard_batch
from transfer_jax.experiment.assembly import Assembly

Function = Callable[[Any, Any, Mapping[str, jax.Array]], Any]  # parameters, statistics of norms, batch of one seed


class StreamPass:
    """Examples are not augmented; those that pad the last batch, or could not be read, have weight 0.

    Args:
        function: (parameters, statistics, batch) of one seed -> a tree of arrays. Compiled at its first use.
        size: of a batch.
    """

    def __init__(self, assembly: Assembly, stream: str, function: Function, size: int) -> None:
        self.assembly, self.name, self.size = assembly, stream, size
        self.stream = assembly.stream(stream)
        self._function = function

    def shapes(self, params: Any, batch_stats: Any) -> Any:
        """Shapes of what the function gives for a batch, [S, ...]."""
        return jax.eval_shape(self._over_members(), params, batch_stats, *next(self._batches([0])))

    def results(self, params: Any, batch_stats: Any, numbers: Iterable[int] | None = None) -> Iterator[Any]:
        """What the function gives, on the host, for all batches or those of these numbers; arguments are [S, ...]."""
        for feed, number in self._batches(numbers):
            yield fetch(self._run(params, batch_stats, feed, number))

    def rows(self, params: Any, batch_stats: Any) -> Any:
        """The arrays [S, n, ...] of all examples, in the stream's order, of a function that gives arrays [B, ...]."""
        parts = self.results(params, batch_stats)
        return jax.tree.map(lambda *found: np.concatenate(found, axis=1)[:, :self.stream.size], *parts)

    @property
    def batches(self) -> int:
        return self.stream.batches_of(self.size)

    @functools.cached_property
    def _run(self) -> Callable:
        return compiled(self._over_members())

    def _over_members(self) -> Callable:
        def one(params: Any, batch_stats: Any, feed: Any, number: jax.Array) -> Any:
            batch = self.stream.evaluation_batch(feed, number, self.size)
            return self._function(params, batch_stats, shard_batch(self.assembly.mesh, batch))

        return over_members(one, self.assembly.members, (0, 0, self.stream.feed_axes(), None),
                            self.assembly.spec.members)

    def _batches(self, numbers: Iterable[int] | None = None) -> Iterator[tuple[Any, jax.Array]]:
        wanted, feed = set(range(self.batches) if numbers is None else numbers), self.assembly.feed(self.name)
        if feed is not None:
            yield from ((feed, jnp.int32(number)) for number in sorted(wanted))
            return
        mesh = self.assembly.mesh
        for number, batch in enumerate(self.stream.evaluation_batches(self.size, own_slots(mesh, self.size))):
            if number in wanted:
                yield place_batch(mesh, batch, self.size), jnp.int32(number)
