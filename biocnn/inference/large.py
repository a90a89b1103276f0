"""Images larger than memory: predicted strip by strip, and written as maps and masks with pyramids.

What is in memory are a few strips of the image and of the map, a small picture, and the points of a count.
"""

import math
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from biocnn.data.lazy_images import LazyImage, resampled
from biocnn.data.ome_tiff import write_ome_tiff
from biocnn.data.ome_zarr import write_ome_zarr
from biocnn.inference.band_points import points_of_bands
from biocnn.inference.bands import call_bands, sum_bands
from biocnn.inference.classification import PatchClassifier
from biocnn.inference.counting import Counter, count_of_sum
from biocnn.inference.regrid import Kind, move_points, regrid_bands
from biocnn.inference.results import PatchResult, count_measures, structure_measures, write_points
from biocnn.inference.segmentation import Segmenter
from biocnn.inference.sources import Opened
from biocnn.inference.strips import predict_strips

MapFormat = Literal["ome-tiff", "ome-zarr"]
Progress = Callable[[int, int], None]

SIDE = 2048
"""Pixels of the longer side of the picture of a large image, at most."""
_SAMPLES, _SAMPLE = 8, 256  # windows along each axis, and their side, by which a large image is compared with others
NO_GRAPH = "no graph: the image is too large for one in memory; delineate parts of it"


@dataclass(frozen=True, eq=False)
class LargeResult:
    """What is known of a large image after its files have been written.

    Attributes:
        picture: (h, w, C), the image on a coarser grid.
        step: rows and columns of the image along a pixel of the picture.
        measures: values of the columns of its job.
        flags: what makes the result doubtful, in words.
        mask: of structures, (h, w) bool of the picture, where there is anything at all; None for other jobs.
        points: of a count, (N, 2) in pixels of the image; None if not known, and for other jobs.
        patches: of a classification, in pixels of the image; its own image is the picture.
    """

    picture: np.ndarray
    step: int
    measures: dict[str, Any]
    flags: tuple[str, ...]
    mask: NDArray[np.bool_] | None = None
    points: NDArray[np.float32] | None = None
    patches: PatchResult | None = None


def predict_large(
    model: Segmenter | Counter | PatchClassifier,
    opened: Opened,
    folder: Path,
    unfinished: Path,
    map_format: MapFormat = "ome-tiff",
    progress: Progress | None = None,
) -> LargeResult:
    """Predict an image of any size, and write its map, and its mask, points or patches.

    Args:
        model: as of :func:`biocnn.load`.
        opened: the image.
        folder: for the files: ``map.ome.tif`` or ``map.ome.zarr``, ``mask`` likewise, ``points.csv``, ``patches.csv``.
        unfinished: for the strips of the map, of which an interrupted image goes on; deleted in the end.
        map_format: of map and mask.
        progress: called with the tiles done and all tiles.

    Raises:
        DataError: if the image is damaged, or not like those of the training, or something cannot be written.
        OSError: if the disk is full.
    """
    if isinstance(model, PatchClassifier):
        probability, patch_size, flags = model.grid(opened)
        picture, step = small_picture(opened.image)
        found = PatchResult("", picture, probability, patch_size, model.threshold, opened.image.pixel_size_um)
        found.save(folder)
        return LargeResult(picture, step, found.measures(), flags, patches=found)
    with _interruptible():
        store = predict_strips(model.task, opened.prepared, unfinished, progress=progress)
    picture, step = small_picture(opened.image)
    write = _writer(folder, opened, map_format)
    if isinstance(model, Segmenter):
        result = _structures(model, opened, store.bands, write, picture, step)
    else:
        result = _cells(model, opened, store.bands, write, folder, picture, step)
    store.remove()
    return result


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let an interruption pass as it is: Lightning's loops exit with code 1 instead, and ignore later ones."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stopped:
        if not isinstance(stopped.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, before)
        raise KeyboardInterrupt from stopped


def _structures(
    model: Segmenter,
    opened: Opened,
    bands: Callable[[], Iterable[NDArray[np.float32]]],
    write: Callable[..., None],
    picture: np.ndarray,
    step: int,
) -> LargeResult:
    small = np.zeros((math.ceil(opened.shape[0] / step), math.ceil(opened.shape[1] / step)), bool)
    pixels = row = 0

    def called() -> Iterator[NDArray[np.bool_]]:
        nonlocal pixels, row
        columns = np.arange(0, opened.shape[1], step)
        for band in call_bands(
            lambda: _back(opened, bands(), "value"), model.threshold, model.min_component_of(opened)
        ):
            pixels += int(band.sum())
            blocks = np.logical_or.reduceat(band, columns, axis=1)
            place = np.arange(row, row + len(band)) // step
            starts = np.flatnonzero(np.diff(place, prepend=-1))
            small[place[starts]] |= np.logical_or.reduceat(blocks, starts, axis=0)
            row += len(band)
            yield band

    write("map", np.float32, _back(opened, bands(), "value"), "map")
    write("mask", np.bool_, called(), "mask")
    measures = structure_measures(pixels, math.prod(opened.shape), opened.image.pixel_size_um)
    height, width = (min(*pair) for pair in zip(picture.shape, small.shape, strict=False))
    flags = (*opened.flags, *model.flags, NO_GRAPH)
    return LargeResult(picture[:height, :width], step, measures, flags, mask=small[:height, :width])


def _cells(
    model: Counter,
    opened: Opened,
    bands: Callable[[], Iterable[NDArray[np.float32]]],
    write: Callable[..., None],
    folder: Path,
    picture: np.ndarray,
    step: int,
) -> LargeResult:
    count = count_of_sum(model.task, sum_bands(bands()))
    points = points_of_bands(model.task, bands, opened.prepared.pixel_size_um)
    if points is not None:
        points = move_points(points, opened.shape, opened.scale) if opened.resampled_um else points
        write_points(folder, points)
    write("map", np.float32, _back(opened, bands(), "amount"), "map")
    sample = _sample(opened.prepared)
    # Of a part as many cells are expected as it has of the image.
    share = sample.shape[0] * sample.shape[1] / math.prod(opened.prepared.shape[:2])
    flags = (*opened.flags, *model.flags_of_count(sample, share * count.cells))
    number = None if points is None else len(points)
    measures = count_measures(count, number, math.prod(opened.shape), opened.image.pixel_size_um)
    return LargeResult(picture, step, measures, flags, points=points)


def _back(opened: Opened, bands: Iterable[NDArray[np.float32]], kind: Kind) -> Iterable[NDArray[np.float32]]:
    """Bands of a map of the prepared image as bands on the grid of the image."""
    if opened.prepared is opened.image:
        return bands
    height, width = opened.prepared.shape[:2]
    return regrid_bands(bands, (height, width), opened.shape, opened.scale, kind)


def _writer(folder: Path, opened: Opened, map_format: MapFormat) -> Callable[..., None]:
    """Writes ``name`` from bands, with the pixel size of the image, in the format that is asked for."""

    def write(name: str, dtype: type, bands: Iterable[np.ndarray], kind: Literal["map", "mask"]) -> None:
        size = opened.image.pixel_size_um
        if map_format == "ome-zarr":
            write_ome_zarr(folder / f"{name}.ome.zarr", opened.shape, dtype, bands, size, kind=kind)
        else:
            write_ome_tiff(folder / f"{name}.ome.tif", opened.shape, dtype, bands, size, kind=kind)

    return write


def small_picture(image: LazyImage, side: int = SIDE) -> tuple[np.ndarray, int]:
    """An image on a coarser grid (h, w, C), with so many pixels a side at most, and how many of its own make one."""
    step = math.ceil(max(image.shape[:2]) / side)
    small = resampled(replace(image, pixel_size_um=(1.0, 1.0)), (float(step), float(step)))
    return small.read(slice(None), slice(None)), step


def _sample(image: LazyImage) -> np.ndarray:
    """Windows of an image, spread over it, one below the other: (h, w, C)."""
    tops, lefts = (
        sorted(set(np.linspace(0, max(length - _SAMPLE, 0), _SAMPLES).astype(int).tolist()))
        for length in image.shape[:2]
    )
    windows = [image.read(slice(top, top + _SAMPLE), slice(left, left + _SAMPLE)) for top in tops for left in lefts]
    return np.concatenate(windows)
