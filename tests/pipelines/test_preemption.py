"""A training that is asked to stop leaves with the code for "requeue", and goes on as if it had not."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from biocnn.checkpoints import read_checkpoint
from biocnn.training.preemption import REQUEUE
from tests.pipelines.commands import Command, run_in_processes
from tests.pipelines.drawn_runs import ENVIRONMENT, ROOT, SCRIPT, fit_arguments, run, unet, write_data
from tests.pipelines.signaller import options
from tests.pipelines.test_resume import assert_equal_runs, same

RUN = Path("tubularity") / "a"
TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]

# Where each start of a training of 2 epochs of 4 steps, with 2 validation images each, is stopped; and at which step.
STOPS: list[tuple[str, int, str, int]] = [
    ("setup", 1, "SIGTERM", 0),
    ("step", 1, "SIGUSR1", 1),
    ("step", 2, "SIGTERM+SIGUSR1+SIGTERM", 3),  # in the middle of an epoch; the first signal counts
    ("step", 1, "SIGTERM", 4),  # in the last step of an epoch: before the validation
    ("validation", 1, "SIGTERM", 4),
    ("validation", 2, "SIGTERM", 4),
    ("step", 4, "SIGTERM", 8),  # in the very last step
    ("validation", 2, "SIGTERM", 8),
    ("epoch", 1, "SIGTERM", 8),  # when the last checkpoint is being written
    ("validation", 1, "SIGTERM", 8),  # while the threshold is chosen
]


def arguments(manifest: str, runs: Path, workers: int = 0) -> list[str]:
    more = ["--checkpoint_every_n_steps", "2", "--data.num_workers", str(workers)]
    return fit_arguments(manifest, runs, *more, network=unet(3, dropout=0.3))


def assert_equal(expected: Path, found: Path) -> None:
    assert_equal_runs(expected, found)
    one, two = (read_checkpoint(run / "checkpoints/last.ckpt") for run in (expected, found))
    assert same(one["current_model_state"], two["current_model_state"])
    assert same(one["callbacks"]["RandomStates"], two["callbacks"]["RandomStates"])


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_data(tmp_path_factory.mktemp("data"))


def test_stopped_everywhere_equals_undisturbed(tmp_path: Path, manifest: str) -> None:
    run(*arguments(manifest, tmp_path / "whole"))
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    folder = tmp_path / "stopped" / RUN
    for start, (event, number, names, step) in enumerate(STOPS):
        given = [*arguments(manifest, tmp_path / "stopped", workers=start % 2 * 2), "--ckpt_path", "last"]
        said = run(*given, *options(event, number, names=names), code=REQUEUE)
        assert f"stopped by {names.partition('+')[0]} at step {step}; continue with --ckpt_path last" in said
        assert (folder / "requeue").is_file()
        assert not (folder / "lock").exists()
        if step:
            assert read_checkpoint(folder / "checkpoints/last.ckpt")["global_step"] == step
        else:
            assert not (folder / "checkpoints").exists()
    run(*arguments(manifest, tmp_path / "stopped"), "--ckpt_path", "last")
    assert not (folder / "requeue").exists()
    assert_equal(tmp_path / "whole" / RUN, folder)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == before


def test_two_processes_stop_together(tmp_path: Path, manifest: str) -> None:
    def command(runs: str, *more: str) -> Command:
        return "tubularity", [*arguments(manifest, tmp_path / runs), *more]

    again = ["--ckpt_path", "last"]
    stopped = [
        command("stopped", *options("step", 2)),
        command("stopped", *again, *options("step", 1, rank=1)),
        command("stopped", *again, *options("validation", 1, rank=0, names="SIGUSR1")),
        command("end", *options("setup", 1, rank=1)),
    ]
    commands = [*stopped, command("whole"), command("stopped", *again)]
    said = run_in_processes(commands, tmp_path, codes=[*[REQUEUE] * len(stopped), 0, 0])
    for text in ("SIGTERM at step 2", "SIGTERM at step 3", "SIGUSR1 at step 4", "SIGTERM at step 0"):
        assert said.count(f"stopped by {text}; continue") == 1
    assert_equal(tmp_path / "whole" / RUN, tmp_path / "stopped" / RUN)


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "code"), [("lightning", REQUEUE), ("torchrun", 1)])
def test_launchers_end_with_their_processes(tmp_path: Path, manifest: str, launcher: str, code: int) -> None:
    """Signalled at the top, as a batch system does: torchrun hands signals on, and ends with a code of its own."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    signals: dict[str, Any] = {"rank": 0, "parent": launcher == "torchrun"}
    done = subprocess.run(
        [
            *(sys.executable, *(torchrun if launcher == "torchrun" else []), str(SCRIPT)),
            *(*arguments(manifest, tmp_path), *TWO, *options("step", 3, **signals)),
        ],
        env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    folder = tmp_path / RUN
    assert (folder / "requeue").read_text().startswith("SIGTERM at step ")
    assert read_checkpoint(folder / "checkpoints/last.ckpt")["global_step"] > 0
