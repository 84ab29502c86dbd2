"""Adapters and prompts against networks written out by hand, in float64 where numbers are compared."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from transfer_jax.core.errors import UserError
from transfer_jax.core.paths import flatten, unflatten
from transfer_jax.models.bert import Bert
from transfer_jax.models.gpt2 import GPT2
from transfer_jax.models.lenet import SmallCNN
from transfer_jax.models.model import Model
from transfer_jax.models.text import layer_norm
from transfer_jax.models.transformer import TransformerBlock
from transfer_jax.models.vit import ViT
from transfer_jax.params.inserts import make_insert, outline_of
from transfer_jax.params.peft import PeftSpec, merged, new_leaves

RNG = np.random.default_rng(7)
VIT = ViT(width=8, layers=2, heads=2, patch=4)
IMAGES = jnp.asarray(RNG.normal(size=(3, 8, 8, 3)), jnp.float32)
TEXT = {"width": 8, "layers": 2, "heads": 2, "mlp_width": 16, "positions": 7, "vocabulary": 30, "dropout": 0.0}
TOKENS = jnp.asarray([[5, 9, 3, 0, 0], [7, 2, 4, 8, 6]])


class Case:
    """A backbone with one method: its parameters with and without new leaves."""

    def __init__(self, backbone, x, kind, targets, **arguments):
        self.x, self.specs = x, {"new": PeftSpec(kind=kind, targets=targets, **arguments)}
        self.backbone = backbone
        self.outlines = {"backbone": outline_of(backbone, jax.ShapeDtypeStruct(x.shape, x.dtype))}
        self.plain = {f"backbone/{path}": leaf for path, leaf in
                      flatten(jax.jit(backbone.init)(jax.random.key(0), x)["params"]).items()}
        self.new = new_leaves(self.specs, self.plain, jnp.uint32(3), "peft", self.outlines)
        self.model = Model({"backbone": backbone}, {}, inserts={"new": make_insert(self.specs["new"], "peft")})

        self.run = lambda leaves, x=self.x: jax.jit(self.eagerly)(leaves, x)

    def eagerly(self, leaves, x):
        variables = {"params": unflatten(merged(self.specs, {**self.plain, **leaves}))}
        return self.model.taps(variables, {"backbone": x})[0]

    def moved(self, scale=0.5):
        return {path: leaf + jnp.asarray(scale * RNG.normal(size=leaf.shape), jnp.float32)
                for path, leaf in self.new.items()}


def block(params, x, heads=2, act=lambda v: v * 0.5 * (1 + scipy.special.erf(v / np.sqrt(2))), add=(None, None)):
    """A pre-norm block in float64; `add` are functions (input, output) -> output around its two modules."""
    p = {path: np.asarray(leaf, np.float64) for path, leaf in params.items()}

    def norm(name, v):
        v = v - v.mean(-1, keepdims=True)
        return v / np.sqrt(np.square(v).mean(-1, keepdims=True) + 1e-6) * p[f"{name}/scale"] + p[f"{name}/bias"]

    def dense(name, v):
        return v @ p[f"{name}/kernel"] + p[f"{name}/bias"]

    def attention(v):
        q, k, w = (dense(f"attention/{n}", v).reshape(*v.shape[:2], heads, -1) for n in ("query", "key", "value"))
        weights = scipy.special.softmax(np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(q.shape[-1]), axis=-1)
        return dense("attention/out", np.einsum("bhts,bshd->bthd", weights, w).reshape(v.shape))

    for name, module, extra in (("norm1", attention, add[0]),
                                ("norm2", lambda v: dense("mlp/fc2", act(dense("mlp/fc1", v))), add[1])):
        inputs = norm(name, x)
        y = module(inputs)
        x = x + (extra(inputs, y) if extra else y)
    return x


def below(prefix, leaves):
    return {path.removeprefix(prefix): leaf for path, leaf in leaves.items() if path.startswith(prefix)}


@pytest.mark.parametrize(("placement", "activation", "scale"), [("serial", "gelu", 1.0), ("parallel", "relu", 4.0)])
def test_adapters_are_a_bottleneck_behind_or_beside_attention_and_perceptron(placement, activation, scale):
    case = Case(VIT, IMAGES, "adapter", ("backbone/block.*/(attention|mlp)",), width=5, placement=placement,
                activation=activation, scale=scale)
    assert case.new["peft/new/backbone/block1/mlp/down"].shape == (8, 5) and len(case.new) == 4 * 4
    leaves = case.moved()
    f = {"relu": lambda v: np.maximum(v, 0), "gelu": lambda v: v * 0.5 * (1 + scipy.special.erf(v / np.sqrt(2)))}

    def adapted(module):
        own = {path: np.asarray(leaf, np.float64)
               for path, leaf in below(f"peft/new/backbone/block0/{module}/", leaves).items()}
        return lambda x, y: y + scale * (f[activation]((x if placement == "parallel" else y) @ own["down"]
                                                        + own["down_bias"]) @ own["up"] + own["up_bias"])

    found = case.run(leaves)
    expected = block(below("backbone/block0/", case.plain), np.asarray(found["embeddings"], np.float64),
                     add=(adapted("attention"), adapted("mlp")))
    np.testing.assert_allclose(found["block0"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("backbone", "x", "targets"), [
    (VIT, IMAGES, "backbone/block.*/(attention|mlp)"), (ViT(width=8, layers=2, heads=2, patch=4, remat=True), IMAGES,
                                                        "backbone/block.*/mlp"),
    (Bert(**TEXT), TOKENS, "backbone/block.*/attention"), (SmallCNN(widths=(4, 6)), IMAGES, "backbone/.*conv.*")])
def test_adapters_start_at_the_model_bit_for_bit(backbone, x, targets):
    case = Case(backbone, x, "adapter", (targets,), width=3)
    plain, start = case.eagerly({}, x), case.eagerly(case.new, x)
    for name, tap in plain.items():
        np.testing.assert_array_equal(tap, start[name], err_msg=name)
    assert (case.run(case.moved())["pooled"] != plain["pooled"]).any()
    gradient = jax.grad(lambda leaves: jnp.sin(case.run(leaves)["pooled"]).sum())(case.new)
    assert {path.rpartition("/")[2] for path, leaf in gradient.items() if leaf.any()} == {"up", "up_bias"}
    other = new_leaves(case.specs, case.plain, jnp.uint32(4), "peft", case.outlines)
    assert all((case.new[path] != other[path]).any() for path in case.new if path.endswith("/down"))


@pytest.mark.parametrize("deep", [False, True])
def test_prompts_are_tokens_in_front_of_the_blocks(deep):
    case = Case(VIT, IMAGES, "prompts", ("backbone",), count=3, deep=deep, spread=0.5)
    tokens = [np.asarray(case.new[f"peft/new/backbone/block{i}/prompts"], np.float64) for i in range(1 + deep)]
    assert len(case.new) == len(tokens)
    x = np.asarray(case.run({})["embeddings"], np.float64)
    for number in range(2):
        front = None if number and not deep else np.broadcast_to(tokens[number], (3, 3, 8))
        x = x if front is None else np.concatenate([front, x[:, 3:] if number else x], 1)
        x = block(below(f"backbone/block{number}/", case.plain), x)
    found = case.run(case.new)
    assert found["tokens"].shape == case.run({})["tokens"].shape
    centred = x[:, 3:] - x[:, 3:].mean(-1, keepdims=True)
    scale, bias = (np.asarray(case.plain[f"backbone/norm/{leaf}"], np.float64) for leaf in ("scale", "bias"))
    expected = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + 1e-6) * scale + bias
    np.testing.assert_allclose(found["tokens"], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found["pooled"], expected[:, 0], rtol=1e-4, atol=1e-4)
    assert np.abs(found["pooled"] - case.run({})["pooled"]).max() > 1e-2


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("family", [Bert, GPT2])
def test_prompts_of_texts_are_seen_by_all_tokens_and_padding_by_none(family, deep):
    case = Case(family(**TEXT, padding_token=0), TOKENS, "prompts", ("backbone",), count=2, deep=deep, spread=0.5)
    found = case.run(case.new)
    assert found["tokens"].shape == (2, 5, 8) and (found["pooled"] != case.run({})["pooled"]).any()
    longer = jnp.concatenate([TOKENS, jnp.zeros((2, 2), TOKENS.dtype)], 1)  # two more of padding
    np.testing.assert_allclose(case.run(case.new, longer)["pooled"], found["pooled"], rtol=1e-5, atol=1e-6)
    gradient = jax.grad(lambda leaves: jnp.sin(case.run(leaves)["pooled"]).sum())(case.new)
    assert all(leaf.any() for leaf in gradient.values())


def test_prompts_equal_embeddings_put_there_by_hand():
    """A text of words whose vectors are the prompts, behind the embeddings: the blocks see the same."""
    case = Case(GPT2(**TEXT), TOKENS, "prompts", ("backbone",), count=2, spread=0.5)
    x = case.run({})["embeddings"]
    x = jnp.concatenate([jnp.broadcast_to(case.new["peft/new/backbone/block0/prompts"], (2, 2, 8)), x], 1)
    for number in range(2):
        params = unflatten(below(f"backbone/block{number}/", case.plain))
        x = TransformerBlock(heads=2, mlp_width=16, epsilon=1e-5, activation="gelu_tanh", causal=True).apply(
            {"params": params}, x, False)
    norm = {"params": unflatten(below("backbone/norm/", case.plain))}
    np.testing.assert_allclose(case.run(case.new)["tokens"],
                               layer_norm(1e-5, jnp.float32, "norm").apply(norm, x)[:, 2:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("backbone", "kind", "target", "arguments", "words"), [
    (VIT, "adapter", "backbone/blok0/mlp", {}, "matches nothing; nearest: .*block0/mlp"),
    (VIT, "adapter", "backbone/block0/mlp", {"width": 0}, "a width above 0"),
    (VIT, "adapter", "backbone/block0/mlp", {"size": 3}, "unknown argument 'size'"),
    (VIT, "prompts", "vit", {}, "matches nothing; nearest: backbone"),
    (VIT, "prompts", "backbone", {"count": 0}, "use at least 1"),
    (VIT, "adapter", "(", {}, "not a regular expression"),
    (VIT, "promts", "backbone", {}, "did you mean 'prompts'"),
    (SmallCNN(widths=(4,)), "prompts", "backbone", {}, "prompts are for whole transformers"),
    (VIT.clone(until="block1"), "prompts", "backbone", {}, "gives no tap tokens"),
])
def test_faults_are_named(backbone, kind, target, arguments, words):
    with pytest.raises(UserError, match=words):
        Case(backbone, IMAGES, kind, (target,), **arguments)


def test_leaves_that_a_model_does_not_know_are_refused():
    case = Case(VIT, IMAGES, "adapter", ("backbone/block0/mlp",))
    with pytest.raises(UserError, match="peft/new belong to adapters or prompts"):
        Model({"backbone": VIT}, {}).taps({"params": unflatten({**case.plain, **case.new})}, {"backbone": IMAGES})
