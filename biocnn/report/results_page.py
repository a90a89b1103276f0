"""The page of a prediction: what was found in which image, what failed or is doubtful, and by which model.

Reads what `biocnn predict` wrote: ``predictions.csv``, ``predictions.json`` and ``images/<name>/``; and, where it is at
hand, the run folder of the model.
"""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from biocnn.errors import BiocnnError, DataError
from biocnn.inference.large import SIDE
from biocnn.report.model_card import NOT_FOR_DIAGNOSIS, model_card
from biocnn.report.page import (
    Card,
    Picture,
    bullets,
    details,
    element,
    facts,
    gallery,
    number,
    paragraph,
    rounded,
    table,
    tiles,
)
from biocnn.report.page_metrics import headline_tiles, in_words
from biocnn.report.page_pictures import as_colours, as_map, crop_to, encoded, read_pixels, side_for
from biocnn.report.run_cards import MAX_CARDS, Progress, number_in
from biocnn.report.run_folder import Row, Run, mapping, read_mapping, read_rows, read_run
from biocnn.report.run_page import MAX_ROWS, Sections

TABLE, RECORD = "predictions.csv", "predictions.json"
_MAX_BYTES = 300_000_000
"""Of a decoded map or mask: those of slides are left out, their thumbnails and overlays are small."""
_THREADS = 4
_TELLING = {"counting": "cells", "segmentation": "structure_px", "classification": "patches"}
_TITLES = {"counting": "Counted cells", "segmentation": "Tubular structures found", "classification": "Patches called"}
_NOTES = {
    "counting": "cells_low and cells_high are the ends of the interval of a count.",
    "segmentation": "structure_fraction is a share of the image, 0 to 1; px are pixels, um micrometres.",
    "classification": "positive_fraction is the share of patches called positive; probabilities are of 0 to 1.",
}


@dataclass(frozen=True)
class Results:
    """What the folder of a prediction holds.

    Attributes:
        folder: of the prediction.
        rows: of its table.
        record: content of ``predictions.json``; empty without it.
        run: run folder of the model, if it is at hand.
        missing: what is not there, in words.
    """

    folder: Path
    rows: tuple[Row, ...]
    record: Mapping[str, Any]
    run: Run | None
    missing: tuple[str, ...]

    @property
    def job(self) -> str:
        """As that of a run, by the columns of the table; ``""`` if nothing tells."""
        columns = self.rows[0] if self.rows else {}
        return next((job for job, column in _TELLING.items() if column in columns), self.run.job if self.run else "")


def is_results(folder: Path) -> bool:
    """Whether `biocnn predict` has written this folder: a pipeline's table has other columns."""
    if (folder / RECORD).is_file():
        return True
    rows = read_rows(folder / TABLE)
    return bool(rows) and {"image", "status"} <= set(rows[0])


def read_results(folder: Path) -> Results:
    """Read the folder of a prediction; what is missing or torn becomes a sentence of `missing`.

    Raises:
        DataError: if there is no row of a table.
    """
    rows = read_rows(folder / TABLE)
    if not rows:
        raise DataError(f"{folder / TABLE} is missing or has no rows: nothing was predicted. Run `biocnn predict`.")
    missing: list[str] = []
    record = read_mapping(folder / RECORD, "model, settings and versions", missing)
    path = mapping(record.get("model")).get("path", record.get("model"))
    run = _run_of(folder, path)
    if run is None:
        missing.append("the run folder of the model, with its tests and its data")
    return Results(folder, tuple(rows), record, run, tuple(missing))


def _run_of(folder: Path, checkpoint: object) -> Run | None:
    """The run folder of a checkpoint, whose path is as it was given to the prediction."""
    if not isinstance(checkpoint, str):
        return None
    for path in (Path(checkpoint), folder / checkpoint):
        if path.is_file() and path.parent.name == "checkpoints":
            try:
                return read_run(path.parent.parent)
            except BiocnnError:
                return None
    return None


def results_page(results: Results, progress: Progress) -> tuple[str, str, Sections]:
    """Title, subtitle and sections of the page of a prediction.

    Args:
        results: as :func:`read_results` reads them.
        progress: called while pictures are made.
    """
    order = doubtful_first(results.rows)
    columns = [name for name in results.rows[0] if any(row.get(name) for row in results.rows)]
    shown = [[results.rows[place].get(name, "") for name in columns] for place in order[:MAX_ROWS]]
    said = "A row for each image, failed and flagged ones first"
    if len(order) > MAX_ROWS:
        said += f"; {MAX_ROWS:,} of {len(order):,}, all of them are in {TABLE}"
    sections: dict[str, Sequence[object]] = {
        "In short": _summary(results),
        "Images": _images(results, order, progress),
        "Table": [paragraph("Click on a header to sort. ", _NOTES.get(results.job, "")), table(columns, shown, said)],
        "Model": _model(results),
        "How it was made": _record(results),
    }
    subtitle = f"{len(results.rows):,} images, predicted into {results.folder.resolve().name}."
    return (
        _TITLES.get(results.job, "Predictions"),
        subtitle,
        {name: parts for name, parts in sections.items() if parts},
    )


def has_failed(row: Row) -> bool:
    """Whether an image could not be predicted."""
    return row.get("status", "ok") != "ok"


def doubtful_first(rows: Sequence[Row]) -> list[int]:
    """Places of the rows: those that failed, those with flags, and the others, each in their order."""
    return sorted(range(len(rows)), key=lambda place: (not has_failed(rows[place]), not rows[place].get("flags")))


def _summary(results: Results) -> list[object]:
    failed = [row for row in results.rows if has_failed(row)]
    flagged = sum(bool(row.get("flags")) and not has_failed(row) for row in results.rows)
    done = [row for row in results.rows if not has_failed(row)]
    shown: list[tuple[str, object, object]] = [
        ("Images predicted", number(len(done)), f"of {len(results.rows):,}"),
        ("Failed", number(len(failed)), "see the table for the reason" if failed else "none"),
        ("With a warning", number(flagged), "shown first below" if flagged else "none"),
    ]
    totals = {
        "counting": ("Cells in all", "cells", "sum of the counts"),
        "segmentation": ("Structure", "structure_fraction", "mean share of an image, 0 to 1"),
        "classification": ("Positive patches", "positive_patches", "sum over the images"),
    }
    if results.job in totals:
        title, column, words = totals[results.job]
        values = [value for row in done if (value := number_in(row, column)) is not None]
        if values:
            shown.append((title, number(float(np.mean(values) if "mean" in words else np.sum(values))), words))
    parts: list[object] = [tiles(shown)]
    if failed:
        reasons = [f"{row.get('image', '')}: {row.get('message') or 'no reason was written'}" for row in failed[:10]]
        more = [f"and {len(failed) - 10} more"] if len(failed) > 10 else []
        parts += [paragraph(f"{len(failed)} image(s) failed:", kind="warning"), bullets([*reasons, *more])]
    if results.missing:
        parts.append(details(f"Not in this report ({len(results.missing)})", bullets(results.missing)))
    return parts


def _images(results: Results, order: Sequence[int], progress: Progress) -> list[object]:
    shown = order[:MAX_CARDS]
    side = side_for(len(shown))
    cards: list[Card] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        made = pool.map(lambda place: _pictures(results, results.rows[place], side), shown)
        for place, pictures in zip(shown, made, strict=True):
            words, alarm = _remark(results.job, results.rows[place])
            cards.append(Card(results.rows[place].get("image", ""), words, pictures, alarm))
            progress("pictures", len(cards), len(shown))
    if not any(card.pictures for card in cards):
        return [paragraph("No picture was found in the folder of the prediction: it holds the table alone.")]
    parts: list[object] = [paragraph("Images that failed come first, then those with a warning.")]
    if len(order) > len(shown):
        parts.append(paragraph(f"{len(shown)} of {len(order):,} are shown; the table has all.", kind="note"))
    return [*parts, gallery(cards)]


def _remark(job: str, row: Row) -> tuple[str, bool]:
    """What is said of an image, and whether that is a warning."""
    if has_failed(row):
        return f"failed: {row.get('message', '')}", True
    words = []
    if job == "counting" and (cells := number_in(row, "cells")) is not None:
        low, high = number_in(row, "cells_low"), number_in(row, "cells_high")
        words.append(
            f"{rounded(cells)} cells" + ("" if low is None or high is None else f" ({rounded(low)} to {rounded(high)})")
        )
    if job == "segmentation" and (share := number_in(row, "structure_fraction")) is not None:
        length, unit = number_in(row, "length_um"), "micrometres"
        if length is None:
            length, unit = number_in(row, "length_px"), "pixels"
        words.append(
            f"{100 * share:.1f} % structure" + ("" if length is None else f", {rounded(length)} {unit} of length")
        )
    if job == "classification" and (positive := number_in(row, "positive_patches")) is not None:
        words.append(f"{rounded(positive)} of {row.get('patches', '')} patches positive")
    return "; ".join([*words, *filter(None, [row.get("flags")])]), bool(row.get("flags"))


def _pictures(results: Results, row: Row, side: int) -> tuple[Picture, ...]:
    """Thumbnail, prediction and overlay of one image, as far as they are there."""
    folder = _folder_of(results.folder / "images", row)
    if folder is None:
        return ()
    rows, columns = number_in(row, "rows"), number_in(row, "columns")
    found: list[tuple[str, NDArray[np.uint8]]] = []
    image = read_pixels(folder / "thumbnail.png")
    mask = read_pixels(folder / "mask.png", max_bytes=_MAX_BYTES)
    values = None if mask is not None else read_pixels(folder / "map.ome.tif", max_bytes=_MAX_BYTES)
    drawn = read_pixels(folder / "overlay.png", max_bytes=_MAX_BYTES)
    if image is not None:
        found.append(("image", as_colours(image, side)))
    if mask is not None:
        found.append(("prediction", as_colours(mask, side)))
    elif values is not None and values.ndim == 2:
        found.append(("prediction", as_map(values, side=side)))
    if drawn is not None:
        if rows and columns:
            step = math.ceil(max(rows, columns) / SIDE)
            drawn = crop_to(drawn, math.ceil(rows / step), math.ceil(columns / step))
        found.append(("overlay", as_colours(drawn, side)))
    return tuple(encoded(kind, pixels) for kind, pixels in found)


def _folder_of(images: Path, row: Row) -> Path | None:
    """The folder of an image, as the table says; never one outside of `images`."""
    name = row.get("folder", "")
    if name in ("", ".", "..") or set("/\\\0") & set(name):
        return None
    return images / name if (images / name).is_dir() else None


def _model(results: Results) -> list[object]:
    run = results.run
    if run is None:
        said = "Left out: the run folder of the model is not at hand, so what it was trained on is not known."
        return [paragraph(said), paragraph(NOT_FOR_DIAGNOSIS, kind="warning")]
    tested = run.metrics.get("n_images", run.metrics.get("n"))
    words = "" if tested is None else f"{rounded(tested)} images or patches of {run.metrics.get('manifest')}"
    parts: list[object] = []
    if tested is not None:
        parts += [paragraph(in_words(run.job, run.metrics)), tiles(headline_tiles(run.job, run.metrics))]
    return [*parts, model_card(run.job, run.data, run.model, run.manifest, words)]


def _record(results: Results) -> list[object]:
    record = results.record
    groups = {
        "Model": mapping(record.get("model")),
        "Settings": mapping(mapping(record.get("made_by")).get("settings", record.get("settings"))),
        "Versions": mapping(record.get("versions")),
        "Units": mapping(record.get("units")),
    }
    parts: list[object] = []
    for title, values in groups.items():
        if values:
            known = facts((name.replace("_", " "), _in_words(value)) for name, value in values.items())
            parts += [element("h3", title), known]
    return parts


def _in_words(value: object) -> str:
    """A plain value of a record as text."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_in_words(item)}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_in_words, value))
    return "" if value is None else str(value)
