"""Repositories of the hub, served on this machine: what is asked for, pinned, kept, and refused."""

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save

from tests.sources.hub import Hub, commit_of
from transfer_jax.core.errors import UserError
from transfer_jax.pretrained.formats import read_tensors
from transfer_jax.pretrained.sources import fetch

KERNEL = np.arange(12, dtype=np.float32).reshape(3, 4)
WEIGHTS = save({"kernel": KERNEL})
DIGEST = hashlib.sha256(WEIGHTS).hexdigest()
FILES = {"model.safetensors": WEIGHTS, "pytorch_model.bin": b"old form", "config.json": b'{"model_type": "bert"}',
         "README.md": b"text", "onnx/model.onnx": b"large", "1_Pooling/config.json": b"{}"}
NAME = "org/net"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with Hub(tmp_path / "server") as server:
        server.add(NAME, FILES)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE",
                            server.url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield server


def offline(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def one_sentence(caught):
    text = str(caught.value)
    return text if "\n" not in text else pytest.fail(f"more than one line: {text}")


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_only_what_is_needed_is_fetched(hub):
    found = fetch(f"hf://{NAME}")
    assert files(found.path) == {"model.safetensors", "config.json", "1_Pooling/config.json"}
    assert found.revision == commit_of(NAME, "main") and found.sha256 == DIGEST
    assert (read_tensors(found.path).tensors["kernel"] == KERNEL).all()


def test_the_second_time_nothing_is_transferred(hub):
    first = fetch(f"hf://{NAME}")
    before = len(hub.requests)
    assert fetch(f"hf://{NAME}", sha256=DIGEST[:16]) == first
    assert not [line for line in hub.requests[before:] if line.startswith("GET") and "/api/" not in line]


def test_the_cache_is_enough_without_a_network(hub, monkeypatch):
    first = fetch(f"hf://{NAME}")
    hub.stop()
    assert fetch(f"hf://{NAME}") == first  # the hub is out of reach
    offline(monkeypatch)
    before = len(hub.requests)
    assert fetch(f"hf://{NAME}") == first  # the user says so
    assert fetch(f"hf://{NAME}@{first.revision}").path == first.path
    assert fetch(f"hf://{NAME}/model.safetensors").path == first.path / "model.safetensors"
    assert len(hub.requests) == before
    with pytest.raises(UserError, match="not in the hub's cache on this machine; unset HF_HUB_OFFLINE") as caught:
        fetch("hf://org/other")
    one_sentence(caught)


def test_a_hub_that_fails_is_no_obstacle_to_the_cache(hub):
    first = fetch(f"hf://{NAME}")
    hub.statuses[f"/api/models/{NAME}"] = [503]
    assert fetch(f"hf://{NAME}") == first
    hub.statuses["/api/models/org/other"] = [503]
    with pytest.raises(UserError, match="cannot be fetched: .*503.*; check the network") as caught:
        fetch("hf://org/other")
    one_sentence(caught)


def test_a_single_file_comes_with_its_description(hub):
    found = fetch(f"hf://{NAME}/pytorch_model.bin")
    assert found.path.name == "pytorch_model.bin" and found.path.read_bytes() == b"old form"
    assert files(found.path.parent) == {"pytorch_model.bin", "config.json", "1_Pooling/config.json"}
    assert found.sha256 == hashlib.sha256(b"old form").hexdigest()
    with pytest.raises(UserError, match="no such file; near it lie: pytorch_model.bin") as caught:
        fetch(f"hf://{NAME}/pytorch_mode.bin")
    one_sentence(caught)


def test_a_revision_is_pinned(hub):
    other = save({"kernel": KERNEL + 1})
    commit = hub.add(NAME, {"model.safetensors": other, "config.json": b"{}"}, "v2")
    for found in (fetch(f"hf://{NAME}@v2"), fetch(f"hf://{NAME}", revision="v2"), fetch(f"hf://{NAME}@{commit}")):
        assert found.revision == commit and found.sha256 == hashlib.sha256(other).hexdigest()
    assert fetch(f"hf://{NAME}").revision == commit_of(NAME, "main")
    with pytest.raises(UserError, match="has no such revision; check its branches and tags") as caught:
        fetch(f"hf://{NAME}@v3")
    one_sentence(caught)


def test_shards_come_together(hub):
    halves = {"model-00001-of-00002.safetensors": save({"a": KERNEL}),
              "model-00002-of-00002.safetensors": save({"b": KERNEL})}
    index = {"metadata": {"total_size": 96}, "weight_map": dict(zip("ab", halves, strict=True))}
    hub.add("org/big", {**halves, "model.safetensors.index.json": json.dumps(index).encode(),
                        "pytorch_model.bin": b"old form", "config.json": b"{}"})
    found = fetch("hf://org/big")
    assert files(found.path) == {*halves, "model.safetensors.index.json", "config.json"}
    assert found.sha256 is None and found.revision == commit_of("org/big", "main")
    assert set(read_tensors(found.path).tensors) == {"a", "b"}
    with pytest.raises(UserError, match="has its weights in 2 files.*pin the revision") as caught:
        fetch("hf://org/big", sha256="00")
    one_sentence(caught)


def test_names_of_timm(hub):
    hub.add("timm/resnet50.a1_in1k", {"model.safetensors": WEIGHTS, "config.json": b"{}"})
    found = fetch("timm/resnet50.a1_in1k")
    assert found.sha256 == DIGEST and found.source == "timm/resnet50.a1_in1k"


def test_old_weights_where_there_are_no_others(hub):
    hub.add("org/old", {"pytorch_model.bin": b"old form", "tf_model.h5": b"x"})
    assert files(fetch("hf://org/old").path) == {"pytorch_model.bin"}


def test_a_damaged_transfer_is_noticed(hub):
    place = f"/large/{NAME}/main/model.safetensors"
    hub.corrupt.add(place)
    with pytest.raises(UserError, match="'model.safetensors' arrived damaged.*fetch it again") as caught:
        fetch(f"hf://{NAME}")
    one_sentence(caught)
    hub.corrupt.clear()
    assert fetch(f"hf://{NAME}").sha256 == DIGEST


def test_a_broken_transfer_is_tried_again(hub, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    place = f"/large/{NAME}/main/model.safetensors"
    hub.cut[place] = [20]
    assert fetch(f"hf://{NAME}").sha256 == DIGEST
    assert hub.requests.count(f"GET {place}") == 2


def test_refusals_are_one_sentence(hub, tmp_path, monkeypatch):
    hub.add("org/secret", FILES)
    hub.gated.add("org/secret")
    hub.add("org/empty", {"README.md": b"text"})
    for source, message in {
            "hf://org/absent": "no such repository, or a private one; check the name, or log in",
            "hf://org/secret": "asks for permission; accept the terms",
            "hf://org/empty": "holds no weights in a form that is read here.*name one of its files",
            "hf://net": "not of the form hf://org/name", "hf://org/a..b": "cannot be fetched: .*; check"}.items():
        with pytest.raises(UserError, match=message) as caught:
            fetch(source)
        one_sentence(caught)
    with pytest.raises(UserError, match="has the sha256"):
        fetch(f"hf://{NAME}", sha256="00")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    with pytest.raises(UserError, match="cannot be fetched: .*refused.*check the network") as caught:
        fetch(f"hf://{NAME}")
    one_sentence(caught)


def test_the_variables_of_the_hub_are_honoured(hub, tmp_path):
    program = f"from transfer_jax.pretrained.sources import fetch; print(fetch('hf://{NAME}').path)"

    def run(**variables):
        known = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120,
                              env={**known, "HF_HOME": str(tmp_path / "home"), "JAX_PLATFORMS": "cpu",
                                   "HF_ENDPOINT": hub.url, **variables})

    online = run()
    assert online.returncode == 0, online.stderr
    assert online.stdout.strip().startswith(str(tmp_path / "home" / "hub"))
    hub.stop()
    assert run(HF_HUB_OFFLINE="1").stdout == online.stdout
