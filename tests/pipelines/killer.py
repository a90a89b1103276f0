"""A callback that kills its process without warning, as a power cut or the out-of-memory killer does."""

import os
import signal
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Killer(Callback):
    """Kill after `number` events: steps, validation batches, checkpoints, or in the middle of writing a checkpoint.

    Of several processes that train together, the one of `rank`.
    """

    def __init__(self, event: str = "step", number: int = 1, rank: int = 0) -> None:
        self.event, self.left, self.rank, self.mine = event, number, rank, False

    def _count(self, event: str) -> None:
        if self.mine and event == self.event:
            self.left -= 1
            if self.left == 0:
                die()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.mine = trainer.global_rank == self.rank
        whole_save = torch.save

        def save_and_maybe_die(value: Any, path: Any, *args: Any, **kwargs: Any) -> None:
            whole_save(value, path, *args, **kwargs)
            if self.mine and self.event == "write" and self.left == 1:
                with open(path, "rb+") as handle:
                    handle.truncate(handle.seek(0, os.SEEK_END) // 2)
            self._count("write")

        torch.save = save_and_maybe_die
        replace = os.replace

        def replace_and_maybe_die(source: Any, target: Any) -> None:
            replace(source, target)
            if str(target).endswith(".ckpt"):
                self._count("checkpoint")

        os.replace = replace_and_maybe_die  # type: ignore[assignment]

    def on_train_batch_end(self, *args: Any) -> None:
        self._count("step")

    def on_validation_batch_end(self, *args: Any) -> None:
        self._count("validation")
