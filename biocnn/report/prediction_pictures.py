"""Pictures of predicted images: an overlay of what was found, the graph, and a small picture of the image."""

import math
from pathlib import Path

import networkx as nx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from biocnn.files import atomic_path
from biocnn.inference.large import SIDE, LargeResult
from biocnn.inference.results import CountResult, PatchResult, Result
from biocnn.report.counting import points_picture
from biocnn.report.graph_overlay import write_graph_overlay
from biocnn.report.overlay import CALLED, Colour, Legend, overlay, overlay_legend, write_overlay
from biocnn.report.page_pictures import as_colours

OVERLAY, THUMBNAIL, GRAPH = "overlay.png", "thumbnail.png", "graph.png"


def write_pictures(folder: Path, result: Result, graph: nx.MultiGraph | None = None) -> None:
    """Write ``overlay.png``, ``thumbnail.png``, and of a graph ``graph.png``.

    Images with a side of more than 2048 pixels become smaller by a whole number: of the image every so many pixels are
    taken, and of the structure what is there at all, so that thin ones stay in sight.

    Args:
        folder: that they go to.
        result: of an image.
        graph: of its structures, in the frame of the image; None for no picture of it.
    """
    image = result.image
    step = math.ceil(max(image.shape[:2]) / SIDE)
    small = image[::step, ::step]
    if isinstance(result, CountResult):
        picture, legend = points_picture(small, _shrunk(result.points, step))
    elif isinstance(result, PatchResult):
        picture, legend = _patch_picture(small, result, step)
    else:
        picture, legend = overlay(small, any_in_blocks(result.mask, step)), overlay_legend(result.mask)
    _write(folder, small, picture, legend)
    if graph is not None and step == 1:
        write_graph_overlay(folder / GRAPH, image, graph)


def write_large_pictures(folder: Path, result: LargeResult) -> None:
    """Write ``overlay.png`` and ``thumbnail.png`` of an image that was predicted by tiles."""
    if result.patches is not None:
        picture, legend = _patch_picture(result.picture, result.patches, result.step)
    elif result.mask is not None:
        picture = overlay(result.picture, result.mask)
        pixels, share = result.measures["structure_px"], 100 * result.measures["structure_fraction"]
        legend = [(f"called: {pixels:,} px, {share:.1f} % of the image", CALLED)]
    else:
        picture, legend = points_picture(result.picture, _shrunk(result.points, result.step))
    _write(folder, result.picture, picture, legend)


def _write(folder: Path, small: np.ndarray, picture: NDArray[np.uint8], legend: Legend) -> None:
    write_overlay(folder / OVERLAY, picture, legend)
    with atomic_path(folder / THUMBNAIL) as temporary:
        Image.fromarray(as_colours(small)).save(temporary, format="PNG")


def _shrunk(points: NDArray[np.float32] | None, step: int) -> NDArray[np.float32]:
    return np.zeros((0, 2), np.float32) if points is None else points / np.float32(step)


def any_in_blocks(mask: NDArray[np.bool_], step: int) -> NDArray[np.bool_]:
    """Whether anything is there in each block of `step` rows and columns; blocks at the border may be smaller."""
    if step == 1:
        return mask
    rows, columns = (np.arange(0, length, step) for length in mask.shape)
    found: NDArray[np.bool_] = np.logical_or.reduceat(np.logical_or.reduceat(mask, rows, 0), columns, 1)
    return found


def _patch_picture(
    small: np.ndarray, result: PatchResult, step: int
) -> tuple[NDArray[np.uint8], list[tuple[str, Colour]]]:
    """A picture of which each pixel is `step` pixels of the image, with positive patches in colour."""
    rows, columns = (
        (np.arange(0, length * step, step) // size).astype(np.int64)
        for length, size in zip(small.shape[:2], result.patch_size, strict=True)
    )
    down, across = result.probability.shape
    valid = (rows < down)[:, None] & (columns < across)
    positive = result.positive[np.minimum(rows, down - 1)][:, np.minimum(columns, across - 1)]
    words = f"positive: {int(result.positive.sum())} of {result.positive.size} patches"
    return overlay(small, positive & valid, None, valid), [(words, CALLED)]
