"""A killed tubularity training, started again with the same command, ends as if nothing had happened."""

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from biocnn.checkpoints import read_checkpoint
from tests.pipelines.drawn_runs import data_arguments, fit_arguments, run, run_script, unet, write_data

RUN = Path("tubularity") / "a"


def arguments(manifest: str, runs: Path, workers: int) -> list[str]:
    more = ["--checkpoint_every_n_steps", "3", "--data.num_workers", str(workers), "--model.refinement_steps", "2"]
    return fit_arguments(manifest, runs, *more, network=unet(4, dropout=0.3))


def same(first: Any, second: Any) -> bool:
    """Whether two values of a checkpoint are equal bit for bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(same(a, b) for a, b in zip(first, second, strict=True))
    return bool(first == second)


def assert_equal_runs(expected: Path, found: Path) -> None:
    for name in ("last", "best"):
        one, two = (read_checkpoint(run / f"checkpoints/{name}.ckpt") for run in (expected, found))
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch", "biocnn"):
            assert same(one[part], two[part]), (name, part)
    assert (expected / "metrics.csv").read_text() == (found / "metrics.csv").read_text()


def assert_a_test_completes(best: Path, manifest: str, folder: Path) -> None:
    """A copy of the checkpoint of a killed run gets its threshold when it is tested, once."""
    copied = shutil.copy(best, folder / "copied.ckpt")
    assert read_checkpoint(copied)["biocnn"]["threshold_views"] == 1  # of an epoch
    said = run("test", "--ckpt_path", str(copied), *data_arguments(manifest))
    assert "Chosen on validation" in said
    stored = read_checkpoint(copied)["biocnn"]
    assert (stored["threshold_views"], stored["threshold_steps"]) == (8, 2)
    said = run("test", "--ckpt_path", str(copied), *data_arguments(manifest))
    assert "Chosen on validation" not in said
    assert not (folder / "copied_results" / "previous").exists()


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, manifest: str) -> Path:
    runs = tmp_path_factory.mktemp("undisturbed")
    run(*arguments(manifest, runs, 0))
    return runs / RUN


# 4 steps and 2 validation images an epoch, 2 epochs; last.ckpt after every third step and every epoch.
@pytest.mark.parametrize(
    ("event", "number", "workers"),
    [
        ("step", 7, 0),
        pytest.param("step", 2, 0, marks=pytest.mark.slow),
        pytest.param("validation", 3, 2, marks=pytest.mark.slow),
        pytest.param("write", 3, 0, marks=pytest.mark.slow),
    ],
)
def test_killed_and_continued_equals_undisturbed(
    tmp_path: Path, manifest: str, undisturbed: Path, event: str, number: int, workers: int
) -> None:
    killer = ["--trainer.callbacks", "tests.pipelines.killer.Killer"]
    killer += [f"--trainer.callbacks.init_args.event={event}", f"--trainer.callbacks.init_args.number={number}"]
    done = run_script(*arguments(manifest, tmp_path, workers), *killer)
    assert done.returncode == -signal.SIGKILL, done.stderr
    checkpoints = tmp_path / RUN / "checkpoints"
    for path in checkpoints.glob("[!.]*.ckpt"):
        read_checkpoint(path)  # whatever has a final name is whole
    if (checkpoints / "best.ckpt").is_file():
        assert_a_test_completes(checkpoints / "best.ckpt", manifest, tmp_path)
    said = run(*arguments(manifest, tmp_path, workers), "--ckpt_path", "last")
    assert ("Continuing" in said) == (number > 2)  # before the third step nothing was there to continue
    assert_equal_runs(undisturbed, tmp_path / RUN)
    assert not list(checkpoints.glob(".*")), "temporary files of the killed process are removed"
