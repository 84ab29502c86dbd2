"""Answers drawn beside the truth: what is where in the pictures, and whose are shown."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from transfer_jax.evaluation.evaluator import Scores
from transfer_jax.evaluation.shown import worst_and_others
from transfer_jax.experiment.report import answer_figures
from transfer_jax.experiment.report.collect import Result, Run
from transfer_jax.experiment.report.mistakes import DRAWINGS, shown_results
from transfer_jax.experiment.report.pivot import layout, pivot
from transfer_jax.experiment.results import prediction_file
from transfer_jax.tasks import TASKS

IMAGE = np.zeros((24, 24, 1), np.uint8)
NAMES = dict(enumerate(("cat", "dog", "owl", "ape")))


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def rgb(color):
    return np.array([int(color[i:i + 2], 16) for i in (1, 3, 5)])


def has(picture, color):
    return (picture == rgb(color)).all(-1)


def test_every_kind_of_answer_has_a_drawing():
    assert {kind.answers for kind in TASKS.values()} - {""} == set(DRAWINGS)


def test_tags_are_green_where_right_red_where_wrong_grey_where_unknown():
    picture = pixels(answer_figures.tags_picture(IMAGE, np.array([1, 0, -1, 0]), np.array([0.9, 0.8, 0.7, 0.1]), NAMES))
    lines = [picture[2 + 12 * line:14 + 12 * line, 120:] for line in range(4)]
    for line, color in zip(lines, (answer_figures.RIGHT, answer_figures.WRONG, answer_figures.QUIET), strict=False):
        assert has(line, color).any()
        assert not any(has(line, other).any() for other in (
            answer_figures.RIGHT, answer_figures.WRONG, answer_figures.QUIET) if other != color)
    assert (lines[3] == 255).all()  # neither true nor answered


def test_points_have_a_ring_where_they_are_and_a_cross_where_the_answer_is():
    true, found = np.array([[0.25, 0.5, 2], [0.5, 0.5, 0]]), np.array([[0.75, 0.5, 1], [0.9, 0.1, 1]])
    picture = pixels(answer_figures.points_picture(IMAGE, true, found, NAMES)).any(-1)
    assert picture.shape == (240, 240) and picture[120, 120]  # on the line between them
    assert picture[115:117, 60].all() and picture[116:119, 176:179].any() and not picture[115:117, 180].any()
    assert not picture[:100].any()  # nothing of the point that nobody knows


def test_maps_have_one_scale_and_black_where_nobody_knows():
    depth = np.full((24, 24), 2.0)
    depth[:, 12:] = 4
    depth[:12] = 0
    picture = pixels(answer_figures.depths_picture(IMAGE, depth, np.full((24, 24), 2.0), NAMES))
    truth, answer = picture[:, 123:243], picture[:, 246:]
    assert not truth[:60].any() and (truth[60:, :60] == answer[60:, :60]).all()
    assert (truth[60:, 60:] != answer[60:, 60:]).all(-1).all()
    normals = np.zeros((24, 24, 3))
    normals[12:] = (0, 0, 1)
    picture = pixels(answer_figures.normals_picture(IMAGE, normals, np.tile([1.0, 0, 0], (24, 24, 1)), NAMES))
    assert not picture[:60, 123:243].any() and (picture[60:, 123:243] == [128, 128, 255]).all()
    assert (picture[:, 246:] == [255, 128, 128]).all()


class Opened:
    """A stream of four small images."""

    class dataset:  # noqa: N801 - as streams name it
        partial, domains, columns = frozenset(), None, {}

        @staticmethod
        def load(row):
            return {"image": np.full((4, 4, 1), row, np.uint8)}

        @staticmethod
        def name_of(row):
            return str(row)

    from transfer_jax.core.spec import Component
    from transfer_jax.data import StreamSpec
    spec = StreamSpec(data=Component(kind="arrays"), batch_size=2, labelled=False)
    description = {"mean": 0.5, "std": 0.25}


def test_numbers_are_stored_as_they_are():
    """Depth in metres is no byte, and probabilities stand for the answers of several classes."""
    truth, answers = np.random.default_rng(0).uniform(0, 9, (2, 4, 4, 4)).astype(np.float32)
    rows, order = {"index": np.arange(4), "loss": np.array([0.1, 3, 2, 1])}, [1, 2, 3, 0]
    shown = {"row": np.array(order), "prediction": answers[order], "label": truth[order]}
    found = prediction_file(Opened, Scores({}, {}, rows, shown, "depths"))
    np.testing.assert_array_equal(found["depths_true"], truth[order])
    np.testing.assert_array_equal(found["depths_predicted"], answers[order])
    assert found["thumbnails"][:, 0, 0, 0].tolist() == order
    images = prediction_file(Opened, Scores({}, {}, rows, shown, "images"))
    np.testing.assert_array_equal(images["images_true"][0],
                                  np.rint(np.clip(truth[1] * 0.25 + 0.5, 0, 1) * 255).astype(np.uint8))
    assert not any(key.endswith("_true") for key in prediction_file(Opened, Scores({}, {}, rows)))


def test_the_worst_come_first_and_others_from_all_over():
    loss = np.random.default_rng(0).permutation(100).astype(float)
    found = loss[worst_and_others(loss, 16)]
    assert found[:8].tolist() == list(range(99, 91, -1)) and found[-1] == 0
    assert (np.diff(found) < 0).all() and len(set(found)) == 16
    assert worst_and_others(loss[:3]).tolist() == np.argsort(-loss[:3]).tolist()


def test_the_best_of_every_task_is_shown():
    tasks = {"test/tags": "macro_f1", "test/far": "abs_rel_error"}
    scores = {"alone": (0.9, 0.3), "together": (0.5, 0.2)}
    results = [Result("run", stage, stream, "last", {"method": stage}, {metric: np.array([value] * 2)}, {}, None, ())
               for stage, values in scores.items()
               for (stream, metric), value in zip(tasks.items(), values, strict=True)]
    run = Run("run", Path(), {"report": {"metric": "macro_f1", "tasks": tasks}}, {s: {"title": s} for s in scores},
              results, [])
    table = pivot([run], layout([run]))
    found = shown_results([run], table, [(run, results[0])])
    assert [(result.stage, result.stream) for _, result in found] == [("alone", "test/tags"), ("together", "test/far")]
