"""The folder of a prediction: which images are finished, their files, and the table of all.

It holds ``predictions.csv``, a row for each image; ``predictions.json``, the model and the settings that made them; and
``images/<name>/`` with the files of an image. These are written beside, and moved into place together when they are
whole; ``result.json`` among them holds the row of the image, and says which file, model and settings it is of.
"""

import errno
import hashlib
import json
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from biocnn.errors import BiocnnError, DataError
from biocnn.files import write_json
from biocnn.inference.tables import write_csv, write_parquet

TABLE, PARQUET, RECORD = "predictions.csv", "predictions.parquet", "predictions.json"
IMAGES, RESULT = "images", "result.json"
HEAD = ("image", "status", "message", "rows", "columns", "pixel_size_row_um", "pixel_size_column_um")
TAIL = ("flags", "resampled_row_um", "resampled_column_um", "folder")
UNFINISHED = ".unfinished"
_NO_WRITING = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EISDIR),
)
_SHARE = 20
"""The table is written again when this many times as long has gone by as it took the last time."""

Row = Mapping[str, Any]


class Item(NamedTuple):
    """One image to predict.

    Attributes:
        path: of its file, or URL.
        page: plane of a stack; None for a file of one image.
    """

    path: str
    page: int | None

    @property
    def id(self) -> str:
        """What tables call it: the path, with ``#`` and the number of the plane for a stack."""
        return self.path if self.page is None else f"{self.path}#{self.page}"


class PredictionFolder:
    """A folder that a prediction is being written to.

    Attributes:
        folder: its path.
        rows: of the table, by the id of the image: of finished images, of earlier calls as well, and of failed ones.

    Args:
        folder: made when missing.
        made_by: model and settings, plain data; results of others are not mixed with these.
        columns: of the table, between those of every job.
        overwrite: whether results of another model or other settings may be deleted.

    Raises:
        DataError: if the folder holds such results, or a table of another program, and may not be overwritten; or
            cannot be written.
    """

    def __init__(self, folder: Path, made_by: Mapping[str, Any], columns: Sequence[str], overwrite: bool) -> None:
        self.folder = folder
        self.rows: dict[str, Row] = {}
        self._made_by = json.loads(json.dumps(made_by))
        self._columns = (*HEAD, *columns, *TAIL)
        self._finished: dict[str, dict[str, Any]] = {}
        self._written = self._took = 0.0
        with writing(folder):
            (folder / IMAGES).mkdir(parents=True, exist_ok=True)
            self._make_room(overwrite)
        for path in sorted((folder / IMAGES).glob(f"*/{RESULT}")):
            found = read_json(path)
            if found and found.get("made_by") == self._made_by:
                self._finished[found["row"]["image"]] = found
                self.rows[found["row"]["image"]] = found["row"]

    def _make_room(self, overwrite: bool) -> None:
        known = (read_json(self.folder / RECORD) or {}).get("made_by")
        if known == self._made_by or (known is None and not (self.folder / TABLE).exists()):
            return
        if not overwrite:
            raise DataError(
                f"{self.folder} holds {_difference(known, self._made_by)}. Choose another --out, or pass --overwrite "
                "to delete them."
            )
        for path in (self.folder / IMAGES).glob(f"*/{RESULT}"):
            shutil.rmtree(path.parent)
        self.forget_unfinished()
        for name in (TABLE, PARQUET, RECORD):
            (self.folder / name).unlink(missing_ok=True)

    def write_record(self, **values: Any) -> None:
        """Write ``predictions.json``: model, settings and what else is given."""
        with writing(self.folder):
            write_json(self.folder / RECORD, {**values, "made_by": self._made_by})

    def is_finished(self, item: Item) -> bool:
        """Whether the result of an image is there, of the file as it is now."""
        found = self._finished.get(item.id)
        return found is not None and found["file"] == _file_facts(item.path)

    @contextmanager
    def place(self, item: Item) -> Iterator[tuple[Path, dict[str, Any]]]:
        """A folder to write the files of an image to, and its row to fill in; both count when the block has ended.

        A result of the same image that is there is replaced; if the block raises, it stays.

        Raises:
            DataError: if something cannot be written.
        """
        name = self._name(item)
        work = self.folder / IMAGES / f".{name}.part"
        facts = _file_facts(item.path)
        row: dict[str, Any] = {"image": item.id, "status": "ok", "folder": name}
        with writing(self.folder):
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            try:
                yield work, row
                result = {"file": facts, "made_by": self._made_by, "row": row}
                write_json(work / RESULT, result)
                target = self.folder / IMAGES / name
                shutil.rmtree(target, ignore_errors=True)
                work.rename(target)
            finally:
                shutil.rmtree(work, ignore_errors=True)
        self._finished[item.id], self.rows[item.id] = result, row

    def unfinished(self, item: Item) -> Path:
        """Where a large image that is interrupted leaves what it goes on from: a place for it as it is now alone."""
        key = json.dumps([item, _file_facts(item.path), self._made_by])
        return self.folder / UNFINISHED / hashlib.sha256(key.encode()).hexdigest()[:16]

    def forget_unfinished(self) -> None:
        """Delete what interrupted images have left."""
        shutil.rmtree(self.folder / UNFINISHED, ignore_errors=True)

    def fail(self, item: Item, message: str) -> None:
        """Note that an image could not be predicted, and why."""
        self.rows[item.id] = {"image": item.id, "status": "failed", "message": message}

    def write_table(self, now: bool = True, parquet: bool = False) -> None:
        """Write ``predictions.csv``, whole or not at all, and if wanted ``predictions.parquet``.

        Args:
            now: False writes only if that takes less than a twentieth of the time, as for a hundred thousand images.
            parquet: whether to write both.

        Raises:
            DataError: if it cannot be written.
        """
        start = time.monotonic()
        if not now and start - self._written < _SHARE * self._took:
            return
        rows = [self.rows[name] for name in sorted(self.rows, key=_natural)]
        with writing(self.folder):
            write_csv(self.folder / TABLE, rows, self._columns)
            if parquet:
                write_parquet(self.folder / PARQUET, rows, self._columns)
        self._written = time.monotonic()
        self._took = self._written - start

    def _name(self, item: Item) -> str:
        """Name of the folder of an image: that which it has, else a free one after the file."""
        if item.id in self._finished:
            return str(self._finished[item.id]["row"]["folder"])
        stem = re.sub(r"(\.ome)?\.\w+$", "", re.split(r"[/\\]", item.path.rstrip("/"))[-1], flags=re.IGNORECASE)
        name = re.sub(r'[<>:"|?*#\x00-\x1f]+', "_", stem).strip(" .") or "image"
        name = name if item.page is None else f"{name}_{item.page}"
        taken = {path.name.lower() for path in (self.folder / IMAGES).iterdir()}
        number, free = 1, name
        while free.lower() in taken:
            number += 1
            free = f"{name}_{number}"
        return free


class OutputError(DataError):
    """Results cannot be written, whatever the image: it is no use to go on with the next one."""


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Name the folder when something cannot be written to it, and say that what is finished is whole."""
    try:
        yield
    except (OSError, DataError) as error:
        # Of the errors of biocnn those by which a writer names what stopped it; reading has others, or other reasons.
        cause = error.__cause__ if isinstance(error, BiocnnError) else error
        known = not isinstance(error, BiocnnError) or getattr(cause, "errno", None) in _NO_WRITING
        if isinstance(error, OutputError) or not isinstance(cause, OSError) or not known:
            raise
        raise OutputError(
            f"{folder} cannot be written: {cause.strerror or cause}. Finished results are whole; make room or get the "
            "permission, and run the same command again to go on."
        ) from error


def read_json(path: Path) -> dict[str, Any] | None:
    """Content of a JSON file; None when it is missing or not readable."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _file_facts(path: str) -> dict[str, Any]:
    """What tells a file from another of the same name; of a URL nothing but its name."""
    try:
        entries = [Path(path), *(Path(path).iterdir() if Path(path).is_dir() else ())]
        stats = [entry.stat() for entry in entries]
    except OSError:
        return {"path": path}
    size = stats[0].st_size if len(stats) == 1 else None
    return {"path": path, "bytes": size, "changed_ns": max(stat.st_mtime_ns for stat in stats)}


def _difference(known: Mapping[str, Any] | None, made_by: Mapping[str, Any]) -> str:
    if known is None:
        return "a table that `biocnn predict` has not written"
    if known.get("model") != made_by["model"]:
        return "results of another model"
    before, now = known.get("settings", {}), made_by["settings"]
    others = [f"{name}: {before.get(name)}, now {now[name]}" for name in now if before.get(name) != now[name]]
    return f"results of other settings ({'; '.join(others)})"


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name) if part]
