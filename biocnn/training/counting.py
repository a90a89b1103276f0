"""What the counting pipeline does around training, testing and predicting: interval, batch norm, report, tables."""

import copy
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from torch.nn.modules.batchnorm import _BatchNorm

from biocnn.checkpoints import AtomicCheckpointIO, read_biocnn_checkpoint, update_biocnn_section
from biocnn.data.batches import to_float
from biocnn.data.counting_module import CountingDataModule
from biocnn.data.file_names import file_names
from biocnn.data.fingerprint import scale
from biocnn.data.manifest import load_manifest
from biocnn.data.point_fingerprint import share_beyond
from biocnn.data.point_images import PointImages
from biocnn.data.point_tiles import PointTiles
from biocnn.errors import DataError
from biocnn.files import write_json
from biocnn.inference.counting import flags_of, interval_reason
from biocnn.inference.tables import write_csv
from biocnn.networks.batch_norm import reestimate_batch_norm
from biocnn.report.counting import (
    best_median_worst,
    column_of,
    print_summary,
    test_metrics,
    test_rows,
    write_figures,
)
from biocnn.tasks.counting import CountingTask, intensities, warn_of_nothing
from biocnn.training.count_files import TABLE, CountWriter, TestCounts, stamp_of
from biocnn.training.processes import check_each_once, gathered
from biocnn.training.runs import check_kind, open_validation, prediction_path, run_of, versions

FEW_IMAGES = 64
"""Training images up to which batch norm is estimated again: the most of the sets it was proposed for, SAU-Net's."""
_CLEAN_TILES = 256  # more images change the statistics by less than the noise of a training


def fill_channels(config: Any) -> None:
    """Give a network whose ``in_channels`` is null the channels of the data.

    Raises:
        DataError: if it has another number.
    """
    arguments = config.model.network.get("init_args")
    if arguments is None or "in_channels" not in arguments:
        return
    names = list(load_manifest(config.data.manifest).channels)
    if arguments.in_channels is None:
        arguments.in_channels = len(names)
        rank_zero_info(f"model.network.init_args.in_channels: {len(names)} ({', '.join(names)})")
    elif arguments.in_channels != len(names):
        raise DataError(
            f"model.network.init_args.in_channels is {arguments.in_channels}, and the images have {len(names)} "
            f"channel(s): {', '.join(names)}. Set it to {len(names)}, or to null."
        )


def finish_run(trainer: pl.Trainer, task: CountingTask, datamodule: CountingDataModule, best: Path) -> None:
    """After training: estimate batch norm again where that helps, fit the interval, and store both in ``best.ckpt``."""
    if not best.is_file():
        rank_zero_warn(
            "The training ended before its first validation, so there is no best.ckpt and no interval. Train longer, "
            "or validate more often: --trainer.check_val_every_n_epoch 1."
        )
        return
    task.load_checkpoint(best)
    error = fit_interval(trainer, task, datamodule)
    improved = _wants_reestimation(task, datamodule) and _improve_batch_norm(trainer, task, datamodule, error)
    if trainer.is_global_zero:
        if improved:
            checkpoint = read_biocnn_checkpoint(best)
            checkpoint["state_dict"] = {name: value.cpu() for name, value in task.state_dict().items()}
            AtomicCheckpointIO().save_checkpoint(checkpoint, best)
        update_biocnn_section(best, **task.learned())
    trainer.strategy.barrier()
    assert task.interval is not None
    if task.interval.note:
        rank_zero_warn(f"No interval of counts: {interval_reason(task)}.")
    else:
        text = f"count -/+ {task.interval.quantile:.3f} * count^{task.interval.power:g}"
        images = f"{task.interval.images} validation images{', one of each group' if task.interval_per_group else ''}"
        rank_zero_info(f"Interval of {100 * (1 - task.alpha):g} %: {text} ({images})")
    script = shlex.join([Path(sys.executable).name, sys.argv[0]])
    given = shlex.join(["--data.root", str(datamodule.root), "--data.manifest", str(datamodule.manifest_argument)])
    rank_zero_info(f"Trained. To test it: {script} test --ckpt_path {best} {given}")


def fit_interval(trainer: pl.Trainer, task: CountingTask, datamodule: CountingDataModule) -> float:
    """Count the validation images as `test` will, and fit factor and interval on them.

    Returns:
        Their mean absolute error, counts multiplied by the factor.
    """
    task.count_factor = 1.0
    found = trainer.validate(task, datamodule, verbose=False)[0]
    rank_zero_info(
        f"Validation in {task.views} view(s): MAE {found['val_mae']:.3f}, bias {found['val_bias']:+.3f}; "
        f"MAE {found['val_mae_scaled']:.3f} with counts times {task.count_factor:.4f}"
    )
    return float(found["val_mae_scaled"])


def _wants_reestimation(task: CountingTask, datamodule: CountingDataModule) -> bool:
    wanted = task.reestimate_batch_norm
    if wanted is None:
        wanted = len(datamodule.points("train")) <= FEW_IMAGES
    return wanted and any(
        isinstance(module, _BatchNorm) and module.running_mean is not None for module in task.network.modules()
    )


def _improve_batch_norm(trainer: pl.Trainer, task: CountingTask, datamodule: CountingDataModule, error: float) -> bool:
    """Estimate batch norm again; if the validation images are counted worse, take back the old statistics."""
    before, learned = copy.deepcopy(task.network.state_dict()), copy.deepcopy(task.learned())
    device = trainer.strategy.root_device
    reestimate_batch_norm(task.to(device), _clean_tiles(task, datamodule), device)
    again = fit_interval(trainer, task, datamodule)
    better = again < error
    if not better:
        task.network.load_state_dict(before)
        task.restore_learned({**learned, "settings": task.settings()})
    rank_zero_info(
        f"Batch norm of clean training tiles: validation MAE {error:.3f} before, {again:.3f} after; "
        f"{'kept' if better else 'not kept'}"
    )
    return better


def _clean_tiles(task: CountingTask, datamodule: CountingDataModule) -> Iterator[torch.Tensor]:
    """Batches of upright training tiles (B, C, T, T) in 0..1, as many of every image, all of one size."""
    images, found = datamodule.points("train"), task.data_description["fingerprint"]
    size, side = datamodule.batch_size, datamodule.tile_size
    assert side is not None  # chosen when the training set was opened
    length = max(min(datamodule.tiles_per_epoch or size, _CLEAN_TILES), size) // size * size
    low, high = found["intensity_range"]
    tiles = PointTiles(images, datamodule.widths(images), side, length, None, (low, high), datamodule.seed)
    for first in range(0, length, size):
        yield to_float(tiles.__getitems__(range(first, first + size)))["image"]


def prepare_test(trainer: pl.Trainer, task: CountingTask, datamodule: CountingDataModule, path: Path) -> None:
    """Before a test: fit the interval again if the stored one is for another way to predict.

    So it is after a training that was killed, and when a test asks for other views or another alpha than the training.
    The test images are never used for it.

    Raises:
        DataError: if the images are of another kind than those of the training, or the validation split is not the one
            that the checkpoint was chosen on.
    """
    stored = read_biocnn_checkpoint(path)["biocnn"]
    check_kind(datamodule.manifest, stored["data"], path)
    if task.interval_fits:
        return
    open_validation(datamodule, stored["data"], path)
    fit_interval(trainer, task, datamodule)
    same = all(task.settings()[name] == stored["settings"][name] for name in ("test_time_augmentation", "alpha"))
    if same and trainer.is_global_zero:
        update_biocnn_section(path, **task.learned())


def counting_writers(subcommand: str, checkpoint: Path, datamodule: CountingDataModule) -> list[Callback]:
    """What writes maps, points and overlays: of `test` into the run folder, of `predict` into a new one.

    The width of the kernels is taken from the checkpoint here: with several processes the data are looked at before
    there is a task that the datamodule could ask.
    """
    if (datamodule.sigma, datamodule.sigma_um, datamodule.neighbours) == (None, None, None):
        trained_on = read_biocnn_checkpoint(checkpoint)["biocnn"]["data"]
        datamodule.sigma, datamodule.sigma_um = trained_on.get("sigma"), trained_on.get("sigma_um")
        datamodule.neighbours = trained_on.get("neighbours")
    if subcommand == "test":
        return [TestCounts(checkpoint)]
    if subcommand == "predict":
        folder = prediction_path(run_of(checkpoint), datamodule.images or "images", "")
        return [CountWriter(folder, rois=datamodule.rois)]
    return []


def report_test(trainer: pl.Trainer, task: CountingTask, datamodule: CountingDataModule, path: Path) -> None:
    """After a test: write ``metrics.json``, ``predictions.csv`` and figures into the run folder."""
    table = task.test_metrics.compute()
    task.test_metrics.reset()
    if not trainer.is_global_zero:
        return
    ids, groups, images = datamodule.ids("test"), datamodule.groups("test"), datamodule.points("test")
    if len(table["index"]) != len(ids):
        raise DataError(f"{len(table['index'])} of {len(ids)} test images were counted.")
    folder = run_of(path)
    metrics = {
        **test_metrics(table, task.interval, task.floors, intensities(images), groups, datamodule.seed),
        "predicts_zero": warn_of_nothing(table, "test"),
        **stamp_of(datamodule, path),
        "views": task.views,
        "density_scale": task.density_scale,
        "count_factor": task.count_factor,
        "interval_per_group": task.interval_per_group,
        "seed": task.data_description.get("seed"),
        "training_images": (task.data_description.get("sizes") or {}).get("train"),
        "training_split_hash": task.data_description.get("split_hash"),
        **{f"version_{name}": version for name, version in versions().items()},
    }
    metrics["interval_note"] = interval_reason(task) or metrics["interval_note"]
    flags = _test_flags(task, column_of(table, "predicted_count").tolist(), images)
    write_csv(folder / "predictions.csv", test_rows(table, ids, groups, task.interval, flags))
    names = file_names(ids)
    shown = best_median_worst(table).values()
    pictures = [
        _picture(folder / "figures/overlays" / f"{names[row]}.png", *images.images[row].shape[:2]) for row in shown
    ]
    write_figures(folder / "figures", table, ids, task.interval, metrics, folder / "metrics.csv", pictures)
    write_json(folder / "metrics.json", metrics)
    print_summary(metrics, folder)


def _test_flags(task: CountingTask, counts: Sequence[float], images: PointImages) -> list[list[str]]:
    low, high = (task.data_description.get("fingerprint") or {}).get("intensity_range", (0.0, 255.0))
    flags = []
    for row, count in enumerate(counts):
        values = scale(images.images[row].astype(np.float32), (low, high))
        beyond = share_beyond(images.pixels_inside(row), (low, high))
        flags.append(flags_of(task, count, values, images.pixel_sizes[row], images.valid[row], beyond))
    return flags


def _picture(path: Path, height: int, width: int) -> np.ndarray:
    """An overlay without the legend below it."""
    with Image.open(path) as whole:
        return np.asarray(whole.crop((0, 0, width, height)))


def report_prediction(trainer: pl.Trainer, task: CountingTask, datamodule: CountingDataModule, path: Path) -> None:
    """After a prediction: say what was written, a table with a row per image and region, maps, points and overlays."""
    writer = next(callback for callback in trainer.callbacks if isinstance(callback, CountWriter))  # type: ignore[attr-defined]
    rows = gathered(writer.rows)
    check_each_once([row["id"] for row in rows if not row["region"]], datamodule.ids("predict"))
    if writer.table.name != TABLE:
        writer.table.unlink()
    if not trainer.is_global_zero:
        return
    write_csv(writer.folder / TABLE, rows)
    flagged = sum(bool(row["flags"]) for row in rows)
    images = sum(not row["region"] for row in rows)
    print(
        f"{images:,} image(s) counted, {len(rows) - images:,} region(s); {flagged:,} row(s) with flags\n"
        f"table:    {writer.folder / TABLE}\n"
        f"maps:     {writer.folder / 'maps'} (float32 TIFF, cells per pixel)\n"
        f"points:   {writer.folder / 'points'} (CSV)\n"
        f"pictures: {writer.folder / 'overlays'}"
    )
