"""What the classification pipeline does around training and testing: calibrate, then report."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn

from biocnn.checkpoints import read_biocnn_checkpoint, update_biocnn_section
from biocnn.data.patch_module import PatchDataModule
from biocnn.errors import DataError
from biocnn.files import atomic_path, file_digest, write_json
from biocnn.metrics.calibration import Calibration
from biocnn.report.classification import (
    Tested,
    make_room,
    test_metrics,
    write_figures,
    write_predictions,
)
from biocnn.report.figures import most_confident_mistakes
from biocnn.tasks.classification import ClassificationTask
from biocnn.training.runs import run_of, versions


def calibrate_run(trainer: pl.Trainer, task: ClassificationTask, datamodule: PatchDataModule, best: Path) -> None:
    """After training: fit temperature and threshold of ``best.ckpt`` on the validation split, and store them in it."""
    if best.is_file():
        calibrate_checkpoint(trainer, task, datamodule, best)
        rank_zero_info(f"Trained. Test it with: test --ckpt_path {best}")


def calibrate_checkpoint(
    trainer: pl.Trainer, task: ClassificationTask, datamodule: PatchDataModule, path: Path
) -> Calibration:
    """Validate a checkpoint in all its views, fit its calibration, and store that in the file.

    Args:
        trainer: runs the validation.
        task: the weights of the checkpoint are loaded into it.
        datamodule: gives the validation split and its groups.
        path: of the checkpoint, which is replaced whole or not at all.
    """
    task.load_checkpoint(path)
    trainer.validate(task, datamodule, verbose=False)
    calibration = task.calibrate_on_validation(datamodule.groups("valid"), datamodule.seed)
    if trainer.is_global_zero:
        update_biocnn_section(path, calibration=calibration.to_dict(), settings=task.settings())
    trainer.strategy.barrier()
    kept = "kept" if calibration.kept else "1 is kept: no other helps unseen groups"
    rank_zero_info(
        f"Calibrated on validation: temperature {calibration.temperature:.3f} ({kept}), "
        f"threshold {calibration.threshold:.3f}"
    )
    return calibration


def calibrate_if_needed(trainer: pl.Trainer, task: ClassificationTask, datamodule: PatchDataModule, path: Path) -> None:
    """Before a test: calibrate a checkpoint that has no calibration, or one for another number of views.

    A training that was killed leaves such a checkpoint. The test set is never used for it.
    """
    stored = read_biocnn_checkpoint(path)["biocnn"]
    if stored["calibration"] is None or stored["settings"]["test_time_augmentation"] != task.test_time_augmentation:
        calibrate_checkpoint(trainer, task, datamodule, path)


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
        groups=datamodule.groups("test") or ids,
        calibration=task.calibration or Calibration(),
        hashes=datamodule.content_hashes("test"),
    )
    folder = run_of(path)
    metrics_path = folder / "metrics.json"
    data = datamodule.describe()
    stamp = {"manifest": data["manifest"], "split_hash": data["split_hash"], "checkpoint": file_digest(path)[:16]}
    make_room(folder, stamp, read_json(metrics_path))
    metrics = {
        **test_metrics(tested, datamodule.seed),
        **stamp,
        "seed": task.data_description.get("seed"),
        "training_split_hash": task.data_description.get("split_hash"),
        **{f"version_{name}": version for name, version in versions().items()},
    }
    write_predictions(folder / "predictions.csv", tested)
    where = most_confident_mistakes(tested.label, tested.probability)
    mistakes = datamodule.dataset("test").source.read(where)["image"]
    write_figures(folder / "figures", tested, mistakes, metrics, folder / "metrics.csv", datamodule.manifest.classes)
    write_json(metrics_path, metrics)
    print_summary(metrics, folder)


def print_summary(metrics: dict[str, Any], folder: Path) -> None:
    """Print the headline numbers of a test and where everything is."""
    low, high = metrics.get("auroc_low"), metrics.get("auroc_high")
    interval = "" if low is None or high is None else f" (95 % interval over groups {low:.3f} to {high:.3f})"
    print(
        f"test: {metrics['n']:,} patches of {metrics['n_groups']} groups\n"
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
    if trainer.world_size > 1:
        raise DataError("Prediction runs on one device: pass --trainer.devices 1.")
    outputs = trainer.predict_loop.predictions
    logit = np.concatenate([output["logit"].cpu().double().numpy() for output in outputs])
    calibration = task.calibration
    if calibration is None:
        rank_zero_warn(f"{path} is not calibrated: its probabilities are those of the network. Run `test` once.")
        calibration = Calibration()
    probability, spread = calibration.apply(logit.mean(1)), calibration.apply(logit).std(1)
    assert datamodule.images is not None  # `setup` refuses to predict without
    target = run_of(path) / f"predictions_{Path(datamodule.images).stem.strip('*') or 'images'}.csv"
    with atomic_path(target) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["id", "probability", "spread", "called"])
        for name, p, s in zip(datamodule.ids("predict"), probability, spread, strict=True):
            writer.writerow([name, f"{p:.6f}", f"{s:.6f}", int(p >= calibration.threshold)])
    print(f"{len(probability):,} patches predicted: {target}")


def read_json(path: Path) -> dict[str, Any] | None:
    """Content of a JSON file; None when it is missing or not readable."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
    return content
