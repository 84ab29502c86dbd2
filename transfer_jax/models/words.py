"""A small tower for short texts."""

from __future__ import annotations

from collections.abc import Mapping

import jax
from flax import linen as nn

from transfer_jax.models.taps import Backbone, Taps, walk
from transfer_jax.models.text import embedding, example_text, pool_tokens, read_text


class WordAverage(Backbone):
    """The mean of word vectors, then dense layers with ReLU: the deep averaging network (Iyyer et al. 2015, section 3).

    Taps: `words` [B, T, width], `averaged` [B, width], `layer1` ..., `pooled` (the last of these). A text without
    tokens has an average of zeros, and with `bare` so have all taps behind it: dense layers then have no bias.
    """

    vocabulary: int = 4096
    width: int = 50
    hidden: tuple[int, ...] = (64,)
    padding_token: int = 0
    positions: int = 512
    bare: bool = True

    resumes = False  # the mask comes from the tokens

    @property
    def tap_names(self) -> tuple[str, ...]:
        return ("words", "averaged", *(f"layer{i + 1}" for i in range(len(self.hidden))), "pooled")

    @property
    def example(self) -> jax.ShapeDtypeStruct:
        return example_text(self.positions)

    @nn.compact
    def __call__(self, x: jax.Array | Mapping[str, jax.Array], train: bool = False) -> Taps:
        """int32 tokens [B, T] -> taps."""
        text = read_text(x, self.padding_token, self.positions)

        def layer(i: int, features: int):
            dense = nn.Dense(features, use_bias=not self.bare, dtype=self.dtype, name=f"layer{i + 1}")
            return lambda x: nn.relu(dense(x))

        return walk(text.tokens, self.until, {
            "words": lambda tokens: embedding(self.vocabulary, self.width, self.dtype, "word")(tokens),
            "averaged": lambda x: pool_tokens(x, text.mask, "mean"),
            **{f"layer{i + 1}": layer(i, features) for i, features in enumerate(self.hidden)},
            "pooled": lambda x: x})
