"""Prediction of many images into one folder, one after another: a broken one is noted, and does not stop the others."""

import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import biocnn
from biocnn.delineation.delineate import Method
from biocnn.errors import BiocnnError
from biocnn.files import file_digest
from biocnn.inference.classification import PatchClassifier
from biocnn.inference.counting import Counter
from biocnn.inference.large import MapFormat, predict_large
from biocnn.inference.results import COUNT_COLUMNS, PATCH_COLUMNS, STRUCTURE_COLUMNS, TubularityResult
from biocnn.inference.segmentation import Segmenter
from biocnn.inference.sources import Opened, Reading, channel_names, find_images, open_source, pages_of
from biocnn.inference.tables import check_parquet
from biocnn.report.prediction_folder import Item, OutputError, PredictionFolder
from biocnn.report.prediction_pictures import write_large_pictures, write_pictures
from biocnn.report.segments import write_segments

Model = Segmenter | Counter | PatchClassifier
Progress = Callable[[str, int, int | None], None]

UNITS = {
    "px": "pixels of the image as it is in its file",
    "um": "micrometres",
    "um2": "square micrometres",
    "mm2": "square millimetres",
    "cells": "cells, the sum of the density; cells_low and cells_high are the ends of its interval",
    "probability": "0..1",
    "fraction": "0..1",
}
"""What stands at the end of the names of columns."""
# What a damaged image, or one that is too large, can lead to beside the errors of biocnn; others are defects.
_FAILURES = (BiocnnError, OSError, ValueError, RuntimeError, MemoryError)


@dataclass(frozen=True)
class Settings:
    """How images are predicted, and what is written.

    Attributes:
        reading: how they are read.
        graph: method of the delineation of structures; None for no graphs.
        map_format: of the maps and masks of images that are predicted by tiles.
        parquet: whether the table is written as Parquet, too.
        overwrite: whether results of another model or other settings, in the same folder, may be deleted.
    """

    reading: Reading = field(default_factory=Reading)
    graph: Method | None = "skeleton"
    map_format: MapFormat = "ome-tiff"
    parquet: bool = False
    overwrite: bool = False

    def lasting(self) -> dict[str, Any]:
        """What results depend on, plain data."""
        reading = asdict(self.reading)
        del reading["max_bytes"]
        return {**reading, "graph": self.graph, "map_format": self.map_format}


def predict_images(
    model: Model,
    checkpoint: str | Path,
    images: Sequence[str | Path],
    out: str | Path,
    settings: Settings = Settings(),
    progress: Progress = lambda name, done, total: None,
    say: Callable[[str], None] = print,
) -> PredictionFolder:
    """Predict images, those that are not finished yet, and write what :mod:`biocnn.report.prediction_folder` describes.

    Args:
        model: as of :func:`biocnn.load`.
        checkpoint: that it was loaded from.
        images: paths, globs, folders and URLs, see :func:`biocnn.inference.sources.find_images`.
        out: folder, made when missing.
        settings: how.
        progress: called with a name, a number that is done, and that of all.
        say: called with a line for each image that fails or is resampled.

    Returns:
        The folder, with a row for each image; those with another status than ``"ok"`` failed.

    Raises:
        DatasetNotFoundError: if nothing matches one of `images`.
        DataError: if the folder holds results of another model or other settings, or cannot be written.
    """
    if settings.parquet:
        check_parquet()
    items = [Item(path, page) for path in find_images(images) for page in pages_of(path, settings.reading)]
    made_by = {"model": file_digest(checkpoint)[:16], "settings": {**settings.lasting(), "views": model.task.views}}
    folder = PredictionFolder(Path(out), made_by, _columns(model), settings.overwrite)
    record = {"model": _about(model, checkpoint), "units": UNITS, "versions": _versions()}
    folder.write_record(**record)
    wanted = [item for item in items if not folder.is_finished(item)]
    if len(wanted) < len(items):
        say(f"{len(items) - len(wanted):,} of {len(items):,} image(s) are finished already.")
    try:
        for number, item in enumerate(wanted):
            progress("images", number, len(wanted))
            _predict_one(model, item, folder, settings, progress, say)
            folder.write_table(now=False)
        progress("images", len(wanted), len(wanted))
        folder.forget_unfinished()
    finally:
        folder.write_table(parquet=settings.parquet)
    return folder


def _predict_one(
    model: Model,
    item: Item,
    folder: PredictionFolder,
    settings: Settings,
    progress: Progress,
    say: Callable[[str], None],
) -> None:
    reading = settings.reading if item.page is None else replace(settings.reading, page=item.page)
    try:
        with open_source(item.path, reading, channel_names(model.task), model.pixel_size_um) as opened:
            if opened.is_large(reading):
                message = _predict_large(model, item, opened, folder, settings, progress)
            else:
                message = _predict_whole(model, item, opened, reading, folder, settings)
    except OutputError:
        raise
    except _FAILURES as error:
        said = str(error) if isinstance(error, BiocnnError) else f"{type(error).__name__}: {error}"
        message = " ".join(said.split())
        folder.fail(item, message)
        say(f"failed: {message}" if item.path in message else f"failed: {item.id}: {message}")
        return
    if message:
        say(f"{item.id}: {message}")


def _predict_whole(
    model: Model, item: Item, opened: Opened, reading: Reading, folder: PredictionFolder, settings: Settings
) -> str:
    """Predict an image in memory and write its files; returns what has to be said of it."""
    result = model.predict_opened(opened, reading)
    graph = None
    if isinstance(result, TubularityResult):
        graph = None if settings.graph is None else result.graph(method=settings.graph)
        measures = result.measures(graph)
    else:
        measures = result.measures()
    with folder.place(item) as (place, row):
        result.save(place, graph) if isinstance(result, TubularityResult) else result.save(place)
        write_pictures(place, result, graph)
        if graph is not None:
            write_segments(place / "segments.csv", graph)
        row |= {**_common(opened, result.flags), **measures}
    return str(row["message"])


def _predict_large(
    model: Model,
    item: Item,
    opened: Opened,
    folder: PredictionFolder,
    settings: Settings,
    progress: Progress,
) -> str:
    """The same of an image larger than memory, whose map is written strip by strip."""
    name = f"tiles of {Path(item.path).name}"
    with folder.place(item) as (place, row):
        result = predict_large(
            model,
            opened,
            place,
            folder.unfinished(item),
            settings.map_format,
            lambda done, total: progress(name, done, total),
        )
        write_large_pictures(place, result)
        row |= {**_common(opened, result.flags), **result.measures}
    return str(row["message"])


def _common(opened: Opened, flags: Sequence[str]) -> dict[str, Any]:
    """Values of the columns that tables of all jobs have."""
    size, new = opened.image.pixel_size_um, opened.resampled_um
    message = ""
    if size is not None and new is not None:
        message = f"resampled from {size[0]:g} x {size[1]:g} to {new[0]:g} x {new[1]:g} um, as the training images"
    return {
        "message": message,
        "rows": opened.shape[0],
        "columns": opened.shape[1],
        "pixel_size_row_um": None if size is None else size[0],
        "pixel_size_column_um": None if size is None else size[1],
        "flags": "; ".join(flags),
        "resampled_row_um": None if new is None else new[0],
        "resampled_column_um": None if new is None else new[1],
    }


def _columns(model: Model) -> tuple[str, ...]:
    if isinstance(model, Segmenter):
        return STRUCTURE_COLUMNS
    return COUNT_COLUMNS if isinstance(model, Counter) else PATCH_COLUMNS


def _about(model: Model, checkpoint: str | Path) -> dict[str, Any]:
    """What the record says of the model."""
    task = model.task
    return {
        "path": str(Path(checkpoint).resolve()),
        "digest": file_digest(checkpoint),
        "task": type(task).__name__,
        "network": type(task.network).__name__,
        "trained_on": task.data_description.get("manifest"),
        "channels": list(channel_names(task)),
        "pixel_size_um": model.pixel_size_um,
        "views": task.views,
        **({} if isinstance(model, Counter) else {"threshold": float(model.threshold)}),
        **({"min_component": model.min_component} if isinstance(model, Segmenter) else {}),
        **({"classes": list(model.classes)} if isinstance(model, PatchClassifier) else {}),
    }


def _versions() -> dict[str, str]:
    return {
        "biocnn": biocnn.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }
