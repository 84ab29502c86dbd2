"""Sources and targets of the transferability ablation: published weights, and disjoint parts of real data."""

import os
from pathlib import Path

import pytest
from tiny_experiment import ROOT

from transfer_jax.core.config import load_config, load_module
from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import Component, build
from transfer_jax.experiment.assembly import Assembly
from transfer_jax.experiment.spec import ExperimentSpec
from transfer_jax.experiment.sweeping import Sweep
from transfer_jax.models import build_backbone

CONFIG = ROOT / "configs" / "ablations" / "transferability.py"
MODULE = load_module(CONFIG)
needs_data = pytest.mark.skipif(not (Path(os.environ.get("TRANSFER_JAX_DATA", ROOT.parent / "shared" / "data")) /
                                     "weights").is_dir(), reason="the folder of standard data sets is absent")


def test_a_sweep_is_over_the_sources():
    sweep = Sweep(f"{CONFIG}:data=xrays", Path())
    assert [sweep.reference(name) for name in sweep.runs] == [f"{CONFIG}:data=xrays,weights={name}"
                                                               for name in MODULE.SOURCES]


@needs_data
@pytest.mark.parametrize("name", MODULE.SOURCES)
def test_a_source_has_weights_a_classifier_and_images_of_its_size(name):
    file, backbone, shown = MODULE.SOURCES[name]
    assert (MODULE.WEIGHTS / file).exists() and build_backbone(Component(**backbone)).classifier
    spec = build(ExperimentSpec, load_config(f"{CONFIG}:weights={name},source_classes=10"))
    assert spec.streams["train"].image_size == shown["image_size"]
    assert list(spec.stages) == ["head", "finetune"]


@needs_data
@pytest.mark.parametrize(("name", "sizes"), [("house_numbers", (400, 683)), ("drawn_digits", (100, 500)),
                                             ("xrays", (100, 468)), ("sketches", (98, 98))])
def test_a_target_draws_other_images_for_every_seed_and_tests_on_none_of_them(name, sizes, tmp_path, monkeypatch):
    monkeypatch.setenv("TRANSFER_JAX_CACHE", str(tmp_path))
    spec = build(ExperimentSpec, load_config(f"{CONFIG}:data={name},seeds=2"))
    train, test = (Assembly(spec).stream(stream) for stream in ("train", "evaluation"))
    assert (train.size, test.size) == sizes and len(train.class_names) == len(test.class_names)
    assert not train.shared_rows
    if spec.streams["train"].split == spec.streams["evaluation"].split:
        assert not set(train.indices[1].tolist()) & set(test.indices[1].tolist())


@pytest.mark.parametrize("arg", ["data=sketchs", "weights=resnet21"])
def test_a_name_that_is_not_known_is_one_sentence(arg):
    with pytest.raises(UserError, match="did you mean"):
        load_config(f"{CONFIG}:{arg}")
