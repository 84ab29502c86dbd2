"""Every recipe for a target without labels is ready to train, moves what it says, and reads no label of the target."""

import numpy as np
import pytest
from tiny_experiment import config, same_leaves, start

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import build
from transfer_jax.experiment.runner import Runner
from transfer_jax.experiment.spec import ExperimentSpec
from transfer_jax.recipes import ADAPTATION, RECIPES, Setting, expand

CNN = {"kind": "small_cnn", "widths": (4, 8), "norm": "batch"}


def setting(**more):
    return Setting(**{**dict(backbone=CNN, name="digits", stream="train", target="target", strong="strong", classes=10,
                             domains=("plain", "photo"), evaluate=("test",), steps=4, lr=1e-2, backbone_lr=1.0),
                      **more})


def experiment(digits_file, recipe, **more):
    values = config(digits_file)
    if recipe.startswith("mdan"):
        parts = tuple(dict(values["streams"]["train"]["data"], domain=name) for name in ("a", "b"))
        values["streams"]["train"]["data"] = {"kind": "merge", "parts": parts}
    target = {**values["streams"]["test"], "labelled": False, "domain": "photo"}
    streams = {**values["streams"], "target": target,
               "strong": {**target, "follows": "target", "augment": ({"kind": "noise"},)}}
    streams["test"] = {**streams["test"], "domain": "photo"}
    found = expand(recipe, setting(**more))
    return build(ExperimentSpec, {**values, "streams": streams, **found})


def test_no_name_is_used_twice():
    assert not set(RECIPES) & set(ADAPTATION)


@pytest.mark.parametrize("recipe", [*ADAPTATION, "afn(radius=2.0)", "cdan(entropy=True)", "fixmatch(curriculum=True)",
                                    "dsbn(method=mmd)", "domain_shift(method=dann;taps=('stage1','pooled'))"])
def test_every_stage_can_be_traced_and_the_target_has_no_labels(digits_file, recipe):
    if recipe == "dsbn(method=mmd)":
        with pytest.raises(UserError, match="'mmd' does not fit; use one of"):
            experiment(digits_file, recipe)
        return
    spec = experiment(digits_file, recipe)
    assert not any(spec.streams[name].labelled for name in ("target", "strong"))
    seen = set()
    for name, stage in spec.stages.items():
        seen |= set(stage.objective.streams())
        if stage.objective.ordered:
            metrics = start(spec, name)[-1]
            assert "loss" in metrics
    closed = {refit.arguments["stream"] for stage in spec.stages.values() for refit in stage.refit}
    assert "target" in seen | closed or recipe == "source_only"


@pytest.mark.parametrize("recipe", ["mcd", "wdgrl", "adda", "shot", "self_ensemble", "domain_shift"])
def test_it_trains_to_its_end_and_moves_what_it_says(digits_file, tmp_path, recipe):
    spec = experiment(digits_file, recipe)
    runner = Runner(spec, tmp_path, quiet=True)
    fresh, _ = runner.fresh
    runner.run()
    last = list(spec.stages)[-1]
    before = runner.result(list(spec.stages)[-2], "last")[0] if len(spec.stages) > 1 else fresh
    after = runner.result(last, "last")[0]
    assert all(np.isfinite(leaf).all() for leaf in after.values())
    still = {path for path in before if path in after and same_leaves(before[path], after[path])}
    if recipe in ("shot", "adda"):
        assert {path for path in still if path.startswith("heads/digits")} == {
            "heads/digits/dense/kernel", "heads/digits/dense/bias"}
    else:
        # The critic's last shift cancels in a difference of means.
        assert {path for path in still if path.startswith(("backbone/", "heads/"))} <= {"heads/critic/output/bias"}
    gaps = {path: leaf for path, leaf in after.items() if path.startswith("peft/")}
    assert bool(gaps) == (recipe == "domain_shift") and all(np.abs(leaf).max() > 0 for leaf in gaps.values())


@pytest.mark.parametrize(("recipe", "told", "message"), [
    ("dann", {"target": ""}, "give Setting its `target`"), ("t3a", {"target": ""}, "`target`"),
    ("mdd", {"classes": 0}, "`classes`"), ("fixmatch", {"strong": ""}, "`strong`"),
    ("tent", {"backbone": {"kind": "lenet"}}, "no layer of the backbone"), ("dann(hiden=3)", {}, "'hiden'")])
def test_what_is_missing_is_told(recipe, told, message):
    with pytest.raises(UserError, match=message):
        expand(recipe, setting(**told))
