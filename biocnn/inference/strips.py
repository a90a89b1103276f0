"""An image larger than memory through a network, strip by strip.

A strip is a row of tiles of the grid of :mod:`biocnn.networks.tiling`. It is read as a whole, so that of a tiled file
nearly every tile is decoded once, while the network is at the strip before; predicted like an image of its own, whose
rows are not cut; weighted along its rows, and written while the network is at the next
(:mod:`biocnn.inference.strip_store`). As strips need nothing of each other, an interrupted image goes on with those
that are not there, and processes take different ones.

In memory are the pixels of three strips, the one at work and one as it is read, and as planes; and three to five maps
of a strip. So memory grows with the width of the image and the side of a tile, not with the height.

Notation: H, W rows and columns of the image, h rows of a strip, C channels.
"""

import hashlib
import json
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray

from biocnn.data.fingerprint import scale
from biocnn.data.lazy_images import LazyImage
from biocnn.errors import DataError
from biocnn.inference.strip_store import StripStore, open_store
from biocnn.networks.tiling import Window, blend_axis, cut_axis, predict_tiles, tiling_of
from biocnn.tasks.base import Task
from biocnn.tasks.counting import CountingTask
from biocnn.tasks.segmentation import SegmentationTask

_OVERLAP = 0.25  # of neighbouring tiles without a halo, that of predict_tiles

Strip = tuple[int, torch.Tensor]
"""Number of a strip, and its pixels (C, h, W), uint8 or float32 in 0..1."""


class Tiling(NamedTuple):
    """How a task cuts images: greatest side of a tile, halo and stride, as :func:`predict_tiles` takes them."""

    tile: int
    halo: int | None
    stride: int

    def axis(self, length: int) -> list[Window]:
        """Windows of an axis."""
        if self.halo is None:
            return blend_axis(length, self.tile, _OVERLAP, self.stride)
        return cut_axis(length, self.tile, self.halo, self.stride)


def tiling_of_task(task: SegmentationTask | CountingTask, tile: int | None = None) -> Tiling:
    """The tiling with which a task predicts images in memory.

    Args:
        task: whose network it is for.
        tile: greatest side of a tile in pixels; that of the task when None. More if the halo needs more.
    """
    halo, stride = tiling_of(task.network)
    if halo is None:
        return Tiling(tile or task.data_description.get("tile_size") or task.tile_size, None, stride)
    if isinstance(task, SegmentationTask):
        halo *= task.step_count  # a step of refinement sees the map of the step before as far as the halo
    return Tiling(max(tile or task.tile_size, 2 * (halo + stride)), halo, stride)


def predict_strips(
    task: SegmentationTask | CountingTask,
    image: LazyImage,
    folder: str | Path,
    *,
    views: int | None = None,
    tile: int | None = None,
    batch_size: int = 1,
    progress: Callable[[int, int], None] | None = None,
    trainer: pl.Trainer | None = None,
) -> StripStore:
    """Predict an image of any size; what has been predicted before is not predicted again.

    The map is that of :meth:`SegmentationTask.image_logits` as probabilities, or of
    :meth:`CountingTask.image_density`, but for rounding. Of a network without a finite halo, several views differ a
    little from these: each strip is turned, not the image, so that of a turned image rows are cut where those of the
    image are. With a halo turned strips meet the grid of the turned image, and views are exact.

    Several processes, such as those of a trainer with several devices, each take their share of the strips; the
    function returns in each of them when all strips are there.

    Args:
        task: with its weights. It is put into evaluation mode.
        image: of the channels, dtype and about the pixel size of the training images.
        folder: for the strips, on a disk that all processes share: 4 bytes for each pixel, a third more without a
            halo. :meth:`StripStore.remove` deletes them.
        views: symmetries, 1 to 8, over which the mean is taken; those of the task when None.
        tile: greatest side of a tile in pixels, see :func:`tiling_of_task`.
        batch_size: tiles in one call of the network.
        progress: called with the tiles done and all tiles that this process has to do in this call; each view counts.
        trainer: of Lightning, for devices, processes and precision; one process on the device of the task when None.

    Returns:
        All strips.

    Raises:
        DataError: if the image has other channels or another dtype than the training images, or nan or infinity; or as
            of :func:`biocnn.inference.strip_store.open_store`.
        ValueError: if an argument is out of its range.
    """
    _check_image(task, image)
    trainer = _trainer_on(task.device) if trainer is None else trainer
    views, tiling = task.views if views is None else views, tiling_of_task(task, tile)
    windows = tiling.axis(image.shape[0])
    cores = [(window.start, _core(window)) for window in windows]
    rows = [slice(start + core.start, start + core.stop) for start, core in cores]
    origin = {
        "image": _identity(image),
        "model": _digest(task),
        "settings": [views, *tiling, str(trainer.precision)],
    }
    shape = (image.shape[0], image.shape[1])
    store = open_store(folder, shape, rows, isinstance(task, SegmentationTask), origin)
    if store.missing():
        job = _Job(task.eval(), image, store, windows, tiling, views, batch_size)
        device = task.device
        # When these end, nothing is read or written any more, also if the loop is interrupted.
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
            loop = _StripLoop(job, reader, writer, progress)
            trainer.predict(loop, return_predictions=False)
            loop.wait()
        task.to(device)
        trainer.strategy.barrier()  # other processes may have strips to do
    return store


@dataclass(frozen=True, eq=False)
class _Job:
    """What is done to every strip of an image."""

    task: SegmentationTask | CountingTask
    image: LazyImage
    store: StripStore
    windows: Sequence[Window]
    tiling: Tiling
    views: int
    batch_size: int

    @property
    def tiles(self) -> int:
        """Tiles of a strip in all its views."""
        return self.views * len(self.tiling.axis(self.image.shape[1]))

    def read(self, number: int) -> Strip:
        """A strip as the network gets it, bytes as they are."""
        rows = self.windows[number].pixels
        pixels = self.image.read(rows, slice(0, self.image.shape[1]))
        if pixels.dtype == np.uint8:
            return number, torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels, 2, 0)))
        if not np.isfinite(pixels).all():
            raise DataError(
                f"{self.image.path} holds nan or infinity in rows {rows.start} to {rows.stop - 1}. Replace these "
                "pixels, or cut them off."
            )
        low, high = (self.task.data_description.get("fingerprint") or {}).get("intensity_range", (0.0, 255.0))
        planes = np.empty((pixels.shape[2], *pixels.shape[:2]), np.float32)
        for channel, plane in enumerate(planes):  # one by one, as scaling takes memory
            plane[:] = scale(pixels[..., channel], (low, high))
        return number, torch.from_numpy(planes)

    def predict(self, number: int, pixels: torch.Tensor, progress: Callable[[int, int], None]) -> NDArray[np.float32]:
        """What is stored of a strip (C, h, W), which is predicted on its device."""
        task, window = self.task.to(pixels.device), self.windows[number]
        function = task if pixels.is_floating_point() else lambda tiles: task(tiles * (1 / 255))
        try:
            found = predict_tiles(
                function, pixels, *self.tiling, _OVERLAP, self.batch_size, self.views, progress=progress
            )
        except DataError as error:
            rows = window.pixels
            raise DataError(
                f"{self.image.path}, in the strip of rows {rows.start} to {rows.stop - 1}: {error}"
            ) from error
        core = _core(window)
        values = found[0, core].mul_(window.weight[core, None].to(found.device))
        stored: NDArray[np.float32] = values.cpu().numpy()
        return stored


class _StripLoop(pl.LightningModule):
    """Hands a job its strips; what Lightning's loop gives are processes, their devices, and precision.

    The task is in the job and no part of this module, as the loop leaves its module on the CPU.
    """

    def __init__(
        self,
        job: _Job,
        reader: ThreadPoolExecutor,
        writer: ThreadPoolExecutor,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        super().__init__()
        self.job, self.reader, self.writer, self.progress = job, reader, writer, progress
        self.writing: Future[None] | None = None
        self.own: list[int] = []
        self.done = 0
        self.allow_zero_length_dataloader_with_multiple_devices = True  # fewer strips than processes

    def predict_dataloader(self) -> "StripReader":
        # By number, not by place among the missing: no process has to know what others see.
        count, rank = self.trainer.world_size, self.trainer.global_rank
        self.own = [number for number in self.job.store.missing() if number % count == rank]
        return StripReader(self.job.read, self.own, self.reader)

    def predict_step(self, batch: Strip) -> int:
        number, pixels = batch
        before, total = self.done, self.job.tiles * len(self.own)

        def count(tiles: int, _: int) -> None:
            self.done = before + tiles
            if self.progress is not None:
                self.progress(self.done, total)
            if self.trainer.received_sigterm:  # Lightning's handler takes the signal, and its loop would go on
                raise SystemExit(128 + signal.SIGTERM)

        values = self.job.predict(number, pixels, count)
        self.wait()
        self.writing = self.writer.submit(self.job.store.write, number, values)
        return number

    def wait(self) -> None:
        """Until the strip before is on disk; its error, if it has one, is raised."""
        if self.writing is not None:
            self.writing.result()


class StripReader:
    """Iterates over strips, of which the next is read while the one before is worked on.

    Args:
        read: a strip by its number.
        numbers: of the strips.
        thread: that reads.
    """

    def __init__(self, read: Callable[[int], Strip], numbers: Sequence[int], thread: ThreadPoolExecutor) -> None:
        self.read, self.numbers, self.thread = read, numbers, thread

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[Strip]:
        if not self.numbers:
            return
        ahead = self.thread.submit(self.read, self.numbers[0])
        for following in self.numbers[1:]:
            strip, ahead = ahead.result(), self.thread.submit(self.read, following)
            yield strip
            del strip  # only one waits while the next is read
        yield ahead.result()


def _core(window: Window) -> slice:
    """The pixels of a window that have a weight."""
    places = window.weight.nonzero()
    return slice(int(places[0]), int(places[-1]) + 1)


def _check_image(task: Task, image: LazyImage) -> None:
    dtype, count = np.dtype(task.data_description.get("dtype", "uint8")), len(task.image_mean)
    if image.shape[2] != count or image.dtype != dtype:
        raise DataError(
            f"{image.path}: expected a {dtype} image with {count} channels, as those of the training, received "
            f"{image.dtype} with {image.shape[2]}."
        )


def _trainer_on(device: torch.device) -> pl.Trainer:
    devices = [device.index or 0] if device.type == "cuda" else 1
    return pl.Trainer(
        accelerator=device.type,
        devices=devices,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _identity(image: LazyImage) -> list[Any]:
    """What tells an image from another; of what is no file, such as a URL, not what is in it."""
    path = Path(image.path)
    file = [str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] if path.exists() else [image.path]
    return [*file, *image.shape, str(image.dtype), image.pixel_size_um, *image.channel_names]


def _digest(task: SegmentationTask | CountingTask) -> str:
    """Of everything in a task that its maps depend on."""
    data = task.data_description
    settings = [task.settings(), task.learned(), data.get("fingerprint"), data.get("dtype")]
    digest = hashlib.sha256(json.dumps(settings, default=str).encode())
    for name, values in task.network.state_dict().items():
        digest.update(name.encode())
        digest.update(values.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
