"""A map larger than memory, on disk as strips of rows.

Notation: H, W rows and columns of the image.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from biocnn.errors import DataError
from biocnn.files import atomic_path, write_json

_DESCRIPTION = "strips.json"


@dataclass(frozen=True)
class StripStore:
    """Strips of a map, each in a file of its own that is whole or not there; the map is the sum of them.

    Strips may overlap, and processes may write different ones at the same time, if they share the folder.

    Attributes:
        folder: of the files; float32 in the byte order of this computer.
        shape: (H, W) of the map.
        rows: of each strip, which follow each other and leave out none.
        logits: whether the sum is one of logits, of which the map is the probability.
    """

    folder: Path
    shape: tuple[int, int]
    rows: tuple[slice, ...]
    logits: bool

    def path(self, number: int) -> Path:
        """File of a strip."""
        return self.folder / f"strip_{number:05d}.f32"

    def missing(self) -> list[int]:
        """Numbers of the strips that are not there."""
        return [number for number in range(len(self.rows)) if not self.path(number).is_file()]

    def write(self, number: int, values: NDArray[np.float32]) -> None:
        """Write a strip, (its rows, W) float32.

        Raises:
            OSError: if the disk is full, for example; strips that are there stay whole.
        """
        assert values.shape == (self._height(number), self.shape[1])
        assert values.dtype == np.float32
        with atomic_path(self.path(number)) as temporary:
            values.tofile(temporary)

    def bands(self) -> Iterator[NDArray[np.float32]]:
        """The map from first to last row, (h, W) float32, in bands of at most the height of a strip.

        In memory are two strips.

        Raises:
            DataError: if a strip is missing or damaged.
        """
        if missing := self.missing():
            raise DataError(f"{self.folder} lacks {len(missing)} of {len(self.rows)} strips. Predict the image again.")
        last_row = slice(self.shape[0], None)
        waiting = np.zeros((0, self.shape[1]), np.float32)  # rows that reach into the strip after
        for number, following in enumerate((*self.rows[1:], last_row)):
            band = self._read(number)
            shared = min(len(waiting), len(band))
            band[:shared] += waiting[:shared]
            if shared < len(waiting):
                band = np.concatenate([band, waiting[shared:]])
            done = following.start - self.rows[number].start
            waiting = band[done:].copy()
            yield self._finished(band[:done])

    def remove(self) -> None:
        """Delete the strips, and the folder if nothing else is in it."""
        for path in (*map(self.path, range(len(self.rows))), self.folder / _DESCRIPTION):
            path.unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _height(self, number: int) -> int:
        return self.rows[number].stop - self.rows[number].start

    def _read(self, number: int) -> NDArray[np.float32]:
        values = np.fromfile(self.path(number), np.float32)
        shape = (self._height(number), self.shape[1])
        if values.size != shape[0] * shape[1]:
            raise DataError(f"{self.path(number)} is damaged. Delete it, and predict the image again.")
        return values.reshape(shape)

    def _finished(self, band: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.logits:
            torch.from_numpy(band).sigmoid_()  # that of predictions in memory, to the last bit
        return band


def open_store(
    folder: str | Path,
    shape: tuple[int, int],
    rows: Sequence[slice],
    logits: bool,
    origin: Mapping[str, Any],
) -> StripStore:
    """Make a store, or go on with the one in the folder.

    Args:
        folder: that is shared by all processes; made when missing.
        shape: (H, W) of the map.
        rows: of each strip.
        logits: see :class:`StripStore`.
        origin: what the values of the strips depend on, as plain data.

    Raises:
        DataError: if the folder has strips of another origin, or the disk has no room for those that are missing.
    """
    store = StripStore(Path(folder), shape, tuple(rows), logits)
    store.folder.mkdir(parents=True, exist_ok=True)
    starts = [[part.start, part.stop] for part in store.rows]
    wanted = json.loads(json.dumps({"shape": shape, "rows": starts, "logits": logits, **origin}))
    if not any(store.folder.glob("strip_*.f32")):
        write_json(store.folder / _DESCRIPTION, wanted)
    found = json.loads((store.folder / _DESCRIPTION).read_text(encoding="utf-8"))
    if found != wanted:
        other = [name for name in wanted if found.get(name) != wanted[name]]
        raise DataError(
            f"{folder} has strips of another prediction, which differs in: {', '.join(other)}. Delete the folder, or "
            "name another one."
        )
    needed = sum(store._height(number) for number in store.missing()) * shape[1] * 4
    if needed > (free := shutil.disk_usage(folder).free):
        raise DataError(
            f"The map of {shape[0]}x{shape[1]} pixels needs {needed / 1e9:.2f} GB more in {folder}, where "
            f"{free / 1e9:.2f} GB are free. Make room, or name a folder on another disk."
        )
    return store
