"""Models of the Hugging Face hub, through its own client: its cache, offline mode and endpoint are honoured."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants, errors

from transfer_jax.core.errors import UserError, nearest
from transfer_jax.pretrained.downloads import file_hash, require_hash

BESIDE = ("config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt",
          "merges.txt", "vocab.json", "special_tokens_map.json", "modules.json", "1_Pooling/config.json", "model.json")
# In the order of preference: safe and complete first. An index stands for all of its shards.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "parameters.safetensors",
           "open_clip_model.safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json")
INDEX = ".index.json"
# The HTTP library below the client changes between its versions; its errors are a base of the client's own.
NETWORK = (*errors.HfHubHTTPError.__bases__, OSError, ValueError)


def from_hub(name: str, source: str, revision: str | None = None,
             sha256: str | None = None) -> tuple[Path, str | None, str | None]:
    """Brings 'org/name[@revision][/file]' to this machine, with the small files that describe it.

    Returns:
        The folder (or the named file), the commit that `revision` stands for, and the hash of the weights if they
        are one file. Raises one UserError where the hub has no such thing, or is out of reach and the cache as well.
    """
    found = re.fullmatch(r"([\w.\-]+/[\w.\-]+)(?:@([\w.\-]+))?(?:/(.+))?", name)
    if found is None:
        raise UserError(f"{source!r} is not of the form hf://org/name[@revision][/file]")
    repository, pinned, file = found[1], found[2] or revision, found[3]
    try:
        folder, weights = _snapshot(repository, pinned, file, source)
    except (errors.EntryNotFoundError, *NETWORK) as error:
        raise UserError(f"{source!r} cannot be fetched: {_reason(error)}") from error
    hashes = [_checked(path, source) for path in weights]
    single = hashes[0] if len(hashes) == 1 else None
    if sha256 and single is None:
        raise UserError(f"{source!r} has its weights in {len(hashes)} files; sha256 speaks of a single one: pin the "
                        f"revision instead")
    if sha256:
        require_hash(single, sha256, source)
    return folder / file if file else folder, _commit(folder), single


def _snapshot(repository: str, revision: str | None, file: str | None, source: str) -> tuple[Path, list[Path]]:
    """The folder in the hub's cache, and the files of the weights in it."""
    cached = constants.HF_HUB_OFFLINE
    if not cached:
        try:
            info = huggingface_hub.HfApi().model_info(repository, revision=revision)
            names = [item.rfilename for item in info.siblings or ()]
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError):
            raise
        except NETWORK:
            if _cached_folder(repository, revision) is None:
                raise
            cached = True
    if cached:
        folder = _cached_folder(repository, revision)
        if folder is None:
            raise errors.LocalEntryNotFoundError(f"{repository} is not in the cache of the hub")
        names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    weights = _weights(names, file, source)
    if not cached:
        wanted = [*weights, *(name for name in names if name in BESIDE)]
        # By the user's revision, not by its commit: then the cache knows it by this name when the hub is out of reach.
        folder = Path(huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=wanted))
    return folder, [folder / name for name in weights if not name.endswith(INDEX)]


def _cached_folder(repository: str, revision: str | None) -> Path | None:
    try:
        # Without a pattern the client would ask for files of the repository that were never wanted.
        return Path(huggingface_hub.snapshot_download(repository, revision=revision, local_files_only=True,
                                                      allow_patterns=[]))
    except errors.LocalEntryNotFoundError:
        return None


def _weights(names: Iterable[str], file: str | None, source: str) -> list[str]:
    """The named file, or the best form of weights that is there; an index with its shards."""
    names = list(names)
    if file is not None and file not in names:
        close = nearest(file, names)
        raise UserError(f"{source!r} cannot be fetched: there is no such file"
                        + (f"; near it lie: {', '.join(close)}" if close else ""))
    chosen = file or next((name for name in WEIGHTS if name in names), None)
    if chosen is None:
        raise UserError(f"{source!r} holds no weights in a form that is read here ({', '.join(WEIGHTS)}); name one "
                        f"of its files: {source}/FILE")
    if not chosen.endswith(INDEX):
        return [chosen]
    stem, _, suffix = chosen.removesuffix(INDEX).rpartition(".")
    return [chosen, *sorted(name for name in names
                            if re.fullmatch(rf"{re.escape(stem)}-\d+-of-\d+\.{re.escape(suffix)}", name))]


def _checked(path: Path, source: str) -> str:
    """SHA-256 of a file, which must be the one that its place in the cache is called after; else it is removed.

    The hub's cache holds links to large files that bear their hashes as names.
    """
    place = path.resolve()
    found = file_hash(place)
    if re.fullmatch(r"[0-9a-f]{64}", place.name) and place.name != found:
        path.unlink()
        place.unlink(missing_ok=True)
        raise UserError(f"{source!r}: {path.name!r} arrived damaged (its sha256 is not the one that the hub tells); it "
                        f"was removed, fetch it again")
    return found


def _reason(error: Exception) -> str:
    """What is wrong and what to do, in half a sentence."""
    if isinstance(error, errors.GatedRepoError):
        return "its owner asks for permission; accept the terms on the hub's page and log in with `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "the hub has no such repository, or a private one; check the name, or log in with `hf auth login`"
    if isinstance(error, errors.RevisionNotFoundError):
        return "the repository has no such revision; check its branches and tags"
    if isinstance(error, errors.LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE:
        return "it is not in the hub's cache on this machine; unset HF_HUB_OFFLINE to download it"
    text = next(iter(str(error).splitlines()), "") or type(error).__name__
    return f"{text.rstrip('.')}; check the network, or use a copy on this machine"


def _commit(folder: Path) -> str | None:
    """The commit in the path of the hub's cache: .../snapshots/<commit>."""
    parts = folder.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else None
