"""Prediction of patches with a trained model."""

import numpy as np
import torch

from biocnn.data.dataset import to_float
from biocnn.errors import DataError
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

    def predict(self, patches: np.ndarray, batch_size: int = 256) -> np.ndarray:
        """Calibrated probability of the positive class.

        Args:
            patches: (N, H, W, C) uint8, of the size and pixel size that the network was trained on; N may be 0.
            batch_size: patches at a time.

        Returns:
            (N,) float64 in 0..1.

        Raises:
            DataError: if the array is of another shape or dtype.
        """
        return np.asarray(self.calibration.apply(self._logits(patches, batch_size).mean(1)))

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
