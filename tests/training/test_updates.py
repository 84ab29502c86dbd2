"""Objectives beyond one loss: alternating updates, gradient rules, learned weights, adversarial terms."""

import jax
import numpy as np
import pytest
from tiny_experiment import same_leaves, single, start, trained

from transfer_jax.core.errors import UserError
from transfer_jax.params.schedules import SCHEDULES
from transfer_jax.training.chunk import compile_chunk

DIGITS = {"kind": "task", "task": "digits", "stream": "train"}
SGD = {"kind": "sgd", "momentum": 0.0}
TWO_GROUPS = {"partition": (("heads/.*", "head"), (".*", "body")), "groups": {"head": {}, "body": {}}}
DISCRIMINATOR = {"model.heads.domain": {"kind": "mlp", "outputs": 1, "hidden": (8,)}}


def adversarial(**more):
    return {"kind": "domain_adversarial", "head": "domain", "streams": {"source": "train", "target": "test"},
            "schedule": "constant", **more}


def test_alternating_updates_move_their_own_groups(digits_file):
    def stage(*updates):
        return {**TWO_GROUPS, "objective": {"updates": updates}, "optimizer": SGD, "lr": 0.1, "steps": 1}

    head = {"terms": {"first": DIGITS}, "groups": ("head",), "repeats": 3}
    body = {"terms": {"second": DIGITS}, "groups": ("body",)}
    only = trained(single(digits_file, stage(head)))
    both = trained(single(digits_file, stage(head, body)))
    for path, leaf in both.after.trainable.items():
        changed = not np.array_equal(leaf, both.before.trainable[path])
        assert changed, path
        assert np.array_equal(only.after.trainable[path], only.before.trainable[path]) == path.startswith("backbone")
        if path.startswith("heads"):
            np.testing.assert_allclose(leaf, only.after.trainable[path], atol=1e-6)
    # The second update sees the head that three repeats of the first have left, on the same batch.
    assert both.metrics["second"][0, 0] < both.metrics["first"][0, 0]


def test_metrics_bear_their_own_names_with_several_updates_and_clipping(digits_file):
    updates = ({"terms": {"z": DIGITS}, "groups": ("head",)},
               {"terms": {"a": {**DIGITS, "weight": 3.0}}, "groups": ("body",)})
    stage = {**TWO_GROUPS, "optimizer": SGD, "lr": 1e-6, "objective": {"updates": updates}, "steps": 2,
             "clip_norm": 1e-3}
    found = trained(single(digits_file, stage)).metrics
    np.testing.assert_allclose(found["a"], found["z"], rtol=1e-4)  # hardly moved: the same loss of the same batch
    np.testing.assert_allclose(found["loss"], 3 * found["a"], rtol=1e-6)  # of the last update
    assert (found["gradient_norm"] < found["loss"]).all()


def test_the_optimizer_of_a_group_counts_its_own_updates(digits_file):
    updates = ({"terms": {"a": DIGITS}, "groups": ("head",), "repeats": 2},
               {"terms": {"b": DIGITS}, "groups": ("body",)})
    found = trained(single(digits_file, {**TWO_GROUPS, "objective": {"updates": updates}, "steps": 4}))
    counts = {group: {int(leaf[0]) for leaf in jax.tree.leaves(state) if leaf.dtype == np.int32}
              for group, state in found.after.opt_state.inner_states.items() if group != "frozen"}
    assert counts == {"head": {8}, "body": {4}}


def test_one_update_may_be_written_as_its_terms(digits_file):
    short = trained(single(digits_file, {"steps": 4}))
    long = trained(single(digits_file, {"steps": 4, "objective": {"updates": ({"terms": {"digits": DIGITS}},)}}))
    assert same_leaves(short.after, long.after)


def test_weights_and_their_schedules_scale_the_loss(digits_file):
    term = {**DIGITS, "weight": 3.0, "weight_schedule": {"kind": "linear"}}
    found = trained(single(digits_file, {"objective": {"terms": {"digits": term}}, "steps": 5}))
    factors = [3.0 * float(SCHEDULES["linear"](step, 5)) for step in range(5)]
    np.testing.assert_allclose(found.metrics["loss"][:, 0], found.metrics["digits"][:, 0] * factors, rtol=1e-5)


def test_the_sum_rule_equals_the_joint_loss_and_pcgrad_runs(digits_file):
    smooth = {**DIGITS, "label_smoothing": 0.2}
    terms = {"digits": DIGITS, "smooth": smooth}
    runs = {kind: trained(single(digits_file, {"objective": {"terms": terms, "combine": {"kind": kind}},
                                               "optimizer": SGD, "lr": 0.1, "steps": 6}))
            for kind in ("fixed", "sum", "pcgrad")}
    np.testing.assert_allclose(runs["sum"].metrics["loss"], runs["fixed"].metrics["loss"], atol=1e-5)
    # Two smoothings of one loss do not conflict, so the projection changes next to nothing.
    np.testing.assert_allclose(runs["pcgrad"].metrics["loss"], runs["sum"].metrics["loss"], atol=1e-3)


@pytest.mark.parametrize("kind, metric", [("upgrad", "combination_residual"), ("random_weights", "weight_smooth"),
                                          ("impartial_losses", "weight_smooth")])
def test_a_combination_trains_and_its_metrics_are_logged(digits_file, kind, metric):
    terms = {"digits": DIGITS, "smooth": {**DIGITS, "label_smoothing": 0.2}}
    found = trained(single(digits_file, {"objective": {"terms": terms, "combine": {"kind": kind}}, "steps": 3}))
    assert np.isfinite(found.metrics["loss"]).all() and np.isfinite(found.metrics[metric]).all()


def test_learned_weights_move_toward_their_optimum(digits_file):
    stage = {"objective": {"terms": {"digits": DIGITS}, "combine": {"kind": "uncertainty"}}, "steps": 20, "lr": 0.02}
    found = trained(single(digits_file, stage))
    path = "objective/log_variances/digits"
    assert found.before.trainable[path][0] == 0
    assert found.after.trainable[path][0] > 0.1  # the optimum is log(2 L), about 1.5 for untrained classes
    weights = found.metrics["weight_digits"][:, 0]
    assert weights[0] == 1 and (np.diff(weights) < 0).all()


def test_the_adversarial_term_moves_the_backbone_against_the_classifier(digits_file):
    def moved(scale):
        terms = {"domain": adversarial(max_scale=scale)}
        ready, state, constants, feeds, seeds, _ = start(single(
            digits_file, {"objective": {"terms": terms}, "optimizer": SGD, "lr": 1.0, "steps": 1}, DISCRIMINATOR))
        before = jax.device_get(state.trainable)
        after = compile_chunk([(ready.program, frozenset({"all"}))], 1)(
            (state,), (constants,), (feeds,), (seeds,), np.int32([0]), np.int32([1]))[0].trainable
        return {path: np.asarray(after[path]) - before[path] for path in before}

    against, along = moved(1.0), moved(-1.0)
    for path, change in against.items():
        sign = -1 if path.startswith("backbone") else 1
        np.testing.assert_allclose(change, sign * along[path], atol=1e-6, err_msg=path)
    assert max(np.abs(change).max() for path, change in against.items() if path.startswith("backbone")) > 1e-4


def test_joint_forward_lets_batch_norm_see_both_streams(digits_file):
    terms = {"digits": DIGITS, "domain": adversarial()}
    changes = {**DISCRIMINATOR, "model.backbones.backbone.norm": "batch"}
    runs = [trained(single(digits_file, {"objective": {"terms": terms}, "steps": 1, "batch_norm": joint}, changes))
            for joint in ("follow", "joint")]
    assert not np.allclose(runs[0].metrics["digits"], runs[1].metrics["digits"])
    assert not same_leaves(runs[0].after.batch_stats, runs[1].after.batch_stats)


def test_l2_to_the_start_is_zero_at_the_start_and_holds_back(digits_file):
    terms = {"digits": DIGITS, "anchor": {"kind": "l2_to_start", "weight": 10.0}}
    found = trained(single(digits_file, {"objective": {"terms": terms}, "steps": 10, "lr": 0.01}))
    free = trained(single(digits_file, {"steps": 10, "lr": 0.01}))
    assert found.metrics["anchor"][0, 0] == 0 and found.metrics["anchor"][-1, 0] > 0

    def distance(run):
        return sum(float(np.square(run.after.trainable[path] - run.before.trainable[path]).sum())
                   for path in run.before.trainable)

    assert distance(found) < 0.7 * distance(free)


@pytest.mark.parametrize("term", [{"kind": "distillation", "head": "digits"},
                                  {"kind": "features_to_start", "alpha": 1.0}], ids=lambda term: term["kind"])
def test_what_the_model_said_at_the_start_holds_it_back(digits_file, term):
    stage, norm = {"steps": 10, "lr": 0.01, "batch_norm": "stored"}, {"model.backbones.backbone.norm": "batch"}
    held, free = (trained(single(digits_file, {**stage, "objective": {"terms": {
        "digits": DIGITS, "start": {**term, "stream": "train", "weight": weight}}}}, norm)).metrics
                  for weight in (10.0, 0.0))
    np.testing.assert_allclose(held["start"][0], 0, atol=1e-6)  # stored statistics: nothing has moved yet
    assert 0 < held["start"][-1, 0] < 0.5 * free["start"][-1, 0]
    again = trained(single(digits_file, {**stage, "batch_norm": "follow", "steps": 2, "objective": {"terms": {
        "digits": DIGITS, "start": {**term, "stream": "train"}}}}, norm)).metrics
    assert again["start"][0, 0] > 0  # the start runs on its stored statistics, the model on those of the batch


@pytest.mark.parametrize("members", [1, 2])
def test_nan_stops_with_step_and_term(digits_file, members):
    stage = {"optimizer": SGD, "lr": 1e30, "steps": 20}
    with pytest.raises(UserError, match=r"'digits' became NaN or infinite at step \d+ \(seed \d\)"):
        trained(single(digits_file, stage, {"seeds": tuple(range(members))}))
