"""Scores against fine-tuned truth: read from rankings, as tables and as a figure."""

import json

import numpy as np
import pytest

from transfer_jax.core.errors import UserError
from transfer_jax.experiment.ranking import Candidate, record
from transfer_jax.experiment.report.agreement import (
    ordered_scores,
    read_rankings,
    tau_figure,
    tau_table,
    truth_table,
)


def write_ranking(folder, target, truths, logme, knn, finetuned=True):
    """Three sources a, b, c; truths and logme [3, S], knn [3] alike for all seeds."""
    found = [Candidate(name, "", of_seeds=[{"logme": value, "knn": knn[i]} for value in logme[i]],
                       intervals={}, truths=tuple(truths[i]) if finetuned else ())
             for i, name in enumerate("abc")]
    (folder / target).mkdir(parents=True)
    (folder / target / "rank.json").write_text(json.dumps(record(found)))


@pytest.fixture
def rankings(tmp_path):
    truths = [[0.9, 0.8], [0.5, 0.6], [0.1, 0.2]]
    write_ranking(tmp_path, "photos", truths, [[3, 1], [2, 2], [1, 3]], [0.3, 0.2, 0.1])
    write_ranking(tmp_path, "xrays", truths[::-1], [[3, 3], [2, 2], [1, 1]], [0.5, 0.5, 0.5])
    write_ranking(tmp_path, "later", truths, [[3, 1]] * 3, [1, 1, 1], finetuned=False)
    return read_rankings(tmp_path)


def test_rankings_that_were_not_finetuned_are_left_out(rankings):
    assert [one.target for one in rankings] == ["photos", "xrays"]
    np.testing.assert_allclose(rankings[0].tau["logme"], [1, -1])
    np.testing.assert_allclose(rankings[1].tau["logme"], [-1, -1])
    assert np.isnan(rankings[1].tau["knn"]).all()  # all sources equal: no order to compare


def test_what_the_first_choice_of_a_score_loses(rankings):
    np.testing.assert_allclose(rankings[0].lost("logme"), [0.0, 0.6], atol=1e-12)  # seed 1 takes c
    np.testing.assert_allclose(rankings[0].lost("knn"), [0.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(rankings[1].lost("logme"), [0.8, 0.6])  # the truth is reversed there
    np.testing.assert_allclose(rankings[1].lost("knn"), [0.9 - 1.5 / 3, 0.8 - 1.6 / 3])  # of equals the mean


def test_tables_say_what_was_measured(rankings):
    assert ordered_scores(rankings) == ["knn", "logme"]
    table = tau_table(rankings)
    assert list(table.columns) == ["score", "photos", "xrays", "mean tau", "first choice loses"]
    assert [row[0] for row in table.rows] == ["knn", "logme"]
    assert table.rows[0][1:4] == ["1.00 ± 0.00", "–", "1.00 ± 0.00"] and "over 2 seeds" in table.notes[0]
    truth = truth_table(rankings)
    assert truth.rows[0][0] == "a" and truth.rows[0][1].startswith("0.850 ± ")
    assert set(truth.bold) == {(0, 1), (2, 2)}


def test_the_figure_names_scores_and_targets(rankings):
    image = tau_figure(rankings).decode()
    assert image.startswith("<?xml") and all(name in image for name in ("logme", "knn", "photos", "xrays"))
    assert tau_figure(rankings).decode() == image


def test_rankings_without_a_common_score_are_one_sentence(rankings):
    other = rankings[1].__class__("o", rankings[1].truth, {}, {})
    with pytest.raises(UserError, match="no score in common"):
        ordered_scores([rankings[0], other])
