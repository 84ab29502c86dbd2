"""Advice follows from what is measured, says why, never looks at test data, and runs as it says."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from tiny_experiment import ROOT, command, config, read_json, write_config

from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import build
from transfer_jax.evaluation.probes import Row
from transfer_jax.experiment.advice import Evidence, advise
from transfer_jax.experiment.advising import (
    recipe_reference,
    setting_of,
    shortened,
    takes_recipe,
    with_recipe,
)
from transfer_jax.experiment.runner import Runner
from transfer_jax.experiment.spec import ExperimentSpec
from transfer_jax.training.checkpoint import Checkpoints


def evidence(accuracies, examples=300, classes=10, distance=None, chance=0.1):
    rows = {f"stage{i}": Row("logistic", value, value - 0.05, value + 0.05, examples)
            for i, value in enumerate(accuracies, 1)}
    return Evidence(examples, classes, chance, rows, accuracies[-1] - 0.1, distance, {"logme": 0.5})


@pytest.mark.parametrize(("accuracies", "examples", "situation", "recipe"), [
    ([0.3, 0.5, 0.8], 300, "small_similar", "linear_probe"),
    ([0.5, 0.8, 0.6], 300, "small_different", "truncate(tap=stage2)"),
    ([0.3, 0.5, 0.8], 3000, "large_similar", "lp_ft"),
    ([0.5, 0.8, 0.6], 3000, "large_different", "situation(data=large_different)"),
    ([0.5, 0.801, 0.8], 300, "small_similar", "linear_probe"),  # within the error
    ([0.12, 0.11, 0.13], 300, "small_different", "situation(data=large_different)"),  # no better than chance
    ([0.12, 0.11, 0.118], 3000, "large_similar", "lp_ft"),  # better, though by little: the error is smaller
    ([0.11, 0.1, 0.105], 3000, "large_different", "situation(data=large_different)")])
def test_the_four_situations(accuracies, examples, situation, recipe):
    found = advise(evidence(accuracies, examples))
    assert (found.situation, found.recipe) == (situation, recipe) and found.candidates[0] == recipe
    assert len(set(found.candidates)) == len(found.candidates) >= 3
    assert f"{examples} examples of 10 classes" in found.reasons[0]
    assert advise(evidence(accuracies, examples), small=1).situation.startswith("large")


def test_chance_is_the_share_of_the_most_frequent_class():
    told = advise(evidence([0.3, 0.71, 0.72], chance=0.7))
    assert told.recipe == "situation(data=large_different)" and "tell nothing" in told.reasons[2]
    assert advise(evidence([0.3, 0.71, 0.72], chance=0.1)).recipe == "linear_probe"


def test_a_distance_is_told_where_it_was_measured():
    assert not any("distance" in reason for reason in advise(evidence([0.5, 0.8])).reasons)
    assert any("distance of 1.50" in reason for reason in advise(evidence([0.5, 0.8], distance=1.5)).reasons)


@pytest.fixture(scope="module")
def run(digits_file, tmp_path_factory):
    """A run of two seeds that has seen four examples a class, once."""
    values = config(digits_file, {"model.backbones.backbone.norm": "batch", "seeds": (0, 1), "checkpoint_every": 0})
    few = {"kind": "task", "task": "digits", "stream": "few"}
    first = values["stages"]["pretrain"]
    values["streams"]["few"] = {**values["streams"]["train"], "labels_per_class": 4}
    values["stages"] = {"pretrain": {**first, "steps": 1, "objective": {"terms": {"digits": few}}}}
    folder = tmp_path_factory.mktemp("run")
    Runner(build(ExperimentSpec, values), folder, quiet=True).run()
    return folder


@pytest.fixture
def tiny(digits_file):
    values = config(digits_file, {"model.backbones.backbone.norm": "batch"})
    return {**values, "stages": {"pretrain": values["stages"]["pretrain"]}}


def test_the_held_out_fifth_is_no_test_data_and_shares_nothing(tiny):
    spec = shortened(tiny, 0.5)
    assert spec.stages["pretrain"].steps == 3 and spec.stages["pretrain"].evaluate == {"check": "digits"}
    fit, check = spec.streams["train"], spec.streams["check"]
    assert (fit.within, check.within, check.split, fit.split) == ("[:80%]", "[80%:]", "train", "train")


def test_a_config_without_a_recipe_argument_gets_its_stages_written_over(tiny, tmp_path):
    path = write_config(tmp_path, tiny)
    setting = setting_of(build(ExperimentSpec, tiny))
    assert (setting.steps, setting.stream, setting.evaluate, setting.name) == (6, "train", ("test",), "digits")
    spec = build(ExperimentSpec, with_recipe(str(path), (), "partial(k=1)"))
    assert list(spec.stages) == ["partial"] and spec.tasks["digits"].head == "digits"


def test_a_config_with_a_recipe_argument_gets_its_own_stages(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.new("RGB", (24, 24), (40 * i, 0, 0)).save(tmp_path / name / f"{i}.png")
    reference = f"{ROOT}/configs/finetune.py:data={tmp_path},backbone=small_cnn,image_size=24"
    assert takes_recipe(reference)
    found = with_recipe(reference, (), "gradual_unfreeze(parts=2;factor=2.6)")
    assert list(found["stages"]) == ["gradual_unfreeze"] and build(ExperimentSpec, found)
    with pytest.raises(UserError, match="unknown recipe 'finetun'"):
        with_recipe(reference, (), "finetun")


def test_recipe_reference_replaces_the_recipe():
    assert recipe_reference("c.py:a=1,recipe=x,b=2", "y") == "c.py:a=1,b=2,recipe=y"
    assert recipe_reference("c.py", "y") == "c.py:recipe=y"


def test_the_command_advises_and_verifies(tiny, tmp_path):
    path = write_config(tmp_path / "config", tiny)
    done = command("advise", "--config", path, "--source", "train", "--verify", "--share", "1", "--workdir",
                   tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "situation: small" in done.stdout and "recipe:" in done.stdout and "trained briefly" in done.stdout
    advice = read_json(tmp_path / "run" / "advice.json")
    assert set(advice["verified"]) == set(advice["candidates"]) and advice["recipe"] in advice["candidates"]
    found = advice["evidence"]
    assert (found["examples"], found["classes"]) == (240, 10) and list(found["by_tap"])[-1] == "pooled"
    assert 0 < found["halved"] <= 1 and all(row["count"] == 240 for row in found["by_tap"].values())
    assert found["distance"] < 0.2  # the same data
    best = max(np.mean(values) for values in advice["verified"].values())
    assert np.mean(advice["verified"][advice["recipe"]]) == best


def test_a_network_of_ones_own_gets_advice_for_each_seed_beside_the_files_of_its_run(run):
    before = sorted(path.name for path in run.iterdir())
    done = command("advise", "--run", f"{run}@pretrain", "--stream", "few", "--small", "3")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in run.iterdir()) == sorted({"advice", *before})
    told = read_json(run / "advice" / "few.json")
    assert (told["stage"], told["stream"], told["small"]) == ("pretrain", "few", 3)
    assert list(told["advice"]) == ["0", "1"]
    first, second = told["advice"].values()
    assert first["evidence"]["examples"] == 40 and first["situation"].startswith("large")
    assert first["evidence"]["by_tap"] != second["evidence"]["by_tap"]  # another network, other examples
    assert f"seed 1: {second['situation'].replace('_', ', ')}, {second['recipe']}" in done.stdout


def test_candidates_are_tried_from_the_network_of_the_run_and_the_best_on_held_out_examples_is_advised(run):
    done = command("advise", "--run", f"{run}@pretrain", "--stream", "few", "--verify", "--steps", "2")
    assert done.returncode == 0, done.stderr
    told = read_json(run / "advice" / "few.json")
    first, second = told["advice"].values()
    assert set(first["verified"]) == set(first["candidates"])
    for one in (first, second):
        means = {recipe: np.mean(found) for recipe, found in one["verified"].items()}
        assert means[one["recipe"]] == max(means.values()) and len(next(iter(one["verified"].values()))) == 2
    folder = run / "advice" / "verify" / "few" / "linear_probe"
    config = read_json(folder / "config.json")
    stage = config["stages"]["linear_probe"]
    assert stage["init"] == f"checkpoint:{run}@pretrain" and stage["new"] == ["heads/.*"] and stage["steps"] == 2
    assert [config["streams"][name]["within"] for name in ("few", "check")] == ["[:80%]", "[80%:]"]
    before = Checkpoints(run / "checkpoints" / "pretrain").restore()[1]["state"]["trainable"]
    kept = Checkpoints(folder / "checkpoints" / "linear_probe").restore()[1]["constants"]["frozen"]
    assert kept and all(np.array_equal(leaf, before[path]) for path, leaf in kept.items())


@pytest.mark.parametrize(("flags", "words"), [
    (("--run", "RUN"), "--run and --stream belong together"), (("--stream", "few"), "give either --config"),
    (("--run", "RUN", "--stream", "fewer"), "did you mean 'few'?"),
    (("--run", "RUN", "--stream", "test"), "unknown stream 'test' in the stages that learn"),
    (("--run", "RUN@pretrian", "--stream", "few"), "did you mean 'pretrain'?"),
    (("--run", "RUN", "--stream", "few", "--share", "1"), "a run is as it was trained"),
    (("--run", "RUN", "--stream", "few", "--verify"), "needs --steps N"),
    (("--run", "RUN", "--stream", "few", "--steps", "3"), "needs --steps N"),
    (("--run", "RUN", "--stream", "few", "--small", "0"), "--small 0"),
    (("--run", "RUN", "--stream", "few", "--source", "fw"), "unknown stream 'fw'"),
    (("--run", "NOWHERE", "--stream", "few"), "holds no run")])
def test_what_does_not_fit_a_run_is_one_sentence(flags, words, run):
    before = sorted(run.rglob("*"))
    done = command("advise", *(flag.replace("RUN", str(run)) for flag in flags))
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert sorted(run.rglob("*")) == before


@pytest.mark.parametrize(("flags", "words"), [
    (("--verify",), "--workdir DIR"), (("--share", "2"), "--share 2.0"), (("--source", "sorce"), "unknown stream"),
    (("--smal", "3"), "did you mean --small")])
def test_what_does_not_fit_is_one_sentence(flags, words, tiny, tmp_path):
    done = command("advise", "--config", write_config(tmp_path, tiny), *flags)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_advice_is_for_classification(digits_file, tmp_path):
    values = config(digits_file)
    for stage in values["stages"].values():
        stage["objective"] = {}
    done = command("advise", "--config", write_config(tmp_path, values))
    assert done.returncode == 2 and "no stage of the config learns from labels" in done.stderr


def test_advice_is_kept_as_plain_values():
    assert dataclasses.asdict(advise(evidence([0.5, 0.8])))["evidence"]["by_tap"]["stage1"]["accuracy"] == 0.5
