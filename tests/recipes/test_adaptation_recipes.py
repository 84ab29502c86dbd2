"""Every recipe for a target without labels is ready to train, moves what it says, and reads no label of the target."""

import json
import logging

import jax
import numpy as np
import pytest
from tiny_experiment import config, same_leaves, start

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import build
from transfer_jax.experiment.runner import Runner
from transfer_jax.experiment.spec import ExperimentSpec, ValidationSpec
from transfer_jax.experiment.stage_run import StageRun
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


@pytest.mark.parametrize(("file", "changes", "message"), [
    ("empty", {}, "the split 'test' holds no example"),
    ("nan", {}, "nan.npz, split 'test': float images must lie in"),
    ("sound", {"classes": (5, 6, 7, 8, 9)}, "has the classes 5, 6, 7, 8, 9, but stream 'train' has 0"),
    ("sound", {"within": "[:0%]"}, "no example is left")])
def test_targets_that_cannot_be_used_are_told_before_training(digits_file, tmp_path, file, changes, message):
    held = dict(np.load(digits_file))
    if file == "empty":
        held |= {name: held[name][:0] for name in ("test_image", "test_label")}
    if file == "nan":
        held |= {name: held[name] / np.float32(255) for name in ("train_image", "test_image")}
        held["test_image"][3] = np.nan
    np.savez(tmp_path / f"{file}.npz", **held)
    spec = experiment(tmp_path / f"{file}.npz", "dan", steps=2)
    targets = {name: stream.model_copy(update=changes) for name, stream in spec.streams.items() if name != "train"}
    with pytest.raises(UserError, match=message):
        Runner(spec.model_copy(update={"streams": {**spec.streams, **targets}}), tmp_path / "run", quiet=True).run()
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_single_examples_of_one_colour_and_class_are_learnt_from_with_batch_norm(digits_file, tmp_path):
    held = dict(np.load(digits_file))
    black = {"test_image": np.zeros_like(held["test_image"]), "test_label": np.full_like(held["test_label"], 3)}
    np.savez(tmp_path / "black.npz", **{**held, **black})
    spec = experiment(tmp_path / "black.npz", "cdan(entropy=True)", steps=2)
    streams = {name: stream.model_copy(update={"batch_size": 1}) for name, stream in spec.streams.items()}
    runner = Runner(spec.model_copy(update={"streams": streams}), tmp_path / "run", quiet=True)
    runner.run()
    params, statistics = runner.result("cdan_e", "last")
    assert all(np.isfinite(leaf).all() for leaf in [*params.values(), *jax.tree.leaves(statistics)])
    told = [json.loads(line)["metrics"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert told and all(np.isfinite(np.float64(list(metrics.values()))).all() for metrics in told)


def compiled_programs(runner, caplog, monkeypatch):
    """What is compiled while it trains: a name for each program, and (stage, step) after each evaluation."""
    measure = StageRun._measure

    def telling(run, step, *arguments, **named):
        found = measure(run, step, *arguments, **named)
        logging.getLogger("measured").warning("%s %d", run.name, step)
        return found

    monkeypatch.setattr(StageRun, "_measure", telling)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        runner.run()
    return [(record.args[0], record.args[1]) if record.name == "measured" else record.getMessage().split()[1]
            for record in caplog.records if record.name == "measured" or record.getMessage().startswith("Compiling ")]


MECHANISMS = ("mcd", "wdgrl", "adda", "shot", "self_ensemble", "domain_shift")  # one of each


@pytest.mark.parametrize("recipe", [*MECHANISMS, *(name for name in ADAPTATION if name not in MECHANISMS)])
def test_it_trains_to_its_end_moves_what_it_says_and_compiles_every_stage_once(digits_file, tmp_path, caplog,
                                                                               monkeypatch, pytestconfig, recipe):
    if recipe not in MECHANISMS and not pytestconfig.getoption("--all"):
        pytest.skip("one recipe of each mechanism; --all runs every one")
    spec = experiment(digits_file, recipe, steps=6 if recipe in ("adda", "shot") else 3)
    often = {"eval_every": 1, "measure_every": 1, "validation": ValidationSpec(target="target", task="digits")}
    stages = {name: stage.model_copy(update=often) for name, stage in spec.stages.items() if stage.objective.ordered}
    often = {"stages": {**spec.stages, **stages}, "checkpoint_every": 0}  # a checkpoint's check is a program, too
    runner = Runner(spec.model_copy(update=often), tmp_path, quiet=True)
    fresh, _ = runner.fresh
    programs = compiled_programs(runner, caplog, monkeypatch)
    assert programs.count("jit(chunk)") == len(stages)
    for name in stages:
        ends = [programs.index((name, step)) for step in (1, runner.planned_steps()[name] - 1)]
        assert ends[0] < ends[1] and not [one for one in programs[slice(*ends)] if isinstance(one, str)]
    last = list(spec.stages)[-1]
    after = runner.result(last, "last")[0]
    assert all(np.isfinite(leaf).all() for leaf in after.values())
    if recipe not in MECHANISMS:
        return
    before = runner.result(list(spec.stages)[-2], "last")[0] if len(spec.stages) > 1 else fresh
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
