"""The pieces of code in the README do what it says."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from transfer_jax import objectives
from transfer_jax.core.spec import Component, build
from transfer_jax.data import Dataset, from_arrays
from transfer_jax.experiment.spec import StageSpec
from transfer_jax.layers.convolution import Conv
from transfer_jax.layers.pooling import global_average
from transfer_jax.models.taps import Backbone, walk
from transfer_jax.objectives.spec import TermSpec
from transfer_jax.objectives.wiring import make_term

ROOT = Path(__file__).resolve().parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def block(words, **names):
    """The names that the only code block with `words` in it defines."""
    found, = [text for text in BLOCKS if words in text]
    exec(found, names)  # noqa: S102 - our own README
    return names


def test_a_backbone():
    module = block("class TwoLayers", Backbone=Backbone, nn=nn, walk=walk, Conv=Conv,
                   global_average=global_average)["TwoLayers"](until="pooled")
    taps, variables = module.init_with_output(jax.random.key(0), jnp.ones((2, 8, 8, 3)))
    assert {name: tap.shape for name, tap in taps.items()} == {"stage1": (2, 8, 8, 32), "pooled": (2, 32)}
    assert set(variables["params"]) == {"stage1"}


def test_a_method(monkeypatch):
    function = block("def mean_alignment", jnp=jnp)["mean_alignment"]
    monkeypatch.setitem(objectives.TERMS, "mean_alignment", function)
    text = next(text for text in BLOCKS if "align=dict" in text)
    terms = eval(f"dict({text})")["terms"]  # noqa: S307 - our own README
    term = make_term("align", build(TermSpec, terms["align"]), {}, "terms")
    assert term.parameters_needed == {"source_features", "target_features"}
    assert float(function(jnp.ones((3, 2)), jnp.zeros((4, 2)), scale=0.5)) == pytest.approx(1.0)


def test_a_data_set(tmp_path):
    np.savez(tmp_path / "letters.npz", x=np.zeros((4, 8, 8, 3), np.uint8), y=np.array([0, 1, 1, 0]))
    splits = block("def letters_source", np=np, from_arrays=from_arrays, Dataset=Dataset)["letters_source"](
        str(tmp_path / "letters.npz"))
    assert len(splits["train"]) == 4 and splits["train"].labels.tolist() == [0, 1, 1, 0]


def test_a_stage_with_groups():
    text = next(text for text in BLOCKS if "unfreeze_at" in text).replace("objective=...", "objective={}")
    stage = build(StageSpec, eval(f"dict({text})")["finetune"])  # noqa: S307 - our own README
    assert stage.groups["top"].unfreeze_at == 500 and stage.optimizer == Component(kind="adamw")


def test_links_and_lengths():
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / target).exists(), target
    assert all(len(found.splitlines()) < 15 for found in BLOCKS)
