"""Prediction of patches, and of images as grids of patches, with a trained model."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from biocnn.data.batches import to_float
from biocnn.errors import DataError
from biocnn.inference.results import PatchResult
from biocnn.inference.sources import Opened, Reading, Source, channel_names, open_source
from biocnn.metrics.calibration import Calibration
from biocnn.networks.views import view_logits
from biocnn.tasks.classification import ClassificationTask


class PatchClassifier:
    """Predicts patches with a trained :class:`ClassificationTask`.

    Attributes:
        task: with its weights, in evaluation mode.
        calibration: temperature and threshold, fitted on the validation split.
        classes: names of the classes 0 and 1.
        pixel_size_um: (row, column) micrometres per pixel of the training patches; None if not known.
    """

    def __init__(self, task: ClassificationTask) -> None:
        self.task = task
        self.calibration = task.calibration or Calibration()
        self.classes: tuple[str, ...] = tuple(task.data_description.get("classes", ()))
        size = task.data_description.get("pixel_size_um")
        self.pixel_size_um: tuple[float, float] | None = None if size is None else (size[0], size[1])

    @property
    def threshold(self) -> float:
        """Probability from which a patch is called positive."""
        return self.calibration.threshold

    def predict(self, source: Source, batch_size: int = 256, **reading: Any) -> np.ndarray | PatchResult:
        """Calibrated probability of the positive class, of patches or of an image.

        An image is cut into patches of the size of the training, side by side from the upper left corner, after it was
        resampled to the pixel size of the training where that differs.

        Args:
            source: patches (N, H, W, C) uint8, of the size and pixel size that the network was trained on; N may be 0.
                Or an image: path, URL of an OME-Zarr, or array (H, W, C).
            batch_size: patches at a time.
            **reading: of an image, fields of :class:`biocnn.inference.sources.Reading`.

        Returns:
            Of patches (N,) float64 in 0..1; of an image its patches on a grid.

        Raises:
            DatasetNotFoundError: if there is no such file.
            DataError: if the array is of another shape or dtype; the image cannot be read, or is smaller than a patch.
        """
        if isinstance(source, np.ndarray) and source.ndim == 4:
            return np.asarray(self.calibration.apply(self._logits(source, batch_size).mean(1)))
        how = Reading(**reading)
        with open_source(source, how, channel_names(self.task), self.pixel_size_um) as opened:
            return self.predict_opened(opened, how, batch_size)

    def predict_opened(self, opened: Opened, reading: Reading, batch_size: int = 256) -> PatchResult:
        """The same of an image that is open."""
        image, _ = opened.read(reading)
        probability, patch_size, flags = self.grid(opened, batch_size)
        return PatchResult(
            opened.image.path,
            image,
            probability,
            patch_size,
            self.threshold,
            opened.image.pixel_size_um,
            flags,
            opened.resampled_um,
        )

    def grid(
        self, opened: Opened, batch_size: int = 256
    ) -> tuple[NDArray[np.float64], tuple[float, float], tuple[str, ...]]:
        """Probabilities of the patches of an image of any size, of which a row of patches at a time is in memory.

        Returns:
            (rows, columns) of the grid; rows and columns of a patch in pixels of the image; and flags.

        Raises:
            DataError: if the image is smaller than a patch, or the size of the patches is not known.
        """
        size = self.task.data_description.get("patch_size")
        if not size:
            raise DataError(
                "The checkpoint does not say how large the patches of its training were, so an image cannot be cut "
                "into such. Cut it yourself, and predict an array of patches (N, rows, columns, channels)."
            )
        rows, columns = int(size[0]), int(size[1])
        height, width, channels = opened.prepared.shape
        if height < rows or width < columns:
            raise DataError(
                f"{opened.image.path} has {height}x{width} px at the pixel size of the training, less than a patch of "
                f"{rows}x{columns} px."
            )
        down, across = height // rows, width // columns
        found = np.zeros((down, across))
        for row in range(down):
            strip = opened.prepared.read(slice(row * rows, (row + 1) * rows), slice(0, across * columns))
            patches = strip.reshape(rows, across, columns, channels).swapaxes(0, 1)
            found[row] = self.calibration.apply(self._logits(patches, batch_size).mean(1))
        flags = list(opened.flags)
        if self.task.calibration is None:
            flags.append("not calibrated: the probabilities are those of the network; run `test` once")
        if (height % rows, width % columns) != (0, 0):
            flags.append(f"{height % rows} rows below and {width % columns} columns to the right are in no patch")
        step = opened.scale
        return found, (rows * step[0], columns * step[1]), tuple(flags)

    def predict_with_spread(self, patches: np.ndarray, batch_size: int = 256) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`predict`, and the standard deviation of the probability over the views of each patch.

        Returns:
            probability (N,) and spread (N,), float64. The spread is 0 without test-time augmentation.
        """
        logit = self._logits(patches, batch_size)
        return np.asarray(self.calibration.apply(logit.mean(1))), np.asarray(self.calibration.apply(logit).std(1))

    def _logits(self, patches: np.ndarray, batch_size: int) -> np.ndarray:
        patches = np.asarray(patches)
        self._check(patches)
        device = self.task.device
        parts = [np.zeros((0, self.task.views))]
        with torch.inference_mode():
            for start in range(0, len(patches), batch_size):
                block = torch.from_numpy(np.ascontiguousarray(patches[start : start + batch_size])).to(device)
                image = to_float({"image": block})["image"]
                parts.append(view_logits(self.task.logits, image, self.task.views).double().cpu().numpy())
        return np.concatenate(parts)

    def _check(self, patches: np.ndarray) -> None:
        channels = len(self.task.image_mean)
        if patches.ndim != 4 or patches.shape[3] != channels or patches.dtype != np.uint8:
            raise DataError(
                f"Expected uint8 patches of shape (N, rows, columns, {channels}), received {patches.shape} "
                f"{patches.dtype}."
            )
