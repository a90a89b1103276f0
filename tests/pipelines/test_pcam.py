"""The PCam pipeline from end to end, as a user runs it."""

import contextlib
import csv
import io
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

import biocnn
from biocnn.checkpoints import read_biocnn_checkpoint, update_biocnn_section
from biocnn.data.manifest import load_manifest
from biocnn.training.pipeline import run_pipeline
from biocnn.training.runs import prediction_path
from pipelines.pcam import JOB

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "pipelines" / "pcam.yaml"
NETWORK = '{"class_path": "biocnn.networks.SmallDenseNet", "init_args": {"layers": [0, 1], "growth_rate": 8}}'
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]


def run(*arguments: str, code: int = 0) -> str:
    """Run the pipeline in this process; returns all that it says."""
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    logging.getLogger("pytorch_lightning").addHandler(handler)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            assert run_pipeline(JOB, arguments) == code, said.getvalue()
    finally:
        logging.getLogger("pytorch_lightning").removeHandler(handler)
    return said.getvalue()


def run_script(*arguments: str, python: Sequence[str] = ()) -> str:
    """Run the script in a process of its own, with options of the interpreter."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, *python, str(ROOT / "pipelines" / "pcam.py"), *arguments],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def fit_arguments(data: Path, runs: Path, *more: str) -> list[str]:
    return [
        *("fit", "--config", str(CONFIG), "--data.root", str(data), "--trainer.default_root_dir", str(runs)),
        *("--trainer.max_epochs", "4", "--data.batch_size", "16", "--model.network", NETWORK, *QUIET, *more),
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, pcam_folder: Path) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    output = run(*fit_arguments(pcam_folder, runs, "--run", "a"))
    assert "data audit, warning: train: 64 images, the manifest says 262,144" in output
    assert "Calibrated on validation: temperature" in output
    return runs / "pcam" / "a"


def test_a_run_writes_one_folder(trained: Path, pcam_folder: Path) -> None:
    assert sorted(path.name for path in trained.parent.parent.iterdir()) == ["pcam"]
    names = {str(path.relative_to(trained)) for path in trained.rglob("*") if path.is_file()}
    trained_files = {"config.yaml", "run.json", "metrics.csv", "checkpoints/best.ckpt", "checkpoints/last.ckpt"}
    assert trained_files <= names
    record = json.loads((trained / "run.json").read_text())
    assert record["seed"] == 0
    assert record["data"]["sizes"] == {"train": 64, "valid": 32}
    assert record["network"] == "SmallDenseNet"
    rows = list(csv.DictReader((trained / "metrics.csv").open()))
    assert sum(bool(row["val_nll"]) for row in rows) == 4


def test_config_repeats_the_run(trained: Path, tmp_path: Path, pcam_folder: Path) -> None:
    run("fit", "--config", str(trained / "config.yaml"), "--trainer.default_root_dir", str(tmp_path), "--run", "again")
    again = tmp_path / "pcam" / "again"
    assert (again / "metrics.csv").read_text() == (trained / "metrics.csv").read_text()


def test_checkpoint_and_data_are_enough_to_test(trained: Path, pcam_folder: Path) -> None:
    best = trained / "checkpoints" / "best.ckpt"
    output = run("test", "--ckpt_path", str(best), "--data.root", str(pcam_folder), *QUIET)
    assert str(trained / "figures") in output
    metrics = json.loads((trained / "metrics.json").read_text())
    expected = {"auroc", "auroc_low", "auroc_high", "auroc_unique", "accuracy", "accuracy_at_threshold", "nll", "brier"}
    expected |= {"ece", "ece_positive", "temperature", "threshold", "seed", "split_hash", "version_torch", "views"}
    assert expected <= metrics.keys()
    assert metrics["n"] == 32
    assert metrics["n_groups"] == 4
    figures = {path.name for path in (trained / "figures").iterdir()}
    assert figures == {"roc.png", "reliability.png", "mistakes.png", "learning_curves.png"}
    rows = list(csv.DictReader((trained / "predictions.csv").open()))
    assert [row["id"] for row in rows] == [f"test:{number}" for number in range(32)]
    with h5py.File(pcam_folder / "camelyonpatch_level_2_split_test_x.h5") as file:
        model = biocnn.load(best)
        probability, spread = model.predict_with_spread(file["x"][:])
    # Six digits are written, and batches of another size sum in another order.
    np.testing.assert_allclose([float(row["probability"]) for row in rows], probability, atol=2e-6)
    np.testing.assert_allclose([float(row["spread"]) for row in rows], spread, atol=2e-6)
    assert [int(row["called"]) for row in rows] == (probability >= model.threshold).astype(int).tolist()
    labels = np.array([int(row["label"]) for row in rows])
    assert metrics["accuracy"] == pytest.approx(((probability >= 0.5) == labels).mean())


def test_results_of_other_data_are_moved_aside(
    trained: Path, pcam_folder: Path, make_pcam: Callable[..., Path]
) -> None:
    best = str(trained / "checkpoints" / "best.ckpt")
    run("test", "--ckpt_path", best, "--data.root", str(pcam_folder), *QUIET)
    run("test", "--ckpt_path", best, "--data.root", str(pcam_folder), *QUIET)
    assert not (trained / "previous").exists()  # the same result replaces itself
    before = (trained / "metrics.json").read_text()
    output = run("test", "--ckpt_path", best, "--data.root", str(make_pcam("other", test=20)), *QUIET)
    assert "was moved to" in output
    (aside,) = (trained / "previous").iterdir()
    assert (aside / "metrics.json").read_text() == before
    assert (aside / "figures" / "roc.png").is_file()
    assert json.loads((trained / "metrics.json").read_text())["n"] == 20


def test_a_checkpoint_without_calibration_is_calibrated_on_validation(trained: Path, pcam_folder: Path) -> None:
    best = trained / "checkpoints" / "best.ckpt"
    calibration = read_biocnn_checkpoint(best)["biocnn"]["calibration"]
    assert calibration is not None
    update_biocnn_section(best, calibration=None)  # as a training leaves it that was killed before its end
    output = run("test", "--ckpt_path", str(best), "--data.root", str(pcam_folder), *QUIET)
    assert "Calibrated on validation" in output
    assert read_biocnn_checkpoint(best)["biocnn"]["calibration"] == calibration


def test_prediction_of_unlabelled_patches(trained: Path, pcam_folder: Path) -> None:
    patches = pcam_folder / "camelyonpatch_level_2_split_valid_x.h5"
    best = trained / "checkpoints" / "best.ckpt"
    run("predict", "--ckpt_path", str(best), "--data.images", str(patches), *QUIET)
    table = f"predictions_{pcam_folder.name}_{patches.stem}"
    rows = list(csv.DictReader((trained / f"{table}.csv").open()))
    with h5py.File(patches) as file:
        expected = biocnn.load(best).predict(file["x"][:])
    np.testing.assert_allclose([float(row["probability"]) for row in rows], expected, atol=2e-6)
    run("predict", "--ckpt_path", str(best), "--data.images", str(patches), *QUIET)
    assert (trained / f"{table}_2.csv").read_text() == (trained / f"{table}.csv").read_text()  # nothing is replaced


def test_tables_are_named_after_what_was_predicted() -> None:
    given = ("slideA/*.png", "slideB/*.png", "b/x.h5", "*.png")
    names = [prediction_path(Path("run"), images, ".csv").name for images in given]
    assert names == ["predictions_slideA.csv", "predictions_slideB.csv", "predictions_b_x.csv", "predictions.csv"]


def test_files_beside_a_copied_checkpoint_are_left_alone(trained: Path, pcam_folder: Path, tmp_path: Path) -> None:
    shutil.copy(trained / "checkpoints" / "best.ckpt", tmp_path / "best.ckpt")
    (tmp_path / "predictions.csv").write_text("mine")
    run("test", "--ckpt_path", str(tmp_path / "best.ckpt"), "--data.root", str(pcam_folder), *QUIET)
    assert (tmp_path / "predictions.csv").read_text() == "mine"
    assert (tmp_path / "best_results" / "metrics.json").is_file()


def test_a_finished_run_keeps_its_calibration_when_it_is_continued(pcam_folder: Path, tmp_path: Path) -> None:
    # A high learning rate makes a late epoch worse, so that the best and the last checkpoint differ.
    arguments = fit_arguments(pcam_folder, tmp_path, "--run", "a", "--model.lr", "0.05", "--trainer.max_epochs", "6")
    run(*arguments)
    folder = tmp_path / "pcam" / "a" / "checkpoints"
    before = read_biocnn_checkpoint(folder / "best.ckpt")
    assert before["epoch"] != read_biocnn_checkpoint(folder / "last.ckpt")["epoch"]
    run(*arguments, "--ckpt_path", "last")
    assert read_biocnn_checkpoint(folder / "best.ckpt")["biocnn"] == before["biocnn"]


def test_other_views_are_calibrated_for_without_changing_the_checkpoint(trained: Path, pcam_folder: Path) -> None:
    best = trained / "checkpoints" / "best.ckpt"
    content = best.read_bytes()
    arguments = ["test", "--ckpt_path", str(best), "--data.root", str(pcam_folder), *QUIET]
    output = run(*arguments, "--model.test_time_augmentation", "false")
    assert "Calibrated on validation" in output
    assert json.loads((trained / "metrics.json").read_text())["views"] == 1
    assert best.read_bytes() == content


def test_calibration_on_another_validation_split_is_refused(
    trained: Path, make_pcam: Callable[..., Path], tmp_path: Path
) -> None:
    copied = tmp_path / "copied.ckpt"
    shutil.copy(trained / "checkpoints" / "best.ckpt", copied)
    update_biocnn_section(copied, calibration=None)
    other = make_pcam("other", valid=20)
    output = run("test", "--ckpt_path", str(copied), "--data.root", str(other), *QUIET, code=2)
    assert "is not the one that it was chosen on" in output


def test_a_failed_start_leaves_nothing_behind(pcam_folder: Path, tmp_path: Path) -> None:
    run(*fit_arguments(tmp_path / "nowhere", tmp_path, "--run", "a"), code=2)
    assert not (tmp_path / "pcam").exists()
    run(*fit_arguments(pcam_folder, tmp_path, "--run", "a", "--monitor", "val_auroc", "--trainer.max_epochs", "1"))
    best = read_biocnn_checkpoint(tmp_path / "pcam" / "a" / "checkpoints" / "best.ckpt")
    assert any("'monitor': 'val_auroc'" in name for name in best["callbacks"])


def test_without_groups_intervals_say_what_they_are_over(make_pcam: Callable[..., Path], tmp_path: Path) -> None:
    root = make_pcam()
    content = load_manifest("pcam").model_dump(mode="json")
    content |= {"group": None, "label_column": None, "classes": []}
    for split in content["splits"].values():
        split["meta"] = None
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(content))
    own = ["--data.manifest", str(tmp_path / "own.yaml")]
    run(*fit_arguments(root, tmp_path, "--run", "a", "--trainer.max_epochs", "1", *own))
    output = run("test", "--trainer.default_root_dir", str(tmp_path), "--data.root", str(root), *own, *QUIET)
    assert "no groups are known" in output
    metrics = json.loads((tmp_path / "pcam" / "a" / "metrics.json").read_text())
    assert metrics["n_groups"] is None


TWO = ["--trainer.max_epochs", "1", "--trainer.devices", "2", "--trainer.strategy", "ddp"]


def test_two_processes_write_one_run(pcam_folder: Path, tmp_path: Path) -> None:
    run_script(*fit_arguments(pcam_folder, tmp_path, "--run", "two", *TWO))
    # Started by torchrun, both choose a folder by the time; that of the first process is the run.
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    run_script(*fit_arguments(pcam_folder, tmp_path, *TWO), python=torchrun)
    two, unnamed = sorted((tmp_path / "pcam").iterdir(), key=lambda path: path.name != "two")
    assert two.name == "two"
    for folder in (two, unnamed):
        assert read_biocnn_checkpoint(folder / "checkpoints" / "best.ckpt")["biocnn"]["calibration"] is not None
        assert (folder / "config.yaml").is_file()
        assert (folder / "metrics.csv").is_file()


def test_fewer_images_than_processes_are_refused_at_once(make_pcam: Callable[..., Path], tmp_path: Path) -> None:
    data = make_pcam("few", valid=2, test=2)
    devices = ["--trainer.devices", "3", "--trainer.strategy", "ddp"]
    arguments = fit_arguments(data, tmp_path, "--run", "a", "--trainer.max_epochs", "1")
    output = run(*arguments, *devices, code=2)
    expected = "2 valid item(s) are too few for 3 processes, which need one each. Set --trainer.devices to at most 2"
    assert expected in output
    assert not (tmp_path / "pcam").exists()
    run(*arguments)
    best = str(tmp_path / "pcam" / "a" / "checkpoints" / "best.ckpt")
    output = run("test", "--ckpt_path", best, "--data.root", str(data), *QUIET, *devices, code=2)
    assert "2 test item(s) are too few for 3 processes" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "--config", str(CONFIG), "--data.root", "nowhere", *QUIET], "nowhere"),
        (["test", "--ckpt_path", "http://127.0.0.1/x.ckpt"], "is a URL"),
        (["test", "--ckpt_path", "missing.ckpt"], "There is no checkpoint"),
        (["fit", "--config", str(CONFIG), "--data.manifest", "pcamm"], "There is no manifest called 'pcamm'"),
    ],
)
def test_errors_are_sentences(tmp_path: Path, arguments: list[str], message: str) -> None:
    output = run(*arguments, "--trainer.default_root_dir", str(tmp_path), code=2)
    assert message in output
    assert "Traceback" not in output


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "32-true"])
def test_precision_by_flag(pcam_folder: Path, tmp_path: Path, precision: str) -> None:
    arguments = fit_arguments(pcam_folder, tmp_path, "--run", "p", "--trainer.max_epochs", "1")
    run(*arguments, "--trainer.precision", precision)
    values = [
        float(row["val_nll"])
        for row in csv.DictReader((tmp_path / "pcam" / "p" / "metrics.csv").open())
        if row["val_nll"]
    ]
    assert np.isfinite(values).all()


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true"])
def test_weights_of_another_precision_are_refused(
    trained: Path, pcam_folder: Path, tmp_path: Path, precision: str
) -> None:
    expected = f"--trainer.precision {precision} changes the precision of the weights themselves"
    network = '{"class_path": "biocnn.networks.LeNet5"}'
    given = ["--trainer.precision", precision, "--model.network", network]
    assert expected in run(*fit_arguments(pcam_folder, tmp_path, *given), code=2)
    assert not (tmp_path / "pcam").exists()
    best = str(trained / "checkpoints" / "best.ckpt")
    given = ["--data.root", str(pcam_folder), "--trainer.precision", precision]
    assert expected in run("test", "--ckpt_path", best, *given, *QUIET, code=2)


def test_a_taken_name_is_refused(trained: Path, pcam_folder: Path) -> None:
    output = run(*fit_arguments(pcam_folder, trained.parent.parent, "--run", "a"), code=2)
    assert "holds a run already" in output


def test_torchvision_networks_by_class_path(pcam_folder: Path, tmp_path: Path) -> None:
    network = '{"class_path": "torchvision.models.resnet18", "init_args": {"num_classes": 1}}'
    run(*fit_arguments(pcam_folder, tmp_path, "--run", "s", "--model.network", network, "--trainer.max_epochs", "1"))
    model = biocnn.load(tmp_path / "pcam" / "s" / "checkpoints" / "best.ckpt")
    assert type(model.task.network).__name__ == "ResNet"
    run("test", "--trainer.default_root_dir", str(tmp_path), "--data.root", str(pcam_folder), *QUIET)
