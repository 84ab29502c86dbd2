"""A published sentence encoder, from its own files to similarities, against transformers and sentence-transformers."""

import json

import jax
import numpy as np
import pytest

from tests.parity import minilm
from tests.parity.harness import error
from transfer_jax.core.errors import UserError
from transfer_jax.core.paths import unflatten
from transfer_jax.core.spec import Component
from transfer_jax.models import build_backbone
from transfer_jax.pretrained.conversion import to_foreign, to_ours
from transfer_jax.pretrained.formats import read_tensors, write_tensors
from transfer_jax.pretrained.loading import PretrainedSpec, load
from transfer_jax.pretrained.tokenization import read_tokenizer

STATES = ("embeddings", *(f"block{i}" for i in range(minilm.LAYERS)))
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def golden():
    return json.loads(minilm.GOLDEN.read_text())


@pytest.fixture(scope="module")
def encoder():
    """(our backbone, its leaves), read from the published file."""
    backbone = build_backbone(Component(kind="minilm"))
    loaded = load(PretrainedSpec(source=str(minilm.weights_folder())), backbone)
    assert {entry.status for entry in loaded.report.entries} <= {"loaded", "ignored"}
    return backbone, loaded.leaves


@pytest.fixture(scope="module")
def tokens():
    pytest.importorskip("tokenizers", reason="reads texts by the package tokenizers, which is not installed here")
    return read_tokenizer(minilm.weights_folder())(minilm.SENTENCES)


@pytest.fixture(scope="module")
def taps(encoder, tokens):
    backbone, leaves = encoder
    return jax.jit(lambda leaves, x: backbone.apply({"params": unflatten(leaves)}, x))(leaves, tokens)


def test_tokens(golden, tokens):
    assert tokens["tokens"].dtype == np.int32 and tokens["mask"].dtype == bool
    assert tokens["mask"].sum(1).tolist() == golden["lengths"] and max(golden["lengths"]) == 256
    for row, first in enumerate(golden["tokens"]):
        assert tokens["tokens"][row, :len(first)].tolist() == first
    assert not tokens["tokens"][~tokens["mask"]].any()


def test_hidden_states_of_every_layer(golden, taps, tokens):
    ours = minilm.summarize([np.asarray(taps[name]) for name in STATES], tokens["mask"])
    for state, told in zip(ours, golden["states"], strict=True):
        assert state["magnitude"] == pytest.approx(told["magnitude"], rel=TOLERANCE)
        assert error(state["first"], told["first"]) < TOLERANCE


def test_sentence_similarities(golden, taps):
    vectors = np.asarray(taps["pooled"], np.float64)
    assert error(vectors[:, :minilm.KEPT], golden["vectors"]) < TOLERANCE
    similarities = vectors @ vectors.T
    np.testing.assert_allclose(similarities, golden["similarities"], rtol=0, atol=1e-6)
    # Two sentences about music are closer to each other than to one about the stock market.
    assert similarities[0, 1] > 0.3 > similarities[[0, 1], 2].max()


def test_a_longer_padding_changes_nothing(encoder, tokens, taps):
    backbone, leaves = encoder
    longer = {name: np.pad(part, ((0, 0), (0, 12))) for name, part in tokens.items()}
    again = jax.jit(backbone.apply)({"params": unflatten(leaves)}, longer)["pooled"]
    assert error(again, taps["pooled"]) < TOLERANCE


def test_stacked_blocks_give_the_same(encoder, tokens, taps):
    backbone, _ = encoder
    stacked = backbone.clone(scan=True)
    leaves = load(PretrainedSpec(source=str(minilm.weights_folder())), stacked).leaves
    assert leaves["blocks/mlp/fc1/kernel"].shape == (minilm.LAYERS, 384, 1536)
    again = jax.jit(stacked.apply)({"params": unflatten(leaves)}, tokens)
    assert set(again) == set(taps)
    assert max(error(again[name], taps[name]) for name in STATES) < TOLERANCE


def test_the_way_back_is_exact(encoder, tmp_path):
    """Names and values are those of the published file, less the pooler that the encoder does not use."""
    backbone, leaves = encoder
    published = read_tensors(minilm.weights_folder() / "model.safetensors").tensors
    written = to_foreign(leaves, backbone, "transformers")
    assert set(published) - set(written) == {"pooler.dense.weight", "pooler.dense.bias", "embeddings.position_ids"}
    assert all(np.array_equal(tensor, published[name]) for name, tensor in written.items())
    prefixed = {f"bert.{name}": tensor for name, tensor in written.items()}
    back, report = to_ours(prefixed, backbone, "transformers")
    report.check()
    assert all(np.array_equal(back[path], leaf) for path, leaf in leaves.items())


def test_texts_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="holds no tokenizer.json"):
        read_tokenizer(tmp_path)
    tokenizer = read_tokenizer(minilm.weights_folder(), longest=8)
    with pytest.raises(UserError, match="a text has 8 tokens, more than the length of 4"):
        tokenizer(minilm.SENTENCES, length=4)
    with pytest.raises(UserError, match="give one for each text"):
        tokenizer(["one"], ["two", "three"])
    pair = tokenizer(["a cat"], ["a dog"], length=8)
    assert pair["tokens"].shape == (1, 8) and pair["types"].tolist() == [[0, 0, 0, 0, 1, 1, 1, 0]]
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="no readable tokenizer"):
        read_tokenizer(tmp_path, 8)


def test_live(encoder, tokens, taps, request, tmp_path):
    """The original frameworks say the same now: tokens, all hidden states, vectors, and of the file that we write."""
    if not request.config.getoption("--parity"):
        pytest.skip("compares with the original frameworks; run with --parity")
    theirs = minilm.their_tokens()
    assert all(np.array_equal(tokens[name], theirs[name]) for name in tokens)
    real = tokens["mask"]
    for name, state in zip(STATES, minilm.hidden_states(tokens), strict=True):
        assert error(np.asarray(taps[name])[real], state[real]) < TOLERANCE
    assert error(taps["pooled"], minilm.sentence_vectors()) < TOLERANCE
    backbone, leaves = encoder
    (tmp_path / "config.json").write_bytes((minilm.weights_folder() / "config.json").read_bytes())
    write_tensors(tmp_path / "model.safetensors", to_foreign(leaves, backbone, "transformers"), {"format": "pt"})
    states = minilm.hidden_states(tokens, tmp_path)
    assert error(np.asarray(taps["tokens"])[real], states[-1][real]) < TOLERANCE
