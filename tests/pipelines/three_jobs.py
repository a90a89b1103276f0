"""Drawn data of the three jobs, and a training of each that takes a second."""

import json
from pathlib import Path

from tests.conftest import draw_patches, write_split
from tests.data.drawn_cells import write_cells
from tests.pipelines.commands import Command
from tests.pipelines.drawn_runs import QUIET, ROOT, unet, write_data

# What is evaluated cannot be shared out evenly by two.
ODD = {"train": 4, "valid": 3, "test": 5}
TILES = ["--data.tile_size", "32", "--data.tiles_per_epoch", "24", "--model.tile_size", "64"]
DUAL = {"class_path": "biocnn.networks.DualUseUNet", "init_args": {"in_channels": 3, "channels": [4, 8]}}
PATHS = {"class_path": "biocnn.tasks.path_training.PathTraining", "init_args": {"start": 0.4, "per_tile": 8}}


def dense(dropout: float = 0.0) -> str:
    """A network with batch norm for patches."""
    init_args = {"layers": [0, 1], "growth_rate": 4, "dropout": dropout}
    return json.dumps({"class_path": "biocnn.networks.SmallDenseNet", "init_args": init_args})


OWN: dict[str, list[str]] = {
    # Adam divides a gradient by its size, so that rounding moves weights with next to none by a share of the learning
    # rate: at the 2e-3 of the job by 3e-4 in six steps, of one process or two.
    "pcam": ["--model.network", dense(), "--model.lr", "2e-4"],
    "tubularity": [*TILES, "--model.network", unet(3, norm="instance"), "--model.test_time_augmentation", "false"],
    "counting": [*TILES, "--model.network", unet(1)],
    "paths": [*TILES, "--model.network", json.dumps(DUAL), "--model.paths", json.dumps(PATHS)],
}
"""What each kind of training is given besides the configuration of its job."""
JOB_OF = {kind: "tubularity" if kind == "paths" else kind for kind in OWN}
JOBS_DRAWN = ["pcam", "tubularity", "counting"]


def write_three(root: Path) -> None:
    """Draw the data of the three jobs into a folder each; those of training fill three batches of eight."""
    (root / "pcam").mkdir(parents=True)
    for seed, (split, count) in enumerate({"train": 24, "valid": 9, "test": 11}.items()):
        images, labels = draw_patches(count, seed)
        write_split(root / "pcam", split, images, labels, [f"{split}_slide_{row % 4}" for row in range(count)])
    write_data(root / "tubularity", counts=ODD)
    write_cells(root / "counting", ODD | {"valid": 11})


def data_of(job: str, root: Path) -> list[str]:
    """Options that name the data of a job."""
    manifest = "pcam" if job == "pcam" else str(root / job / "drawn.yaml")
    return ["--data.root", str(root / job), "--data.manifest", manifest]


def fit_command(kind: str, root: Path, runs: Path, batch_size: int, *more: str) -> Command:
    """A training of two epochs of three steps of a batch of 8 of all processes, clipped so that it matters."""
    job = JOB_OF[kind]
    return job, [
        *("fit", "--config", str(ROOT / "pipelines" / f"{job}.yaml"), *data_of(job, root), *QUIET, *OWN[kind]),
        *("--trainer.default_root_dir", str(runs), "--run", kind, "--data.batch_size", str(batch_size)),
        *("--trainer.max_epochs", "2", "--trainer.check_val_every_n_epoch", "1", "--trainer.log_every_n_steps", "1"),
        *("--trainer.gradient_clip_val", "0.1", "--data.num_workers", "0", *more),
    ]
