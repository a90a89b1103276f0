"""The fingerprint of a training set with points: how many cells there are, how close, and what follows from it."""

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from pytorch_lightning.utilities import rank_zero_info
from scipy.spatial import cKDTree

from biocnn.data.fingerprint import ImageFingerprint, Values, measure, pixels_that_count
from biocnn.data.point_images import PointImages

_SIGMA = (1.0, 4.0)  # px; narrower kernels are hardly learned, wider ones leave no peaks to find
_SIGMA_PER_DISTANCE = 0.25  # peaks of kernels that are wider run into each other
_LEAST_STD = 0.25  # of the largest; stains of one picture differ by less
_POINTS_IN_A_TILE = 8  # fewer, and many tiles are empty or hold cells cut by the border only
# Of VGG cells, 16 tiles of 64 px a step do better than 8 of 128 px: they show twice as many images at half the work.
_LEAST_TILE = 64


@dataclass(frozen=True)
class PointFingerprint(ImageFingerprint):
    """What the images of a training set with points look like; only pixels inside `valid` count.

    The standard deviation of a channel is at least a quarter of the largest, as :func:`point_fingerprint` makes it.

    Attributes:
        count_mean: points per image.
        count_smallest: points of the image with the fewest.
        count_largest: points of the image with the most.
        points_per_pixel: of all images together.
        neighbour_distance: px, the median over all points of the distance to the nearest other one; None if no image
            has two.
        density_largest: points per pixel of the densest image; None in a checkpoint that did not measure it yet.
    """

    count_mean: float
    count_smallest: int
    count_largest: int
    points_per_pixel: float
    neighbour_distance: float | None
    density_largest: float | None = None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Inverse of :meth:`to_dict`, and of what older checkpoints hold, which is less.

        Raises:
            ValueError: if another value is missing, or one is unknown.
        """
        return super().from_dict({"density_largest": None, **values})

    @property
    def sigma(self) -> float:
        """Width of the kernels that suits these points, px: a quarter of the neighbour distance, 1 to 4."""
        low, high = _SIGMA
        wanted = high if self.neighbour_distance is None else _SIGMA_PER_DISTANCE * self.neighbour_distance
        return round(min(max(wanted, low), high), 2)

    @property
    def sigma_reason(self) -> str:
        """Why it is that width, in words."""
        low, high = _SIGMA
        if self.neighbour_distance is None:
            return f"{high:g}: no image has two points"
        return (
            f"a quarter of the median distance to the nearest neighbour, {self.neighbour_distance:.1f} px, "
            f"within {low:g} and {high:g}"
        )

    @property
    def least_tile(self) -> int:
        """Side of the smallest tile that is chosen, px."""
        return _LEAST_TILE

    @property
    def wanted_tile(self) -> tuple[float, str]:
        """What holds 8 points on average."""
        side = math.sqrt(_POINTS_IN_A_TILE / self.points_per_pixel) if self.points_per_pixel else math.inf
        return min(side, min(self.size_smallest)), f"what holds {_POINTS_IN_A_TILE} cells on average, {side:.0f} px,"

    @property
    def content(self) -> str:
        """How many points there are, and how close."""
        near = "unknown" if self.neighbour_distance is None else f"{self.neighbour_distance:.1f} px"
        return (
            f"{self.count_mean:.1f} cells per image ({self.count_smallest} to {self.count_largest}), "
            f"{1e4 * self.points_per_pixel:.2f} per 100x100 px, median distance to the nearest {near}"
        )


def point_fingerprint(images: PointImages) -> PointFingerprint:
    """Measure a training set with points.

    A channel that is all but empty, as red and green of fluorescence images that are saved in colours, would be blown
    up by its own standard deviation: red of VGG cells varies by 0.8 of 255 levels, and jitter of brightness made it 11
    standard deviations in training against 1 in validation. So none is taken as less than a quarter of the largest.

    Args:
        images: at least one.

    Raises:
        DataError: if all pixels that count have one value in a channel: it could not be normalised.
    """
    found = measure(images)
    least = _LEAST_STD * max(found["std"])
    if faint := [channel for channel, std in enumerate(found["std"]) if std < least]:
        rank_zero_info(
            f"fingerprint: channel(s) {faint} are all but empty; they are normalised by {least:.3f}, a quarter of the "
            "largest standard deviation"
        )
    found["std"] = tuple(max(std, least) for std in found["std"])
    counts = images.counts
    pixels = [len(images.pixels_inside(row)) for row in range(len(images))]
    distances = [cKDTree(points).query(points, k=2)[0][:, 1] for points in images.points if len(points) > 1]
    return PointFingerprint(
        **found,
        count_mean=float(counts.mean()),
        count_smallest=int(counts.min()),
        count_largest=int(counts.max()),
        points_per_pixel=float(counts.sum() / pixels_that_count(images)),
        neighbour_distance=float(np.median(np.concatenate(distances))) if distances else None,
        density_largest=float((counts / pixels).max()),
    )


def share_beyond(values: Values, intensity_range: tuple[float, float]) -> float:
    """Share of pixels with a value beyond the range of the training images in any channel, which is cut where served.

    Args:
        values: (..., C), as in the file.
        intensity_range: of the fingerprint.

    Returns:
        0 to 1; nan is not beyond.
    """
    # Images on the device are float32, in which the ends of the range may be other numbers.
    low, high = (float(np.float32(bound)) for bound in intensity_range)
    floats = values.float() if isinstance(values, torch.Tensor) else values.astype(np.float32)
    beyond = ((floats < low) | (floats > high)).any(-1)
    return float(beyond.sum()) / math.prod(beyond.shape)
