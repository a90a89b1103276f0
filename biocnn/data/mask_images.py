"""Images with masks: one split read into memory, checked, before anything is trained on it.

Notation: N images, H rows, W columns, C channels; a pixel is *inside* where `valid` is True.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pytorch_lightning.utilities import rank_zero_warn

from biocnn.data.findings import listed
from biocnn.data.images import Image, check_finite, read_image, read_mask
from biocnn.data.manifest import ImageFiles, Manifest, group_of, split_files
from biocnn.data.splits import group_folds
from biocnn.errors import DataError, DatasetNotFoundError

MAX_BYTES = 8_000_000_000
"""Memory that the images and masks of one split may take, unless a caller allows more."""

PixelSize = tuple[float, float]
"""Micrometres per pixel, row then column."""


@dataclass(frozen=True, eq=False)
class MaskImages:
    """Images of one split in memory, in natural order; the planes of a stack are images one by one.

    Attributes:
        ids: path of every image below the root, with ``#`` and the number of the plane for a stack.
        groups: group of every image; None without a group rule.
        files: path of the file of every image: planes of one file are never dealt to different folds.
        images: N arrays (H, W, C), in the dtype of the manifest.
        masks: N arrays (H, W) bool, True for the structure to find.
        valid: N arrays (H, W) bool, False where pixels must not count; None where all of them count.
        pixel_sizes: micrometres per pixel, by the manifest, else by the file; None when neither says.
        digests: (N,) int64, of the pixels of image, mask and valid.
    """

    ids: tuple[str, ...]
    groups: tuple[str, ...] | None
    files: tuple[str, ...]
    images: tuple[np.ndarray, ...]
    masks: tuple[np.ndarray, ...]
    valid: tuple[np.ndarray | None, ...]
    pixel_sizes: tuple[PixelSize | None, ...]
    digests: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def foreground(self, row: int) -> np.ndarray:
        """Pixels of the structure that are inside, (H, W) bool."""
        mask, valid = self.masks[row], self.valid[row]
        return mask if valid is None else mask & valid

    def pixels_inside(self, row: int) -> np.ndarray:
        """Values of an image that are inside, (M, C)."""
        image, valid = self.images[row], self.valid[row]
        return image.reshape(-1, image.shape[2]) if valid is None else image[valid]

    def take(self, rows: Iterable[int]) -> "MaskImages":
        """The images `rows`, in this order; nothing is copied."""
        rows = list(rows)
        return MaskImages(
            tuple(self.ids[row] for row in rows),
            None if self.groups is None else tuple(self.groups[row] for row in rows),
            tuple(self.files[row] for row in rows),
            tuple(self.images[row] for row in rows),
            tuple(self.masks[row] for row in rows),
            tuple(self.valid[row] for row in rows),
            tuple(self.pixel_sizes[row] for row in rows),
            self.digests[rows],
        )


def join(parts: Sequence[MaskImages]) -> MaskImages:
    """Several splits of one data set as one, in the given order."""
    groups = [part.groups for part in parts]
    return MaskImages(
        tuple(name for part in parts for name in part.ids),
        None if None in groups else tuple(name for group in groups if group is not None for name in group),
        tuple(name for part in parts for name in part.files),
        tuple(image for part in parts for image in part.images),
        tuple(mask for part in parts for mask in part.masks),
        tuple(valid for part in parts for valid in part.valid),
        tuple(size for part in parts for size in part.pixel_sizes),
        np.concatenate([part.digests for part in parts]),
    )


def deal(images: MaskImages, folds: int, fold: int, seed: int) -> dict[str, MaskImages]:
    """Deal images to folds, by group if they have groups, else by file, and hold one fold out.

    Args:
        images: train and valid together.
        folds: number of folds, at least 2.
        fold: the one to hold out, 0..folds-1.
        seed: of the draw.

    Returns:
        ``train`` and ``valid``, both in the order of `images`.

    Raises:
        ValueError: if there are fewer groups or files than folds.
    """
    dealt = group_folds(np.array(images.groups or images.files), None, folds, seed)
    train, valid = np.flatnonzero(dealt != fold), np.flatnonzero(dealt == fold)
    return {"train": images.take(train.tolist()), "valid": images.take(valid.tolist())}


def read_split(manifest: Manifest, root: str | Path, split: str, max_bytes: int = MAX_BYTES) -> MaskImages:
    """Read one split of a data set of kind ``image-mask``, and check that images, masks and manifest fit together.

    Pixels of float images that are NaN or infinite and not inside become the smallest value inside: they must not
    count, and would spread through a network.

    Args:
        manifest: description of the data set.
        root: folder that holds the files.
        split: ``"train"``, ``"valid"`` or ``"test"``.
        max_bytes: memory that images and masks together may take.

    Raises:
        ManifestError: if the manifest has no such split, or a pattern is ambiguous.
        DatasetNotFoundError: if no image matches, or an image has no mask or field-of-view mask.
        DataError: if a file cannot be read; an image has another dtype or number of channels than the manifest says,
            or NaN or infinity inside; a mask differs in size from its image or has values that the manifest does not
            name; no pixel is inside; or the split needs more memory than `max_bytes`.
    """
    root = Path(root)
    files = split_files(manifest, root, split)
    if not files:
        pattern = manifest.splits[split].images  # type: ignore[index]
        raise DatasetNotFoundError(
            f"Data set {manifest.name!r}, split {split!r}: no image matches {pattern!r} in {root.resolve()}. Point "
            f"--data.root to the folder that holds it, or run `biocnn data fetch {manifest.name} --root {root}`."
        )
    found: list[_Plane] = []
    total = 0
    for file in files:
        for plane in _read_planes(manifest, root, split, file, max_bytes):
            total += sum(array.nbytes for array in (plane.image, plane.mask, plane.valid) if array is not None)
            found.append(plane)
        if total > max_bytes:
            raise DataError(
                f"Split {split!r} of {manifest.name!r} takes more than {max_bytes / 1e9:,.2f} GB in memory: the limit "
                f"is passed at {file.image}, image {len(found):,} of about {len(files):,}. Put fewer images into the "
                "split with `select` in the manifest, cut them to the part that is annotated, or raise "
                "--data.max_bytes."
            )
    groups = None
    if manifest.group is not None:
        # An image whose path does not tell a group, which the audit warns about, is a group of its own.
        groups = tuple(group_of(manifest, plane.file) or plane.file for plane in found)
    return MaskImages(
        tuple(plane.id for plane in found),
        groups,
        tuple(plane.file for plane in found),
        tuple(plane.image for plane in found),
        tuple(plane.mask for plane in found),
        tuple(plane.valid for plane in found),
        tuple(plane.pixel_size for plane in found),
        np.array([_digest(plane) for plane in found], np.int64),
    )


@dataclass(frozen=True, eq=False)
class _Plane:
    """One image while a split is read; fields as in :class:`MaskImages`."""

    id: str
    file: str
    image: np.ndarray
    mask: np.ndarray
    valid: np.ndarray | None
    pixel_size: PixelSize | None


def _read_planes(manifest: Manifest, root: Path, split: str, file: ImageFiles, max_bytes: int) -> list[_Plane]:
    image = read_image(file.image, max_bytes=max_bytes)
    pixels = as_planes(image, manifest)
    if file.mask is None:
        raise _no_partner("mask", file.image, manifest.splits[split].masks)  # type: ignore[index]
    labels = read_mask(file.mask, manifest.mask_values, max_bytes=max_bytes)
    masks = _fit(np.isin(labels, manifest.foreground) if manifest.foreground else labels != 0, file.mask, image)
    valid: np.ndarray | None = None
    if manifest.splits[split].valid is not None:  # type: ignore[index]
        if file.valid is None:
            raise _no_partner("field-of-view mask", file.image, manifest.splits[split].valid)  # type: ignore[index]
        valid = _fit(read_mask(file.valid, max_bytes=max_bytes) != 0, file.valid, image)
        if not valid.any(axis=(1, 2)).all():
            raise DataError(f"{file.valid} marks no pixel as valid: nothing of {file.image} counts. Leave it out.")
    pixels = _without_nan(image, pixels, valid)
    name = file.image.relative_to(root).as_posix()
    names = [name] if len(pixels) == 1 else [f"{name}#{number}" for number in range(len(pixels))]
    size = pixel_size_of(image, manifest)
    fields = [None] * len(pixels) if valid is None else list(valid)
    return [
        _Plane(*parts, size)
        for parts in zip(names, [name] * len(names), list(pixels), list(masks), fields, strict=True)
    ]


def _no_partner(what: str, image: Path, pattern: str | None) -> DatasetNotFoundError:
    return DatasetNotFoundError(
        f"{image} has no {what} that matches {pattern!r}. Add it, or leave the image out of the split."
    )


def as_planes(image: Image, manifest: Manifest) -> np.ndarray:
    """Pixels as (planes, H, W, C), after a look at dtype and channels.

    Raises:
        DataError: if they are not what the manifest says.
    """
    array, wanted = image.array, manifest.image.dtype
    if array.dtype.name != wanted:
        raise DataError(
            f"{image.source} holds {array.dtype.name} values, the manifest {manifest.name!r} says {wanted}. Convert "
            f"the file, or write `image: {{dtype: {array.dtype.name}}}` into the manifest if all images are like it."
        )
    if not image.axes.endswith("C"):
        array = array[..., None]
    if array.shape[-1] != len(manifest.channels):
        raise DataError(
            f"{image.source} has {array.shape[-1]} channel(s) ({image.axes} {image.array.shape}), the manifest "
            f"{manifest.name!r} names {len(manifest.channels)}: {', '.join(manifest.channels)}. Convert the file, or "
            "correct `channels` of the manifest."
        )
    return array if array.ndim == 4 else array[None]


def pixel_size_of(image: Image, manifest: Manifest) -> PixelSize | None:
    """Micrometres per pixel, row then column: by the manifest, else by the file; None when neither says."""
    if manifest.pixel_size_um is not None:
        return manifest.pixel_size_um
    return None if image.pixel_size_um is None else (image.pixel_size_um[-2], image.pixel_size_um[-1])


def _fit(labels: np.ndarray, path: Path, image: Image) -> np.ndarray:
    """A mask as (planes, H, W), of the size of its image."""
    shape = image.array.shape[: -1 if image.axes.endswith("C") else None]
    if labels.shape != shape:
        raise DataError(
            f"{path} has {_size(labels.shape)}, its image {image.source} {_size(shape)}. They do not belong together, "
            "or one was resized or turned: export both at the same size."
        )
    return labels if labels.ndim == 3 else labels[None]


def _size(shape: tuple[int, ...]) -> str:
    planes = f"{shape[0]} planes of " if len(shape) == 3 else ""
    return f"{planes}{shape[-2]}x{shape[-1]} px (rows x columns)"


def _without_nan(image: Image, pixels: np.ndarray, valid: np.ndarray | None) -> np.ndarray:
    if pixels.dtype.kind != "f" or (finite := np.isfinite(pixels)).all():
        return pixels
    if valid is None or not finite[valid].all():
        check_finite(image)
    return np.where(finite, pixels, pixels[valid].min())


def _digest(plane: _Plane) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for array in (plane.image, plane.mask, plane.valid):
        if array is not None:
            digest.update(f"{array.shape}{array.dtype}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return int.from_bytes(digest.digest(), "little", signed=True)


def check_content(images: MaskImages, split: str) -> None:
    """Look for images from which nothing can be learned; warns about those that are merely strange.

    Args:
        images: of the split.
        split: ``"train"``, where a constant image is an error, or another, where it is a warning.

    Raises:
        DataError: if a training image has one value in all pixels that are inside, or if no image of the split holds
            any foreground.
    """
    constant = [images.ids[row] for row in range(len(images)) if np.ptp(images.pixels_inside(row), axis=0).max() == 0]
    text = f"{len(constant)} image(s) of {split!r} have one value in all pixels that count: {listed(constant)}."
    if constant and split == "train":
        raise DataError(f"{text} They are blank or damaged: replace them, or leave them out.")
    if constant:
        rank_zero_warn(text)
    empty = [images.ids[row] for row in range(len(images)) if not images.foreground(row).any()]
    if len(empty) == len(images):
        raise DataError(
            f"No mask of {split!r} holds any foreground where pixels count ({listed(empty)}). Check `foreground` and "
            "`mask_values` of the manifest with `biocnn data audit`."
        )
    if empty:
        rank_zero_warn(
            f"{len(empty)} of {len(images)} masks of {split!r} are empty: {listed(empty)}. That is right only if "
            "there is nothing to find in these images."
        )
