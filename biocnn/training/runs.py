"""The run folder: where a run lives, how the newest is found, and the record of what made it."""

import contextlib
import datetime
import json
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from biocnn.checkpoints import BEST, LAST, read_checkpoint
from biocnn.data.datamodule import DataModule
from biocnn.data.manifest import Manifest
from biocnn.errors import CheckpointError, DataError
from biocnn.files import file_digest, write_json
from biocnn.training.machine import code_state, git_state, hardware, scheduler

_RECORDED = (
    *("biocnn", "torch", "torchvision", "pytorch-lightning", "torchmetrics", "albumentations"),
    *("numpy", "scipy", "scikit-image", "h5py"),
)


_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK", "NODE_RANK", "GROUP_RANK")
_FOLDER = "BIOCNN_RUN_FOLDER"


def is_first_process() -> bool:
    """Whether this is the first process of a training, or its only one, by what launchers put into the environment.

    Known without a process group, which there is not before the training begins: torchrun and SLURM number the
    processes that they start, and so does Lightning for those that the first one starts.
    """
    return all(os.environ.get(name, "0") == "0" for name in _RANKS)


def tell_launched(folder: Path) -> None:
    """Let the processes that this one will launch find its run folder, by :func:`chosen_run`."""
    os.environ[_FOLDER] = str(folder)


def forget_launched() -> None:
    """End what :func:`tell_launched` began: a later training of this process, or of one it starts, is another run."""
    os.environ.pop(_FOLDER, None)


def chosen_run() -> Path | None:
    """The run folder of the process that launched this one.

    None in the first process, and in those that torchrun or SLURM started: these choose by themselves, and what
    they write is broadcast by the first.
    """
    given = os.environ.get(_FOLDER)
    return None if given is None or is_first_process() else Path(given)


def new_run(root: Path, job: str, name: str | None = None) -> Path:
    """Choose a folder ``root/job/name`` for a new run, without making it; the name is the time when none is given.

    Only the first process of a training looks whether the folder is taken: for the others it is, by the first.

    Raises:
        DataError: if there is a run of this name: nothing is overwritten.
    """
    jobs = root / job
    chosen = name or datetime.datetime.now().strftime("%Y-%m-%d_%H%M%S")
    folder, number = jobs / chosen, 1
    while is_first_process() and folder.exists() and any(folder.iterdir()):
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


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in _RECORDED:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return {**found, "torch": str(torch.__version__)}  # its own attribute names the CUDA build as well


def write_run_record(
    folder: Path,
    seed: int | None,
    data: Mapping[str, Any],
    network: str,
    parameters: int,
    configuration: Mapping[str, Any] | None = None,
    processes: int = 1,
) -> None:
    """Write ``run.json``: command, configuration, state of the code, versions, hardware, seed and data of this start.

    An earlier record, of the start that is being resumed, is kept in its ``resumed_from`` list.

    Args:
        folder: the run folder.
        seed: of the run.
        data: what the datamodule says of itself.
        network: name of its class.
        parameters: number of those that are trained.
        configuration: everything that was set, as plain values.
        processes: that train together.
    """
    path = folder / "run.json"
    record: dict[str, Any] = {
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "seed": seed,
        "data": dict(data),
        "network": network,
        "parameters": parameters,
        "configuration": dict(configuration or {}),
        "git": code_state(),
        "git_folder": git_state(Path.cwd()),
        "versions": versions(),
        "hardware": hardware(),
        "processes": processes,
        "slurm": scheduler(),
    }
    if path.is_file():
        earlier = json.loads(path.read_text(encoding="utf-8"))
        record["resumed_from"] = [*earlier.pop("resumed_from", []), earlier]
    write_json(path, record)


_RESULTS = ("metrics.json", "predictions.csv", "figures", "maps", "masks")


def make_room(folder: Path, stamp: Mapping[str, Any], previous: Mapping[str, Any] | None) -> None:
    """Move results of other data or of another checkpoint aside, into ``previous/<time>``; equal ones are replaced.

    Args:
        folder: the run folder.
        stamp: what the new results come from.
        previous: content of the ``metrics.json`` that is there, or None.
    """
    there = [name for name in _RESULTS if (folder / name).exists()]
    if not there or (previous is not None and all(previous.get(key) == value for key, value in stamp.items())):
        return
    aside = folder / "previous" / datetime.datetime.now().strftime("%Y-%m-%d_%H%M%S_%f")
    aside.mkdir(parents=True)
    for name in there:
        shutil.move(folder / name, aside / name)
    print(f"What was there, of other data or another checkpoint, was moved to {aside}.")


def result_stamp(data: Mapping[str, Any], checkpoint: Path) -> dict[str, Any]:
    """What results come from: manifest and split hash of the data, digest of the checkpoint."""
    return {
        "manifest": data["manifest"],
        "split_hash": data["split_hash"],
        "checkpoint": file_digest(checkpoint)[:16],
    }


def prediction_path(folder: Path, images: str, suffix: str) -> Path:
    """A new path ``predictions_<images>`` in a folder: named after what was predicted, numbered if that is there.

    Args:
        folder: of the run.
        images: what ``--data.images`` was, such as ``"slideA/*.png"`` or ``"b/x.h5"``.
        suffix: ``".csv"`` for a table, ``""`` for a folder.
    """
    parts = [part for part in Path(images).with_suffix("").parts[-2:] if not set("*?[/") & set(part)]
    name = "_".join(["predictions", *parts])
    target, number = folder / f"{name}{suffix}", 1
    while target.exists():
        number += 1
        target = folder / f"{name}_{number}{suffix}"
    return target


def read_json(path: Path) -> dict[str, Any] | None:
    """Content of a JSON file; None when it is missing or not readable."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
    return content


def open_validation(datamodule: DataModule, trained_on: Mapping[str, Any], checkpoint: Path) -> None:
    """Open the validation split, which has to be the one of the training.

    Args:
        datamodule: not yet set up for it.
        trained_on: the data description of the checkpoint.
        checkpoint: for the message.

    Raises:
        DataError: if it is another one.
    """
    datamodule.prepare_data()
    datamodule.setup("validate")
    if datamodule.describe()["valid_hash"] != trained_on.get("valid_hash"):
        raise DataError(
            f"The validation split is needed to complete {checkpoint}, and the one at hand is not the one that it was "
            "chosen on. Give the --data.root, --data.manifest, --data.folds and --data.fold of its training."
        )


def check_kind(manifest: Manifest, trained_on: Mapping[str, Any], checkpoint: Path) -> None:
    """Check that images have the channels and the dtype of those of a training.

    Args:
        manifest: of the images.
        trained_on: the data description of the checkpoint.
        checkpoint: for the message.

    Raises:
        DataError: if they have others.
    """
    names, expected = list(manifest.channels), list(trained_on.get("channels", manifest.channels))
    dtype = trained_on.get("dtype", manifest.image.dtype)
    if len(names) != len(expected) or manifest.image.dtype != dtype:
        raise DataError(
            f"{checkpoint} was trained on images with {len(expected)} channel(s) ({', '.join(expected)}) of {dtype}; "
            f"those of {manifest.name!r} have {len(names)} ({', '.join(names)}) of {manifest.image.dtype}. Give the "
            "--data.manifest of images like those of the training."
        )
