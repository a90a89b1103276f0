"""Writing files so that a reader never sees half of one, and hashing them."""

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_CHUNK = 1 << 20


@contextlib.contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `target` that becomes `target` when the block ends without an error.

    The temporary file lies in the same folder, so the final rename never copies across file systems; it is
    synced to disk first. If the block raises, the temporary file is removed and `target` stays as it was.

    Args:
        target: file to write; its folder is made when missing.

    Yields:
        The path to write to, which does not exist yet and keeps the suffix of `target`.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.stem}.{uuid.uuid4().hex[:8]}.part{target.suffix}")
    try:
        yield temporary
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(target: str | Path, text: str) -> None:
    """Write `text` to `target` in UTF-8, whole or not at all."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(target: str | Path, value: Any) -> None:
    """Write `value` to `target` as indented JSON, whole or not at all."""
    write_text(target, json.dumps(value, indent=2, sort_keys=False) + "\n")


def file_digest(path: str | Path, algorithm: str = "sha256") -> str:
    """Hexadecimal digest of a file, read in pieces of 1 MiB.

    Args:
        path: file to read.
        algorithm: a name that :func:`hashlib.new` knows, such as ``"sha256"`` or ``"md5"``.
    """
    digest = hashlib.new(algorithm)
    with open(path, "rb") as handle:
        while block := handle.read(_CHUNK):
            digest.update(block)
    return digest.hexdigest()
