"""Checking the files of a data set against published checksums, else against those recorded by an earlier run.

A record is a JSON file, ``<name>.checksums.json``, that lies beside the data, or in ``$XDG_CACHE_HOME/biocnn``
when the data folder is read-only. The first run writes it; later runs compare.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from biocnn.data.manifest import Manifest, RemoteFile, match_files, split_files
from biocnn.errors import DataError, DatasetNotFoundError
from biocnn.files import file_digest, write_json

Status = Literal["ok", "recorded", "missing", "differs"]
Progress = Callable[[str, int, int | None], None]
"""Called with the name of a file, the bytes done and the bytes in all, if known."""


@dataclass(frozen=True)
class Checked:
    """One file, or one group of files that should be there.

    Attributes:
        name: path below the root, or a glob pattern.
        status: ``ok`` agrees; ``recorded`` seen for the first time; ``missing``; ``differs``.
        detail: what it was compared with, or what is wrong.
    """

    name: str
    status: Status
    detail: str


@dataclass(frozen=True)
class Verification:
    """What :func:`verify` found.

    Attributes:
        files: one entry per file, in the order of the manifest.
        record: where the recorded checksums lie; ``None`` when there are none.
        note: a sentence for the user about the record, empty when there is nothing to say.
    """

    files: tuple[Checked, ...]
    record: Path | None
    note: str

    @property
    def ok(self) -> bool:
        """True when no file is missing and none differs."""
        return all(file.status in ("ok", "recorded") for file in self.files)


def mismatch(path: Path, size: int | None, sha256: str | None, md5: str | None) -> str | None:
    """What is wrong with a file, or ``None``; the size is compared first, as it costs nothing.

    Args:
        path: file that exists.
        size: expected bytes.
        sha256: expected hexadecimal digest.
        md5: expected hexadecimal digest.
    """
    found = path.stat().st_size
    if size is not None and found != size:
        return f"has {found:,} bytes, expected {size:,}"
    for algorithm, expected in (("sha256", sha256), ("md5", md5)):
        if expected is not None and (digest := file_digest(path, algorithm)) != expected:
            return f"has {algorithm} {digest[:12]}..., expected {expected[:12]}..."
    return None


def published(file: RemoteFile) -> tuple[int | None, str | None, str | None]:
    """Bytes, sha256 and md5 that a file has once it lies below the root; ``None`` where not published."""
    if file.unpack == "none":
        return file.bytes, file.sha256, file.md5
    return file.unpacked_bytes, file.unpacked_sha256, file.unpacked_md5


def data_files(manifest: Manifest, root: Path) -> list[str]:
    """Paths below the root of every file there that the manifest speaks of, each once."""
    found: dict[str, None] = {}
    for file in manifest.files:
        if file.unpack in ("none", "gzip") and (root / file.name).is_file():
            found[file.name] = None
    for split in manifest.splits.values():
        for pattern in (split.images, split.labels, split.meta, split.masks, split.valid, split.points):
            if pattern is not None:
                found.update({path.relative_to(root).as_posix(): None for path in match_files(root, pattern).values()})
    return list(found)


def missing_parts(manifest: Manifest, root: Path) -> list[Checked]:
    """Files that the manifest needs and that are not there; too few images of a split count as missing."""
    missing = {
        file.name: Checked(file.name, "missing", "not found")
        for file in manifest.files
        if file.unpack in ("none", "gzip") and not (root / file.name).is_file()
    }
    for name, split in manifest.splits.items():
        if manifest.kind == "patches-hdf5":
            needed = [part for part in (split.images, split.labels, split.meta) if part is not None]
            for part in needed:
                if not (root / part).is_file():
                    missing.setdefault(part, Checked(part, "missing", "not found"))
            continue
        files = split_files(manifest, root, name)
        patterns = {"image": split.images, "mask": split.masks, "valid": split.valid, "points": split.points}
        for part, pattern in patterns.items():
            there = sum(getattr(file, part) is not None for file in files)
            wanted = split.count or max(len(files), 1)
            if pattern is not None and there < wanted:
                detail = f"split {name}: {there} found, {wanted} expected"
                missing.setdefault(f"{name}/{part}", Checked(pattern, "missing", detail))
    return list(missing.values())


def record_paths(manifest: Manifest, root: Path) -> tuple[Path, Path]:
    """Where a record may lie: beside the data, or in the user's cache, named after the folder."""
    stamp = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "biocnn"
    return root / f"{manifest.name}.checksums.json", cache / f"{manifest.name}.{stamp}.checksums.json"


def _read_record(path: Path) -> dict[str, dict[str, Any]]:
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        return {name: {"bytes": int(entry["bytes"]), "sha256": str(entry["sha256"])} for name, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is not a record of checksums ({error}). Move it away: `biocnn data verify` writes a new one."
        ) from error


def _check_recorded(
    root: Path, names: list[str], record: dict[str, dict[str, Any]], progress: Progress | None
) -> Iterator[Checked]:
    for done, name in enumerate(names):
        path = root / name
        if progress is not None:
            progress("files without a published checksum", done + 1, len(names))
        if name not in record:
            record[name] = {"bytes": path.stat().st_size, "sha256": file_digest(path)}
            yield Checked(name, "recorded", f"{record[name]['bytes']:,} bytes, sha256 {record[name]['sha256'][:12]}...")
            continue
        problem = mismatch(path, record[name]["bytes"], record[name]["sha256"], None)
        yield (
            Checked(name, "ok", "as recorded")
            if problem is None
            else Checked(name, "differs", f"{problem} as recorded")
        )
    for name in record.keys() - set(names):
        yield Checked(name, "missing", "recorded earlier, not found now")


def _write_record(
    manifest: Manifest, paths: tuple[Path, Path], record: dict[str, dict[str, Any]]
) -> tuple[Path | None, str]:
    for path in paths:
        try:
            write_json(path, {"manifest": manifest.name, "files": dict(sorted(record.items()))})
        except OSError:
            continue
        if path is paths[0]:
            return path, f"Recorded {len(record):,} checksums in {path}."
        return path, f"{paths[0].parent} cannot be written to: recorded {len(record):,} checksums in {path} instead."
    return None, (
        f"Neither {paths[0].parent} nor {paths[1].parent} can be written to: nothing was recorded, so the next "
        "run has nothing to compare with. Set XDG_CACHE_HOME to a folder of yours."
    )


def verify(manifest: Manifest, root: str | Path, progress: Progress | None = None) -> Verification:
    """Compare the files of a data set with their checksums.

    Files with a published size, sha256 or md5 are compared with it. The others are compared with what an
    earlier run recorded, or recorded now. A file that was added since is recorded; one that changed differs
    until the record is deleted.

    Args:
        manifest: description of the data set.
        root: folder that holds the files.
        progress: called as the files are read.

    Raises:
        DatasetNotFoundError: if the root is no folder.
        DataError: if the record is damaged.
    """
    root = Path(root)
    if not root.is_dir():
        raise DatasetNotFoundError(f"There is no folder {root}. Give the folder of the data as --root.")
    checked, open_names = [], data_files(manifest, root)
    for file in manifest.files:
        expected = published(file)
        if file.name in open_names and any(expected):
            open_names.remove(file.name)
            if progress is not None:
                progress(file.name, 0, None)
            problem = mismatch(root / file.name, *expected)
            kinds = [kind for kind, value in zip(("bytes", "sha256", "md5"), expected, strict=True) if value]
            detail = f"{', '.join(kinds)} as published" if problem is None else problem
            checked.append(Checked(file.name, "ok" if problem is None else "differs", detail))
    checked += missing_parts(manifest, root)
    paths = record_paths(manifest, root)
    used = next((path for path in paths if path.is_file()), None)
    record = {} if used is None else _read_record(used)
    before = len(record)
    checked += _check_recorded(root, open_names, record, progress)
    if len(record) == before:
        return Verification(tuple(checked), used, "" if used is None else f"Compared with {used}.")
    return Verification(tuple(checked), *_write_record(manifest, paths if used is None else (used, paths[1]), record))
