"""What the classification pipeline does around training and testing: calibrate, then report."""

import csv
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn

from biocnn.checkpoints import read_biocnn_checkpoint, update_biocnn_section
from biocnn.data.patch_module import PatchDataModule
from biocnn.errors import DataError
from biocnn.files import atomic_path, write_json
from biocnn.metrics.calibration import Calibration
from biocnn.report.classification import (
    Tested,
    test_metrics,
    write_figures,
    write_predictions,
)
from biocnn.report.figures import most_confident_mistakes
from biocnn.tasks.classification import ClassificationTask
from biocnn.training.processes import check_each_once, gathered
from biocnn.training.runs import (
    make_room,
    open_validation,
    prediction_path,
    read_json,
    result_stamp,
    run_of,
    versions,
)


def calibrate_run(trainer: pl.Trainer, task: ClassificationTask, datamodule: PatchDataModule, best: Path) -> None:
    """After training: fit temperature and threshold of ``best.ckpt`` on the validation split, and store them in it."""
    if not best.is_file():
        return
    task.load_checkpoint(best)
    calibration = calibrate_in_memory(trainer, task, datamodule)
    store_calibration(trainer, best, calibration)
    script = shlex.join([Path(sys.executable).name, sys.argv[0]])
    given = f"--data.root {datamodule.root} --data.manifest {datamodule.manifest_argument}"
    rank_zero_info(f"Trained. To test it: {script} test --ckpt_path {best} {given}")


def calibrate_in_memory(trainer: pl.Trainer, task: ClassificationTask, datamodule: PatchDataModule) -> Calibration:
    """Validate a task with the weights it has, in all its views, and fit its calibration."""
    trainer.validate(task, datamodule, verbose=False)
    calibration = task.calibrate_on_validation(datamodule.groups("valid"), datamodule.seed)
    kept = "kept" if calibration.kept else "1 is kept: no other helps unseen groups"
    rank_zero_info(
        f"Calibrated on validation: temperature {calibration.temperature:.3f} ({kept}), "
        f"threshold {calibration.threshold:.3f}"
    )
    return calibration


def store_calibration(trainer: pl.Trainer, path: Path, calibration: Calibration) -> None:
    """Write a calibration into a checkpoint file, which is replaced whole or not at all."""
    if trainer.is_global_zero:
        update_biocnn_section(path, calibration=calibration.to_dict())
    trainer.strategy.barrier()


def calibrate_if_needed(trainer: pl.Trainer, task: ClassificationTask, datamodule: PatchDataModule, path: Path) -> None:
    """Before a test: calibrate a checkpoint that has no calibration, or one for another number of views.

    A training that was killed leaves a checkpoint without; it is completed. A calibration for a number of views that
    was asked for at test time is used and not stored. The test set is never used for either.

    Raises:
        DataError: if the validation split is not the one that the checkpoint was chosen on.
    """
    stored = read_biocnn_checkpoint(path)["biocnn"]
    same_views = stored["settings"]["test_time_augmentation"] == task.test_time_augmentation
    if stored["calibration"] is not None and same_views:
        return
    open_validation(datamodule, stored["data"], path)
    calibration = calibrate_in_memory(trainer, task, datamodule)
    if same_views:
        store_calibration(trainer, path, calibration)


def report_test(trainer: pl.Trainer, task: ClassificationTask, datamodule: PatchDataModule, path: Path) -> None:
    """After a test: write ``metrics.json``, ``predictions.csv`` and figures into the run folder."""
    gathered = {name: value.cpu().numpy() for name, value in task.test_predictions.compute().items()}
    task.test_predictions.reset()
    if not trainer.is_global_zero:
        return
    ids = datamodule.ids("test")
    if len(gathered["index"]) != len(ids):
        raise DataError(f"{len(gathered['index'])} of {len(ids)} test patches were predicted.")
    tested = Tested(
        logit=gathered["logit"].astype(float),
        label=gathered["label"],
        ids=ids,
        groups=datamodule.groups("test"),
        calibration=task.calibration or Calibration(),
        hashes=datamodule.content_hashes("test"),
    )
    folder = run_of(path)
    metrics_path = folder / "metrics.json"
    stamp = result_stamp(datamodule.describe(), path)
    make_room(folder, stamp, read_json(metrics_path))
    metrics = {
        **test_metrics(tested, datamodule.seed),
        **stamp,
        "seed": task.data_description.get("seed"),
        "training_split_hash": task.data_description.get("split_hash"),
        **{f"version_{name}": version for name, version in versions().items()},
    }
    write_predictions(folder / "predictions.csv", tested)
    where = most_confident_mistakes(tested.label, tested.probability, tested.calibration.threshold)
    mistakes = datamodule.dataset("test").source.read(where)["image"]
    write_figures(folder / "figures", tested, mistakes, metrics, folder / "metrics.csv", datamodule.classes)
    write_json(metrics_path, metrics)
    print_summary(metrics, folder)


def print_summary(metrics: dict[str, Any], folder: Path) -> None:
    """Print the headline numbers of a test and where everything is."""
    low, high = metrics.get("auroc_low"), metrics.get("auroc_high")
    unit = metrics["intervals_over"]
    interval = "" if low is None or high is None else f" (95 % interval over {unit} {low:.3f} to {high:.3f})"
    groups = "" if metrics["n_groups"] is None else f" of {metrics['n_groups']} groups"
    print(
        f"test: {metrics['n']:,} patches{groups}\n"
        f"  AUC {metrics['auroc']:.4f}{interval}\n"
        f"  accuracy {metrics['accuracy']:.4f} at 0.5, {metrics['accuracy_at_threshold']:.4f} at the validation "
        f"threshold {metrics['threshold']:.3f}\n"
        f"  accuracy of always calling the larger class {metrics['accuracy_majority']:.4f}\n"
        f"  NLL {metrics['nll']:.4f}, Brier {metrics['brier']:.4f}, top-label calibration error {metrics['ece']:.4f}\n"
        f"numbers:  {folder / 'metrics.json'}\n"
        f"table:    {folder / 'predictions.csv'}\n"
        f"pictures: {folder / 'figures'}"
    )


def report_prediction(trainer: pl.Trainer, task: ClassificationTask, datamodule: PatchDataModule, path: Path) -> None:
    """After a prediction: write ``predictions_<name>.csv`` with the probability and spread of every patch."""
    outputs = gathered(
        [{name: value.cpu() for name, value in output.items()} for output in trainer.predict_loop.predictions]
    )
    ids = datamodule.ids("predict")
    check_each_once([ids[row] for output in outputs for row in output["index"].tolist()], ids)
    if not trainer.is_global_zero:
        return
    logit = np.concatenate([output["logit"].double().numpy() for output in outputs])
    calibration = task.calibration
    if calibration is None:
        rank_zero_warn(f"{path} is not calibrated: its probabilities are those of the network. Run `test` once.")
        calibration = Calibration()
    probability, spread = calibration.apply(logit.mean(1)), calibration.apply(logit).std(1)
    assert datamodule.images is not None  # `setup` refuses to predict without
    target = prediction_path(run_of(path), datamodule.images, ".csv")
    with atomic_path(target) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["id", "probability", "spread", "called"])
        for name, p, s in zip(ids, probability, spread, strict=True):
            writer.writerow([name, f"{p:.6f}", f"{s:.6f}", int(p >= calibration.threshold)])
    print(f"{len(probability):,} patches predicted: {target}")
