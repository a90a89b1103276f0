"""Callbacks: averaged weights, random states, and the two checkpoints of a run."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, WeightAveraging

from biocnn.training.processes import gathered, own_rank


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


def is_pause(trainer: pl.Trainer) -> bool:
    """Whether the batch that has just been trained on is followed by a validation, or by the end of the epoch."""
    loop = trainer.fit_loop.epoch_loop
    fetcher = trainer.fit_loop._data_fetcher
    return loop.batch_progress.is_last_batch or (fetcher is not None and loop._should_check_val_fx(fetcher))


class RunCheckpoint(ModelCheckpoint):
    """ModelCheckpoint that remembers its best score when the run folder has been moved or renamed.

    Nothing is written between a step and the validation after it, or the end of its epoch: Lightning would go on from
    there without the validation. What follows writes its own checkpoint.
    """

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write a checkpoint every so many steps."""
        if not is_pause(trainer):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

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
    """Makes the random states part of every checkpoint, which Lightning does not, so that resuming is exact.

    Every process has its own: seeded alike, all of them would drop the same features of their shares of a batch.
    """

    def __init__(self) -> None:
        self._restored: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        """States of Python, numpy and torch of each process, as plain data and tensors; all processes have to ask."""
        return {"processes": gathered([_random_state()])}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states until training starts; setting up loaders would change them."""
        # Before there were states of every process there were those of the first.
        self._restored = state_dict.get("processes", [state_dict])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set the states of the checkpoint that is resumed; a process that has none starts a sequence of its own."""
        stored, self._restored = self._restored, []
        rank = own_rank()
        if rank < len(stored):
            _set_random_state(stored[rank])
        elif rank:
            torch.manual_seed(torch.initial_seed() + rank)


def _random_state() -> dict[str, Any]:
    state = np.random.get_state(legacy=False)  # noqa: NPY002 - the global state that user code may draw from
    assert isinstance(state, dict)  # what legacy=False returns
    generator = {**state["state"], "key": torch.from_numpy(state["state"]["key"].astype(np.int64))}
    return {
        "python": random.getstate(),
        "numpy": {**state, "state": generator},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _set_random_state(stored: dict[str, Any]) -> None:
    version, internal, gauss = stored["python"]
    random.setstate((version, tuple(internal), gauss))
    generator = stored["numpy"]["state"]
    key = generator["key"].numpy().astype(np.uint32)
    np.random.set_state({**stored["numpy"], "state": {**generator, "key": key}})  # noqa: NPY002
    torch.set_rng_state(stored["torch"].cpu())
    if len(stored["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state.cpu() for state in stored["cuda"]])


class Compile(Callback):
    """Compiles the network for training, by `torch.compile` with fixed shapes; weights keep their names.

    Validation takes whole images of any size through the network, for each of which it would be compiled anew, so it
    runs as it is. What calls parts of a network by other methods than its forward pass, such as the training of
    :class:`~biocnn.tasks.path_training.PathTraining`, gains nothing.

    Args:
        mode: of `torch.compile`.
        backend: of `torch.compile`.
    """

    def __init__(self, mode: str = "default", backend: str = "inductor") -> None:
        self.mode, self.backend = mode, backend

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compile in place, so that checkpoints need not know; it happens with the first batch."""
        network = pl_module.network
        assert isinstance(network, torch.nn.Module)
        network.compile(dynamic=False, mode=self.mode, backend=self.backend)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Run as it is."""
        torch.compiler.set_stance("force_eager")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Run compiled."""
        torch.compiler.set_stance("default")

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave things as they were, if validation has ended early."""
        torch.compiler.set_stance("default")


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
