from pathlib import Path

from biocnn.training.logger import MetricsCSV, read_metrics


def test_rows_are_on_disk_at_once_and_columns_grow(tmp_path: Path) -> None:
    log = MetricsCSV(tmp_path / "pcam" / "run")
    log.log_metrics({"train_loss": 0.5, "epoch": 0.0}, step=9)
    assert read_metrics(log.path) == [{"epoch": "0", "step": "9", "train_loss": "0.5"}]
    log.log_metrics({"val_nll": 0.25, "epoch": 0.0}, step=9)
    log.log_metrics({"train_loss": 0.125, "epoch": 1.0}, step=19)
    assert log.path.read_text().splitlines() == [
        "epoch,step,train_loss,val_nll",
        "0,9,0.5,",
        "0,9,,0.25",
        "1,19,0.125,",
    ]
    assert (log.name, log.version) == ("pcam", "run")


def test_resuming_drops_rows_after_the_checkpoint_and_keeps_the_rest(tmp_path: Path) -> None:
    log = MetricsCSV(tmp_path)
    for step in range(0, 50, 10):
        log.log_metrics({"train_loss": float(step), "epoch": 0.0}, step=step)
    with log.path.open("a") as handle:
        handle.write("0,50,0.")  # a kill tore this line
    resumed = MetricsCSV(tmp_path, resume_step=30)
    assert [row["step"] for row in read_metrics(resumed.path)] == ["0", "10", "20"]
    resumed.log_metrics({"train_loss": 1.5, "epoch": 0.0}, step=30)
    assert read_metrics(resumed.path)[-1] == {"epoch": "0", "step": "30", "train_loss": "1.5"}
    assert not list(tmp_path.glob(".*"))


def test_what_is_logged_again_for_the_last_step_is_not_written_again(tmp_path: Path) -> None:
    log = MetricsCSV(tmp_path)
    log.log_metrics({"train_loss": 0.5, "epoch": 0.0}, step=2)
    log.log_metrics({"train_loss": 0.5, "epoch": 0.0}, step=2)  # before a checkpoint, and after it
    log.log_metrics({"val_nll": 0.25, "epoch": 0.0}, step=2)
    before = log.path.read_text()
    assert before.splitlines() == ["epoch,step,train_loss,val_nll", "0,2,0.5,", "0,2,,0.25"]
    resumed = MetricsCSV(tmp_path, resume_step=3)
    resumed.log_metrics({"val_nll": 0.25, "epoch": 0.0}, step=2)  # the validation, which a kill cut short, is repeated
    assert log.path.read_text() == before
    resumed.log_metrics({"train_loss": 0.5, "epoch": 0.0}, step=3)
    assert log.path.read_text() == before + "0,3,0.5,\n"
