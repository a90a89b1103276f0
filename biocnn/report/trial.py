"""One image tried on a model: what the page of `biocnn app` shows, and the files that it hands out."""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from biocnn.errors import DataError
from biocnn.inference.results import COUNT_COLUMNS, PATCH_COLUMNS, STRUCTURE_COLUMNS
from biocnn.inference.sources import Reading, channel_names, open_source, pages_of
from biocnn.report.prediction_folder import IMAGES, RESULT, TABLE
from biocnn.report.prediction_pictures import GRAPH, OVERLAY, THUMBNAIL
from biocnn.report.predictions import Model, Settings, predict_images

PICTURES = ((THUMBNAIL, "image"), (OVERLAY, "overlay"), ("mask.png", "mask"), (GRAPH, "graph"))
"""Files of an image that are shown, those that are there, with their captions."""
MEASURES = (*STRUCTURE_COLUMNS, *COUNT_COLUMNS, *PATCH_COLUMNS)


@dataclass(frozen=True)
class Trial:
    """What came out for an image.

    Attributes:
        headline: the result in a few words.
        notes: what has to be known of it: flags, resampling, which plane it is of; often empty.
        measures: names of columns of the table, and values; those that are known.
        pictures: PNG files and their captions.
        table: ``predictions.csv``, one row.
        archive: ZIP of all files, as `biocnn predict` writes them.
    """

    headline: str
    notes: tuple[str, ...]
    measures: Mapping[str, Any]
    pictures: tuple[tuple[Path, str], ...]
    table: Path
    archive: Path


def try_image(model: Model, checkpoint: str | Path, image: str | Path, folder: Path, settings: Settings) -> Trial:
    """Predict one image, of a stack one plane.

    Args:
        model: as of :func:`biocnn.load`.
        checkpoint: that it was loaded from.
        image: path of a file, of any kind that `biocnn predict` reads.
        folder: an empty one; files are written to it, and nowhere else.
        settings: as of `biocnn predict`; an image with more than ``settings.reading.max_pixels`` is refused, by what
            its file says of its size and before it is decoded, and so is one that becomes larger when it is brought to
            the pixel size of the training. Without a page, the first plane of a stack is taken.

    Raises:
        DataError: if the image cannot be read, is too large, or does not fit the model. Messages call the image by its
            name without folders, which are those of the server.
    """
    path = Path(image)
    planes = pages_of(str(path), replace(settings.reading, page=None))
    reading = settings.reading if settings.reading.page is not None else replace(settings.reading, page=planes[0])
    results = folder / "results"
    try:
        _check_size(path, reading, model)
        done = predict_images(
            model, checkpoint, [path], results, replace(settings, reading=reading), say=lambda line: None
        )
        (row,) = done.rows.values()
        if row["status"] != "ok":
            raise DataError(str(row["message"]))
    except DataError as error:
        raise DataError(str(error).replace(str(path), path.name)) from error
    place = results / IMAGES / str(row["folder"])
    (place / RESULT).unlink()  # it is for going on, and names folders of the server
    done.rows = {path.name: {**row, "image": str(row["image"]).replace(str(path), path.name)}}
    done.write_table()
    notes = [str(row["message"]), str(row["flags"])]
    if len(planes) > 1:
        notes.insert(0, f"plane {reading.page} of {len(planes)}, counted from 0")
    measures = {name: row[name] for name in MEASURES if row.get(name) is not None}
    return Trial(
        _headline(measures),
        tuple(note for note in notes if note),
        measures,
        tuple((place / name, caption) for name, caption in PICTURES if (place / name).is_file()),
        results / TABLE,
        _packed(results, folder / f"{place.name}.zip"),
    )


def _check_size(path: Path, reading: Reading, model: Model) -> None:
    """Refuse an image that is too large; only its header is read."""
    with open_source(str(path), reading, channel_names(model.task), model.pixel_size_um) as opened:
        if not opened.is_large(reading):
            return
        (rows, columns), (new_rows, new_columns) = opened.shape, opened.prepared.shape[:2]
        resampled = "" if opened.resampled_um is None else f" ({new_rows:,} x {new_columns:,} as the training images)"
        many = max(rows * columns, new_rows * new_columns) > reading.max_pixels
        limit = f"{reading.max_pixels:,} px" if many else f"{reading.max_bytes / 1e6:,.0f} MB of pixels"
        raise DataError(
            f"{path.name} has {rows:,} x {columns:,} px{resampled}, and up to {limit} are taken here. Cut out a part, "
            "or use `biocnn predict`, which takes images of any size."
        )


def _headline(measures: Mapping[str, Any]) -> str:
    if "cells" in measures:
        interval = (
            f" ({measures['cells_low']:,.1f} to {measures['cells_high']:,.1f})" if "cells_low" in measures else ""
        )
        return f"{measures['cells']:,.1f} cells{interval}"
    if "patches" in measures:
        return f"{measures['positive_patches']:,} of {measures['patches']:,} patches positive"
    parts = [f"{100 * measures['structure_fraction']:.1f} % structure"]
    parts += [f"{measures[f'length_{unit}']:,.0f} {unit} long" for unit in ("um", "px") if f"length_{unit}" in measures]
    parts += [f"branch points: {measures['branch_points']:,}"] if "branch_points" in measures else []
    return ", ".join(parts)


def _packed(folder: Path, archive: Path) -> Path:
    """A ZIP of the files of a folder, by their paths in it."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                packed.write(path, path.relative_to(folder))
    return archive
