"""Images of one split in memory, whatever they are annotated with: read, checked, pooled, dealt and drawn.

Notation: N images, H rows, W columns, C channels; a pixel is *inside* where `valid` is True.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any, Self, TypeVar

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
class ImageSet:
    """Images of one split in memory, in natural order; the planes of a stack are images one by one.

    A kind of annotation adds its own field, with N entries.

    Attributes:
        ids: path of every image below the root, with ``#`` and the number of the plane for a stack.
        groups: group of every image; None without a group rule.
        files: path of the file of every image: planes of one file are never dealt to different folds.
        images: N arrays (H, W, C), in the dtype of the manifest.
        valid: N arrays (H, W) bool, False where pixels must not count; None where all of them count.
        pixel_sizes: micrometres per pixel, by the manifest, else by the file; None when neither says.
        digests: (N,) int64, of the pixels of the image, its annotation and `valid`.
    """

    ids: tuple[str, ...]
    groups: tuple[str, ...] | None
    files: tuple[str, ...]
    images: tuple[np.ndarray, ...]
    valid: tuple[np.ndarray | None, ...]
    pixel_sizes: tuple[PixelSize | None, ...]
    digests: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def pixels_inside(self, row: int) -> np.ndarray:
        """Values of an image that are inside, (M, C)."""
        image, valid = self.images[row], self.valid[row]
        return image.reshape(-1, image.shape[2]) if valid is None else image[valid]

    def take(self, rows: Iterable[int]) -> Self:
        """The images `rows`, in this order; nothing is copied."""
        rows = list(rows)
        return replace(self, **{field.name: _take(getattr(self, field.name), rows) for field in fields(self)})


Images = TypeVar("Images", bound=ImageSet)


def _take(values: Any, rows: list[int]) -> Any:
    if values is None or isinstance(values, np.ndarray):
        return values if values is None else values[rows]
    return tuple(values[row] for row in rows)


def join(parts: Sequence[Images]) -> Images:
    """Several splits of one data set as one, in the given order."""
    columns = {field.name: [getattr(part, field.name) for part in parts] for field in fields(parts[0])}
    return replace(parts[0], **{name: _join(values) for name, values in columns.items()})


def _join(values: list[Any]) -> Any:
    if any(value is None for value in values):
        return None
    return np.concatenate(values) if isinstance(values[0], np.ndarray) else tuple(chain(*values))


def deal(images: Images, folds: int, fold: int, seed: int) -> dict[str, Images]:
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


def draw(images: Images, training: int | None, validation: int | None, seed: int) -> dict[str, Images]:
    """Draw so many images to train on and so many to validate on; no group, and no file, gives to both.

    Groups are put into an order drawn from `seed`, their images one after another. Training takes the first images,
    validation the last. So with one seed a smaller training set is part of a larger one, and the validation images are
    the same for both: a curve over the number of images compares nothing else.

    Args:
        images: train and valid together.
        training: images to train on; all that share no group with validation when None.
        validation: images to validate on; all that share no group with training when None.
        seed: of the draw.

    Returns:
        ``train`` and ``valid``, both in the order of `images`.

    Raises:
        DataError: if there are not so many.
    """
    names = np.array(images.groups or images.files)
    found, member = np.unique(names, return_inverse=True)
    rank = np.random.default_rng(seed).permutation(len(found))[member]
    order = np.argsort(rank, kind="stable")
    if training is not None:
        train = order[:training]
        rest = order[~np.isin(rank[order], rank[train])]
        valid = rest if validation is None else rest[len(rest) - min(validation, len(rest)) :]
    else:
        valid = order[len(order) - min(validation or 0, len(order)) :]
        train = order[~np.isin(rank[order], rank[valid])]
    if len(train) < (training or 1) or len(valid) < (validation or 1):
        raise DataError(
            f"The splits train and valid hold {len(images)} images of {len(found)} group(s) or file(s); expected "
            f"{_amount(training)} to train on and {_amount(validation)} of other groups to validate on. Lower "
            "--data.training_images or --data.valid_images."
        )
    return {"train": images.take(np.sort(train).tolist()), "valid": images.take(np.sort(valid).tolist())}


def _amount(number: int | None) -> str:
    return "at least one" if number is None else str(number)


@dataclass(frozen=True, eq=False)
class Part:
    """One image while a split is read; fields as in :class:`ImageSet`, and its annotation."""

    id: str
    file: str
    image: np.ndarray
    target: np.ndarray
    valid: np.ndarray | None
    pixel_size: PixelSize | None


def read_parts(
    manifest: Manifest, root: Path, split: str, max_bytes: int, read: Callable[[ImageFiles], Sequence[Part]]
) -> list[Part]:
    """Read the images of a split one by one, and stop when they take too much memory.

    Args:
        manifest: description of the data set.
        root: folder that holds the files.
        split: ``"train"``, ``"valid"`` or ``"test"``.
        max_bytes: memory that the arrays of all images together may take.
        read: reads an image and its partners; a stack gives several.

    Raises:
        ManifestError: if the manifest has no such split, or a pattern is ambiguous.
        DatasetNotFoundError: if no image matches.
        DataError: if the split needs more memory than `max_bytes`; and whatever `read` raises.
    """
    files = split_files(manifest, root, split)
    if not files:
        pattern = manifest.splits[split].images  # type: ignore[index]
        raise DatasetNotFoundError(
            f"Data set {manifest.name!r}, split {split!r}: no image matches {pattern!r} in {root.resolve()}. Point "
            f"--data.root to the folder that holds it, or run `biocnn data fetch {manifest.name} --root {root}`."
        )
    found: list[Part] = []
    total = 0
    for file in files:
        for part in read(file):
            total += sum(array.nbytes for array in (part.image, part.target, part.valid) if array is not None)
            found.append(part)
        if total > max_bytes:
            raise DataError(
                f"Split {split!r} of {manifest.name!r} takes more than {max_bytes / 1e9:,.2f} GB in memory: the limit "
                f"is passed at {file.image}, image {len(found):,} of about {len(files):,}. Put fewer images into the "
                "split with `select` in the manifest, cut them to the part that is annotated, or raise "
                "--data.max_bytes."
            )
    return found


def columns(manifest: Manifest, parts: Sequence[Part]) -> dict[str, Any]:
    """The fields of :class:`ImageSet` of what :func:`read_parts` has read."""
    groups = None
    if manifest.group is not None:
        # An image whose path does not tell a group, which the audit warns about, is a group of its own.
        groups = tuple(group_of(manifest, part.file) or part.file for part in parts)
    return {
        "ids": tuple(part.id for part in parts),
        "groups": groups,
        "files": tuple(part.file for part in parts),
        "images": tuple(part.image for part in parts),
        "valid": tuple(part.valid for part in parts),
        "pixel_sizes": tuple(part.pixel_size for part in parts),
        "digests": np.array([_digest(part) for part in parts], np.int64),
    }


def _digest(part: Part) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for array in (part.image, part.target, part.valid):
        if array is not None:
            digest.update(f"{array.shape}{array.dtype}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return int.from_bytes(digest.digest(), "little", signed=True)


def open_image(manifest: Manifest, file: ImageFiles, max_bytes: int) -> tuple[Image, np.ndarray]:
    """Read an image, and its pixels as (planes, H, W, C); see :func:`as_planes`."""
    image = read_image(file.image, max_bytes=max_bytes)
    return image, as_planes(image, manifest)


def read_valid(manifest: Manifest, split: str, file: ImageFiles, image: Image, max_bytes: int) -> np.ndarray | None:
    """Read the field of view of an image.

    Returns:
        (planes, H, W) bool; None if the split names none.

    Raises:
        DatasetNotFoundError: if the split names one, and it is missing.
        DataError: if it cannot be read, is of another size than the image, or no pixel of a plane is inside.
    """
    pattern = manifest.splits[split].valid  # type: ignore[index]
    if pattern is None:
        return None
    if file.valid is None:
        raise no_partner("field-of-view mask", file.image, pattern)
    valid = fit(read_mask(file.valid, max_bytes=max_bytes) != 0, file.valid, image)
    if not valid.any(axis=(1, 2)).all():
        raise DataError(f"{file.valid} marks no pixel as valid: nothing of {file.image} counts. Leave it out.")
    return valid


def no_partner(what: str, image: Path, pattern: str | None) -> DatasetNotFoundError:
    """The error for an image without its mask, its points or its field of view."""
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


def fit(labels: np.ndarray, path: Path, image: Image) -> np.ndarray:
    """A mask as (planes, H, W), of the size of its image.

    Raises:
        DataError: if it is of another size.
    """
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


def without_nan(image: Image, pixels: np.ndarray, valid: np.ndarray | None) -> np.ndarray:
    """Pixels in which NaN and infinity outside `valid` are the smallest value inside.

    Raises:
        DataError: if there are any inside.
    """
    if pixels.dtype.kind != "f" or (finite := np.isfinite(pixels)).all():
        return pixels
    if valid is None or not finite[valid].all():
        check_finite(image)
    return np.where(finite, pixels, pixels[valid].min())


def check_not_constant(images: ImageSet, split: str) -> None:
    """Look for blank images, with one value in all pixels that are inside; warns if they are not for training.

    Raises:
        DataError: if there are any in ``"train"``.
    """
    constant = [images.ids[row] for row in range(len(images)) if np.ptp(images.pixels_inside(row), axis=0).max() == 0]
    text = f"{len(constant)} image(s) of {split!r} have one value in all pixels that count: {listed(constant)}."
    if constant and split == "train":
        raise DataError(f"{text} They are blank or damaged: replace them, or leave them out.")
    if constant:
        rank_zero_warn(text)
