"""Features of frozen layers, computed once, train a stage like the images they are of; and where they must not."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from tiny_experiment import config, same_leaves, single

from transfer_jax.core.members import member
from transfer_jax.core.paths import unflatten
from transfer_jax.core.spec import Component, build
from transfer_jax.data.cached import CachedStream
from transfer_jax.experiment.assembly import Assembly
from transfer_jax.experiment.caching import find_cut, with_features
from transfer_jax.experiment.entering import freeze_point, moving_parts
from transfer_jax.experiment.runner import Runner
from transfer_jax.experiment.spec import ExperimentSpec
from transfer_jax.experiment.stage import fresh_variables, prepare
from transfer_jax.models import build_backbone
from transfer_jax.models.taps import Resumed

HEAD = {"partition": (("heads/.*", "head"), (".*", "frozen")), "groups": {"head": {}}}
TOP = {"partition": (("heads/.*", "head"), ("backbone/stage2.*", "top"), (".*", "frozen")),
       "groups": {"head": {}, "top": {}}}
NORM = {"model.backbones.backbone.norm": "batch"}
VIT = {"model.backbones.backbone": {"kind": "vit_tiny", "layers": 3, "width": 16, "heads": 2, "patch": 4}}
VIT_TOP = {"partition": (("heads/.*", "head"), ("backbone/(block2|norm).*", "top"), (".*", "frozen")),
           "groups": {"head": {}, "top": {}}}


def cut_of(digits_file, stage, changes=NORM):
    assembly = Assembly(single(digits_file, {"steps": 100, **stage}, changes))
    ready = prepare(assembly, "only")
    return find_cut(ready, assembly, "train")


@pytest.mark.parametrize(("stage", "changes", "tap", "goes_on"), [
    (HEAD, NORM, "pooled", False), (TOP, NORM, "stage1", True), (VIT_TOP, VIT, "block1", True)])
def test_a_stage_trains_on_features_as_on_images(stage, changes, tap, goes_on, digits_file, tmp_path):
    found = {}
    for cache in ("auto", "never"):
        # Plain descent: what Adam makes of gradients that are zero but for rounding, as of a key's bias, differs.
        values = config(digits_file, {**changes, "streams.train.per_class": "[:4]", "stages.head": {
            **config(digits_file)["stages"]["head"], **stage, "steps": 12, "cache": cache,
            "optimizer": {"kind": "sgd"}}})
        values["stages"] = {"head": values["stages"]["head"]}
        runner = Runner(build(ExperimentSpec, values), tmp_path / cache, quiet=True)
        runner.run()
        found[cache] = runner.result("head", "last")
    params, stats = found["auto"]
    for path, leaf in params.items():
        assert np.allclose(leaf, found["never"][0][path], rtol=2e-3, atol=2e-4), path
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4), stats, found["never"][1])
    cut = cut_of(digits_file, stage, changes)
    assert (cut.tap, cut.goes_on) == (tap, goes_on)


def of_member(feed, stream, number):
    axes = stream.feed_axes()
    return {name: member(part, number) if axes[name] == 0 else part for name, part in feed.items()}


def test_features_are_those_of_the_images_and_batches_are_drawn_alike(digits_file):
    spec = single(digits_file, {"steps": 100, **HEAD}, {**NORM, "seeds": (0, 1), "streams.train.per_class": "[:50%]"})
    assembly = Assembly(spec)
    ready = prepare(assembly, "only")
    params, stats = fresh_variables(assembly)
    feeds = {"train": assembly.feed("train")}
    after, placed, notes = with_features(ready, assembly, params, stats, feeds)
    stream, plain = after.program.streams["train"], assembly.stream("train")
    assert isinstance(stream, CachedStream) and "image" not in placed["train"]["data"] and "once" in notes[0]
    for number in (0, 1):
        cached = stream.batch(of_member(placed["train"], stream, number), number, 3)
        images = plain.batch(of_member(feeds["train"], plain, number), number, 3)
        assert np.array_equal(cached["index"], images["index"]) and np.array_equal(cached["label"], images["label"])
        tree = member({"params": unflatten(dict(params)), "batch_stats": stats}, number)
        taps, _ = assembly.model.taps(tree, {"backbone": images["image"]})
        np.testing.assert_allclose(cached["tap/pooled"], taps["pooled"], rtol=1e-5, atol=1e-6)


MOVING = {"partition": ((".*", "all"),), "groups": {"all": {}}}
LATE = {"partition": (("heads/.*", "head"), (".*", "late")), "groups": {"head": {}, "late": {"unfreeze_at": 50}}}
LORA = {"peft": {"low": {"kind": "lora", "targets": ("backbone/stage1_conv1",), "rank": 2}},
        "partition": (("peft/.*", "low"), ("heads/.*", "head"), (".*", "frozen")), "groups": {"low": {}, "head": {}}}


@pytest.mark.parametrize(("stage", "changes"), [
    (MOVING, NORM), (LATE, NORM), (LORA, NORM), ({**HEAD, "cache": "never"}, NORM),
    (HEAD, {**NORM, "streams.train.augment": ({"kind": "flip"},)}), (HEAD, {"streams.train.storage": "host"}),
    (HEAD, {"model.backbones.backbone": {**VIT["model.backbones.backbone"], "dropout": 0.1}})],
    ids=["moving", "late", "lora", "never", "augmented", "host", "dropout"])
def test_what_differs_from_step_to_step_is_not_kept(stage, changes, digits_file):
    assert cut_of(digits_file, stage, changes) is None


def test_new_leaves_high_up_leave_what_is_below_them(digits_file):
    high = {**LORA, "peft": {"low": {**LORA["peft"]["low"], "targets": ("backbone/stage2_conv1",)}}}
    assert cut_of(digits_file, high).tap == "stage1"


def test_a_short_stage_or_a_small_device_keeps_its_images(digits_file):
    for stage, changes in [({"steps": 3}, {}), ({"steps": 100}, {"streams.train.device_bytes": 1000})]:
        spec = single(digits_file, {**HEAD, **stage}, {**NORM, **changes})
        assembly = Assembly(spec)
        if assembly.stream("train").storage != "device":
            spec = spec.model_copy(update={"streams": {name: stream.model_copy(update={"storage": "device"})
                                                       for name, stream in spec.streams.items()}})
            assembly = Assembly(spec)
        ready = prepare(assembly, "only")
        params, stats = fresh_variables(assembly)
        after, _, notes = with_features(ready, assembly, params, stats, {"train": assembly.feed("train")})
        assert after is ready and not notes


def test_where_a_network_freezes():
    backbone = build_backbone(Component(kind="vit_tiny", layers=2))
    assert freeze_point(backbone, set()) == "pooled" and freeze_point(backbone, {"patches"}) is None
    assert freeze_point(backbone, {"norm"}) == "block0"  # the last norm counts to the block below it
    assert freeze_point(backbone, {"block1", "norm"}) == "block0" and freeze_point(backbone, {"elsewhere"}) is None
    assert moving_parts(["backbone/a/kernel", "peft/x/backbone/b/a", "heads/h/kernel", "other/c/k"], "backbone") == {
        "a", "b"}
    assert freeze_point(dataclasses.replace(backbone, scan=True), {"blocks"}) is None


@pytest.mark.parametrize("kind", ["alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet",
                                  "mobilenet_v1", "mobilenet_v2", "resnet18", "squeezenet1_1", "vgg11"])
def test_networks_go_on_behind_a_tap(kind):
    backbone = build_backbone(Component(kind=kind))
    taps, variables = jax.eval_shape(backbone.init_with_output, jax.random.key(0), backbone.example)
    tap = backbone.tap_names[len(backbone.tap_names) // 2]
    later = jax.eval_shape(backbone.apply, variables, Resumed(taps[tap], tap))
    assert later and tap not in later and {name: taps[name] for name in later} == later


def test_a_mobile_network_gives_behind_a_tap_what_it_gives_of_the_image():
    backbone = build_backbone(Component(kind="mobilenet_v1", width=1 / 32))
    images = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    taps, variables = backbone.init_with_output(jax.random.key(0), images)
    later = backbone.apply(variables, Resumed(taps["stage3"], "stage3"))
    np.testing.assert_allclose(later["stage5"], taps["stage5"], rtol=1e-5, atol=1e-6)


def test_a_stopped_stage_goes_on_with_the_same_features(digits_file, tmp_path):
    values = config(digits_file, {**NORM, "checkpoint_every": 6, "streams.train.per_class": "[:4]"})
    values["stages"] = {"head": {**values["stages"]["head"], "steps": 12}}
    runner = Runner(build(ExperimentSpec, values), tmp_path / "a", quiet=True)
    runner.run()
    shutil.rmtree(tmp_path / "a" / "checkpoints" / "head" / "12")
    (tmp_path / "a" / "stages" / "head.json").unlink()
    again = Runner(build(ExperimentSpec, values), tmp_path / "a", quiet=True)
    again.run()
    assert same_leaves(again.result("head", "last"), runner.result("head", "last"))
