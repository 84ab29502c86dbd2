"""Segmentation and boundary detection on one trunk, from stored masks to scores, drawn answers and mask files."""

import json

import numpy as np
import pytest
from PIL import Image

from transfer_jax.core.paths import unflatten
from transfer_jax.core.spec import build
from transfer_jax.evaluation.shown import worst_and_others
from transfer_jax.experiment.assembly import Assembly
from transfer_jax.experiment.evaluators import Evaluators
from transfer_jax.experiment.prediction import predict_paths
from transfer_jax.experiment.results import stage_result
from transfer_jax.experiment.runner import Runner
from transfer_jax.experiment.spec import ExperimentSpec
from transfer_jax.experiment.workdir import Workdir

STORED, SEEN = (20, 24), (16, 16)
TAPS = ("stage1", "stage2")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two steps on images of two bright and dark halves, some pixels void, stored larger than the network sees them."""
    folder = tmp_path_factory.mktemp("dense")
    rng = np.random.default_rng(0)
    masks = (np.arange(STORED[1]) >= rng.integers(6, 18, (12, 1, 1))) * np.ones((1, STORED[0], 1), int)
    images = (masks[..., None] * 150 + rng.integers(0, 60, (12, *STORED, 3))).astype(np.uint8)
    masks[:, :2] = 255
    np.savez(folder / "scenes.npz", train_image=images[:8], train_mask=masks[:8], test_image=images[8:],
             test_mask=masks[8:])
    for name, image in (("one", images[0]), ("two", images[1])):
        Image.fromarray(image).save(folder / f"{name}.png")

    def stream(split):
        return dict(data=dict(kind="arrays", path=str(folder / "scenes.npz"), class_names=("dark", "bright")),
                    split=split, batch_size=4, image_size=SEEN)

    values = dict(
        name="dense", seeds=(0,),
        model=dict(backbones=dict(backbone=dict(kind="small_cnn", widths=(4, 8))),
                   heads=dict(classes=dict(kind="fcn", taps=TAPS),
                              borders=dict(kind="feature_pyramid", taps=TAPS, width=4, branch=4, groups=2))),
        tasks=dict(classes=dict(kind="segmentation", head="classes", metrics=("mean_iou", "boundary_f1"),
                                loss=dict(kind="segmentation_cross_entropy", ignore_label=255)),
                   borders=dict(kind="boundary_detection", head="borders")),
        streams=dict(train=stream("train"), test=stream("test")), eval_batch_size=4, checkpoint_every=0,
        stages=dict(both=dict(init="fresh", steps=2, evaluate=dict(test=("classes", "borders")), objective=dict(
            terms={task: dict(kind="task", task=task, stream="train") for task in ("classes", "borders")}))))
    Runner(build(ExperimentSpec, values), folder / "run", quiet=True).run()
    return folder


@pytest.mark.parametrize("storage", ["device", "host"])
def test_only_what_is_drawn_is_kept_of_maps(run, storage, monkeypatch):
    """By batches of 3, the last one ragged, and by one batch of all: the same scores, and the same answers of the same
    examples, in their order."""
    monkeypatch.setattr(worst_and_others, "__defaults__", (3,))
    workdir = Workdir(run / "run")
    params, stats = stage_result(workdir, workdir.spec(), "both", "last")
    found = {}
    for size in (3, 4):
        values = workdir.spec().model_dump()
        values["streams"]["test"]["storage"], values["eval_batch_size"] = storage, size
        assembly = Assembly(build(ExperimentSpec, values))
        scores = Evaluators(assembly).scores(assembly.spec.stages["both"], params, stats, examples=True)
        found[size] = scores["test/classes"]
    parts, whole = found[3], found[4]
    for name, values in whole.metrics.items():
        np.testing.assert_allclose(parts.metrics[name], values, rtol=1e-6, err_msg=name)
    assert set(parts.examples) == {"loss", "index"} and all(rows.shape == (4,) for rows in parts.examples.values())
    rows = parts.shown["row"]
    assert rows.tolist() == worst_and_others(whole.examples["loss"], 3).tolist() and len(rows) == 3
    evaluator = Evaluators(assembly).get("test", "classes")
    tree = unflatten(dict(params))
    (feed, number), = evaluator._batches()
    kept = evaluator._program("scores", evaluator._measure)(tree, stats, feed, number)[2]
    for name in ("label", "prediction"):
        assert parts.shown[name].shape == (3, *SEEN)
        np.testing.assert_array_equal(parts.shown[name], np.asarray(kept[name])[0][rows])


def test_both_tasks_are_scored(run):
    rows = {row["stream"]: row["metrics"] for row in json.loads((run / "run" / "results.json").read_text())}
    assert set(rows) == {"test/classes", "test/borders"}
    assert set(rows["test/borders"]) == {"boundary_average_precision", "boundary_ods_f1", "boundary_half_f1"}
    assert all(0 <= value <= 1 for metrics in rows.values() for (value,) in metrics.values())


@pytest.mark.parametrize("task", ["classes", "borders"])
def test_answers_are_drawn_on_the_image_that_the_network_saw(run, task):
    (file,) = (run / "run" / "predictions" / "both").glob(f"*{task}.npz")
    with np.load(file) as found:
        assert found["thumbnails"].shape == (4, *SEEN, 3) and np.isfinite(found["loss"]).all()
        true, predicted = found["masks_true"], found["masks_predicted"]
    assert true.shape == predicted.shape == (4, *SEEN) and set(np.unique(predicted)) <= {0, 1}
    assert (true[:, 0] == 255).all() and set(np.unique(true)) == {0, 1, 255}
    middle = true[:, 8] == 1  # a border is two pixels wide, a half is more
    assert (middle.sum(1) == 2).all() if task == "borders" else (middle.sum(1) > 2).all()


def test_the_command_writes_masks_of_borders(run):
    predict_paths(run / "run", [str(run / "*.png")], run / "borders", task="borders", stage="both",
                  batch_size=2)
    masks = [np.asarray(Image.open(path)) for path in sorted((run / "borders").glob("*.png"))]
    assert [mask.shape for mask in masks] == [SEEN, SEEN] and set(np.unique(masks)) <= {0, 1}
    assert json.loads((run / "borders" / "classes.json").read_text()) == ["inside", "boundary"]
