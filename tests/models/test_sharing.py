"""Parts that tasks or inputs share: against their definitions in float64 and their special cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transfer_jax.core.errors import UserError
from transfer_jax.core.inputs import FromTaps
from transfer_jax.core.paths import flatten
from transfer_jax.core.spec import Component
from transfer_jax.models import build_backbone
from transfer_jax.models.model import ModelSpec, build_model
from transfer_jax.models.taps import Resumed

KEY = jax.random.key(0)
TASKS = ("a", "b")


def made(kind, x, **arguments):
    """The module, variables drawn anew in all leaves (fresh ones are partly zero), and its taps."""
    module = build_backbone(Component(kind=kind, **arguments))
    variables = module.init(KEY, x)
    leaves, tree = jax.tree.flatten(variables["params"])
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [leaf + 0.3 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    variables = {**variables, "params": jax.tree.unflatten(tree, leaves)}
    return module, variables, jax.jit(module.apply)(variables, x)


def flat64(variables):
    return {path: np.asarray(leaf, np.float64) for path, leaf in flatten(variables["params"]).items()}


def relu(x):
    return np.maximum(x, 0)


def softmax(x, axis=-1):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def dense(p, name, x):
    return x @ p[f"{name}/kernel"] + p.get(f"{name}/bias", 0)


@pytest.fixture(scope="module")
def vector():
    return np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)


def test_multi_gate_experts_are_what_the_paper_says(vector):
    _, variables, taps = made("multi_gate_experts", vector, tasks=TASKS, experts=3, hidden=(7, 4))
    p = flat64(variables)
    for task in TASKS:
        shares, total = softmax(vector @ p[f"gate_{task}/kernel"]), 0.0
        for row in range(3):
            answer = relu(dense(p, f"expert{row}_dense1", relu(dense(p, f"expert{row}_dense0", vector))))
            total = total + shares[:, row:row + 1] * answer
        np.testing.assert_allclose(taps[task], total, rtol=2e-5, atol=2e-6)
    assert np.abs(np.asarray(taps["a"]) - np.asarray(taps["b"])).max() > 1e-3


def test_one_expert_is_hard_sharing(vector):
    _, _, taps = made("multi_gate_experts", vector, tasks=TASKS, experts=1)
    np.testing.assert_array_equal(taps["a"], taps["b"])


def test_experts_work_at_every_place_of_a_map(vector):
    module, variables, taps = made("multi_gate_experts", vector, tasks=TASKS, hidden=(4,))
    maps = module.apply(variables, np.broadcast_to(vector[:, None, None], (5, 2, 3, 6)))
    np.testing.assert_allclose(maps["a"][:, 1, 2], taps["a"], rtol=1e-5, atol=1e-6)


def test_progressive_experts_are_what_the_paper_says(vector):
    own, shared = 2, 3
    _, variables, taps = made("progressive_experts", vector, tasks=TASKS, own=own, shared=shared, levels=2, hidden=(4,))
    p = flat64(variables)
    features = dict.fromkeys((*TASKS, "shared"), np.asarray(vector, np.float64))
    for level in (1, 2):
        answers = {name: [relu(dense(p, f"level{level}_{name}_expert{i}_dense0", features[name]))
                          for i in range(own if name in TASKS else shared)] for name in features}
        new = {}
        for name in features:
            if name == "shared" and level == 2:
                continue
            used = [name, "shared"] if name in TASKS else [*TASKS, "shared"]
            pool = [answer for part in used for answer in answers[part]]
            shares = softmax(features[name] @ p[f"level{level}_gate_{name}/kernel"])
            new[name] = sum(shares[:, i:i + 1] * answer for i, answer in enumerate(pool))
        features = new
    assert not any("level2_gate_shared" in path for path in p)
    for task in TASKS:
        np.testing.assert_allclose(taps[task], features[task], rtol=2e-5, atol=2e-6)


def test_experts_of_one_task_get_no_gradient_of_another(vector):
    module, variables, _ = made("progressive_experts", vector, tasks=TASKS, levels=1, hidden=(4,))
    grads = flatten(jax.grad(lambda v: module.apply(v, vector)["a"].sum())(variables)["params"])
    assert all((np.abs(leaf).max() > 0) == ("_b_" not in path and not path.startswith("level1_gate_b"))
               for path, leaf in grads.items() if path.endswith("kernel"))


COLUMN = {"kind": "small_cnn", "widths": (3, 4), "norm": "batch"}
IMAGE = np.random.default_rng(1).normal(size=(4, 8, 8, 2)).astype(np.float32)


def column_taps(variables, number, stitched=None):
    """One column alone, its second stage on other maps where they are given."""
    own = jax.tree.map(lambda leaf: leaf[number], {kind: tree["columns"] for kind, tree in variables.items()})
    module = build_backbone(Component(**COLUMN))
    if stitched is None:
        return module.apply(own, IMAGE)
    return module.apply(own, Resumed(stitched, "stage1"))


def test_cross_stitch_mixes_its_columns_behind_a_tap():
    module, variables, taps = made("cross_stitch", IMAGE, column=COLUMN, tasks=TASKS, at=("stage1",))
    matrix = np.asarray(variables["params"]["stitch_stage1"], np.float64)
    first = [np.asarray(column_taps(variables, i)["stage1"], np.float64) for i in range(2)]
    for i, task in enumerate(TASKS):
        mixed = matrix[i, 0] * first[0] + matrix[i, 1] * first[1]
        np.testing.assert_allclose(taps[f"{task}_stage1"], mixed, rtol=1e-5, atol=1e-6)
        later = column_taps(variables, i, jnp.asarray(mixed, jnp.float32))
        np.testing.assert_allclose(taps[f"{task}_pooled"], later["pooled"], rtol=1e-4, atol=1e-5)
    start = build_backbone(Component(kind="cross_stitch", column=COLUMN, tasks=("a", "b", "c"), at=("stage1",),
                                     other=0.1)).init(KEY, IMAGE)["params"]["stitch_stage1"]
    np.testing.assert_allclose(start, 0.1 + 0.7 * np.eye(3), rtol=1e-6)


def test_an_identity_of_stitches_leaves_networks_apart():
    module, variables, _ = made("cross_stitch", IMAGE, column=COLUMN, tasks=TASKS, at=("stage1", "stage2"))
    params = {**variables["params"], "stitch_stage1": jnp.eye(2), "stitch_stage2": jnp.eye(2)}
    taps = module.apply({**variables, "params": params}, IMAGE)
    for i, task in enumerate(TASKS):
        np.testing.assert_allclose(taps[f"{task}_pooled"], column_taps(variables, i)["pooled"], rtol=1e-5, atol=1e-6)
    columns = variables["params"]["columns"]["stage1_conv1"]["kernel"]
    assert np.abs(np.asarray(columns[0] - columns[1])).max() > 0.1


def test_norms_of_cross_stitch_move_column_by_column_unless_frozen():
    spec = ModelSpec(backbones={"backbone": Component(kind="cross_stitch", column=COLUMN, tasks=TASKS, at=("stage1",))})
    model = build_model(spec, {})
    variables = model.init(KEY, {"backbone": IMAGE})
    paths = model.norm_paths(variables)
    _, moved = model.taps(variables, {"backbone": IMAGE}, train=True)
    mean = moved["backbone"]["columns"]["stage1_norm1"]["mean"]
    assert mean.shape == (2, 3) and np.abs(mean[0] - mean[1]).max() > 1e-4
    _, kept = model.taps(variables, {"backbone": IMAGE}, train=True, frozen_norms=frozenset(paths))
    for path, leaf in flatten(kept).items():
        np.testing.assert_array_equal(leaf, flatten(variables["batch_stats"])[path])


def test_task_attention_is_what_the_paper_says():
    generator = np.random.default_rng(2)
    maps = tuple(generator.normal(size=(3, side, side, width)).astype(np.float32) for side, width in ((4, 2), (2, 3)))
    _, variables, taps = made("task_attention", maps, tasks=TASKS, stages=2)
    p, stats = flat64(variables), flatten(variables["batch_stats"])

    def conv(x, name):
        kernel = p[f"{name}/kernel"]
        size = kernel.shape[0]
        padded = np.pad(x, ((0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0)))
        out = sum(padded[:, i:i + x.shape[1], j:j + x.shape[2]] @ kernel[i, j]
                  for i in range(size) for j in range(size))
        mean, var = (np.asarray(stats[f"{name}_norm/{key}"], np.float64) for key in ("mean", "var"))
        return (out - mean) / np.sqrt(var + 1e-5) * p[f"{name}_norm/scale"] + p[f"{name}_norm/bias"]

    for task in TASKS:
        before = None
        for j, shared in enumerate(np.asarray(m, np.float64) for m in maps):
            joined = shared if before is None else np.concatenate([shared, before], -1)
            mask = 1 / (1 + np.exp(-conv(relu(conv(joined, f"{task}{j + 1}_g")), f"{task}{j + 1}_h")))
            np.testing.assert_allclose(taps[f"{task}{j + 1}"], mask * shared, rtol=1e-4, atol=1e-5)
            if j == 0:
                after = relu(conv(mask * shared, f"{task}1_f"))
                before = np.stack([after[:, 2 * r:2 * r + 2, 2 * c:2 * c + 2].mean((1, 2))
                                   for r in range(2) for c in range(2)], 1).reshape(3, 2, 2, 3)
        np.testing.assert_allclose(taps[task], (mask * shared).mean((1, 2)), rtol=1e-4, atol=1e-5)


def test_task_attention_by_group_norm_sees_each_example_alone():
    generator = np.random.default_rng(3)
    maps = tuple(generator.normal(size=(3, side, side, width)).astype(np.float32) for side, width in ((4, 2), (2, 3)))
    module, variables, _ = made("task_attention", maps, tasks=TASKS, stages=2, norm="group")
    assert set(variables) == {"params"}
    whole, first = (module.apply(variables, given, train=True) for given in (maps, tuple(m[:1] for m in maps)))
    for name, value in first.items():
        np.testing.assert_allclose(whole[name][:1], value, atol=1e-6)


def test_task_attention_says_what_it_reads():
    maps = (np.zeros((1, 5, 5, 2), np.float32), np.zeros((1, 3, 3, 2), np.float32))
    module = build_backbone(Component(kind="task_attention", tasks=TASKS, stages=2))
    with pytest.raises(UserError, match="does not divide them"):
        module.init(KEY, maps)
    with pytest.raises(UserError, match="reads 2 maps"):
        module.init(KEY, maps[:1])


@pytest.mark.parametrize("how", ["concatenation", "gates"])
def test_fusion_is_what_it_says(vector, how):
    other = np.random.default_rng(3).normal(size=(5, 3)).astype(np.float32)
    other[1] = 0  # missing in this example
    _, variables, taps = made("fusion", (vector, other), width=4, how=how, hidden=(5,))
    p = flat64(variables)
    first, second = dense(p, "input0", vector), dense(p, "input1", other)
    second[1] = p["missing1"]
    together = np.concatenate([first, second], 1)
    if how == "concatenation":
        joined = relu(together)
    else:
        gates = dense(p, "gates", together)
        share = 1 / (1 + np.exp(gates[:, 4:] - gates[:, :4]))
        joined = share * np.tanh(first) + (1 - share) * np.tanh(second)
    np.testing.assert_allclose(taps["joined"], joined, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(taps["pooled"], relu(dense(p, "layer1", joined)), rtol=1e-5, atol=1e-6)


def test_an_input_that_is_not_given_is_as_missing_as_a_vector_of_zeros(vector):
    other = np.ones((5, 3), np.float32)
    module, variables, _ = made("fusion", (vector, other))
    absent, zeros = (module.apply(variables, (vector, value))["pooled"] for value in (None, 0 * other))
    np.testing.assert_array_equal(absent, zeros)
    assert np.abs(np.asarray(module.apply(variables, (vector, other))["pooled"] - absent)).max() > 1e-3
    with pytest.raises(UserError, match="joins taps of other backbones"):
        module.apply(variables, (None, None))


def test_modality_dropout_hides_each_input_at_its_rate_and_never_all():
    count, rate = 20_000, 0.3
    ones = (np.ones((count, 2), np.float32), np.ones((count, 2), np.float32))
    module, variables, _ = made("fusion", ones, width=1, hidden=(), modality_dropout=rate)
    params = {**variables["params"], "missing0": jnp.full(1, 5.0), "missing1": jnp.full(1, 7.0)}
    joined = np.asarray(module.apply({"params": params}, ones, train=True, rngs={"dropout": KEY})["joined"])
    hidden = np.stack([joined[:, 0] == 5, joined[:, 1] == 7], 1)
    assert not hidden.all(1).any()  # where both were drawn, both stay
    np.testing.assert_allclose(hidden.mean(0), rate * (1 - rate), atol=4 * np.sqrt(0.21 * 0.79 / count))
    assert not (np.asarray(module.apply({"params": params}, ones)["joined"]) >= 5).any()


def test_words_are_averaged_over_real_tokens():
    tokens = np.array([[3, 5, 0, 0], [0, 0, 0, 0]])
    _, variables, taps = made("word_average", tokens, vocabulary=8, width=4, hidden=(3,))
    table = flat64(variables)["word/embedding"]
    np.testing.assert_allclose(taps["averaged"], [(table[3] + table[5]) / 2, np.zeros(4)], rtol=1e-5)
    assert not np.asarray(taps["pooled"])[1].any() and np.asarray(taps["pooled"])[0].any()


def joint_model(middle=("image/pooled", "text/pooled")):
    spec = ModelSpec(backbones={"image": Component(kind="small_cnn", widths=(3,)),
                                "text": Component(kind="word_average", vocabulary=8, width=4, hidden=(3,)),
                                "middle": Component(kind="fusion", width=4)},
                     heads={"task": Component(kind="linear", classes=2, tap="middle/pooled")})
    inputs = {"image": IMAGE, "text": np.array([[1, 2]] * 4, np.int32), "middle": FromTaps(middle)}
    return build_model(spec, spec.heads), inputs


def test_a_backbone_reads_taps_of_those_before_it():
    model, inputs = joint_model()
    variables = model.init(KEY, inputs)
    taps, _ = model.taps(variables, inputs)
    own, _ = model.taps(variables, {name: inputs[name] for name in ("image", "text")})
    alone = model.backbones["middle"].apply({"params": variables["params"]["middle"]},
                                            (own["image/pooled"], own["text/pooled"]))
    np.testing.assert_array_equal(taps["middle/pooled"], alone["pooled"])

    def loss(params):
        found, _ = model.taps({**variables, "params": params}, inputs)
        return model.head({"params": params}, "task", found)[0].var()

    grads = flatten(jax.grad(loss)(variables["params"]))
    assert all(np.abs(leaf).max() > 0 for path, leaf in grads.items() if path.endswith("kernel"))
    missing, _ = model.taps(variables, {**inputs, "middle": FromTaps(("image/pooled", "missing"))})
    assert np.abs(np.asarray(missing["middle/pooled"] - taps["middle/pooled"])).max() > 1e-4


def test_a_tap_that_nobody_gives_is_named():
    with pytest.raises(UserError, match="reads the tap 'text/pool', which no backbone before it gives; there are .*"
                                        "text/pooled"):
        model, inputs = joint_model(("image/pooled", "text/pool"))
        model.init(KEY, inputs)
