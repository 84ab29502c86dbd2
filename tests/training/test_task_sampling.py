"""Tasks with labels for some examples only, and steps that train one task of several."""

import jax
import numpy as np
import pytest
from scipy import stats
from tiny_experiment import same_leaves, single, start, trained

from transfer_jax.core.errors import UserError
from transfer_jax.core.paths import unflatten
from transfer_jax.core.spec import Component
from transfer_jax.experiment.assembly import Assembly
from transfer_jax.experiment.evaluators import Evaluators
from transfer_jax.experiment.stage import prepare
from transfer_jax.objectives.sampling import annealed, draw_plan, shares_over_time
from transfer_jax.training.step import choices_name, turns_name

SGD = {"kind": "sgd", "momentum": 0.0}
DIGITS = {"kind": "task", "task": "digits", "stream": "train"}


@pytest.fixture(scope="module")
def partly(tmp_path_factory, digits_file):
    """The digits with two labels of three taken away from the training data; and the labelled ones alone."""
    folder = tmp_path_factory.mktemp("partly")
    with np.load(digits_file) as found:
        arrays = dict(found)
    known = np.arange(len(arrays["train_label"])) % 3 == 0
    few = {**arrays, "train_label": np.where(known, arrays["train_label"], -1)}
    few["test_label"] = np.where(np.arange(60) % 2 == 0, arrays["test_label"], -1)
    np.savez(folder / "partly.npz", **few)
    np.savez(folder / "none.npz", **{**arrays, "train_label": np.full_like(arrays["train_label"], -1)})
    return folder


def losses_by_hand(ready, state, constants, feeds, seeds, step):
    """Cross-entropy of every example of the batch of a step, and whether its label is known."""
    program = ready.program
    one = jax.tree.map(lambda leaf: leaf[0], (state, constants, dict(seeds)))
    feed = {**feeds["train"], "rows": feeds["train"]["rows"][0]}
    batch = program.streams["train"].batch(feed, one[2]["data"], step)
    variables = {"params": unflatten({**one[0].trainable, **one[1].frozen}), "batch_stats": {}}
    taps, _ = program.model.taps(variables, {"backbone": batch["image"]})
    logits, _ = program.model.head(variables, "digits", taps, batch["image"].shape[1:3])
    return np.asarray(-jax.nn.log_softmax(logits)[np.arange(len(logits)), batch["label"]]), \
        np.asarray(batch["known/label"])


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_loss_is_the_mean_over_labelled_examples(partly, accumulate):
    stage = {"optimizer": SGD, "lr": 1e-9, "steps": 6, "accumulate": accumulate}
    spec = single(partly / "partly.npz", stage)
    found = trained(spec)
    ready, state, constants, feeds, seeds, _ = start(spec)
    counts = []
    for step in range(6):
        losses, known = losses_by_hand(ready, state, constants, feeds, seeds, step)
        counts.append(known.reshape(accumulate, -1).sum(1))
        np.testing.assert_allclose(found.metrics["digits"][step, 0], losses[known > 0].mean(), rtol=1e-5)
    # Micro-batches without a label, and with different numbers of them, were among them.
    assert accumulate == 1 or (np.min(counts) == 0 and np.ptp(counts) > 1)


def test_gradients_are_those_of_the_labelled_examples(partly):
    """Accumulated or not, a step goes the same way; and it does not depend on what stands for a missing label."""
    stage = {"optimizer": SGD, "lr": 0.1, "steps": 5}
    after = [trained(single(partly / "partly.npz", {**stage, "accumulate": parts})).after for parts in (1, 4)]
    for path, leaf in after[0].trainable.items():
        np.testing.assert_allclose(leaf, after[1].trainable[path], atol=2e-6, err_msg=path)


def test_a_batch_without_labels_says_nothing(partly):
    changes = {"streams.train.batch_size": 2}
    found = trained(single(partly / "partly.npz", {"optimizer": SGD, "lr": 0.1, "steps": 12}, changes))
    values = found.metrics["digits"][:, 0]
    assert 0 < np.isnan(values).sum() < 12  # steps of which nothing is reported
    assert np.isfinite(found.metrics["loss"]).all() and (found.metrics["loss"][np.isnan(values), 0] == 0).all()
    window = trained(single(partly / "partly.npz", {"optimizer": SGD, "lr": 0.1, "steps": 12},
                            {**changes, "log_every": 12}))
    np.testing.assert_allclose(window.metrics["digits"][0, 0], np.nanmean(values), rtol=1e-5)
    assert same_leaves(window.after.trainable, found.after.trainable)


def test_metrics_leave_out_examples_without_a_label(partly, digits_file):
    spec, whole = (single(path, {"steps": 1}) for path in (partly / "partly.npz", digits_file))
    after = trained(spec).after
    params = {**after.trainable}
    scores = [Evaluators(Assembly(one)).scores(one.stages["only"], params, after.batch_stats, examples=True)["test"]
              for one in (spec, whole)]
    rows = scores[1].examples
    own = rows["index"] % 2 == 0
    assert scores[0].metrics["accuracy"][0] == np.mean(rows["prediction"][own] == rows["label"][own])
    assert (scores[0].examples["index"] == rows["index"][own]).all()


def test_a_task_without_labels_is_named_before_training(partly):
    with pytest.raises(UserError, match="the task 'digits' needs labels.*none in any of its streams 'train'"):
        start(single(partly / "none.npz", {}))


# --- sampling -------------------------------------------------------------------------------------------------------

def two_tasks(file, sampling, steps=40, changes=None, **stage):
    groups = {"partition": (("backbone/.*", "trunk"), ("heads/digits/.*", "digits"), ("heads/other/.*", "other")),
              "groups": {"trunk": {}, "digits": {}, "other": {}}}
    terms = {"digits": DIGITS, "other": {"kind": "task", "task": "other", "stream": "few"}}
    entries = {**groups, "steps": steps, "evaluate": {"few": ("other", "digits")},
               "objective": {"terms": terms, "sampling": sampling}, **stage}
    return single(file, entries, {
        "model.heads.other": {"kind": "linear"}, "tasks.other": {"kind": "classification", "head": "other"},
        "streams.few": {"data": {"kind": "arrays", "path": str(file)}, "split": "train[:40]", "batch_size": 8},
        **(changes or {})})


def test_shares_by_size_temperature_and_annealed():
    sizes, names = [240, 40, 8], ("a", "b", "c")

    def shares(kind, steps=5, **options):
        return shares_over_time(Component(kind=kind, **options), sizes, names, steps, "here")

    n = np.array(sizes, float)
    np.testing.assert_allclose(shares("size"), np.tile(n / n.sum(), (5, 1)), rtol=1e-12)
    np.testing.assert_allclose(shares("temperature", temperature=2.0)[3], np.sqrt(n) / np.sqrt(n).sum(), rtol=1e-12)
    for step, row in enumerate(shares("annealed")):  # a = 1 - 0.8 t
        power = n ** (1 - 0.8 * step / 4)
        np.testing.assert_allclose(row, power / power.sum(), rtol=1e-12)
    found = shares("annealed", steps=12, epochs=3)
    for epoch in (1, 2, 3):  # the paper's form
        power = n ** (1 - 0.8 * (epoch - 1) / 2)
        np.testing.assert_allclose(found[4 * epoch - 4:4 * epoch], np.tile(power / power.sum(), (4, 1)), rtol=1e-12)
    with pytest.raises(UserError, match="at least 2 epochs"):
        annealed(n, names, np.zeros(3), epochs=1)
    with pytest.raises(UserError, match="the task 'b' has no labels"):
        shares_over_time(Component(kind="size"), [3, 0], names, 2, "here")


def test_choices_have_the_expected_shares():
    progress = np.linspace(0, 1, 60000)
    shares = annealed(np.array([900.0, 90.0, 10.0]), ("a", "b", "c"), progress)
    plan = draw_plan(shares, np.eye(3, dtype=bool), 5)
    for part in np.split(np.arange(60000), 4):
        observed, expected = np.bincount(plan.choices[part], minlength=3), shares[part].sum(0)
        assert stats.chisquare(observed, expected).pvalue > 1e-3
    even = draw_plan(np.full((60000, 2), 0.5), np.eye(2, dtype=bool), 5).choices
    assert abs(np.corrcoef(even[1:], even[:-1])[0, 1]) < 0.02  # one step says nothing of the next
    for task in range(3):  # each stream goes on where it was left
        assert (plan.turns[plan.choices == task, task] == np.arange((plan.choices == task).sum())).all()
    assert (draw_plan(shares, np.eye(3, dtype=bool), 6).choices != plan.choices).mean() > 0.05
    longer = draw_plan(np.concatenate([shares, shares]), np.eye(3, dtype=bool), 5)
    assert (longer.choices[:60000] == plan.choices).all()


@pytest.fixture(scope="module")
def sampled(digits_file):
    spec = two_tasks(digits_file, {"kind": "temperature", "temperature": 2.0})
    return spec, trained(spec)


def test_a_step_trains_the_task_that_was_chosen(sampled):
    spec, found = sampled
    choices = found.ready.seeds(spec.seeds)[choices_name(0)][0]
    for number, task in enumerate(("digits", "other")):
        assert (np.isfinite(found.metrics[task][:, 0]) == (choices == number)).all()
        own = found.metrics[task][choices == number, 0]
        np.testing.assert_array_equal(own, found.metrics["loss"][choices == number, 0])
    assert 0 < choices.sum() < 40
    counts = {group: {int(leaf[0]) for leaf in jax.tree.leaves(state) if leaf.dtype == np.int32}
              for group, state in found.after.opt_state.inner_states.items() if group != "frozen"}
    assert counts == {"trunk": {40}, "digits": {int((choices == 0).sum())}, "other": {int(choices.sum())}}


def test_the_head_of_a_task_that_was_not_chosen_stays_bit_for_bit(digits_file):
    spec = two_tasks(digits_file, {"kind": "weights", "weights": {"digits": 1.0, "other": 1e-9}}, steps=5,
                     weight_decay=0.1)
    found = trained(spec)
    for path, leaf in found.after.trainable.items():
        assert np.array_equal(leaf, found.before.trainable[path]) == path.startswith("heads/other"), path
    # It is what training that task alone gives.
    alone = trained(two_tasks(digits_file, None, steps=5, weight_decay=0.1,
                              objective={"updates": ({"terms": {"digits": DIGITS}, "groups": ("trunk", "digits")},)},
                              partition=(("backbone/.*", "trunk"), ("heads/digits/.*", "digits"), (".*", "frozen")),
                              groups={"trunk": {}, "digits": {}}))
    for path, leaf in alone.after.trainable.items():
        np.testing.assert_allclose(leaf, found.after.trainable[path], atol=1e-6, err_msg=path)


def test_adapters_of_a_head_move_with_its_task_alone(digits_file):
    own = {"own": {"kind": "adapter", "targets": ("backbone/stage2_conv1",), "width": 2, "heads": ("digits", "other")}}
    names = ("digits", "other")
    spec = two_tasks(digits_file, {"kind": "equal"}, peft=own,
                     partition=(*((f"peft/.*/{name}/[^/]+", f"own_{name}") for name in names),
                                *((f"heads/{name}/.*", name) for name in names), ("backbone/.*", "trunk")),
                     groups={"trunk": {}, **{f"{part}{name}": {} for name in names for part in ("", "own_")}})
    update, = prepare(Assembly(spec), "only").program.updates
    assert [alternative.groups for alternative in update.alternatives] == [
        {"trunk", name, f"own_{name}"} for name in names]


def test_sampling_is_reproducible_and_stops_anywhere(sampled):
    spec, found = sampled
    assert same_leaves(trained(spec, steps_per_dispatch=7).after, found.after)


def test_streams_from_the_host_take_the_same_turns(sampled, digits_file):
    spec, found = sampled
    host = two_tasks(digits_file, {"kind": "temperature", "temperature": 2.0},
                     changes={"streams.few.storage": "host", "streams.train.storage": "host"})
    there = trained(host)
    for name in ("digits", "other"):
        np.testing.assert_allclose(there.metrics[name], found.metrics[name], rtol=1e-4)
    turns = found.ready.seeds(spec.seeds)[turns_name("few")]
    opened = there.ready.program.streams["few"]
    seen = [int(batch["index"][0, 0]) for _, batch in zip(range(40), opened.host_batches(0, turns=turns), strict=False)]
    used = found.ready.seeds(spec.seeds)[choices_name(0)][0] == 1
    rows = [int(opened.indices[0][opened.drawn(turn, 0)[0]]) for turn in range(int(used.sum()))]
    assert [row for row, own in zip(seen, used, strict=True) if own] == rows


def test_what_is_not_chosen_is_not_computed(digits_file):
    """The step holds one conditional with a branch for each task, and no backbone outside of it."""
    spec = two_tasks(digits_file, {"kind": "equal"}, steps=2)
    ready, state, constants, feeds, seeds, _ = start(spec)
    one = jax.tree.map(lambda leaf: leaf[0], (state, constants, dict(seeds)))
    feeds = {name: {**feed, "rows": feed["rows"][0]} for name, feed in feeds.items()}
    traced = jax.make_jaxpr(lambda *a: ready.program.moved(frozenset(ready.program.partition.groups))(*a))(
        one[0]._replace(sums=(), bad=()), one[1], feeds, one[2], np.int32(0))
    outside = list(_equations(traced.jaxpr, into_branches=False))
    conditions = [equation for equation in outside if equation.primitive.name == "cond"]
    assert [len(equation.params["branches"]) for equation in conditions] == [2]
    assert not any(equation.primitive.name == "conv_general_dilated" for equation in outside)
    assert sum(e.primitive.name == "conv_general_dilated" for e in _equations(traced.jaxpr, into_branches=True)) >= 6


def _equations(jaxpr, into_branches):
    """Equations of a jaxpr and of all that it calls, with or without branches of conditionals."""
    for equation in jaxpr.eqns:
        yield equation
        if equation.primitive.name == "cond" and not into_branches:
            continue
        for value in jax.tree.leaves(tuple(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _equations(inner, into_branches)


@pytest.mark.parametrize(("objective", "message"), [
    ({"terms": {"digits": DIGITS}, "sampling": {"kind": "size"}}, "chooses among tasks, but the terms are of 1"),
    ({"terms": {"digits": DIGITS, "other": {**DIGITS, "task": "other"}}, "sampling": {"kind": "size"},
      "combine": {"kind": "pcgrad"}}, "'pcgrad' nothing to combine"),
    ({"terms": {"digits": DIGITS, "other": {**DIGITS, "task": "other"}}, "sampling": {"kind": "sise"}},
     "unknown kind of sampling 'sise'.*'size'"),
])
def test_faulty_sampling(digits_file, objective, message):
    with pytest.raises(UserError, match=message):
        start(two_tasks(digits_file, None, objective=objective, partition=((".*", "all"),), groups={"all": {}}))


def test_terms_without_a_task_run_at_every_step(digits_file):
    terms = {"digits": DIGITS, "other": {"kind": "task", "task": "other", "stream": "train"},
             "small": {"kind": "l2_norm", "beta": 0.1}}
    combine = {"kind": "fixed", "weights": {"other": 2.0}}
    found = trained(two_tasks(digits_file, None, steps=8, objective={
        "terms": terms, "sampling": {"kind": "equal"}, "combine": combine}))
    assert np.isfinite(found.metrics["small"]).all()
    for name, factor in (("digits", 1.0), ("other", 2.0)):
        own = np.isfinite(found.metrics[name][:, 0])
        assert 0 < own.sum() < 8
        np.testing.assert_allclose(found.metrics["loss"][own],
                                   factor * found.metrics[name][own] + found.metrics["small"][own], rtol=1e-5)


def test_parts_of_merged_data_are_scored_beside_the_whole(digits_file):
    part = {"kind": "arrays", "path": str(digits_file), "split": "test"}
    merged = {"kind": "merge", "parts": ({**part, "split": "test[:25]", "domain": "a"},
                                         {**part, "split": "test[25:]", "domain": "b"})}
    spec = single(digits_file, {"steps": 1}, {"streams.test": {"data": merged, "batch_size": 8}})
    after = trained(spec).after
    scores = Evaluators(Assembly(spec)).scores(spec.stages["only"], dict(after.trainable), after.batch_stats,
                                               examples=True)["test"]
    right = scores.examples["prediction"] == scores.examples["label"]
    found = {name: scores.metrics[name][0] for name in ("accuracy", "accuracy/a", "accuracy/b", "cross_entropy/a")}
    assert found["accuracy"] == right.mean() and found["accuracy/a"] != found["accuracy/b"]
    assert (found["accuracy/a"], found["accuracy/b"]) == (right[:25].mean(), right[25:].mean())
    np.testing.assert_allclose(found["cross_entropy/a"], scores.examples["loss"][:25].mean(), rtol=1e-5)
