"""Reading zip and tar archives that somebody else made: regular files with harmless names, and nothing else."""

import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from biocnn.errors import DownloadError

_MAX_MEMBERS = 500_000
# What archivers of macOS and Windows add.
_LITTER = {"__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini"}


def members(archive: Path, kind: Literal["zip", "tar"], target: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Go through the regular files of an archive.

    Args:
        archive: file to read.
        kind: ``"zip"``, or ``"tar"`` with or without compression.
        target: folder that the caller unpacks to; nothing is written here.

    Yields:
        Name relative to `target`, and the open content, to be read before the next one is asked for.

    Raises:
        DownloadError: if a name leads outside `target`, a member is a link, a device or encrypted, there are more
            than 500,000 members, or the archive is damaged.
    """
    walk = _zip_members(archive) if kind == "zip" else _tar_members(archive, target)
    try:
        for number, (name, content) in enumerate(walk):
            if number >= _MAX_MEMBERS:
                raise DownloadError(f"{archive} holds more than {_MAX_MEMBERS:,} files; it was not unpacked.")
            parts = _checked_parts(archive, name)
            if not _LITTER & set(parts):
                yield "/".join(parts), content
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError) as error:
        raise DownloadError(f"{archive} cannot be unpacked as {kind} ({error}).") from error


def _checked_parts(archive: Path, name: str) -> tuple[str, ...]:
    path = PurePosixPath(name)
    unsafe = path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or not path.parts
    if unsafe or any(ord(character) < 32 for character in name):
        raise DownloadError(f"{archive} holds the unsafe name {name!r}; it was not unpacked.")
    return path.parts


def _zip_members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            mode = info.external_attr >> 16
            if info.is_dir():
                continue
            # Archivers that know no Unix modes leave the type 0.
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
                raise DownloadError(f"{archive} holds {info.filename!r}, a link or device; it was not unpacked.")
            if info.flag_bits & 0x1:
                raise DownloadError(f"{archive} holds {info.filename!r} encrypted; it was not unpacked.")
            with opened.open(info) as content:
                yield info.filename, content


def _tar_members(archive: Path, target: Path) -> Iterator[tuple[str, IO[bytes]]]:
    with tarfile.open(archive, "r:*") as opened:
        for member in opened:
            if member.isdir():
                continue
            if not member.isreg():
                raise DownloadError(f"{archive} holds {member.name!r}, a link or device; it was not unpacked.")
            _checked_parts(archive, member.name)
            # The standard library's own check as well: it also resolves links in the folders on the way.
            content = opened.extractfile(tarfile.data_filter(member, str(target)))
            if content is not None:
                with content:
                    yield member.name, content
