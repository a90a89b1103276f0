"""A part of the segmentation task: its network learns to classify paths as well."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torchmetrics.classification import BinaryAccuracy, BinaryAUROC

from biocnn.delineation.path_examples import path_examples
from biocnn.networks.path_tiles import path_tile_logits
from biocnn.tasks.base import Task

# Second word of the Philox key: augmentation has 0 and the places of tiles 1, so they never share a number.
_STREAM = 2
# Paths of a validation image that are classified, half of each kind.
_VALIDATED = 64


class PathTraining(nn.Module):
    """Joint training of segmentation and path classification: the loss of paths, and how well they are told apart.

    From `start` on, every training step mines paths from the maps that it has made of its tiles, see
    :func:`biocnn.delineation.path_examples.path_examples`, half of them following structures, half not, and adds the
    binary cross-entropy of their classification to the loss of the segmentation: L = L_seg + weight * L_path. Which
    paths are drawn depends on seed, epoch and number of the tile, and on the map. An epoch logs ``train_path_loss``,
    and after `start` ``val_path_auroc`` and ``val_path_accuracy`` of 64 paths of each validation image.

    The paths of a tile are classified by the features that its segmentation was made of, so what they cost is their
    mining: on one CPU core 0.1 s for 16 paths in tiles of 128 pixels, where the segmentation of 8 tiles takes 0.65 s.

    Reference: Mosinska, Kozinski, Fua: Joint segmentation and path classification of curvilinear structures. TPAMI
    2019, arXiv 1905.03892: segmentation is trained first, then both.

    Args:
        weight: of the paths in the loss, eta in the paper.
        start: share of the training that learns to segment only, 0..1.
        tiles: of a batch that paths are mined from, at most; of that of all processes together.
        per_tile: paths mined from a tile, at most.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(self, weight: float = 0.1, start: float = 0.5, tiles: int = 4, per_tile: int = 4) -> None:
        super().__init__()
        if not (weight > 0 and 0 <= start <= 1 and tiles >= 1 and per_tile >= 2):
            raise ValueError(
                "Expected weight > 0, start in 0..1, tiles of 1 or more and per_tile of 2 or more, received "
                f"weight={weight}, start={start}, tiles={tiles} and per_tile={per_tile}."
            )
        self.weight, self.start, self.tiles, self.per_tile = weight, start, tiles, per_tile
        self.auroc, self.accuracy = BinaryAUROC(), BinaryAccuracy()

    def started(self, task: Task) -> bool:
        """Whether the training of a task has come to its paths; in validation, the batch before had."""
        batch = task.global_step - bool(task.trainer.validating)
        return batch >= self.start * task.trainer.estimated_stepping_batches

    def loss(
        self, task: Task, batch: Mapping[str, Any], probability: torch.Tensor, features: torch.Tensor
    ) -> torch.Tensor:
        """What paths add to the loss of a training step.

        Args:
            task: whose network is a :class:`biocnn.networks.DualUseUNet`, or the like.
            batch: of B tiles, see :class:`biocnn.tasks.segmentation.SegmentationTask`.
            probability: (B, 1, H, W), the maps of the tiles.
            features: (B, F, H, W) that they were made of.

        Returns:
            Scalar; 0 before `start`, and if there are no paths.
        """
        logits: list[torch.Tensor] = []
        labels: list[np.ndarray] = []
        if not self.started(task):
            return _nothing(task.network)
        # The k-th tile of rank r is number k * R + r of the batch that R processes share.
        own = range(task.global_rank, self.tiles, task.trainer.world_size)
        for number in range(min(len(own), len(probability))):
            if not bool(torch.isfinite(probability[number]).all()):
                continue  # the loss of the map refuses it, when no other process waits any more
            random = _random_numbers(task, task.current_epoch, 0, int(batch["index"][number]))
            paths, kinds = _examples(batch, probability, number, self.per_tile, random)
            logits.append(task.network.path_logits(features[number], paths))  # type: ignore[operator]
            labels.append(kinds)
        target = torch.from_numpy(np.concatenate([np.zeros(0, bool), *labels])).to(features.device, torch.float32)
        # Processes find different numbers of paths; divided by their mean, the mean of what they return is that of all.
        paths_each = torch.tensor(float(len(target)), device=features.device)
        paths_each = task.trainer.strategy.reduce(paths_each, reduce_op="mean")
        if not paths_each:
            return _nothing(task.network)
        loss = _nothing(task.network)
        if len(target):
            loss = F.binary_cross_entropy_with_logits(torch.cat(logits).float(), target, reduction="sum") / paths_each
        task.log("train_path_loss", loss, batch_size=len(probability), sync_dist=True)
        return self.weight * loss

    def validate(self, task: Task, batch: Mapping[str, Any], probability: torch.Tensor) -> None:
        """Classify paths of validation images, and log the area under the ROC curve and the accuracy.

        Args:
            task: as of :meth:`loss`.
            batch: of whole images.
            probability: (B, 1, H, W), their maps.
        """
        if not self.started(task):
            return
        tile = task.data_description.get("tile_size") or 128
        for number, image in enumerate(batch["image"]):
            random = _random_numbers(task, 0, 1, int(batch["index"][number]))
            paths, labels = _examples(batch, probability, number, _VALIDATED, random)
            logits = path_tile_logits(partial(classify_paths, task), image, paths, tile)
            target = torch.from_numpy(labels).to(logits.device)
            for metric in (self.auroc, self.accuracy):
                metric.update(torch.sigmoid(logits), target)
        task.log_dict({"val_path_auroc": self.auroc, "val_path_accuracy": self.accuracy}, batch_size=1)


def _nothing(network: nn.Module) -> torch.Tensor:
    """0, with a gradient for every parameter: distributed training waits for one in every step."""
    return 0 * torch.stack([parameter.sum() for parameter in network.parameters()]).sum()


def classify_paths(task: Task, image: torch.Tensor, paths: Sequence[np.ndarray]) -> torch.Tensor:
    """Logits (M,) of paths (P, 2) in one image (1, C, H, W) in 0..1."""
    features = task.network.forward_with_features(task.normalise(image))[1]  # type: ignore[operator]
    logits: torch.Tensor = task.network.path_logits(features[0], paths)  # type: ignore[operator]
    return logits


def check_paths(paths: PathTraining | None, network: nn.Module, refinement_steps: int) -> None:
    """Raise ValueError if a network cannot be trained on paths."""
    if paths is not None and not hasattr(network, "path_logits"):
        raise ValueError(
            f"paths: {type(network).__name__} cannot classify paths, use biocnn.networks.DualUseUNet or another "
            "network with `path_logits`."
        )
    if paths is not None and refinement_steps > 1:
        raise ValueError(
            f"paths: expected a training without refinement, received refinement_steps={refinement_steps}."
        )


def _random_numbers(task: Task, epoch: int, stage: int, index: int) -> np.random.Generator:
    seed = task.data_description.get("seed", 0)
    return np.random.Generator(np.random.Philox(key=[seed, _STREAM], counter=[0, index, epoch, stage]))


def _examples(
    batch: Mapping[str, Any], probability: torch.Tensor, number: int, count: int, random: np.random.Generator
) -> tuple[list[np.ndarray], np.ndarray]:
    """Examples in one image of a batch."""
    mask, valid = batch["mask"][number, 0] > 0, batch.get("valid")
    known = torch.ones_like(mask) if valid is None else valid[number, 0]
    values = probability[number, 0].float()
    return path_examples(values.cpu().numpy(), mask.cpu().numpy(), known.cpu().numpy(), count, random)
