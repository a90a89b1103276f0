"""Images with points: one split read into memory, checked, before anything is trained on it.

Notation: N images, n points of an image, H rows, W columns; a pixel is *inside* where `valid` is True.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pytorch_lightning.utilities import rank_zero_warn

from biocnn.data.findings import listed
from biocnn.data.image_sets import (
    MAX_BYTES,
    ImageSet,
    Part,
    check_not_constant,
    columns,
    no_partner,
    open_image,
    pixel_size_of,
    read_parts,
    read_valid,
    without_nan,
)
from biocnn.data.manifest import ImageFiles, Manifest
from biocnn.data.points import read_annotation
from biocnn.errors import DataError

_RIM = 1e-3
"""px; points closer to the border of the image are moved so far from it, so that tiles, which have half of their border
only, lose none of them."""


@dataclass(frozen=True, eq=False)
class PointImages(ImageSet):
    """Images with points, of one split.

    Attributes:
        points: N arrays (n, 2) float64, row and column in pixels, whole numbers at the centres of pixels; all of them
            inside.
    """

    points: tuple[NDArray[np.float64], ...]

    @property
    def counts(self) -> NDArray[np.int64]:
        """Points of every image, (N,)."""
        return np.array([len(points) for points in self.points], np.int64)


def pixels_of(points: NDArray[np.floating]) -> NDArray[np.int64]:
    """Row and column of the pixel that each point lies in, (n, 2); one between two pixels is in the latter."""
    return np.floor(points.astype(np.float64) + 0.5).astype(np.int64)


def read_split(manifest: Manifest, root: str | Path, split: str, max_bytes: int = MAX_BYTES) -> PointImages:
    """Read one split of a data set of kind ``image-points``, and check that images, points and manifest fit together.

    Points outside the field of view, if the manifest names one, are left out with a warning that counts them: nothing
    counts there. Points on the border of an image are moved 0.001 px away from it.

    Args:
        manifest: description of the data set.
        root: folder that holds the files.
        split: ``"train"``, ``"valid"`` or ``"test"``.
        max_bytes: memory that images, points and fields of view together may take.

    Raises:
        ManifestError: if the manifest has no such split, or a pattern is ambiguous.
        DatasetNotFoundError: if no image matches, or an image has no points or field-of-view mask.
        DataError: if a file cannot be read; an image is a stack, has another dtype or number of channels than the
            manifest says, or NaN or infinity inside; points are masks, outside the image, there twice, in micrometres
            without a pixel size, or a dot image of another size; no pixel is inside; or the split needs more memory
            than `max_bytes`.
    """
    folder = Path(root)
    left_out: dict[str, int] = {}

    def read(file: ImageFiles) -> list[Part]:
        part, outside = _read(manifest, folder, split, file, max_bytes)
        if outside:
            left_out[part.id] = outside
        return [part]

    parts = read_parts(manifest, folder, split, max_bytes, read)
    if left_out:
        rank_zero_warn(
            f"{sum(left_out.values()):,} points of {split!r} lie outside the field of view and are left out: "
            f"{listed(f'{count} of {name}' for name, count in left_out.items())}."
        )
    return PointImages(**columns(manifest, parts), points=tuple(part.target for part in parts))


def _read(manifest: Manifest, root: Path, split: str, file: ImageFiles, max_bytes: int) -> tuple[Part, int]:
    """An image with its points, and how many of these are not inside."""
    image, planes = open_image(manifest, file, max_bytes)
    if len(planes) > 1:
        raise DataError(
            f"{file.image} is a stack of {len(planes)} planes, and points have no plane. Save every plane, with its "
            "points, as an image of its own."
        )
    if file.points is None:
        raise no_partner("points", file.image, manifest.splits[split].points)  # type: ignore[index]
    valid = read_valid(manifest, split, file, image, max_bytes)
    pixels = without_nan(image, planes, valid)[0]
    height, width = pixels.shape[:2]
    size = pixel_size_of(image, manifest)
    points = read_annotation(file.points, (height, width), manifest.points, size)
    points = np.clip(points, _RIM - 0.5, np.array([height, width]) - 0.5 - _RIM)
    inside = np.ones(len(points), bool) if valid is None else valid[0][tuple(pixels_of(points).T)]
    name = file.image.relative_to(root).as_posix()
    part = Part(name, name, pixels, points[inside], None if valid is None else valid[0], size)
    return part, int((~inside).sum())


def check_content(images: PointImages, split: str) -> None:
    """Look for images from which nothing can be learned; warns about those that are merely strange.

    Args:
        images: of the split.
        split: ``"train"``, where a constant image is an error, or another, where it is a warning.

    Raises:
        DataError: if a training image has one value in all pixels that are inside, or if no image of the split has a
            point.
    """
    check_not_constant(images, split)
    empty = [images.ids[row] for row in np.flatnonzero(images.counts == 0)]
    if len(empty) == len(images):
        raise DataError(
            f"No image of {split!r} has a point where pixels count ({listed(empty)}). Check `points` of the manifest "
            "with `biocnn data audit`."
        )
    if empty:
        rank_zero_warn(
            f"{len(empty)} of {len(images)} images of {split!r} have no point: {listed(empty)}. That is right only if "
            "there is no cell in them."
        )
