"""Every config in configs/ is found, parsed, built, trained for a few steps a stage and evaluated; freezes freeze."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_experiment import ROOT, same_leaves

from transfer_jax.core.config import load_config, load_module
from transfer_jax.core.paths import flatten
from transfer_jax.core.spec import build, plain
from transfer_jax.experiment.assembly import Assembly
from transfer_jax.experiment.runner import Runner
from transfer_jax.experiment.spec import ExperimentSpec
from transfer_jax.experiment.stage import prepare
from transfer_jax.experiment.sweeping import Sweep
from transfer_jax.training.checkpoint import Checkpoints

FILES = sorted(path.relative_to(ROOT) for path in (ROOT / "configs").rglob("*.py")
               if "def get_config(" in path.read_text())
ABLATIONS = [path for path in FILES if path.parent.name == "ablations"]
ADAPTATION = [path for path in FILES if path.parent.name == "adaptation"]
COMBINATIONS = [path for path in FILES if path.name in ("combinations.py", "sharing.py")]  # parts are trained elsewhere
FOREIGN = [path for path in FILES if path.parent.name == "multitask" and path.name in  # data of elsewhere
           ("camvid.py", "embedding.py", "merging.py", "parallel.py", "receipts.py", "texts.py")]
ONLY_MADE_READY = [*ABLATIONS[1:], *ADAPTATION, *COMBINATIONS, *FOREIGN]
LONG = [Path("configs") / name for name in ("matrix/modality_transfer.py", "matrix/multitask.py", "matrix/parallel.py",
                                            "multitask/points_and_maps.py", "multitask/scenes.py")]  # on made data
FROM_HALF_A = [path for path in ABLATIONS if path.name != "transferability.py"]  # that has published networks
FOLDER = os.environ.get("TRANSFER_JAX_DATA", str(ROOT.parent / "shared" / "data"))
SHARED_DATA = Path(FOLDER) / "datasets" / "mnist"


def short(values):
    """Two steps a stage, 20 where something is frozen; one seed, small batches: everything else as the config says."""
    values = plain(values)
    values["seeds"] = values.get("seeds", (0,))[:1]
    values["log_every"], values["eval_batch_size"] = 1, 16
    for stage in values["stages"].values():
        for duration in ("epochs", "examples", "eval_every", "warmup_steps"):
            stage.pop(duration, None)
        if stage.get("objective"):
            stage["steps"] = 20 if "frozen" in str(stage.get("partition")) else 2
    for stream in values["streams"].values():
        stream["batch_size"] = min(stream["batch_size"], 8)
    evaluated = {stream for stage in values["stages"].values() for stream in stage.get("evaluate", {})}
    trained = {name for stage in values["stages"].values() for name in re.findall(r"'stream': '(\w+)'", str(stage))}
    for name in evaluated - trained:
        spec = values["streams"][name]
        if not {"labels_per_class", "per_class"} & set(spec):
            spec["split"] = re.sub(r"(\w+)(\[[^]]*\])?$", r"\1[:24]", spec.get("split", "train"))
    return build(ExperimentSpec, values)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The config's path with the arguments without which it does not go: the user's own images."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir()
        for i in range(15):
            Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)).save(folder / name / f"{i}.png")
    needed = {"configs/finetune.py": f":data={folder},backbone=small_cnn,image_size=24"}
    return lambda path: f"{ROOT / path}{needed.get(str(path), '')}"


def test_there_are_configs():
    assert Path("configs/quickstart.py") in FILES


@pytest.mark.parametrize("path", FILES, ids=str)
def test_the_docstring_names_a_command_and_a_measured_number(path):
    text = load_module(ROOT / path).__doc__ or ""
    assert re.search(r"python -m transfer_jax\.(train|sweep|rank)|bash launch/", text), "no command"
    assert path.name in text or "launch/" in text
    assert re.search(r"\b0\.\d{2,}|\d+(\.\d+)? ?%", text), "no measured number"


@pytest.mark.parametrize("path", [pytest.param(path, marks=pytest.mark.thorough if path in LONG else ())
                                  for path in FILES if path not in ONLY_MADE_READY], ids=str)
def test_it_builds_and_takes_two_steps_of_each_stage(path, reference, tmp_path):
    if path in ABLATIONS and not SHARED_DATA.is_dir():
        pytest.skip(f"the folder of standard data sets is absent ({SHARED_DATA}); set TRANSFER_JAX_DATA to it")
    spec = short(load_config(reference(path)))
    runner = Runner(spec, tmp_path, quiet=True)
    runner.run()
    results = json.loads((tmp_path / "results.json").read_text())
    assert {row["stage"] for row in results} == {name for name, stage in spec.stages.items() if stage.evaluate}
    assert all(value is None or np.isfinite(value) for row in results for values in row["metrics"].values()
               for value in values)
    for name in spec.stages:
        assert_frozen_is_unchanged(runner, spec, name, tmp_path)


@pytest.mark.parametrize("path", [*ONLY_MADE_READY, *LONG], ids=str)
def test_every_stage_of_many_recipes_is_ready_to_train(path):
    """Their recipes are trained in tests/recipes, one of them above: a hundred stages would take ten minutes."""
    if path not in LONG and not SHARED_DATA.is_dir():
        pytest.skip(f"the folder of standard data sets is absent ({SHARED_DATA}); set TRANSFER_JAX_DATA to it")
    spec = build(ExperimentSpec, load_config(str(ROOT / path)))
    assembly = Assembly(spec)
    for name in spec.stages:
        assert prepare(assembly, name).table()


def test_every_recipe_of_the_digits_can_be_asked_for_by_its_name():
    config = f"{ROOT / 'configs' / 'adaptation' / 'digits.py'}:budget=full,recipes="
    names = load_module(ROOT / "configs" / "adaptation" / "pairs.py").RECIPES
    for name in names:
        methods = [stage.tags["method"] for stage in build(ExperimentSpec, load_config(config + name)).stages.values()
                   if stage.tags]
        assert methods == [name]
    some = list(names)[:3]
    stages = build(ExperimentSpec, load_config(config + "/".join(some))).stages.values()
    assert {stage.tags["method"] for stage in stages if stage.tags} == set(some)


def assert_frozen_is_unchanged(runner, spec, name, workdir):
    """What the stage froze left it exactly as it came: parameters, and statistics of layers frozen as a whole."""
    records = json.loads((workdir / "stages.json").read_text())
    frozen = next((row for row in records[name]["groups"] if row["group"] == "frozen"), None)
    if frozen is None:
        return
    assert frozen["optimizer_bytes"] == 0
    tree = Checkpoints(workdir / "checkpoints" / name).restore()[1]
    origin = source_of(spec, name)
    if origin is None:
        return
    before = Checkpoints(workdir / "checkpoints" / origin).restore()[1]
    earlier = {**before["constants"]["frozen"], **before["state"]["trainable"]}
    new = spec.stages[name].new
    for path, leaf in tree["constants"]["frozen"].items():
        if not any(re.fullmatch(pattern, path) for pattern in new):
            assert same_leaves(leaf, earlier[path]), (name, path)
    statistics = flatten(tree["state"]["batch_stats"])
    still = {path for path in statistics if path.rpartition("/")[0] + "/scale" in tree["constants"]["frozen"]}
    for path in still:
        assert same_leaves(statistics[path], flatten(before["state"]["batch_stats"])[path]), (name, path)


def source_of(spec, name):
    """The stage whose last parameters the stage starts from, where that can be compared."""
    names, stage = list(spec.stages), spec.stages[name]
    init = stage.init
    if init == "previous":
        init = names[names.index(name) - 1] if names.index(name) else "fresh"
    if init not in names or stage.select == "best" or spec.stages[init].ema:
        return None
    return init


@pytest.mark.parametrize("path", [path for path in FILES if path.parent.name == "matrix"], ids=str)
def test_the_matrix_also_takes_the_standard_sets(path):
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the folder of standard data sets is absent ({SHARED_DATA}); set TRANSFER_JAX_DATA to it")
    spec = build(ExperimentSpec, load_config(f"{ROOT / path}:data=mnist"))
    embedded = build(ExperimentSpec, load_config(str(ROOT / path)))
    kinds = {stream.data.kind for stream in spec.streams.values()}
    assert kinds & {"idx", "usps", "mnistm", "merge"}, kinds
    assert list(spec.stages) == list(embedded.stages)


@pytest.mark.parametrize("path", [path for path in FILES if "def get_sweep(" in (ROOT / path).read_text()], ids=str)
def test_every_run_of_its_sweep_is_a_valid_experiment(path):
    sweep = Sweep(str(ROOT / path), ROOT)
    for name in sweep.runs:
        assert build(ExperimentSpec, load_config(sweep.reference(name), sweep.flags(name))).stages



@pytest.mark.parametrize("path", FROM_HALF_A, ids=str)
def test_an_ablation_takes_the_network_of_half_a_from_another(path):
    stages = build(ExperimentSpec, load_config(f"{ROOT / path}:base=runs/other")).stages
    base = stages["base"]
    assert base.init == "checkpoint:runs/other@base" and not base.objective.terms and base.evaluate == {"a_test": "a"}
    plain_stages = build(ExperimentSpec, load_config(str(ROOT / path))).stages
    assert {name: stage for name, stage in stages.items() if name != "base"} == {
        name: stage for name, stage in plain_stages.items() if name != "base"}
