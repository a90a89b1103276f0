"""Counting of cells with a trained model: counts with their interval, densities, points, and what looks wrong."""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from biocnn.data.fingerprint import scale
from biocnn.data.point_fingerprint import share_beyond
from biocnn.errors import DataError
from biocnn.inference.peaks import find_peaks
from biocnn.inference.regrid import move_points
from biocnn.inference.results import Count, CountResult
from biocnn.inference.sources import Opened, Reading, Source, channel_names, open_source
from biocnn.networks.resolution import output_stride_of
from biocnn.tasks.counting import CountingTask, kernel_width

# How far the mean of an image may lie from that of the training set: in standard deviations between training images,
# and, where these hardly differ, in standard deviations within them.
_MEANS, _WITHIN = 4.0, 0.25
_CONTRAST = 3.0  # the same for the standard deviation within the image, as a factor
_BEYOND = 0.01  # of the pixels; a few hot ones are no other exposure
_LARGER = 1.1  # a factor on the largest training image; totals of larger ones are larger too
_PIXEL_SIZE = 1.1  # a factor; a tenth changes the area of a cell by a fifth


def count_of(task: CountingTask, density: NDArray[np.floating], inside: NDArray[np.bool_] | None = None) -> Count:
    """Count and interval of a density map.

    The interval is made for whole images; that of a part of one is a guess from images with as few cells.

    Args:
        task: with its interval.
        density: (H, W), cells per pixel.
        inside: (H, W), where pixels count; None counts all.
    """
    return count_of_sum(task, float(np.sum(density if inside is None else density[inside], dtype=np.float64)))


def count_of_sum(task: CountingTask, count: float) -> Count:
    """Count and interval of a density map whose sum is known."""
    if task.interval is None or not task.interval_fits or count < 0:
        return Count(count, 0.0, math.inf)
    low, high = task.interval.interval(count)
    return Count(count, float(low), float(high))


def density_points(
    task: CountingTask, density: NDArray[np.float32], pixel_size_um: Sequence[float] | None = None
) -> NDArray[np.float32] | None:
    """Points (N, 2) in a density map by :func:`find_peaks`; None if the width of the training's kernels is not known.

    Of two peaks nearer than that width one is kept, as kernels so close have one peak only; of all, as many of the
    strongest as the map has cells, since a network that is not well trained makes many small ones. Maps that are
    constant in cells of several pixels are smoothed by half a cell.

    Args:
        task: whose network made the map.
        density: (H, W), cells per pixel.
        pixel_size_um: of the image, for kernels whose width is in micrometres.
    """
    sigma, stride = kernel_width(task.data_description, pixel_size_um), output_stride_of(task.network)
    if sigma is None:
        return None
    smooth = stride / 2 if stride > 1 else 0.0
    most = max(round(float(density.sum(dtype=np.float64))), 0)
    return find_peaks(density, sigma, min_distance=sigma, smooth=smooth, count=most, refine=True)


def interval_note(task: CountingTask) -> str:
    """Why counts come without an interval; empty if they have one."""
    if task.interval is None:
        return "no interval: the checkpoint has not been validated"
    if not task.interval_fits:
        return "no interval: it was fitted for another way to predict; run `test` once"
    return "" if not task.interval.note else f"no interval: {interval_reason(task)}"


def interval_reason(task: CountingTask) -> str:
    """Why the interval of a task is infinite; empty if it is not, or was not fitted."""
    note = "" if task.interval is None else task.interval.note
    return f"{note} (of each group one image is taken)" if note and task.interval_per_group else note


def flags_of(
    task: CountingTask,
    count: float,
    image: NDArray[np.floating],
    pixel_size_um: Sequence[float] | None = None,
    valid: NDArray[np.bool_] | None = None,
    beyond: float = 0.0,
) -> list[str]:
    """What makes a count doubtful, in words; empty if nothing does.

    Many cells are many in an image about as large as those of the training, or a smaller one, when there are more than
    in any of these; in an image of any size when they are denser, by more than one cell.

    Args:
        task: that made it, with what it knows of its training set.
        count: of the whole image.
        image: (H, W, C) on the scale of the training, 0..1.
        pixel_size_um: of the image, row and column.
        valid: (H, W), where pixels count.
        beyond: share of the pixels that were cut to that scale, :func:`biocnn.data.point_fingerprint.share_beyond`.
    """
    data = task.data_description
    found = data.get("fingerprint") or {}
    flags = []
    if count < 0:
        flags.append("count below zero")
    pixels = image.reshape(-1, image.shape[-1]) if valid is None else image[valid]
    flags += _many(count, len(pixels), found)
    if found and beyond > _BEYOND:
        low, high = found["intensity_range"]
        flags.append(f"{100 * beyond:.0f} % of the pixels beyond the training images ({low:g} to {high:g})")
    if found:
        flags += _unlike(pixels, found)
    flags += _other_size(pixel_size_um, data.get("pixel_size_um"))
    if note := interval_note(task):
        flags.append(note)
    return flags


def _many(count: float, pixels: int, found: Mapping[str, Any]) -> list[str]:
    """Flags of a count in so many pixels that is more than a fingerprint has seen."""
    flags = []
    most, densest = found.get("count_largest"), found.get("density_largest")
    size = found.get("size_largest", (math.inf, 1))
    if most is not None and count > most and pixels <= _LARGER * size[0] * size[1]:
        flags.append(f"more cells than in any training image ({most})")
    if densest is not None and count > densest * pixels + 1:
        flags.append(
            f"denser than any training image ({1e4 * count / pixels:.3g} cells per 100x100 px, there at most "
            f"{1e4 * densest:.3g})"
        )
    return flags


def _unlike(pixels: NDArray[np.floating], found: dict[str, Sequence[float]]) -> list[str]:
    """Flags of pixels (N, C) unlike those of a fingerprint."""
    mean, std = np.array(found["mean"]), np.array(found["std"])
    means = pixels.mean(0, dtype=np.float64)
    apart = np.abs(means - mean)
    allowed = np.maximum(_MEANS * np.array(found["mean_spread"]) * np.abs(mean), _WITHIN * std)
    flags = []
    if (apart > allowed).any():
        worst = int(np.argmax(apart / allowed))
        flags.append(
            f"intensity unlike the training images (mean {means[worst]:.3f} in channel {worst}, "
            f"there {mean[worst]:.3f})"
        )
    brightest = int(np.argmax(std))  # of the others the deviation in the fingerprint may have been raised
    ratio = pixels[:, brightest].std(dtype=np.float64) / std[brightest]
    if not 1 / _CONTRAST <= ratio <= _CONTRAST:
        flags.append(f"contrast unlike the training images ({ratio:.2f} times theirs)")
    return flags


def _other_size(size: Sequence[float] | None, trained: Sequence[float] | None) -> list[str]:
    if trained is None:
        return []
    if size is None:
        return [f"pixel size not known (training: {trained[-2]:g} x {trained[-1]:g} um)"]
    pairs = zip(size[-2:], trained[-2:], strict=True)
    if max(max(one / other, other / one) for one, other in pairs) > _PIXEL_SIZE:
        return [f"pixel size {size[-2]:g} x {size[-1]:g} um (training: {trained[-2]:g} x {trained[-1]:g} um)"]
    return []


class Counter:
    """Counts cells in images of any size with a trained :class:`CountingTask`.

    Attributes:
        task: with its weights, in evaluation mode.
        channels: names of the channels of an image, in order.
        pixel_size_um: (row, column) micrometres per pixel of the training images; None if not known.
    """

    def __init__(self, task: CountingTask) -> None:
        self.task = task
        if note := interval_note(task):
            warnings.warn(f"Counts come with {note}.", stacklevel=3)
        data = task.data_description
        self.channels: tuple[str, ...] = tuple(data.get("channels", ()))
        self._dtype = np.dtype(data.get("dtype", "uint8"))
        low, high = (data.get("fingerprint") or {}).get("intensity_range", (0.0, 255.0))
        self._range = (float(low), float(high))
        size = data.get("pixel_size_um")
        self.pixel_size_um: tuple[float, float] | None = None if size is None else (size[0], size[1])

    def predict(self, source: Source, **reading: Any) -> CountResult:
        """Count the cells of an image: on its own grid, also where it is resampled to the pixel size of the training.

        Args:
            source: path, URL of an OME-Zarr, or array (H, W) or (H, W, C).
            **reading: fields of :class:`biocnn.inference.sources.Reading`, such as ``channels=("DAPI",)``.

        Raises:
            DatasetNotFoundError: if there is no such file.
            DataError: if it cannot be read, is too large, or has other channels or another dtype than the training
                images.
        """
        how = Reading(**reading)
        with open_source(source, how, channel_names(self.task), self.pixel_size_um) as opened:
            return self.predict_opened(opened, how)

    def predict_opened(self, opened: Opened, reading: Reading) -> CountResult:
        """The same of an image that is open."""
        image, prepared = opened.read(reading)
        density = self.density(prepared)
        count = count_of(self.task, density)
        points = density_points(self.task, density, opened.prepared.pixel_size_um)
        if points is not None and opened.resampled_um:
            points = move_points(points, opened.shape, opened.scale)
        return CountResult(
            opened.image.path,
            image,
            opened.back(density, "amount"),
            count,
            points,
            opened.image.pixel_size_um,
            (*opened.flags, *self.flags_of_count(prepared, count.cells)),
            opened.resampled_um,
        )

    def density(self, image: np.ndarray) -> NDArray[np.float32]:
        """Density map of an image, whose sum is the count.

        Args:
            image: (H, W, C), or (H, W) for one channel; of the dtype, the intensities and about the pixel size of the
                training images.

        Returns:
            (H, W) float32, cells per pixel.

        Raises:
            DataError: if the image is of another shape or dtype, or holds nan or infinity.
        """
        # Bytes stay bytes until they are cut into tiles, which saves 300 MB for three channels of 4096x4096 px.
        pixels = torch.from_numpy(self._prepare(np.asarray(image))).to(self.task.device)
        with torch.inference_mode():
            density = self.task.image_density(pixels, self.task.views)
        found: NDArray[np.float32] = density[0].cpu().numpy()
        return found

    def count(self, image: np.ndarray) -> Count:
        """Count, lower and upper end of its interval; arguments and errors as for :meth:`density`."""
        return count_of(self.task, self.density(image))

    def flags(self, image: np.ndarray, pixel_size_um: Sequence[float] | None = None) -> list[str]:
        """What makes the count of an image doubtful, in words, see :func:`flags_of`; empty if nothing does.

        Args:
            image: as for :meth:`density`.
            pixel_size_um: of the image, row and column; taken to be that of the training when None.

        Raises:
            DataError: as for :meth:`density`.
        """
        return self.flags_of_count(image, self.count(image).cells, pixel_size_um)

    def flags_of_count(
        self, image: np.ndarray, count: float, pixel_size_um: Sequence[float] | None = None
    ) -> list[str]:
        """The same of a count that is known; the pixel size is taken to be that of the training when None."""
        size = self.pixel_size_um if pixel_size_um is None else pixel_size_um
        picture = np.moveaxis(self._prepare(np.asarray(image)), 0, 2)
        values = scale(picture, (0.0, 255.0)) if picture.dtype == np.uint8 else picture
        raw = np.asarray(image).reshape(picture.shape)
        return flags_of(self.task, count, values, size, beyond=share_beyond(raw, self._range))

    def points(self, image: np.ndarray) -> NDArray[np.float32]:
        """Points (N, 2) of an image, row and column in pixels, strongest first.

        Cells that touch may share one point, so :meth:`count` is the better count. Arguments as for :meth:`density`.

        Raises:
            DataError: as for :meth:`density`, and if the checkpoint does not say how wide the kernels were.
        """
        found = density_points(self.task, self.density(image))
        if found is None:
            raise DataError(
                "The checkpoint does not say how wide the kernels of its training were, so there is no measure of a "
                "peak. Take the density, and biocnn.inference.peaks.find_peaks with a width of your choice."
            )
        return found

    def _prepare(self, image: np.ndarray) -> np.ndarray:
        """(C, H, W): uint8, or float32 on the scale of the training, cut to its range."""
        count, dtype = len(self.task.image_mean), self._dtype
        picture = image[..., None] if image.ndim == 2 else image
        if picture.ndim != 3 or picture.shape[2] != count or picture.dtype != dtype or picture.size == 0:
            raise DataError(
                f"Expected a {dtype} image of shape (rows, columns, {count}), as those of the training, received "
                f"{image.dtype} {image.shape}."
            )
        if dtype == np.uint8:
            return np.array(np.moveaxis(picture, 2, 0), order="C")  # a copy: arrays of readers may be read-only
        if not np.isfinite(picture).all():
            raise DataError("The image holds nan or infinity. Replace these pixels, or cut them off.")
        return np.ascontiguousarray(np.moveaxis(scale(picture, self._range), 2, 0))
