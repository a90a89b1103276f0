"""The run folder: where a run lives, how the newest is found, and the record of what made it."""

import contextlib
import datetime
import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from biocnn.checkpoints import BEST, LAST, read_checkpoint
from biocnn.errors import CheckpointError, DataError
from biocnn.files import write_json

_RECORDED = ("biocnn", "torch", "torchvision", "pytorch-lightning", "torchmetrics", "albumentations", "numpy", "h5py")


def new_run(root: Path, job: str, name: str | None = None) -> Path:
    """Choose a folder ``root/job/name`` for a new run, without making it; the name is the time when none is given.

    Raises:
        DataError: if there is a run of this name: nothing is overwritten.
    """
    jobs = root / job
    chosen = name or datetime.datetime.now().strftime("%Y-%m-%d_%H%M%S")
    folder, number = jobs / chosen, 1
    while folder.exists() and any(folder.iterdir()):
        if name is not None:
            raise DataError(
                f"{folder} holds a run already. Choose another --run, or continue it with --ckpt_path last."
            )
        number += 1
        folder = jobs / f"{chosen}_{number}"
    return folder


def find_last(root: Path, job: str, name: str | None = None) -> tuple[Path | None, Path | None]:
    """The run to continue and its newest whole checkpoint.

    Args:
        root: folder of all runs.
        job: such as ``"pcam"``.
        name: of the run; the one trained last when None.

    Returns:
        (run folder, checkpoint): ``last.ckpt``, or ``best.ckpt`` if that is torn. The checkpoint is
        None when the run was killed before its first one, and both are
        None when there is no run.

    A checkpoint that cannot be read is named on standard error and passed over.
    """
    jobs = root / job
    folders = [jobs / name] if name is not None else sorted(jobs.glob("*/"), key=_last_trained, reverse=True)
    for folder in folders:
        if not _last_trained(folder):
            continue
        for path in (folder / "checkpoints" / LAST, folder / "checkpoints" / BEST):
            if not path.is_file():
                continue
            try:
                read_checkpoint(path)
            except CheckpointError as error:
                print(f"Passed over: {error}", file=sys.stderr)
                continue
            return folder, path
        return folder, None
    return None, None


def _last_trained(folder: Path) -> int:
    # What training writes; a test of an old run must not make it the newest.
    written = [*(folder / "checkpoints").glob("*.ckpt"), *folder.glob("metrics.csv"), *folder.glob("config.yaml")]
    return max([path.stat().st_mtime_ns for path in written], default=0)


def run_of(checkpoint: Path) -> Path:
    """Where results of a checkpoint go: its run folder; ``x_results`` beside an ``x.ckpt`` that lies elsewhere."""
    run = checkpoint.parent.parent
    if checkpoint.parent.name == "checkpoints" and (run / "config.yaml").is_file():
        return run
    return checkpoint.parent / f"{checkpoint.stem}_results"


def _git_state(folder: Path) -> str | None:
    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in _RECORDED:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return {**found, "torch": str(torch.__version__)}  # its own attribute names the CUDA build as well


def write_run_record(folder: Path, seed: int | None, data: Mapping[str, Any], network: str, parameters: int) -> None:
    """Write ``run.json``: command, versions, hardware, seed and data of this start.

    An earlier record, of the start that is being resumed, is kept in its ``resumed_from`` list.
    """
    path = folder / "run.json"
    record: dict[str, Any] = {
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "seed": seed,
        "data": dict(data),
        "network": network,
        "parameters": parameters,
        "git": _git_state(Path.cwd()),
        "versions": versions(),
        "hardware": {
            "machine": platform.machine(),
            "system": f"{platform.system()} {platform.release()}",
            "cpu_threads": torch.get_num_threads(),
            "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        },
    }
    if path.is_file():
        earlier = json.loads(path.read_text(encoding="utf-8"))
        record["resumed_from"] = [*earlier.pop("resumed_from", []), earlier]
    write_json(path, record)
