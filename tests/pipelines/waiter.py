"""A callback that holds a training at one step until the scheduler asks it to stop."""

import os
import signal
import threading
from types import FrameType
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback


class Waiter(Callback):
    """In a job that runs for the first time, says ``waits at step N`` and stays in it until SIGTERM has come.

    So a test decides in which step a training is stopped, however slow the machine is.
    """

    def __init__(self, step: int = 1) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step != self.step or os.environ.get("SLURM_RESTART_COUNT", "0") != "0":
            return
        arrived, noted = threading.Event(), signal.getsignal(signal.SIGTERM)
        assert callable(noted)

        def note(number: int, frame: FrameType | None) -> None:
            noted(number, frame)
            arrived.set()

        signal.signal(signal.SIGTERM, note)
        print(f"waits at step {self.step}", flush=True)
        arrived.wait()
        signal.signal(signal.SIGTERM, noted)
