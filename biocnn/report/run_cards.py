"""The gallery of a tested run: which images come first, their pictures and what is said of them."""

import math
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from biocnn.data.file_names import file_names
from biocnn.data.patches import open_patch_source
from biocnn.errors import BiocnnError
from biocnn.report.page import Card, Picture, rounded
from biocnn.report.page_pictures import as_colours, as_map, crop_to, encoded, read_pixels, side_for
from biocnn.report.run_folder import Row, Run

MAX_CARDS = 200
"""Of a gallery: what is beyond is in the table."""
Progress = Callable[[str, int, int | None], None]

_PLANE = re.compile(r"#(\d+)$")
_THREADS = 4  # decoding and encoding leave the interpreter free


def number_in(row: Row, name: str) -> float | None:
    """A number of a table; None where it is missing, empty or not finite."""
    try:
        value = float(row.get(name, ""))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def error_of(job: str, row: Row) -> float | None:
    """How wrong an image is, in the job's own measure: larger is worse; None if nobody knows.

    1 - Dice; the error of the count without its sign; how far the probability of a patch is from its label, and 1 more
    if it is called wrongly, so that confident mistakes come before all that is right.
    """
    if job == "segmentation":
        dice = number_in(row, "dice")
        return None if dice is None else 1 - dice
    if job == "counting":
        error = number_in(row, "error")
        return None if error is None else abs(error)
    label, probability, called = (number_in(row, name) for name in ("label", "probability", "called"))
    if label is None or probability is None:
        return None
    return abs(probability - label) + (called is not None and called != label)


def worst_first(job: str, rows: Sequence[Row]) -> list[int]:
    """Places of the rows from the worst to the best, equal ones in their order; those without an error come last."""
    errors = [error_of(job, row) for row in rows]
    return sorted(range(len(rows)), key=lambda place: (errors[place] is None, -(errors[place] or 0.0)))


def run_cards(run: Run, order: Sequence[int], progress: Progress) -> list[Card]:
    """Cards of images with their pictures, in the order given; an image without any has its words only.

    Args:
        run: that was tested.
        order: places in its table.
        progress: called with what is made, how many are done, and of how many.
    """
    if run.job == "classification":
        pictures = _patches(run, order)
    else:
        side = side_for(len(order))
        names = file_names([row.get("id", "") for row in run.rows])
        pictures = {}
        with ThreadPoolExecutor(_THREADS) as pool:
            made = pool.map(lambda place: _pictures(run, run.rows[place].get("id", ""), names[place], side), order)
            for place, found in zip(order, made, strict=True):
                pictures[place] = found
                progress("pictures", len(pictures), len(order))
    return [_card(run, run.rows[place], pictures.get(place, ())) for place in order]


def _card(run: Run, row: Row, pictures: tuple[Picture, ...]) -> Card:
    words, alarm = _remark(run, row)
    return Card(row.get("id", ""), words, pictures, alarm)


def _remark(run: Run, row: Row) -> tuple[str, bool]:
    """What is said of an image, and whether that is a warning."""
    if run.job == "segmentation":
        names = {"Dice": "dice", "clDice": "cldice", "pieces off by": "betti0_error", "loops off by": "betti1_error"}
        columns = {name: next((key for key in row if key.startswith(name)), name) for name in names.values()}
        values = {text: number_in(row, columns[name]) for text, name in names.items()}
        return ", ".join(f"{text} {rounded(value)}" for text, value in values.items() if value is not None), False
    if run.job == "counting":
        count, true, error = (number_in(row, name) for name in ("count", "true", "error"))
        if count is None or true is None or error is None:
            return row.get("flags", ""), bool(row.get("flags"))
        words = f"counted {rounded(count)}, true {rounded(true)}: {'+' if error > 0 else ''}{rounded(error)}"
        return "; ".join([words, *filter(None, [row.get("flags")])]), bool(row.get("flags"))
    classes = list(run.data.get("classes") or ("negative", "positive"))
    label, probability, called = (number_in(row, name) for name in ("label", "probability", "called"))
    if label is None or probability is None:
        return "", False
    named = classes[int(label)] if int(label) in range(len(classes)) else f"{label:g}"
    wrong = called is not None and called != label
    words = f"labelled {named}, probability of {classes[-1]} {probability:.3f}{': called wrongly' if wrong else ''}"
    group = f"; {row['group']}" if row.get("group") else ""
    return words + group, wrong


def _pictures(run: Run, name: str, file: str, side: int) -> tuple[Picture, ...]:
    """Image, prediction and overlay of one image, as far as they are there."""
    found: list[tuple[str, NDArray[np.uint8]]] = []
    image = _read_image(run.root, name)
    values = read_pixels(run.folder / "maps" / f"{file}.tif")
    mask = read_pixels(run.folder / "masks" / f"{file}.png")
    drawn = read_pixels(run.folder / "figures" / "overlays" / f"{file}.png")
    if image is not None:
        found.append(("image", as_colours(image, side)))
    if values is not None and values.ndim == 2:
        found.append(("prediction", as_map(values, 1.0 if run.job == "segmentation" else None, side)))
    elif mask is not None:
        found.append(("prediction", as_colours(mask, side)))
    like = next((pixels for pixels in (image, values, mask) if pixels is not None), None)
    if drawn is not None:
        found.append(("overlay", as_colours(drawn if like is None else crop_to(drawn, *like.shape[:2]), side)))
    return tuple(encoded(kind, pixels) for kind, pixels in found)


def _read_image(root: Path | None, name: str) -> NDArray[np.generic] | None:
    """The image of an id below the folder of the data; never one from outside of it."""
    path = PurePosixPath(_PLANE.sub("", name))
    if root is None or path.is_absolute() or ".." in path.parts or not name:
        return None
    plane = _PLANE.search(name)
    return read_pixels(root / path, None if plane is None else int(plane[1]))


def _patches(run: Run, order: Sequence[int]) -> dict[int, tuple[Picture, ...]]:
    """The patches of a test, whose ids are split and row."""
    if run.manifest is None or run.root is None or run.manifest.kind != "patches-hdf5":
        return {}
    found: dict[str, list[tuple[int, int]]] = {}
    for place in order:
        split, _, row = run.rows[place].get("id", "").partition(":")
        if row.isdecimal() and split in run.manifest.splits:
            found.setdefault(split, []).append((place, int(row)))
    pictures: dict[int, tuple[Picture, ...]] = {}
    for split, members in found.items():
        try:
            source = open_patch_source(run.manifest, run.root, split)
        except (BiocnnError, OSError):
            continue
        known = [(place, row) for place, row in members if row < len(source)]
        if known:
            images = source.read(np.array([row for _, row in known]))["image"]
            for (place, _), pixels in zip(known, images, strict=True):
                pictures[place] = (encoded("image", as_colours(pixels)),)
    return pictures
