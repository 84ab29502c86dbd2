"""CREPE: the Keras names of ml5.js's file for TensorFlow.js, and those of the authors' own files."""

from __future__ import annotations

from transfer_jax.models.crepe import Crepe
from transfer_jax.pretrained.rules.table import KERAS, Layout, Op, rules

TIME = Op("2D convolution of width 1", lambda a: a.reshape(a.shape[0], *a.shape[2:]),
          lambda a: a.reshape(a.shape[0], 1, *a.shape[1:]))  # (t, 1, I, O) <-> (t, I, O)


def _numbered(front: str, norm: str) -> Layout:
    return Layout(rules(
        KERAS.conv("block{i}/conv", f"{front}conv{{i}}", TIME),
        KERAS.norm("block{i}/bn", f"{front}conv{{i}}{norm}"),
        KERAS.dense("head/dense", f"{front}classifier"),
    ), modules={f"block{i}": f"{front}conv{i}{'_' if front else '-'}maxpool" for i in range(1, 7)})


def keras(backbone: Crepe) -> Layout:
    """TensorFlow.js allows no '-' in names."""
    return _numbered("crepe_", "_BN")


def authors(backbone: Crepe) -> Layout:
    """model-tiny.h5 ... of the authors' package."""
    return _numbered("", "-BN")


LAYOUTS = {"keras": keras, "authors": authors}
