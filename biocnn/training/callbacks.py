"""Callbacks: averaged weights, random states, and the two checkpoints of a run."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, WeightAveraging


class EMA(WeightAveraging):
    """Exponential moving average of the weights, used for validation and saved as the model.

    The decay rises as (1 + t) / (10 + t) to its final value, so that a short training is not averaged with its
    random start (the warm-up of TensorFlow's `ExponentialMovingAverage`).

    Args:
        decay: final decay for each step, in 0..1.

    Raises:
        ValueError: if `decay` is out of range.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay must be in 0..1, received {decay}.")

        @torch.no_grad()
        def average(averaged: list[torch.Tensor], current: list[torch.Tensor], steps: torch.Tensor) -> None:
            t = float(steps)
            weight = 1 - min(decay, (1 + t) / (10 + t))
            if averaged[0].is_floating_point():
                torch._foreach_lerp_(averaged, current, weight)
            else:
                torch._foreach_copy_(averaged, current)

        super().__init__(multi_avg_fn=average)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Swap the averaged weights in, during training only: otherwise the model is what is to be validated."""
        if trainer.state.fn == "fit":
            super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Swap back."""
        if trainer.state.fn == "fit":
            super().on_validation_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the averaged weights in the model, and stop swapping them in: there is nothing left to swap."""
        super().on_train_end(trainer, pl_module)
        self._average_model = None


class RunCheckpoint(ModelCheckpoint):
    """ModelCheckpoint that remembers its best score when the run folder has been moved or renamed."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the scores; paths are those of the folder that is written now."""
        here = str(self.dirpath)
        moved = {
            name: str(Path(here) / Path(state_dict[name]).name) if state_dict.get(name) else ""
            for name in ("best_model_path", "kth_best_model_path", "last_model_path")
        }
        best_k = {str(Path(here) / Path(path).name): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **moved, "best_k_models": best_k, "dirpath": here})


class RandomStates(Callback):
    """Makes the random states part of every checkpoint, which Lightning does not, so that resuming is exact."""

    def __init__(self) -> None:
        self._restored: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """States of Python, numpy and torch, as plain data and tensors."""
        state = np.random.get_state(legacy=False)  # noqa: NPY002 - the global state that user code may draw from
        assert isinstance(state, dict)  # what legacy=False returns
        generator = {**state["state"], "key": torch.from_numpy(state["state"]["key"].astype(np.int64))}
        return {
            "python": random.getstate(),
            "numpy": {**state, "state": generator},
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states until training starts; setting up loaders would change them."""
        self._restored = state_dict

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set the states of the checkpoint that is resumed."""
        if self._restored is None:
            return
        stored, self._restored = self._restored, None
        version, internal, gauss = stored["python"]
        random.setstate((version, tuple(internal), gauss))
        generator = stored["numpy"]["state"]
        key = generator["key"].numpy().astype(np.uint32)
        np.random.set_state({**stored["numpy"], "state": {**generator, "key": key}})  # noqa: NPY002
        torch.set_rng_state(stored["torch"].cpu())
        if len(stored["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([state.cpu() for state in stored["cuda"]])


def checkpoint_callbacks(folder: Path, monitor: str, mode: str, every_n_steps: int) -> list[Callback]:
    """The two checkpoints of a run: ``best.ckpt`` by a validation metric, and ``last.ckpt`` to resume from.

    Args:
        folder: where they are written.
        monitor: name of the metric that chooses the best.
        mode: ``"min"`` or ``"max"``.
        every_n_steps: ``last.ckpt`` is written this often, and at the end of every epoch.
    """
    common: dict[str, Any] = {"dirpath": folder, "save_top_k": 1, "enable_version_counter": False}
    return [
        RunCheckpoint(filename="best", monitor=monitor, mode=mode, save_on_train_epoch_end=False, **common),
        RunCheckpoint(filename="last", every_n_epochs=1, save_on_train_epoch_end=True, **common),
        RunCheckpoint(filename="last", every_n_train_steps=every_n_steps, **common),
    ]
