"""What a run is made with: the state of the code, the machine, and the job of the scheduler."""

import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import biocnn

_SCHEDULER = {
    "job": "SLURM_JOB_ID",
    "array_job": "SLURM_ARRAY_JOB_ID",
    "array_task": "SLURM_ARRAY_TASK_ID",
    "nodes": "SLURM_JOB_NODELIST",
    "restarts": "SLURM_RESTART_COUNT",
}


def _answer(command: Sequence[str], folder: Path | None = None) -> str | None:
    """The first line that a program prints, None if it fails or is not there."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return (done.stdout.strip().splitlines() or [""])[0]


def git_state(folder: Path) -> str | None:
    """Commit of the checkout that a folder is in, with ``-dirty`` if files differ from it; None if it is in none."""
    return _answer(["git", "describe", "--always", "--dirty", "--abbrev=12"], folder)


def code_state() -> str | None:
    """Commit of biocnn; None if it is installed from a wheel, whose version says as much."""
    checkout = Path(biocnn.__file__).parents[1]
    return git_state(checkout) if (checkout / ".git").exists() else None


def hardware() -> dict[str, Any]:
    """The machine that this process runs on: its name, processors, and GPUs with the versions of their software."""
    gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    found: dict[str, Any] = {
        "host": platform.node(),
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "cpu_threads": torch.get_num_threads(),
        "gpus": [gpu.name for gpu in gpus],
    }
    if gpus:
        found["gpu_memory_gb"] = [round(gpu.total_memory / 1e9, 1) for gpu in gpus]
        found["cuda"], found["cudnn"] = torch.version.cuda, torch.backends.cudnn.version()
        found["driver"] = _answer(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
    return found


def scheduler() -> dict[str, str] | None:
    """Numbers of the SLURM job, by what SLURM puts into the environment; None outside of one."""
    found = {name: os.environ[variable] for name, variable in _SCHEDULER.items() if variable in os.environ}
    return found or None
