"""Patch classification into two classes, with a calibrated probability and a threshold."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from biocnn.errors import DataError
from biocnn.metrics.binary import accuracy, auroc, negative_log_likelihood
from biocnn.metrics.calibration import Calibration, calibrate, expected_calibration_error
from biocnn.metrics.predictions import BinaryPredictions
from biocnn.networks.views import D4_VIEWS, view_logits
from biocnn.tasks.base import Stage, Task

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ClassificationTask(Task):
    """Is the patch positive?

    Batches hold ``image`` (B, C, H, W) float32 in 0..1, ``label`` (B,) int64 of 0 and 1, and ``index`` (B,) int64.

    During `fit` the validation set is looked at once per epoch, in one view: `val_nll`, `val_auroc`,
    `val_accuracy` and `val_ece` are logged. `validate` and `test` predict all eight symmetries of a patch when
    `test_time_augmentation` is set; the mean of their logits is the prediction and the standard deviation of
    their probabilities its spread.

    Args:
        network: normalised images (B, C, H, W) to logits (B, 1) or (B,).
        loss: (logits (B,), target (B,) float) to a scalar; binary cross-entropy when None.
        lr: peak learning rate of AdamW.
        weight_decay: of matrices and kernels.
        warmup: share of all steps in which the learning rate rises.
        image_mean: of each channel, for images in 0..1; ImageNet's by default.
        image_std: of each channel.
        test_time_augmentation: whether to predict eight views.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: nn.Module | None = None,
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
        warmup: float = 0.1,
        image_mean: Sequence[float] = _IMAGENET_MEAN,
        image_std: Sequence[float] = _IMAGENET_STD,
        test_time_augmentation: bool = True,
    ) -> None:
        super().__init__(
            network,
            nn.BCEWithLogitsLoss() if loss is None else loss,
            lr,
            weight_decay,
            warmup,
            image_mean,
            image_std,
        )
        self.test_time_augmentation = test_time_augmentation
        self.val_predictions, self.test_predictions = BinaryPredictions(), BinaryPredictions()
        self.calibration: Calibration | None = None

    def logits(self, image: torch.Tensor) -> torch.Tensor:
        """One logit for each image: (B, C, H, W) in 0..1 to (B,).

        Raises:
            DataError: if the images are of another size than those of the training.
            ValueError: if the network returns anything but one logit for each image.
        """
        expected = self.data_description.get("patch_size")
        if expected and list(image.shape[2:]) != list(expected):
            raise DataError(
                f"The model was trained on patches of {expected[0]}x{expected[1]} px, received "
                f"{image.shape[2]}x{image.shape[3]} px."
            )
        output = self(image)
        if output.shape not in ((len(image), 1), (len(image),)):
            raise ValueError(
                f"{type(self.network).__name__} returned {tuple(output.shape)} for {len(image)} images, expected "
                f"({len(image)}, 1): make it with one output, e.g. num_classes=1, or use biocnn.networks.Backbone."
            )
        return output.reshape(len(image))

    @property
    def views(self) -> int:
        """Views of each patch in validation, test and prediction."""
        return D4_VIEWS if self.test_time_augmentation else 1

    def _step(self, batch: dict[str, Any], stage: Stage) -> torch.Tensor:
        target = batch["label"]
        if stage == "train":
            return self.loss(self.logits(batch["image"]), target.float())
        fitting = self.trainer.state.fn == "fit"
        logits = view_logits(self.logits, batch["image"], 1 if fitting else self.views)
        (self.val_predictions if stage == "val" else self.test_predictions).update(batch["index"], logits, target)
        return self.loss(logits.mean(1), target.float())

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics of the whole set, over all processes."""
        gathered = self.val_predictions.compute()
        # The metric stays full outside `fit`, so that `calibrate_on_validation` can use it.
        logit, label = gathered["logit"].mean(1).double().cpu().numpy(), gathered["label"].cpu().numpy()
        if self.trainer.state.fn == "fit":
            self.val_predictions.reset()
        probability = Calibration().apply(logit)
        values = {
            "val_nll": negative_log_likelihood(label, logit),
            "val_auroc": auroc(label, logit),
            "val_accuracy": accuracy(label, probability),
            "val_ece": expected_calibration_error(label, probability),
        }
        # Every process has computed the same values from all predictions; their mean is the same again.
        self.log_dict({name: torch.tensor(value) for name, value in values.items()}, prog_bar=True, sync_dist=True)

    def calibrate_on_validation(self, groups: Sequence[str] | None, seed: int = 0) -> Calibration:
        """Fit temperature and threshold to the predictions of the last `Trainer.validate`.

        Args:
            groups: (N,) slide of every validation patch, in the order of the data set; None if not known.
            seed: of the folds that decide whether the temperature helps.

        Raises:
            DataError: if nothing was validated.
        """
        gathered = self.val_predictions.compute()
        self.val_predictions.reset()
        logit, label = gathered["logit"].mean(1).double().cpu().numpy(), gathered["label"].cpu().numpy()
        names = None if groups is None else [groups[row] for row in gathered["index"].tolist()]
        self.calibration = calibrate(logit, label, names, seed=seed)
        return self.calibration

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Logits of all views (B, V) and the index (B,) of each patch."""
        return {"index": batch["index"], "logit": view_logits(self.logits, batch["image"], self.views)}

    def settings(self) -> dict[str, Any]:
        """Constructor arguments other than network and loss, as plain data."""
        return {**super().settings(), "test_time_augmentation": self.test_time_augmentation}

    def learned(self) -> dict[str, Any]:
        """The calibration, once there is one."""
        return {"calibration": None if self.calibration is None else self.calibration.to_dict()}

    def restore_learned(self, stored: dict[str, Any]) -> None:
        """Take the calibration from a checkpoint."""
        calibration = stored.get("calibration")
        self.calibration = None if calibration is None else Calibration.from_dict(calibration)
