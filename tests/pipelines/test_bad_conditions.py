"""What ends a training ends it in all of its processes, says why once, and leaves the last whole checkpoint."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from biocnn.checkpoints import read_checkpoint
from tests.data.drawn import save
from tests.pipelines.commands import Command, run_in_processes
from tests.pipelines.drawn_runs import fit_arguments, picture, run, write_data
from tests.training.test_guards import write_lock

OFTEN = ["--checkpoint_every_n_steps", "1"]
RUN = Path("tubularity") / "a"


class Spoiler(Callback):
    """Make the images of one process NaN in step 2, as a camera or a rounding may."""

    def __init__(self, rank: int = 0) -> None:
        self.rank = rank

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, *args: Any) -> None:
        if trainer.global_rank == self.rank and trainer.global_step == 2:
            batch["image"].fill_(float("nan"))


def spoiled(rank: int) -> list[str]:
    name = "--trainer.callbacks"
    return [*OFTEN, name, f"{__name__}.Spoiler", f"{name}.init_args.rank={rank}"]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_data(tmp_path_factory.mktemp("data"))


def assert_last_is_of_step_2(folder: Path) -> None:
    last = read_checkpoint(folder / "checkpoints/last.ckpt")
    assert last["global_step"] == 2
    assert all(bool(torch.isfinite(value).all()) for value in last["state_dict"].values())
    assert not (folder / "lock").exists()


def test_loss_that_is_not_finite(tmp_path: Path, manifest: str) -> None:
    said = run(*fit_arguments(manifest, tmp_path, *spoiled(0)), code=2)
    assert "The loss is nan in step 2 of epoch 0, batch of train/images/" in said
    assert_last_is_of_step_2(tmp_path / RUN)


def test_folder_of_a_live_run_is_left_alone(tmp_path: Path, manifest: str) -> None:
    run(*fit_arguments(manifest, tmp_path, "--trainer.max_epochs", "1"))
    before = (tmp_path / RUN / "metrics.csv").read_bytes()
    write_lock(tmp_path / RUN, host="another", job=None)
    said = run(*fit_arguments(manifest, tmp_path), "--ckpt_path", "last", code=2)
    assert "Another training writes into" in said
    assert (tmp_path / RUN / "metrics.csv").read_bytes() == before


def test_too_few_items_for_a_batch_leave_no_folder(tmp_path: Path, manifest: str) -> None:
    said = run(*fit_arguments(manifest, tmp_path, "--data.batch_size", "64"), code=2)
    assert "do not fill one batch" in said
    assert not (tmp_path / RUN).exists()


def test_two_processes_end_together(tmp_path: Path, manifest: str) -> None:
    data, name = Path(manifest).parent, Path(manifest).name
    shutil.copytree(data, tmp_path / "missing/0")
    for rank in ("0", "1"):
        shutil.copytree(data, tmp_path / "differing" / rank)
    for part, pixels in zip(("images", "masks", "fields"), (*picture(9), np.ones((96, 80), bool)), strict=True):
        save(tmp_path / f"differing/1/train/{part}/9.png", pixels.astype(np.uint8) * (1 if part == "images" else 255))

    def command(folder: str, *more: str) -> Command:
        return "tubularity", [*fit_arguments(manifest, tmp_path / "runs" / folder), *more]

    commands = [
        command("missing", "--data.root", str(tmp_path / "missing/RANK")),
        command(
            "differing",
            *(f"--data.{key}={tmp_path}/differing/RANK{end}" for key, end in (("root", ""), ("manifest", f"/{name}"))),
        ),
        command("spoiled", *spoiled(1)),
    ]
    said = run_in_processes(commands, tmp_path, codes=[2, 2, 2])
    assert said.count("error: process 1 on ") == 2
    assert str(tmp_path / "missing/1") in said
    assert "sees other data than process 0" in said
    assert said.count("this process ends with process 0, which says why") == 3
    assert said.count("error: process 1: ") == said.count("The loss is nan in step 2") == 1
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["spoiled"]
    assert_last_is_of_step_2(tmp_path / "runs/spoiled" / RUN)
