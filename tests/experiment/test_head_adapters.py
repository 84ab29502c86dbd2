"""Adapters of which every head has a set of its own, on one trunk."""

import shutil

import jax
import numpy as np
import pytest
import tiny_experiment
from tiny_experiment import same_leaves, single, start, trained

from transfer_jax.core.errors import UserError
from transfer_jax.experiment.export import ExportedModel, export_model

HEADS = ("digits", "second")
MODEL = {"model.backbones.backbone": {"kind": "small_cnn", "widths": (4, 6, 8), "norm": "batch"},
         "model.heads.second": {"kind": "linear"}, "tasks.second": {"kind": "classification", "head": "second"}}
OWN = {"own": {"kind": "adapter", "targets": ("backbone/stage2_conv1",), "width": 3, "heads": HEADS}}
FROZEN = {"partition": (("peft/.*", "own"), ("heads/.*", "heads"), (".*", "frozen")),
          "groups": {"own": {}, "heads": {}}}
SGD = {"optimizer": {"kind": "sgd", "momentum": 0.0}, "lr": 0.3, "steps": 3, "evaluate": {"test": HEADS}}


def objective(heads=HEADS, **weights):
    return {"terms": {head: {"kind": "task", "task": head, "stream": "train", "weight": weights.get(head, 1.0),
                             "label_smoothing": 0.5 * (head == "second")} for head in heads}}


def stage(digits_file, heads=HEADS, own=OWN, weights=None, **entries):
    spec = {**SGD, **FROZEN, "peft": own, "objective": objective(heads, **(weights or {})), **entries}
    return single(digits_file, spec, MODEL)


@pytest.fixture(scope="module")
def both(digits_file):
    return trained(stage(digits_file))


def of_head(leaves, head):
    return {path: leaf for path, leaf in leaves.items() if path.startswith("peft/") and path.split("/")[-2] == head}


def test_it_starts_at_the_plain_network_and_each_head_trains_as_if_it_were_alone(digits_file, both):
    plain = trained(stage(digits_file, own={}, partition=(("heads/.*", "heads"), (".*", "frozen")),
                          groups={"heads": {}}, steps=1))
    alone = {head: trained(stage(digits_file, heads=(head,), own={"own": {**OWN["own"], "heads": (head,)}}))
             for head in HEADS}
    for head in HEADS:
        assert both.metrics[head][0] == plain.metrics[head][0]  # bit for bit
        np.testing.assert_allclose(both.metrics[head], alone[head].metrics[head], rtol=1e-5)
        own = of_head(both.after.trainable, head)
        assert set(own) == {f"peft/own/backbone/stage2_conv1/{head}/{leaf}"
                            for leaf in ("down", "down_bias", "up", "up_bias")}
        for path, leaf in own.items():
            np.testing.assert_allclose(leaf, alone[head].after.trainable[path], atol=1e-6, err_msg=path)
            assert (leaf != both.before.trainable[path]).any(), path
    assert same_leaves(both.before.batch_stats, both.after.batch_stats)  # the trunk stands still, norms and all
    assert not any(path.startswith("backbone/") for path in both.after.trainable)


def test_a_loss_sends_nothing_to_the_adapters_of_other_heads(digits_file):
    found = trained(stage(digits_file, weights={"second": 0.0}, steps=1))
    for path, leaf in of_head(found.after.trainable, "second").items():
        assert np.array_equal(leaf, found.before.trainable[path]), path
    moved = of_head(found.after.trainable, "digits")
    assert (moved["peft/own/backbone/stage2_conv1/digits/up"] != 0).any()


def test_layers_before_the_first_adapter_run_once_for_all_heads(digits_file):
    """Seen in the statistics of norms: those of the first stage move once, the later ones once for each head."""
    entries = {"partition": ((".*", "all"),), "groups": {"all": {}}, "steps": 1}
    found, plain = trained(stage(digits_file, **entries)), trained(stage(digits_file, own={}, **entries))
    assert found.ready.program.shared == {"backbone": "stage1"}
    after, once = found.after.batch_stats["backbone"], plain.after.batch_stats["backbone"]
    assert [name for name in after if not same_leaves(after[name], once[name])] == ["stage2_norm1", "stage3_norm1"]
    for path, leaf in plain.after.trainable.items():  # and the gradients of the trunk are those of the plain network
        np.testing.assert_allclose(found.after.trainable[path], leaf, atol=1e-5, err_msg=path)


def test_scores_exports_and_resumed_runs_use_the_adapters_of_the_head(digits_file, tmp_path):
    values = tiny_experiment.config(digits_file, MODEL)
    tuned = {**SGD, **FROZEN, "init": "pretrain", "steps": 6, "peft": OWN, "objective": objective()}
    swapped = {"init": "tuned", "objective": {"terms": {}}, "evaluate": {"test": HEADS}}
    values["stages"] = {"pretrain": {**values["stages"]["pretrain"], "steps": 3}, "tuned": tuned, "again": swapped}
    run = tiny_experiment.run(values, tmp_path)
    rows = {(row["stage"], row["stream"]): row["metrics"]
            for row in tiny_experiment.read_json(tmp_path / "results.json")}
    for head in HEADS:
        assert rows["tuned", f"test/{head}"] == rows["again", f"test/{head}"]
    model = ExportedModel(export_model(run.assembly, run.workdir, tmp_path / "exported", "tuned"))
    feed = run.assembly.feed("test")
    batch = run.assembly.stream("test").evaluation_batch({**feed, "rows": feed["rows"][0]}, 0, 60)
    for head in HEADS:
        right = np.asarray(model.predictor(head)(batch["image"])["prediction"] == batch["label"])
        np.testing.assert_allclose(right.mean(), rows["tuned", f"test/{head}"]["accuracy"][0], atol=1e-6)
    params = model.variables["params"]
    answers = model.predictor("digits")(batch["image"])["probabilities"]
    sets = params["peft"]["own"]["backbone"]["stage2_conv1"]
    sets["second"] = jax.tree.map(lambda leaf: leaf + 1, sets["second"])
    assert np.array_equal(answers, model.predictor("digits")(batch["image"])["probabilities"])
    sets["digits"] = jax.tree.map(lambda leaf: leaf + 1, sets["digits"])
    assert not np.allclose(answers, model.predictor("digits")(batch["image"])["probabilities"])
    whole = run.result("tuned", "last")[0]
    shutil.rmtree(tmp_path / "checkpoints" / "tuned" / "6")
    (tmp_path / "stages" / "tuned.json").unlink()
    assert same_leaves(tiny_experiment.run(values, tmp_path).result("tuned", "last")[0], whole)


def test_choices_that_do_not_go_together_are_told(digits_file):
    for own, entries, words in (
            ({"own": {**OWN["own"], "heads": ("digit",)}}, {}, "did you mean 'digits'"),
            ({"own": {"kind": "lora", "targets": ("backbone/.*conv.*",), "heads": HEADS}}, {}, "lora is worked into"),
            (OWN, {"batch_norm": "joint"}, "cannot read together"),
            (OWN, {"objective": {**objective(), "combine": {"kind": "mgda"}, "gradients_of": "pooled"}},
             "read different features")):
        with pytest.raises(UserError, match=words):
            start(stage(digits_file, own=own, **entries))
