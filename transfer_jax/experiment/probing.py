"""Features and probes of an experiment: what the commands `embed` and `probe` do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from transfer_jax.core.compilation import enable_compilation_cache
from transfer_jax.core.config import load_config
from transfer_jax.core.errors import UserError, unknown
from transfer_jax.core.spec import build
from transfer_jax.evaluation import probes
from transfer_jax.evaluation.few_shot import few_shot, most_shots
from transfer_jax.evaluation.probes import Row
from transfer_jax.experiment.assembly import Assembly
from transfer_jax.experiment.feature_files import Features
from transfer_jax.experiment.features import extract, fresh_model, trained_model
from transfer_jax.experiment.spec import ExperimentSpec
from transfer_jax.training.checkpoint import write_json
from transfer_jax.training.progress import output_console, print_table


@dataclass(frozen=True)
class Source:
    """Where a model comes from: a config before any training, or a run.

    Attributes:
        config: FILE.py[:args]; overrides are `path=value`.
        workdir, stage, select: of a run, in its place.
        seed: which one (default: the first).
    """

    config: str | None = None
    overrides: Sequence[str] = ()
    workdir: Path | None = None
    stage: str | None = None
    select: str = "last"
    seed: int | None = None

    def open(self) -> tuple[Assembly, Any]:
        """The assembly of one seed, and its variables."""
        if (self.config is None) == (self.workdir is None):
            raise UserError("give either --config (a model before training) or --workdir (a trained one)")
        if self.config is not None:
            if self.stage is not None or self.select != "last":
                raise UserError("--stage and --best choose a result of --workdir; a config has no results yet")
            return fresh_model(build(ExperimentSpec, load_config(self.config, self.overrides)), self.seed)
        if self.overrides:
            raise UserError("--config.KEY=VALUE changes a config; the run of --workdir is as it was trained")
        return trained_model(self.workdir, self.stage, self.seed, self.select)


def embed(source: Source, streams: Sequence[str], taps: Sequence[str], pool: str, out: Path | None,
          cache_folder: Path | None = None) -> dict[str, Features]:
    """Features of each stream (default: all of the experiment), in `out/<stream>` or in the cache; prints where."""
    assembly, variables = source.open()
    found = {}
    for stream in streams or assembly.spec.streams:
        found[stream] = extract(assembly, variables, stream, taps, pool, cache_folder, out / stream if out else None)
        features = found[stream]
        print(f"{stream}: {len(features)} x {features.width} features in {features.folder}")
    return found


@dataclass(frozen=True)
class ProbeRequest:
    """What to probe with.

    Attributes:
        methods: names of `PROBES`, and 'few_shot'; () takes all that the size of the data allows.
        learners: names of `FEW_SHOT`; () likewise.
        tap: the columns to take; None: all.
    """

    methods: tuple[str, ...] = ()
    learners: tuple[str, ...] = ()
    shots: tuple[int, ...] = (1, 5, 10)
    episodes: int = 100
    folds: int = 5
    seed: int = 0
    tap: str | None = None


def streams_of(assembly: Assembly, train: str | None, test: str | None, validation: str | None) -> dict[str, str]:
    """Stream names by their part. Where none is named, a stage's first stream trains, and the first one that it
    evaluates and that is not trained on tests; the last stage that has both decides."""
    spec = assembly.spec
    if train is None:
        trained = [stream for stage in spec.stages.values() for stream in stage.objective.streams()]
        train = "train" if "train" in spec.streams else next(iter(trained or spec.streams))
        if test is None:
            stages = [stage for stage in spec.stages.values() if stage.evaluate]
            test = next((name for name in (stages[-1].evaluate if stages else ()) if name not in (train, validation)),
                        None)
    named = {"train": train, "validation": validation, "test": test}
    for stream in filter(None, named.values()):
        if stream not in spec.streams:
            raise unknown("stream", stream, spec.streams, "the experiment")
    return {part: stream for part, stream in named.items() if stream}


def probe_model(source: Source, train: str | None, test: str | None, validation: str | None, taps: Sequence[str],
                pool: str, request: ProbeRequest, cache_folder: Path | None = None) -> list[Row]:
    """Embeds what is not in the cache and probes it."""
    assembly, variables = source.open()
    parts = {part: extract(assembly, variables, stream, taps, pool, cache_folder)
             for part, stream in streams_of(assembly, train, test, validation).items()}
    return probe(parts, request)


def probe(parts: dict[str, Features], request: ProbeRequest) -> list[Row]:
    """The table of features by part: 'train', and if wanted 'validation' and 'test'."""
    check_parts(parts)
    enable_compilation_cache("default")
    data = {part: (np.asarray(features.tap(request.tap) if request.tap else features.x), features.y)
            for part, features in parts.items()}
    for name in request.methods:
        if name not in (*probes.PROBES, "few_shot"):
            raise unknown("method", name, (*probes.PROBES, "few_shot"))
    classes = len(parts["train"].class_names)
    wanted = [name for name in request.methods if name != "few_shot"]
    rows = probes.table(data["train"], data.get("test"), data.get("validation"), wanted, classes, request.folds,
                        request.seed) if wanted or not request.methods else []
    if not request.methods or "few_shot" in request.methods:
        rows += _few_shot(data["train"], data.get("test"), request)
    return rows


def _few_shot(train: tuple[Any, Any], test: tuple[Any, Any] | None, request: ProbeRequest) -> list[Row]:
    """The episodes; says which shots the smallest class is too small for, which is an error where all are."""
    most = most_shots(train[1], test is not None)
    many = [shots for shots in request.shots if shots > most]
    if many:
        text = (f"{', '.join(map(str, many))} shots: the smallest class to train on has "
                f"{most + (test is None)} example{'s' * (most + (test is None) != 1)}"
                f"{'' if test is not None else ', one of which is asked about'}")
        if len(many) == len(request.shots) and request.methods:
            raise UserError(f"{text}; give more examples or fewer --shots")
        print(f"left out {text}")
    return few_shot(train, test, request.shots, request.episodes, request.seed, request.learners)


def check_parts(parts: dict[str, Features]) -> None:
    """Parts must have the same columns and classes, and share no example."""
    first = parts["train"]
    for part, features in parts.items():
        if features.columns != first.columns:
            raise UserError(f"the features for {part} ({features.folder}) have other columns than those for train "
                            f"({first.folder}); make both with the same model and taps")
        same = ("weights", "model", "inserted", "pool", "precision")
        if any(features.manifest["description"].get(name) != first.manifest["description"].get(name) for name in same):
            raise UserError(f"the features for {part} ({features.folder}) come from another model than those for train "
                            f"({first.folder}); make both with the same")
        if features.class_names != first.class_names:
            raise UserError(f"the classes for {part} are not those for train; choose the same with 'classes'")
    names = list(parts)
    for place, one in enumerate(names):
        for other in names[place + 1:]:
            shared = common(parts[one], parts[other])
            if shared:
                raise UserError(f"{one} and {other} share {len(shared)} examples, {shared[0]} among them; a score on "
                                f"them would tell nothing, give parts without common examples")


def common(one: Features, other: Features) -> list[str]:
    """Names of the examples that are in both: of equal names and features, for two files may be called the same."""
    places = {name: place for place, name in enumerate(other.names)}
    pairs = np.array([(place, places[name]) for place, name in enumerate(one.names) if name in places],
                     int).reshape(-1, 2)
    equal = np.isclose(one.x[pairs[:, 0]], other.x[pairs[:, 1]], rtol=1e-3, atol=1e-5).all(1)
    return [one.names[place] for place in pairs[equal, 0]]


def show(rows: Sequence[Row], title: str, out: Path | None) -> None:
    """Prints the table, and writes it as JSON."""
    cells = [(row.method, f"{row.accuracy:.4f}", f"{row.low:.4f} to {row.high:.4f}", str(row.count), row.setting or "-",
              "-" if row.validation is None else f"{row.validation:.4f}", row.note) for row in rows]
    print_table(("method", "accuracy", "95 % interval", "n", "setting", "validation", "note"), cells, output_console(),
                title)
    if out is not None:
        write_json(out, [asdict(row) for row in rows])
