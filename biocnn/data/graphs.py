"""Graphs of curvilinear structures: what a delineation makes, an annotation is read as, and the metrics compare.

A graph is a :class:`networkx.MultiGraph`, so that two segments may join the same two nodes, and a ring hang on one.

Notation: D axes, 2 (row, column) or 3 (plane, row, column); P points of a segment.

Graph attributes
    ``unit``: ``"um"``, micrometres, or ``"px"``, if the size of a pixel is not known. All lengths are in this unit.
    ``spacing``: D floats, size of a pixel along each axis in that unit; all 1 for ``"px"``.

Node attributes
    ``position``: D floats. The centre of pixel [0, 0] is the origin.
    ``radius``: float, nan where it is not known.

Edge attributes (a segment between two nodes)
    ``path``: (P, D) float64, P >= 2, from the node that was named first in :func:`add_segment`, which is the edge
    attribute ``start``, to the other.
    ``radius``: (P,) float64, half the width of the structure at each point; nan where it is not known.
    ``length``: of the path.
    ``width``: twice the mean radius along the path; nan if it is not known.
    ``score``: mean probability along the path, 0..1; nan if there is no map.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import networkx as nx
import numpy as np
from numpy.typing import ArrayLike, NDArray

from biocnn.errors import DataError

Floats = NDArray[np.float64]
UNITS = ("um", "px")
_NEAR = 1e-6  # of the unit; a path that ends this near to a node ends there


def new_graph(spacing: Sequence[float] | None = None, dimensions: int = 2) -> nx.MultiGraph:
    """An empty graph.

    Args:
        spacing: micrometres per pixel along each axis; None for a graph in pixels.
        dimensions: 2 or 3, for a graph in pixels.

    Raises:
        DataError: if the spacing has not 2 or 3 positive numbers.
    """
    if spacing is None:
        return nx.MultiGraph(unit="px", spacing=(1.0,) * dimensions)
    steps = tuple(float(step) for step in spacing)
    if len(steps) not in (2, 3) or not all(0 < step < math.inf for step in steps):
        raise DataError(f"Expected a pixel size of 2 or 3 positive numbers in micrometres, received {spacing}.")
    return nx.MultiGraph(unit="um", spacing=steps)


def add_segment(
    graph: nx.MultiGraph,
    start: int,
    end: int,
    path: ArrayLike,
    radius: ArrayLike | None = None,
    score: float = math.nan,
) -> int:
    """Add a segment along a path between two nodes of a graph, and measure it.

    Args:
        graph: with both nodes.
        start: node at the first point of the path.
        end: node at its last point; `start` again for a ring.
        path: (P, D), in the unit of the graph, with the positions of both nodes.
        radius: (P,); None if it is not known.
        score: mean probability along the path.

    Returns:
        The key of the edge.

    Raises:
        DataError: if shapes do not fit, or the path does not lead from one node to the other.
    """
    points = np.array(path, dtype=np.float64)
    dimensions = len(graph.graph["spacing"])
    if points.ndim != 2 or points.shape[1] != dimensions or len(points) < 2:
        raise DataError(f"path: expected 2 or more points of {dimensions} numbers, received shape {points.shape}.")
    widths = np.full(len(points), math.nan) if radius is None else np.array(radius, dtype=np.float64)
    if widths.shape != (len(points),):
        raise DataError(f"radius: expected shape ({len(points)},), a number for each point, received {widths.shape}.")
    for node, point in ((start, points[0]), (end, points[-1])):
        position = np.asarray(graph.nodes[node]["position"])
        if not np.abs(position - point).max() <= _NEAR:
            raise DataError(f"path: expected to lead to node {node} at {position}, received {point}.")
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    return int(
        graph.add_edge(
            start,
            end,
            start=start,
            path=points,
            radius=widths,
            length=float(steps.sum()),
            width=2 * mean_along(widths, steps),
            score=float(score),
        )
    )


def mean_along(values: Floats, steps: Floats) -> float:
    """Mean (P,) of values over a polyline with steps (P - 1,), of points where they are known; nan if nowhere.

    A point stands for half of the steps on its two sides; a polyline without length has the plain mean.
    """
    share = np.zeros(len(values))
    share[:-1] += steps / 2
    share[1:] += steps / 2
    known = np.isfinite(values)
    if not known.any():
        return math.nan
    weight = share[known] if share[known].sum() > 0 else None
    return float(np.average(values[known], weights=weight))


def path_from(data: dict[str, Any], node: int) -> Floats:
    """The path (P, D) of an edge with attributes `data`, read from the end at which `node` is."""
    path: Floats = data["path"]
    return path if data["start"] == node else path[::-1]


def total_length(graph: nx.MultiGraph) -> float:
    """Length of all segments together, in the unit of the graph."""
    return math.fsum(length for _, _, length in graph.edges(data="length"))


def loop_count(graph: nx.MultiGraph) -> int:
    """Independent loops, the first Betti number: edges - nodes + components."""
    return int(graph.number_of_edges() - graph.number_of_nodes() + nx.number_connected_components(graph))


def merge_chains(graph: nx.MultiGraph) -> nx.MultiGraph:
    """A copy in which every node that two segments meet at, and no other, is replaced by one longer segment.

    So end points, branch points and single nodes are left; of a ring, its node of the lowest number. The score of a
    merged segment is the mean of its parts by length. Graphs that differ only in such nodes become equal but for the
    numbers of nodes.
    """
    result = nx.MultiGraph(**graph.graph)
    result.add_nodes_from((node, dict(data)) for node, data in graph.nodes(data=True))
    for u, v, data in graph.edges(data=True):
        result.add_edge(u, v, **data)
    for node in sorted(graph.nodes, reverse=True):
        # A ring of its own has its one segment listed once, so there are two of them only on a way through.
        if result.degree(node) == 2 and len(result.edges(node)) == 2:
            join_at(result, node)
    return result


def join_at(graph: nx.MultiGraph, node: int) -> tuple[int, int]:
    """Replace, in the graph itself, a node that two segments meet at by one longer segment, and return its nodes.

    The score of the segment is the mean of its parts by length.
    """
    (_, first, one), (_, last, other) = graph.edges(node, data=True)
    parts = [one, other]
    # Both away from the node; the first is then turned.
    paths = [path_from(data, node) for data in parts]
    radii = [data["radius"] if data["start"] == node else data["radius"][::-1] for data in parts]
    lengths = [data["length"] for data in parts]
    score = float(np.average([data["score"] for data in parts], weights=lengths if sum(lengths) else None))
    graph.remove_node(node)
    path = np.concatenate([paths[0][::-1], paths[1][1:]])
    add_segment(graph, first, last, path, np.concatenate([radii[0][::-1], radii[1][1:]]), score)
    return int(first), int(last)


def resampled(graph: nx.MultiGraph, step: float) -> nx.MultiGraph:
    """A copy in which no edge is longer than `step`: points at equal distances along every segment become nodes.

    New nodes get the numbers after the largest one. Radii are interpolated.

    Raises:
        ValueError: if the step is not positive.
    """
    if not 0 < step < math.inf:
        raise ValueError(f"step must be positive, received {step}.")
    result = nx.MultiGraph(**graph.graph)
    result.add_nodes_from((node, dict(data)) for node, data in graph.nodes(data=True))
    following = max(graph.nodes, default=-1) + 1
    for u, v, data in graph.edges(data=True):
        end = v if data["start"] == u else u
        pieces = max(math.ceil(data["length"] / step - 1e-9), 1)
        along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(data["path"], axis=0), axis=1))])
        cuts = np.linspace(0, along[-1], pieces + 1)
        nodes = [data["start"], *range(following, following + pieces - 1), end]
        following += pieces - 1
        for number, (low, high) in enumerate(pairwise(cuts)):
            inner = along[(along > low + 1e-9) & (along < high - 1e-9)]
            at = np.concatenate([[low], inner, [high]])
            path = np.stack([np.interp(at, along, axis) for axis in data["path"].T], axis=1)
            radius = np.interp(at, along, data["radius"])
            if number == 0:
                path[0] = data["path"][0]
            if number == pieces - 1:
                path[-1] = data["path"][-1]
            else:
                result.add_node(nodes[number + 1], position=tuple(path[-1].tolist()), radius=float(radius[-1]))
            add_segment(result, nodes[number], nodes[number + 1], path, radius, data["score"])
    return result
