"""What keeps a bad condition from hanging a training or from spoiling what is there, and says it plainly."""

import contextlib
import errno
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from biocnn.checkpoints import AtomicCheckpointIO
from biocnn.errors import BiocnnError, CheckpointError, DataError
from biocnn.training.processes import gathered
from biocnn.training.runs import chosen_run

LOCK = "lock"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LOST_CONNECTION = ("closed by peer", "Connection reset", "Broken pipe", "NCCL", "Socket Timeout", "timed out")


class OtherProcessError(BiocnnError):
    """Another process of this training found the error and names it."""


class GuardedCheckpointIO(AtomicCheckpointIO):
    """Refuses to put weights that are not finite in the place of good ones, and says what a failed write means."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            CheckpointError: if it cannot be written, or a weight is not finite; what was there is still there.
        """
        broken = [name for name, value in checkpoint["state_dict"].items() if not bool(torch.isfinite(value).all())]
        if broken:
            raise CheckpointError(
                f"{path} is not written: {len(broken)} weight(s) are not finite after step "
                f"{checkpoint['global_step']}, the first is {broken[0]}. The checkpoint of before is as it was: lower "
                "model.lr, or look at the images for extreme values, and continue with --ckpt_path last."
            )
        try:
            super().save_checkpoint(checkpoint, path, storage_options)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError of its zip writer
            raise CheckpointError(
                f"{path} could not be written ({str(error).strip().splitlines()[0]}); {_free(Path(path))}. The "
                "checkpoint of before is as it was: make room and continue with --ckpt_path last."
            ) from error


def _free(path: Path) -> str:
    existing = next(folder for folder in path.absolute().parents if folder.exists())
    return f"{shutil.disk_usage(existing).free / 1e6:,.0f} MB are free on its disk; a quota may allow less"


@contextlib.contextmanager
def locked_run(folder: Path) -> Iterator[None]:
    """Hold a run folder, so that no other training writes into it; the file ``lock`` says who holds it.

    The file is made in one operation that succeeds for one process only, also on NFS (open with O_EXCL). A lock is
    stale, and is taken over, if its process is gone from this host, or if it was of this very SLURM job: that runs
    once at a time, so it has been requeued.

    Raises:
        DataError: if another process holds the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, mine = folder / LOCK, _this_process()
    try:
        _create(path, mine)
    except FileExistsError:
        holder = _holder(path)
        if not _is_stale(holder, mine):
            raise DataError(
                f"Another training writes into {folder}: process {holder.get('pid')} on {holder.get('host')}, job "
                f"{holder.get('job')}. Wait for it, or choose another --run. If it is gone for certain, delete {path}."
            ) from None
        path.unlink(missing_ok=True)
        try:
            _create(path, mine)
        except FileExistsError:
            raise DataError(f"Another training has just begun to write into {folder}. Choose another --run.") from None
    try:
        yield
    finally:
        if _holder(path) == mine:
            path.unlink(missing_ok=True)


def _create(path: Path, content: dict[str, Any]) -> None:
    with open(path, "x", encoding="utf-8") as handle:
        json.dump(content, handle)


def _this_process() -> dict[str, Any]:
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "born": born(pid), "job": os.environ.get("SLURM_JOB_ID")}


def _holder(path: Path) -> dict[str, Any]:
    try:
        holder: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # it has just been made, or has just gone
        return {}
    return holder


def _is_stale(holder: dict[str, Any], mine: dict[str, Any]) -> bool:
    if not holder:
        return False
    if holder["host"] == mine["host"]:
        return born(holder["pid"]) != holder["born"] or holder["pid"] == mine["pid"]
    return holder["job"] is not None and holder["job"] == mine["job"]


def born(pid: int) -> str | None:
    """When a process was started, in the system's own counting, to tell it from a later one of its number.

    None if it does not run; the same text for all that do where the system does not say (macOS).
    """
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state == "Z" else fields[18]
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "running"


def together(trainer: pl.Trainer, action: Callable[[], Any]) -> None:
    """Do something in every process before a training; all go on, or all stop.

    A process that stopped alone would leave the others waiting for it for half an hour. The processes that Lightning
    launches come after the first has looked, on the same machine: these act for themselves.

    Args:
        trainer: that has not begun.
        action: may raise, and returns plain values that have to be the same everywhere, such as what the data are.

    Raises:
        DataError: in the first process of several, naming all that failed or differ.
        OtherProcessError: then, in the others.
    """
    if trainer.world_size == 1 or launches(trainer) or chosen_run() is not None:
        action()
        return
    failure, result = None, ""
    try:
        result = json.dumps(action(), sort_keys=True, default=str)
    except Exception as error:
        failure = str(error) if isinstance(error, BiocnnError) else f"{type(error).__name__}: {error}"
    trainer.strategy.setup_environment()
    said = gathered([(socket.gethostname(), failure, result)])
    wrong = [f"process {rank} on {host}: {text}" for rank, (host, text, _) in enumerate(said) if text is not None]
    wrong = wrong or [
        f"process {rank} on {host} sees other data than process 0: {_difference(found, said[0][2])}"
        for rank, (host, _, found) in enumerate(said)
        if found != said[0][2]
    ]
    _end_all(trainer, wrong)


def end_if_any(trainer: pl.Trainer, said: str | None) -> None:
    """End all processes if one of them has an error to report; all have to call this.

    Args:
        trainer: of several processes, which are connected.
        said: the error of this process, None if there is none.

    Raises:
        DataError: in the first process, with all that was said.
        OtherProcessError: in the others.
    """
    _end_all(trainer, [f"process {rank}: {text}" for rank, text in enumerate(gathered([said])) if text])


def _end_all(trainer: pl.Trainer, wrong: list[str]) -> None:
    if not wrong:
        return
    if trainer.is_global_zero:
        raise DataError("\n  ".join(wrong))
    raise OtherProcessError("this process ends with process 0, which says why.")


def launches(trainer: pl.Trainer) -> bool:
    """Whether Lightning starts the other processes from this one, rather than torchrun or SLURM all of them."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    return environment is not None and not environment.creates_processes_externally


def _difference(found: str, expected: str) -> str:
    mine, first = json.loads(found), json.loads(expected)
    names = [name for name in mine if mine[name] != first.get(name)]
    return "; ".join(f"{name} is {mine[name]}, there {first.get(name)}" for name in names)


def explained(error: Exception) -> str | None:
    """What to tell a user about an error of the system that ends a training; None if it is of another kind."""
    text = str(error).strip()
    first = text.partition("\n")[0]
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        return f"{text}. The disk is full, or a quota or a limit of file sizes is reached: make room and go on."
    if "DataLoader worker" in text:
        return (
            f"A worker process that reads data was killed ({first}). Most often the memory ran out: "
            "lower --data.num_workers or --data.batch_size, or ask for more memory. Continue with --ckpt_path last."
        )
    if "Bus error" in text or "shared memory" in text:
        return f"The shared memory of this machine is full ({first}). Lower --data.num_workers."
    if torch.distributed.is_initialized() and any(part in text for part in _LOST_CONNECTION):
        return f"The connection to another process of this training is lost; that one says why. ({first})"
    return None


def end_launched(trainer: pl.Trainer, seconds: float = 30) -> None:
    """Wait for the processes that Lightning has launched, and kill those that do not end.

    After an error they would wait for this process, with their devices, and nobody would end them.
    """
    for process in getattr(trainer.strategy.launcher, "procs", []):
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
