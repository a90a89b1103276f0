"""Segmentation of curvilinear structures into a map of probabilities, a tubularity map."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import nn

from biocnn.errors import DataError
from biocnn.losses import BCE, Dice, Loss, SoftClDice, iterations_for_radius
from biocnn.metrics.hysteresis import HysteresisSearch, hysteresis
from biocnn.metrics.segmentation import SegmentationMetrics, best_dice_threshold, summarise
from biocnn.networks.tiling import predict_tiles, tiling_of
from biocnn.networks.views import D4_VIEWS
from biocnn.tasks.base import Stage, Task


class SegmentationTask(Task):
    """Which pixels belong to the structure?

    Batches hold ``image`` (B, C, H, W) float32 in 0..1, ``mask`` (B, 1, H, W) float32 of 0 and 1, ``valid``
    (B, 1, H, W) bool, ``index`` (B,) int64, and in training what the loss asks for, see :attr:`targets`. Training
    serves tiles, evaluation whole images of any size, which are taken through the network by tiles.

    Iterative refinement (`refinement_steps` K > 1): the network is given the image and its own previous map, 0 at
    first, K times. The losses of the steps k = 1..K are weighted by 2 k / (K (K + 1)) (Mosinska et al. 2018, eqs. 4 to
    6). Its only cost in parameters is one more input channel; in time a step costs as much as a network, so the first
    `refinement_start` of the training makes one step only, as the authors' training with K = 1 that K = 3 continues.

    During `fit` the validation images are predicted once per epoch, in one view. `val_dice` is the Dice of all pixels
    together at the threshold that is best for it, `val_bce` needs no threshold; `val_cldice` and the Betti errors are
    means over images at the best threshold of the epoch before (0.5 at first), which saves a second pass. The
    threshold is part of every checkpoint. `Trainer.validate` chooses it for the views and steps of `test`, and with
    `two_thresholds` another one besides (:mod:`biocnn.metrics.hysteresis`).

    References: Ronneberger et al. 2015 (tiles that overlap); Mosinska, Marquez-Neila, Kozinski, Fua: Beyond the
    pixel-wise loss for topology-aware delineation. CVPR 2018, arXiv 1712.02190.

    Args:
        network: normalised images (B, C, H, W) to logits (B, 1, H, W); with refinement (B, C + 1, H, W), the last
            channel being the previous map. It may return a list of logits, the finest first, in training.
        loss: (logits, targets, valid) to a scalar; ``BCE() + Dice()`` when None.
        lr: peak learning rate of AdamW.
        weight_decay: of kernels.
        warmup: share of all steps in which the learning rate rises.
        image_mean: of each channel, for images in 0..1; that of the training set when None.
        image_std: of each channel.
        refinement_steps: K, 1 for no refinement.
        refinement_start: share of the training that makes one step only.
        prediction_steps: steps in evaluation and prediction; K when None.
        test_time_augmentation: whether `test` and `predict` average the eight symmetries of the image.
        two_thresholds: whether faint structure counts where it is connected to strong structure only; else the one
            threshold is that of the best Dice.
        tile_size: side of the tiles of evaluation and prediction in pixels; memory grows with its square.
        tolerance: of correctness, completeness and quality, in pixels.
        min_size: components of fewer pixels are left out of Betti numbers, in truth and prediction.
        membranes: whether to compare the cells between the structures as well (V-Rand, V-Info).
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Loss | None = None,
        lr: float = 5e-3,
        weight_decay: float = 1e-2,
        warmup: float = 0.1,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        refinement_steps: int = 1,
        refinement_start: float = 0.5,
        prediction_steps: int | None = None,
        test_time_augmentation: bool = True,
        two_thresholds: bool = True,
        tile_size: int = 1024,
        tolerance: float = 3.0,
        min_size: int = 0,
        membranes: bool = False,
    ) -> None:
        super().__init__(
            network, BCE() + Dice() if loss is None else loss, lr, weight_decay, warmup, image_mean, image_std
        )
        if refinement_steps < 1 or (prediction_steps is not None and prediction_steps < 1):
            raise ValueError(
                f"Expected at least one step, received refinement_steps={refinement_steps} and "
                f"prediction_steps={prediction_steps}."
            )
        if not 0 <= refinement_start <= 1:
            raise ValueError(f"refinement_start is a share of the training in 0..1, received {refinement_start}.")
        if refinement_steps == 1 and (prediction_steps or 1) > 1:
            raise ValueError(
                f"prediction_steps={prediction_steps} needs a network that was trained with refinement_steps > 1."
            )
        self.refinement_steps, self.refinement_start = refinement_steps, refinement_start
        self.prediction_steps, self.tile_size = prediction_steps, tile_size
        self.test_time_augmentation = test_time_augmentation
        self.tolerance, self.min_size, self.membranes = tolerance, min_size, membranes
        self.two_thresholds = two_thresholds
        self.threshold = self.high_threshold = 0.5
        self._threshold_for = (0, 0, False)
        self.val_metrics, self.test_metrics = self._metrics(membranes=False), self._metrics(membranes)
        self.search = HysteresisSearch(min_size)

    def _metrics(self, membranes: bool) -> SegmentationMetrics:
        return SegmentationMetrics(tolerance=self.tolerance, min_size=self.min_size, membranes=membranes)

    @property
    def targets(self) -> frozenset[str]:
        """What the loss needs of a batch: ``mask``, and ``tube`` or ``distance`` if a term asks for them."""
        assert isinstance(self.loss, Loss)
        return frozenset({"mask"} | {term.target_key for _, _, term in self.loss.parts()})

    @property
    def views(self) -> int:
        """Views of an image in `test` and `predict`."""
        return D4_VIEWS if self.test_time_augmentation else 1

    @property
    def step_count(self) -> int:
        """Steps of refinement in evaluation and prediction, 1 without it."""
        return self.prediction_steps or self.refinement_steps

    @property
    def threshold_fits(self) -> bool:
        """Whether the thresholds were chosen for the way in which `test` and `predict` call structure."""
        return self._threshold_for == (self.views, self.step_count, self.two_thresholds)

    def setup(self, stage: str) -> None:
        """Take what was not given from the fingerprint of the training set: normalisation, skeleton iterations."""
        datamodule = getattr(self.trainer, "datamodule", None)
        if stage != "fit" or datamodule is None:
            return
        found = datamodule.describe().get("fingerprint")
        if found is None:
            return
        if not self.image_mean:
            self.set_normalisation(found["mean"], found["std"])
            rank_zero_info(
                f"model.image_mean, model.image_std: {_rounded(self.image_mean)}, {_rounded(self.image_std)} "
                "(of the training images inside `valid`)"
            )
        for module in self.loss.modules():
            if isinstance(module, SoftClDice) and module.iterations is None:
                radius = float(found["widest_radius"])
                module.iterations = iterations_for_radius(radius)
                rank_zero_info(
                    f"SoftClDice.iterations: {module.iterations} (the widest structure of the training masks has a "
                    f"radius of {radius:.1f} px)"
                )

    def steps(self, image: torch.Tensor, count: int) -> Iterator[torch.Tensor | list[torch.Tensor]]:
        """Outputs of the network in `count` steps of refinement; one step without it.

        Args:
            image: (B, C, H, W) in 0..1.
            count: of steps, at least 1.
        """
        image = self.normalise(image)
        if self.refinement_steps == 1:
            yield self.network(image)
            return
        previous = image.new_zeros(len(image), 1, *image.shape[2:])
        for _ in range(count):
            output = self.network(torch.cat([image, previous], 1))
            yield output
            previous = torch.sigmoid(_finest(output)).to(image.dtype)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (B, 1, H, W) of images (B, C, H, W) in 0..1, all at once: of the last step.

        Raises:
            ValueError: if the network returns anything but one logit for each pixel.
        """
        for output in self.steps(image, self.step_count):
            logits = _finest(output)
        expected = (len(image), 1, *image.shape[2:])
        if logits.shape != expected:
            raise ValueError(
                f"{type(self.network).__name__} returned {tuple(logits.shape)}, expected {expected}: make it with one "
                "output channel, and such that its output has the size of the image."
            )
        return logits

    def image_logits(self, image: torch.Tensor, views: int) -> torch.Tensor:
        """Logits of one image of any size, by tiles; the mean over its views.

        Args:
            image: (C, H, W) in 0..1.
            views: 1 to 8 symmetries of the square.

        Returns:
            (1, H, W) float32, on the device of the image.
        """
        halo, stride = tiling_of(self.network)
        if halo is not None:
            halo *= self.step_count  # a step sees the map of the step before as far as the halo, and so on
        return predict_tiles(self, image, self.tile_size, halo, stride, views=views)

    def call(self, probability: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
        """The structure in a map (H, W) of probabilities, (H, W) bool; nothing outside `valid`."""
        return hysteresis(probability, self.threshold, self.high_threshold, valid)

    def training_loss(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """The loss of a batch of tiles over all steps of refinement and all depths of supervision."""
        started = self.global_step >= self.refinement_start * self.trainer.estimated_stepping_batches
        count = self.refinement_steps if started else 1
        total = torch.zeros((), device=batch["image"].device)
        for number, output in enumerate(self.steps(batch["image"], count), start=1):
            outputs = output if isinstance(output, list) else [output]
            depth = [0.5**level for level in range(len(outputs))]
            value = sum(
                weight * self.loss(logits, batch, batch.get("valid"))
                for weight, logits in zip(depth, outputs, strict=True)
            )
            total = total + 2 * number / (count * (count + 1)) * value / sum(depth)
        return total

    @property
    def _current_views(self) -> int:
        return 1 if self.trainer.state.fn == "fit" else self.views

    @property
    def _searching(self) -> bool:
        return self.two_thresholds and self.trainer.state.fn != "fit"

    def _step(self, batch: dict[str, Any], stage: Stage) -> torch.Tensor:
        if stage == "train":
            return self.training_loss(batch)
        logits = torch.stack([self.image_logits(image, self._current_views) for image in batch["image"]])
        probability = torch.sigmoid(logits)
        metrics = self.val_metrics if stage == "val" else self.test_metrics
        metrics.threshold, metrics.high_threshold = self.threshold, self.high_threshold
        metrics.update(batch["index"], probability, batch["mask"], batch.get("valid"))
        if stage == "val":
            if self._searching:
                self.search.centre = self.threshold
                self.search.update(probability, batch["mask"], batch.get("valid"))
            self.log("val_bce", BCE()(logits, batch["mask"], batch.get("valid")), batch_size=1, sync_dist=True)
        return probability

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Probability (B, 1, H, W) of the images of a batch, for pictures of them."""
        return {"probability": self._step(batch, "test")}

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Probability (B, 1, H, W) of images without a mask."""
        logits = torch.stack([self.image_logits(image, self.views) for image in batch["image"]])
        return {"probability": torch.sigmoid(logits)}

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of all validation images of all processes, and choose the threshold.

        Raises:
            DataError: if no validation image shows the structure.
        """
        table = self.val_metrics.compute()
        self.val_metrics.reset()
        histogram = table["histogram"].sum(0).cpu().numpy()
        if not histogram[1].any():
            raise DataError("No validation image shows the structure, so no threshold can be chosen. Change the split.")
        summary = summarise(table)
        betti = [name for name in self.val_metrics.names if "_error" in name]
        values = {name.partition("_error")[0] + "_error": summary[name] for name in betti}
        threshold, dice = best_dice_threshold(histogram)
        self._threshold_for = (self._current_views, self.step_count, self._searching)
        self.threshold = self.high_threshold = threshold
        if self._searching:
            self.threshold, self.high_threshold = self.search.compute()
            self.search.reset()
        shown = {"val_dice": dice, "val_cldice": summary["cldice"], **{f"val_{n}": v for n, v in values.items()}}
        more = {"val_auroc": summary["auroc_pooled"], "val_threshold": self.threshold}
        for numbers, bar in ((shown, True), (more, False)):
            # Every process has computed the same values from all images; their mean is the same again.
            known = {name: torch.tensor(value) for name, value in numbers.items() if value is not None}
            self.log_dict(known, prog_bar=bar, sync_dist=True)

    def settings(self) -> dict[str, Any]:
        """Constructor arguments other than network and loss, as plain data."""
        return {
            **super().settings(),
            "refinement_steps": self.refinement_steps,
            "refinement_start": self.refinement_start,
            "prediction_steps": self.prediction_steps,
            "test_time_augmentation": self.test_time_augmentation,
            "two_thresholds": self.two_thresholds,
            "tile_size": self.tile_size,
            "tolerance": self.tolerance,
            "min_size": self.min_size,
            "membranes": self.membranes,
        }

    def learned(self) -> dict[str, Any]:
        """The thresholds of the last validation, and the views and steps that they are for."""
        views, steps, two = self._threshold_for
        return {
            "threshold": self.threshold,
            "high_threshold": self.high_threshold,
            "threshold_views": views,
            "threshold_steps": steps,
            "threshold_two": two,
        }

    def restore_learned(self, stored: dict[str, Any]) -> None:
        """Take the thresholds from a checkpoint."""
        self.threshold, self.high_threshold = float(stored["threshold"]), float(stored["high_threshold"])
        self._threshold_for = (
            int(stored["threshold_views"]),
            int(stored["threshold_steps"]),
            bool(stored["threshold_two"]),
        )


def _finest(output: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
    return output[0] if isinstance(output, list) else output


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 4) for value in values]
