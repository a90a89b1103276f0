"""The sbatch files as they are shipped, on a real SLURM: stopped in all ways, a training ends as if undisturbed."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from biocnn.checkpoints import read_checkpoint
from biocnn.report.collect import collect_runs
from tests.pipelines.drawn_runs import CONFIG, ROOT, fit_arguments, unet, write_data
from tests.pipelines.slurm_cluster import Cluster, cannot_run, cluster
from tests.pipelines.test_resume import assert_equal_runs

pytestmark = [pytest.mark.slow, pytest.mark.skipif(cannot_run() != "", reason=cannot_run())]

WAITER = ["--trainer.callbacks", "tests.pipelines.waiter.Waiter", "--trainer.callbacks.init_args.step", "5"]


def options(manifest: str) -> list[str]:
    """A configuration and further options of a training of 8 steps, as they are given to the sbatch files."""
    given = fit_arguments(manifest, Path("unused"), "--data.num_workers", "1", network=unet(dropout=0.3))
    for name in ("--config", "--trainer.default_root_dir", "--run"):  # which the files give themselves
        at = given.index(name)
        del given[at : at + 2]
    return [CONFIG.relative_to(ROOT).as_posix(), *given[1:]]


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    with cluster() as made:
        yield made


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def undisturbed(slurm: Cluster, manifest: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("undisturbed")
    job = slurm.submit("train.sbatch", *options(manifest), RUNS=str(runs))
    slurm.wait_for(job, "COMPLETED")
    return runs / "tubularity" / f"slurm_{job}"


def shorten_time(slurm: Cluster, job: str) -> None:
    """Leave the job less than the two minutes before its end at which it is to be signalled."""
    hours, minutes, _ = slurm.shown(job, "RunTime").split(":")
    slurm.call("scontrol", "update", f"JobId={job}", f"TimeLimit={60 * int(hours) + int(minutes) + 2}")


def requeue(slurm: Cluster, job: str) -> None:
    slurm.call("scontrol", "requeue", job)


@pytest.mark.parametrize("stop", [requeue, shorten_time])
def test_stopped_and_continued_equals_undisturbed(
    slurm: Cluster, manifest: str, undisturbed: Path, tmp_path: Path, stop: Callable[[Cluster, str], None]
) -> None:
    job = slurm.submit("train.sbatch", *options(manifest), *WAITER, RUNS=str(tmp_path))
    slurm.wait_for_line(job, "waits at step 5")
    stop(slurm, job)
    slurm.continue_at_once(job)
    slurm.wait_for(job, "COMPLETED")
    run = tmp_path / "tubularity" / f"slurm_{job}"
    assert "stopped by SIGTERM at step 6" in slurm.said(job)
    assert f"Continuing {run}" in slurm.said(job)
    assert ("goes back into the queue" in slurm.said(job)) == (stop is shorten_time)  # the other was put there
    assert_equal_runs(undisturbed, run)
    assert [path.name for path in (tmp_path / "tubularity").iterdir()] == [run.name]


def test_a_cancelled_job_stays_away_and_can_be_continued(
    slurm: Cluster, manifest: str, undisturbed: Path, tmp_path: Path
) -> None:
    job = slurm.submit("train.sbatch", *options(manifest), *WAITER, RUNS=str(tmp_path))
    slurm.wait_for_line(job, "waits at step 5")
    slurm.call("scancel", job)
    slurm.wait_for(job, "CANCELLED")
    run = tmp_path / "tubularity" / f"slurm_{job}"
    assert (run / "requeue").read_text() == "SIGTERM at step 6\n"
    assert slurm.shown(job, "Restarts") == "0"
    assert collect_runs([run]).missing[0].endswith("waits to be continued, with --ckpt_path last.")
    again = slurm.submit("train.sbatch", *options(manifest), RUNS=str(tmp_path), RUN=run.name)
    slurm.wait_for(again, "COMPLETED")
    assert_equal_runs(undisturbed, run)


def test_an_error_is_no_reason_to_start_again(slurm: Cluster, manifest: str, tmp_path: Path) -> None:
    job = slurm.submit("train.sbatch", *options(manifest), "--data.root", str(tmp_path / "none"), RUNS=str(tmp_path))
    slurm.wait_for(job, "FAILED")
    assert slurm.shown(job, "ExitCode") == "2:0"
    assert "error: " in slurm.said(job)
    assert slurm.shown(job, "Restarts") == "0"


def test_two_nodes_stopped_and_continued(slurm: Cluster, manifest: str, tmp_path: Path) -> None:
    """Data come from the disks of the nodes, the batch of 4 from two processes."""
    data, tmp = str(Path(manifest).parent), tmp_path / "disk"
    tmp.mkdir()
    variables = {"STAGE": data, "TMPDIR": str(tmp), "RUNS": str(tmp_path / "runs")}
    shape = ["--nodes", "2", "--ntasks-per-node", "1", "--gres", "gpu:1"]
    arguments = [*options(manifest), "--data.batch_size", "2"]
    jobs = [
        slurm.submit("nodes.sbatch", *arguments, *more, options=shape, RUN=name, **variables)
        for name, more in (("undisturbed", []), ("stopped", WAITER))
    ]
    slurm.wait_for_line(jobs[1], "waits at step 5", count=2)
    slurm.call("scontrol", "requeue", jobs[1])
    slurm.continue_at_once(jobs[1])
    for job in jobs:
        slurm.wait_for(job, "COMPLETED")
    runs = tmp_path / "runs" / "tubularity"
    assert_equal_runs(runs / "undisturbed", runs / "stopped")
    assert len([path for path in tmp.rglob("*") if path.is_dir() and path.name == "train"]) == 1, "copied once"


def test_array_and_its_table(slurm: Cluster, manifest: str, tmp_path: Path) -> None:
    job = slurm.submit(
        "array.sbatch", *options(manifest), "--trainer.max_epochs", "1", options=["--array", "0-1"],
        FOLDS="0 1", SEEDS="3", TEST="1", RUN="cv", RUNS=str(tmp_path),
    )  # fmt: skip
    for task in (f"{job}_0", f"{job}_1"):
        slurm.wait_for(task, "COMPLETED")
    runs = [tmp_path / "tubularity" / f"cv_fold{fold}_seed3" for fold in (0, 1)]
    table = collect_runs([*runs, tmp_path / "tubularity" / "cv_fold2_seed3"])
    assert [(row["run"], row["job"], row["seed"], row["folds"], row["fold"]) for row in table.rows] == [
        (f"cv_fold{fold}_seed3", "tubularity", 3, 2, fold) for fold in (0, 1)
    ]
    assert len(table.missing) == 1
    weights = [read_checkpoint(run / "checkpoints" / "best.ckpt")["biocnn"]["data"]["valid_hash"] for run in runs]
    assert weights[0] != weights[1], "each has a validation split of its own"


def test_an_array_that_is_too_long_says_so(slurm: Cluster, manifest: str) -> None:
    job = slurm.submit("array.sbatch", *options(manifest), options=["--array", "2"], FOLDS="0 1", SEEDS="3")
    slurm.wait_for(f"{job}_2", "FAILED")
    assert "1 seed(s) by 2 fold(s) are tasks 0 to 1" in slurm.said(f"{job}_2")
