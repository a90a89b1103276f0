"""A graph drawn over its image: segments coloured by their score or their component, with branch points and ends.

The image is grey and dimmed, as in :mod:`biocnn.report.overlay`, so that no colour of the graph occurs in it.
"""

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import matplotlib
import networkx as nx
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

from biocnn.data.graphs import total_length
from biocnn.errors import DataError
from biocnn.report.overlay import Colour, overlay, write_overlay
from biocnn.report.segments import number_components

Colouring = Literal["score", "component"]

SCORES = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0)
"""Limits of the classes of a score: narrow where the scores of what is kept lie."""
# Plasma is even for the eye and rises in lightness; its darkest part would vanish on a dark image.
_SCORE_COLOURS: list[Colour] = [
    tuple(int(255 * value) for value in matplotlib.colormaps["plasma"](share)[:3])  # type: ignore[misc]
    for share in np.linspace(0.3, 1, len(SCORES) - 1)
]
UNKNOWN: Colour = (190, 190, 190)
"""Lighter than the image gets."""
COMPONENTS: list[Colour] = [
    # Okabe & Ito (2008), without black, without dark blue, which vanishes on a dark image, and without that of ends.
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (240, 228, 66),
    (213, 94, 0),
]
BRANCH: Colour = (255, 255, 255)
END: Colour = (86, 180, 233)


def graph_picture(
    image: ArrayLike, graph: nx.MultiGraph, colouring: Colouring = "score", scale: int = 1
) -> tuple[NDArray[np.uint8], list[tuple[str, Colour]]]:
    """An image, grey and dimmed, with a graph on it, and what the colours mean.

    Branch points, where three ends of segments or more meet, are filled discs; ends, where there is one or none, are
    circles. What lies beyond the frame is not drawn. A graph of three axes is seen along the planes.

    Args:
        image: (H, W) or (H, W, C), numbers of any range; for a graph of three axes (D, H, W), of which the brightest
            along the planes is shown, or (H, W).
        graph: in the frame of the image.
        colouring: ``"score"``, classes between `SCORES`; or ``"component"``, the longest of which have colours of
            their own and the others are grey.
        scale: pixels of the picture along a pixel of the image; more than 1 leaves more of a small image to see.

    Returns:
        (scale H, scale W, 3) uint8, and pairs of words and colour for :func:`biocnn.report.overlay.write_overlay`.

    Raises:
        DataError: if the image has another number of axes.
        ValueError: if the colouring is another word, or the scale is less than 1.
    """
    if scale < 1:
        raise ValueError(f"scale: expected 1 or more, received {scale}")
    values = np.asarray(image)
    spacing = np.array(graph.graph["spacing"])
    if values.ndim not in (2, 3):
        raise DataError(f"image: expected an image of two or three axes, received shape {values.shape}")
    if len(spacing) == 3 and values.ndim == 3:
        values = values.max(axis=0)
    base = overlay(values, np.zeros(values.shape[:2], dtype=np.bool_))
    picture = Image.fromarray(base.repeat(scale, axis=0).repeat(scale, axis=1))
    draw = ImageDraw.Draw(picture)
    width = max(min(picture.size) // 400, (scale + 1) // 2)

    def place(points: ArrayLike) -> list[tuple[float, float]]:
        """Column and row in the picture, where the centre of the first pixel of the image is (scale - 1) / 2."""
        pixels = (np.asarray(points) / spacing)[:, -2:]
        return [(column, row) for row, column in ((pixels + 0.5) * scale - 0.5).tolist()]

    colour_of, legend = _colours(graph, colouring)
    for u, _, data in graph.edges(data=True):
        for line in pairwise(place(data["path"])):
            draw.line(line, fill=colour_of(u, data), width=width)
    radius = width + 1 + scale // 4
    degrees = dict(graph.degree)
    marks = [("branch points", BRANCH, [node for node in graph if degrees[node] > 2])]
    marks.append(("ends", END, [node for node in graph if degrees[node] < 2]))
    for name, colour, nodes in marks:
        for node in nodes:
            ((column, row),) = place([graph.nodes[node]["position"]])
            box = (column - radius, row - radius, column + radius, row + radius)
            draw.ellipse(box, fill=colour if colour == BRANCH else None, outline=colour, width=width)
        legend.append((f"{name}: {len(nodes)}", colour))
    return np.asarray(picture), legend


def _colours(
    graph: nx.MultiGraph, colouring: Colouring
) -> tuple[Callable[[int, dict[str, Any]], Colour], list[tuple[str, Colour]]]:
    """The colour of an edge, from one of its nodes and its attributes, and what the colours mean."""
    if colouring == "score":
        counts = Counter(map(_score_class, (score for *_, score in graph.edges(data="score"))))
        legend = [
            (f"score {low:g} to {high:g}: {counts[number]}", _SCORE_COLOURS[number])
            for number, (low, high) in enumerate(pairwise(SCORES))
            if counts[number]
        ]
        if counts[-1]:
            legend.append((f"no score: {counts[-1]}", UNKNOWN))
        return lambda _, data: [*_SCORE_COLOURS, UNKNOWN][_score_class(data["score"])], legend
    if colouring != "component":
        raise ValueError(f"colouring: expected 'score' or 'component', received {colouring!r}")
    component_of = number_components(graph)
    nodes_of: dict[int, list[int]] = {}
    for node, component in component_of.items():
        nodes_of.setdefault(component, []).append(node)
    shown = range(1, min(len(nodes_of), len(COMPONENTS)) + 1)
    lengths = {number: total_length(graph.subgraph(nodes_of[number])) for number in shown}
    legend = [
        (f"component {number}: {lengths[number]:,.4g} {graph.graph['unit']}", COMPONENTS[number - 1])
        for number in shown
    ]
    if more := len(nodes_of) - len(shown):
        legend.append((f"{more} more", UNKNOWN))
    return lambda node, _: [*COMPONENTS, UNKNOWN][min(component_of[node] - 1, len(COMPONENTS))], legend


def _score_class(score: float) -> int:
    """Index of the class; -1 if there is no score."""
    if np.isnan(score):
        return -1
    return int(np.clip(np.searchsorted(SCORES, score, side="right") - 1, 0, len(SCORES) - 2))


def write_graph_overlay(
    path: str | Path, image: ArrayLike, graph: nx.MultiGraph, colouring: Colouring = "score", scale: int = 1
) -> None:
    """Write :func:`graph_picture` as PNG, with a legend on a strip below it.

    Args:
        path: target file ``.png``; its folder is made when missing.
        image: as there.
        graph: as there.
        colouring: as there.
        scale: as there.
    """
    write_overlay(path, *graph_picture(image, graph, colouring, scale))
