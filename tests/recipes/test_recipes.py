"""Every recipe expands to stages that fit the backbone, trains what it says and leaves the rest bit for bit."""

import re
import shutil

import jax
import numpy as np
import pytest
from tiny_experiment import config, same_leaves, trained

from transfer_jax.core.errors import UserError
from transfer_jax.core.paths import flatten
from transfer_jax.core.spec import Component, build
from transfer_jax.experiment.assembly import Assembly
from transfer_jax.experiment.export import export_model
from transfer_jax.experiment.runner import Runner
from transfer_jax.experiment.spec import ExperimentSpec
from transfer_jax.experiment.stage import prepare
from transfer_jax.experiment.workdir import Workdir
from transfer_jax.params.partition import GroupSpec
from transfer_jax.recipes import RECIPES, Setting, expand, parse

CNN = {"kind": "small_cnn", "widths": (4, 8), "norm": "batch"}
VIT = {"kind": "vit_tiny", "layers": 2, "width": 16, "heads": 2, "patch": 4}
NEEDED = {"truncate": "truncate(tap={first})", "surgical": "surgical(blocks={first})",
          "situation": "situation(data=small_similar)",
          "gradual_unfreeze": "gradual_unfreeze(parts=2)", "chain_thaw": "chain_thaw(parts=2)"}
FIRST = {"small_cnn": "stage1", "vit_tiny": "block0"}
SOURCE_HEAD = ("lwf", "ewc", "co_tuning")  # tried below with a published classifier


def experiment(digits_file, recipe, backbone=CNN, steps=6, pretrained=None, **keys):
    """The recipe on 8x8 digits as an experiment."""
    name = recipe.partition("(")[0]
    text = NEEDED.get(recipe, recipe).format(first=FIRST[backbone["kind"]])
    setting = Setting(backbone=backbone, pretrained=pretrained or {}, evaluate=("test",), steps=steps, lr=1e-2, **keys)
    values = config(digits_file)
    return build(ExperimentSpec, {**values, "name": name, **expand(text, setting)})


# Those whose stages do what no other test runs end to end; the others are made ready for training below.
RUN = ("partial", "truncate", "six_steps", "chain_thaw", "gradual_unfreeze", "bitfit", "norm_tuning", "l2_sp")
PLAIN = [name for name in RECIPES if name not in SOURCE_HEAD]


@pytest.mark.parametrize("recipe", RUN)
def test_it_runs_and_what_it_freezes_stays(recipe, digits_file, tmp_path):
    spec = experiment(digits_file, recipe)
    runner = Runner(spec, tmp_path, quiet=True)
    start, statistics = jax.device_get(runner.fresh)
    runner.run()
    moved: set[str] = set()
    for name in spec.stages:
        params, stats = runner.result(name, "last")
        moved |= {path for path in start if path in params and not same_leaves(params[path], start[path])}
    assert any(path.startswith("heads/") for path in moved), "a head trains in every recipe"
    frozen = set.intersection(*(frozen_paths(tmp_path, name) for name, stage in spec.stages.items()
                                if stage.objective.terms))
    assert not frozen & moved
    still = flatten(statistics)
    for path, leaf in flatten(stats).items():
        norm = path.rpartition("/")[0]
        if {f"{norm}/scale", f"{norm}/bias"} <= frozen or recipe == "bitfit":
            assert same_leaves(leaf, still[path]), path
    backbone = {path for path in moved if path.startswith("backbone/")}
    assert bool(backbone) == (recipe != "truncate")


def frozen_paths(workdir, stage):
    return set(Workdir(workdir).checkpoints(stage).restore()[1]["constants"]["frozen"])


@pytest.mark.parametrize(("recipe", "backbone"), [(recipe, backbone) for recipe in PLAIN for backbone in (CNN, VIT)
                                                  if (recipe != "stoch_norm" if backbone is VIT else
                                                      recipe not in (*RUN, "prompts", "prefix"))],
                         ids=lambda value: value if isinstance(value, str) else value["kind"])
def test_it_fits_the_backbone(recipe, backbone, digits_file):
    spec = experiment(digits_file, recipe, backbone)
    assembly = Assembly(spec)
    trained = [path for name in spec.stages for path in prepare(assembly, name).program.partition.trainable]
    assert any(path.startswith("heads/classify/") for path in trained)


def test_a_method_of_batch_norm_needs_one(digits_file):
    with pytest.raises(UserError, match="the model has no BatchNorm"):
        prepare(Assembly(experiment(digits_file, "stoch_norm", VIT)), "stoch_norm")


def test_keys_and_values_need_attention(digits_file):
    with pytest.raises(UserError, match="'small_cnn' has no attention layers"):
        experiment(digits_file, "prefix")


def groups(digits_file, recipe, backbone=CNN, steps=60):
    """path -> (group, its record) in the recipe's last stage."""
    spec = experiment(digits_file, recipe, backbone, steps)
    ready = prepare(Assembly(spec), list(spec.stages)[-1])
    rows = {row["group"]: row for row in ready.table()}
    return {path: rows[group] for path, group in ready.program.partition.group_of.items()}


def test_gradual_unfreezing_goes_from_the_top_down(digits_file):
    found = groups(digits_file, "gradual_unfreeze(parts=2;factor=2)")
    first, second = found["backbone/stage1_conv1/kernel"], found["backbone/stage2_conv1/kernel"]
    assert (first["unfreeze_at"], second["unfreeze_at"], found["heads/classify/dense/kernel"]["unfreeze_at"]) == (
        40, 20, 0)
    assert np.isclose(first["lr"], 1e-2 * 0.1 / 2) and np.isclose(second["lr"], 1e-2 * 0.1)


def test_discriminative_rates_fall_by_a_factor_a_block(digits_file):
    found = groups(digits_file, "discriminative(factor=3)", VIT)
    rates = [found[f"backbone/{path}"]["lr"] for path in ("patches/kernel", "block0/norm1/scale", "block1/norm1/scale",
                                                          "norm/scale")]
    assert np.allclose(rates, [1e-2 / 27, 1e-2 / 9, 1e-2 / 3, 1e-2 / 3])
    assert np.isclose(found["heads/classify/dense/kernel"]["lr"], 1e-2)


def test_layer_decay_reaches_the_last_norm_with_its_block(digits_file):
    spec = experiment(digits_file, "layer_decay(decay=0.5)", VIT, steps=1)
    spec = spec.model_copy(update={"stages": {"layer_decay": spec.stages["layer_decay"].model_copy(
        update={"optimizer": Component(kind="sgd"), "lr": 1.0})}})
    full = spec.model_copy(update={"stages": {"layer_decay": spec.stages["layer_decay"].model_copy(
        update={"groups": {"all": GroupSpec()}})}})
    one, other = (trained(s, "layer_decay") for s in (spec, full))
    for path, exponent in {"backbone/norm/bias": 1, "backbone/block1/norm1/bias": 1, "backbone/block0/norm1/bias": 2,
                           "backbone/patches/bias": 3, "heads/classify/dense/bias": 0}.items():
        step, whole = (run.after.trainable[path] - run.before.trainable[path] for run in (one, other))
        assert np.allclose(step, whole * 0.5 ** exponent, rtol=1e-4, atol=1e-7), path
        assert np.abs(whole).max() > 1e-6


def test_wise_ft_ends_at_its_ends(digits_file, tmp_path):
    ends = {}
    for share in (0.0, 1.0):
        runner = Runner(experiment(digits_file, f"wise_ft(share={share})"), tmp_path / str(share), quiet=True)
        runner.run()
        ends[share] = {name: runner.result(name, "last")[0] for name in ("head", "finetune", "mean")}
    assert same_leaves(ends[0.0]["mean"], ends[0.0]["head"]) and same_leaves(ends[1.0]["mean"], ends[1.0]["finetune"])
    assert not same_leaves(ends[0.0]["mean"], ends[1.0]["mean"])


@pytest.mark.parametrize(("recipe", "moves"), [("lwf(weight=2.0)", True), ("ewc(measured_examples=16)", False),
                                               ("co_tuning", True)])
def test_the_published_classifier_stays_in_use(recipe, moves, digits_file, tmp_path):
    source = Runner(experiment(digits_file, "finetune"), tmp_path / "source", quiet=True)
    source.run()
    export_model(source.assembly, source.workdir, tmp_path / "model")
    spec = experiment(digits_file, recipe, pretrained={"source": str(tmp_path / "model")}, source_classes=10)
    assert spec.pretrained["backbone"].head == "source"
    runner = Runner(spec, tmp_path / "target", quiet=True)
    runner.run()
    before = source.result("finetune", "last")[0]
    start = jax.device_get(runner.fresh)[0]
    assert same_leaves(start["heads/source/dense/kernel"], before["heads/classify/dense/kernel"])
    after = runner.result(recipe.partition("(")[0], "last")[0]
    assert same_leaves(after["heads/source/dense/kernel"], start["heads/source/dense/kernel"]) != moves
    assert not same_leaves(after["backbone/stage1_conv1/kernel"], start["backbone/stage1_conv1/kernel"])


@pytest.mark.parametrize(("recipe", "parts"), [
    ("finetun", ["unknown recipe 'finetun'", "did you mean"]),
    ("partial(q=1)", ["unknown argument 'q'"]), ("partial(k=9)", ["the backbone has 2 blocks"]),
    ("truncate", ["needs the argument 'tap'"]), ("truncate(tap=stage9)", ["unknown tap 'stage9'"]),
    ("surgical(blocks=stage1+stageX)", ["unknown block 'stageX'"]),
    ("surgical(blocks=stage1+stage2)", ["use finetune"]), ("gradual_unfreeze(parts=7)", ["parts = 7"]),
    ("lp_ft(head_share=1.5)", ["head_share = 1.5"]), ("lwf", ["published classifier"]),
    ("situation(data=tiny)", ["unknown situation 'tiny'"]), ("a b", ["is not of the form NAME"]),
    ("partial(k)", ["is not of the form key=value"]), ("wise_ft(share=2)", ["share = 2"])])
def test_what_does_not_fit_is_one_sentence(recipe, parts, digits_file):
    with pytest.raises(UserError) as error:
        expand(recipe, Setting(backbone=CNN, steps=6))
    for part in parts:
        assert part in str(error.value), error.value


def test_a_recipe_needs_one_length():
    for keys in ({}, {"steps": 3, "epochs": 2}):
        with pytest.raises(UserError, match="epochs or steps"):
            Setting(backbone=CNN, **keys)


def test_arguments_are_literals_or_words():
    assert parse("lora(rank=4; targets=backbone/.*)") == ("lora", {"rank": 4, "targets": "backbone/.*"})
    assert parse("finetune") == ("finetune", {})
    assert all(re.fullmatch(r"\w+", name) and recipe.__doc__ for name, recipe in RECIPES.items())


def test_scratch_starts_from_the_named_draws(digits_file, tmp_path):
    spec = experiment(digits_file, "scratch(initializer=he_uniform)")
    runner = Runner(spec, tmp_path, quiet=True)
    params, _ = runner.start_variables(spec.stages["scratch"], prepare(runner.assembly, "scratch"), None)
    for path, leaf in runner.random[0].items():
        assert same_leaves(leaf, params[path]) == (path.rpartition("/")[2] != "kernel"), path
    with pytest.raises(UserError, match="initializer draws nothing"):
        build(ExperimentSpec, config(digits_file, {"stages.finetune.initializer": {"kind": "he_normal"}}))


def test_gradual_unfreezing_stopped_between_its_portions_ends_the_same(digits_file, tmp_path):
    spec = experiment(digits_file, "gradual_unfreeze(parts=2)", steps=9).model_copy(
        update={"checkpoint_every": 4, "keep_checkpoints": 9})
    runner = Runner(spec, tmp_path, quiet=True)
    runner.run()
    whole = runner.result("gradual_unfreeze", "last")
    for step in (8, 9):
        shutil.rmtree(tmp_path / "checkpoints" / "gradual_unfreeze" / str(step))
    (tmp_path / "stages" / "gradual_unfreeze.json").unlink()
    again = Runner(spec, tmp_path, quiet=True)
    again.run()
    assert same_leaves(again.result("gradual_unfreeze", "last"), whole)
