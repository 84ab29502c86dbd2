"""GPT-2 against transformers: scores of the next token, and the bare decoder."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from flax import linen as nn

from tests.parity import transformers_original
from tests.parity.harness import Case, Inputs
from tests.parity.oracle import framework
from transfer_jax.core.spec import Component
from transfer_jax.models import build_backbone
from transfer_jax.pretrained.conversion import find_layout

FEW = {"vocabulary": 800, "layers": 2, "positions": 40}
LENGTHS = (11, 7)  # real tokens of the two texts, padded on the right


class TokenScores(nn.Module):
    """A head without parameters: the scores that the backbone computes itself."""

    @nn.compact
    def __call__(self, taps: Any, train: bool = False) -> Any:
        return taps["logits"]


class Scoring(Case):
    """Compares the scores of all tokens in place of the pooled vector."""

    @property
    def head(self) -> Any:
        return TokenScores()


def _inputs(rng: np.random.Generator) -> Inputs:
    tokens = rng.integers(0, FEW["vocabulary"], (2, LENGTHS[0])).astype(np.int32)
    mask = np.arange(LENGTHS[0])[None] < np.array(LENGTHS)[:, None]
    return Inputs({"tokens": tokens, "mask": mask}, kwargs={
        "input_ids": tokens.astype(np.int64), "attention_mask": mask.astype(np.int64)})


def _config(backbone: Any) -> Any:
    last = backbone.vocabulary - 1
    return framework("transformers").GPT2Config(
        vocab_size=backbone.vocabulary, n_embd=backbone.width, n_layer=backbone.layers, n_head=backbone.heads,
        n_positions=backbone.positions, bos_token_id=last, eos_token_id=last)


def _language_model(backbone: Any) -> Any:
    return framework("transformers").GPT2LMHeadModel(_config(backbone))


def _decoder(backbone: Any) -> Any:
    return framework("transformers").GPT2Model(_config(backbone))


def _save_decoder(model: Any) -> dict[str, np.ndarray]:
    """Its file has no prefix, as the original release; classifiers and language models have one."""
    return {f"transformer.{name}": tensor for name, tensor in transformers_original.save(model).items()}


def _last(output: Any) -> Any:
    return output.last_hidden_state[np.arange(2), np.array(LENGTHS) - 1]


def _case(make: type[Case], kind: str, name: str, original: Any, few: bool = True, prefix: str = "transformer.",
          **more: Any) -> Case:
    arguments = {"dropout": 0.0, "token_logits": make is Scoring, **(FEW if few else {})}
    backbone = build_backbone(Component(kind=kind, **arguments))
    taps = {tap: module.replace("transformer.", prefix) for tap, module in
            find_layout(backbone, "transformers").modules.items()}
    return make(kind, "transformers", functools.partial(original, backbone), taps,
                ("word/embedding", "block0/attention/key/kernel", "block1/mlp/fc2/kernel"), arguments, inputs=_inputs,
                classes=None, name=name, tolerance=1e-4, load=transformers_original.load, **more)


_scoring = functools.partial(_case, Scoring, original=_language_model, save=transformers_original.save)
_decoding = functools.partial(_case, Case, original=_decoder, prefix="", logits=_last, save=_save_decoder)

CASES = [_scoring("gpt2", "gpt2_few", smallest=True), _decoding("gpt2", "gpt2_few_decoder", smallest=True),
         _scoring("gpt2", "gpt2", few=False), _scoring("gpt2_medium", "gpt2_medium_few")]
