"""Whatever the user gets wrong is one clear sentence on stderr and exit code 2, without a traceback."""

import numpy as np
import pytest
from PIL import Image
from tiny_experiment import ROOT, command, config, process, read_json, write_config


def assert_one_sentence(done, *parts):
    err = done.stderr
    assert done.returncode == 2, err
    assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err, err
    for part in parts:
        assert part in err, err


@pytest.fixture
def fails(tmp_path, digits_file):
    """A function: config changes, flags -> stderr of `train`, which must fail with one sentence."""
    def run(changes, *parts, flags=()):
        path = write_config(tmp_path / "config", config(digits_file, changes))
        done = command("train", "--config", path, "--workdir", tmp_path / "run", "--quiet", *flags)
        assert_one_sentence(done, *parts)
        assert not (tmp_path / "run" / "checkpoints").exists(), "every fault shows before the first stage trains"

    return run


DIGITS = {"kind": "task", "task": "digits", "stream": "train"}


@pytest.mark.parametrize(("changes", "parts"), [
    # misspelt keys and names, each with the nearest valid one
    ({"stages.head.leraning_rate": 1.0}, ["unknown key 'leraning_rate' in config.stages.head"]),
    ({"chekpoint_every": 1}, ["unknown key 'chekpoint_every' in config; did you mean 'checkpoint_every'?"]),
    ({"streams.train.batchsize": 1}, ["unknown key 'batchsize' in config.streams.train; did you mean 'batch_size'?"]),
    ({"streams.train.data.pth": "x"}, ["unknown argument 'pth'", "did you mean 'path'?"]),
    ({"streams.train.data.kind": "array"}, ["unknown kind of data 'array'", "did you mean 'arrays'?"]),
    ({"model.heads.other": {"kind": "linear"}, "tasks.other": {"kind": "classification", "head": "other"}},
     ["task 'other' (no stage trains or evaluates it)", "needs at least 2 classes"]),
    ({"model.backbones.backbone.kind": "small_cn"}, ["unknown backbone 'small_cn'", "did you mean 'small_cnn'?"]),
    ({"model.backbones.backbone.width": (4,)}, ["unknown argument 'width'", "did you mean 'widths'?"]),
    ({"stages.head.partition": ((".*", "frozen"),), "stages.head.groups": {}},
     ["config.stages.head", "every parameter is frozen"]),
    ({"model.backbones.heads": {"kind": "small_cnn"}}, ["config.model.backbones: 'heads' cannot name a backbone"]),
    ({"model.heads.digits.kind": "liner"}, ["unknown head 'liner'", "did you mean 'linear'?"]),
    ({"tasks.digits.kind": "clasification"}, ["'clasification'", "did you mean 'classification'?"]),
    ({"tasks.digits.head": "digit"}, ["unknown head 'digit' in config.tasks.digits; did you mean 'digits'?"]),
    ({"tasks.digits.metrics": ("acuracy",)}, ["'acuracy'", "did you mean 'accuracy'?"]),
    ({"stages.head.init": "pretrian"}, ["unknown stage 'pretrian' in config.stages.head.init", "'pretrain'?"]),
    ({"stages.head.evaluate": {"tset": "digits"}}, ["unknown stream 'tset'", "did you mean 'test'?"]),
    ({"stages.head.evaluate": {"test": "digit"}}, ["unknown task 'digit'", "did you mean 'digits'?"]),
    ({"stages.head.objective.terms.digits.stream": "trian"}, ["unknown stream 'trian'", "did you mean 'train'?"]),
    ({"stages.head.objective.terms.digits.task": "digit"}, ["unknown task 'digit'", "did you mean 'digits'?"]),
    ({"stages.head.objective.terms.digits.head": "digit"}, ["unknown head 'digit'", "did you mean 'digits'?"]),
    ({"stages.head.objective.terms.digits.kind": "cross_entrpy"}, ["unknown term 'cross_entrpy'",
                                                                  "did you mean 'cross_entropy'?"]),
    ({"stages.head.objective.terms.digits.label_smothing": 0.1}, ["unknown argument 'label_smothing'",
                                                                 "did you mean 'label_smoothing'?"]),
    ({"stages.head.objective.combine": {"kind": "uncertainity"}}, ["'uncertainity'", "did you mean 'uncertainty'?"]),
    ({"stages.head.optimizer": {"kind": "adm"}}, ["unknown optimizer 'adm'"]),
    ({"stages.head.optimizer": {"kind": "sgd", "momentm": 1.0}}, ["'momentm'", "did you mean 'momentum'?"]),
    ({"stages.head.schedule": {"kind": "cosin"}}, ["unknown schedule 'cosin'", "did you mean 'cosine'?"]),
    ({"stages.head.best": {"stream": "test", "metric": "acuracy"}}, ["unknown metric 'acuracy'",
                                                                      "did you mean 'accuracy'?"]),
    ({"stages.head.best": {"stream": "train"}}, ["best.stream 'train' is not evaluated"]),
    ({"streams.train.augment": ({"kind": "flp"},)}, ["'flp'", "did you mean 'flip'?"]),
    ({"export": "finetun"}, ["unknown stage 'finetun' in config.export; did you mean 'finetune'?"]),
    ({"report.streams": ("tst",)}, ["unknown stream 'tst' in config.report.streams; did you mean 'test'?"]),
    # wrong types and values
    ({"stages.head.lr": "fast"}, ["config.stages.head.lr = 'fast' does not fit"]),
    ({"stages.head.steps": 1.5}, ["config.stages.head.steps = 1.5 does not fit"]),
    ({"stages.head.lr": -1.0}, ["config.stages.head.lr = -1.0 does not fit"]),
    ({"stages.head.epochs": 1.0}, ["give one duration"]),
    ({"stages.head.steps": None}, ["give a duration"]),
    ({"seeds": (0, 0)}, ["seeds must be distinct"]),
    ({"precision": "float16"}, ["config.precision = 'float16' does not fit"]),
    ({"mesh": {"data": 3}}, ["config.mesh {'data': 3} does not fit"]),
    ({"sharding": (("encoder/.*", "fsdp"), (".*", "fsdp"))}, ["config.sharding: rule 'encoder/.*' -> 'fsdp' matches"]),
    ({"frozen_sharding": ((".*", "split"),)}, ["config.frozen_sharding: unknown tactic 'split'"]),
    ({"heartbeat_seconds": 0}, ["config.heartbeat_seconds = 0 does not fit"]),
    ({"stages.head.accumulate": 3}, ["accumulate = 3 does not divide the batch size 8"]),
    ({"model.heads.digits.classes": 7}, ["classes=7, but its task 'digits' needs 10"]),
    ({"model.backbones.backbone.until": "stage9"}, ["unknown tap 'stage9'"]),
    ({"streams.train.split": "trian"}, ["'trian'"]),
    # partitions
    ({"stages.head.partition": (("head/.*", "head"), (".*", "frozen"))}, ["rule 'head/.*' -> 'head' matches no"]),
    ({"stages.head.partition": (("heads/.*", "head"),)}, ["no rule covers 4 parameters"]),
    ({"stages.head.groups": {"heads": {}}}, ["unknown group 'head'", "did you mean 'heads'?"]),
    ({"stages.head.new": ("head/.*",)}, ["config.stages.head.new: 'head/.*' matches no parameter"]),
    # data
    ({"streams.train.labels_per_class": 10000}, ["10000 examples per class are asked for, but class"]),
    ({"streams.train.data.path": "absent.npz"}, ["'absent.npz' does not exist"]),
    ({"streams.train.labelled": False}, ["needs labels ('label')", "'train'", "labelled=False"]),
    ({"streams.test.labelled": False}, ["evaluate: the stream 'test' is set to labelled=False"]),
    ({"streams.test.classes": (1, 0)}, ["task 'digits'", "has the classes"]),
    ({f"streams.{name}.data.arrays": {f"{split}_image": f"{split}_image" for split in ("train", "test")}
      for name in ("train", "test")},
     ["task 'digits' (its streams: 'train', 'test'): the task needs at least 2 classes"]),
    ({"tasks.vectors": {"kind": "embedding", "head": "digits"}},
     ["the head 'digits' cannot answer both tasks 'digits' and 'vectors', which need 10 and 64 outputs"]),
    ({"stages.pretrain.init": "checkpoint:absent_run"}, ["absent_run holds no run"]),
])
def test_a_faulty_config_is_one_sentence(fails, changes, parts):
    fails(changes, *parts)


@pytest.mark.parametrize(("flags", "parts"), [
    (("--config.stages.head.lrr=1",), ["unknown key 'lrr' in config.stages.head; did you mean 'lr'?"]),
    (("--config.stages.head.lr",), ["--config.stages.head.lr has no value"]),
    (("--config.name.deep=1",), ["'deep' lies inside 'tiny'"]),
    (("--config.stages.head.lr", "fast"), ["'fast' does not fit"]),
    (("--quite",), ["unknown option '--quite'; did you mean --quiet?"]),
])
def test_faulty_flags_are_one_sentence(fails, flags, parts):
    fails({}, *parts, flags=flags)


def test_labels_of_an_unlabelled_target_domain_may_not_choose_the_result(fails, tmp_path, digits_file):
    align = {"kind": "deep_coral", "streams": {"source": "train", "target": "other"}}
    source = {"kind": "arrays", "path": str(digits_file)}
    changes = {
        "streams.other": {"data": source, "split": "test", "batch_size": 8, "domain": "photo", "labelled": False},
        "streams.test.domain": "photo", "stages.finetune.objective.terms": {"digits": DIGITS, "coral": align},
        "stages.finetune.best": {"stream": "test"}}
    fails(changes, "config.stages.finetune.best chooses by labels of stream 'test'", "oracle=True")


def image_folder(folder, classes=("cat", "dog"), count=6, seed=0):
    rng = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(folder / name / f"{number}.png")
    return folder


def on_folder(folder, **more):
    """Changes that put the experiment onto an image folder."""
    stream = {"data": {"kind": "folder", "path": str(folder)}, "batch_size": 4, **more}
    return {"streams.train": stream, "streams.test": stream, "stages.finetune": None}


@pytest.mark.parametrize("fault", ["missing", "empty", "empty class", "classes differ", "unreadable"])
def test_faulty_image_folders_are_named(tmp_path, digits_file, monkeypatch, fault):
    folder = tmp_path / "images"
    named = str(folder)
    if fault == "empty":
        folder.mkdir()
    if fault == "empty class":
        (image_folder(folder) / "owl").mkdir()
        named = str(folder / "owl")
    if fault == "classes differ":
        image_folder(folder / "train")
        image_folder(folder / "test", ("cat", "owl"))
        named = "dog, owl"
    if fault == "unreadable":
        (image_folder(folder) / "cat" / "3.png").write_bytes(b"this is no image")
        named = str(folder / "cat" / "3.png")
    changes = on_folder(folder)
    del changes["stages.finetune"]
    path = write_config(tmp_path, config(digits_file, changes))
    done = command("train", "--config", path, "--workdir", tmp_path / "run", "--quiet")
    assert_one_sentence(done, named)


@pytest.mark.parametrize("storage", ["device", "host"])
def test_bad_images_are_skipped_when_asked_and_counted_in_the_report(tmp_path, digits_file, storage):
    folder = image_folder(tmp_path / "images")
    (folder / "cat" / "3.png").write_bytes(b"this is no image")
    changes = on_folder(folder, on_bad_example="skip", storage=storage)
    del changes["stages.finetune"]
    values = config(digits_file, changes)
    values["stages"] = {"pretrain": values["stages"]["pretrain"]}
    path = write_config(tmp_path, values)
    assert command("train", "--config", path, "--workdir", tmp_path / "run", "--quiet").returncode == 0
    assert read_json(tmp_path / "run" / "stages.json")["pretrain"]["skipped_examples"] == {"train": 1, "test": 1}
    assert "skipped" in (tmp_path / "run" / "report.md").read_text()


@pytest.mark.parametrize(("name", "flags", "parts"), [
    ("train", ("--config", "absent.py", "--workdir", "x"), ["config file 'absent.py' does not exist"]),
    ("sweep", ("--config", "absent.py", "--workdir", "x"), ["config file 'absent.py' does not exist"]),
    ("evaluate", ("--workdir", "absent_run"), ["absent_run holds no run"]),
    ("report", ("--workdir", "absent_run"), ["absent_run"]),
    ("predict", ("--workdir", "absent_run", "--input", __file__), ["absent_run is no exported model"]),
    ("predict", ("--workdir", "absent_run", "--input", "nothing*.png"), ["'nothing*.png' names no image"]),
    ("predict", ("--workdir", "x", "--input", __file__, "--out", "x.txt"), ["must end in .csv or .json"]),
    ("train", ("--config", str(ROOT / "README.md"), "--workdir", "x"), ["is no Python file"]),
    ("evaluate", ("--workdir", "x", "--json", "/dev/null/x"), ["--json /dev/null/x: no file can be written there"]),
    ("evaluate", ("--workdir", "x", "--bset"), ["unknown option '--bset'; did you mean --best?"]),
])
def test_faulty_commands_are_one_sentence(tmp_path, monkeypatch, name, flags, parts):
    monkeypatch.chdir(tmp_path)
    done = command(name, *flags)
    assert_one_sentence(done, *parts)
    assert not any(tmp_path.iterdir()), "a faulty command leaves nothing behind"


def test_nan_stops_the_run_and_keeps_the_last_checkpoint(tmp_path, digits_file):
    values = config(digits_file, {"stages.head.optimizer": {"kind": "sgd"}})
    values["stages"] = {"pretrain": values["stages"]["pretrain"], "head": values["stages"]["head"]}
    values["stages"]["head"] |= {"lr": 1e38, "steps": 40, "schedule": {"kind": "constant"}, "warmup_steps": 0}
    path = write_config(tmp_path, values)
    flags = ("--config", path, "--workdir", tmp_path / "run", "--quiet", "--config.checkpoint_every=1")
    done = command("train", *flags)
    assert_one_sentence(done, "'digits' became NaN or infinite at step")
    step = int(done.stderr.split("at step ")[1].split()[0])
    kept = sorted(int(path.name) for path in (tmp_path / "run" / "checkpoints" / "head").iterdir())
    assert kept and kept[-1] == step - 1
    before = {file: file.read_bytes() for file in (tmp_path / "run" / "checkpoints").rglob("*") if file.is_file()}
    again = command("train", *flags)
    assert (again.returncode, again.stderr.splitlines()[-1]) == (2, done.stderr.strip())
    assert before == {file: file.read_bytes() for file in (tmp_path / "run" / "checkpoints").rglob("*")
                      if file.is_file()}


def test_a_real_process_says_the_same_and_debug_shows_the_traceback(tmp_path, digits_file):
    path = write_config(tmp_path, config(digits_file, {"chekpoint_every": 1}))
    done = process("train", "--config", path, "--workdir", tmp_path / "run")
    assert_one_sentence(done, "did you mean 'checkpoint_every'?")
    assert done.stdout == ""
    shown = process("train", "--config", path, "--workdir", tmp_path / "run", "--debug")
    assert shown.returncode != 0 and "Traceback" in shown.stderr and "UserError" in shown.stderr


@pytest.mark.filterwarnings("ignore:overflow encountered")  # the very point of it
def test_bad_parameters_are_never_saved(tmp_path, digits_file):
    """The first update makes infinite parameters, whose loss would be seen only at the second."""
    changes = {"stages.pretrain.lr": 1e39, "stages.pretrain.optimizer": {"kind": "sgd"}, "checkpoint_every": 1}
    path = write_config(tmp_path, config(digits_file, changes))
    flags = ("--config", path, "--workdir", tmp_path / "run", "--quiet")
    done = command("train", *flags)
    assert_one_sentence(done, "stage 'pretrain': the parameter ", "became NaN or infinite by step 1;")
    assert not (tmp_path / "run" / "checkpoints").exists()
