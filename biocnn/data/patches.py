"""Patches in the PCam layout: an HDF5 file of images, one of labels, and a meta CSV.

Notation: N patches in a file, B patches in a batch, H rows, W columns, C channels.
"""

import csv
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from biocnn.data.hdf5 import MappedArray, map_array, read_array
from biocnn.data.manifest import Manifest, Split
from biocnn.errors import DataError, DatasetNotFoundError, ManifestError

HASH_BYTES = 16
_BLOCK = 1024


class PatchSource:
    """Labelled patches of one split, read by row.

    Attributes:
        name: of the split, such as ``"train"``.
        images: (N, H, W, C) uint8 on disk.
        labels: (N,) int64, or None when there are none (prediction).
        groups: (N,) bytes: slide of every patch, or None when the manifest has no group rule.
        ids: (N,) bytes, such as ``b"train:17"``: the row in the file.

    Group and id are arrays of bytes: lists of `str` grow in every worker process, as each look-up writes a
    reference count into a shared page.
    """

    def __init__(
        self,
        name: str,
        images: MappedArray,
        labels: np.ndarray | None = None,
        groups: np.ndarray | None = None,
    ) -> None:
        self.name, self.images, self.labels, self.groups = name, images, labels, groups
        self.ids = np.char.add(f"{name}:".encode(), np.arange(len(images)).astype("S"))

    def __len__(self) -> int:
        return len(self.images)

    def read(self, rows: np.ndarray) -> dict[str, Any]:
        """Read patches in the given order.

        Args:
            rows: (B,) integers in 0..N-1.

        Returns:
            ``image`` (B, H, W, C) uint8; ``label`` (B,) int64, unless there are no labels; ``id`` and ``group``
            lists of B strings.
        """
        batch: dict[str, Any] = {"image": self.images.take(rows)}
        if self.labels is not None:
            batch["label"] = self.labels[rows]
        batch["id"] = [name.decode() for name in self.ids[rows].tolist()]
        batch["group"] = [] if self.groups is None else [name.decode() for name in self.groups[rows].tolist()]
        return batch

    def blocks(self, size: int = _BLOCK) -> Iterator[np.ndarray]:
        """All images in order, in blocks of at most `size`, each (<= size, H, W, C) uint8."""
        images = self.images.open()
        for start in range(0, len(self), size):
            yield np.asarray(images[start : start + size])

    def content_hashes(self) -> np.ndarray:
        """One 128-bit BLAKE2b digest of the pixels of every patch, (N,) ``V16``; reads the whole file once."""
        digests = b"".join(
            hashlib.blake2b(patch, digest_size=HASH_BYTES).digest() for block in self.blocks() for patch in block
        )
        return np.frombuffer(digests, dtype=f"V{HASH_BYTES}")


def first_occurrences(hashes: np.ndarray) -> np.ndarray:
    """Rows of the first patch of every distinct content.

    Args:
        hashes: (N,) digests from :meth:`PatchSource.content_hashes`.

    Returns:
        (U,) increasing int64, U <= N.
    """
    return np.sort(np.unique(hashes, return_index=True)[1])


def read_meta_column(path: str | Path, column: str) -> np.ndarray:
    """Read one column of a meta CSV.

    Args:
        path: CSV with a header line and a row per patch, in the order of the images.
        column: name in the header.

    Returns:
        (N,) array of bytes.

    Raises:
        DatasetNotFoundError: if there is no such file.
        DataError: if it has no such column or a row is shorter than the header.
    """
    path = Path(path)
    if not path.is_file():
        raise DatasetNotFoundError(f"There is no meta file {path}.")
    with open(path, newline="", encoding="utf-8") as handle:
        rows = csv.reader(handle)
        header = next(rows, [])
        if column not in header:
            raise DataError(f"{path} has no column {column!r}; it has {header}.")
        position = header.index(column)
        try:
            values = [row[position].encode() for row in rows if row]
        except IndexError as error:
            raise DataError(f"{path}: line {rows.line_num} has no value for {column!r}.") from error
    return np.array(values, dtype="S")


def open_patch_source(manifest: Manifest, root: str | Path, split: str) -> PatchSource:
    """Open one split of a data set of kind ``patches-hdf5`` and check that its parts belong together.

    Args:
        manifest: description of the data set.
        root: folder that holds the files.
        split: ``"train"``, ``"valid"`` or ``"test"``.

    Raises:
        ManifestError: if the manifest has no such split or is of another kind.
        DatasetNotFoundError: if a file is missing; the message says where it was looked for and what to do.
        DataError: if a file is truncated, has another shape or dtype than the manifest says, or if images,
            labels and meta rows differ in number.
    """
    if manifest.kind != "patches-hdf5":
        raise ManifestError(f"Manifest {manifest.name!r} is of kind {manifest.kind!r}, expected 'patches-hdf5'.")
    if split not in manifest.splits:
        raise ManifestError(f"Manifest {manifest.name!r} has no split {split!r}; it has {list(manifest.splits)}.")
    root = Path(root)
    parts: Split = manifest.splits[split]
    check_files_exist(manifest, root, split)
    images = map_array(root / parts.images, manifest.image_key)
    _check_images(manifest, root / parts.images, images)
    assert parts.labels is not None  # the manifest's own validator demands it for this kind
    labels = _read_labels(manifest, root / parts.labels, len(images), root / parts.images)
    groups = None
    if manifest.group is not None and manifest.group.column is not None and parts.meta is not None:
        groups = read_meta_column(root / parts.meta, manifest.group.column)
        if len(groups) != len(images):
            raise DataError(
                f"{root / parts.meta} has {len(groups):,} rows for {len(images):,} patches in {parts.images}. "
                "They do not belong together: fetch both again."
            )
    return PatchSource(split, images, labels, groups)


def check_files_exist(manifest: Manifest, root: Path, split: str) -> None:
    """Raise a DatasetNotFoundError that lists every missing file of a split and the two things to do."""
    parts = manifest.splits[split]  # type: ignore[index]
    names = [name for name in (parts.images, parts.labels, parts.meta) if name is not None]
    missing = [name for name in names if not (root / name).is_file()]
    if missing:
        raise DatasetNotFoundError(
            f"Data set {manifest.name!r}, split {split!r}: not found in {root.resolve()}: {', '.join(missing)}.\n"
            f"Point --data.root to the folder that holds them, or run "
            f"`biocnn data fetch {manifest.name} --root {root}`."
        )


def _check_images(manifest: Manifest, path: Path, images: MappedArray) -> None:
    expected = (manifest.image.height, manifest.image.width, len(manifest.channels))
    fits = len(images.shape) == 4 and all(
        want in (None, have) for want, have in zip(expected, images.shape[1:], strict=True)
    )
    if not fits:
        shown = ", ".join("any" if size is None else str(size) for size in expected)
        raise DataError(
            f"{path}: {manifest.image_key!r} has shape {images.shape}, expected (N, {shown}): number, rows, "
            "columns, channels."
        )
    if images.dtype != np.uint8:
        raise DataError(f"{path}: {manifest.image_key!r} is {images.dtype}, expected uint8 with values 0 to 255.")


def _read_labels(manifest: Manifest, path: Path, count: int, images_path: Path) -> np.ndarray:
    labels = read_array(path, manifest.label_key)
    if labels.size != labels.shape[0]:
        raise DataError(f"{path}: {manifest.label_key!r} has shape {labels.shape}, expected (N, 1, 1, 1) or (N,).")
    if labels.dtype.kind == "f" and not (labels == labels.round()).all():
        raise DataError(f"{path}: {manifest.label_key!r} holds fractions, expected whole numbers of classes.")
    labels = labels.reshape(-1).astype(np.int64)
    if len(labels) != count:
        raise DataError(
            f"{path} has {len(labels):,} labels for {count:,} patches in {images_path}. They do not belong "
            "together: fetch both again."
        )
    found = np.unique(labels)
    if manifest.classes and not np.isin(found, np.arange(len(manifest.classes))).all():
        raise DataError(
            f"{path} has labels {found.tolist()}, expected 0 to {len(manifest.classes) - 1} "
            f"({', '.join(manifest.classes)})."
        )
    return labels
