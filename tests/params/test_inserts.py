"""Adapters, prompts and prefixes against networks written out by hand, in float64 where numbers are compared."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from tests.parity.oracle import framework
from transfer_jax.core.errors import UserError
from transfer_jax.core.paths import flatten, unflatten
from transfer_jax.models.bert import Bert
from transfer_jax.models.gpt2 import GPT2
from transfer_jax.models.lenet import SmallCNN
from transfer_jax.models.model import Model
from transfer_jax.models.swin import Swin
from transfer_jax.models.text import layer_norm
from transfer_jax.models.transformer import TransformerBlock
from transfer_jax.models.vit import ViT
from transfer_jax.params.inserts import make_insert, outline_of
from transfer_jax.params.peft import PeftSpec, merged, new_leaves
from transfer_jax.pretrained.conversion import to_foreign

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


def block(params, x, heads=2, act=lambda v: v * 0.5 * (1 + scipy.special.erf(v / np.sqrt(2))), add=(None, None),
          front=None, seen=None, epsilon=1e-6):
    """A pre-norm block in float64; `add` are functions (input, output) -> output around its two modules, `front` keys
    and values [P, D] before those of the tokens, `seen` bool [B, T, P + T]."""
    p = {path: np.asarray(leaf, np.float64) for path, leaf in params.items()}

    def norm(name, v):
        v = v - v.mean(-1, keepdims=True)
        return v / np.sqrt(np.square(v).mean(-1, keepdims=True) + epsilon) * p[f"{name}/scale"] + p[f"{name}/bias"]

    def dense(name, v):
        return v @ p[f"{name}/kernel"] + p[f"{name}/bias"]

    def attention(v):
        q, k, w = (dense(f"attention/{n}", v) for n in ("query", "key", "value"))
        if front is not None:
            k, w = (np.concatenate([np.broadcast_to(new, (len(v), *new.shape)), own], 1)
                    for new, own in zip(np.asarray(front, np.float64), (k, w), strict=True))
        q, k, w = (part.reshape(*part.shape[:2], heads, -1) for part in (q, k, w))
        scores = np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(q.shape[-1])
        weights = scipy.special.softmax(scores if seen is None else np.where(seen[:, None], scores, -np.inf), axis=-1)
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


def test_prefixes_are_keys_and_values_before_those_of_the_tokens():
    case = Case(VIT, IMAGES, "prefix", ("backbone/block1/attention",), count=3, spread=0.5)
    assert {path.rpartition("/")[2]: leaf.shape for path, leaf in case.new.items()} == {"key": (3, 8), "value": (3, 8)}
    plain, found = case.run({}), case.run(case.new)
    np.testing.assert_array_equal(found["block0"], plain["block0"])
    front = [case.new[f"peft/new/backbone/block1/attention/{name}"] for name in ("key", "value")]
    expected = block(below("backbone/block1/", case.plain), np.asarray(plain["block0"], np.float64), front=front)
    np.testing.assert_allclose(found["block1"], expected, rtol=1e-4, atol=1e-4)
    assert np.abs(found["pooled"] - plain["pooled"]).max() > 1e-2


def test_prefixes_of_causal_texts_are_seen_by_all_tokens_and_padding_by_none():
    case = Case(GPT2(**TEXT, padding_token=0), TOKENS, "prefix", ("backbone/.*attention",), count=2, spread=0.5)
    assert len(case.new) == 4
    found = case.run(case.new)
    front = [case.new[f"peft/new/backbone/block0/attention/{name}"] for name in ("key", "value")]
    seen = np.tril(np.ones((5, 5), bool)) & np.asarray(TOKENS != 0)[:, None]
    seen = np.concatenate([np.ones((2, 5, 2), bool), seen], 2)
    tanh = lambda v: 0.5 * v * (1 + np.tanh(np.sqrt(2 / np.pi) * (v + 0.044715 * v ** 3)))  # noqa: E731
    expected = block(below("backbone/block0/", case.plain), np.asarray(found["embeddings"], np.float64), act=tanh,
                     front=front, seen=seen, epsilon=1e-5)
    np.testing.assert_allclose(found["block0"], expected, rtol=1e-4, atol=1e-4)
    longer = jnp.concatenate([TOKENS, jnp.zeros((2, 2), TOKENS.dtype)], 1)  # two more of padding
    np.testing.assert_allclose(case.run(case.new, longer)["pooled"], found["pooled"], rtol=1e-5, atol=1e-6)
    gradient = jax.grad(lambda leaves: jnp.sin(case.run(leaves)["pooled"]).sum())(case.new)
    assert all(leaf.any() for leaf in gradient.values())


def test_the_peft_library_gives_the_same_tokens_for_a_prefix(request):
    if not request.config.getoption("--parity"):
        pytest.skip("compares with the PEFT library; run with --parity")
    transformers, peft, torch = (framework(name) for name in ("transformers", "peft", "torch"))
    case = Case(GPT2(**TEXT, token_logits=True), TOKENS, "prefix", ("backbone/.*attention",), count=3, spread=0.5)
    written = to_foreign({path.removeprefix("backbone/"): np.asarray(leaf) for path, leaf in case.plain.items()},
                         case.backbone, "transformers")
    # There the tokens' positions count on after the prefix, as if it had some.
    table = next(name for name in written if name.endswith("wpe.weight"))
    written[table] = np.concatenate([np.zeros((3, 8), np.float32), written[table]])
    config = transformers.GPT2Config(vocab_size=30, n_positions=10, n_embd=8, n_layer=2, n_head=2, n_inner=16)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    theirs.load_state_dict({name: torch.from_numpy(leaf) for name, leaf in written.items()}, strict=False)
    theirs = peft.get_peft_model(theirs, peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    layers = [case.new[f"peft/new/backbone/block{i}/attention/{name}"] for i in (0, 1) for name in ("key", "value")]
    with torch.no_grad():
        theirs.prompt_encoder["default"].embedding.weight.copy_(torch.from_numpy(np.concatenate(layers, 1)))
        tokens = torch.from_numpy(np.asarray(TOKENS, np.int64))
        expected = theirs(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits.numpy()
    np.testing.assert_allclose(case.run(case.new)["logits"], expected, rtol=1e-4, atol=1e-5)
    assert np.abs(expected - case.run({})["logits"]).max() > 1e-2


def swin_attention(params, x, front=None, prompts=None, heads=2, window=2, shift=0):
    """Window attention in float64, place by place: [B, H, W, D] behind the norm -> [B, H, W, D].

    front: keys and values [P, D]; prompts [P, D]: tokens behind the norm.
    """
    p = {path: np.asarray(leaf, np.float64) for path, leaf in params.items()}
    count, height, width, d = len(x), *x.shape[1:]

    def dense(name, v):
        return v @ p[f"{name}/kernel"] + p[f"{name}/bias"]

    q, k, w = (dense(name, x) for name in ("query", "key", "value"))
    if prompts is not None:
        front = [dense(name, prompts) for name in ("key", "value")]

    def home(i, j):
        """The window of a place, and whether it came around an edge."""
        up, left = i - shift, j - shift
        return up % height // window, left % width // window, up < 0, left < 0

    y = np.zeros(x.shape)
    table, size = p["relative_positions"], d // heads
    for b, i, j, h in np.ndindex(count, height, width, heads):
        part = slice(h * size, (h + 1) * size)
        scores, values = [], []
        for number in range(len(front[0])):
            scores.append(q[b, i, j, part] @ front[0][number, part] / np.sqrt(size))
            values.append(front[1][number, part])
        for m, n in np.ndindex(height, width):
            if home(m, n) == home(i, j):
                rows = ((i - shift) % height - (m - shift) % height, (j - shift) % width - (n - shift) % width)
                scores.append(q[b, i, j, part] @ k[b, m, n, part] / np.sqrt(size)
                              + table[rows[0] + window - 1, rows[1] + window - 1, h])
                values.append(w[b, m, n, part])
        y[b, i, j, part] = scipy.special.softmax(scores) @ np.stack(values)
    return dense("out", y)


@pytest.mark.parametrize(("kind", "remat"), [("prompts", False), ("prompts", True), ("prefix", False)])
def test_in_windows_every_place_sees_what_stands_in_front(kind, remat):
    swin = Swin(width=4, depths=(2, 1), heads=(2, 2), window=2, remat=remat)
    images = jnp.asarray(RNG.normal(size=(2, 16, 16, 3)), jnp.float32)
    arguments = {"count": 3, "spread": 0.5, **({"deep": True} if kind == "prompts" else {})}
    case = Case(swin, images, kind, ("backbone" if kind == "prompts" else "backbone/.*attention",), **arguments)
    blocks = ("stage1/block0", "stage1/block1", "stage2/block0")
    per = 1 if kind == "prompts" else 2
    assert len(case.new) == 3 * per and {path.split("backbone/")[1].rsplit("/", per)[0] for path in case.new} == set(
        blocks)
    case.plain |= {path: jnp.asarray(0.5 * RNG.normal(size=leaf.shape), jnp.float32)  # those of a new one are small
                   for path, leaf in case.plain.items() if "/attention/" in path or path.endswith("norm1/bias")}
    found, plain = case.run(case.new), case.run({})
    x = np.asarray(found["stem"], np.float64)
    for number, shift in ((0, 0), (1, 1)):
        own = {path: np.asarray(leaf, np.float64) for path, leaf in below(
            f"backbone/stage1/block{number}/", case.plain).items()}

        def norm(name, v, own=own):
            v = v - v.mean(-1, keepdims=True)
            return v / np.sqrt(np.square(v).mean(-1, keepdims=True) + 1e-5) * own[f"{name}/scale"] + own[f"{name}/bias"]

        new = {name: np.asarray(leaf, np.float64) for name, leaf in below(
            f"peft/new/backbone/stage1/block{number}/", case.new).items()}
        given = {"prompts": norm("norm1", new["prompts"])} if kind == "prompts" else {
            "front": [new[f"attention/{name}"] for name in ("key", "value")]}
        x = x + swin_attention(below("attention/", own), norm("norm1", x), shift=shift, **given)
        hidden = norm("norm2", x) @ own["mlp/fc1/kernel"] + own["mlp/fc1/bias"]
        hidden = hidden * 0.5 * (1 + scipy.special.erf(hidden / np.sqrt(2)))
        x = x + hidden @ own["mlp/fc2/kernel"] + own["mlp/fc2/bias"]
    np.testing.assert_allclose(found["stage1"], x, rtol=1e-4, atol=1e-4)
    assert np.abs(found["stage1"] - plain["stage1"]).max() > 1e-2
    gradient = jax.jit(jax.grad(lambda leaves: jnp.sin(case.eagerly(leaves, images)["pooled"]).sum()))(case.new)
    assert all(leaf.any() for leaf in gradient.values())


@pytest.mark.parametrize(("backbone", "kind", "target", "arguments", "words"), [
    (VIT, "adapter", "backbone/blok0/mlp", {}, "matches nothing; nearest: .*block0/mlp"),
    (VIT, "adapter", "backbone/block0/mlp", {"width": 0}, "a width above 0"),
    (VIT, "adapter", "backbone/block0/mlp", {"size": 3}, "unknown argument 'size'"),
    (VIT, "prompts", "vit", {}, "matches nothing; nearest: backbone"),
    (VIT, "prompts", "backbone", {"count": 0}, "use at least 1"),
    (VIT, "adapter", "(", {}, "not a regular expression"),
    (VIT, "promts", "backbone", {}, "did you mean 'prompts'"),
    (VIT, "prefix", "backbone/block0/mlp", {}, "matches nothing; nearest: backbone/block0/attention"),
    (VIT, "prefix", "backbone/.*attention", {"count": 0}, "use at least 1"),
    (Swin(width=4, depths=(1,), heads=(2,), window=2), "prompts", "backbone", {}, "use deep=True"),
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
