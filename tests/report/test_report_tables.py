"""The three forms of a table, letter for letter, and what the tables of a report say."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from synthetic_workdir import make_workdir

from transfer_jax.experiment.report import scores, tables, terminal_table, terminal_tables
from transfer_jax.experiment.report.collect import Run, read_runs
from transfer_jax.experiment.report.pivot import layout, pivot
from transfer_jax.training.progress import output_console

SMALL = tables.Table(["method", "labels 1"], [["a|b", "0.1 ± 0.0\n0.2"], ["<i>", "–"]], "scores", {(0, 1)}, ["n_1"])
FEW = ("source model as it is", "from scratch", "frozen backbone, new head")


def _change(workdir, name, change):
    content = json.loads((workdir / name).read_text())
    change(content)
    (workdir / name).write_text(json.dumps(content))


def _tables(*workdirs):
    runs = read_runs(workdirs)
    table = pivot(runs, layout(runs))
    return runs, table, scores.score_tables(runs, table)


def test_markdown_golden():
    assert tables.to_markdown(SMALL) == (
        "**scores**\n\n"
        "| method | labels 1 |\n"
        "| --- | ---: |\n"
        "| a\\|b | **0.1 ± 0.0<br>0.2** |\n"
        "| \\<i\\> | – |\n"
        "\nn\\_1")


def test_html_golden():
    assert tables.to_html(SMALL) == (
        '<h3>scores</h3><div class="scroll"><table><thead><tr><th class="label" scope="col">method</th>'
        '<th scope="col">labels 1</th></tr></thead>\n<tbody><tr><td class="label">a|b</td>'
        '<td data-best="1">0.1 ± 0.0<small>0.2</small></td></tr>\n'
        '<tr><td class="label">&lt;i&gt;</td><td>–</td></tr></tbody></table></div><p class="note">n_1</p>')


def test_terminal_golden():
    file = io.StringIO()
    tables.print_to_terminal(SMALL, output_console(file))
    lines = [line.rstrip() for line in file.getvalue().splitlines()]
    assert lines == ["scores", "", " method  labels 1", " ────────────────",
                     " a|b      0.1±0.0", "              0.2", " <i>            –", "", "n_1"]


def test_a_column_can_be_left_out():
    table = tables.Table(list("abc"), [["1", "2", "3"]], bold={(0, 1), (0, 2)}).without(1)
    assert (table.columns, table.rows, table.bold) == (["a", "c"], [["1", "3"]], {(0, 1)})


def test_scores_are_pivoted_by_row_and_x(tmp_path):
    _, _, (table,) = _tables(make_workdir(tmp_path / "run", methods=FEW, selections=("last",)))
    assert table.columns == ["method", "no labels", "labels 1", "labels 5", "labels 10", "trainable", "optimizer",
                             "seconds"]
    assert [row[0] for row in table.rows] == list(FEW)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    values = next(r for r in results if r["tags"] == {"method": "from scratch", "labels": 5})["metrics"]["accuracy"]
    assert table.rows[1][3].startswith(f"{np.mean(values):.3f} ± ")
    assert table.rows[1][1] == "–" and table.rows[0][2] == "–"
    assert table.rows[2][-3:] == ["650", "5.2 kB", "2.1"]
    assert (2, 4) in table.bold and (1, 4) not in table.bold
    assert table.notes == ["Mean ± half width of the 95 % interval over 5 seeds."]


def test_last_and_oracle_share_a_cell_and_the_note_says_so(tmp_path):
    _, _, (table,) = _tables(make_workdir(tmp_path / "run", methods=FEW))
    last, oracle = (float(line.split(" ± ")[0]) for line in table.rows[1][4].split("\n"))
    assert oracle - last == pytest.approx(0.02, abs=0.0011)
    assert table.notes[-1] == "First line: last; below it: oracle."


def test_last_and_oracle_stand_side_by_side_without_x(tmp_path):
    workdir = make_workdir(tmp_path / "run", methods=FEW[:1])
    _change(workdir, "config.json", lambda c: c["report"].update(x=None))
    _, _, (table,) = _tables(workdir)
    assert table.columns[:3] == ["method", "last", "oracle"]


def test_loss_is_best_when_low_and_unknown_metrics_are_replaced_aloud(tmp_path):
    workdir = make_workdir(tmp_path / "run", methods=FEW, selections=("last",))
    _change(workdir, "config.json", lambda c: c["report"].update(metric="loss"))
    _, table, (shown,) = _tables(workdir)
    assert table.layout.lower and (2, 4) in shown.bold
    _change(workdir, "config.json", lambda c: c["report"].update(metric="mean_iou", streams=["nowhere"]))
    asked = layout(read_runs([workdir]))
    assert asked.metric == "accuracy" and "'mean_iou' was not measured" in asked.notes[0]
    assert asked.notes[1] == "No scores on nowhere."


def test_stages_of_one_row_add_their_seconds_and_the_last_is_scored(tmp_path):
    workdir = make_workdir(tmp_path / "run", methods=("from scratch", "domain-adversarial"), selections=("last",))

    def probe(stages):
        stages["probe"] = {"title": "probe", "tags": {"method": "domain-adversarial"}, "seconds": 10.0}
        stages["domain-adversarial"] = stages.pop("domain-adversarial")  # the probe comes first

    def scores_of_probe(results):
        scored = next(r for r in results if r["stage"] == "domain-adversarial")
        results.append({**scored, "stage": "probe", "metrics": {"accuracy": [0.0] * 5}})

    _change(workdir, "stages.json", probe)
    _change(workdir, "results.json", scores_of_probe)
    _, table, (shown,) = _tables(workdir)
    assert shown.rows[1][-1] == "16.4" and float(shown.rows[1][1].split(" ")[0]) > 0.5
    assert table.covered == ["probe"]


def test_differences_are_paired_to_the_reference(tmp_path):
    runs, table, _ = _tables(make_workdir(tmp_path / "run", methods=FEW, selections=("last",)))
    (shown,) = scores.difference_tables(table)
    assert "difference to 'from scratch'" in shown.title
    assert [row[0] for row in shown.rows] == ["frozen backbone, new head"]
    first = {r.tags["labels"]: r.metrics["accuracy"] for r in runs[0].results if r.tags.get("method") == FEW[1]}
    other = {r.tags["labels"]: r.metrics["accuracy"] for r in runs[0].results if r.tags.get("method") == FEW[2]}
    assert shown.rows[0][1].split(" ")[0] == f"{(other[1] - first[1]).mean():+.3f}"
    assert (0, 1) in shown.bold


def test_runs_are_merged_under_a_run_column(tmp_path):
    workdirs = [make_workdir(tmp_path / name, methods=FEW[1:], selections=("last",), seeds=seeds, shift=shift)
                for name, seeds, shift in (("one", 5, 0.0), ("two", 3, 0.1))]
    _, table, (shown,) = _tables(*workdirs)
    assert shown.columns[:2] == ["run", "method"] and shown.labels == 2
    assert [row[0] for row in shown.rows] == ["one", "one", "two", "two"]
    assert [row[shown.columns.index("seeds")] for row in shown.rows] == ["5", "5", "3", "3"]
    assert {i for i, _ in shown.bold} <= {2, 3}
    assert [row[0] for row in scores.difference_tables(table)[0].rows] == ["one", "two"]


def test_the_terminal_table_fits_100_columns_and_keeps_numbers_whole(tmp_path):
    workdir = make_workdir(tmp_path / "run")
    file = io.StringIO()
    terminal_table([workdir], output_console(file))
    text = file.getvalue()
    assert max(map(len, text.splitlines())) <= 100
    (table,) = terminal_tables([workdir])
    assert table.notes[-1] == "First line: last; below it: oracle."
    for row in table.rows:
        assert all(line.replace(" ± ", "±") in text for cell in row[1:] for line in cell.split("\n"))


def test_a_table_too_wide_for_the_terminal_is_split_by_selection(tmp_path):
    workdir = make_workdir(tmp_path / "run", methods=FEW[:1])
    _change(workdir, "config.json", lambda c: c["report"].update(x=None))
    titles = [[table.title for table in terminal_tables([workdir], width)] for width in (100, 60)]
    assert titles == [["accuracy on target_test"], ["accuracy on target_test (last)",
                                                    "accuracy on target_test (oracle)"]]


def test_group_tables_are_shared_by_equal_stages_and_say_what_is_frozen(tmp_path):
    runs = read_runs([make_workdir(tmp_path / "run", methods=FEW)])
    found = {table.title: table.rows for table in scores.group_tables(runs, "method")}
    assert list(found) == ["Source pretraining; source model as it is; from scratch (all trained)",
                           "frozen backbone, new head (not trained: backbone 99.8%)"]
    backbone = found["frozen backbone, new head (not trained: backbone 99.8%)"][0]
    assert list(backbone) == ["backbone", "24", "272,474", "99.8%", "frozen", "-", "-", "0 B"]


def test_groups_of_stages_that_trained_in_parallel():
    facts = {"a": {"title": "A", "beside": ["b"]}, "b": {"beside": ["a"]}, "c": {"beside": []}, "d": {}}
    runs = [Run(name, Path(), {}, facts, [], []) for name in ("one", "two")]
    assert scores.trained_in_parallel(runs[:1]) == ["A and b"]
    assert scores.trained_in_parallel(runs) == ["A and b"] * 2


def test_confused_pairs_and_skipped_examples(tmp_path):
    counts = np.array([[8, 2, 0], [0, 5, 5], [0, 0, 4]])
    rows = scores.confused_pairs(counts, ["cat", "dog", "emu"]).rows
    assert rows == [["dog", "emu", "5", "50.0%"], ["cat", "dog", "2", "20.0%"]]
    assert scores.confused_pairs(np.diag([3, 4]), []) is None
    assert scores.skipped_examples(read_runs([make_workdir(tmp_path / "run", methods=FEW)])) == {"target_train": 3}


def test_spans():
    assert scores.span([12, None, 15], str) == "12–15" and scores.span([650, 650], str) == "650"
    assert scores.span([None], str) == "–"
