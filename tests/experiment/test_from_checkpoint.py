"""A stage may begin with what another run left: `init="checkpoint:WORKDIR@stage"`."""

import numpy as np
import pytest
from tiny_experiment import config, run, same_leaves

from transfer_jax.core.errors import UserError
from transfer_jax.training.checkpoint import Checkpoints

DIGITS = {"kind": "task", "task": "digits", "stream": "train"}


def going_on(digits_file, source, changes=None, **stage):
    values = config(digits_file, changes)
    values["stages"] = {"go": {"init": f"checkpoint:{source}@pretrain", "steps": 2, "evaluate": {"test": "digits"},
                               "objective": {"terms": {"digits": DIGITS}}, **stage}}
    return values


def frozen(workdir, stage="go"):
    return Checkpoints(workdir / "checkpoints" / stage).restore()[1]["constants"]["frozen"]


@pytest.fixture(scope="module")
def source(tmp_path_factory, digits_file):
    """A finished run, and the parameters of its stage `pretrain`."""
    workdir = tmp_path_factory.mktemp("source")
    values = config(digits_file)
    values["stages"] = {"pretrain": values["stages"]["pretrain"]}
    run(values, workdir)
    return workdir, Checkpoints(workdir / "checkpoints" / "pretrain").restore()[1]["state"]["trainable"]


HEAD_ONLY = {"partition": (("heads/.*", "head"), (".*", "frozen")), "groups": {"head": {}}}


def test_every_seed_starts_from_the_checkpoint_of_one(source, digits_file, tmp_path):
    workdir, params = source
    run(going_on(digits_file, workdir, {"seeds": (0, 1)}, **HEAD_ONLY), tmp_path)
    for path, leaf in frozen(tmp_path).items():
        assert same_leaves(leaf, np.repeat(params[path], 2, axis=0)), path


def test_a_head_for_other_classes_is_new(source, digits_file, tmp_path):
    workdir, params = source
    changes = {"streams.train.classes": (1, 2, 3), "streams.test.classes": (1, 2, 3)}
    with pytest.raises(UserError, match="lacks 2 parameters of this model.*name what is meant to be new"):
        run(going_on(digits_file, workdir, changes, **HEAD_ONLY), tmp_path / "refused")
    run(going_on(digits_file, workdir, changes, new=("heads/digits/.*",), **HEAD_ONLY), tmp_path / "run")
    assert all(same_leaves(leaf, params[path]) for path, leaf in frozen(tmp_path / "run").items())


def test_best_needs_a_stage_that_keeps_it(digits_file, tmp_path):
    with pytest.raises(UserError, match="stage 'pretrain' keeps no best parameters"):
        run(config(digits_file, {"stages.head.select": "best"}), tmp_path)
