"""Stages that train in parallel end with the very bits that each reaches alone, also when stopped in the middle."""

import pytest
from tiny_experiment import config, read_json, same_leaves

from transfer_jax import command_line
from transfer_jax.core.errors import UserError, all_of
from transfer_jax.core.spec import build
from transfer_jax.experiment.assembly import Assembly
from transfer_jax.experiment.parallel import in_groups, train_together
from transfer_jax.experiment.planning import compiled_stages
from transfer_jax.experiment.runner import Runner
from transfer_jax.experiment.spec import ExperimentSpec
from transfer_jax.experiment.stage import prepare
from transfer_jax.experiment.stage_run import StageRun
from transfer_jax.experiment.workdir import Workdir
from transfer_jax.training import loop
from transfer_jax.training.interruption import Interrupted, StopRequest
from transfer_jax.training.lane import NotFinite

GROUP = ("digits", "odd")
STAGES = (*GROUP, "on")


@pytest.fixture(scope="module", autouse=True)
def compilation():
    """The compiler's own settings: with few of its passes, two stages in one program differ from each alone in the last
    bit of some parameters (XLA:CPU); programs as users run them must not."""


def experiment(data, **changes):
    """Two networks with nothing in common (task, sizes, norm, dropout, augmentation, optimizer, average, batch size,
    source of batches, length, cadence), and a stage that looks at what one of them has become."""
    values = config(data, {
        "seeds": (0, 1), "log_every": 4, "checkpoint_every": 5,
        "model.backbones": {"one": {"kind": "small_cnn", "widths": (4, 8), "norm": "batch"},
                            "two": {"kind": "small_cnn", "widths": (6,)}},
        "model.heads": {"digits": {"kind": "mlp", "hidden": (8,), "dropout": 0.5, "tap": "one/pooled"},
                        "odd": {"kind": "linear", "tap": "two/pooled"}},
        "tasks": {"digits": {"kind": "classification", "head": "digits"},
                  "odd": {"kind": "classification", "head": "odd"}}})
    values["streams"]["train"] |= {"inputs": {"one": "image"}, "augment": ({"kind": "flip"},)}
    values["streams"]["test"]["inputs"] = {"one": "image"}
    other = {**values["streams"]["train"], "inputs": {"two": "image"}, "augment": (), "batch_size": 6,
             "storage": "host", "threads": 1}
    values["streams"] |= {"other": other, "other_test": {**values["streams"]["test"], "inputs": {"two": "image"}}}
    begin = values["stages"]["pretrain"]
    values["stages"] = {
        "digits": {**begin, "steps": 23, "eval_every": 10, "ema": {"decay": 0.9}, "best": {"stream": "test"}},
        "odd": {**begin, "steps": 11, "lr": 1e-3, "optimizer": {"kind": "sgd", "momentum": 0.9}, "clip_norm": 1.0,
                "objective": {"terms": {"odd": {"kind": "task", "task": "odd", "stream": "other"}}},
                "evaluate": {"other_test": "odd"}, "eval_every": 3},
        "on": {"init": "digits", "evaluate": {"test": "digits"}}}
    return build(ExperimentSpec, {**values, **changes})


def together(data, **changes):
    return experiment(data, parallel=(GROUP,), **changes)


def left_behind(workdir):
    """Checkpoint trees, bytes of the metrics, results."""
    trees = {stage: Workdir(workdir).checkpoints(stage).restore()[:2] for stage in STAGES}
    return trees, (workdir / "metrics.jsonl").read_bytes(), read_json(workdir / "results.json")


def assert_same_end(workdir, reference):
    found, expected = left_behind(workdir), left_behind(reference)
    for stage in STAGES:
        assert found[0][stage][0] == expected[0][stage][0]
        assert same_leaves(found[0][stage][1], expected[0][stage][1]), stage
    assert found[1:] == expected[1:]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, digits_file):
    """The workdir of a run whose stages trained one after the other."""
    folder = tmp_path_factory.mktemp("alone")
    Runner(experiment(digits_file), folder, quiet=True).run()
    return folder


@pytest.mark.parametrize("lanes", ["joined", "apart"])
def test_every_stage_reaches_the_bits_that_it_reaches_alone(alone, digits_file, tmp_path, lanes, monkeypatch):
    compiled, dispatched = [], []
    chunk_of, share = loop.compile_chunk, loop._shares
    monkeypatch.setattr(loop, "compile_chunk", lambda parts, *rest: compiled.append(len(parts)) or
                        chunk_of(parts, *rest))
    monkeypatch.setattr(loop, "_shares", lambda lanes, most: dispatched.append(share(lanes, most)) or dispatched[-1])
    Runner(together(digits_file, lanes=lanes), tmp_path, quiet=True).run()
    assert compiled == ([2] if lanes == "joined" else [1, 1])
    assert sum(len(counts) == 2 and min(counts) > 0 for counts in dispatched) >= 3  # both did move at once
    assert_same_end(tmp_path, alone)
    infos = read_json(tmp_path / "stages.json")
    assert list(infos) == list(STAGES) and all(infos[name]["seconds"] > 0 for name in STAGES)
    assert [infos[name]["beside"] for name in STAGES] == [["odd"], ["digits"], []]


class _StopAfter(StopRequest):
    """As if a signal came after so many looks of the host."""

    def __init__(self, looks):
        super().__init__()
        self.looks = looks

    @property
    def signal(self):
        self.looks -= 1
        return 15 if self.looks < 0 else None

    @signal.setter
    def signal(self, value):
        del value


def test_a_stopped_group_goes_on_with_every_stage_where_it_was(alone, digits_file, tmp_path, monkeypatch):
    spec, run = together(digits_file, lanes="joined", steps_per_dispatch=3), Workdir(tmp_path)
    with pytest.raises(Interrupted):
        Runner(spec, tmp_path, quiet=True).run(_StopAfter(5))
    places = [run.checkpoints(name).steps()[-1] for name in GROUP]
    assert 0 < places[0] < 23 and 0 < places[1] < 11 and places[0] != places[1]
    # Killed again, when one of them has ended and the other not.
    finish = StageRun.finish
    monkeypatch.setattr(StageRun, "finish", lambda own, *rest: _killed() if any(map(run.record, GROUP)) else
                        finish(own, *rest))
    with pytest.raises(_Killed):
        Runner(spec, tmp_path, quiet=True).run()
    monkeypatch.undo()
    assert [run.record(name) is not None for name in GROUP] in ([True, False], [False, True])
    Runner(spec, tmp_path, quiet=True).run()
    assert_same_end(tmp_path, alone)


class _Killed(Exception):
    """In the place of a signal that no process survives."""


def _killed():
    raise _Killed


def test_one_may_go_on_alone_where_two_began(alone, digits_file, tmp_path):
    with pytest.raises(Interrupted):
        Runner(together(digits_file, steps_per_dispatch=3), tmp_path, quiet=True).run(_StopAfter(4))
    Runner(experiment(digits_file), tmp_path, quiet=True).run()
    assert_same_end(tmp_path, alone)


class _Failing:
    """A stage that cannot begin, and its checkpoints, which cannot be written."""

    def __init__(self, name):
        self.name, self.beside, self.checkpoints = name, set(), self

    def enter(self, advance):
        raise UserError(f"{self.name} cannot begin")

    def wait(self):
        raise UserError(f"{self.name} was not saved")


def test_what_went_wrong_in_one_stage_does_not_hide_what_did_in_another():
    with pytest.raises(UserError) as caught:
        train_together(None, [_Failing("digits"), _Failing("odd")], None, None)
    assert list(map(str, command_line.told(caught.value))) == [
        "digits cannot begin", "digits was not saved", "odd was not saved"]
    done = []
    with pytest.raises(UserError, match="one was not saved"):
        all_of([_Failing("one").wait, lambda: done.append("two")])
    assert done == ["two"]


def test_what_is_not_finite_names_its_stage(digits_file, tmp_path):
    spec = together(digits_file)
    stages = {**spec.stages, "odd": spec.stages["odd"].model_copy(update={"lr": 1e30, "clip_norm": None})}
    with pytest.raises(NotFinite, match="stage 'odd': the metric 'odd' became NaN or infinite at step"):
        Runner(spec.model_copy(update={"stages": stages}), tmp_path, quiet=True).run()


def test_the_plan_holds_all_stages_of_a_group(digits_file):
    spec = together(digits_file)
    (plan, _), = compiled_stages(spec, None)
    rows = [row for name in GROUP for row in prepare(Assembly(spec), name).table() if not row["frozen"]]
    assert (plan.stage, plan.lanes) == ("digits + odd", 2)
    assert plan.trainable == sum(4 * 2 * row["parameters"] for row in rows)  # float32, of two seeds
    assert plan.optimizer == sum(2 * row["optimizer_bytes"] for row in rows)


@pytest.mark.parametrize(("groups", "message"), [
    ((("digits", "evens"),), "unknown stage 'evens' in config.parallel.0"),
    ((("digits", "odd"), ("odd", "on")), "config.parallel.1 names stage 'odd' for the second time"),
    ((("digits", "on"),), r"between 'digits' and 'on' stand stages of no part in it \(odd\)"),
    ((("digits", "odd", "on"),), "stage 'on' starts from 'digits', which trains in parallel with it; give it another"),
])
def test_groups_that_cannot_be(digits_file, groups, message):
    with pytest.raises(UserError, match=message):
        Assembly(experiment(digits_file, parallel=groups))


def test_the_previous_stage_is_no_start_within_a_group(digits_file):
    spec = together(digits_file)
    stages = {**spec.stages, "odd": spec.stages["odd"].model_copy(update={"init": "previous"})}
    with pytest.raises(UserError, match="stage 'odd' starts from the previous stage, 'digits'"):
        Assembly(spec.model_copy(update={"stages": stages}))


def test_groups_keep_the_order_of_the_stages(digits_file):
    assert in_groups(experiment(digits_file, parallel=(("odd", "digits"),))) == [("digits", "odd"), ("on",)]
    assert in_groups(experiment(digits_file)) == [("digits",), ("odd",), ("on",)]


def test_all_end_together_and_stop_at_the_first_point_of_any():
    class Left:
        def __init__(self, left, room):
            self.left, self.room = left, room

    assert loop._shares([Left(100, 50)], 30) == [30] and loop._shares([Left(100, 50)], 80) == [50]
    assert loop._shares([Left(1000, 50), Left(100, 50)], 40) == [40, 4]
    assert loop._shares([Left(1000, 50), Left(100, 2)], 40) == [20, 2]
    assert loop._shares([Left(1000, 50), Left(0, 0), Left(1, 1)], 40) == [40, 0, 1]
