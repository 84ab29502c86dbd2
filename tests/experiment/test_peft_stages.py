"""Stages that train new leaves beside a frozen model."""

import json
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_experiment
from safetensors.numpy import load_file

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import Component
from transfer_jax.experiment.export import PARAMETERS, ExportedModel, export_model
from transfer_jax.experiment.low_rank_files import RECORD, read_low_rank, write_low_rank
from transfer_jax.experiment.runner import Runner
from transfer_jax.models import build_backbone
from transfer_jax.models.model import Model
from transfer_jax.params.peft import PeftSpec, new_leaves
from transfer_jax.pretrained.conversion import leaf_shapes
from transfer_jax.pretrained.formats import read_tensors
from transfer_jax.pretrained.own_files import own_leaves
from transfer_jax.pretrained.peft_files import CONFIG, TENSORS

DIGITS = {"kind": "task", "task": "digits", "stream": "train"}
LOW_RANK = {"init": "pretrain", "steps": 6, "lr": 0.05, "objective": {"terms": {"digits": DIGITS}},
            "peft": {"low": {"kind": "lora", "targets": ("backbone/.*conv.*",), "rank": 2}},
            "partition": (("peft/.*", "low"), ("heads/.*", "head"), (".*", "frozen")),
            "groups": {"low": {}, "head": {}}, "evaluate": {"test": "digits"}}


def with_stages(digits_file, **stages):
    values = tiny_experiment.config(digits_file)
    return {**values, "stages": {"pretrain": values["stages"]["pretrain"], **stages}}


def test_only_the_new_leaves_move_and_later_stages_start_from_the_merged_model(digits_file, tmp_path):
    after = {"objective": {"terms": {}}, "steps": None, "evaluate": {"test": "digits"}, "init": "tuned"}
    run = tiny_experiment.run(with_stages(digits_file, tuned=LOW_RANK, after=after), tmp_path)
    before, tuned, later = (run.result(name, "last")[0] for name in ("pretrain", "tuned", "after"))
    assert set(before) == set(tuned) == set(later)
    changed = {path for path in before if not np.array_equal(before[path], tuned[path])}
    kernels = {path for path in before if path.startswith("backbone") and "conv" in path and path.endswith("kernel")}
    assert changed == kernels | {"heads/digits/dense/kernel", "heads/digits/dense/bias"} and len(kernels) >= 2
    for path in sorted(kernels)[-1:]:
        difference = np.asarray(tuned[path] - before[path])[0]
        assert np.linalg.matrix_rank(difference.reshape(-1, difference.shape[-1]), tol=1e-6) == 2
    # What was scored in the stage is the merged model, also when it is read back from the file.
    rows = json.loads((tmp_path / "results.json").read_text())
    scores = {row["stage"]: row["metrics"] for row in rows}
    assert scores["tuned"] == scores["after"]
    folder = export_model(run.assembly, run.workdir, tmp_path / "exported", "tuned")
    for name, leaf in load_file(folder / PARAMETERS).items():
        np.testing.assert_array_equal(leaf, later[name.removeprefix("params/")][0], err_msg=name)
    run._results.clear()
    for path, leaf in run.result("tuned", "last")[0].items():
        np.testing.assert_array_equal(leaf, later[path], err_msg=path)


def test_a_stopped_stage_goes_on_with_its_new_leaves(digits_file, tmp_path):
    values = with_stages(digits_file, tuned=LOW_RANK)
    whole = tiny_experiment.run(values, tmp_path).result("tuned", "last")[0]
    shutil.rmtree(tmp_path / "checkpoints" / "tuned" / "6")  # cut back to the checkpoint of step 4
    (tmp_path / "stages" / "tuned.json").unlink()
    resumed = tiny_experiment.run(values, tmp_path).result("tuned", "last")[0]
    for path, leaf in whole.items():
        np.testing.assert_array_equal(leaf, resumed[path], err_msg=path)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_low_rank_leaves_are_a_folder_of_their_own_that_a_stage_starts_from(kind, digits_file, tmp_path):
    stage = {**LOW_RANK, "peft": {"low": {**LOW_RANK["peft"]["low"], "kind": kind, "alpha": 3.0}}, "steps": 3}
    config = with_stages(digits_file, tuned=stage)
    run = tiny_experiment.run(config, tmp_path / "run")
    folder = export_model(run.assembly, run.workdir, tmp_path / "model") / "peft" / "low"
    assert {path.name for path in folder.iterdir()} == {CONFIG, TENSORS, RECORD}
    assert (folder / TENSORS).stat().st_size < (tmp_path / "model" / PARAMETERS).stat().st_size
    start = {**stage, "peft": {"low": {**stage["peft"]["low"], "source": str(folder)}}, "steps": 0}
    again = tiny_experiment.run(with_stages(digits_file, again=start), tmp_path / "again")
    tuned, found, before = (other.result(name, "last")[0] for other, name in (
        (run, "tuned"), (again, "again"), (run, "pretrain")))
    for path in before:
        if path.startswith("backbone/"):
            np.testing.assert_array_equal(found[path], tuned[path], err_msg=path)
    assert any((tuned[path] != before[path]).any() for path in before)
    for change, words in (({"alpha": 4.0}, f"kind='{kind}', rank=2, alpha=3.0"),
                          ({"targets": ("backbone/stage1_conv1",)}, "target the modules that it holds")):
        wrong = {**start, "init": "fresh", "peft": {"low": {**start["peft"]["low"], **change}}}
        spec = tiny_experiment.single(digits_file, wrong)
        with pytest.raises(UserError, match=words):
            Runner(spec, tmp_path / words[:6], quiet=True).run()


def test_published_names_are_used_where_they_have_a_place_for_all(tmp_path):
    backbone = build_backbone(Component(kind="bert", layers=1, width=16, heads=2, mlp_width=8, vocabulary=9,
                                        positions=4))
    model = Model({"backbone": backbone}, {})
    spec = PeftSpec(kind="lora", targets=("backbone/block0/attention/(query|value)",), rank=2)
    leaves = {f"backbone/{path}": leaf for path, leaf in leaf_shapes(backbone).items()}
    shapes = jax.eval_shape(lambda: new_leaves({"low": spec}, {path: jnp.zeros(leaf.shape) for path, leaf in
                                                               leaves.items()}, jnp.uint32(0)))
    params = {path: np.random.default_rng(0).normal(size=leaf.shape).astype(np.float32)
              for path, leaf in shapes.items()}
    write_low_rank(tmp_path, {"low": spec}, params, model)
    folder = tmp_path / "peft" / "low"
    assert json.loads((folder / RECORD).read_text()) == {"layout": "transformers", "backbone": "backbone"}
    own = {path.removeprefix("peft/low/"): leaf for path, leaf in params.items()}
    assembly = SimpleNamespace(model=model)
    for _ in range(2):  # with our record, and as the library itself writes it
        found = read_low_rank(spec.model_copy(update={"source": str(folder)}), own, assembly, "where")
        assert set(found) == set(own) and all(np.array_equal(found[path], own[path]) for path in own)
        (folder / RECORD).unlink(missing_ok=True)


ADAPTED = {**LOW_RANK, "peft": {"small": {"kind": "adapter", "targets": ("backbone/.*conv.*",), "width": 3}}}


def test_adapters_stay_in_the_result_and_later_stages_and_the_export_run_with_them(digits_file, tmp_path):
    after = {"objective": {"terms": {}}, "steps": None, "evaluate": {"test": "digits"}, "init": "tuned"}
    head = {**LOW_RANK, "init": "tuned", "peft": {}, "steps": 2, "groups": {"head": {}},
            "partition": (("heads/.*", "head"), (".*", "frozen"))}
    config = with_stages(digits_file, tuned=ADAPTED, after=after, head=head)
    config["model"]["backbones"]["backbone"]["norm"] = "batch"
    run = tiny_experiment.run(config, tmp_path)
    before, tuned, later, last = (run.result(name, "last")[0] for name in ("pretrain", "tuned", "after", "head"))
    new = {path for path in tuned if path.startswith("peft/small/backbone/")}
    assert new and set(tuned) == set(before) | new == set(later)
    for path in before:  # nothing else moved, statistics included
        assert np.array_equal(before[path], tuned[path]) != path.startswith("heads/"), path
    assert all(np.array_equal(tuned[path], last[path]) for path in tuned if not path.startswith("heads/"))
    assert tiny_experiment.same_leaves(run.result("pretrain", "last")[1], run.result("tuned", "last")[1])
    rows = json.loads((tmp_path / "results.json").read_text())
    scores = {row["stage"]: row["metrics"] for row in rows}
    assert scores["tuned"] == scores["after"] != scores["pretrain"]
    folder = export_model(run.assembly, run.workdir, tmp_path / "exported", "tuned")
    model, stream = ExportedModel(folder), run.assembly.stream("test")
    feed = run.assembly.feed("test")
    batch = stream.evaluation_batch({**feed, "rows": feed["rows"][0]}, 0, 60)
    accuracy = np.mean(model.predictor("digits")(batch["image"])["prediction"] == batch["label"])
    np.testing.assert_allclose(accuracy, scores["tuned"]["accuracy"][0], atol=1e-6)
    with pytest.raises(UserError, match="which no plain model has a place for"):
        own_leaves(read_tensors(folder / PARAMETERS))
    continued = {**config, "stages": {"again": {**ADAPTED, "init": f"checkpoint:{tmp_path}@tuned", "peft": {}}}}
    found = tiny_experiment.run(continued, tmp_path / "other").result("again", "last")[0]
    assert any((found[path] != tuned[path]).any() for path in new)
    shutil.rmtree(tmp_path / "checkpoints" / "tuned" / "6")
    (tmp_path / "stages" / "tuned.json").unlink()
    resumed = tiny_experiment.run(config, tmp_path).result("tuned", "last")[0]
    assert tiny_experiment.same_leaves(resumed, tuned)


@pytest.mark.parametrize(("stage", "words"), [
    ({"peft": ADAPTED["peft"]}, "has 'small' already"),
    ({"init": {"tuned": 0.5, "pretrain": 0.5}}, "needs the same adapters and prompts in all of them"),
])
def test_adapters_that_do_not_fit_together_are_refused(stage, words, digits_file, tmp_path):
    after = {**LOW_RANK, "init": "tuned", "peft": {}, **stage}
    with pytest.raises(UserError, match=words):
        tiny_experiment.run(with_stages(digits_file, tuned=ADAPTED, after=after), tmp_path)


def test_a_target_that_matches_nothing_stops_before_training(digits_file, tmp_path):
    stage = {**LOW_RANK, "peft": {"low": {"kind": "lora", "targets": ("backbone/convolution",)}}}
    with pytest.raises(UserError, match="tuned.peft.low.targets: 'backbone/convolution' matches no module"):
        tiny_experiment.run(with_stages(digits_file, tuned=stage), tmp_path)


def test_a_rule_of_sharding_for_a_finished_stage_is_no_mistake_of_a_run_that_goes_on(digits_file, tmp_path):
    tuned = {**LOW_RANK, "steps": 1}
    values = with_stages(digits_file, tuned=tuned, head={**tuned, "init": "tuned", "peft": {}, "groups": {"head": {}},
                                                         "partition": (("heads/.*", "head"), (".*", "frozen"))})
    values["sharding"] = (("peft/.*", "replicate"), (".*", "fsdp"))
    tiny_experiment.run(values, tmp_path)
    (tmp_path / "stages" / "head.json").unlink()
    again = tiny_experiment.run(values, tmp_path)
    assert again.workdir.record("head") is not None
