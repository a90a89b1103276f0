"""What the segmentation pipeline does around training, testing and predicting: threshold, report, maps."""

import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import yaml
from PIL import Image
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn

from biocnn.checkpoints import read_biocnn_checkpoint, update_biocnn_section
from biocnn.data.file_names import file_names
from biocnn.data.manifest import load_manifest
from biocnn.data.segmentation_module import SegmentationDataModule
from biocnn.errors import DataError
from biocnn.files import write_json
from biocnn.inference.tables import write_csv
from biocnn.report.segmentation import print_summary, test_metrics, write_figures, write_table
from biocnn.report.segmentation_figures import best_median_worst
from biocnn.tasks.segmentation import SegmentationTask
from biocnn.training.maps import MapWriter
from biocnn.training.processes import check_each_once, gathered
from biocnn.training.runs import (
    check_kind,
    make_room,
    open_validation,
    prediction_path,
    read_json,
    result_stamp,
    run_of,
    versions,
)

_OVERLAYS = "figures/overlays"


def fill_channels(config: Any) -> None:
    """Give a network whose ``in_channels`` is null the channels of the data, and one for the map of a refinement.

    Raises:
        DataError: if it has another number, or is made for three dimensions.
    """
    arguments = config.model.network.get("init_args")
    if arguments is None:
        return
    for name in ("dimensions", "spatial_dims"):  # the latter is MONAI's
        if arguments.get(name) == 3:
            raise DataError(
                f"model.network.init_args.{name} is 3, but this pipeline trains on images of two dimensions, the "
                "planes of stacks one by one. Set it to 2."
            )
    if "in_channels" not in arguments:
        return
    names = list(load_manifest(config.data.manifest).channels)
    if config.model.refinement_steps > 1:
        names.append("the previous map")
    if arguments.in_channels is None:
        arguments.in_channels = len(names)
        rank_zero_info(f"model.network.init_args.in_channels: {len(names)} ({', '.join(names)})")
    elif arguments.in_channels != len(names):
        raise DataError(
            f"model.network.init_args.in_channels is {arguments.in_channels}, and the network will be given "
            f"{len(names)} channel(s): {', '.join(names)}. Set it to {len(names)}, or to null."
        )


def choose_threshold_of_run(
    trainer: pl.Trainer, task: SegmentationTask, datamodule: SegmentationDataModule, best: Path
) -> None:
    """After training: choose the threshold of ``best.ckpt`` on the validation split, and store it in the file."""
    if not best.is_file():
        rank_zero_warn(
            "The training ended before its first validation, so there is no best.ckpt and no threshold. Train longer, "
            "or validate more often: --trainer.check_val_every_n_epoch 1."
        )
        return
    task.load_checkpoint(best)
    choose_threshold(trainer, task, datamodule)
    if trainer.is_global_zero:
        update_biocnn_section(best, **task.learned())
    trainer.strategy.barrier()
    script = shlex.join([Path(sys.executable).name, sys.argv[0]])
    given = f"--data.root {datamodule.root} --data.manifest {datamodule.manifest_argument}"
    rank_zero_info(f"Trained. To test it: {script} test --ckpt_path {best} {given}")


def choose_threshold(trainer: pl.Trainer, task: SegmentationTask, datamodule: SegmentationDataModule) -> None:
    """Predict the validation images as `test` will, and choose the thresholds by them."""
    trainer.validate(task, datamodule, verbose=False)
    rank_zero_info(f"Chosen on validation: {task.thresholds}")


def choose_threshold_if_needed(
    trainer: pl.Trainer, task: SegmentationTask, datamodule: SegmentationDataModule, path: Path
) -> None:
    """Before a test: choose the threshold again if the stored one is for another way to predict.

    So it is after a training that was killed, whose threshold is that of one view, and when a test asks for other views
    or steps than the training. The test images are never used for it.

    Raises:
        DataError: if the images are of another kind than those of the training, or the validation split is not the one
            that the checkpoint was chosen on.
    """
    stored = read_biocnn_checkpoint(path)["biocnn"]
    check_kind(datamodule.manifest, stored["data"], path)
    if task.threshold_fits:
        return
    open_validation(datamodule, stored["data"], path)
    choose_threshold(trainer, task, datamodule)
    decisive = ("test_time_augmentation", "prediction_steps", "drop_specks", "min_size")
    same = all(task.settings()[name] == stored["settings"][name] for name in decisive)
    if same and trainer.is_global_zero:
        update_biocnn_section(path, **task.learned())


def segmentation_writers(subcommand: str, checkpoint: Path, datamodule: SegmentationDataModule) -> list[Callback]:
    """The callback that writes maps, masks and overlays: of `test` into the run folder, of `predict` into a new one."""
    if subcommand == "test":
        return [TestMaps(checkpoint)]
    if subcommand == "predict":
        return [MapWriter(prediction_path(run_of(checkpoint), datamodule.images or "images", ""))]
    return []


class TestMaps(MapWriter):
    """Maps of a test in its run folder; results of other data or of another checkpoint are moved aside first."""

    __test__ = False

    def __init__(self, checkpoint: Path) -> None:
        super().__init__(run_of(checkpoint), _OVERLAYS)
        self._checkpoint = checkpoint

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make room, then choose the names of the files."""
        if trainer.is_global_zero:
            stamp = _stamp(trainer.datamodule, self._checkpoint)  # type: ignore[attr-defined]
            make_room(self.folder, stamp, read_json(self.folder / "metrics.json"))
        trainer.strategy.barrier()
        super().on_test_start(trainer, pl_module)


def report_test(trainer: pl.Trainer, task: SegmentationTask, datamodule: SegmentationDataModule, path: Path) -> None:
    """After a test: write ``metrics.json``, ``predictions.csv`` and figures into the run folder."""
    table = task.test_metrics.compute()
    rules = task.test_metrics.rules
    task.test_metrics.reset()
    if not trainer.is_global_zero:
        return
    ids = datamodule.ids("test")
    if len(table["index"]) != len(ids):
        raise DataError(f"{len(table['index'])} of {len(ids)} test images were predicted.")
    folder = run_of(path)
    metrics = {
        **test_metrics(table, rules, datamodule.groups("test"), datamodule.seed),
        **_stamp(datamodule, path),
        "views": task.views,
        "steps": task.step_count,
        "seed": task.data_description.get("seed"),
        "training_split_hash": task.data_description.get("split_hash"),
        **{f"version_{name}": version for name, version in versions().items()},
    }
    write_table(folder / "predictions.csv", table, ids, datamodule.groups("test"))
    names = file_names(ids)
    pictures = [_read_picture(folder, names[row]) for row in best_median_worst(table).values()]
    write_figures(folder / "figures", table, ids, metrics, folder / "metrics.csv", pictures, _monitor(folder))
    write_json(folder / "metrics.json", metrics)
    print_summary(metrics, folder)


def _stamp(datamodule: SegmentationDataModule, checkpoint: Path) -> dict[str, Any]:
    """What results come from; the test split alone, whether or not a threshold had to be chosen on validation."""
    data = datamodule.describe()
    return result_stamp({**data, "split_hash": data["test_hash"]}, checkpoint)


def _monitor(folder: Path) -> str | None:
    """The metric that chose ``best.ckpt``; None for a checkpoint without a run folder."""
    config = folder / "config.yaml"
    if not config.is_file():
        return None
    found: str | None = yaml.safe_load(config.read_text(encoding="utf-8")).get("monitor")
    return found


def _read_picture(folder: Path, name: str) -> np.ndarray:
    """The overlay of an image, without the legend below it."""
    with Image.open(folder / "masks" / f"{name}.png") as mask, Image.open(folder / _OVERLAYS / f"{name}.png") as whole:
        return np.asarray(whole.crop((0, 0, mask.width, mask.height)))


def report_prediction(
    trainer: pl.Trainer, task: SegmentationTask, datamodule: SegmentationDataModule, path: Path
) -> None:
    """After a prediction: write ``predictions.csv``, a row per image, beside the maps, masks and overlays."""
    writer = next(callback for callback in trainer.callbacks if isinstance(callback, MapWriter))  # type: ignore[attr-defined]
    if not task.threshold_fits:
        rank_zero_warn(
            f"{path} has a threshold that was chosen for another number of views or steps. Run `test` once, or predict "
            "with the settings of the training."
        )
    found = gathered(writer.rows)
    check_each_once([row["id"] for row in found], datamodule.ids("predict"))
    if not trainer.is_global_zero:
        return
    target = writer.folder / "predictions.csv"
    write_csv(target, found)
    print(
        f"{len(found):,} image(s) predicted, {task.thresholds}\n"
        f"table:    {target}\n"
        f"maps:     {writer.folder / 'maps'} (float32 TIFF, probability)\n"
        f"masks:    {writer.folder / 'masks'} (PNG, 0 and 255)\n"
        f"pictures: {writer.folder / 'overlays'}"
    )
