"""Two processes train, evaluate and predict as one does, in all three jobs."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from biocnn.checkpoints import read_biocnn_checkpoint, update_biocnn_section
from biocnn.training.logger import read_metrics
from biocnn.training.pipeline import run_pipeline
from tests.pipelines.commands import JOBS, Command, run_in_processes
from tests.pipelines.drawn_runs import QUIET
from tests.pipelines.three_jobs import JOB_OF, JOBS_DRAWN, data_of, fit_command, write_three

# As a training leaves it that was killed, so that the validation has to be looked at before a test.
KILLED: dict[str, dict[str, Any]] = {
    "pcam": {"calibration": None},
    "tubularity": {"threshold_views": 0},
    "counting": {"interval_views": 0},
}


def evaluations(job: str, root: Path, checkpoint: Path) -> list[Command]:
    images = root / job / ("camelyonpatch_level_2_split_test_x.h5" if job == "pcam" else "test/images/*")
    # So that one process has a batch more than the other; a convolution rounds by the size of the batch.
    batches = ["--data.eval_batch_size", "1"] if job == "pcam" else []
    return [
        (job, ["test", "--ckpt_path", str(checkpoint), *data_of(job, root), *QUIET, *batches]),
        (job, ["predict", "--ckpt_path", str(checkpoint), "--data.images", str(images), *QUIET]),
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with what one process and two have made: the same trainings, and the same evaluations of those of one."""
    folder = tmp_path_factory.mktemp("processes")
    data = folder / "data"
    write_three(data)
    for kind in JOB_OF:
        job, arguments = fit_command(kind, data, folder / "one", 8)
        assert run_pipeline(JOBS[job], arguments) == 0
    in_two = [fit_command(kind, data, folder / "two", 4) for kind in JOB_OF]
    for job in JOBS_DRAWN:
        for number in ("one", "two"):
            copied = folder / f"{job}_{number}" / "best.ckpt"
            copied.parent.mkdir()
            shutil.copy(folder / "one" / job / job / "checkpoints" / "best.ckpt", copied)
            update_biocnn_section(copied, **KILLED[job])
        for _, arguments in evaluations(job, data, folder / f"{job}_one" / "best.ckpt"):
            assert run_pipeline(JOBS[job], arguments) == 0
        in_two += evaluations(job, data, folder / f"{job}_two" / "best.ckpt")
    run_in_processes(in_two, folder)
    return folder


def curve(runs: Path, number: str, kind: str, column: str) -> list[float]:
    rows = read_metrics(runs / number / JOB_OF[kind] / kind / "metrics.csv")
    return [float(row[column]) for row in rows if row.get(column)]


# The validation is that of the averaged weights, so that it compares these as well.
@pytest.mark.parametrize(
    ("kind", "columns"),
    [
        ("pcam", {"val_nll": 2}),
        ("tubularity", {"val_bce": 2}),
        ("counting", {"val_mae": 2, "val_rmse": 2}),
        ("paths", {"val_bce": 2, "train_path_loss": 3}),
    ],
)
def test_the_training_is_that_of_one_process(runs: Path, kind: str, columns: dict[str, int]) -> None:
    for column, values in {"train_loss": 6, **columns}.items():
        one, two = (curve(runs, number, kind, column) for number in ("one", "two"))
        assert len(one) == values
        np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-5, err_msg=column)
    assert curve(runs, "one", kind, "lr") == curve(runs, "two", kind, "lr")


@pytest.mark.parametrize("job", JOBS_DRAWN)
def test_the_evaluation_is_that_of_one_process(runs: Path, job: str) -> None:
    one, two = (runs / f"{job}_{number}" for number in ("one", "two"))
    stored = [read_biocnn_checkpoint(folder / "best.ckpt")["biocnn"] for folder in (one, two)]
    assert stored[0] == stored[1]  # what was learned from the validation, to the last bit
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(two) for path in two.rglob("*") if path.is_file())
    predicted = [path for path in files if any(part.startswith("predictions_") for part in path.parts)]
    assert sum(path.suffix == ".tif" for path in predicted) == (0 if job == "pcam" else 5)
    compared = 0
    for path in files:
        if path.name == "metrics.json":
            metrics = [json.loads((folder / path).read_text()) for folder in (one, two)]
            # The time of writing makes two equal checkpoints different files.
            assert metrics[0] | {"checkpoint": ""} == metrics[1] | {"checkpoint": ""}
        elif path.suffix in (".csv", ".tif"):
            assert (one / path).read_bytes() == (two / path).read_bytes(), path
            compared += 1
    assert compared >= 2
