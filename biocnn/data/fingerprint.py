"""The fingerprint of a training set: what its images look like, and the settings that follow from it."""

import math
from abc import abstractmethod
from dataclasses import asdict, dataclass, fields
from typing import Any, Self, TypeVar

import numpy as np
import torch

from biocnn.data.image_sets import ImageSet
from biocnn.data.mask_images import MaskImages
from biocnn.data.targets import exact_distance
from biocnn.errors import DataError

Values = TypeVar("Values", np.ndarray, torch.Tensor)

_STEP = 32  # px; networks that halve the size up to five times take multiples of it
_LARGEST_TILE = 512  # px
_RADII_IN_A_TILE = 8  # a tile shows four diameters of the widest structure: it, and what it lies in
_PIXELS_A_STEP = 2**17
_LEAST_STEPS = 8  # of an epoch, however small the images are
_BATCH = (2, 16)  # batch norm needs two; beyond 16 fewer steps are made of the same images


@dataclass(frozen=True)
class ImageFingerprint:
    """What the images of a training set look like, whatever they are annotated with; only pixels inside `valid` count.

    A kind of annotation adds its own values, and says which tiles suit it.

    Attributes:
        n_images: number of images, planes of stacks counted one by one.
        size_smallest: least number of rows, and least number of columns.
        size_median: medians of rows and of columns.
        size_largest: largest number of rows, and of columns.
        pixel_size_um: micrometres per pixel, row then column; the median if images differ, None if unknown.
        intensity_range: what is mapped to 0 and 1: (0, 255) for uint8, else the smallest and the largest value.
        mean: of each channel, of values mapped to 0..1.
        std: of each channel.
        mean_spread: of each channel, how much images differ in their means: the standard deviation between the means of
            the images, relative to `mean`. What the tone jitter of an augmentation should cover; 0 for one image.
    """

    n_images: int
    size_smallest: tuple[int, int]
    size_median: tuple[int, int]
    size_largest: tuple[int, int]
    pixel_size_um: tuple[float, float] | None
    intensity_range: tuple[float, float]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mean_spread: tuple[float, ...]

    @property
    @abstractmethod
    def wanted_tile(self) -> tuple[float, str]:
        """Side of a tile in pixels that the annotation asks for, and what it is, in words."""

    @property
    @abstractmethod
    def content(self) -> str:
        """What the annotation is like, for people."""

    @property
    def least_tile(self) -> int:
        """Side of the smallest tile that is chosen, px."""
        return 128

    @property
    def tile_size(self) -> int:
        """Side of a tile that suits these images, px: a multiple of 32, and at most as large as every image.

        :attr:`least_tile`, or what the annotation asks for if that is more, up to 512.

        Raises:
            DataError: if the smallest image has less than 32 rows or columns.
        """
        side = min(self.size_smallest)
        if side < _STEP:
            raise DataError(
                f"The smallest training image has {self.size_smallest[0]} rows or {self.size_smallest[1]} columns; "
                f"tiles need at least {_STEP} px. Leave it out, or choose --data.tile_size yourself, at most {side}."
            )
        wanted = _multiple(self.wanted_tile[0], _STEP)
        return min(max(self.least_tile, wanted), _LARGEST_TILE, side // _STEP * _STEP)

    def batch_size(self, tile_size: int) -> int:
        """Tiles in a step: as many as make 2^17 pixels, 2 to 16."""
        low, high = _BATCH
        return min(max(_PIXELS_A_STEP // tile_size**2, low), high)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
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
        spread = ", ".join(f"{100 * value:.0f} %" for value in self.mean_spread)
        low_value, high_value = self.intensity_range
        return [
            f"fingerprint: {self.n_images} training images of {sizes} (rows x columns), pixel size {pixel}",
            f"fingerprint: {self.content}",
            f"fingerprint: values {low_value:g} to {high_value:g} become 0 to 1; mean {mean}, standard deviation {std}",
            f"fingerprint: the means of the images differ by {spread} (standard deviation, relative to the mean)",
        ]


@dataclass(frozen=True)
class Fingerprint(ImageFingerprint):
    """What the images of a training set with masks look like; only pixels inside `valid` count.

    Attributes:
        foreground_share: of all pixels.
        widest_radius: px, the largest distance from a foreground pixel to the nearest background, see
            :func:`widest_radius`.
    """

    foreground_share: float
    widest_radius: float

    @property
    def wanted_tile(self) -> tuple[float, str]:
        """8 times the widest radius."""
        return (
            _RADII_IN_A_TILE * self.widest_radius,
            f"{_RADII_IN_A_TILE} times the widest radius of {self.widest_radius:.1f} px",
        )

    @property
    def content(self) -> str:
        """How much foreground there is, and how wide."""
        return f"foreground {100 * self.foreground_share:.1f} %, widest radius {self.widest_radius:.1f} px"


def fingerprint(images: MaskImages) -> Fingerprint:
    """Measure a training set with masks. Takes about 10 ms for an image of 584x565x3.

    Args:
        images: at least one.

    Raises:
        DataError: if all pixels that count have one value in a channel: it could not be normalised.
    """
    found = measure(images)
    rows = range(len(images))
    return Fingerprint(
        **found,
        foreground_share=sum(int(images.foreground(row).sum()) for row in rows) / pixels_that_count(images),
        widest_radius=max(widest_radius(*pair) for pair in zip(images.masks, images.valid, strict=True)),
    )


def pixels_that_count(images: ImageSet) -> int:
    """Number of pixels of all images that are inside."""
    return sum(
        image.shape[0] * image.shape[1] if valid is None else int(valid.sum())
        for image, valid in zip(images.images, images.valid, strict=True)
    )


def measure(images: ImageSet) -> dict[str, Any]:
    """The values of :class:`ImageFingerprint`.

    Args:
        images: at least one.

    Raises:
        DataError: if all pixels that count have one value in a channel: it could not be normalised.
    """
    low, high = _range(images)
    count = 0
    total = np.zeros(images.images[0].shape[2])
    squares = np.zeros_like(total)
    means = []
    for row in range(len(images)):
        values = scale(images.pixels_inside(row), (low, high)).astype(np.float64)
        count += len(values)
        total += values.sum(0)
        means.append(values.mean(0))
        squares += (values**2).sum(0)
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
    return {
        "n_images": len(images),
        "size_smallest": _pair(sizes.min(0)),
        "size_median": _pair(np.median(sizes, axis=0)),
        "size_largest": _pair(sizes.max(0)),
        "pixel_size_um": None if median is None else (median[0], median[1]),
        "intensity_range": (low, high),
        "mean": tuple(mean.tolist()),
        "std": tuple(std.tolist()),
        "mean_spread": tuple((np.std(means, axis=0) / mean).tolist()),
    }


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
    images: ImageSet,
    found: ImageFingerprint,
    tile_size: int | None,
    batch_size: int | None,
    tiles_per_epoch: int | None,
) -> Serving:
    """Choose from the fingerprint what is None.

    Args:
        images: the training set.
        found: its fingerprint.
        tile_size: as given by the user; :attr:`ImageFingerprint.tile_size` when None.
        batch_size: the same; :meth:`ImageFingerprint.batch_size` when None.
        tiles_per_epoch: the same; as many as cover the images once, and at least 8 batches, when None.

    Raises:
        DataError: if no tile fits into the smallest image.
    """
    lines = []
    if tile_size is None:
        tile_size = found.tile_size
        lines.append(
            f"data.tile_size: {tile_size} ({found.least_tile}, or {found.wanted_tile[1]} if that is more, within "
            f"{_LARGEST_TILE} and the smallest image, {min(found.size_smallest)} px)"
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


def _range(images: ImageSet) -> tuple[float, float]:
    if images.images[0].dtype == np.uint8:
        return 0.0, 255.0
    values = [images.pixels_inside(row) for row in range(len(images))]
    low, high = min(float(part.min()) for part in values), max(float(part.max()) for part in values)
    if low == high:
        raise DataError(f"All pixels of all training images have the value {low:g}. Look at the files.")
    return low, high


def scale(values: Values, intensity_range: tuple[float, float]) -> Values:
    """Map values linearly so that the range becomes 0 and 1, and cut what lies beyond.

    The range is that of the training images where pixels count. A network never saw values beyond it, so they are cut
    wherever images are served: in tiles, whole images and predictions.

    Args:
        values: array or tensor of any shape and number type.
        intensity_range: what becomes 0 and 1.

    Returns:
        float32 in 0..1, of the same shape, on the same device; nan where `values` are.
    """
    low, high = (float(bound) for bound in intensity_range)
    floats = values.float() if isinstance(values, torch.Tensor) else values.astype(np.float32)
    return ((floats - low) * (1 / (high - low))).clip(0, 1)


def widest_radius(mask: np.ndarray, valid: np.ndarray | None = None) -> float:
    """Largest distance in pixels from a foreground pixel that counts to the nearest background.

    The border of the image is no background, unless the mask is foreground everywhere; nor is the rim of `valid`: a
    structure that goes on beyond it is as wide as its whole mask says.

    Args:
        mask: (H, W) bool.
        valid: (H, W) bool, where pixels count; everywhere when None.

    Returns:
        0 for a mask without foreground that counts; 1 for a line of one pixel.
    """
    distance = exact_distance(np.pad(mask, 1))[1:-1, 1:-1] if mask.all() else exact_distance(mask)
    return float((distance if valid is None else distance * valid).max())
