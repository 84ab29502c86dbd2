"""Delta_m, the Pareto front, and the section on tasks learned together, of invented runs."""

from pathlib import Path

import numpy as np

from transfer_jax.experiment.report import affinity
from transfer_jax.experiment.report.collect import Result, Run, by_experiment
from transfer_jax.experiment.report.document import Picture
from transfer_jax.experiment.report.pivot import Layout
from transfer_jax.experiment.report.several_tasks import change_table, changes, curves_of, mean_change, pareto_front
from transfer_jax.experiment.report.tables import Table
from transfer_jax.experiment.report.task_section import several_task_blocks

TASKS = {"digits": "accuracy", "depth": "rmse"}
LAYOUT = Layout("accuracy", ("digits",), "method", None, "alone")
ALONE = {"digits": [0.8, 0.6, 0.7], "depth": [2.0, 4.0, 3.0]}


def invented(methods, lines=(), tasks=TASKS):
    results = [Result("run", f"{row}_{stream}", stream, "last", {"method": row}, {tasks[stream]: np.asarray(values)},
                      {}, None, ()) for row, scores in methods.items() for stream, values in scores.items()]
    stages = {f"{row}_{stream}": {"title": row} for row, scores in methods.items() for stream in scores}
    return Run("run", Path(), {"report": {"tasks": tasks}}, stages, results, list(lines))


def test_delta_m_is_its_formula_with_the_sign_of_each_metric():
    better = {"digits": np.array([0.88, 0.6, 0.7]), "depth": np.array([1.0, 4.0, 3.3])}
    alone = {stream: np.asarray(values) for stream, values in ALONE.items()}
    # +10 % of accuracy and half the error: (10 + 50) / 2; then nothing; then a tenth more error.
    np.testing.assert_allclose(mean_change(better, alone, TASKS), [30, 0, -5], atol=1e-9)


def test_rows_that_lack_a_task_are_left_out_and_the_reference_comes_first():
    run = invented({"joint": {"digits": [0.9, 0.7, 0.8], "depth": [1.0, 2.0, 1.5]}, "alone": ALONE,
                    "half": {"digits": [0.9, 0.9, 0.9]}})
    rows = changes(run, LAYOUT)
    assert [row.name for row in rows] == ["alone", "joint"] and not rows[0].change.any()
    table = change_table(rows, TASKS)
    assert table.rows[0][-1] == "reference" and table.rows[1][-1].startswith("+")
    assert (1, 3) in table.bold
    assert changes(invented({"joint": ALONE}), LAYOUT) == []


def test_the_front_equals_its_definition_on_random_points():
    for seed in range(20):
        points = [tuple(p) for p in np.random.default_rng(seed).integers(0, 5, (12, 2)).tolist()]
        expected = [i for i, p in enumerate(points) if not any(q[0] >= p[0] and q[1] >= p[1] and q != p
                                                              for q in points)]
        assert pareto_front(points) == expected and expected


def test_the_section_draws_the_trade_and_what_was_logged_of_terms():
    lines = [{"kind": "train", "stage": "joint_digits", "step": step, "metrics": {
        "loss": [1.0, 1.0], "weight_digits": [0.1 * step, 0.2], "weight_depth": [0.5, 0.5],
        "cosine/digits/depth": [-0.2, 0.3], "gradient_norm/digits": [1.0, 2.0], "depth/skipped": [0.0, 0.0]}}
        for step in (1, 2, 3)]
    run = invented({"alone": ALONE, "joint": {"digits": [0.9, 0.7, 0.8], "depth": [1.0, 2.0, 1.5]},
                    "other": {"digits": [0.7, 0.5, 0.6], "depth": [0.5, 0.6, 0.7]}}, lines)
    found = curves_of(run, "joint_digits")
    assert set(found) == {"weight of the term", "cosine of two gradients", "length of the gradient"}
    np.testing.assert_allclose(found["weight of the term"]["digits"][1], [[0.1, 0.2, 0.3], [0.2, 0.2, 0.2]])
    blocks = several_task_blocks([run], LAYOUT)
    assert any(isinstance(block, Table) for block in blocks)
    pictures = {block.name: block.content.decode() for block in blocks if isinstance(block, Picture)}
    assert set(pictures) == {"trade_run", "terms_run_joint_digits"}
    assert "rmse on depth (lower is better)" in pictures["trade_run"] and ">1</text>" in pictures["trade_run"]
    assert "digits · depth" in pictures["terms_run_joint_digits"]


def test_runs_that_share_the_stages_of_an_experiment_are_one():
    """As the arms of a sweep: each is compared with a reference that another run has."""
    both = {"digits": [0.9, 0.7, 0.8], "depth": [1.0, 2.0, 1.5]}
    alone, joint, again = (invented({name: values}) for name, values in (("alone", ALONE), ("joint", both),
                                                                         ("joint", ALONE)))
    for run in (alone, joint, again):
        run.config["name"] = "arms"
    blocks = several_task_blocks([alone, joint], LAYOUT)
    (table,) = (block for block in blocks if isinstance(block, Table))
    assert [row[0] for row in table.rows] == ["alone", "joint"]
    # A stage that two runs have is not the same one, nor are those of another experiment.
    assert by_experiment([joint, again]) == [joint, again]
    alone.config["seeds"] = (0, 1)
    assert by_experiment([alone, joint]) == [alone, joint]


def test_a_run_without_tasks_has_no_section():
    assert several_task_blocks([Run("run", Path(), {}, {}, [], [])], LAYOUT) == []


def test_a_diverged_seed_is_said_and_not_averaged():
    diverged = {"digits": [np.nan, 0.7, 0.8], "depth": [1.0, 2.0, 1.5]}
    rows = changes(invented({"alone": ALONE, "joint": diverged}), LAYOUT)
    assert change_table(rows, TASKS).rows[1][-1] == "diverged (1/3)"


def test_affinities_become_a_map_and_the_groups_that_follow():
    """Two pairs that help each other; in the second seed only one of the two does."""
    names = ("digits", "depth", "edges", "noise")
    means = np.full((2, 4, 4), -0.01)
    means[:, :2, :2] = 0.05
    means[0, 2:, 2:], means[1, 2:, 2:] = 0.2, -0.1
    lines = [{"kind": "train", "stage": "joint", "step": step, "metrics": {
        f"affinity/{a}/{b}": (means[:, i, j] + shift).tolist() for i, a in enumerate(names)
        for j, b in enumerate(names)}} for step, shift in ((1, 0.01), (2, -0.01))]
    run = invented({"joint": {}}, [*lines, {"kind": "train", "stage": "joint", "step": 3, "metrics": {"loss": [1, 1]}}])
    run.stages["joint"] = {"title": "all together"}
    run.config["stages"] = {"joint": {"objective": {"terms": dict.fromkeys(names, {})}}}
    found, values = affinity.measured(run, "joint")
    assert found == names
    np.testing.assert_allclose(values, means, atol=1e-12)
    meaning, picture, table = several_task_blocks([run], LAYOUT)
    assert "affinity in percent" in picture.caption and picture.content.startswith(b"<?xml")
    assert [row[:2] for row in table.rows] == [["1", "digits + depth + edges + noise"],
                                               ["2", "digits + depth, edges + noise"]]  # three would be no better
    assert table.rows[1][3] == "1 of 2" and table.rows[1][2].startswith("+20.0")
    assert affinity.blocks(invented({"joint": {}}), "joint") == []
