"""A small server on this machine that speaks the protocol of the Hugging Face hub, and serves plain files as well.

    /api/models/ORG/NAME[/revision/REVISION]      what a repository holds, and the commit of the revision
    /api/models/ORG/NAME/tree/COMMIT[?...]        its files with sizes and hashes
    /ORG/NAME/resolve/REVISION/FILE               a file; large ones (LFS) are redirected to
    /large/ORG/NAME/REVISION/FILE                 the bytes, with ranges
    /files/FILE                                   a plain file, with ranges

A repository is a folder ORG/NAME with one folder for each revision.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
import urllib.parse
from pathlib import Path

LARGE = (".safetensors", ".bin", ".pth")


class Hub:
    """Serves `folder`; a context manager. `requests` holds 'METHOD path' of everything that was asked.

    cut: a path -> after how many bytes the connection breaks, once for each entry of the list.
    statuses: a path -> the status of its next answers, one for each entry.
    corrupt: paths whose bytes arrive changed. gated: repositories that ask for permission.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[str] = []
        self.ranges: list[str] = []
        self.cut: dict[str, list[int]] = {}
        self.statuses: dict[str, list[int]] = {}
        self.corrupt: set[str] = set()
        self.gated: set[str] = set()
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def add(self, name: str, files: dict[str, bytes], revision: str = "main") -> str:
        """Adds a revision of a repository, or plain files under the name 'files'; the commit."""
        for file, content in files.items():
            path = self.folder / name / (revision if name != "files" else "") / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return commit_of(name, revision)

    def revision_folder(self, name: str, revision: str) -> Path | None:
        """`revision`: a branch or a commit."""
        for path in sorted((self.folder / name).iterdir()):
            if revision in (path.name, commit_of(name, path.name)):
                return path
        return None


def commit_of(name: str, revision: str) -> str:
    return hashlib.sha1(f"{name}@{revision}".encode()).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """One request."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(url.path)
        self.hub.requests.append(f"{self.command} {path}")
        if statuses := self.hub.statuses.get(path):
            return self._answer(b"", status=statuses.pop(0))
        parts = path.strip("/").split("/")
        if parts[0] == "files":
            return self._bytes(self.hub.folder / "files" / "/".join(parts[1:]), path)
        if parts[0] == "large":
            found = self.hub.revision_folder("/".join(parts[1:3]), parts[3])
            return self._bytes(found / "/".join(parts[4:]), path)
        api = parts[:2] == ["api", "models"]
        name, rest = "/".join(parts[2:4] if api else parts[:2]), parts[4:] if api else parts[2:]
        if not (self.hub.folder / name).is_dir():
            return self._answer(b"", status=401 if api else 404, headers={"X-Error-Code": "RepoNotFound"})
        if name in self.hub.gated and not api:
            return self._answer(b"", status=403, headers={"X-Error-Code": "GatedRepo"})
        found = self.hub.revision_folder(name, rest[1] if rest else "main")
        if found is None:
            return self._answer(b"", status=404, headers={"X-Error-Code": "RevisionNotFound"})
        if not api:
            return self._resolve(found, name, "/".join(rest[2:]))
        tree = rest and rest[0] == "tree"
        return self._answer(json.dumps((_tree if tree else _info)(found, name)).encode(),
                            headers={"Content-Type": "application/json"})

    def _resolve(self, folder: Path, name: str, file: str) -> None:
        """The hub itself answers for small files; for large ones it tells the hash and sends to another host."""
        commit = {"X-Repo-Commit": commit_of(name, folder.name)}
        path = folder / file
        if not path.is_file():
            return self._answer(b"", status=404, headers={"X-Error-Code": "EntryNotFound", **commit})
        content = path.read_bytes()
        if not file.endswith(LARGE):
            return self._answer(content, headers={"ETag": f'"{_blob(content)}"', **commit})
        place = f"http://localhost:{self.hub.server.server_port}/large/{name}/{folder.name}/{urllib.parse.quote(file)}"
        return self._answer(b"", status=302, headers={
            "Location": place, "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Linked-Size": str(len(content)), **commit})

    def _bytes(self, path: Path, name: str) -> None:
        if not path.is_file():
            return self._answer(b"", status=404)
        content = path.read_bytes()
        if name in self.hub.corrupt:
            content = content[:-1] + bytes([content[-1] ^ 1])
        asked = self.headers.get("Range")
        if not asked:
            return self._answer(content, name=name)
        self.hub.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").split("-")[0])
        if start >= len(content):
            return self._answer(b"", status=416)
        return self._answer(content[start:], 206, {
            "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}, name)

    def _answer(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None,
                name: str = "") -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        cuts = self.hub.cut.get(name)
        if cuts and self.command == "GET":
            content = content[:cuts.pop(0)]
            self.close_connection = True
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


def _info(folder: Path, name: str) -> dict:
    return {"id": name, "sha": commit_of(name, folder.name), "private": False, "tags": [],
            "siblings": [{"rfilename": file} for file in _files(folder)]}


def _tree(folder: Path, name: str) -> list[dict]:
    entries = []
    for file in _files(folder):
        content = (folder / file).read_bytes()
        entry = {"type": "file", "path": file, "size": len(content), "oid": _blob(content)}
        if file.endswith(LARGE):
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        entries.append(entry)
    return entries


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _blob(content: bytes) -> str:
    """The name that git gives to a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
