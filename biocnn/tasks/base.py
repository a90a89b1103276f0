"""What all tasks share: normalisation, optimiser, schedule, and what a checkpoint must know."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import nn

import biocnn
from biocnn.checkpoints import CHECKPOINT_FORMAT, read_biocnn_checkpoint
from biocnn.errors import CheckpointError, DataError
from biocnn.networks.spec import describe

Stage = Literal["train", "val", "test"]


class Task(pl.LightningModule):
    """A network, a loss and how they are trained. Subclasses add their metrics and say what one step is.

    Args:
        network: (B, C, H, W) normalised images to logits.
        loss: (logits, target) to a scalar.
        lr: peak learning rate of AdamW.
        weight_decay: of matrices and kernels; norms and biases are not decayed.
        warmup: share of all steps in which the learning rate rises linearly; a cosine to zero follows.
        image_mean: of each channel, for images in 0..1; None until :meth:`set_normalisation` is called.
        image_std: of each channel.

    A batch is a dict, see :data:`biocnn.data.batches.Batch`.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: nn.Module,
        lr: float,
        weight_decay: float,
        warmup: float,
        image_mean: Sequence[float] | None,
        image_std: Sequence[float] | None,
    ) -> None:
        super().__init__()
        if not (lr > 0 and weight_decay >= 0 and 0 <= warmup < 1):
            raise ValueError(
                f"Expected lr > 0, weight_decay >= 0 and 0 <= warmup < 1, received lr={lr}, "
                f"weight_decay={weight_decay}, warmup={warmup}."
            )
        self.network, self.loss = network, loss
        self.lr, self.weight_decay, self.warmup = lr, weight_decay, warmup
        self.image_mean: tuple[float, ...] = ()
        self.image_std: tuple[float, ...] = ()
        if image_mean is not None or image_std is not None:
            self.set_normalisation(image_mean or (), image_std or ())
        self.data_description: dict[str, Any] = {}
        self._refusal = ""  # what the loss or a metric said of the last batch

    def set_normalisation(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set what images in 0..1 are normalised with, a value for each channel.

        Raises:
            ValueError: if the numbers of values differ, or a standard deviation is not positive.
        """
        if len(mean) != len(std) or not mean or min(std) <= 0:
            raise ValueError(
                f"image_mean and image_std need one value for each channel, and std > 0; received {mean} and {std}."
            )
        self.image_mean, self.image_std = tuple(mean), tuple(std)

    def normalise(self, image: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) in 0..1 as the network wants them.

        Raises:
            ValueError: if the normalisation is not known yet, or is for another number of channels.
        """
        if image.shape[1] != len(self.image_mean):
            known = f"for {len(self.image_mean)} channels" if self.image_mean else "not known yet"
            raise ValueError(
                f"The normalisation is {known}, received images with {image.shape[1]} channels. Pass image_mean and "
                "image_std with one value for each channel of the images."
            )
        # Made here and not kept as buffers, because averages of the weights are set up before the values are known.
        mean, std = (image.new_tensor(values).view(1, -1, 1, 1) for values in (self.image_mean, self.image_std))
        return (image - mean) / std

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits of images (B, C, H, W) in 0..1."""
        logits: torch.Tensor = self.network(self.normalise(image))
        return logits

    @abstractmethod
    def _step(self, batch: dict[str, Any], stage: Stage) -> torch.Tensor:
        """Loss of a batch; updates the metrics of the stage."""

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        """One training step; stops with the ids of the batch when the loss is not finite, or refuses the batch.

        One of several processes must not stop alone: there the loss becomes NaN, which all processes look for before
        the backward pass, see :mod:`biocnn.training.preemption`.

        Raises:
            DataError: then, in a single process.
        """
        alone = self.trainer.world_size == 1
        self._refusal = ""
        try:
            loss = self._step(batch, "train")
        except DataError as error:
            self._refusal = f"{error} "
            loss = torch.full((), math.nan, device=self.device, requires_grad=True)
        if alone and not torch.isfinite(loss):
            raise DataError(self.not_finite(loss, batch))
        size = len(batch["image"])
        # Of the whole batch, not of the share of the first process: batches are shared out evenly.
        self.log("train_loss", loss, prog_bar=True, batch_size=size, sync_dist=True)
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"], batch_size=size)
        return loss

    def not_finite(self, loss: torch.Tensor, batch: dict[str, Any]) -> str:
        """What to say when the loss of a training batch is not finite."""
        names = ", ".join(batch.get("id", [])[:8]) or "without ids"
        return (
            f"{self._refusal}The loss is {loss.item()} in step {self.global_step} of epoch {self.current_epoch}, batch "
            f"of {names} and so on. Look at these images for NaN; if they are sound, lower model.lr."
        )

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """One validation step."""
        self._step(batch, "val")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
        """One test step; what it returns is given to callbacks."""
        self._step(batch, "test")

    def configure_optimizers(self) -> Any:
        """AdamW with linear warm-up and a cosine to zero, stepped once a batch."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if not trained:
            raise ValueError("No parameter of the network requires a gradient: there is nothing to train.")
        optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in trained if p.ndim > 1], "weight_decay": self.weight_decay},
                {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=self.lr,
        )
        total = int(self.trainer.estimated_stepping_batches)
        rise = max(1, round(self.warmup * total))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, rise, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is needed to predict, as plain data."""
        checkpoint["biocnn"] = {
            "format": CHECKPOINT_FORMAT,
            "version": biocnn.__version__,
            "task": type(self).__name__,
            "network": describe(self.network),
            "network_name": type(self.network).__name__,
            "settings": self.settings(),
            "data": self.data_description,
            **self.learned(),
        }

    def load_checkpoint(self, path: str | Path) -> None:
        """Take weights and everything learned from a checkpoint that biocnn wrote.

        Raises:
            CheckpointError: if it cannot be read, or its weights do not fit the network.
        """
        checkpoint = read_biocnn_checkpoint(path)
        try:
            self.load_state_dict(checkpoint["state_dict"])
        except RuntimeError as error:
            raise CheckpointError(f"The weights in {path} do not fit {type(self.network).__name__}: {error}") from error
        self.on_load_checkpoint(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take back what training or calibration found out."""
        stored = checkpoint.get("biocnn", {})
        self.data_description = stored.get("data", {})
        self.restore_learned(stored)

    def on_fit_start(self) -> None:
        """Remember what the data are; a checkpoint must not need them."""
        describe_data = getattr(getattr(self.trainer, "datamodule", None), "describe", None)
        if describe_data is not None:
            self.data_description = describe_data()

    def settings(self) -> dict[str, Any]:
        """Constructor arguments other than network and loss, as plain data."""
        return {
            "lr": self.lr,
            "weight_decay": self.weight_decay,
            "warmup": self.warmup,
            "image_mean": list(self.image_mean) or None,
            "image_std": list(self.image_std) or None,
        }

    def learned(self) -> dict[str, Any]:
        """What a checkpoint stores besides weights, as plain data."""
        return {}

    def restore_learned(self, stored: dict[str, Any]) -> None:
        """Inverse of :meth:`learned`."""


def warmup_cosine(step: int, rise: int, total: int) -> float:
    """Factor on the learning rate: linear from 1/rise to 1 in `rise` steps, then half a cosine to 0 at `total`.

    >>> [round(warmup_cosine(step, 2, 4), 3) for step in range(5)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / max(1, total - rise))))
