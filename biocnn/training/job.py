"""What one pipeline adds to the command line that all of them share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from biocnn.data.datamodule import DataModule
from biocnn.tasks.base import Task

Hook = Callable[[pl.Trainer, Any, Any, Path], None]
"""Called with (trainer, task, datamodule, checkpoint)."""
Writers = Callable[[str, Path, Any], list[pl.Callback]]
"""Called with (subcommand, checkpoint, datamodule)."""


@dataclass(frozen=True)
class Job:
    """What one pipeline adds to the shared command line.

    Attributes:
        name: of the folder below ``trainer.default_root_dir``.
        task: the LightningModule.
        datamodule: the DataModule.
        monitors: validation metrics that may choose ``best.ckpt``, each with ``"min"`` or ``"max"``; the first is the
            default.
        after_fit: runs when training has ended, on every process.
        before_test: runs before the test set is looked at.
        after_test: runs when it was.
        after_predict: runs after prediction.
        complete: fills in what the configuration of `fit` leaves open, before objects are made of it.
        writers: callbacks that write while images are evaluated; with them, predictions are not kept in memory.
    """

    name: str
    task: type[Task]
    datamodule: type[DataModule]
    monitors: Mapping[str, str]
    after_fit: Hook
    before_test: Hook
    after_test: Hook
    after_predict: Hook
    complete: Callable[[Any], None] | None = None
    writers: Writers | None = None
