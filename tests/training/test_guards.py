"""Bad conditions: what is there stays, and the message says what to do."""

import errno
import json
import os
import resource
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from biocnn.checkpoints import read_checkpoint
from biocnn.errors import CheckpointError, DataError
from biocnn.training.guards import LOCK, GuardedCheckpointIO, born, explained, locked_run


def checkpoint(value: float, size: int = 4) -> dict[str, Any]:
    return {"state_dict": {"network.weight": torch.full((size,), value)}, "global_step": 7}


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 50 kB: the write fails in the system, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_files")
def test_failed_write_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    GuardedCheckpointIO().save_checkpoint(checkpoint(1), path)
    with pytest.raises(CheckpointError, match=r"could not be written .* make room and continue with --ckpt_path last"):
        GuardedCheckpointIO().save_checkpoint(checkpoint(2, size=100_000), path)
    assert [left.name for left in tmp_path.iterdir()] == ["last.ckpt"]
    assert read_checkpoint(path)["state_dict"]["network.weight"].tolist() == [1] * 4


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_broken_weights_replace_nothing(tmp_path: Path, bad: float) -> None:
    path = tmp_path / "last.ckpt"
    GuardedCheckpointIO().save_checkpoint(checkpoint(1), path)
    with pytest.raises(CheckpointError, match=r"not finite after step 7, the first is network\.weight"):
        GuardedCheckpointIO().save_checkpoint(checkpoint(bad), path)
    assert read_checkpoint(path)["state_dict"]["network.weight"].tolist() == [1] * 4


def write_lock(folder: Path, **changed: Any) -> None:
    """The lock of a process like this one, but for what is changed."""
    with locked_run(folder):
        content = json.loads((folder / LOCK).read_text())
    (folder / LOCK).write_text(json.dumps(content | changed))


def test_lock_is_held_and_given_back(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with locked_run(folder):
        held = json.loads((folder / LOCK).read_text())
        assert (held["host"], held["pid"]) == (socket.gethostname(), os.getpid())
    assert not (folder / LOCK).exists()


def test_lock_of_a_live_process_is_respected_and_of_a_dead_one_not(tmp_path: Path) -> None:
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    write_lock(tmp_path, pid=process.pid, born=born(process.pid))
    with (
        pytest.raises(DataError, match=rf"process {process.pid} on .* choose another --run"),
        locked_run(tmp_path),
    ):
        pass
    process.kill()
    process.communicate()
    with locked_run(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


def test_number_of_a_process_used_again_is_no_holder(tmp_path: Path) -> None:
    write_lock(tmp_path, pid=os.getppid(), born="1")
    with locked_run(tmp_path):
        pass


@pytest.mark.parametrize(("job", "stale"), [("17", True), ("18", False), (None, False)])
def test_lock_of_another_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str | None, stale: bool) -> None:
    write_lock(tmp_path, host="another", job=job)
    monkeypatch.setenv("SLURM_JOB_ID", "17")  # a job runs once at a time: its earlier start is over
    if stale:
        with locked_run(tmp_path):
            pass
    else:
        with pytest.raises(DataError, match=rf"on another, job {job}.*delete .*lock"), locked_run(tmp_path):
            pass
        assert (tmp_path / LOCK).exists()


def test_errors_of_the_system_are_explained() -> None:
    assert "make room" in str(explained(OSError(errno.ENOSPC, "No space left on device")))
    killed = str(explained(RuntimeError("DataLoader worker (pid 9) is killed by signal: Killed. ")))
    assert "the memory ran out: lower --data.num_workers" in killed
    assert explained(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    assert explained(OSError(errno.EACCES, "Permission denied")) is None
