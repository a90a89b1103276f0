"""Segmentation of curvilinear structures into a map of probabilities, a tubularity map.

Iterative refinement (`refinement_steps` K > 1): the network is given the image and its own previous map, 0 at first, K
times. The losses of the steps k = 1..K are weighted by 2 k / (K (K + 1)) (Mosinska et al. 2018, eqs. 4 to 6). Its only
cost in parameters is one more input channel; in time a step costs as much as a network, so the first `refinement_start`
of the training makes one step only, as the authors' training with K = 1 that K = 3 continues.

Validation. During `fit` the validation images are predicted once per epoch, in one view and with the steps that are
trained just then. `val_dice` is the Dice of all pixels together at the threshold that is best for it, `val_bce` needs
no threshold; `val_cldice` and the Betti errors are means over images at the threshold that the validation before has
chosen (0.5 at first), which saves a second pass. The thresholds are part of every checkpoint. `Trainer.validate`
chooses them for the views and steps of `test`.

References: Ronneberger et al. 2015 (tiles that overlap); Mosinska, Marquez-Neila, Kozinski, Fua: Beyond the pixel-wise
loss for topology-aware delineation. CVPR 2018, arXiv 1712.02190.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import nn
from torchmetrics import MeanMetric

from biocnn.errors import DataError
from biocnn.losses import BCE, Dice, Loss, SoftClDice, iterations_for_radius
from biocnn.metrics.calling import SizeSearch, choose_size, robust_threshold
from biocnn.metrics.segmentation import SegmentationMetrics, best_dice_threshold, dice_curves, summarise
from biocnn.networks.refinement import Output, finest, refine
from biocnn.networks.tiling import predict_tiles, tiling_of
from biocnn.networks.views import D4_VIEWS
from biocnn.tasks.base import Stage, Task
from biocnn.tasks.path_training import PathTraining, check_paths
from biocnn.tasks.thresholds import Thresholds


class SegmentationTask(Task):
    """Which pixels belong to the structure?

    Batches hold ``image`` (B, C, H, W) float32 in 0..1, ``mask`` (B, 1, H, W) float32 of 0 and 1, ``valid``
    (B, 1, H, W) bool, ``index`` (B,) int64, and in training what the loss asks for, see :attr:`targets`. Training
    serves tiles, evaluation whole images of any size, which are taken through the network by tiles.

    Args:
        network: normalised images (B, C, H, W), with refinement (B, C + 1, H, W), to logits (B, 1, H, W). It may
            return a list of logits, the finest first, in training.
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
        drop_specks: whether components that are smaller than a size, chosen on validation, are not called.
        tile_size: side of the tiles of evaluation and prediction in pixels; memory grows with its square. A network
            whose halo needs more gets more; one without a finite halo gets the tile size of its training.
        tolerance: of correctness, completeness and quality, in pixels.
        min_size: components of fewer pixels are left out of Betti numbers, in truth and prediction.
        membranes: whether to compare the cells between the structures as well (V-Rand, V-Info).
        paths: how a network that can, such as :class:`biocnn.networks.DualUseUNet`, learns to classify paths as well.
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
        drop_specks: bool = True,
        tile_size: int = 1024,
        tolerance: float = 3.0,
        min_size: int = 0,
        membranes: bool = False,
        paths: PathTraining | None = None,
    ) -> None:
        super().__init__(
            network, BCE() + Dice() if loss is None else loss, lr, weight_decay, warmup, image_mean, image_std
        )
        _check_steps(refinement_steps, refinement_start, prediction_steps)
        check_paths(paths, network, refinement_steps)
        self.refinement_steps, self.refinement_start = refinement_steps, refinement_start
        self.prediction_steps, self.tile_size = prediction_steps, tile_size
        self.test_time_augmentation, self.drop_specks = test_time_augmentation, drop_specks
        self.tolerance, self.min_size, self.membranes = tolerance, min_size, membranes
        self.thresholds, self.paths = Thresholds(), paths
        self.val_metrics = SegmentationMetrics(tolerance=tolerance, min_size=min_size)
        self.test_metrics = SegmentationMetrics(tolerance=tolerance, min_size=min_size, membranes=membranes)
        self.search, self.val_bce = SizeSearch(min_size), MeanMetric()

    @property
    def targets(self) -> frozenset[str]:
        """What the loss needs of a batch: ``mask``, and ``tube`` or ``distance`` if a term asks for them."""
        return frozenset({"mask"} | {term.target_key for _, _, term in self.loss.parts()})  # type: ignore[operator]

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
        return self.thresholds.fit(self.views, self.step_count, self.drop_specks)

    def setup(self, stage: str) -> None:
        """Take what was not given from the fingerprint of the training set: normalisation, skeleton iterations."""
        datamodule = getattr(self.trainer, "datamodule", None)
        found = {} if stage != "fit" or datamodule is None else datamodule.describe()
        if found.get("fingerprint") is not None:
            adopt_fingerprint(self, found)

    def steps(self, image: torch.Tensor, count: int) -> Iterator[Output]:
        """Outputs of the network for images (B, C, H, W) in 0..1, in `count` steps of refinement; one without it."""
        image = self.normalise(image)
        return iter([self.network(image)]) if self.refinement_steps == 1 else refine(self.network, image, count)

    def forward(self, image: torch.Tensor, steps: int | None = None) -> torch.Tensor:
        """Logits (B, 1, H, W) of images (B, C, H, W) in 0..1, all at once: of the last of `steps`, else `step_count`.

        Raises:
            ValueError: if the network returns anything but one logit for each pixel.
        """
        for output in self.steps(image, steps or self.step_count):
            logits = finest(output)
        _check_shape(self.network, image, logits)
        return logits

    def image_logits(self, image: torch.Tensor, views: int | None = None, steps: int | None = None) -> torch.Tensor:
        """Logits (1, H, W) float32 of one image (C, H, W) in 0..1 of any size, by tiles; the mean over its views."""
        count = steps or self.step_count
        tile, halo, stride = _tiling(self, count)
        return predict_tiles(partial(self, steps=count), image, tile, halo, stride, views=views or self.views)

    def training_loss(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """The loss of a batch of tiles over all steps of refinement and all depths of supervision."""
        if self.paths is not None:
            output, features = self.network.forward_with_features(self.normalise(batch["image"]))  # type: ignore[operator]
            paths = self.paths.loss(self, batch, torch.sigmoid(finest(output).detach()), features)
            return depth_loss(self.loss, output, batch) + paths
        count = self.training_steps
        total = torch.zeros((), device=batch["image"].device)
        for number, output in enumerate(self.steps(batch["image"], count), start=1):
            total = total + 2 * number / (count * (count + 1)) * depth_loss(self.loss, output, batch)
        return total

    @property
    def training_steps(self) -> int:
        """Steps of refinement that the training makes at present; in validation, those of the batch before."""
        batch = self.global_step - bool(self.trainer.validating)
        started = batch >= self.refinement_start * self.trainer.estimated_stepping_batches
        return self.refinement_steps if started else 1

    @property
    def _way(self) -> tuple[int, int, bool]:
        """Views and steps of the evaluation that is going on, and whether it searches for the smallest component."""
        fitting = self.trainer.state.fn == "fit"
        return (1, self.training_steps, False) if fitting else (self.views, self.step_count, self.drop_specks)

    def _step(self, batch: dict[str, Any], stage: Stage) -> torch.Tensor:
        if stage == "train":
            return self.training_loss(batch)
        views, steps, searching = self._way
        logits = torch.stack([self.image_logits(image, views, steps) for image in batch["image"]])
        probability = torch.sigmoid(logits)
        metrics = self.val_metrics if stage == "val" else self.test_metrics
        metrics.threshold, metrics.min_component = self.thresholds.threshold, self.thresholds.min_component
        metrics.update(batch["index"], probability, batch["mask"], batch.get("valid"))
        if stage == "val":
            if searching:
                self.search.update(probability, batch["mask"], batch.get("valid"))
            if self.paths is not None and self.trainer.state.fn == "fit":
                self.paths.validate(self, batch, probability)
            # Lightning's mean over processes is wrong where they have different numbers of images.
            self.val_bce.update(BCE()(logits, batch["mask"], batch.get("valid")))
            self.log("val_bce", self.val_bce, batch_size=1)
        return probability

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Probability (B, 1, H, W) of the images of a batch, for pictures of them."""
        return {"probability": self._step(batch, "test")}

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Probability (B, 1, H, W) of images without a mask."""
        logits = torch.stack([self.image_logits(image) for image in batch["image"]])
        return {"probability": torch.sigmoid(logits)}

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of all validation images of all processes, and choose the threshold.

        Raises:
            DataError: if no validation image shows the structure.
        """
        table = self.val_metrics.compute()
        self.val_metrics.reset()
        histograms = table["histogram"].cpu().numpy()
        shown = histograms[:, 1].any(1)
        if not shown.any():
            raise DataError("No validation image shows the structure, so no threshold can be chosen. Change the split.")
        threshold, way, size = robust_threshold(*dice_curves(histograms[shown])), self._way, 0
        if way[2]:
            size = choose_size(*self.search.compute(), threshold)
            self.search.reset()
        self.thresholds = Thresholds(threshold, size, *way)
        dice = best_dice_threshold(histograms.sum(0))[1]
        # Every process has computed the same values from all images; their mean is the same again.
        self.log_dict({"val_dice": torch.tensor(dice), **_means(table)}, prog_bar=True, sync_dist=True)
        self.log("val_threshold", torch.tensor(threshold), sync_dist=True)

    def settings(self) -> dict[str, Any]:
        """Constructor arguments other than network, loss and paths, as plain data."""
        names = ("refinement_steps", "refinement_start", "prediction_steps", "test_time_augmentation", "drop_specks")
        own = (*names, "tile_size", "tolerance", "min_size", "membranes")
        return {**super().settings(), **{name: getattr(self, name) for name in own}}

    def learned(self) -> dict[str, Any]:
        """What the last validation chose."""
        return self.thresholds.to_dict()

    def restore_learned(self, stored: dict[str, Any]) -> None:
        """Take the thresholds from a checkpoint."""
        self.thresholds = Thresholds.from_dict(stored)


def _check_steps(refinement_steps: int, refinement_start: float, prediction_steps: int | None) -> None:
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


def _check_shape(network: nn.Module, image: torch.Tensor, logits: torch.Tensor) -> None:
    expected = (len(image), 1, *image.shape[2:])
    if logits.shape != expected:
        raise ValueError(
            f"{type(network).__name__} returned {tuple(logits.shape)}, expected {expected}: make it with one output "
            "channel, and such that its output has the size of the image."
        )


def _tiling(task: SegmentationTask, steps: int) -> tuple[int, int | None, int]:
    """Tile size, halo and stride of whole images."""
    halo, stride = tiling_of(task.network)
    if halo is None:
        return task.data_description.get("tile_size") or task.tile_size, None, stride
    halo *= steps  # a step sees the map of the step before as far as the halo, and so on
    return max(task.tile_size, 2 * (halo + stride)), halo, stride


def depth_loss(loss: nn.Module, output: Output, batch: Mapping[str, Any]) -> torch.Tensor:
    """The mean loss over all depths of supervision, each of half the weight of the one before, the finest first."""
    outputs = output if isinstance(output, list) else [output]
    weights = [0.5**level for level in range(len(outputs))]
    values = [loss(logits, batch, batch.get("valid")) for logits in outputs]
    return torch.stack([weight * value for weight, value in zip(weights, values, strict=True)]).sum() / sum(weights)


def _means(table: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What is logged of a table of validation images: means of clDice and Betti errors, and the pooled AUC."""
    summary = summarise(table)
    names = {name: name[:12] for name in table if name[6:].startswith("_error")}
    names.update(cldice="cldice", auroc_pooled="auroc")
    return {f"val_{short}": torch.tensor(summary[name]) for name, short in names.items() if summary[name] is not None}


def adopt_fingerprint(task: SegmentationTask, found: Mapping[str, Any]) -> None:
    """Set what a task was not given, and print it with the reason.

    Args:
        task: whose normalisation, and iterations of soft skeletons, are None.
        found: description of the data, as of :meth:`biocnn.data.segmentation_module.SegmentationDataModule.describe`.
    """
    if not task.image_mean:
        task.set_normalisation(found["fingerprint"]["mean"], found["fingerprint"]["std"])
        mean, std = ([round(value, 4) for value in values] for values in (task.image_mean, task.image_std))
        rank_zero_info(f"model.image_mean, model.image_std: {mean}, {std} (of the training images inside `valid`)")
    for module in task.loss.modules():
        if isinstance(module, SoftClDice) and module.iterations is None:
            radius = float(found["widest_radius_in_tiles"])
            module.iterations = iterations_for_radius(radius)
            rank_zero_info(
                f"SoftClDice.iterations: {module.iterations} (the widest structure of the training tiles has a radius "
                f"of {radius:.1f} px, magnified)"
            )
