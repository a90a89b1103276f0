"""The fingerprint of a training set: what its images look like, and the settings that follow from it."""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from biocnn.data.mask_images import MaskImages
from biocnn.data.targets import exact_distance
from biocnn.errors import DataError

_STEP = 32  # px; networks that halve the size up to five times take multiples of it
_TILE, _LARGEST_TILE = 128, 512  # px
_RADII_IN_A_TILE = 8  # a tile shows four diameters of the widest structure: it, and what it lies in
_PIXELS_A_STEP = 2**17
_LEAST_STEPS = 8  # of an epoch, however small the images are
_BATCH = (2, 16)  # batch norm needs two; beyond 16 fewer steps are made of the same images


@dataclass(frozen=True)
class Fingerprint:
    """What the images of a training set look like; only pixels inside `valid` count.

    Attributes:
        n_images: number of images, planes of stacks counted one by one.
        size_smallest: least number of rows, and least number of columns.
        size_median: medians of rows and of columns.
        size_largest: largest number of rows, and of columns.
        pixel_size_um: micrometres per pixel, row then column; the median if images differ, None if unknown.
        intensity_range: what is mapped to 0 and 1: (0, 255) for uint8, else the smallest and the largest value.
        mean: of each channel, of values mapped to 0..1.
        std: of each channel.
        foreground_share: of all pixels.
        widest_radius: px, the largest distance from a foreground pixel to the nearest background.
    """

    n_images: int
    size_smallest: tuple[int, int]
    size_median: tuple[int, int]
    size_largest: tuple[int, int]
    pixel_size_um: tuple[float, float] | None
    intensity_range: tuple[float, float]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    foreground_share: float
    widest_radius: float

    @property
    def tile_size(self) -> int:
        """Side of a tile that suits these images, px: a multiple of 32, and at most as large as every image.

        128, or more if 8 times the widest radius is more, up to 512.

        Raises:
            DataError: if the smallest image has less than 32 rows or columns.
        """
        side = min(self.size_smallest)
        if side < _STEP:
            raise DataError(
                f"The smallest training image has {self.size_smallest[0]} rows or {self.size_smallest[1]} columns; "
                f"tiles need at least {_STEP} px. Leave it out, or choose --data.tile_size yourself, at most {side}."
            )
        wanted = -(-math.ceil(_RADII_IN_A_TILE * self.widest_radius) // _STEP) * _STEP
        return min(max(_TILE, wanted), _LARGEST_TILE, side // _STEP * _STEP)

    def batch_size(self, tile_size: int) -> int:
        """Tiles in a step: as many as make 2^17 pixels, 2 to 16."""
        low, high = _BATCH
        return min(max(_PIXELS_A_STEP // tile_size**2, low), high)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Fingerprint":
        """Inverse of :meth:`to_dict`.

        Raises:
            ValueError: if a value is missing or unknown.
        """
        names = {field.name for field in fields(cls)}
        if names != set(values):
            raise ValueError(f"A fingerprint has the values {sorted(names)}, received {sorted(values)}.")
        found: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        return cls(**found)

    def lines(self) -> list[str]:
        """What was found, for people."""
        rows, columns = self.size_median
        sizes = f"{rows}x{columns} px"
        if self.size_smallest != self.size_largest:
            low, high = (f"{size[0]}x{size[1]}" for size in (self.size_smallest, self.size_largest))
            sizes = f"{low} to {high} px, median {rows}x{columns}"
        pixel = "unknown" if self.pixel_size_um is None else "{:g} x {:g} um".format(*self.pixel_size_um)
        mean, std = (", ".join(f"{value:.3f}" for value in values) for values in (self.mean, self.std))
        low_value, high_value = self.intensity_range
        return [
            f"fingerprint: {self.n_images} training images of {sizes} (rows x columns), pixel size {pixel}",
            f"fingerprint: foreground {100 * self.foreground_share:.1f} %, widest radius {self.widest_radius:.1f} px",
            f"fingerprint: values {low_value:g} to {high_value:g} become 0 to 1; mean {mean}, standard deviation {std}",
        ]


def fingerprint(images: MaskImages) -> Fingerprint:
    """Measure a training set. Takes about 10 ms for an image of 584x565x3.

    Args:
        images: at least one.

    Raises:
        DataError: if all pixels that count have one value in a channel: it could not be normalised.
    """
    rows = range(len(images))
    low, high = _range(images)
    count = 0
    total = np.zeros(images.images[0].shape[2])
    squares = np.zeros_like(total)
    foreground = 0
    for row in rows:
        values = scale(images.pixels_inside(row), (low, high)).astype(np.float64)
        count += len(values)
        total += values.sum(0)
        squares += (values**2).sum(0)
        foreground += int(images.foreground(row).sum())
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    if (std < 1e-6).any():
        raise DataError(
            f"Channel(s) {np.flatnonzero(std < 1e-6).tolist()} have one value in all training images, so nothing can "
            "be learned from them. Leave them out of the files and of `channels` in the manifest."
        )
    sizes = np.array([image.shape[:2] for image in images.images])
    pixel_sizes = [size for size in images.pixel_sizes if size is not None]
    median = np.median(pixel_sizes, axis=0).tolist() if len(pixel_sizes) == len(images) else None
    return Fingerprint(
        n_images=len(images),
        size_smallest=_pair(sizes.min(0)),
        size_median=_pair(np.median(sizes, axis=0)),
        size_largest=_pair(sizes.max(0)),
        pixel_size_um=None if median is None else (median[0], median[1]),
        intensity_range=(low, high),
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        foreground_share=foreground / count,
        widest_radius=max(widest_radius(mask) for mask in images.masks),
    )


@dataclass(frozen=True)
class Serving:
    """How training tiles are served.

    Attributes:
        tile_size: side of a tile in pixels.
        batch_size: tiles in a step.
        tiles_per_epoch: tiles in an epoch, a multiple of the number of images.
        lines: for people, what was chosen and why; nothing about what was given.
    """

    tile_size: int
    batch_size: int
    tiles_per_epoch: int
    lines: tuple[str, ...]


def choose_serving(
    images: MaskImages, found: Fingerprint, tile_size: int | None, batch_size: int | None, tiles_per_epoch: int | None
) -> Serving:
    """Choose from the fingerprint what is None.

    Args:
        images: the training set.
        found: its fingerprint.
        tile_size: as given by the user; :attr:`Fingerprint.tile_size` when None.
        batch_size: the same; :meth:`Fingerprint.batch_size` when None.
        tiles_per_epoch: the same; as many as cover the images once, and at least 8 batches, when None.

    Raises:
        DataError: if no tile fits into the smallest image.
    """
    lines = []
    if tile_size is None:
        tile_size = found.tile_size
        lines.append(
            f"data.tile_size: {tile_size} ({_TILE}, or {_RADII_IN_A_TILE} times the widest radius of "
            f"{found.widest_radius:.1f} px if that is more, within {_LARGEST_TILE} and the smallest image, "
            f"{min(found.size_smallest)} px)"
        )
    if batch_size is None:
        batch_size = found.batch_size(tile_size)
        lines.append(f"data.batch_size: {batch_size} (2^17 pixels in a step, {_BATCH[0]} to {_BATCH[1]} tiles)")
    if tiles_per_epoch is None:
        covering = sum(image.shape[0] * image.shape[1] for image in images.images) / tile_size**2
        tiles_per_epoch = _multiple(max(covering, _LEAST_STEPS * batch_size), len(images))
        lines.append(
            f"data.tiles_per_epoch: {tiles_per_epoch} (as many from every image; they cover the images once, and make "
            f"{_LEAST_STEPS} batches at least)"
        )
    return Serving(tile_size, batch_size, _multiple(tiles_per_epoch, len(images)), tuple(lines))


def _multiple(number: float, step: int) -> int:
    """The least multiple of `step` that is not below `number`."""
    return math.ceil(number / step) * step


def _pair(values: np.ndarray) -> tuple[int, int]:
    return int(values[0]), int(values[1])


def _range(images: MaskImages) -> tuple[float, float]:
    if images.images[0].dtype == np.uint8:
        return 0.0, 255.0
    values = [images.pixels_inside(row) for row in range(len(images))]
    low, high = min(float(part.min()) for part in values), max(float(part.max()) for part in values)
    if low == high:
        raise DataError(f"All pixels of all training images have the value {low:g}. Look at the files.")
    return low, high


def scale(values: np.ndarray, intensity_range: tuple[float, float]) -> np.ndarray:
    """Map values linearly so that the range becomes 0 and 1; nothing is clipped.

    Args:
        values: of any shape and number type.
        intensity_range: what becomes 0 and 1.

    Returns:
        float32, of the same shape.
    """
    low, high = intensity_range
    return (values.astype(np.float32) - np.float32(low)) * np.float32(1 / (high - low))


def widest_radius(mask: np.ndarray) -> float:
    """Largest distance in pixels from a foreground pixel to the nearest background.

    The border of the image is no background, unless the mask is foreground everywhere.

    Args:
        mask: (H, W) bool.

    Returns:
        0 for an empty mask; 1 for a line of one pixel.
    """
    return float(exact_distance(np.pad(mask, 1) if mask.all() else mask).max())
