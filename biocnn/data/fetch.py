"""Downloading a data set: resumed after a break, verified before it is unpacked, never over a user's file.

A download grows in a hidden ``.part`` file beside its target, with a ``.part.json`` that says which version of which
address it came from. Both are removed once the file is unpacked and verified.
"""

import gzip
import hashlib
import json
import os
import re
import shutil
import uuid
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import requests
import urllib3

import biocnn
from biocnn.data.archives import members
from biocnn.data.manifest import Manifest, RemoteFile
from biocnn.data.verify import Progress, mismatch, missing_parts, published
from biocnn.errors import DownloadError
from biocnn.files import atomic_path, file_digest, write_json

_CHUNK = 1 << 18
_CONNECT_SECONDS, _READ_SECONDS = 15, 90
# Deflate cannot exceed a ratio of 1032; real images stay below 20. Small archives may exceed it: label files do.
_MAX_RATIO, _RATIO_FREE_BYTES = 200, 64 << 20
_SPARE_BYTES = 64 << 20


@dataclass(frozen=True)
class Fetched:
    """What happened to one file of a manifest.

    Attributes:
        name: path below the root.
        status: whether it was downloaded now, or was there and agreed with the manifest.
    """

    name: str
    status: Literal["fetched", "already there"]


def fetch(
    manifest: Manifest,
    root: str | Path,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> list[Fetched]:
    """Download, verify and unpack what is not there yet.

    Run it again after a break: it goes on where it stopped. Addresses are tried in the order of the manifest.

    Args:
        manifest: description of the data set.
        root: folder to put the files in; made when missing.
        progress: called with a file's name, the bytes done and the bytes in all, if known.
        say: called with sentences for the user, such as how much disk is needed.

    Returns:
        One entry per file of the manifest.

    Raises:
        DownloadError: if the set can only be had by hand (the message says how), a file that is there differs
            from the manifest, the disk is too small, no address gives the right file, or an archive is unsafe.
    """
    root = Path(root)
    if not manifest.files:
        raise DownloadError(_by_hand(manifest, root))
    wanted = [file for file in manifest.files if not _is_there(manifest, root, file)]
    try:
        if wanted:
            root.mkdir(parents=True, exist_ok=True)
            _check_space(manifest, root, wanted, say or (lambda _: None))
        for file in wanted:
            _unpack(file, root, _download(file, root, progress), progress)
    except DownloadError:
        raise
    except OSError as error:  # a full disk, a folder without permission to write
        raise DownloadError(f"{root} cannot be written to: {error}. What has arrived is kept.") from error
    return [Fetched(file.name, "fetched" if file in wanted else "already there") for file in manifest.files]


def _by_hand(manifest: Manifest, root: Path) -> str:
    if manifest.manual_download is None:
        return f"Manifest {manifest.name!r} lists no files to fetch: put the data into {root} yourself."
    return (
        f"{manifest.title} cannot be fetched by a program. {manifest.manual_download.strip()}\n"
        f"Then check it with `biocnn data verify {manifest.name} --root {root}`."
    )


def _is_there(manifest: Manifest, root: Path, file: RemoteFile) -> bool:
    if file.unpack in ("zip", "tar"):
        # What an archive holds is known once it is here; until then a whole copy is one with all its images.
        return root.is_dir() and not missing_parts(manifest, root)
    target = root / file.name
    if not target.exists():
        return False
    if problem := mismatch(target, *published(file)):
        raise DownloadError(
            f"{target} is there already, but {problem}. It is left as it is: move it away or delete it, and fetch "
            "again."
        )
    return True


def _unpacked_bytes(manifest: Manifest, file: RemoteFile) -> int:
    """Bytes of a file on disk once unpacked: as published, else from the size of its images, else a guess."""
    if file.unpack == "none":
        return file.bytes or 0
    if file.unpacked_bytes is not None:
        return file.unpacked_bytes
    height, width = manifest.image.height, manifest.image.width
    for split in manifest.splits.values():
        if split.images == file.name and split.count and height and width:
            itemsize = int(re.sub(r"\D", "", manifest.image.dtype)) // 8
            return split.count * height * width * len(manifest.channels) * itemsize
    return 3 * (file.bytes or 0)


def _check_space(manifest: Manifest, root: Path, wanted: list[RemoteFile], say: Callable[[str], None]) -> None:
    # One archive at a time lies beside what is unpacked so far.
    unpacked = [_unpacked_bytes(manifest, file) for file in wanted]
    archives = [file.bytes or 0 for file in wanted if file.unpack != "none"]
    kept = sum(path.stat().st_size for file in wanted if (path := _part_path(root, file)).is_file())
    needed = max(0, sum(unpacked) + max(archives, default=0) - kept)
    free = shutil.disk_usage(root).free
    unknown = sum(file.bytes is None for file in wanted)
    say(
        f"{manifest.title}: {len(wanted)} of {len(manifest.files)} files to fetch, "
        f"{sum(file.bytes or 0 for file in wanted) / 1e9:.2f} GB to download"
        + (f" and {unknown} of unknown size" if unknown else "")
        + f"; about {needed / 1e9:.2f} GB of disk needed, {free / 1e9:.2f} GB free in {root}."
    )
    if free < needed + _SPARE_BYTES:
        raise DownloadError(
            f"{root} has {free / 1e9:.2f} GB free, and {manifest.name} needs about {needed / 1e9:.2f} GB. Free some "
            "space or give another folder as --root."
        )


def _part_path(root: Path, file: RemoteFile) -> Path:
    stamp = hashlib.sha256(f"{file.name}|{file.url}".encode()).hexdigest()[:8]
    target = root / file.name
    folder = target.parent if file.unpack in ("none", "gzip") else root
    return folder / f".{target.name or 'archive'}.{stamp}.part"


def _state_path(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _state_path(part).unlink(missing_ok=True)


def _download(file: RemoteFile, root: Path, progress: Progress | None) -> Path:
    """Fetch one file from the first address that gives what the manifest promises; returns the `.part` file."""
    part = _part_path(root, file)
    part.parent.mkdir(parents=True, exist_ok=True)
    problems = []
    for url in (file.url, *file.mirrors):
        resumed = part.is_file()
        # A part from an earlier run or another mirror may be to blame for a wrong sum: then once more from zero.
        for _ in range(2 if resumed else 1):
            try:
                _transfer(file, url, part, progress)
            except (DownloadError, requests.RequestException, urllib3.exceptions.HTTPError) as error:
                problems.append(f"  {url}: {error}")
                break
            problem = mismatch(part, file.bytes, file.sha256, file.md5)
            if problem is None:
                return part
            problems.append(f"  {url}: what arrived {problem}")
            _discard(part)
    kept = f" {part.stat().st_size:,} bytes are kept in {part} to go on from." if part.is_file() else ""
    raise DownloadError(
        f"{file.name} could not be fetched:\n" + "\n".join(problems) + f"\nCheck the network and run it again.{kept}"
    )


def _transfer(file: RemoteFile, url: str, part: Path, progress: Progress | None) -> None:
    """Ask until the whole file is there; give up when an answer brings nothing new."""
    furthest = part.stat().st_size if part.is_file() else 0
    fresh = furthest == 0
    while True:
        whole = _request(file, url, part, progress)
        size = part.stat().st_size if part.is_file() else 0
        if whole:
            return
        if size <= furthest and not fresh:
            raise DownloadError(f"the connection broke off at {size:,} bytes, again")
        fresh, furthest = False, max(size, furthest)


def _resume_headers(file: RemoteFile, url: str, have: int, state: dict[str, Any]) -> dict[str, str]:
    """Range headers, when the rest of the file can be trusted to belong to what is here."""
    validator = state.get("validator") if state.get("url") == url else None
    checkable = file.sha256 is not None or file.md5 is not None
    if not have or not (validator or checkable):
        return {}
    headers = {"Range": f"bytes={have}-"}
    return {**headers, "If-Range": validator} if validator else headers


def _request(file: RemoteFile, url: str, part: Path, progress: Progress | None) -> bool:
    """One HTTP request that starts or goes on with a part; True when the file is whole."""
    state = json.loads(_state_path(part).read_text()) if _state_path(part).is_file() else {}
    have = part.stat().st_size if part.is_file() else 0
    if have and have == (file.bytes or (state.get("total") if state.get("url") == url else None)):
        return True
    headers = {"Accept-Encoding": "identity", "User-Agent": f"biocnn/{biocnn.__version__}"}
    headers |= _resume_headers(file, url, have, state)
    with requests.get(url, headers=headers, stream=True, timeout=(_CONNECT_SECONDS, _READ_SECONDS)) as response:
        if response.status_code == 416:
            _discard(part)  # it is longer than the file: start again, now without a range
            return _request(file, url, part, progress)
        have, total = _start(file, response, have)
        if total is not None and shutil.disk_usage(part.parent).free < total - have:
            raise DownloadError(f"needs {total - have:,} bytes of disk, which {part.parent} does not have")
        strong = response.headers.get("ETag", "")
        validator = strong if strong.startswith('"') else response.headers.get("Last-Modified")
        write_json(_state_path(part), {"url": url, "validator": validator, "total": total})
        with open(part, "r+b" if have else "wb") as out:
            return _receive(file, response, out, have, total, progress)


def _start(file: RemoteFile, response: requests.Response, have: int) -> tuple[int, int | None]:
    """Byte to write from and size of the whole file, as the answer says; refuses what is not the file."""
    if response.status_code not in (200, 206):
        raise DownloadError(f"the server answered {response.status_code} {response.reason}")
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise DownloadError("the server answered with a web page instead of the file")
    total: int | None
    if response.status_code == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != have:
            raise DownloadError(f"the server answered with another range than the one from byte {have:,} on")
        total = int(match[2])
    else:
        length = response.headers.get("Content-Length", "")
        have, total = 0, int(length) if length.isdigit() else None
    if file.bytes is not None and total is not None and total != file.bytes:
        raise DownloadError(f"the server announces {total:,} bytes, the manifest says {file.bytes:,}")
    return have, total


def _receive(
    file: RemoteFile,
    response: requests.Response,
    out: IO[bytes],
    have: int,
    total: int | None,
    progress: Progress | None,
) -> bool:
    limit = file.bytes or total
    out.seek(have)
    try:
        # The bytes as sent: requests would otherwise gunzip a .gz that a server labels as an encoding.
        for block in response.raw.stream(_CHUNK, decode_content=False):
            out.write(block)
            have += len(block)
            if limit is not None and have > limit:
                raise DownloadError(f"more than the expected {limit:,} bytes arrived")
            if progress is not None:
                progress(file.name, have, limit)
    except (urllib3.exceptions.ProtocolError, urllib3.exceptions.ReadTimeoutError):
        return False
    finally:
        out.truncate(have)
    return total is None or have == total


def _unpack(file: RemoteFile, root: Path, part: Path, progress: Progress | None) -> None:
    try:
        if file.unpack == "none":
            os.replace(part, root / file.name)
        elif file.unpack == "gzip":
            _unpack_gzip(file, part, root / file.name, progress)
        else:
            _unpack_archive(file, root, part, progress)
    except DownloadError:
        _discard(part)  # nothing in it to go on from
        raise
    _discard(part)


def _unpack_gzip(file: RemoteFile, part: Path, target: Path, progress: Progress | None) -> None:
    with gzip.open(part) as source, atomic_path(target) as temporary:
        try:
            _write(source, temporary, _Budget(file, part), progress)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DownloadError(f"{file.name}: what arrived is not a whole gzip file ({error}).") from error
        if problem := mismatch(temporary, *published(file)):
            raise DownloadError(f"{file.name}: the download is right, but once unpacked it {problem}.")


class _Budget:
    """Bytes that an archive may still unpack to, so that a small one cannot fill the disk."""

    def __init__(self, file: RemoteFile, archive: Path) -> None:
        ratio = max(_RATIO_FREE_BYTES, _MAX_RATIO * archive.stat().st_size)
        self.name, self.spent = file.name, 0
        self.limit = file.unpacked_bytes or min(ratio, shutil.disk_usage(archive.parent).free)

    def spend(self, count: int) -> None:
        self.spent += count
        if self.spent > self.limit:
            raise DownloadError(
                f"{self.name} unpacks to more than {self.limit:,} bytes, which is not plausible for it; it was not "
                "unpacked."
            )


def _write(source: IO[bytes] | gzip.GzipFile, target: Path, budget: _Budget, progress: Progress | None) -> None:
    with open(target, "xb") as out:
        while block := source.read(_CHUNK):
            budget.spend(len(block))
            out.write(block)
            if progress is not None:
                progress(f"unpacking {budget.name}", budget.spent, None)


def _unpack_archive(file: RemoteFile, root: Path, part: Path, progress: Progress | None) -> None:
    """Unpack into a hidden folder, compare with what is there, then move file by file."""
    staging = root / f".unpacking-{uuid.uuid4().hex[:8]}"
    budget = _Budget(file, part)
    try:
        staging.mkdir()
        for name, source in members(part, "zip" if file.unpack == "zip" else "tar", staging):
            path = staging / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                raise DownloadError(f"{part} holds {name} twice; it was not unpacked.")
            _write(source, path, budget, progress)
        unpacked = [path for path in sorted(staging.rglob("*")) if path.is_file()]
        moves = [(path, root / file.name / path.relative_to(staging)) for path in unpacked]
        differing = [str(to) for path, to in moves if to.exists() and not _same(path, to)]
        if differing:
            raise DownloadError(
                f"These are there already and differ from {file.name} as published: {', '.join(differing[:10])}"
                f"{' ...' if len(differing) > 10 else ''}. Move them away and fetch again."
            )
        for path, to in moves:
            to.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, to)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _same(first: Path, second: Path) -> bool:
    return second.is_file() and mismatch(second, first.stat().st_size, file_digest(first), None) is None
