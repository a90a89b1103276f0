"""A callback that signals processes of a training."""

import os
import signal
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback


class Signaller(Callback):
    """Send signals at the `number`-th event of a start: a step, a validation batch, the end of an epoch, the setup.

    Args:
        event: its name.
        number: 1 for the first.
        names: of the signals, one after another.
        rank: of the process that signals itself; all of them when None.
        parent: signal the parent of the process instead.
    """

    def __init__(
        self,
        event: str = "step",
        number: int = 1,
        names: str = "SIGTERM",
        rank: int | None = None,
        parent: bool = False,
    ) -> None:
        self.event, self.left, self.names, self.rank = event, number, names.split("+"), rank
        self.parent = parent

    def _count(self, trainer: pl.Trainer, event: str) -> None:
        if event != self.event or self.rank not in (None, trainer.global_rank):
            return
        self.left -= 1
        if self.left == 0:
            for name in self.names:
                os.kill(os.getppid() if self.parent else os.getpid(), signal.Signals[name])

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._count(trainer, "setup")

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        self._count(trainer, "step")

    def on_validation_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self._count(trainer, "validation")

    def on_train_epoch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self._count(trainer, "epoch")


def options(event: str, number: int = 1, **more: Any) -> list[str]:
    """The callback for a command line."""
    given = {"event": event, "number": number, **more}
    name = "--trainer.callbacks"
    return [name, f"{__name__}.Signaller", *(f"{name}.init_args.{key}={value}" for key, value in given.items())]
