"""How fast a training runs, and whether it waits for its data."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_warn

from biocnn.training.logger import MetricsCSV

STARVING = 0.2
"""Share of the time spent waiting for data from which on a training says so."""


class HostTime:
    """Points in time of the processor.

    Args:
        clock: seconds from any origin.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.mark = clock

    def seconds(self, start: float, stop: float) -> float:
        """Time between two marks."""
        return stop - start


class DeviceTime:
    """Points in the queue of a GPU, which runs behind the processor: a wait that the GPU does not notice is none."""

    def mark(self) -> torch.cuda.Event:
        """A mark behind all that is queued; nothing is waited for."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: torch.cuda.Event, stop: torch.cuda.Event) -> float:
        """Time between two marks, once the GPU has reached the second."""
        stop.synchronize()
        return start.elapsed_time(stop) / 1e3


class Throughput(Checkpoint):
    """Images per second, share of the time spent waiting for data, and memory, into ``throughput.csv``.

    A wait is the time between the end of a training step and the beginning of the next: Lightning fetches the batch and
    moves it to the device just then, and not ahead. A checkpoint at the end of a step is part of it; validation and
    what happens between epochs are neither steps nor waits. The callback derives from `Checkpoint` for its place:
    given last, it comes after those that write checkpoints. On a GPU it waits for the queue at logging steps only.

    Every `log_every_n_steps` steps there is a row of ``images_per_s`` (over all processes), ``data_wait_share`` in 0..1
    and, on a GPU, ``gpu_memory_gb``, the most that was allocated so far; at the end of every epoch one of
    ``epoch_images_per_s``, ``epoch_data_wait_share`` and ``host_memory_gb``, see :func:`host_memory`. They are those of
    the first process. Other loggers get them as well, but not ``metrics.csv``, which is the same whenever a training
    is repeated.

    Args:
        log: where rows go.
        stopwatch: takes the time; that of the device of the training when None.
    """

    def __init__(self, log: Logger, stopwatch: HostTime | DeviceTime | None = None) -> None:
        self._log, self._stopwatch = log, stopwatch
        self._resumed: Any = None  # where the wait for the next batch began
        self._begun: Any = None
        self._steps: list[tuple[Any, Any, Any]] = []
        self._epoch = _Sum()
        self._images, self._logged_step = 0, 0
        self._warm, self._said = False, False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Choose the stopwatch; a run that is resumed within an epoch does not begin one."""
        if self._stopwatch is None:
            self._stopwatch = DeviceTime() if _on_gpu(trainer) else HostTime()
        self._logged_step = trainer.global_step
        self._resumed = self._stopwatch.mark()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The wait for the first batch begins here."""
        assert self._stopwatch is not None
        self._resumed = self._stopwatch.mark()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A validation is no wait."""
        if trainer.state.fn == "fit" and self._stopwatch is not None:
            self._resumed = self._stopwatch.mark()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The batch is there."""
        assert self._stopwatch is not None
        self._begun = self._stopwatch.mark()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The step is done; at a logging step, say how the steps since the last were."""
        assert self._stopwatch is not None
        ended = self._stopwatch.mark()
        self._steps.append((self._resumed, self._begun, ended))
        self._resumed = ended
        self._images += len(batch["image"]) * trainer.world_size
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning sets it later
        if every and trainer.global_step % every == 0 and trainer.global_step != self._logged_step:
            self._logged_step = trainer.global_step
            found = self._collect()
            self._write(trainer, {**found.rates(), **_gpu_memory(trainer)})
            self._hint(trainer, found)
            self._resumed = self._stopwatch.mark()  # writing is no wait

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say how the epoch was, as far as it was part of this start."""
        self._collect()
        epoch, self._epoch = self._epoch, _Sum()
        rates = {f"epoch_{name}": value for name, value in epoch.rates().items()}
        memory = host_memory()
        self._write(trainer, {**rates, **({} if memory is None else {"host_memory_gb": memory / 1e9})})
        self._hint(trainer, epoch)

    def _collect(self) -> "_Sum":
        assert self._stopwatch is not None
        seconds = self._stopwatch.seconds
        found = _Sum(
            sum(seconds(resumed, begun) for resumed, begun, _ in self._steps),
            sum(seconds(begun, ended) for _, begun, ended in self._steps),
            self._images,
        )
        self._steps, self._images = [], 0
        self._epoch = self._epoch.plus(found)
        return found

    def _write(self, trainer: pl.Trainer, values: dict[str, float]) -> None:
        step = trainer.global_step - 1
        self._log.log_metrics({"epoch": trainer.current_epoch, **values}, step)
        for logger in trainer.loggers:
            if not isinstance(logger, MetricsCSV):
                logger.log_metrics({f"throughput/{name}": value for name, value in values.items()}, step)

    def _hint(self, trainer: pl.Trainer, found: "_Sum") -> None:
        # What comes first waits for workers to start and for kernels to be chosen.
        if self._warm and not self._said and found.share > STARVING:
            self._said = True
            loader: Any = trainer.train_dataloader
            rank_zero_warn(starving(found.share, _on_gpu(trainer), loader.num_workers))
        self._warm = True


class _Sum:
    """Seconds waited and worked, and images, of some steps."""

    def __init__(self, waited: float = 0.0, worked: float = 0.0, images: int = 0) -> None:
        self.waited, self.worked, self.images = waited, worked, images

    def plus(self, other: "_Sum") -> "_Sum":
        return _Sum(self.waited + other.waited, self.worked + other.worked, self.images + other.images)

    @property
    def share(self) -> float:
        total = self.waited + self.worked
        return self.waited / total if total else 0.0

    def rates(self) -> dict[str, float]:
        total = self.waited + self.worked
        return {"images_per_s": self.images / total, "data_wait_share": self.share} if total else {}


def starving(share: float, gpu: bool, workers: int) -> str:
    """What to say of a training that waits for its data.

    Args:
        share: of the time, 0..1.
        gpu: whether it trains on one.
        workers: processes that read, of each training process.

    >>> starving(0.43, True, 2)
    'The GPU waits for data 43 % of the time: raise --data.num_workers (now 2), see throughput.csv.'
    """
    if gpu:
        return (
            f"The GPU waits for data {100 * share:.0f} % of the time: raise --data.num_workers (now {workers}), see "
            "throughput.csv."
        )
    return (
        f"The training waits for data {100 * share:.0f} % of the time. If cores are idle, raise --data.num_workers "
        f"(now {workers}), see throughput.csv."
    )


def host_memory(processes: Path = Path("/proc")) -> int | None:
    """Bytes in memory of this process and of those that it has started, such as workers; None other than on Linux.

    What several of them share is counted once. Files that are mapped into memory do not count: the system drops them
    when it needs room.

    Args:
        processes: where Linux describes processes.
    """
    own = _resident(processes / "self")
    if own is None:
        return None
    children = [pid for path in processes.glob("self/task/*/children") for pid in _read(path).split()]
    return own + sum(_resident(processes / pid) or 0 for pid in children)


def _resident(process: Path) -> int | None:
    lines = [line.split() for line in _read(process / "smaps_rollup").splitlines()]
    kilobytes = {fields[0]: int(fields[1]) for fields in lines if fields[0] in ("Pss_Anon:", "Pss_Shmem:")}
    return 1024 * sum(kilobytes.values()) if kilobytes else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:  # the process has ended, or there are no such files here
        return ""


def _on_gpu(trainer: pl.Trainer) -> bool:
    return trainer.strategy.root_device.type == "cuda"


def _gpu_memory(trainer: pl.Trainer) -> dict[str, float]:
    device = trainer.strategy.root_device
    return {"gpu_memory_gb": torch.cuda.max_memory_allocated(device) / 1e9} if device.type == "cuda" else {}
