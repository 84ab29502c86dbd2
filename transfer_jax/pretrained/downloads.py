"""Files from web addresses: into the cache once, going on where an interrupted download stopped, checked by hash."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from transfer_jax.core.errors import UserError
from transfer_jax.data.sources.locations import cache_dir

CHUNK = 2**20
ATTEMPTS = 4
PAUSE = 1.0  # seconds before the second attempt; doubled before each further one
TIMEOUT = 30.0  # seconds without an answer
OWN_MACHINE = ("localhost", "127.0.0.1", "::1")
PASSING = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)
DATE = r"(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])"


def download(url: str, sha256: str | None = None) -> tuple[Path, str]:
    """The file of `url` in the cache, and its SHA-256; the network is asked only the first time.

    Args:
        url: https, or http on this machine.
        sha256: hexadecimal digits (all or the first ones) of the hash; default: those in the name of the file, as
            PyTorch's releases carry them ('resnet50-0676ba61.pth').

    Raises UserError for a server that has no such file, a broken connection, or another hash (the file is removed).
    """
    name = _file_name(url)
    wanted = sha256 or hash_in_name(name)
    folder = cache_dir() / "weights" / hashlib.sha256(url.encode()).hexdigest()[:16]
    path = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            if not path.is_file():
                _transfer(url, path, may_go_on=wanted is not None)
            return path, checked_hash(path, wanted, url)
    except OSError as error:
        raise UserError(f"{url!r} cannot be kept in {str(folder)!r}: {error.strerror or error}; make room there or set "
                        f"TRANSFER_JAX_CACHE to another folder") from error


def hash_in_name(name: str) -> str | None:
    """The first digits of a hash in a file's name; a date such as 20240131 is none."""
    found = re.search(rf"-(?!{DATE}\.)([0-9a-f]{{8,64}})\.", name)
    return found[1] if found else None


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_hash(found: str, wanted: str | None, source: str) -> None:
    """Raises unless `found` begins with `wanted`."""
    if wanted and not found.startswith(wanted.lower()):
        raise UserError(f"{source!r} has the sha256 {found}, but {wanted} was wanted: it is damaged or another file; "
                        f"fetch it again, or correct the sha256")


def checked_hash(path: Path, wanted: str | None, source: str) -> str:
    """SHA-256 of a file of the cache, which is removed if it is not the one that was wanted."""
    found = file_hash(path)
    try:
        require_hash(found, wanted, source)
    except UserError:
        path.unlink()
        raise
    return found


def _file_name(url: str) -> str:
    try:
        parts = urllib.parse.urlsplit(url)
        _require_encryption(url)
    except ValueError as error:
        raise UserError(f"{url!r} is no web address ({error}); correct it") from error
    name = re.sub(r"[^\w.\-]", "_", urllib.parse.unquote(parts.path).rpartition("/")[2])
    if name.strip(".") == "":
        raise UserError(f"{url!r} names no file; give the address of one")
    return name


def _require_encryption(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "https" and parts.hostname not in OWN_MACHINE:
        raise UserError(f"{url!r} is not encrypted; use its https:// address")


def _transfer(url: str, path: Path, may_go_on: bool) -> None:
    """Downloads to a partial file beside `path` in a few attempts, each of which goes on where the last one stopped.

    may_go_on: also where an earlier run stopped; not without a hash that would show that the file has changed since.
    """
    partial = path.with_name(path.name + ".partial")
    if not may_go_on:
        partial.unlink(missing_ok=True)
    fault = "the connection broke off"
    for attempt in range(ATTEMPTS):
        time.sleep(PAUSE * 2 ** (attempt - 1) if attempt else 0)
        try:
            if _attempt(url, partial, path.name):
                os.replace(partial, path)
                return
        except urllib.error.HTTPError as error:
            fault = f"the server answers {error.code} {error.reason}"
            if error.code == 416:  # what lies there is no beginning of this file
                partial.unlink(missing_ok=True)
            elif error.code < 500 and error.code != 429:
                raise UserError(f"{url!r} cannot be fetched: {fault}; check the address") from error
        except (http.client.InvalidURL, ValueError) as error:
            raise UserError(f"{url!r} is no web address ({error}); correct it") from error
        except PASSING as error:
            fault = str(getattr(error, "reason", error)) or type(error).__name__
    raise UserError(f"{url!r} cannot be fetched: {fault}; check the network and run the same again, or give a local "
                    f"file")


def _attempt(url: str, partial: Path, name: str) -> bool:
    """One request; whether the file is complete afterwards."""
    start = partial.stat().st_size if partial.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        _require_encryption(answer.url)
        start = start if answer.status == 206 else 0
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length else None
        with open(partial, "ab" if start else "wb") as file, _progress() as progress:
            task = progress.add_task(name, total=total, completed=start)
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                progress.advance(task, len(chunk))
    return total is None or partial.stat().st_size == total


def _progress() -> Progress:
    return Progress(TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
                    TimeRemainingColumn(), transient=True, console=Console(stderr=True))
