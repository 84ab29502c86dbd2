"""What choosing without target labels costs: the report's tables against numbers worked out by hand."""

import json

import numpy as np
import pytest
from synthetic_workdir import make_workdir

from transfer_jax.experiment.report import choices, terminal_tables, write_report
from transfer_jax.experiment.report.collect import read_run
from transfer_jax.experiment.report.pivot import layout
from transfer_jax.training.writers import VALIDATED, MetricWriter

STAGES = ("domain-adversarial", "covariance_alignment")
METHODS = ("domain-adversarial", "covariance alignment")
STEPS = (0, 10, 20, 30)
# Of two seeds, at the steps 10, 20 and 30: what labels say, what two validators say, and the distance.
TRUTH = np.array([[0.5, 0.75, 0.625], [0.25, 0.375, 0.5]])
SCORES = {"snd": [[1, 3, 2], [3, 2, 1]], "dev": [[2, 2, 1], [0, 0, 7]], "a_distance": [[-1.5, -1, -0.5]] * 2}


@pytest.fixture
def workdir(tmp_path):
    """A run of two seeds and two adapted stages with validators."""
    path = make_workdir(tmp_path / "run", seeds=2, methods=METHODS, points=4)
    config = json.loads((path / "config.json").read_text())
    config["streams"] = {name: {"domain": name.partition("_")[0]} for name in ("target", "target_test", "source_test")}
    config["stages"] = {stage: {"validation": {"target": "target", "task": "digits", "source": "source_test"},
                                "evaluate": {"source_test": "digits", "target_test": "digits"}} for stage in STAGES}
    (path / "config.json").write_text(json.dumps(config))
    (path / "metrics.jsonl").unlink()
    with MetricWriter(path, tensorboard=False) as writer:
        for stage in STAGES:
            for place, step in enumerate(STEPS):
                truth = [0.1, 0.2] if step == 0 else TRUTH[:, place - 1]
                writer.write(stage, step, "eval", {"accuracy": np.float64(truth)}, "target_test")
                values = {f"{VALIDATED}{name}": np.float64(np.array(rows)[:, max(place - 1, 0)])
                          for name, rows in SCORES.items()}
                writer.write(stage, step, "eval", values, "target")
    draw = np.random.default_rng(0)
    for stage in STAGES:
        (path / "predictions" / stage / "validation").mkdir(parents=True, exist_ok=True)
        for moment in ("start", "end"):
            np.savez(path / "predictions" / stage / "validation" / f"{moment}.npz",
                     features=draw.normal(size=(80, 6)), feature_labels=np.repeat([0, 1, 2, -1], 20),
                     feature_domains=np.repeat(["plain", "photo"], 40))
    return path


def read(path):
    runs = [read_run(path)]
    return choices.read_choices(runs, layout(runs))


def test_each_rule_chooses_for_every_seed_by_itself_and_the_earliest_of_equals(workdir):
    first, second = read(workdir)
    assert (first.stream, first.metric, first.title) == ("target_test", "accuracy", METHODS[0])
    assert first.rules == ["last", "a_distance", "dev", "snd", "oracle"]
    expected = {"last": [30, 30], "a_distance": [30, 30], "dev": [10, 30], "snd": [20, 10], "oracle": [20, 30]}
    assert {rule: first.steps[first.points(rule)].tolist() for rule in first.rules} == expected
    np.testing.assert_array_equal(first.chosen("dev"), [0.5, 0.5])
    np.testing.assert_array_equal(first.regret("dev"), [0.25, 0.0])
    np.testing.assert_array_equal(first.regret("snd"), [0.0, 0.25])
    np.testing.assert_array_equal(first.regret("last"), [0.125, 0.0])
    np.testing.assert_array_equal(first.start, [0.1, 0.2])
    assert all((second.regret(rule) >= 0).all() for rule in second.rules)


def test_where_small_scores_are_good_the_oracle_takes_the_smallest():
    one = choices.Choices("t", "s", "loss", True, np.array([1, 2]), np.array([[3.0, 1.0]]), None,
                          {"snd": np.array([[2.0, 1.0]])})
    assert one.regret("snd").tolist() == [2.0] and one.chosen("oracle").tolist() == [1.0]


def test_the_tables_say_so(workdir):
    found = read(workdir)
    table = choices.choice_table(found[0])
    rows = {row[0]: row for row in table.rows}
    assert list(rows) == ["start", "last", "a_distance", "dev", "snd", "oracle"]
    assert rows["dev"][1].startswith("0.500") and rows["dev"][3] == "10–30" and rows["oracle"][2] == "–"
    assert {table.rows[row][0] for row, _ in table.bold} == {"a_distance"}  # 0.0625, the others 0.125
    regret = choices.regret_table(found)
    assert list(regret.columns) == ["chosen by", *METHODS, "mean"]
    assert [row[0] for row in regret.rows] == ["last", "a_distance", "dev", "snd"]
    assert {regret.rows[row][0] for row, _ in regret.bold} == {"a_distance"} and len(regret.bold) == 3
    distance = choices.distance_table([read_run(workdir)])
    assert distance.rows[0] == [METHODS[0], "1.500 ± 0.000", "0.500 ± 0.000"]


def test_the_report_shows_tables_and_pictures_in_all_its_forms(workdir):
    paths = write_report([workdir], workdir)
    page, text = paths.html.read_text(), paths.markdown.read_text()
    for form in (page, text):
        assert "Choosing without target labels" in form and "A-distance of source and target" in form
        assert "what the choice falls short of the oracle" in form
    assert f"domains_run_{STAGES[1]}.svg" in text.replace("-", "_") and "pale: no label" in page
    picture = next(path for path in paths.figures if path.name.startswith("domains_")).read_text()
    assert "by domain" in picture and "by class" in picture and "photo" in picture
    titles = [table.title for table in terminal_tables([workdir])]
    assert titles[-1].startswith("Regret of choosing without target labels")
    assert all("Regret" not in table.title for table in terminal_tables([workdir], width=20))


def test_a_single_evaluation_point_leaves_nothing_to_choose(workdir):
    lines = [line for line in (workdir / "metrics.jsonl").read_text().splitlines() if '"step": 30' in line]
    (workdir / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    text = write_report([workdir], workdir).markdown.read_text()
    assert "There was nothing to choose" in text and "A-distance of source and target" in text
    assert "Regret" not in [table.title for table in terminal_tables([workdir])]


def test_several_targets_are_told_apart(workdir):
    config = json.loads((workdir / "config.json").read_text())
    config["streams"]["other"] = {"domain": "sketch"}
    config["stages"][STAGES[0]]["validation"]["target"] = ["target", "other"]
    (workdir / "config.json").write_text(json.dumps(config))
    assert [one.title for one in read(workdir)] == [f"{METHODS[0]}, target", METHODS[1]]
