"""A joint middle: vectors of several parts of a model become one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from transfer_jax.core.errors import UserError, unknown
from transfer_jax.models.taps import Backbone, Taps, walk

JOINED = ("concatenation", "gates")


class Fusion(Backbone):
    """Several vectors, say of an image tower and of a text tower, to one.

    Each input has a dense layer of its own to `width`. They are joined by 'concatenation' with a ReLU, or by 'gates':
    sum_i g_i * tanh(h_i), where g is the softmax over the inputs, feature by feature, of a dense layer on all of them
    (the gated multimodal unit for any number of inputs; Arevalo et al. 2017, equation 1). Hidden layers follow.

    An input that is missing, a vector of zeros (a text without tokens is pooled to one) or None (nothing is given),
    gives way to a learned vector of its own. In training each input is hidden in this way with the probability
    `modality_dropout`, example by example, but never the last one that is there (ModDrop; Neverova et al. 2016).

    Taps: `joined`, `layer1` ..., `pooled` (the last of these). The rng 'dropout' is needed for `modality_dropout`.
    """

    width: int = 64
    how: str = "concatenation"
    hidden: tuple[int, ...] = (64,)
    modality_dropout: float = 0.0

    resumes = False  # it reads several taps

    @property
    def tap_names(self) -> tuple[str, ...]:
        return ("joined", *(f"layer{i + 1}" for i in range(len(self.hidden))), "pooled")

    @nn.compact
    def __call__(self, x: Sequence[jax.Array | None], train: bool = False) -> Taps:
        """Inputs [B, D_i], maps [B, H, W, D_i] or tokens [B, T, D_i] (both averaged), or None -> taps."""
        if self.how not in JOINED:
            raise unknown("how", self.how, JOINED, "backbone fusion")
        if isinstance(x, jax.Array) or all(value is None for value in x):
            raise UserError("the backbone 'fusion' joins taps of other backbones; name them in the stream's inputs, as "
                            "in inputs=dict(..., middle=('image/pooled', 'text/pooled'))")
        vectors = self._with_missing([None if value is None else _vector(value) for value in x], train)
        return walk(vectors, self.until, {
            "joined": self._join,
            **{f"layer{i + 1}": self._layer(i, features) for i, features in enumerate(self.hidden)},
            "pooled": lambda x: x})

    def _with_missing(self, vectors: list[jax.Array | None], train: bool) -> list[jax.Array]:
        """Projected inputs [B, width], learned vectors where they are missing or hidden."""
        size = next(vector.shape[0] for vector in vectors if vector is not None)
        there = jnp.stack([jnp.zeros(size, bool) if vector is None else (vector != 0).any(-1) for vector in vectors])
        if train and self.modality_dropout > 0 and not self.is_initializing():
            kept = there & jax.random.bernoulli(self.make_rng("dropout"), 1 - self.modality_dropout, there.shape)
            there = jnp.where(kept.any(0), kept, there)
        found = []
        for i, vector in enumerate(vectors):
            learned = self.param(f"missing{i}", nn.initializers.normal(0.02), (self.width,), jnp.float32)
            given = 0.0 if vector is None else nn.Dense(self.width, dtype=self.dtype, name=f"input{i}")(vector)
            found.append(jnp.where(there[i][:, None], given, learned).astype(self.dtype))
        return found

    def _join(self, vectors: list[jax.Array]) -> jax.Array:
        together = jnp.concatenate(vectors, -1)
        if self.how == "concatenation":
            return nn.relu(together)
        gates = nn.Dense(together.shape[-1], dtype=self.dtype, name="gates")(together)
        gates = nn.softmax(gates.reshape(-1, len(vectors), self.width), axis=1)
        return (gates * nn.tanh(jnp.stack(vectors, 1))).sum(1)

    def _layer(self, i: int, features: int) -> Any:
        return lambda x: nn.relu(nn.Dense(features, dtype=self.dtype, name=f"layer{i + 1}")(x))


def _vector(x: jax.Array) -> jax.Array:
    return x.mean(tuple(range(1, x.ndim - 1))) if x.ndim > 2 else x
