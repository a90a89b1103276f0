import json
import platform
import subprocess
from pathlib import Path

import pytest
import torch

from biocnn.training.machine import git_state, hardware, scheduler
from biocnn.training.runs import write_run_record


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_state_of_a_checkout_is_its_commit_and_whether_it_was_changed(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None
    git(tmp_path, "init")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-m", "a")
    commit = git(tmp_path, "rev-parse", "HEAD")[:12]
    assert git_state(tmp_path) == commit
    (tmp_path / "a").write_text("2")
    assert git_state(tmp_path) == f"{commit}-dirty"


def test_a_record_names_configuration_machine_and_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_JOB_NODELIST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    assert scheduler() is None
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    write_run_record(tmp_path, 0, {}, "LeNet5", 1, {"model": {"lr": 0.5}}, processes=4)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["configuration"] == {"model": {"lr": 0.5}}
    assert record["processes"] == 4
    assert record["slurm"] == {"job": "17", "restarts": "2"}
    assert record["hardware"]["host"] == platform.node()
    assert len(record["hardware"]["gpus"]) == torch.cuda.device_count()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_named_with_its_software() -> None:
    found = hardware()
    assert found["cuda"] == torch.version.cuda
    assert found["driver"]
    assert len(found["gpu_memory_gb"]) == len(found["gpus"])
