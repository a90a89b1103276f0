"""Stopping when a scheduler asks for it: a whole checkpoint, an exit code that means requeue, nothing lost."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.environments import SLURMEnvironment  # type: ignore[attr-defined]
from torch import distributed

from biocnn.files import write_text
from biocnn.tasks.base import Task
from biocnn.training.callbacks import is_pause
from biocnn.training.guards import end_if_any

REQUEUE = 75
"""Exit code of a training that was asked to stop and can be continued: EX_TEMPFAIL of sysexits.h, "try again"."""
REQUEUE_FILE = "requeue"
"""In the run folder while the training waits to be continued: torchrun does not hand on the exit code."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class PreemptedError(Exception):
    """The training was asked to stop; its last checkpoint is whole."""


class StopRequest:
    """The signal that asked this process to stop, 0 while there is none."""

    def __init__(self) -> None:
        self.signal = 0

    def note(self, number: int, frame: FrameType | None) -> None:
        """Signal handler: remembers the first signal and does no more, as anything may have been interrupted."""
        self.signal = self.signal or number


@contextlib.contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Note SIGTERM and SIGUSR1 in the request that is yielded; the handlers of before are put back at the end.

    Outside of the main thread, where Python allows no handlers, nothing is noted.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {number: signal.signal(number, request.note) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def silence_lightning(trainer: pl.Trainer) -> None:
    """Keep Lightning from handling signals itself.

    Its handler of SIGTERM broadcasts in the middle of whatever was interrupted, which hangs when not all processes get
    the signal at the same place; under SLURM, it saves and requeues there as well (Lightning 2.6, issues 20542, 21406).
    """
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if isinstance(environment, SLURMEnvironment):
        environment.auto_requeue = False
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]


class Agreement(Checkpoint):
    """What all processes agree on in every step: that the loss is finite, and whether to stop.

    It derives from `Checkpoint` for its place: after the average of the weights, and, given first, before whatever
    else writes checkpoints.

    - In several processes, one reduction before each backward pass tells all of them whether one was signalled, and
      whether a loss is not finite anywhere. Such a loss so ends all processes before it reaches a weight.
    - Asked to stop, ``last.ckpt`` is written at the end of the step, and the training is left before the next one.
    - Before every validation ``last.ckpt`` is written as well. So a validation can be left at any batch, and the
      continued run repeats all of it.
    - A checkpoint at the end of a step waits for the metrics of the step: Lightning logs them later, and a process that
      was killed in between would miss them. Loggers other than the CSV get such a step twice.
    - After the last step of an epoch, the checkpoint of the end of the epoch is waited for.

    Args:
        request: what the signal handlers note.
        last: path of ``last.ckpt``.
    """

    def __init__(self, request: StopRequest, last: Path) -> None:
        self._request, self._last = request, last
        self._batch: Any = {}
        self._asked = 0  # the signal that all processes know of
        self._common_batches = 0
        self._before_validation = False
        self._to_log = False  # whether the metrics of the last step are still to be logged

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave if asked: there is nothing to save yet."""
        self._leave_if_asked(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave if asked: the end of the last epoch has written its checkpoint."""
        self._leave_if_asked(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave if asked: what follows the training is done by the continued run."""
        self._leave_if_asked(trainer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Leave if the step before has saved for that; not sooner, as its metrics are written after its checkpoint."""
        if self._asked:
            self._leave(trainer)
        self._batch, self._to_log = batch, False

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor) -> None:
        """Tell the other processes what happened in this one.

        Raises:
            DataError: if the loss is not finite in any: in the first process, naming the images.
            OtherProcessError: then, in the others.
        """
        if trainer.world_size == 1:  # the task has looked at the loss
            self._asked = self._request.signal
            return
        broken = not bool(torch.isfinite(loss))
        self._asked, anywhere = _largest(trainer, self._request.signal, int(broken))
        if anywhere:
            assert isinstance(pl_module, Task)
            end_if_any(trainer, pl_module.not_finite(loss, self._batch) if broken else None)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the checkpoint, if asked to stop and nothing follows that writes it."""
        self._to_log = not is_pause(trainer)
        if self._asked and self._to_log:
            trainer.save_checkpoint(self._last)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the checkpoint that the validation can be repeated from."""
        if trainer.sanity_checking:
            return
        if trainer.state.fn == "fit":
            self._before_validation = True
            trainer.save_checkpoint(self._last)
            self._before_validation = False
        # Shares of an evaluation differ by an item: the last batch may be missing in some of the processes.
        self._common_batches = -_largest(trainer, -int(sum(trainer.num_val_batches)))[0]
        self._leave_if_asked(trainer)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        """Leave if asked: the checkpoint is there."""
        if not trainer.sanity_checking and batch_idx < self._common_batches:
            self._leave_if_asked(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Log what belongs to the checkpoint, and say before a validation that this is to be run.

        Lightning would take it for finished. A batch that was begun and not ended makes it begin the evaluation again,
        with the first batch.
        """
        if self._to_log:
            trainer._logger_connector.update_train_step_metrics()
            self._to_log = False
        if self._before_validation:
            begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]["total"] = begun

    def _leave_if_asked(self, trainer: pl.Trainer) -> None:
        self._asked = self._asked or _largest(trainer, self._request.signal)[0]
        if self._asked:
            self._leave(trainer)

    def _leave(self, trainer: pl.Trainer) -> None:
        name, step = signal.Signals(self._asked).name, trainer.global_step
        if trainer.is_global_zero:
            write_text(self._last.parent.parent / REQUEUE_FILE, f"{name} at step {step}\n")
        raise PreemptedError(f"stopped by {name} at step {step}; continue with --ckpt_path last")


def _largest(trainer: pl.Trainer, *values: int) -> list[int]:
    """The largest of each value over all processes."""
    if trainer.world_size == 1:
        return list(values)
    state = torch.tensor(values, device=trainer.strategy.root_device)
    distributed.all_reduce(state, op=distributed.ReduceOp.MAX)
    return state.tolist()
