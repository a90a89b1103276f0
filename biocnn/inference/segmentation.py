"""Prediction of images with a trained segmentation model."""

import math
import warnings
from typing import Any

import numpy as np
import torch

from biocnn.data.batches import to_float
from biocnn.data.fingerprint import scale
from biocnn.errors import DataError
from biocnn.inference.results import TubularityResult
from biocnn.inference.sources import Opened, Reading, Source, channel_names, open_source
from biocnn.metrics.calling import call_structure
from biocnn.tasks.segmentation import SegmentationTask


class Segmenter:
    """Predicts images of any size with a trained :class:`SegmentationTask`.

    Attributes:
        task: with its weights, in evaluation mode.
        threshold: probability from which a pixel is called structure, chosen on the validation images.
        min_component: pixels that its component has at least, see :mod:`biocnn.metrics.calling`.
        channels: names of the channels of an image, in order.
        pixel_size_um: (row, column) micrometres per pixel of the training images; None if not known.
    """

    def __init__(self, task: SegmentationTask) -> None:
        self.task = task
        self.threshold, self.min_component = task.thresholds.threshold, task.thresholds.min_component
        if not task.threshold_fits:
            warnings.warn(
                "The threshold of this checkpoint was chosen for another way to predict, as a training leaves it that "
                "was killed. Maps are right; for masks run `test` once, which chooses it anew.",
                stacklevel=3,
            )
        data = task.data_description
        self.channels: tuple[str, ...] = tuple(data.get("channels", ()))
        self._dtype = np.dtype(data.get("dtype", "uint8"))
        low, high = (data.get("fingerprint") or {}).get("intensity_range", (0.0, 255.0))
        self._range = (float(low), float(high))
        size = data.get("pixel_size_um")
        self.pixel_size_um: tuple[float, float] | None = None if size is None else (size[0], size[1])

    def predict(self, source: Source, **reading: Any) -> TubularityResult:
        """Segment an image: on its own grid, also where it is resampled to the pixel size of the training.

        Args:
            source: path, URL of an OME-Zarr, or array (H, W) or (H, W, C).
            **reading: fields of :class:`biocnn.inference.sources.Reading`, such as ``channels=("CD31",)``.

        Raises:
            DatasetNotFoundError: if there is no such file.
            DataError: if it cannot be read, is too large, or has other channels or another dtype than the training
                images.
        """
        how = Reading(**reading)
        with open_source(source, how, channel_names(self.task), self.pixel_size_um) as opened:
            return self.predict_opened(opened, how)

    def predict_opened(self, opened: Opened, reading: Reading) -> TubularityResult:
        """The same of an image that is open."""
        image, prepared = opened.read(reading)
        probability = opened.back(self.tubularity(prepared), "value")
        return TubularityResult(
            opened.image.path,
            image,
            probability,
            call_structure(probability, self.threshold, self.min_component_of(opened)),
            opened.image.pixel_size_um,
            self.threshold,
            (*opened.flags, *self.flags),
            opened.resampled_um,
        )

    def min_component_of(self, opened: Opened) -> int:
        """Pixels that a component of an image has at least: of the same area as `min_component` in the training."""
        return round(self.min_component * math.prod(opened.scale))

    @property
    def flags(self) -> tuple[str, ...]:
        """What makes all masks of this model doubtful, in words."""
        return () if self.task.threshold_fits else ("threshold chosen for another way to predict; run `test` once",)

    def tubularity(self, image: np.ndarray) -> np.ndarray:
        """Tubularity map of an image.

        Args:
            image: (H, W, C), or (H, W) for one channel; of the dtype, the intensities and about the pixel size of the
                training images.

        Returns:
            (H, W) float32 probabilities in 0..1.

        Raises:
            DataError: if the image is of another shape or dtype, or holds nan or infinity.
        """
        batch = to_float({"image": torch.from_numpy(self._prepare(np.asarray(image)))})
        with torch.inference_mode():
            logits = self.task.image_logits(batch["image"][0].to(self.task.device), self.task.views)
        probability: np.ndarray = torch.sigmoid(logits)[0].cpu().numpy()
        return probability

    def segment(self, image: np.ndarray) -> np.ndarray:
        """Mask of an image, (H, W) bool; arguments and errors as for :meth:`tubularity`."""
        return call_structure(self.tubularity(image), self.threshold, self.min_component)

    def _prepare(self, image: np.ndarray) -> np.ndarray:
        """(1, H, W, C) uint8, or (1, C, H, W) float32 on the scale of the training, cut to its range."""
        count, dtype = len(self.task.image_mean), self._dtype
        picture = image[..., None] if image.ndim == 2 else image
        if picture.ndim != 3 or picture.shape[2] != count or picture.dtype != dtype or picture.size == 0:
            raise DataError(
                f"Expected a {dtype} image of shape (rows, columns, {count}), as those of the training, received "
                f"{image.dtype} {image.shape}."
            )
        if dtype == np.uint8:
            return np.array(picture[None], order="C")  # a copy: arrays of readers may be read-only
        if not np.isfinite(picture).all():
            raise DataError("The image holds nan or infinity. Replace these pixels, or cut them off.")
        return np.ascontiguousarray(np.moveaxis(scale(picture, self._range), 2, 0)[None])
