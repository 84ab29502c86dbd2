"""Paths, web addresses and published names: fetched once, resumed, checked."""

import hashlib
import urllib.parse

import numpy as np
import pytest

from tests.sources.hub import Hub
from transfer_jax.core.errors import UserError
from transfer_jax.pretrained import catalog, downloads
from transfer_jax.pretrained.downloads import hash_in_name
from transfer_jax.pretrained.sources import fetch

CONTENT = np.random.default_rng(0).bytes(300_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
NAME = f"net-{DIGEST[:8]}.pth"


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("TRANSFER_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(downloads, "PAUSE", 0.0)
    with Hub(tmp_path / "server") as hub:
        hub.add("files", {"net.pth": CONTENT, NAME: CONTENT, "net-00000000.pth": CONTENT})
        yield hub


def one_sentence(caught):
    text = str(caught.value)
    return text if "\n" not in text else pytest.fail(f"more than one line: {text}")


def test_an_address_is_fetched_once(server):
    first = fetch(f"{server.url}/files/net.pth")
    assert first.path.read_bytes() == CONTENT and first.sha256 == DIGEST and first.revision is None
    server.stop()
    assert fetch(f"{server.url}/files/net.pth", sha256=DIGEST.upper()).path == first.path
    assert len(server.requests) == 1


def test_a_wrong_hash_removes_the_file(server):
    with pytest.raises(UserError, match=f"has the sha256 {DIGEST}") as caught:
        fetch(f"{server.url}/files/net.pth", sha256="0" * 64)
    assert "correct the sha256" in one_sentence(caught)
    with pytest.raises(UserError, match="but 00000000 was wanted"):
        fetch(f"{server.url}/files/net-00000000.pth")
    assert not [path for path in (server.folder.parent / "cache").rglob("*.pth*")]
    assert fetch(f"{server.url}/files/{NAME}").sha256 == DIGEST


def test_an_interrupted_download_goes_on(server):
    path = f"/files/{NAME}"
    server.cut[path] = [100_000, 50_000]
    assert fetch(server.url + path).path.read_bytes() == CONTENT
    assert server.ranges == ["bytes=100000-", "bytes=150000-"]


def test_a_later_run_goes_on_only_where_a_hash_can_tell(server):
    path = f"/files/{NAME}"
    for name in (path, "/files/net.pth"):
        server.cut[name] = [10_000] + [0] * (downloads.ATTEMPTS - 1)
        with pytest.raises(UserError, match="the connection broke off; check the network"):
            fetch(server.url + name)
    server.ranges.clear()
    assert fetch(server.url + path).sha256 == DIGEST
    assert server.ranges == ["bytes=10000-"]
    assert fetch(f"{server.url}/files/net.pth").sha256 == DIGEST
    assert server.ranges == ["bytes=10000-"]


def test_the_rest_of_another_file_is_thrown_away(server):
    path = f"/files/{NAME}"
    server.cut[path] = [200_000] + [0] * (downloads.ATTEMPTS - 1)
    with pytest.raises(UserError):
        fetch(server.url + path)
    (partial,) = (server.folder.parent / "cache").rglob("*.partial")
    partial.write_bytes(CONTENT + CONTENT)  # longer than the file: the server answers 416
    assert fetch(server.url + path).path.read_bytes() == CONTENT


def test_passing_faults_are_waited_out(server):
    server.statuses["/files/net.pth"] = [503, 429]
    assert fetch(f"{server.url}/files/net.pth").sha256 == DIGEST
    server.statuses[f"/files/{NAME}"] = [503] * downloads.ATTEMPTS
    with pytest.raises(UserError, match="the server answers 503 Service Unavailable; check the network") as caught:
        fetch(f"{server.url}/files/{NAME}")
    one_sentence(caught)


@pytest.mark.parametrize(("url", "message"), [
    ("{}/files/absent.pth", "answers 404 Not Found; check the address"),
    ("{}/files/", "names no file"), ("{}/files/..", "names no file"),
    ("http://example.org/net.pth", "is not encrypted; use its https:// address"),
    ("https://[broken/net.pth", "is no web address"),
    ("https://localhost:port/net.pth", "is no web address"), ("{}/files/a b.pth", "is no web address"),
    ("http://127.0.0.1:9/net.pth", "Connection refused; check the network")])
def test_bad_addresses(server, url, message):
    with pytest.raises(UserError, match=message) as caught:
        fetch(url.format(server.url))
    one_sentence(caught)


def test_a_file_cannot_leave_its_folder(server):
    server.add("files", {"odd/..%2f..%2fx": b"1"})
    with pytest.raises(UserError, match="404"):
        fetch(f"{server.url}/files/odd/..%2F..%2F..%2Fsecret")
    assert all(part not in (" ", "/") for part in downloads._file_name("https://a/b/%2Fe t.pth?x=1"))


def test_hashes_in_names():
    assert hash_in_name("resnet50-0676ba61.pth") == "0676ba61"
    assert hash_in_name("vgg13-19584684.pth") == "19584684"
    assert hash_in_name("vit-20231205.npz") is None
    assert hash_in_name("model_20210831-ea4938fc.pth") == "ea4938fc"
    assert hash_in_name("model-00001-of-00002.safetensors") is None


def test_no_room_in_the_cache(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TRANSFER_JAX_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot be kept in .* TRANSFER_JAX_CACHE") as caught:
        fetch(f"{server.url}/files/net.pth")
    one_sentence(caught)


def test_published_names(server, monkeypatch):
    entry = catalog.Published("resnet18", "V1", NAME, 224, 256)
    monkeypatch.setattr(catalog, "ADDRESS", f"{server.url}/files/")
    monkeypatch.setattr(catalog, "TORCHVISION", (entry,))
    found = fetch("torchvision/resnet18.IMAGENET1K_V1")
    assert found.source == "torchvision/resnet18.IMAGENET1K_V1" and found.sha256 == DIGEST
    with pytest.raises(UserError, match="torchvision/resnet18 has no weights 'V7'; there are: V1"):
        fetch("torchvision/resnet18.V7")
    with pytest.raises(UserError, match="did you mean 'torchvision/resnet18'"):
        fetch("torchvision/resnet81")


def test_paths(tmp_path, monkeypatch):
    (tmp_path / "net.pth").write_bytes(CONTENT)
    assert fetch(str(tmp_path / "net.pth")).sha256 == DIGEST
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fetch("~/net.pth").path == tmp_path / "net.pth"
    monkeypatch.chdir(tmp_path)
    assert fetch("net.pth", sha256=DIGEST[:10]).path.read_bytes() == CONTENT
    with pytest.raises(UserError, match="no file or folder here.*near it lie: net.pth") as caught:
        fetch(str(tmp_path / "nett.pth"))
    one_sentence(caught)
    with pytest.raises(UserError, match="has the sha256"):
        fetch("net.pth", sha256="ab")
    with pytest.raises(UserError, match="'main' needs a repository of the hub"):
        fetch("net.pth", revision="main")
    assert (tmp_path / "net.pth").exists()


def test_a_run_of_ours_means_its_model(tmp_path):
    model = tmp_path / "run" / "model"
    model.mkdir(parents=True)
    (model / "model.json").write_text("{}")
    (model / "parameters.safetensors").write_bytes(CONTENT)
    found = fetch(str(tmp_path / "run"))
    assert found.path == model and found.sha256 == DIGEST
    with pytest.raises(UserError, match="is a folder; sha256 speaks of a single file"):
        fetch(str(tmp_path), sha256="00")


def test_names_of_torchvision_reach_their_files():
    for entry in catalog.TORCHVISION:
        assert catalog.find_published(f"{entry.architecture}.{entry.tag}") is entry
        assert urllib.parse.urlsplit(entry.url).scheme == "https" and hash_in_name(entry.file)
        assert catalog.published_file(entry.file) is entry
