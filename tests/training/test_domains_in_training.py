"""What the engine does for domains: statistics and gaps of their own, scaled gradients, two views, teachers, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_experiment import config, run, same_leaves, single, start, trained

from transfer_jax.core.errors import UserError
from transfer_jax.core.paths import flatten, unflatten
from transfer_jax.core.spec import build
from transfer_jax.experiment.assembly import Assembly
from transfer_jax.experiment.evaluators import Evaluators
from transfer_jax.experiment.runner import Runner
from transfer_jax.experiment.spec import ExperimentSpec
from transfer_jax.experiment.stage import prepare
from transfer_jax.models.domains import main_statistics, statistics_of
from transfer_jax.objectives import TERMS
from transfer_jax.objectives.carried import CARRIED

NORM = {"model.backbones.backbone.norm": "batch"}
DOMAINS = {**NORM, "streams.train.domain": "plain", "streams.test.domain": "photo"}
SOURCE = {"kind": "task", "task": "digits", "stream": "train"}
TARGET = {"kind": "entropy", "head": "digits", "stream": "test"}
BOTH = {"terms": {"source": SOURCE, "target": TARGET}}
SGD = {"kind": "sgd", "momentum": 0.0}


def stage(**more):
    return {"objective": BOTH, "optimizer": SGD, "lr": 0.1, "steps": 1, **more}


def mean_of(state, domain=None):
    return {path: np.asarray(leaf) for path, leaf in flatten(statistics_of(state.batch_stats, domain)).items()}


def test_each_domain_moves_its_own_statistics(digits_file):
    found = trained(single(digits_file, stage(batch_norm="separate"), DOMAINS))
    alone = {name: trained(single(digits_file, stage(objective={"terms": {"one": term}}), DOMAINS))
             for name, term in (("plain", SOURCE), ("photo", TARGET))}
    for domain, run_alone in alone.items():
        same_leaves(mean_of(found.after, domain), mean_of(run_alone.after)) or pytest.fail(domain)
    assert not same_leaves(mean_of(found.after, "plain"), mean_of(found.after, "photo"))
    assert same_leaves(main_statistics(found.after.batch_stats), statistics_of(found.after.batch_stats, "photo"))


def test_the_source_alone_moves_the_statistics_that_the_target_is_normalised_with(digits_file):
    found = trained(single(digits_file, stage(batch_norm="source"), DOMAINS))
    alone = trained(single(digits_file, stage(objective={"terms": {"one": SOURCE}}), DOMAINS))
    follow = trained(single(digits_file, stage(), DOMAINS))
    assert same_leaves(found.after.batch_stats, alone.after.batch_stats)
    assert not same_leaves(found.after.batch_stats, follow.after.batch_stats)
    assert not np.allclose(found.metrics["target"], follow.metrics["target"])


def test_a_domain_is_evaluated_on_its_own_statistics(digits_file):
    spec = single(digits_file, stage(batch_norm="separate", steps=5, evaluate={"train": "digits", "test": "digits"}),
                  DOMAINS)
    found = trained(spec)
    params = {**found.after.trainable}
    stage_spec = spec.stages["only"]
    scores = Evaluators(Assembly(spec)).scores(stage_spec, params, found.after.batch_stats)
    for stream, domain in (("train", "plain"), ("test", "photo")):
        own = Evaluators(Assembly(spec)).scores(stage_spec, params, statistics_of(found.after.batch_stats, domain))
        assert scores[stream].metrics["cross_entropy"] == own[stream].metrics["cross_entropy"]
    swapped = Evaluators(Assembly(spec)).scores(stage_spec, params, statistics_of(found.after.batch_stats, "photo"))
    assert scores["train"].metrics["cross_entropy"] != swapped["train"].metrics["cross_entropy"]


def test_statistics_of_domains_resume_and_give_way_to_the_main_ones_in_the_next_stage(digits_file, tmp_path):
    values = config(digits_file, {**DOMAINS, "stages.pretrain.objective": BOTH,
                                  "stages.pretrain.batch_norm": "separate", "export": "pretrain"})
    runner = run(values, tmp_path / "run")
    kept = runner.result("pretrain", "last")[1]
    again = Runner(build(ExperimentSpec, values), tmp_path / "run", quiet=True).result("pretrain", "last")[1]
    assert same_leaves(kept, again) and set(kept["domains"]) == {"plain"}
    assert set(runner.result("head", "last")[1]) == {"backbone"}  # frozen norms: those of the last stream's domain
    assert same_leaves(runner.result("head", "last")[1], main_statistics(kept))


@pytest.mark.parametrize("mode", ["separate", "source"])
def test_modes_that_tell_domains_apart_want_two(digits_file, mode):
    with pytest.raises(UserError, match="at least two different ones"):
        prepare(Assembly(single(digits_file, stage(batch_norm=mode), NORM)), "only")


def test_gradients_of_a_stream_are_scaled(digits_file):
    def change(scale):
        found = trained(single(digits_file, stage(gradient_scale={"train": scale[0], "test": scale[1]})))
        return {path: leaf - found.before.trainable[path] for path, leaf in found.after.trainable.items()}

    whole, source, target = change((1.0, 1.0)), change((1.0, 0.0)), change((0.0, 1.0))
    mixed = change((0.25, 2.0))
    for path, leaf in whole.items():
        np.testing.assert_allclose(leaf, source[path] + target[path], atol=1e-6, err_msg=path)
        np.testing.assert_allclose(mixed[path], 0.25 * source[path] + 2 * target[path], atol=1e-6, err_msg=path)
    assert max(np.abs(leaf).max() for leaf in target.values()) > 1e-5


def test_gradient_scales_name_streams_of_the_stage(digits_file):
    with pytest.raises(UserError, match="'tain'.*gradient_scale.*'train'"):
        prepare(Assembly(single(digits_file, stage(gradient_scale={"tain": 0.5}))), "only")
    with pytest.raises(UserError, match="cannot be told apart"):
        prepare(Assembly(single(digits_file, stage(gradient_scale={"train": 0.5}, batch_norm="joint"))), "only")


SHIFT = {"gap": {"kind": "domain_shift", "targets": ("backbone/pooled",), "domains": ("plain", "photo")}}


def test_a_domain_shift_starts_at_the_model_and_learns_from_its_own_domain(digits_file):
    plain = trained(single(digits_file, stage(), DOMAINS))
    both = trained(single(digits_file, stage(peft=SHIFT), DOMAINS))
    np.testing.assert_allclose(both.metrics["loss"], plain.metrics["loss"], rtol=1e-6)
    only = trained(single(digits_file, stage(peft=SHIFT, objective={"terms": {"one": SOURCE}}), DOMAINS))

    def moved(found, domain):
        return max(float(np.abs(leaf - found.before.trainable[path]).max())
                   for path, leaf in found.after.trainable.items() if path.startswith("peft/") and domain in path)

    assert moved(both, "plain") > 1e-5 and moved(both, "photo") > 1e-6
    assert moved(only, "plain") > 1e-5 and moved(only, "photo") == 0


def test_a_domain_shift_acts_on_its_domain_in_evaluation(digits_file):
    method = {"gap": {**SHIFT["gap"], "spread": {"photo": 3.0}}}
    spec = single(digits_file, stage(peft=method, evaluate={"train": "digits", "test": "digits"}), DOMAINS)
    found = trained(spec)
    without = {path: leaf * (0 if "/photo/" in path else 1) for path, leaf in found.before.trainable.items()}
    scores = [Evaluators(Assembly(spec)).scores(spec.stages["only"], leaves, found.before.batch_stats)
              for leaves in (found.before.trainable, without)]
    losses = [[one[stream].metrics["cross_entropy"][0] for one in scores] for stream in ("train", "test")]
    assert losses[0][0] == losses[0][1] and losses[1][0] != losses[1][1]


@pytest.mark.parametrize(("changes", "message"), [
    ({"domains": ("plain",)}, "two or more different domains"),
    ({"domains": ("plain", "elsewhere")}, "'photo' meets the gaps of"),
    ({"spread": {"moon": 1.0}}, "spread"),
    ({"targets": ("backbone/poled",)}, "nearest: backbone/pooled"),
    ({"targets": ("backbone/.*",), "shared": True}, "taps of one width")])
def test_faulty_domain_shifts_are_explained(digits_file, changes, message):
    with pytest.raises(UserError, match=message):
        start(single(digits_file, stage(peft={"gap": {**SHIFT["gap"], **changes}}), DOMAINS))


def test_two_views_hold_the_same_examples_augmented_differently(digits_file):
    augment = ({"kind": "noise"},)
    changes = {"streams.train.augment": augment,
               "streams.view": {**config(digits_file)["streams"]["train"], "augment": augment, "follows": "train"},
               "streams.other": {**config(digits_file)["streams"]["train"]}}
    for storage in ("device", "host"):
        spec = build(ExperimentSpec, config(digits_file, {**changes, **{
            f"streams.{name}.storage": storage for name in ("train", "view", "other")}}))
        batches = []
        for name in ("train", "view", "other"):
            stream = Assembly(spec).stream(name)
            feed = stream.feed() if storage == "device" else jax.tree.map(lambda x: x[0], next(stream.host_batches(3)))
            feed = {**feed, "rows": feed["rows"][0]} if storage == "device" else feed
            batches.append(jax.device_get(stream.batch(feed, np.uint32(0), 3)))
        first, view, other = batches
        assert np.array_equal(first["index"], view["index"]) and np.array_equal(first["position"], view["position"])
        assert not np.allclose(first["image"], view["image"])
        assert not np.array_equal(first["index"], other["index"])


@pytest.mark.parametrize(("changes", "message"), [
    ({"split": "test"}, "differ in their examples"), ({"batch_size": 4}, "differ in their examples"),
    ({"follows": "nobody"}, "'nobody'"), ({"follows": "view2"}, "follows 'train' itself")])
def test_a_view_needs_the_same_examples(digits_file, changes, message):
    view = {**config(digits_file)["streams"]["train"], "follows": "train"}
    spec = build(ExperimentSpec, config(digits_file, {"streams.view": {**view, **changes}, "streams.view2": view}))
    with pytest.raises(UserError, match=message):
        Assembly(spec).stream("view")


def test_a_term_sees_its_task_its_inputs_layers_and_positions(digits_file, monkeypatch):
    def probe(task_logits, logits, layers, inputs, apply_model, examples, apply_head):
        same = jnp.abs(apply_model(inputs) - task_logits).max()
        other = jnp.abs(apply_model(inputs + 1) - task_logits).max()
        shapes = len(layers) * 100 + layers[0].ndim * 10 + layers[1].ndim
        return logits.sum() * 0, {"same": same, "other": other, "shapes": shapes, "first": examples[0],
                                  "critic": jnp.abs(apply_head(layers[1]) - logits).max()}

    monkeypatch.setitem(TERMS, "probe", probe)
    term = {"kind": "probe", "task": "digits", "head": "critic", "stream": "train", "taps": ("stage1", "pooled")}
    spec = single(digits_file, {"steps": 3, "objective": {"terms": {"digits": SOURCE, "probe": term}}},
                  {**NORM, "model.heads.critic": {"kind": "mlp", "outputs": 2, "hidden": (4,)}})
    found = trained(spec).metrics
    stream = Assembly(spec).stream("train")
    assert (found["probe/same"] == 0).all() and (found["probe/other"] > 0.01).all()
    assert (found["probe/shapes"] == 242).all() and (found["probe/critic"] < 1e-6).all()
    assert found["probe/first"][:, 0].tolist() == [stream.drawn(step, 0)[0] for step in range(3)]


def test_the_teacher_is_the_average_of_the_steps_before(digits_file, monkeypatch):
    monkeypatch.setitem(TERMS, "probe", lambda teacher_logits: (jnp.zeros(()), {"sum": teacher_logits.sum()}))
    term = {"kind": "probe", "task": "digits", "stream": "train"}
    objective = {"terms": {"digits": SOURCE, "probe": term}}
    found = trained(single(digits_file, {"steps": 3, "objective": objective, "ema": {"decay": 0.5, "warmup": False}}))
    spec = single(digits_file, {"steps": 2, "objective": objective, "ema": {"decay": 0.5, "warmup": False}})
    ready, *_ = start(spec)
    two = trained(spec)
    average = {path.removeprefix("params/"): leaf[0] for path, leaf in two.after.ema.items()
               if path.startswith("params/")}
    assembly = Assembly(spec)
    stream = assembly.stream("train")
    feed = {**stream.feed(), "rows": stream.feed()["rows"][0]}
    batch = stream.batch(feed, np.uint32(0), 2)
    variables = {"params": unflatten(average), "batch_stats": {}}
    taps, _ = ready.program.model.taps(variables, {"backbone": batch["image"]})
    expected = ready.program.model.head(variables, "digits", taps, (8, 8))[0].sum()
    np.testing.assert_allclose(found.metrics["probe/sum"][2, 0], expected, rtol=1e-4)
    with pytest.raises(UserError, match="set the stage's ema"):
        prepare(Assembly(single(digits_file, {"objective": objective})), "only")


def counting(carried, weights):
    return weights.sum() * 0, {"count": carried["count"]}, {"count": carried["count"] + 1}


def test_a_term_carries_arrays_from_step_to_step_and_through_a_stop(digits_file, monkeypatch, tmp_path):
    monkeypatch.setitem(TERMS, "counting", counting)
    monkeypatch.setitem(CARRIED, "counting", lambda size: {"count": jnp.float32(size)})
    objective = {"terms": {"digits": SOURCE, "count": {"kind": "counting", "stream": "train"}}}
    spec = single(digits_file, {"steps": 4, "objective": objective})
    size = Assembly(spec).stream("train").size
    assert trained(spec).metrics["count/count"][:, 0].tolist() == [size, size + 1, size + 2, size + 3]
    halves = trained(single(digits_file, {"steps": 2, "objective": objective, "accumulate": 2}))
    assert halves.metrics["count/count"][:, 0].tolist() == [size + 0.5, size + 2.5]  # two micro-batches a step
    values = config(digits_file, {"stages.pretrain.objective": objective})
    runner = run(values, tmp_path / "run")
    tree = runner.workdir.checkpoints("pretrain").restore()[1]
    assert float(tree["state"]["carried"]["count"]["count"][0]) == size + 6


def test_styles_are_mixed_in_training_alone_and_across_domains_if_asked(digits_file):
    def found(**more):
        mixed = {"mix_style": {"taps": ("stage1",), **more}} if more else {}
        return trained(single(digits_file, {"steps": 2, "optimizer": SGD, "lr": 1e-6, **mixed}, NORM)).metrics["digits"]

    plain, never, always = found(), found(probability=0.0), found(probability=1.0, alpha=1.0)
    np.testing.assert_allclose(never, plain, rtol=1e-6)
    assert not np.allclose(always, plain)
    source = config(digits_file)["streams"]["train"]["data"]
    parts = tuple({**source, "split": split, "domain": split} for split in ("train", "test"))
    merged = {"streams.train.data": {"kind": "merge", "parts": parts}}
    across = {"steps": 2, "mix_style": {"taps": ("stage1",), "probability": 1.0, "across_domains": True}}
    assert np.isfinite(trained(single(digits_file, across, merged)).metrics["digits"]).all()


@pytest.mark.parametrize(("changes", "message"), [
    ({"taps": ("stage9",)}, "'stage9'"), ({"taps": ("stage1",), "across_domains": True}, "carry no domain")])
def test_faulty_mixing_of_styles_is_explained(digits_file, changes, message):
    with pytest.raises(UserError, match=message):
        prepare(Assembly(single(digits_file, {"mix_style": changes})), "only")
