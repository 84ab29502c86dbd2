"""Where parameters come from: a path, an address, a hub's repository, or a published name -> files on this machine."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from transfer_jax.core.errors import UserError, nearest
from transfer_jax.pretrained.catalog import find_published
from transfer_jax.pretrained.downloads import download, file_hash, require_hash

SINGLE_FILES = ("parameters.safetensors", "model.safetensors", "pytorch_model.bin")  # of a folder's weights


@dataclasses.dataclass(frozen=True)
class Fetched:
    """A local file or folder, and what identifies it: the hub's commit, and the hash of weights in a single file."""

    path: Path
    source: str
    revision: str | None = None
    sha256: str | None = None


def fetch(source: str, sha256: str | None = None, revision: str | None = None) -> Fetched:
    """Brings `source` to this machine (once: later calls find it in the cache).

    Args:
        source: a path; an https address; 'hf://org/name[@revision][/file]'; 'torchvision/resnet50[.V1]';
            'timm/resnet50.a1_in1k'; or a run of ours, whose `model/` is meant. A path that exists comes first.
        sha256: what the hash of the weights must be (or begin with), if they are a single file.
        revision: commit, branch or tag of a hub's repository.

    Raises UserError, in one sentence, for whatever is not there or not what it should be.
    """
    source = str(source)
    named = None if Path(source).expanduser().exists() else re.fullmatch(r"(timm|torchvision)/([\w.\-]+)", source)
    if source.startswith("hf://") or (named and named[1] == "timm"):
        from transfer_jax.pretrained.hub import from_hub  # the hub's client takes half a second to import

        path, commit, found = from_hub(source.removeprefix("hf://"), source, revision, sha256)
        return Fetched(path, source, commit, found)
    if revision is not None:
        raise UserError(f"revision {revision!r} needs a repository of the hub (hf://org/name); {source!r} is none")
    if named or source.startswith(("https://", "http://")):
        return Fetched(*_downloaded(find_published(named[2]).url if named else source, source, sha256))
    return _local(source, sha256)


def _downloaded(url: str, source: str, sha256: str | None) -> tuple[Path, str, None, str]:
    path, found = download(url, sha256)
    return path, source, None, found


def _local(source: str, sha256: str | None) -> Fetched:
    path = Path(source).expanduser()
    if not path.exists():
        beside = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
        close = nearest(path.name, beside)
        raise UserError(f"the source {source!r} is no file or folder here, and no https://, hf://, torchvision/ or "
                        f"timm/ name" + (f"; near it lie: {', '.join(close)}" if close else ""))
    if path.is_dir() and (path / "model" / "model.json").is_file():
        path = path / "model"
    weights = next((path / name for name in SINGLE_FILES if (path / name).is_file()), path)
    found = file_hash(weights) if weights.is_file() else None
    if sha256 and found is None:
        raise UserError(f"{source!r} is a folder; sha256 speaks of a single file, name it")
    if sha256:
        require_hash(found, sha256, source)
    return Fetched(path, source, None, found)
