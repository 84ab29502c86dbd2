"""Keypoints in COCO's format: windows around objects, and average precision as pycocotools has it from the files."""

import contextlib
import io
import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import Component
from transfer_jax.data import StreamSpec, open_source, open_stream
from transfer_jax.data.sources.coco_keypoints import window_around
from transfer_jax.tasks import TASKS
from transfer_jax.tasks.keypoint_precision import keypoint_average_precision

RNG = np.random.default_rng(11)
SIZE = (120, 160)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Five images of two persons each, with 17 points; one person without known points, and one crowd."""
    folder, annotations = tmp_path_factory.mktemp("coco"), []
    for image in range(5):
        Image.fromarray(RNG.integers(0, 256, (*SIZE, 3), np.uint8)).save(folder / f"{image}.jpg")
        for _ in range(2):
            x, y, width, height = (float(v) for v in (RNG.uniform(5, 60), RNG.uniform(5, 30), *RNG.uniform(40, 80, 2)))
            points = np.column_stack([RNG.uniform(x, x + width, 17), RNG.uniform(y, y + height, 17),
                                      RNG.integers(0, 3, 17)])
            points[points[:, 2] == 0] = 0
            annotations.append(dict(id=len(annotations) + 1, image_id=10 * image + 7, category_id=1, iscrowd=0,
                                    bbox=[x, y, width, height], area=0.6 * width * height,
                                    keypoints=points.reshape(-1).tolist(), num_keypoints=int((points[:, 2] > 0).sum())))
    annotations[3].update(keypoints=[0.0] * 51, num_keypoints=0)
    annotations[6]["iscrowd"] = 1
    content = dict(images=[dict(id=10 * i + 7, file_name=f"{i}.jpg", height=SIZE[0], width=SIZE[1]) for i in range(5)],
                   categories=[dict(id=1, name="person", keypoints=[f"point {k}" for k in range(17)]),
                               dict(id=2, name="cup")], annotations=annotations)
    (folder / "points.json").write_text(json.dumps(content))
    return folder, content


def data(folder, **more):
    return dict(kind="coco_keypoints", images=str(folder), annotations={"val": str(folder / "points.json")}, **more)


def batch_of(folder, **spec):
    stream = open_stream("val", StreamSpec(data=Component(**data(folder)), split="val", batch_size=4,
                                           image_size=(24, 24), targets=("keypoints", "place"), **spec), (0,))
    feed = stream.feed()
    batch = stream.evaluation_batch({**feed, "rows": feed["rows"][0]}, 0, 8)
    return {key: np.asarray(value) for key, value in batch.items()}


def test_an_example_is_the_window_of_an_object_and_points_return_to_their_image(files):
    folder, content = files
    part = open_source(Component(**data(folder)))["val"]
    wanted = [one for one in content["annotations"] if one["num_keypoints"] and not one["iscrowd"]]
    assert len(part) == len(wanted) == 8 and part.columns["keypoints"][16] == "point 16"
    batch = batch_of(folder, fit="crop")
    for row, one in enumerate(wanted):
        window = window_around(one["bbox"], 1.25)
        image = np.asarray(Image.open(folder / f"{one['image_id'] // 10}.jpg"))
        shown = part.load(row)["image"]
        assert shown.shape[:2] == (window[3] - window[1], window[2] - window[0])
        inside = image[max(window[1], 0):window[3], max(window[0], 0):window[2]]
        top, left = max(-window[1], 0), max(-window[0], 0)
        np.testing.assert_array_equal(shown[top:top + len(inside), left:left + inside.shape[1]], inside)
        left, top, width, height, area, number = np.asarray(batch["place"][row])
        assert number == one["image_id"] // 10 and area == pytest.approx(one["area"], rel=1e-6)
        true, found = np.reshape(one["keypoints"], (17, 3)), np.asarray(batch["keypoints"][row])
        kept = found[:, 2] > 0  # what 'crop' cuts off is not known
        assert (found[kept, 2] == true[kept, 2]).all() and kept.any()
        np.testing.assert_allclose([left, top] + found[kept, :2] * [width, height], true[kept, :2], atol=1e-3)


def test_average_precision_is_that_of_results_in_files(files):
    coco, evaluation = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    folder, content = files
    batch = batch_of(folder)
    found = batch["keypoints"].copy()
    found[..., :2] += RNG.normal(0, 0.06, found[..., :2].shape).astype(np.float32)
    found[..., 2] = RNG.uniform(0.1, 1, found.shape[:2])
    rows = []
    for answer, place in zip(found, batch["place"], strict=True):
        xy = place[:2] + answer[:, :2] * place[2:4]
        rows.append(dict(image_id=10 * int(place[5]) + 7, category_id=1, score=float(answer[:, 2].mean()),
                         keypoints=np.column_stack([xy, np.full(17, 2)]).reshape(-1).tolist()))
    kept = [one for one in content["annotations"] if one["num_keypoints"] and not one["iscrowd"]]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO()
        truth.dataset = {**content, "annotations": kept}
        truth.createIndex()
        judged = evaluation.COCOeval(truth, truth.loadRes(rows), "keypoints")
        judged.params.catIds = [1]
        for step in (judged.evaluate, judged.accumulate, judged.summarize):
            step()
    scores = keypoint_average_precision(found, batch["keypoints"], batch["place"])
    assert 0.05 < scores["keypoint_average_precision"] < 0.95
    assert list(scores.values()) == pytest.approx([judged.stats[place] for place in (0, 1, 2, 5)], abs=1e-9)


def test_similarity_follows_its_definition_for_other_points():
    """One object of three points: precision at the thresholds below OKS is 1, at those above 0."""
    pytest.importorskip("pycocotools")
    true = np.float32([[[0.2, 0.2, 2], [0.5, 0.5, 1], [0.9, 0.1, 0]]])
    found = np.float32([[[0.22, 0.2, 0.5], [0.5, 0.56, 0.5], [0, 0, 0.5]]])
    place = np.float32([[10, 20, 100, 50, 2000, 0]])
    distances = np.array([(0.02 * 100) ** 2, (0.06 * 50) ** 2])
    similarity = np.exp(-distances / (2 * 2000 * (2 * 0.05) ** 2)).mean()
    scores = keypoint_average_precision(found, true, place)
    assert scores["keypoint_average_precision"] == pytest.approx((np.arange(0.5, 0.96, 0.05) < similarity).mean())
    assert 0.5 < similarity < 0.9
    nothing = keypoint_average_precision(found, np.zeros_like(true), place)
    assert np.isnan(list(nothing.values())).all()


def test_what_is_missing_is_told(files, tmp_path):
    folder, content = files
    measure = TASKS["keypoints"].measures["keypoint_average_precision"]
    with pytest.raises(UserError, match="'place' in the stream's targets"):
        measure.rows(jnp.zeros((1, 4, 4, 17)), {"label": jnp.zeros((1, 17, 3)), "prediction": jnp.zeros((1, 17, 3))})
    for more, said in ((dict(category="cup"), "0 categories with keypoints called 'cup'; there are person"),
                       (dict(margin=0.0), "must be positive")):
        with pytest.raises(UserError, match=said):
            open_source(Component(**data(folder, **more)))
    short = {**content["annotations"][0], "keypoints": [1.0, 2.0, 2.0]}
    for annotations, said in (([short], "has 3 numbers of keypoints, not 51"),
                              ([{**content["annotations"][0], "bbox": [1, 1, 0, 5]}], "has a box of 0 x 5"),
                              ([{**content["annotations"][0], "image_id": 3}], "KeyError: 3")):
        (tmp_path / "points.json").write_text(json.dumps({**content, "annotations": annotations}))
        with pytest.raises(UserError, match=said):
            open_source(Component(**data(tmp_path)))
