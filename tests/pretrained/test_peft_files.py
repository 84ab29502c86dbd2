"""Low-rank leaves in the layout of the PEFT library: a round trip, and the same outputs there."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity.oracle import framework
from transfer_jax.core.errors import UserError
from transfer_jax.core.paths import unflatten
from transfer_jax.core.spec import Component
from transfer_jax.models import build_backbone
from transfer_jax.params.peft import PREFIX, PeftSpec, merged, new_leaves
from transfer_jax.pretrained.conversion import leaf_shapes, to_foreign
from transfer_jax.pretrained.peft_files import CONFIG, TENSORS, read_peft, write_peft

RNG = np.random.default_rng(0)
BERT = Component(kind="bert", layers=2, width=32, heads=4, mlp_width=48, vocabulary=50, positions=16, pool="mean")
RESNET = Component(kind="resnet18", until="stage2")


def leaves_of(backbone):
    return {path: RNG.normal(0, 0.1, leaf.shape).astype(np.float32) for path, leaf in leaf_shapes(backbone).items()}


def tuned(spec, leaves):
    """New leaves away from their start, without our prefix."""
    new = new_leaves({"x": spec}, leaves, jnp.uint32(0))
    return {path.removeprefix(f"{PREFIX}x/"): np.asarray(leaf + RNG.normal(0, 0.1, leaf.shape), np.float32)
            for path, leaf in new.items()}


def run(backbone, leaves, new, spec, inputs):
    params = merged({"x": spec}, {**leaves, **{f"{PREFIX}x/{path}": leaf for path, leaf in new.items()}})
    moving = {path: leaf for path, leaf in params.items() if path.rpartition("/")[2] in ("mean", "var")}
    variables = {"params": unflatten({path: leaf for path, leaf in params.items() if path not in moving}),
                 "batch_stats": unflatten(moving)}
    return backbone.apply(variables, inputs)


@pytest.mark.parametrize(("component", "layout", "targets"), [
    (BERT, "transformers", ("block.*/(query|value|fc1)",)), (RESNET, "torchvision", (".*/conv1", "stage2/.*conv2"))])
@pytest.mark.parametrize(("kind", "scaling"), [("lora", "rank"), ("lora", "root"), ("dora", "rank")])
def test_a_round_trip_loses_nothing(tmp_path, component, layout, targets, kind, scaling):
    backbone = build_backbone(component)
    spec = PeftSpec(kind=kind, targets=targets, rank=3, alpha=5.0, scaling=scaling)
    new = tuned(spec, leaves_of(backbone))
    write_peft(tmp_path, new, spec, backbone, layout)
    found, again = read_peft(tmp_path, backbone, layout)
    assert set(found) == set(new) and all(np.array_equal(found[path], leaf) for path, leaf in new.items())
    assert (again.kind, again.arguments) == (kind, {"rank": 3, "alpha": 5.0, "scaling": scaling})


@pytest.mark.filterwarnings("error:Found missing adapter keys")
@pytest.mark.parametrize(("kind", "scaling"), [("lora", "rank"), ("lora", "root"), ("dora", "rank")])
def test_the_library_gives_the_same_outputs_for_a_transformer(request, tmp_path, kind, scaling):
    if not request.config.getoption("--parity"):
        pytest.skip("compares with the PEFT library; run with --parity")
    transformers, peft, torch = (framework(name) for name in ("transformers", "peft", "torch"))
    backbone = build_backbone(BERT)
    leaves = leaves_of(backbone)
    spec = PeftSpec(kind=kind, targets=("block.*/(query|value|fc1)",), rank=3, alpha=5.0, scaling=scaling)
    new = tuned(spec, leaves)
    write_peft(tmp_path, new, spec, backbone, "transformers", bare=True)
    config = transformers.BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                                     intermediate_size=48, max_position_embeddings=16)
    theirs = transformers.BertModel(config, add_pooling_layer=False).eval()
    written = {name.removeprefix("bert."): torch.from_numpy(leaf)
               for name, leaf in to_foreign(leaves, backbone, "transformers").items()}
    theirs.load_state_dict(written, strict=False)
    tokens = RNG.integers(0, 50, (2, 9))
    with torch.no_grad():
        plain = theirs(torch.from_numpy(tokens)).last_hidden_state.numpy()
        adapted = peft.PeftModel.from_pretrained(theirs, str(tmp_path))
        expected = adapted(torch.from_numpy(tokens)).last_hidden_state.numpy()
    inputs = {"tokens": tokens.astype(np.int32), "mask": np.ones(tokens.shape, bool),
              "types": np.zeros(tokens.shape, np.int32)}
    found = run(backbone, leaves, new, spec, jax.tree.map(jnp.asarray, inputs))["block1"]
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)
    assert np.abs(expected - plain).max() > 1e-2


@pytest.mark.filterwarnings("error:Found missing adapter keys")
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_the_library_gives_the_same_outputs_for_a_convolutional_network(request, tmp_path, kind):
    if not request.config.getoption("--parity"):
        pytest.skip("compares with the PEFT library; run with --parity")
    torchvision, peft, torch = (framework(name) for name in ("torchvision", "peft", "torch"))
    backbone = build_backbone(Component(kind="resnet18"))
    leaves = {path: np.abs(leaf) if path.endswith("/var") else leaf for path, leaf in leaves_of(backbone).items()}
    spec = PeftSpec(kind=kind, targets=("conv1", "stage2/.*conv2", "stage3/block0/shortcut_conv"), rank=3, alpha=5.0)
    new = tuned(spec, leaves)
    write_peft(tmp_path, new, spec, backbone, "torchvision")
    theirs = torchvision.models.resnet18().eval()
    written = {name: torch.from_numpy(np.asarray(leaf)) for name, leaf in
               to_foreign(leaves, backbone, "torchvision").items()}
    theirs.load_state_dict(written, strict=False)
    theirs.fc = torch.nn.Identity()
    images = RNG.normal(size=(2, 64, 64, 3)).astype(np.float32)
    given = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    with torch.no_grad():
        plain = theirs(given).numpy()
        expected = peft.PeftModel.from_pretrained(theirs, str(tmp_path))(given).numpy()
    found = run(backbone, leaves, new, spec, jnp.asarray(images))["pooled"]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    assert np.abs(expected - plain).max() > 1e-2 * np.abs(plain).max()


def test_what_has_no_place_is_refused(tmp_path):
    backbone = build_backbone(BERT)
    spec = PeftSpec(kind="lora", targets=("block0/attention/query",), rank=2)
    new = tuned(spec, leaves_of(backbone))
    with pytest.raises(UserError, match="is missing"):
        read_peft(tmp_path, backbone, "transformers")
    with pytest.raises(UserError, match="'ia3' has no file"):
        write_peft(tmp_path, new, PeftSpec(kind="ia3", targets=("x",)), backbone, "transformers")
    write_peft(tmp_path, new, spec, backbone, "transformers")
    with pytest.raises(UserError, match="unknown tensor"):
        read_peft(tmp_path, build_backbone(RESNET), "torchvision")
    config = json.loads((tmp_path / CONFIG).read_text())
    for changes, words in (({"peft_type": "IA3"}, "only LORA"), ({"r": None}, "gives no rank"), ({"r": 3}, "says 3"),
                           ({"alpha_pattern": {"query": 4}}, "alpha_pattern"), ({"use_dora": True}, "lacks length")):
        (tmp_path / CONFIG).write_text(json.dumps({**config, **changes}))
        with pytest.raises(UserError, match=words):
            read_peft(tmp_path, backbone, "transformers")
    (tmp_path / CONFIG).write_text("[1")
    with pytest.raises(UserError, match=CONFIG):
        read_peft(tmp_path, backbone, "transformers")
    (tmp_path / CONFIG).write_text(json.dumps(config))
    (tmp_path / TENSORS).write_bytes(b"nothing")
    with pytest.raises(UserError, match=TENSORS):
        read_peft(tmp_path, backbone, "transformers")
    (tmp_path / TENSORS).unlink()
    packed = build_backbone(Component(kind="vit_tiny", until="block0"))
    vit = PeftSpec(kind="lora", targets=(".*/query",), rank=2)
    with pytest.raises(UserError, match="packed tensor"):
        write_peft(tmp_path, tuned(vit, leaves_of(packed)), vit, packed, "timm")
