"""What ends a training ends it in all of its processes, says why once, and leaves the last whole checkpoint."""

import shutil
from pathlib import Path

import pytest
import torch

from biocnn.checkpoints import read_checkpoint
from tests.data.drawn import save
from tests.pipelines.drawn_runs import fit_arguments, picture, run, write_data
from tests.pipelines.test_preemption import RUN, TWO, run_in_two
from tests.training.test_guards import write_lock

# The second or third step has a loss that is not finite.
DIVERGING = ["--model.lr", "1e30", "--model.warmup", "0", "--checkpoint_every_n_steps", "1"]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_data(tmp_path_factory.mktemp("data"))


def assert_last_is_finite(folder: Path) -> None:
    last = read_checkpoint(folder / "checkpoints/last.ckpt")
    assert all(bool(torch.isfinite(value).all()) for value in last["state_dict"].values())


def test_divergence_leaves_a_finite_checkpoint(tmp_path: Path, manifest: str) -> None:
    said = run(*fit_arguments(manifest, tmp_path, *DIVERGING), code=2)
    assert "The loss is nan in step" in said or "not finite after step" in said
    assert_last_is_finite(tmp_path / RUN)
    assert not (tmp_path / RUN / "lock").exists()


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
    root = Path(manifest).parent
    other = tmp_path / "other"
    shutil.copytree(root, other)
    save(other / "train/images/9.png", picture(9)[0])
    save(other / "train/masks/9.png", picture(9)[1].astype("uint8") * 255)
    save(other / "train/fields/9.png", picture(9)[1].astype("uint8") * 0 + 255)

    def command(run_name: str, *more: str) -> tuple[int, list[str]]:
        return 2, [*fit_arguments(manifest, tmp_path / run_name), *TWO, *more]

    diverging = command("diverging", *DIVERGING)
    first = [command("missing"), command("differing"), diverging]
    second = [
        command("missing", "--data.root", str(tmp_path / "nowhere")),
        command("differing", "--data.root", str(other), "--data.manifest", str(other / Path(manifest).name)),
        diverging,
    ]
    said = run_in_two([first, second], tmp_path)
    assert said.count("error: process 1 on ") == 2
    assert "nowhere" in said
    assert "sees other data than process 0" in said
    assert said.count("this process ends with process 0, which says why") == 3
    assert said.count("error: process 0: The loss is nan in step") == 1
    assert not (tmp_path / "missing").exists()
    assert not (tmp_path / "differing").exists()
    assert_last_is_finite(tmp_path / "diverging" / RUN)
