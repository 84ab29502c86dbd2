"""How well scores of transferability foretold the fine-tuned accuracies: several sources on several targets.

Read from `FOLDER/<target>/rank.json`, which `python -m transfer_jax.rank --finetune --out` writes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from transfer_jax.core.errors import UserError
from transfer_jax.experiment.report import statistics
from transfer_jax.experiment.report.collect import read_json
from transfer_jax.experiment.report.scores import MISSING
from transfer_jax.experiment.report.statistics import Summary
from transfer_jax.experiment.report.tables import Table


@dataclasses.dataclass(frozen=True)
class Ranking:
    """One target.

    Attributes:
        truth: source -> fine-tuned accuracy of each seed [S].
        scores: score -> source -> value of each seed [S].
        tau: score -> weighted Kendall's tau of each seed [S], NaN where it is not defined.
    """

    target: str
    truth: Mapping[str, np.ndarray]
    scores: Mapping[str, Mapping[str, np.ndarray]]
    tau: Mapping[str, np.ndarray]

    def lost(self, score: str) -> np.ndarray:
        """[S]: accuracy of the best source less that of the source with the highest score (the mean of equals)."""
        names = list(self.scores[score])
        values, truths = (np.array([found[name] for name in names]) for found in (self.scores[score], self.truth))
        top = np.isclose(values, values.max(0), rtol=1e-6, atol=0)
        return np.array(list(self.truth.values())).max(0) - (truths * top).sum(0) / top.sum(0)


def read_rankings(folder: Path) -> list[Ranking]:
    """All targets of a folder, by name; those that were not fine-tuned are left out."""
    found = [(path.parent.name, read_json(path, dict)) for path in sorted(folder.glob("*/rank.json"))]
    return [_ranking(name, told) for name, told in found if told.get("weighted_tau_by_seed")]


def _ranking(target: str, told: Mapping) -> Ranking:
    truth = {name: np.array(source["finetuned_by_seed"]) for name, source in told["sources"].items()}
    scores = {score: {name: _of_seeds(source["scores_by_seed"], score, len(truth[name]))
                      for name, source in told["sources"].items() if score in source["scores"]}
              for score in told["weighted_tau_by_seed"]}
    tau = {score: np.array([np.nan if value is None else value for value in values])
           for score, values in told["weighted_tau_by_seed"].items()}
    return Ranking(target, truth, scores, tau)


def _of_seeds(by_seed: Sequence[Mapping[str, float]], score: str, seeds: int) -> np.ndarray:
    """[S]; scores of one seed stand for all where seeds share their examples."""
    return np.array([by_seed[place if len(by_seed) > 1 else 0][score] for place in range(seeds)])


def ordered_scores(rankings: Sequence[Ranking]) -> list[str]:
    """Scores that every target has, the highest mean tau first."""
    common = [score for score in rankings[0].tau if all(score in one.tau for one in rankings)]
    if not common:
        raise UserError("the rankings have no score in common; rank all targets with the same version")
    return sorted(common, key=lambda score: -_mean_over_targets([one.tau[score] for one in rankings]).mean())


def _mean_over_targets(values: Sequence[np.ndarray]) -> np.ndarray:
    """[S]: of each seed, over the targets where the value is defined."""
    return np.nanmean(np.stack(values), axis=0)


def tau_table(rankings: Sequence[Ranking]) -> Table:
    """A row a score: tau on each target, their mean, and what it costs to take the source that the score puts first."""
    rows = []
    for score in ordered_scores(rankings):
        tau = [one.tau[score] for one in rankings]
        lost = np.mean([one.lost(score) for one in rankings], axis=0)
        rows.append([score, *(_text(values) for values in tau), _text(_mean_over_targets(tau)),
                     statistics.text(statistics.summarize(lost), 3)])
    seeds = len(next(iter(rankings[0].truth.values())))
    return Table(["score", *(one.target for one in rankings), "mean tau", "first choice loses"], rows,
                 "weighted Kendall's tau of score and fine-tuned accuracy", (), [
                     f"Mean ± half width of the 95 % interval over {seeds} seeds, each with training examples of its "
                     "own; 1: the order is that of the fine-tuned accuracies, 0: no relation, -1: reversed. Last "
                     "column: accuracy of the best source less that of the source with the highest score, over all "
                     "targets."])


def _text(values: np.ndarray) -> str:
    return MISSING if np.isnan(values).all() else statistics.text(statistics.summarize(values[~np.isnan(values)]), 2)


def truth_table(rankings: Sequence[Ranking]) -> Table:
    """A row a source: fine-tuned accuracy on each target."""
    names = list(dict.fromkeys(name for one in rankings for name in one.truth))
    found = [[statistics.summarize(one.truth[name]) if name in one.truth else None for one in rankings]
             for name in names]
    tops = [max(row[j].mean for row in found if row[j]) for j in range(len(rankings))]
    rows = [[name, *(statistics.text(cell, 3) if cell else MISSING for cell in row)]
            for name, row in zip(names, found, strict=True)]
    bold = {(i, j + 1) for i, row in enumerate(found) for j, cell in enumerate(row) if cell and cell.mean == tops[j]}
    return Table(["source", *(one.target for one in rankings)], rows, "fine-tuned accuracy", bold)


def tau_figure(rankings: Sequence[Ranking]) -> bytes:
    """SVG: a line a score, a mark a target."""
    from transfer_jax.experiment.report import figures  # matplotlib: only when something is drawn

    marks: dict[str, dict[str, Summary]] = {}
    for score in ordered_scores(rankings):
        defined = {one.target: one.tau[score][~np.isnan(one.tau[score])] for one in rankings}
        marks[score] = {target: statistics.summarize(values) for target, values in defined.items() if len(values)}
    return figures.strips(marks, "weighted Kendall's tau with the fine-tuned accuracy")
