"""A killed run, started again with the same command, ends as if nothing had happened."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from biocnn.checkpoints import read_checkpoint

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
LENET = (
    '{"class_path": "biocnn.networks.SmallDenseNet", "init_args": {"layers": [0, 1], "growth_rate": 4, "dropout": 0.5}}'
)


def command(data: Path, runs: Path, workers: int, *more: str) -> list[str]:
    return [
        *(
            sys.executable,
            str(ROOT / "pipelines" / "pcam.py"),
            "fit",
            "--config",
            str(ROOT / "pipelines" / "pcam.yaml"),
        ),
        *("--data.root", str(data), "--trainer.default_root_dir", str(runs), "--run", "r"),
        *("--trainer.max_epochs", "3", "--data.batch_size", "8", "--data.num_workers", str(workers)),
        *("--model.network", LENET, "--trainer.enable_progress_bar", "false", "--trainer.log_every_n_steps", "1"),
        *("--checkpoint_every_n_steps", "3", "--trainer.accelerator", "cpu", "--trainer.enable_model_summary", "false"),
        *more,
    ]


def fit(arguments: Sequence[str]) -> int:
    return subprocess.run(arguments, env=ENVIRONMENT, capture_output=True, timeout=300, check=False).returncode


def same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(same(a, b) for a, b in zip(first, second, strict=True))
    return bool(first == second)


def assert_equal_runs(expected: Path, found: Path) -> None:
    one, two = (read_checkpoint(run / "pcam" / "r" / "checkpoints" / "last.ckpt") for run in (expected, found))
    for part in ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
        assert same(one[part], two[part]), part
    assert same(one["callbacks"]["RandomStates"], two["callbacks"]["RandomStates"])
    best = [read_checkpoint(run / "pcam" / "r" / "checkpoints" / "best.ckpt") for run in (expected, found)]
    assert same(best[0]["state_dict"], best[1]["state_dict"])
    assert best[0]["biocnn"]["calibration"] == best[1]["biocnn"]["calibration"]
    curves = [(run / "pcam" / "r" / "metrics.csv").read_text() for run in (expected, found)]
    assert curves[0] == curves[1]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, pcam_folder: Path) -> Path:
    runs = tmp_path_factory.mktemp("undisturbed")
    assert fit(command(pcam_folder, runs, 0)) == 0
    return runs


# 8 steps an epoch, one validation batch after each, 3 epochs; last.ckpt after every third step and every epoch.
@pytest.mark.parametrize(
    ("event", "number", "workers"),
    [("step", 13, 0), ("validation", 2, 2), ("write", 6, 0)],
)
def test_killed_and_continued_equals_undisturbed(
    tmp_path: Path, pcam_folder: Path, undisturbed: Path, event: str, number: int, workers: int
) -> None:
    killer = ["--trainer.callbacks", "tests.pipelines.killer.Killer"]
    killer += [f"--trainer.callbacks.init_args.event={event}", f"--trainer.callbacks.init_args.number={number}"]
    assert fit(command(pcam_folder, tmp_path, workers, *killer)) == -signal.SIGKILL
    checkpoints = tmp_path / "pcam" / "r" / "checkpoints"
    for path in checkpoints.glob("[!.]*.ckpt"):
        read_checkpoint(path)  # whatever has a final name is whole
    assert fit(command(pcam_folder, tmp_path, workers, "--ckpt_path", "last")) == 0
    assert_equal_runs(undisturbed, tmp_path)
    assert not list(checkpoints.glob(".*")), "temporary files of the killed process are removed"


@pytest.mark.slow
def test_twenty_kills_at_random_moments(tmp_path: Path, pcam_folder: Path, undisturbed: Path) -> None:
    rng = random.Random(0)
    kills = 0
    while kills < 20:
        process = subprocess.Popen(
            command(pcam_folder, tmp_path, kills % 2 * 2, "--ckpt_path", "last"), env=ENVIRONMENT,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            process.wait(timeout=rng.uniform(4, 14))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
        else:
            assert process.returncode == 0
            assert_equal_runs(undisturbed, tmp_path)
            for path in sorted((tmp_path / "pcam").rglob("*"), reverse=True):
                path.unlink() if path.is_file() else path.rmdir()
    assert fit(command(pcam_folder, tmp_path, 0, "--ckpt_path", "last")) == 0
    assert_equal_runs(undisturbed, tmp_path)
