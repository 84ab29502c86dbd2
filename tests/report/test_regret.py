"""What the advisor's choice costs, read from the files of a run and the advice beside them."""

import json

import numpy as np
import pytest
from synthetic_workdir import make_workdir

from transfer_jax.core.errors import UserError
from transfer_jax.experiment.report import figures, scores
from transfer_jax.experiment.report.collect import read_runs
from transfer_jax.experiment.report.document import result_figures
from transfer_jax.experiment.report.pivot import layout, pivot
from transfer_jax.experiment.report.regret import chosen_cells, read_advice, regret_table, with_choices
from transfer_jax.experiment.report.statistics import summarize

METHODS = ("from scratch", "full fine-tuning", "gradual unfreezing")
FINETUNING, SCRATCH = "full fine-tuning", "from scratch"


@pytest.fixture
def workdir(tmp_path):
    """Three methods at 1 and 5 labels (the third at no more), each stage tagged with its name as the recipe."""
    path = make_workdir(tmp_path / "run", seeds=3, methods=METHODS, selections=("last",))
    results, config = (json.loads((path / f"{name}.json").read_text()) for name in ("results", "config"))
    config["stages"] = {}
    for result in results:
        if "labels" in result["tags"]:
            result["tags"]["recipe"] = result["tags"]["method"]
            config["stages"][result["stage"]] = {"objective": {"terms": {"t": {
                "kind": "task", "stream": f"train_{result['tags']['labels']}"}}}}
    for name, content in (("results", results), ("config", config)):
        (path / f"{name}.json").write_text(json.dumps(content))
    advise(path, "train_5", FINETUNING, FINETUNING, SCRATCH)
    advise(path, "train_1", *[SCRATCH] * 3)
    return path


def advise(path, stream, *recipes, by_rule=None):
    (path / "advice").mkdir(exist_ok=True)
    told = {"stream": stream, "advice": {str(seed): {"recipe": recipe, "candidates": [by_rule or recipe]}
                                         for seed, recipe in enumerate(recipes)}}
    (path / "advice" / f"{stream}.json").write_text(json.dumps(told))


def opened(path):
    runs = read_runs([path])
    table = pivot(runs, layout(runs))
    return runs, table, read_advice(runs[0], table)


def test_regret_is_the_best_mean_less_what_was_chosen_seed_by_seed(workdir):
    _, table, advice = opened(workdir)
    assert [(one.x, one.evaluated) for one in advice] == [(1, "target_test"), (5, "target_test")]
    cells = {row.name: row.cells["target_test", 5, "last"].values for row in table.rows
             if ("target_test", 5, "last") in row.cells}
    best = max(cells, key=lambda name: cells[name].mean())
    got = np.array([cells[FINETUNING][0], cells[FINETUNING][1], cells[SCRATCH][2]])
    np.testing.assert_allclose(advice[1].regret(advice[1].chosen), cells[best] - got)
    assert advice[1].best() == best and advice[1].best(lower=True) == SCRATCH
    assert (advice[1].regret([best] * 3) == 0).all()
    np.testing.assert_allclose(advice[1].regret([best] * 3, lower=True), cells[best] - cells[SCRATCH])


def test_the_table_compares_the_advisor_with_always_the_same_recipe(workdir):
    _, _, advice = opened(workdir)
    table = regret_table(advice)
    assert list(table.columns) == ["choice", "1", "5", "mean"]
    assert [row[0] for row in table.rows] == ["the advisor", *(f"always {name}" for name in METHODS)]
    mean = summarize(np.mean([one.regret(one.chosen) for one in advice], axis=0))
    assert table.rows[0][3] == f"{mean.mean:.3f} ± {mean.half:.3f}"
    best = [name for name in METHODS if advice[0].best() == name]
    assert table.rows[1 + METHODS.index(best[0])][1] == "0.000 ± 0.000"
    assert (1 + METHODS.index(best[0]), 1) in table.bold


def test_what_was_chosen_after_trying_stands_beside_what_the_rule_chose(workdir):
    advise(workdir, "train_5", *[FINETUNING] * 3, by_rule=SCRATCH)
    _, _, advice = opened(workdir)
    assert (advice[1].by_rule, advice[1].chosen) == ((SCRATCH,) * 3, (FINETUNING,) * 3)
    rows = {row[0]: row for row in regret_table(advice).rows}
    rule, tried = (summarize(advice[1].regret([name] * 3)).mean for name in (SCRATCH, FINETUNING))
    assert rows["the advisor, by its rule alone"][2].startswith(f"{rule:.3f}")
    assert rows["the advisor, after trying"][2].startswith(f"{tried:.3f}")


def test_choices_are_a_column_and_rings(workdir):
    runs, table, advice = opened(workdir)
    told = with_choices(scores.score_tables(runs, table)[0], advice, "target_test")
    column = {row[0]: row[-1] for row in told.rows}
    assert told.columns[-1] == "advised for"
    assert column[SCRATCH] == "1; 5 (1 of 3 seeds)" and column[FINETUNING] == "5 (2 of 3 seeds)"
    rings = chosen_cells(advice, "target_test")
    assert rings == {SCRATCH: [1, 5], FINETUNING: [5]} and chosen_cells(advice, "other") == {}
    plain, ringed = (result_figures(table, *more)[0] for more in ((), ({"target_test": rings}, "chosen")))
    assert ringed.caption.endswith("; ring: chosen.") and "ring" not in plain.caption
    assert plain.content != ringed.content


def test_a_ring_around_what_is_not_drawn_is_left_out():
    points = {"a": {1: summarize([0.1, 0.2]), 2: summarize([0.3, 0.4])}}
    assert figures.against_x(points, "x", "y", {"b": [1]}) == figures.against_x(points, "x", "y")


def test_advice_that_does_not_fit_is_one_sentence(workdir):
    advise(workdir, "train_5", "prompt", SCRATCH, SCRATCH)
    with pytest.raises(UserError, match="prompt was advised for train_5, but .* has not tried it"):
        opened(workdir)
    advise(workdir, "train_5", SCRATCH)
    with pytest.raises(UserError, match="for 1 seeds, but .* has others"):
        opened(workdir)
    advise(workdir, "train_9", SCRATCH)
    with pytest.raises(UserError, match="advice for 'train_9', from which no stage"):
        opened(workdir)


def test_without_advice_nothing_is_told(tmp_path):
    assert opened(make_workdir(tmp_path / "run", seeds=2, methods=METHODS))[2] == []
