from pathlib import Path

import pytest

from biocnn.errors import DataError
from biocnn.training.logger import MetricsCSV, read_metrics
from biocnn.training.trackers import EventFiles, loggers


def log(run: Path, start: int, stop: int, resume: int | None = None, **trackers: str) -> None:
    """What a training that begins at one step and is killed at another logs: its step, as the loss."""
    run.mkdir(parents=True, exist_ok=True)
    for logger in loggers(run, resume, **trackers):
        logger.log_hyperparams({"model": {"lr": 0.5}, "start": start})
        for step in range(start, stop):
            logger.log_metrics({"train_loss": float(step), "epoch": 0.0}, step)
        logger.save()
        logger.finalize("success")


def test_tensorboard_shows_every_step_once_after_a_resume(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = tmp_path / "pcam" / "run"
    log(run, 0, 50)
    log(run, 30, 60, resume=30)  # killed at 50, the checkpoint was of 30
    events = reader.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    found = events.Scalars("train_loss")
    assert [(event.step, event.value) for event in found] == [(step, float(step)) for step in range(60)]
    assert [int(row["step"]) for row in read_metrics(run / "metrics.csv")] == list(range(60))
    assert all("tfevents" in path.name for path in (run / "tensorboard").iterdir())


def test_a_run_that_begins_anew_in_its_folder_hides_what_was_there(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log(tmp_path / "pcam" / "run", 0, 9)
    log(tmp_path / "pcam" / "run", 0, 5)  # killed before its first checkpoint
    events = reader.EventAccumulator(str(tmp_path / "pcam" / "run" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train_loss")] == list(range(5))


def test_nothing_is_written_before_the_first_metric(tmp_path: Path) -> None:
    made = loggers(tmp_path / "pcam" / "run")
    assert isinstance(made[0], MetricsCSV)
    assert all(isinstance(logger, EventFiles) for logger in made[1:])
    assert not list(tmp_path.iterdir())


def test_a_resumed_run_is_the_same_run_of_weights_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = tmp_path / "pcam" / "run"
    log(run, 0, 3, wandb="cells")
    identity = (run / "wandb_id.txt").read_text().strip()
    assert wandb.run.id == identity
    wandb.finish()  # as the end of the process does
    log(run, 2, 4, resume=2, wandb="cells")
    assert (wandb.run.id, wandb.run.name, wandb.run.project) == (identity, "pcam/run", "cells")
    assert wandb.run.dir.startswith(str(run / "wandb" / "offline-run-"))
    wandb.finish()


def test_a_resumed_run_is_the_same_run_of_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a folder is enough for a test, and needs no server
    client = pytest.importorskip("mlflow.tracking").MlflowClient
    run, store = tmp_path / "pcam" / "run", (tmp_path / "runs").as_uri()
    log(run, 0, 3, mlflow=store)
    log(run, 3, 5, resume=3, mlflow=store)  # its settings differ in `start`, which MLflow would refuse
    found = client(store)
    runs = found.search_runs([found.get_experiment_by_name("pcam").experiment_id])
    assert [one.info.run_name for one in runs] == ["run"]
    steps = [metric.step for metric in found.get_metric_history(runs[0].info.run_id, "train_loss")]
    assert steps == list(range(5))
    assert runs[0].data.params["start"] == "0"


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_named(tmp_path: Path, name: str) -> None:
    try:
        __import__(name)
    except ImportError:
        with pytest.raises(DataError, match=rf"--{name} needs the package {name}: pip install 'biocnn\[{name}\]'"):
            loggers(tmp_path / "pcam" / "run", None, **{name: "cells"})
    else:
        pytest.skip(f"{name} is installed")
