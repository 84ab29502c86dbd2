"""Zip archives that may be hostile: every name and size is checked before anything is read."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from transfer_jax.pretrained.formats.tensor_file import MEBIBYTE, damaged, refused, shown

# Weights hardly compress, but an archive of zeros may; far beyond that it is made to fill the memory.
LARGEST_EXPANSION = 200
ALWAYS_ALLOWED = 64 * MEBIBYTE
READABLE = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class Archive:
    """The members of a zip file, read one by one into memory."""

    def __init__(self, path: Path, where: str) -> None:
        self.where = where
        self.size = path.stat().st_size
        try:
            self._zip = zipfile.ZipFile(path)
            members = self._zip.infolist()
        except (zipfile.BadZipFile, NotImplementedError, ValueError, IndexError, OSError) as error:
            raise damaged(where, f"the zip archive cannot be opened ({shown(error)})") from error
        self._members: dict[str, zipfile.ZipInfo] = {}
        for member in members:
            self._check(member)
            if not member.is_dir():
                self._members[member.filename] = member
        self._check_sizes()

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def _check(self, member: zipfile.ZipInfo) -> None:
        name = member.filename
        if name.startswith(("/", "\\")) or ".." in PurePosixPath(name.replace("\\", "/")).parts or ":" in name[:2]:
            raise damaged(self.where, f"the archive has a member outside of itself, {shown(name)}")
        if name in self._members:
            raise damaged(self.where, f"the archive has the member {shown(name)} twice")
        if member.flag_bits & 1:
            raise refused(self.where, "the archive is encrypted", "decrypt it first")
        if member.compress_type not in READABLE:
            raise refused(self.where, f"the member {shown(name)} is compressed in an unusual way", "pack it anew")

    def _check_sizes(self) -> None:
        stored = sum(member.compress_size for member in self._members.values())
        if stored > self.size:
            raise damaged(self.where, "the members of the archive overlap")
        unpacked = sum(member.file_size for member in self._members.values())
        if unpacked > max(ALWAYS_ALLOWED, LARGEST_EXPANSION * self.size):
            raise damaged(self.where, f"the archive of {self.size} bytes would unpack to {unpacked}")

    @property
    def names(self) -> list[str]:
        """Names of all members that are files."""
        return list(self._members)

    def read(self, name: str) -> bytes:
        """The bytes of one member, its check sum verified; never more than the archive declares."""
        if name not in self._members:
            raise damaged(self.where, f"the archive lacks the member {shown(name)}")
        member = self._members[name]
        try:
            with self._zip.open(member) as file:
                data = file.read(member.file_size + 1)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError,
                ValueError) as error:
            what = f"the member {shown(name)} of the archive cannot be read ({shown(error)})"
            raise damaged(self.where, what) from error
        if len(data) != member.file_size:
            raise damaged(self.where, f"the member {shown(name)} of the archive is shorter or longer than it says")
        return data

    def stream(self, name: str) -> io.BytesIO:
        """One member as a binary file in memory."""
        return io.BytesIO(self.read(name))
