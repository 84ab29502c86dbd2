"""Which source model for these data: transferability scores and probes before any fine-tuning, side by side, and how
well each of them foretold the fine-tuned result where that is asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax
from scipy.stats import rankdata, weightedtau

from transfer_jax.core.config import load_config
from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import build, plain
from transfer_jax.evaluation import probes
from transfer_jax.evaluation.transferability import FEATURE_SCORES, PREDICTION_SCORES, transferability
from transfer_jax.experiment.assembly import Assembly
from transfer_jax.experiment.features import HEAD, extract, fresh_model
from transfer_jax.experiment.runner import Runner
from transfer_jax.experiment.spec import ExperimentSpec
from transfer_jax.models import build_backbone
from transfer_jax.models.model import MAIN
from transfer_jax.pretrained.description import describe
from transfer_jax.pretrained.sources import fetch
from transfer_jax.training.checkpoint import write_json
from transfer_jax.training.progress import output_console, print_table

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "finetune.py"
SOURCE = "source"  # the head that keeps the source's own classes
CLASSES = "source_classes="
TRAIN, EVALUATION = "train", "evaluation"  # the streams of the config
PROBED = ("logistic", "knn")
SCORES = (*PREDICTION_SCORES, *FEATURE_SCORES)


@dataclass
class Candidate:
    """One source model.

    Attributes:
        name: short and unique.
        reference: the config with its arguments.
        classes: number of the source's own classes, where the source does not tell it itself.
        of_seeds: scores by name of the examples of each seed, of the first seed alone where all have the same; a score
            that does not apply is absent.
        intervals: of the probes' accuracies, their ends averaged over the seeds.
        truths: accuracy after fine-tuning, of each seed; empty without fine-tuning.
    """

    name: str
    reference: str
    classes: int | None = None
    of_seeds: list[dict[str, float]] = field(default_factory=list)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    truths: tuple[float, ...] = ()

    @property
    def scores(self) -> dict[str, float]:
        """Means over the seeds."""
        return {name: float(np.mean([scores[name] for scores in self.of_seeds])) for name in (self.of_seeds or [{}])[0]}

    @property
    def truth(self) -> float | None:
        """Mean over the seeds."""
        return float(np.mean(self.truths)) if self.truths else None

    def seed(self, place: int) -> Candidate:
        """The candidate as the seed of this place sees it."""
        scores = self.of_seeds[place if len(self.of_seeds) > 1 else 0]
        return dataclasses.replace(self, of_seeds=[scores], truths=self.truths[place:place + 1])


def rank(weights: Sequence[str], data: str, common: str = "", tap: str = "pooled", workdir: Path | None = None,
         config: Path = CONFIG, cache_folder: Path | None = None) -> list[Candidate]:
    """Scores every source on the data, the best by mean rank first.

    Args:
        weights: 'SRC' or 'SRC,key=value,...', arguments of the config for this source alone, such as `source_classes`,
            where a source does not tell how many classes its own head has.
        common: 'key=value,...' for all sources that do not say otherwise.
        workdir: where each source is fine-tuned as the config says; None: no fine-tuning.
    """
    if len(weights) < 2:
        raise UserError("give two or more sources with --weights; one alone has no rank")
    found = [candidate_of(name, source, f"{config}:data={data}", common)
             for name, source in zip(short_names(weights), weights, strict=True)]
    specs = [build(ExperimentSpec, load_config(candidate.reference)) for candidate in found]
    for spec in specs:
        build_backbone(spec.model.backbones[MAIN])  # a misspelt one shows before the others take their time
    for candidate in found:
        plain_start = build(ExperimentSpec, load_config(f"{candidate.reference},recipe=linear_probe"))
        score(candidate, plain_start, tap, cache_folder)
    for candidate, spec in zip(found, specs, strict=True) if workdir is not None else ():
        candidate.truths = finetuned(spec, workdir / candidate.name)
    return sorted(found, key=lambda candidate: mean_ranks(found)[candidate.name])


def candidate_of(name: str, source: str, start: str, common: str) -> Candidate:
    """The candidate of one item of `weights`."""
    weights, *own = source.split(",")
    reference = ",".join(filter(None, (start, f"weights={weights}", common, *own)))
    told = [part.removeprefix(CLASSES) for part in reference.split(",") if part.startswith(CLASSES)]
    if told and not (told[-1].isdigit() and int(told[-1]) > 1):
        raise UserError(f"--weights {source}: {CLASSES}{told[-1]} is no number of classes; give 2 or more")
    return Candidate(name, reference, int(told[-1]) if told else None)


def short_names(weights: Sequence[str]) -> list[str]:
    """A readable name for each source, fit for a folder."""
    sources = [source.partition(",")[0].rstrip("/") for source in weights]
    names = [Path(source).stem if Path(source).exists() and Path(source).is_file() else
             source.rpartition("/")[2] for source in sources]
    if len(set(names)) < len(names):
        names = [f"{number}-{name}" for number, name in enumerate(names, 1)]
    return names


def score(candidate: Candidate, spec: ExperimentSpec, tap: str, cache_folder: Path | None = None) -> None:
    """Fills in the scores: transferability of the training examples, and probes answered on the evaluation; of every
    seed, where seeds draw examples of their own."""
    source = spec.pretrained[MAIN].source if MAIN in spec.pretrained else ""
    if not source:
        raise UserError(f"the source {candidate.name!r} has no pretrained parameters; name weights")
    head = source_head(spec, source, candidate.classes)
    spec = with_head(spec, head)
    taps = (tap, HEAD + SOURCE) if head else (tap,)
    found = [score_seed(candidate.name, spec, seed, taps, cache_folder)
             for seed in (spec.seeds if drawn_by_seed(spec) else spec.seeds[:1])]
    candidate.of_seeds = [scores for scores, _ in found]
    ends = {name: np.mean([intervals[name] for _, intervals in found], axis=0) for name in found[0][1]}
    candidate.intervals = {name: (float(low), float(high)) for name, (low, high) in ends.items()}


def drawn_by_seed(spec: ExperimentSpec) -> bool:
    """Whether seeds differ in their examples."""
    assembly = Assembly(spec)
    return not all(assembly.stream(name).shared_rows for name in (TRAIN, EVALUATION))


def score_seed(name: str, spec: ExperimentSpec, seed: int, taps: tuple[str, ...], cache_folder: Path | None = None,
               ) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Scores, and intervals of the probes, of one seed; `taps`: features and, where there is one, the source's head."""
    assembly, variables = fresh_model(spec, seed)
    train, test = (extract(assembly, variables, stream, taps, cache_folder=cache_folder, quiet=True)
                   for stream in (TRAIN, EVALUATION))
    features = np.asarray(train.tap(taps[0]), np.float64)
    probabilities = softmax(np.asarray(train.tap(taps[1]), np.float64), axis=1) if taps[1:] else None
    try:
        scores = transferability(features, train.y, probabilities)
    except ValueError as error:
        raise UserError(f"{name} on these data: {error}") from error
    rows = probes.table((train.tap(taps[0]), train.y), (test.tap(taps[0]), test.y), methods=PROBED,
                        classes=len(train.class_names))
    found = {"linear_probe" if row.method == "logistic" else "knn_probe": row for row in rows}
    return (scores | {key: row.accuracy for key, row in found.items()},
            {key: (row.low, row.high) for key, row in found.items()})


def source_head(spec: ExperimentSpec, source: str, classes: int | None) -> dict[str, Any] | None:
    """The classifier that the source was published with, or None where nobody tells of how many classes."""
    if classes is None:
        told = describe(fetch(source).path, source).head
        return dict(told) if told else None
    classifier = build_backbone(spec.model.backbones[MAIN]).classifier
    if classifier is None:
        raise UserError(f"{source}: {CLASSES}{classes}, but its backbone has no classifier; leave it out")
    return {**classifier.model_dump(), "classes": classes}


def with_head(spec: ExperimentSpec, head: Mapping[str, Any] | None) -> ExperimentSpec:
    """The experiment with the source's own head beside its others."""
    if head is None:
        return spec
    values = plain(spec.model_dump())
    values["model"]["heads"][SOURCE] = dict(head)
    values["pretrained"][MAIN]["head"] = SOURCE
    return build(ExperimentSpec, values)


def finetuned(spec: ExperimentSpec, folder: Path) -> tuple[float, ...]:
    """Accuracy of each seed at the end of the last stage; a finished run is read, a stopped one goes on."""
    runner = Runner(spec, folder, quiet=True)  # its reports of loading stand in the run's pretrained.json
    runner.run()
    last = list(spec.stages)[-1]
    row = next(row for row in runner.workdir.record(last)["results"] if row["selection"] == "last")
    found = tuple(float("nan") if value is None else value for value in row["metrics"]["accuracy"])
    print(f"{folder.name}: trained, accuracy {np.mean(found):.4f}", flush=True)
    return found


def mean_ranks(candidates: Sequence[Candidate]) -> dict[str, float]:
    """Candidate -> mean of its ranks (1 is best, equals share) over the scores that all of them have."""
    common = [name for name in score_names(candidates) if all(name in c.scores for c in candidates)]
    ranks = [rankdata([-_significant(c.scores[name]) for c in candidates]) for name in common]
    return dict(zip([c.name for c in candidates], np.mean(ranks, axis=0).tolist(), strict=True))


def _significant(value: float) -> float:
    """Six digits: scores that differ only by rounding are equal, as the H-scores of fewer examples than features."""
    return float(f"{value:.6g}")


def score_names(candidates: Sequence[Candidate]) -> list[str]:
    """Names of the scores that any candidate has, probes last."""
    return [name for name in (*SCORES, "linear_probe", "knn_probe") if any(name in c.scores for c in candidates)]


def agreement_by_seed(candidates: Sequence[Candidate], name: str) -> list[float | None]:
    """The same of each seed alone."""
    count = min((len(c.truths) for c in candidates), default=0)
    return [agreement([c.seed(place) for c in candidates], name) for place in range(count)]


def agreement(candidates: Sequence[Candidate], name: str) -> float | None:
    """Weighted Kendall's tau (Vigna 2015) of a score and the truth over the candidates that have both; None for fewer
    than two, or where all are equal."""
    pairs = [(_significant(c.scores[name]), c.truth) for c in candidates if name in c.scores and c.truth is not None]
    if len(pairs) < 2:
        return None
    tau = float(weightedtau(*zip(*pairs, strict=True)).statistic)
    return tau if np.isfinite(tau) else None


def show(candidates: Sequence[Candidate], title: str, out: Path | None) -> None:
    """Prints one table, a column a source, and writes it as JSON."""
    finetuned = all(c.truth is not None for c in candidates)
    rows = []
    for name in score_names(candidates):
        rows.append([name, *(_cell(c, name) for c in candidates), *([_tau(candidates, name)] if finetuned else [])])
        if any(name in c.intervals for c in candidates):
            rows.append(["  95 % interval", *(_interval(c, name) for c in candidates), *([""] if finetuned else [])])
    ranks = mean_ranks(candidates)
    rows.append(["mean rank", *(f"{ranks[c.name]:.2f}" for c in candidates), *([""] if finetuned else [])])
    if finetuned:
        rows.append(["fine-tuned accuracy", *(f"{c.truth:.4f}" for c in candidates), ""])
    columns = ("score", *(c.name for c in candidates), *(["weighted tau"] if finetuned else []))
    print_table(columns, rows, output_console(), title)
    print("larger is better; no score alone is reliable, look at all of them")
    if out is not None:
        write_json(out, record(candidates))


def record(candidates: Sequence[Candidate]) -> dict[str, Any]:
    """All numbers, for a JSON file."""
    ranks, names = mean_ranks(candidates), score_names(candidates)
    tau, by_seed = ({name: function(candidates, name) for name in names} for function in (agreement, agreement_by_seed))
    finetuned = all(c.truth is not None for c in candidates)
    sources = {c.name: {"config": c.reference, "scores": c.scores, "intervals": c.intervals, "finetuned": c.truth,
                        "scores_by_seed": c.of_seeds, "finetuned_by_seed": list(c.truths)} for c in candidates}
    return {"order": [c.name for c in candidates], "mean_rank": ranks, "sources": sources,
            "weighted_tau": tau if finetuned else None, "weighted_tau_by_seed": by_seed if finetuned else None}


def _cell(candidate: Candidate, name: str) -> str:
    return f"{candidate.scores[name]:.4f}" if name in candidate.scores else "-"


def _interval(candidate: Candidate, name: str) -> str:
    return "{:.2f} to {:.2f}".format(*candidate.intervals[name]) if name in candidate.intervals else "-"


def _tau(candidates: Sequence[Candidate], name: str) -> str:
    tau = agreement(candidates, name)
    return "-" if tau is None else f"{tau:+.2f}"
