"""A stage judged without target labels: they choose nothing, a stop loses nothing, and the report tells the cost."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from tiny_experiment import ROOT, config, read_json, run, same_leaves

from transfer_jax.core.config import load_config
from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import build, plain
from transfer_jax.evaluation.validators import VALIDATORS
from transfer_jax.experiment.assembly import Assembly
from transfer_jax.experiment.evaluators import Evaluators
from transfer_jax.experiment.report import write_report
from transfer_jax.experiment.rescoring import rescore
from transfer_jax.experiment.spec import ExperimentSpec
from transfer_jax.experiment.stage import fresh_variables
from transfer_jax.experiment.stage_run import StageRun
from transfer_jax.experiment.validation import Validation, check_source
from transfer_jax.experiment.workdir import Workdir
from transfer_jax.training.writers import read_metrics

VALIDATION = {"target": "photo", "source": "held_out", "task": "digits", "examples": 50}


@pytest.fixture(scope="module")
def photo_file(digits_file, tmp_path_factory):
    """The digits over noise, in negative: another domain. -> a function of whether its labels are shuffled."""
    folder = tmp_path_factory.mktemp("photo")

    def make(shuffled):
        path = folder / f"{shuffled}.npz"
        if not path.exists():
            draw, order, arrays = np.random.default_rng(0), np.random.default_rng(1), dict(np.load(digits_file))
            for part in ("train", "test"):
                image = arrays[f"{part}_image"]
                arrays[f"{part}_image"] = (0.6 * (255 - image) + 100 * draw.random(image.shape)).astype(np.uint8)
                if shuffled:
                    arrays[f"{part}_label"] = order.permutation(arrays[f"{part}_label"])
            np.savez(path, **arrays)
        return path

    return make


def adapted(digits_file, photo_file, shuffled=False, changes=None, **stage):
    """Two stages: the source, then both domains with their covariances aligned and validators at every third step."""
    photo = {"data": {"kind": "arrays", "path": str(photo_file(shuffled))}, "batch_size": 8, "domain": "photo"}
    values = config(digits_file, {"seeds": (0, 1), **(changes or {})})
    train = values["streams"]["train"]
    values["streams"] = {
        "train": {**train, "within": "[:80%]"}, "held_out": {**train, "within": "[80%:]"},
        "photo_unlabelled": {**photo, "labelled": False}, "photo": {**photo, "split": "test"}}
    terms = values["stages"]["pretrain"]["objective"]["terms"]
    align = {"kind": "deep_coral", "streams": {"source": "train", "target": "photo_unlabelled"}}
    values["stages"] = {
        "pretrain": {**values["stages"]["pretrain"], "evaluate": {"photo": "digits"}},
        "adapt": {"init": "pretrain", "steps": 9, "lr": 1e-2, "objective": {"terms": {**terms, "align": align}},
                  "evaluate": {"photo": "digits"}, "eval_every": 3, "validation": VALIDATION, **stage}}
    return plain(values)


BY_SND = {"best": {"stream": "photo", "metric": "validator/snd"}}


@pytest.fixture(scope="module")
def finished(digits_file, photo_file, tmp_path_factory):
    """Workdir of a run whose best parameters a validator chooses."""
    folder = tmp_path_factory.mktemp("finished")
    run(adapted(digits_file, photo_file, **BY_SND), folder)
    return folder


def validated(workdir, stage="adapt", stream="photo"):
    """Step -> validator -> value of each seed."""
    return {line["step"]: {name: values for name, values in line["metrics"].items() if name.startswith("validator/")}
            for line in read_metrics(workdir) if line["stage"] == stage and line.get("stream") == stream}


def best(workdir):
    return Workdir(workdir).checkpoints("adapt").restore()[1]["best"]


def test_every_evaluation_point_has_all_validators_of_each_seed_and_the_start_too(finished):
    found = validated(finished)
    assert list(found) == [0, 3, 6, 9]
    for metrics in found.values():
        assert set(metrics) == {f"validator/{name}" for name in VALIDATORS}
        assert all(len(values) == 2 and np.isfinite(values).all() for values in metrics.values())
    assert not any(line["step"] == 0 for line in read_metrics(finished) if line["stage"] == "pretrain")
    assert not any(name.startswith("validator/") for row in read_json(finished / "results.json")
                   for name in row["metrics"])  # no scores, and not comparable over stages


def test_a_checkpoint_is_judged_again_as_in_the_run(finished, tmp_path):
    rescore(finished, "adapt", None, "last", tmp_path / "scores.json")
    scores = read_json(tmp_path / "scores.json")["photo"]
    line = next(line for line in read_metrics(finished)
                if line["stage"] == "adapt" and line.get("stream") == "photo" and line["step"] == 9)
    assert set(scores) == set(line["metrics"])
    for name, values in scores.items():
        np.testing.assert_allclose(values, line["metrics"][name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_best_holds_what_the_validator_prefers_after_the_start(finished):
    found = {step: metrics["validator/snd"] for step, metrics in validated(finished).items() if step}
    kept = best(finished)
    for seed in range(2):
        step = max(found, key=lambda step, seed=seed: found[step][seed])
        assert kept["step"][seed] == step and kept["score"][seed] == found[step][seed]
    accuracy = {line["step"]: line["metrics"]["accuracy"] for line in read_metrics(finished)
                if line["stage"] == "adapt" and line.get("stream") == "photo"}
    row = next(row for row in read_json(finished / "results.json") if row["selection"] == "best")
    assert row["metrics"]["accuracy"] == pytest.approx([accuracy[int(kept["step"][seed])][seed] for seed in range(2)])


def test_target_labels_choose_nothing(finished, digits_file, photo_file, tmp_path):
    """With the target's labels shuffled every validator, the choice and all parameters are the same to the bit."""
    run(adapted(digits_file, photo_file, shuffled=True, **BY_SND), tmp_path)
    assert validated(tmp_path) == validated(finished)
    trees = [Workdir(path).checkpoints("adapt").restore()[1] for path in (tmp_path, finished)]
    assert same_leaves(trees[0], trees[1])
    accuracies = [[row["metrics"]["accuracy"] for row in read_json(path / "results.json")]
                  for path in (tmp_path, finished)]
    assert accuracies[0] != accuracies[1]  # the labels that are scored did change


@pytest.mark.parametrize("broken_at", [0, 3, 6, 9])
def test_stopped_at_any_evaluation_it_ends_with_the_same_bits(finished, digits_file, photo_file, tmp_path, monkeypatch,
                                                              broken_at):
    measure = StageRun._measure

    def breaking(self, step, *arguments, **named):
        if self.name == "adapt" and step == broken_at:
            raise KeyboardInterrupt
        return measure(self, step, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(StageRun, "_measure", breaking)
        with pytest.raises(KeyboardInterrupt):
            run(adapted(digits_file, photo_file, **BY_SND), tmp_path)
    run(adapted(digits_file, photo_file, **BY_SND), tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes()
    assert same_leaves(best(tmp_path), best(finished))
    for moment in ("start", "end"):
        one, other = (dict(np.load(path / "predictions" / "adapt" / "validation" / f"{moment}.npz"))
                      for path in (tmp_path, finished))
        assert same_leaves(one, other)


def test_the_report_has_the_tables_and_the_picture(finished):
    paths = write_report([finished], finished)
    text = paths.markdown.read_text()
    part = text[text.index("## Choosing without target labels"):text.index("## Learning curves")]
    for rule in ("start", "last", "snd", "dev", "oracle"):
        assert f"| {rule} |" in part or f"| **{rule}** |" in part
    assert "accuracy on photo" in part and "regret" in part and "A-distance of source and target" in part
    assert any(path.name.startswith("domains_") for path in paths.figures)


def test_the_pass_is_exact_over_ragged_ends_and_thinned_by_a_draw(digits_file, photo_file):
    spec = build(ExperimentSpec, adapted(digits_file, photo_file))
    assembly = Assembly(spec)
    whole, part = (assembly.stream("photo").thinned(most) for most in (1000, 25))
    assert whole is assembly.stream("photo") and part.size == 25 and whole.size == 60
    assert np.isin(part.indices, whole.indices).all() and len(np.unique(part.indices)) == 25
    assert len(np.unique(np.diff(part.indices[0]))) > 1  # no comb
    labels = whole.dataset.labels
    evaluators = Evaluators(assembly)
    params, stats = fresh_variables(assembly)
    found = evaluators.outputs("photo", "digits", "pooled", 25, params, stats)
    full = evaluators.outputs("photo", "digits", "pooled", 1000, params, stats)
    for seed in range(2):
        assert found[seed]["logits"].shape == (25, 10) and full[seed]["logits"].shape == (60, 10)
        np.testing.assert_array_equal(found[seed]["label"], labels[part.indices[seed]])
        rows = np.searchsorted(whole.indices[seed], part.indices[seed])
        np.testing.assert_allclose(found[seed]["features"], full[seed]["features"][rows], rtol=1e-5, atol=1e-6)
    values = adapted(digits_file, photo_file)
    values["streams"]["photo"]["storage"] = "host"
    again = Evaluators(Assembly(build(ExperimentSpec, values))).outputs("photo", "digits", "pooled", 25, params, stats)
    np.testing.assert_allclose(again[1]["logits"], found[1]["logits"], rtol=1e-5, atol=1e-6)


SCRIPT = """
import json, sys
from pathlib import Path
import jax
from tiny_experiment import run
assert jax.device_count() == 4
run(json.loads(sys.argv[1]), Path(sys.argv[2]))
"""


def test_four_devices_and_vmapped_seeds_give_the_scores_of_one(finished, digits_file, photo_file, tmp_path):
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu",
                   "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
    values = adapted(digits_file, photo_file, **BY_SND) | {"members": "vmap"}
    done = subprocess.run([sys.executable, "-c", SCRIPT, json.dumps(values), str(tmp_path)], capture_output=True,
                          text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    ours, theirs = validated(finished), validated(tmp_path)
    assert list(ours) == list(theirs)
    for name in ours[0]:  # later steps differ by the rounding of training
        np.testing.assert_allclose(theirs[0][name], ours[0][name], atol=0.03 if name.endswith(("distance", "accuracy"))
                                   else 2e-3, rtol=2e-3, err_msg=name)


def test_without_a_source_and_before_any_training(digits_file, photo_file, tmp_path):
    """A stage that only evaluates is judged once; without a source by what needs none."""
    values = adapted(digits_file, photo_file)
    alone = {"target": ("photo", "photo_unlabelled"), "task": "digits"}
    values["stages"]["adapt"] = {"init": "pretrain", "steps": 0, "evaluate": {"photo": "digits"}, "validation": alone}
    run(values, tmp_path)
    for stream in alone["target"]:
        found = validated(tmp_path, stream=stream)
        assert list(found) == [0]
        assert set(found[0]) == {"validator/snd", "validator/entropy", "validator/information", "validator/bnm"}
    run(values, tmp_path)
    assert "There was nothing to choose" in write_report([tmp_path], tmp_path).markdown.read_text()


def test_an_average_is_judged_where_it_is_the_result(digits_file, photo_file, tmp_path):
    run(adapted(digits_file, photo_file, ema={"decay": 0.5}), tmp_path)
    found = validated(tmp_path)
    assert list(found) == [0, 3, 6, 9] and not any("raw_" in name for name in found[9])


@pytest.mark.parametrize(("stage", "words"), [
    ({"best": {"stream": "photo"}}, "chooses by labels of stream 'photo'"),
    ({"best": {"stream": "photo", "metric": "validator/sdn"}}, "unknown validator 'sdn'"),
    ({"best": {"stream": "photo", "metric": "validator/snd", "mode": "min"}}, "better when larger"),
    ({"best": {"stream": "held_out", "metric": "validator/snd"}}, "to be a target of"),
    ({"validation": {**VALIDATION, "target": "phot"}}, "did you mean 'photo'"),
    ({"validation": {**VALIDATION, "target": ()}}, "names no stream"),
    ({"validation": {**VALIDATION, "task": "digit"}}, "did you mean 'digits'"),
    ({"validation": {**VALIDATION, "source": "photo_unlabelled"}}, "labelled=False"),
    ({"validation": {**VALIDATION, "source": "photo"}}, "both source and target"),
    ({"validation": {**VALIDATION, "source": "train"}}, "learns from examples of 'train'"),
    ({"validation": {**VALIDATION, "source": "overlapping"}}, "learns from examples of 'overlapping'"),
    ({"validation": {**VALIDATION, "source": "fewer_classes"}}, "other classes"),
    ({"validation": {**VALIDATION, "validators": ("entropy", "dve")}}, "unknown validator 'dve'"),
    ({"validation": {"target": "photo", "task": "digits", "validators": ("dev",)}}, "'dev' needs labelled examples"),
    ({"validation": {**VALIDATION, "tap": "poled"}}, "did you mean 'pooled'"),
    ({"validation": {**VALIDATION, "validator": ("snd",)}}, "did you mean 'validators'")])
def test_what_cannot_be_is_told_in_a_sentence_before_training(digits_file, photo_file, tmp_path, stage, words):
    values = adapted(digits_file, photo_file, **stage)
    values["streams"]["overlapping"] = {**values["streams"]["train"], "within": "[70%:]"}
    values["streams"]["fewer_classes"] = {**values["streams"]["held_out"], "classes": ("1", "2")}
    with pytest.raises(UserError, match=words) as error:
        run(values, tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "metrics.jsonl").exists() or not (tmp_path / "metrics.jsonl").read_text()


def test_the_domain_adaptation_of_the_matrix_can_be_judged_with_a_source_that_is_held_out():
    spec = build(ExperimentSpec, load_config(f"{ROOT / 'configs/matrix/domain_adaptation.py'}:validate,seeds=1"))
    assembly = Assembly(spec)
    for stage in ("adversarial", "coral"):
        assert spec.stages[stage].eval_every == 20
        check_source(assembly, stage)
    plain_spec = build(ExperimentSpec, load_config(str(ROOT / "configs/matrix/domain_adaptation.py")))
    assert all(stage.validation is None for stage in plain_spec.stages.values())


def test_outputs_that_are_not_finite_are_told_with_their_place(digits_file, photo_file):
    values = adapted(digits_file, photo_file)
    values["streams"]["photo"]["std"] = 1e-38  # images beyond the largest float
    assembly = Assembly(build(ExperimentSpec, values))
    validation = Validation(Evaluators(assembly), "adapt")
    with pytest.raises(UserError, match="stage 'adapt' on 'photo', seed 0: .*not finite"):
        validation.metrics(validation.outputs(*fresh_variables(assembly)))


def test_choosing_by_target_labels_stays_possible_as_an_oracle(digits_file, photo_file, tmp_path):
    run(adapted(digits_file, photo_file, best={"stream": "photo", "oracle": True}), tmp_path)
    assert {row["selection"] for row in json.loads((tmp_path / "results.json").read_text())} == {"last", "oracle"}
