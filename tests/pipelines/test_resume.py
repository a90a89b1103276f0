"""A killed run, started again with the same command, ends as if nothing had happened, in all three jobs."""

import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from biocnn.checkpoints import read_checkpoint
from tests.pipelines.commands import Command, begin, end, kill, run_in_processes
from tests.pipelines.drawn_runs import unet
from tests.pipelines.three_jobs import JOBS_DRAWN, dense, fit_command, write_three

# Dropout, so that the random states matter.
DROPPING = {
    "pcam": dense(dropout=0.5),
    "tubularity": unet(3, norm="instance", dropout=0.3),
    "counting": unet(1, dropout=0.3),
}


def command(job: str, data: Path, runs: Path, processes: int, workers: int, *more: str) -> Command:
    """6 steps, a validation after every third; last.ckpt after every second step and every epoch."""
    changed = ["--model.network", DROPPING[job], "--data.num_workers", str(workers), "--checkpoint_every_n_steps", "2"]
    return fit_command(job, data, runs, 8 // processes, *changed, *more)


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
    """Weights and their average, optimiser, schedule, random states, position in the data, what was learned, curves."""
    one, two = (read_checkpoint(run / "checkpoints" / "last.ckpt") for run in (expected, found))
    positions = [name for name in one if name.endswith("DataModule")]
    assert positions
    parts = ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "global_step", "epoch", "biocnn")
    for part in (*parts, *positions):
        assert same(one[part], two[part]), part
    assert same(one["callbacks"]["RandomStates"], two["callbacks"]["RandomStates"])
    best = [read_checkpoint(run / "checkpoints" / "best.ckpt") for run in (expected, found)]
    assert all(same(best[0][part], best[1][part]) for part in ("state_dict", "biocnn", "global_step"))
    assert (expected / "metrics.csv").read_text() == (found / "metrics.csv").read_text()


def assert_whole(checkpoints: Path) -> None:
    """Whatever has its final name can be read."""
    for path in checkpoints.glob("[!.]*.ckpt"):
        read_checkpoint(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_three(folder)
    return folder


@pytest.mark.parametrize(
    ("job", "event", "number", "workers", "processes"),
    # In the writing of best.ckpt, after the validation; and right after the checkpoint of a step.
    [("pcam", "step", 5, 0, 1), ("tubularity", "write", 3, 2, 1), ("counting", "checkpoint", 1, 0, 2)],
)
def test_killed_and_continued_equals_undisturbed(
    tmp_path: Path, data: Path, job: str, event: str, number: int, workers: int, processes: int
) -> None:
    killer = ["--trainer.callbacks", "tests.pipelines.killer.Killer"]
    killer += [f"--trainer.callbacks.init_args.{name}" for name in (f"event={event}", f"number={number}")]
    whole, killed = tmp_path / "whole" / job / job, tmp_path / "killed" / job / job
    said = tmp_path / "said.txt"
    both = [
        command(job, data, tmp_path / "whole", processes, workers),
        command(job, data, tmp_path / "killed", processes, workers, *killer),
    ]
    codes = end(begin(both, said, processes))
    assert codes[0] == -signal.SIGKILL, said.read_text()
    assert all(code not in (0, None) for code in codes), "the others do not wait for a process that is gone"
    assert_whole(killed / "checkpoints")
    if job == "pcam":  # as a disk leaves it that has lost what was written last
        last = killed / "checkpoints" / "last.ckpt"
        last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    again = command(job, data, tmp_path / "killed", processes, workers, "--ckpt_path", "last")
    run_in_processes([again], tmp_path, processes)
    assert f"Continuing {killed / 'checkpoints'}" in said.read_text()
    assert ("Passed over: " in said.read_text()) == (job == "pcam")
    assert_equal_runs(whole, killed)
    assert not list((killed / "checkpoints").glob(".*.ckpt")), "temporary files of the killed process are removed"


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "kills"), [(1, 12), (2, 8)])
@pytest.mark.parametrize("job", JOBS_DRAWN)
def test_twenty_kills_at_random_moments(tmp_path: Path, data: Path, job: str, processes: int, kills: int) -> None:
    longer = ["--trainer.max_epochs", "5", "--ckpt_path", "last"]
    whole, killed = tmp_path / "whole" / job / job, tmp_path / "killed" / job / job
    run_in_processes([], tmp_path)  # imports all
    started = time.monotonic()
    run_in_processes([command(job, data, tmp_path / "whole", processes, 0, *longer)], tmp_path, processes)
    seconds = time.monotonic() - started
    chance = random.Random(f"{job} {processes}")
    done, said = 0, tmp_path / "killed.txt"
    while done < kills:
        again = command(job, data, tmp_path / "killed", processes, done % 2 * 2, *longer)
        begun, running = time.monotonic(), begin([again], said, processes)
        chosen = chance.choice(running)
        chosen.join(chance.uniform(0.3, 1.0) * seconds)
        if chosen.exitcode is None:
            # One of them, after which the others end or are ended by what has started them; or all of them.
            for process in [chosen] if chance.random() < 0.5 else running:
                kill(process)
            end(running, 5)
            done += 1
            assert_whole(killed / "checkpoints")
        else:
            assert end(running) == [0] * processes, said.read_text()
            assert_equal_runs(whole, killed)
            shutil.rmtree(tmp_path / "killed")
            seconds = min(seconds, time.monotonic() - begun)  # a machine with more to do when it was measured
    run_in_processes([command(job, data, tmp_path / "killed", processes, 0, *longer)], tmp_path, processes)
    assert_equal_runs(whole, killed)
