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
    """Kill after `number` events: training steps, validation batches, or in the middle of writing a checkpoint."""

    def __init__(self, event: str = "step", number: int = 1) -> None:
        self.event, self.left = event, number

    def _count(self, event: str) -> None:
        if event == self.event:
            self.left -= 1
            if self.left == 0:
                die()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        whole_save = torch.save

        def save_and_maybe_die(value: Any, path: Any, *args: Any, **kwargs: Any) -> None:
            whole_save(value, path, *args, **kwargs)
            if self.event == "write" and self.left == 1:
                with open(path, "rb+") as handle:
                    handle.truncate(handle.seek(0, os.SEEK_END) // 2)
            self._count("write")

        torch.save = save_and_maybe_die

    def on_train_batch_end(self, *args: Any) -> None:
        self._count("step")

    def on_validation_batch_end(self, *args: Any) -> None:
        self._count("validation")
