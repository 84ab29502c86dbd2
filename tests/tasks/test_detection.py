"""Detection: overlaps in closed form, suppression and assignment against loops, losses, answers, average precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transfer_jax.core.errors import UserError
from transfer_jax.models import HEADS
from transfer_jax.models.detection_head import level_geometry
from transfer_jax.tasks import TASKS, TaskSpec, example_error, head_outputs, predict
from transfer_jax.tasks.average_precision import average_precision
from transfer_jax.tasks.boxes import generalised_iou, iou, pairwise_iou, suppress
from transfer_jax.tasks.detection import (
    MOST,
    Points,
    assign,
    centreness_of,
    columns,
    detection,
    focal_loss,
    predict_boxes,
)

NONE = [0, 0, 0, 0, -1]


def random_boxes(rng, *shape, cells=12):
    """Boxes on a coarse grid, so that overlaps and areas often coincide."""
    corners = np.sort(rng.integers(0, cells + 1, (*shape, 2, 2)), axis=-2) / cells
    return corners.reshape(*shape, 4).astype(np.float32)


def test_overlap_in_closed_form():
    a = jnp.array([0.0, 0.0, 2.0, 2.0])
    b = jnp.array([1.0, 1.0, 3.0, 3.0])
    assert float(iou(a, b)) == pytest.approx(1 / 7)
    assert float(generalised_iou(a, b)) == pytest.approx(1 / 7 - 2 / 9)
    apart = jnp.array([0.0, 8.0, 2.0, 10.0])
    assert float(iou(a, apart)) == 0 and float(generalised_iou(a, apart)) == pytest.approx(-12 / 20)
    assert float(generalised_iou(a, a)) == pytest.approx(1)


def test_overlap_counts_cells():
    rng = np.random.default_rng(0)
    a, b = random_boxes(rng, 300), random_boxes(rng, 300)
    grids = np.zeros((2, 300, 12, 12), bool)
    for grid, boxes in zip(grids, (a, b), strict=True):
        for one, (top, left, bottom, right) in zip(grid, np.rint(boxes * 12).astype(int), strict=True):
            one[top:bottom, left:right] = True
    both, either = (grids[0] & grids[1]).sum((1, 2)), (grids[0] | grids[1]).sum((1, 2))
    np.testing.assert_allclose(iou(a, b), both / np.maximum(either, 1), atol=1e-5)
    np.testing.assert_array_equal(pairwise_iou(a[:5], b[:7])[3, 4], iou(a[3], b[4]))


@pytest.mark.parametrize("box", [[0.5, 0.5, 0.5, 0.5], [0.6, 0.6, 0.4, 0.4], [0.0, 0.0, 0.0, 1.0]])
def test_degenerate_boxes_have_finite_loss_and_gradient(box):
    for other in (box, [0.2, 0.2, 0.4, 0.9]):
        for measure in (iou, generalised_iou):
            value, slope = jax.value_and_grad(measure)(jnp.array(box), jnp.array(other))
            assert np.isfinite(value) and np.isfinite(slope).all() and -1.0001 <= value <= 1.0001


def test_gradient_of_generalised_iou_is_its_slope():
    with jax.enable_x64(True):
        a, b = jnp.array([0.1, 0.2, 0.7, 0.5]), jnp.array([0.3, 0.1, 0.9, 0.45])
        slope = jax.grad(generalised_iou)(a, b)
        for i in range(4):
            step = jnp.zeros(4).at[i].set(1e-6)
            numeric = (generalised_iou(a + step, b) - generalised_iou(a - step, b)) / 2e-6
            np.testing.assert_allclose(slope[i], numeric, rtol=1e-6)


def suppressed_by_loops(boxes, scores, classes, threshold):
    overlap = np.asarray(pairwise_iou(boxes, boxes))
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    kept = []
    for i in order:
        if scores[i] > -np.inf and all(classes[i] != classes[j] or not overlap[i, j] > threshold for j in kept):
            kept.append(i)
    return kept


def test_suppression_equals_the_quadratic_reference():
    rng = np.random.default_rng(1)
    cases, count = 2000, 14
    boxes = np.rint(5 * random_boxes(rng, cases, count, cells=5))  # whole numbers: no rounding decides
    scores = rng.integers(0, 5, (cases, count)).astype(np.float32) / 4  # many ties
    scores[rng.random((cases, count)) < 0.1] = -np.inf
    classes = rng.integers(0, 2, (cases, count)).astype(np.int32)
    orders, kept = jax.jit(jax.vmap(lambda *x: suppress(*x, 0.5)))(boxes, scores, classes)
    overlaps_that_decide = 0
    for case in range(cases):
        expected = suppressed_by_loops(boxes[case], scores[case], classes[case], 0.5)
        assert np.asarray(orders[case])[np.asarray(kept[case])].tolist() == expected
        overlaps_that_decide += len(expected) < np.isfinite(scores[case]).sum()
    assert overlaps_that_decide > cases / 3


def grid_points(sizes=((8, 8), (4, 4)), image=(32, 32), reach=3.0):
    geometry = jnp.asarray(np.concatenate(level_geometry(sizes, image, reach)))
    count = len(geometry)
    return Points(jnp.zeros((count, 2)), jnp.zeros(count), jnp.zeros((count, 4)), geometry[:, :2], geometry[:, 2:4],
                  geometry[:, 4:6])


def assigned_by_loops(points, labels, radius):
    result = []
    for place, stride, (least, greatest) in zip(*(np.asarray(x) for x in points[3:]), strict=True):
        best = (-1, np.inf)
        for top, left, bottom, right, kind in labels:
            edges = np.array([place[0] - top, place[1] - left, bottom - place[0], right - place[1]],
                             np.float32) / np.tile(stride, 2)
            centre = np.array([(top + bottom) / 2, (left + right) / 2], np.float32)
            if kind < 0 or edges.min() <= 0 or (np.abs(place - centre) > radius * stride).any():
                continue
            if least <= edges.max() < greatest and (bottom - top) * (right - left) < best[1]:
                best = (int(kind), (bottom - top) * (right - left))
        result.append(best[0])
    return result


def test_assignment_equals_loops():
    rng, points = np.random.default_rng(2), grid_points()
    run = jax.jit(lambda labels: assign(points, labels, 1.4)[0])
    seen = set()
    for _ in range(150):
        boxes = random_boxes(rng, 5, cells=13)
        labels = np.concatenate([boxes, rng.integers(-1, 2, (5, 1))], 1).astype(np.float32)
        expected = assigned_by_loops(points, labels, 1.4)
        assert np.asarray(run(labels)).tolist() == expected
        seen |= set(expected)
    assert seen == {-1, 0, 1}


def test_levels_share_the_sizes_without_gap():
    fine, middle, coarse = level_geometry([(16, 16), (8, 8), (4, 4)], (64, 64), 8.0)
    np.testing.assert_array_equal(fine[0, 4:] * 4, [0, 32])
    np.testing.assert_array_equal(middle[0, 4:] * 8, [32, 64])
    assert coarse[0, 4] * 16 == 64 and coarse[0, 5] > 1e5
    np.testing.assert_allclose(fine[0, :4], [1 / 32, 1 / 32, 1 / 16, 1 / 16])


def test_centreness_and_focal_loss_in_closed_form():
    box = jnp.array([0.0, 0.0, 4.0, 4.0])
    assert float(centreness_of(jnp.array([2.0, 2.0]), box)) == 1
    assert float(centreness_of(jnp.array([1.0, 2.0]), box)) == pytest.approx((1 / 3) ** 0.5)
    assert float(centreness_of(jnp.array([0.0, 2.0]), box)) == 0
    logit = jnp.array([0.3, -2.0])
    p = jax.nn.sigmoid(logit)
    np.testing.assert_allclose(focal_loss(logit, jnp.ones(2)), -0.25 * (1 - p) ** 2 * jnp.log(p), rtol=1e-5)
    np.testing.assert_allclose(focal_loss(logit, jnp.zeros(2)), -0.75 * p**2 * jnp.log(1 - p), rtol=1e-5)
    assert np.isfinite(jax.grad(lambda x: focal_loss(x, jnp.ones(1)).sum())(jnp.array([200.0]))).all()


HEAD = HEADS["detection"](classes=2, taps=("fine", "coarse"), width=8, depth=1, reach=3.0)
TAPS = {"fine": np.random.default_rng(3).normal(size=(2, 8, 8, 4)).astype(np.float32),
        "coarse": np.random.default_rng(4).normal(size=(2, 4, 4, 6)).astype(np.float32)}


@pytest.fixture(scope="module")
def head():
    variables = jax.jit(lambda key: HEAD.init(key, TAPS, (32, 32)))(jax.random.key(0))
    return variables, jax.jit(lambda variables: HEAD.apply(variables, TAPS, (32, 32)))


def with_truth(labels, classes=2, sure=8.0):
    """Outputs that name every object at its points, and place its box exactly."""
    points = grid_points()
    kinds, chosen = assign(points, labels, 1.5)
    scores = jnp.where(jax.nn.one_hot(kinds, classes) > 0, sure, -sure)
    centre = jnp.where(kinds >= 0, sure * centreness_of(points.places, labels[chosen, :4]), -sure)
    return jnp.concatenate([scores, centre[:, None], labels[chosen, :4], *points[3:]], -1)


def test_the_head_says_where_its_points_lie(head):
    outputs = head[1](head[0])
    assert outputs.shape == (2, 80, 13)
    points = columns(outputs)
    np.testing.assert_allclose(points.places[0], grid_points().places)
    assert (points.boxes[..., :2] < points.places).all() and (points.boxes[..., 2:] > points.places).all()
    np.testing.assert_allclose(jax.nn.sigmoid(points.scores), 0.01, atol=0.01)
    levels = HEADS["detection"](classes=2, taps=("fine", "coarse"), width=8, depth=1, extra=2)
    shapes = jax.eval_shape(lambda key: levels.init_with_output(key, TAPS, (32, 32))[0], jax.random.key(0))
    assert shapes.shape == (2, 64 + 16 + 4 + 1, 13)


@pytest.mark.parametrize("taps", [("coarse", "fine"), ("fine", "fine")])
def test_taps_must_go_from_fine_to_coarse(taps):
    with pytest.raises(UserError, match="fine to coarse"):
        HEADS["detection"](classes=2, taps=taps, width=8).init(jax.random.key(0), TAPS, (32, 32))


@pytest.mark.parametrize("labels", [[[NONE, NONE], [NONE, NONE]],
                                    [[[0.1, 0.1, 0.5, 0.6, 1], NONE], [NONE, NONE]],
                                    [[[0.1, 0.1, 0.1, 0.6, 1], [0, 0, 1, 1, 0]], [NONE, NONE]]])
@pytest.mark.parametrize("overlap", ["giou", "iou"])
def test_loss_and_gradients_are_finite_whatever_the_boxes(head, labels, overlap):
    def loss(variables):
        return detection(HEAD.apply(variables, TAPS, (32, 32)), jnp.array(labels, jnp.float32), jnp.ones(2),
                         overlap=overlap)[0]

    value, slopes = jax.jit(jax.value_and_grad(loss))(head[0])
    assert np.isfinite(value) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))
    moves = np.abs(slopes["params"]["edges"]["kernel"]).max() > 0
    assert moves == any(row[4] >= 0 and row[2] > row[0] for image in labels for row in image)


def test_loss_is_small_for_the_truth_and_ignores_examples_of_weight_zero():
    labels = jnp.array([[0.1, 0.1, 0.4, 0.5, 1], [0.5, 0.4, 1.0, 0.9, 0], NONE], jnp.float32)
    right = with_truth(labels)
    value, parts = detection(right[None], labels[None], jnp.ones(1))
    assert parts["class"] < 1e-3 and parts["box"] == pytest.approx(0, abs=1e-5)
    moved = right.at[:, 3:7].add(0.05)
    assert detection(moved[None], labels[None], jnp.ones(1))[1]["box"] > 0.1
    both = detection(jnp.stack([right, -moved]), jnp.stack([labels, labels]), jnp.array([1.0, 0.0]))[0]
    assert float(both) == pytest.approx(float(value), rel=1e-5)


def test_answers_are_the_objects_best_first():
    labels = jnp.array([[0.1, 0.1, 0.4, 0.5, 1], [0.5, 0.4, 1.0, 0.9, 0], NONE], jnp.float32)
    found = np.asarray(predict_boxes(with_truth(labels)[None])["prediction"])
    assert found.shape == (1, MOST, 6) and (found[0, :, 4] >= 0).sum() == 2
    real = found[0, :2]
    assert (np.diff(found[0, :, 5]) <= 0).all() and (real[:, 5] > 0.5).all()
    np.testing.assert_allclose(real[np.argsort(-real[:, 4]), :5], labels[:2], atol=1e-6)
    scores = average_precision(found, np.asarray(labels)[None])
    assert scores["mean_average_precision"] == pytest.approx(1)


def test_a_task_sets_the_limits_of_its_answers():
    labels = jnp.array([[0.1, 0.1, 0.4, 0.5, 1], [0.5, 0.4, 1.0, 0.9, 0], NONE], jnp.float32)
    outputs = with_truth(labels)[None]

    def found(**limits):
        return predict(TaskSpec(kind="detection", head="boxes", limits=limits), outputs)["prediction"][0]

    whole = found()
    np.testing.assert_array_equal(found(most=1), whole[:1])
    assert not (found(least_score=1.0)[:, 4] >= 0).any() and (found(candidates=1)[:, 4] >= 0).sum() == 1
    assert (found(overlap=1.0)[:, 4] >= 0).sum() > (whole[:, 4] >= 0).sum() == 2  # nothing is suppressed
    with pytest.raises(UserError, match="most=0"):
        found(most=0)
    with pytest.raises(UserError, match="unknown argument 'mots' in 'limits' of a detection task.*'most'"):
        found(mots=3)


def average_precision_by_definition(found, true, threshold):
    """One class: mean over 101 recalls of the best precision at that recall or a higher one."""
    rows = sorted(((row[5], image, row[:4]) for image, rows in enumerate(found) for row in rows if row[4] >= 0),
                  key=lambda row: -row[0])
    taken, hits = set(), []
    for _, image, box in rows:
        overlaps = [(float(iou(box, other[:4])), number) for number, other in enumerate(true[image])
                    if other[4] >= 0 and (image, number) not in taken]
        best = max(overlaps, default=(0, 0))
        hits.append(best[0] >= threshold)
        taken |= {(image, best[1])} if hits[-1] else set()
    total = sum(row[4] >= 0 for rows in true for row in rows)
    right = np.cumsum(hits)
    recall, precision = right / total, right / np.arange(1, len(hits) + 1)
    return np.mean([max(precision[recall >= r - 1e-12], default=0) for r in np.linspace(0, 1, 101)])


def test_average_precision_follows_its_definition():
    rng = np.random.default_rng(5)
    for _ in range(10):
        true = np.concatenate([random_boxes(rng, 4, 3, cells=40), np.zeros((4, 3, 1))], -1).astype(np.float32)
        true[..., 2:4] += 0.1
        noisy = true[..., :4] + rng.normal(0, 0.02, (4, 3, 4))
        found = np.concatenate([noisy, np.zeros((4, 3, 1)), rng.random((4, 3, 1))], -1).astype(np.float32)
        found[0, 0, 4], true[1, 0, 4] = -1, -1
        score = average_precision(found, true)["average_precision_50"]
        assert score == pytest.approx(average_precision_by_definition(found, true, 0.5), abs=1e-6)


def test_average_precision_without_answers_and_without_objects():
    nothing = np.tile(np.float32([0, 0, 0, 0, -1, 0]), (2, 3, 1))
    objects = np.tile(np.float32([0, 0, 0.5, 0.5, 0]), (2, 1, 1))
    assert average_precision(nothing, objects)["mean_average_precision"] == 0
    assert np.isnan(average_precision(nothing, np.tile(np.float32(NONE), (2, 1, 1)))["mean_average_precision"])


def test_the_metric_forgets_padding_and_the_order_of_batches():
    measure = TASKS["detection"].measures["mean_average_precision"]
    labels = jnp.array([[0.1, 0.1, 0.4, 0.5, 1], NONE], jnp.float32)
    outputs = with_truth(labels)[None]
    kept = measure.rows(outputs, {"label": labels[None], "weight": jnp.ones(1), **predict_boxes(outputs)})
    assert measure.compute(jax.tree.map(np.asarray, kept))["average_precision_50"] == pytest.approx(1)


def test_the_error_of_an_image_counts_the_answers_that_the_limits_leave():
    labels = jnp.array([[0.1, 0.1, 0.4, 0.5, 1], [0.5, 0.5, 0.9, 0.9, 0]], jnp.float32)
    outputs, known = with_truth(labels)[None], labels.at[1, 4].set(-1)[None]
    for limits, error in (({}, 1 - 2 / 3), ({"least_score": 1.0}, 1.0)):  # two answers, of which one is there; none
        task = TaskSpec(kind="detection", head="boxes", limits=limits)
        assert float(example_error(task, outputs, known)[0]) == pytest.approx(error), limits


def test_spec():
    task = TaskSpec(kind="detection", head="boxes")
    assert task.label == "boxes" and head_outputs(task, ("cat",)) == 1
    with pytest.raises(UserError, match="no classes of objects"):
        head_outputs(task, ())
    with pytest.raises(UserError, match="head of kind 'detection'"):
        columns(jnp.zeros((2, 5)))
