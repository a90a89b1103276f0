"""Gaps of a graph, bridged along paths of least cost over the map that it comes from.

The cost of a pixel is -log p, with p clipped to 0.001..0.999, so that nothing is free and nothing infinitely dear. A
path costs the sum over its steps of length times mean cost of the two pixels.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import networkx as nx
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree
from skimage.graph import MCP_Geometric

from biocnn.data.graphs import Floats, add_segment, mean_along, merge_chains, path_from
from biocnn.delineation.skeleton_graph import check_probability
from biocnn.errors import DataError

_CLIP = (1e-3, 1 - 1e-3)
# Points of the path over which the direction of an end is taken; fewer show the steps of the raster.
_DIRECTION_POINTS = 10
# Points from a node within which a path leads to the node itself, else it would leave a spur of that length.
_SNAP_POINTS = 2

Edge = tuple[int, int, int]
Map = NDArray[Any]


class _Points(NamedTuple):
    """Points (M,) of all segments, and single nodes."""

    position: Floats  # (M, D), in the unit of the graph
    pixel: NDArray[np.int64]  # (M, D)
    edge: NDArray[np.int64]  # number of the segment, -1 for a single node
    place: NDArray[np.int64]  # on the path of the segment
    before: Floats  # length of the path up to the point
    after: Floats  # and from it on
    start: NDArray[np.int64]  # nodes of the segment; twice the node itself for a single one
    end: NDArray[np.int64]


class _Bridge(NamedTuple):
    cost: float
    node: int
    target: int  # number of the point
    path: Floats  # (P, D), from the node to the target


def bridge_gaps(
    graph: nx.MultiGraph,
    probability: ArrayLike,
    largest_gap: float,
    least_probability: float | None = None,
    largest_turn: float = 60.0,
    shortcut: float = 4.0,
) -> nx.MultiGraph:
    """A copy in which end points are joined to what they were torn from, as far as the map says so.

    From each end point the path of least cost is sought to a point of another component, or of the same component if
    the way along the graph is at least `shortcut` times as long as the straight line. It may cross no other part of the
    graph. Bridges are built from the cheapest to the dearest, and each end point gets at most one. A bridge that ends
    within a segment divides it by a new branch point; segments that are joined end to end become one, see
    :func:`biocnn.data.graphs.merge_chains`. Radii are interpolated along a bridge.

    Each search looks at a window of twice the largest gap, and is made only where there is something to join.
    `benchmarks/skeleton_graph.py` measures it.

    Args:
        graph: with paths that lead from pixel to touching pixel.
        probability: the map (H, W) or (D, H, W), 0..1, with the pixel size of the graph.
        largest_gap: length of the longest bridge, in the unit of the graph.
        least_probability: geometric mean of the probabilities between both ends of a bridge must be at least that. None
            takes that which is, on the logarithmic scale, half way from the mean on the graph to that of the whole map.
        largest_turn: angle between the direction of the end of a segment and the straight line over the gap, 0 to 180
            degrees.
        shortcut: 1 or more.

    Raises:
        DataError: if the map has another number of axes than the graph, or does not reach as far, or a probability is
            nan or not in 0..1.
        ValueError: if `largest_gap` is not a positive number, `least_probability` not above 0 and up to 1, or
            `shortcut` less than 1.
    """
    if not 0 < largest_gap < math.inf:
        raise ValueError(f"largest_gap: expected a positive length, received {largest_gap}")
    if least_probability is not None and not 0 < least_probability <= 1:
        raise ValueError(f"least_probability: expected a number above 0 and up to 1, received {least_probability}")
    if not shortcut >= 1:
        raise ValueError(f"shortcut: expected a ratio, 1 or more, received {shortcut}")
    spacing = np.array(graph.graph["spacing"])
    values = np.asarray(probability)
    if values.ndim != len(spacing):
        raise DataError(f"probability: expected {len(spacing)} axes as the graph, received shape {values.shape}")
    cost = -np.log(np.clip(check_probability(values, values.shape), *_CLIP).astype(np.float64))
    edges: list[Edge] = list(graph.edges(keys=True))
    if not len(graph):
        return graph.copy()
    points = _points(graph, edges, values.shape)
    on_graph = float(cost[tuple(points.pixel.T)].mean())
    dearest = (on_graph + float(cost.mean())) / 2 if least_probability is None else -math.log(least_probability)
    tree = cKDTree(points.position)
    bridges = []
    for node in graph:
        if graph.degree(node) == 1:
            targets, walls = _surroundings(graph, node, points, tree, largest_gap, largest_turn, shortcut)
            if len(targets):
                bridge = _cheapest(graph, node, points, targets, walls, cost, largest_gap, dearest)
                if bridge is not None:
                    bridges.append(bridge)
    return _built(graph, edges, points, sorted(bridges, key=lambda bridge: bridge[:2]), shortcut, values)


def _points(graph: nx.MultiGraph, edges: list[Edge], shape: tuple[int, ...]) -> _Points:
    spacing = np.array(graph.graph["spacing"])
    columns: list[tuple[ArrayLike, ...]] = []
    for number, (u, v, key) in enumerate(edges):
        data = graph.edges[u, v, key]
        path = data["path"]
        before = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))])
        ends = (data["start"], v if data["start"] == u else u)
        same = np.ones(len(path), dtype=np.int64)
        columns.append(
            (path, number * same, np.arange(len(path)), before, before[-1] - before, ends[0] * same, ends[1] * same)
        )
    for node in nx.isolates(graph):
        columns.append(([graph.nodes[node]["position"]], [-1], [0], [0.0], [0.0], [node], [node]))
    position, *rest = (np.concatenate(column) for column in zip(*columns, strict=True))
    pixel = np.rint(position / spacing).astype(np.int64)
    if (pixel < 0).any() or (pixel >= shape).any():
        raise DataError(
            f"probability: expected a map of at least {tuple((pixel.max(axis=0) + 1).tolist())} pixels, as far as the "
            f"graph reaches with pixels of {graph.graph['spacing']}, received shape {shape}"
        )
    return _Points(position, pixel, *rest)


def _surroundings(
    graph: nx.MultiGraph,
    node: int,
    points: _Points,
    tree: cKDTree,
    largest_gap: float,
    largest_turn: float,
    shortcut: float,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers of the points around an end point that may be joined to it, and of those that no path may cross."""
    ((_, _, data),) = graph.edges(node, data=True)
    path = path_from(data, node)
    outwards = path[0] - path[min(len(path), _DIRECTION_POINTS) - 1]
    near = np.array(tree.query_ball_point(path[0], largest_gap), dtype=np.int64)
    gap = points.position[near] - path[0]
    straight = np.linalg.norm(gap, axis=1)
    ahead = gap @ outwards >= math.cos(math.radians(largest_turn)) * straight * np.linalg.norm(outwards)
    if not (ahead & (straight > 0)).any():
        return near[:0], near[:0]
    reached = nx.single_source_dijkstra_path_length(graph, node, cutoff=shortcut * largest_gap, weight="length")
    to_start = np.array([reached.get(other, math.inf) for other in points.start[near].tolist()])
    to_end = np.array([reached.get(other, math.inf) for other in points.end[near].tolist()])
    along = np.minimum(to_start + points.before[near], to_end + points.after[near])
    joins = ahead & (straight > 0) & (along >= shortcut * straight)
    return near[joins], near[~joins & (straight > 0)]


def _cheapest(
    graph: nx.MultiGraph,
    node: int,
    points: _Points,
    targets: NDArray[np.int64],
    walls: NDArray[np.int64],
    cost: Floats,
    largest_gap: float,
    dearest: float,
) -> _Bridge | None:
    """The path of least cost from an end point to the targets; None if it is too long or too dear."""
    spacing = np.array(graph.graph["spacing"])
    start = np.rint(np.array(graph.nodes[node]["position"]) / spacing).astype(np.int64)
    reach = np.ceil(largest_gap / spacing).astype(np.int64) + 1
    low = np.maximum(start - reach, 0)
    window = cost[tuple(slice(a, b) for a, b in zip(low, start + reach + 1, strict=True))].copy()
    window[tuple((points.pixel[walls] - low).T)] = -1  # no way
    goals = points.pixel[targets] - low
    # A pixel may hold several points of the graph.
    window[tuple(start - low)] = cost[tuple(start)]
    window[tuple(goals.T)] = cost[tuple(points.pixel[targets].T)]
    search = MCP_Geometric(window, fully_connected=True, sampling=tuple(spacing))
    totals, _ = search.find_costs([tuple(start - low)], [tuple(goal) for goal in goals], find_all_ends=False)
    found = totals[tuple(goals.T)]
    best = int(found.argmin())
    if not math.isfinite(found[best]):
        return None
    pixels = np.array(search.traceback(tuple(goals[best]))) + low
    path = pixels * spacing
    inner = cost[tuple(pixels[1:-1].T)]
    length = np.linalg.norm(np.diff(path, axis=0), axis=1).sum()
    if length > largest_gap or (len(inner) and inner.mean() > dearest):
        return None
    return _Bridge(float(found[best]), node, int(targets[best]), path)


def _landing(graph: nx.MultiGraph, edge: Edge, place: int) -> tuple[int | None, Floats]:
    """The node next to a place on a segment, None if none is near, and the points (P, D) from the place to it."""
    u, v, key = edge
    data = graph.edges[u, v, key]
    path, last = data["path"], len(data["path"]) - 1
    if min(place, last - place) > _SNAP_POINTS:
        return None, path[:0]
    if place <= last - place:
        return data["start"], path[:place][::-1]
    return v if data["start"] == u else u, path[place + 1 :]


def _built(
    graph: nx.MultiGraph, edges: list[Edge], points: _Points, bridges: list[_Bridge], shortcut: float, values: Map
) -> nx.MultiGraph:
    """The graph with those of the bridges, the cheapest first, that still join what is apart."""
    targets, paths = [], []
    cuts: dict[Edge, dict[int, int]] = defaultdict(dict)  # new nodes by their place on a segment
    following = max(graph.nodes) + 1
    for bridge in bridges:
        number, place = int(points.edge[bridge.target]), int(points.place[bridge.target])
        node, tail = int(points.start[bridge.target]), bridge.path[:0]
        if number >= 0:
            near, tail = _landing(graph, edges[number], place)
            node = cuts[edges[number]].setdefault(place, following) if near is None else near
            following += node == following
        targets.append(node)
        paths.append(np.concatenate([bridge.path, tail]))
    result = _divided(graph, cuts, values)
    joined: set[int] = set()
    for bridge, node, path in zip(bridges, targets, paths, strict=True):
        if bridge.node in joined or node in joined:
            continue
        reach = shortcut * float(np.linalg.norm(path[-1] - path[0]))
        if node in nx.single_source_dijkstra_path_length(result, bridge.node, cutoff=reach, weight="length"):
            continue  # by a bridge that was cheaper
        joined.add(bridge.node)
        if node in graph and graph.degree(node) == 1:
            joined.add(node)
        radius = np.linspace(result.nodes[bridge.node]["radius"], result.nodes[node]["radius"], len(path))
        add_segment(result, bridge.node, node, path, radius, _score(path, graph.graph["spacing"], values))
    return merge_chains(result)


def _divided(graph: nx.MultiGraph, cuts: dict[Edge, dict[int, int]], values: Map) -> nx.MultiGraph:
    """A copy in which segments are divided by new nodes at places on their paths."""
    result = graph.copy()
    for (u, v, key), nodes in cuts.items():
        if not nodes:
            continue
        data = graph.edges[u, v, key]
        result.remove_edge(u, v, key)
        path, radius = data["path"], data["radius"]
        for place, node in nodes.items():
            result.add_node(node, position=tuple(path[place].tolist()), radius=float(radius[place]))
        places = [0, *sorted(nodes), len(path) - 1]
        ends = [data["start"], *(nodes[place] for place in places[1:-1]), v if data["start"] == u else u]
        for (low, high), (start, end) in zip(pairwise(places), pairwise(ends), strict=True):
            part = path[low : high + 1]
            score = _score(part, graph.graph["spacing"], values)
            add_segment(result, start, end, part, radius[low : high + 1], score)
    return result


def _score(path: Floats, spacing: Sequence[float], values: Map) -> float:
    pixels = np.rint(path / np.array(spacing)).astype(np.int64)
    return mean_along(values[tuple(pixels.T)].astype(np.float64), np.linalg.norm(np.diff(path, axis=0), axis=1))
