"""Places on the segments of graphs, for metrics that compare graphs by place and by length.

Notation: D axes; S segments, after :func:`biocnn.data.graphs.merge_chains`; L straight pieces that they are made of;
Q places, each a point on one of the segments. All lengths are in the unit of the graph.

Order and direction of the segments follow from geometry alone, so that nothing which is computed from them, and no
seeded draw, depends on the numbers of nodes, on the order of edges, on nodes of degree 2 or on points in the middle of
a straight line. A ring on its own begins at its point of the lowest row, or plane, and of these the lowest column.
"""

import math
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import NamedTuple

import networkx as nx
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra
from scipy.spatial import cKDTree

from biocnn.data.graphs import merge_chains
from biocnn.errors import DataError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# Shorter lengths are none: the data model lets a path end this far from its node.
NO_LENGTH = 1e-6
# Of a limit, so that what lies exactly at it is inside however its distance was rounded.
SLACK = 1e-9


@dataclass(frozen=True)
class Places:
    """Points on segments.

    Attributes:
        segment: (Q,) int64; -1 for none.
        offset: (Q,) float64, length along the segment from its start.
    """

    segment: Integers
    offset: Floats

    def take(self, index: NDArray) -> "Places":
        """Those of an index or a mask."""
        return Places(self.segment[index], self.offset[index])


class Pieces(NamedTuple):
    """Straight pieces: ends (L, D) and (L, D), length (L,), segment (L,), and where on it each starts (L,)."""

    start: Floats
    end: Floats
    length: Floats
    segment: Integers
    offset: Floats


@dataclass(frozen=True)
class Lines:
    """Segments of a graph.

    Attributes:
        paths: S arrays (P, D).
        length: (S,) float64.
        ends: (S, 2) int64, numbers of the nodes at the start and at the end.
        component: (S,) int64, rising.
        dimensions: D.
    """

    paths: tuple[Floats, ...]
    length: Floats
    ends: Integers
    component: Integers
    dimensions: int

    @property
    def total(self) -> float:
        """Length of all segments."""
        return math.fsum(self.length)

    @property
    def empty(self) -> bool:
        """Whether there is no length; single nodes have none."""
        return self.total <= NO_LENGTH

    def pieces(self, longest: float = math.inf) -> Pieces:
        """Straight pieces in order, cut where they are longer than `longest`."""
        if not self.paths:
            none = np.zeros((0, self.dimensions))
            return Pieces(none, none, np.zeros(0), np.zeros(0, np.int64), np.zeros(0))
        start, end = np.concatenate([p[:-1] for p in self.paths]), np.concatenate([p[1:] for p in self.paths])
        segment = np.repeat(np.arange(len(self.paths)), [len(path) - 1 for path in self.paths])
        offset = np.concatenate([along(path)[:-1] for path in self.paths])
        length = np.linalg.norm(end - start, axis=1)
        parts = np.maximum(np.ceil(length / longest), 1).astype(np.int64)
        piece = np.repeat(np.arange(len(parts)), parts)
        part = np.arange(len(piece)) - np.repeat(np.cumsum(parts) - parts, parts)
        low, high = part / parts[piece], (part + 1) / parts[piece]
        step = (end - start)[piece]
        # A last part ends where its piece did, to the bit, so that neighbours still touch.
        last = (part + 1 == parts[piece])[:, None]
        return Pieces(
            start[piece] + low[:, None] * step,
            np.where(last, end[piece], start[piece] + high[:, None] * step),
            (length / parts)[piece],
            segment[piece],
            offset[piece] + low * length[piece],
        )


def check_pair(prediction: nx.MultiGraph, truth: nx.MultiGraph) -> None:
    """Check that two graphs can be compared.

    Raises:
        DataError: if their units or numbers of axes differ.
    """
    for name, of in (("unit", lambda graph: graph.graph["unit"]), ("axes", lambda graph: len(graph.graph["spacing"]))):
        if of(prediction) != of(truth):
            raise DataError(
                f"prediction and truth: expected graphs of the same {name}, received {of(prediction)} and {of(truth)}; "
                "convert one of them"
            )


def check_distance(name: str, value: float) -> None:
    """Check that an argument is a finite length above 0.

    Raises:
        ValueError: if it is not.
    """
    if not 0 < value < math.inf:
        raise ValueError(f"{name}: expected a finite length above 0, received {value}")


def lines_of(graph: nx.MultiGraph) -> Lines:
    """Segments of a graph, chains merged, in the order and direction that this module describes."""
    merged = merge_chains(graph)
    number = {node: index for index, node in enumerate(merged)}
    component = {node: index for index, nodes in enumerate(nx.connected_components(merged)) for node in nodes}
    found = []
    for u, v, data in merged.edges(data=True):
        start, end = (u, v) if data["start"] == u else (v, u)
        path = data["path"]
        if u == v and merged.degree[u] == 2:
            path = _turned(path)
        shape = tuple(map(tuple, order_keys(_at_thirds(path)).tolist()))
        if shape[::-1] < shape:
            shape, path, start, end = shape[::-1], path[::-1], end, start
        found.append((shape, component[u], (number[start], number[end]), path))
    found.sort(key=itemgetter(0))
    rank: dict[int, int] = {}
    for _, group, _, _ in found:
        rank.setdefault(group, len(rank))
    found.sort(key=lambda one: rank[one[1]])
    return Lines(
        tuple(path for *_, path in found),
        np.array([along(path)[-1] for *_, path in found], dtype=np.float64),
        np.array([ends for _, _, ends, _ in found], dtype=np.int64).reshape(-1, 2),
        np.array([rank[group] for _, group, _, _ in found], dtype=np.int64),
        len(graph.graph["spacing"]),
    )


def along(path: Floats) -> Floats:
    """Length (P,) of a polyline up to each of its points."""
    return np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))])


def order_keys(points: Floats) -> Floats:
    """Points on a grid of 1e-6, so that they sort alike whatever the rounding of their last digits."""
    # Borders between cells lie where no round number and no simple fraction does.
    return np.floor(points * 1e6 + 0.318)


def points_at(lines: Lines, places: Places) -> Floats:
    """Positions (Q, D) of places, none of which may be missing."""
    points = np.zeros((len(places.segment), lines.dimensions))
    for segment in np.unique(places.segment):
        here = places.segment == segment
        points[here] = _interpolated(lines.paths[segment], places.offset[here])
    return points


def neighbours(tree: cKDTree, points: Floats, radius: float | Floats) -> tuple[Integers, Integers]:
    """Pairs of a query and a point of the tree within the radius of the query, sorted by query: (E,) and (E,)."""
    near = tree.query_ball_point(points, radius)
    sizes = np.array([len(one) for one in near], dtype=np.int64)
    index = np.fromiter(chain.from_iterable(near), np.int64, int(sizes.sum()))
    return np.repeat(np.arange(len(points)), sizes), index


def nearest(lines: Lines, points: Floats, radius: float) -> Places:
    """The nearest place to each point, within a radius; exact, up to rounding.

    Of places that are equally near it is the one of the lowest row, or plane, and so on.

    Args:
        lines: where to look.
        points: (Q, D).
        radius: a place at exactly this distance counts; without one, the segment is -1.
    """
    segment, offset = np.full(len(points), -1), np.zeros(len(points))
    # Cut, a long piece is found by its middle; a five-thousandth of the whole keeps their number low.
    pieces = lines.pieces(max(radius, lines.total / 5000))
    if not (len(points) and len(pieces.segment)):
        return Places(segment, offset)
    tree = cKDTree((pieces.start + pieces.end) / 2)
    # A piece is no nearer than its middle is, less half its length.
    reach = np.minimum(tree.query(points)[0], radius) * (1 + SLACK) + pieces.length.max() / 2 + NO_LENGTH
    query, piece = neighbours(tree, points, reach)
    step, length = (pieces.end - pieces.start)[piece], pieces.length[piece]
    way = ((points[query] - pieces.start[piece]) * step).sum(axis=1)
    part = np.clip(way / np.where(length > 0, length, 1) ** 2, 0, 1)
    foot = pieces.start[piece] + part[:, None] * step
    distance = np.linalg.norm(points[query] - foot, axis=1)
    least = np.full(len(points), math.inf)
    np.minimum.at(least, query, distance)
    # Rounding only: a wider margin would let the end of a neighbouring piece pass for the foot of the perpendicular.
    margin = 1e-12 * (1 + np.abs(points).max())
    kept = np.flatnonzero((distance <= radius * (1 + SLACK)) & (distance <= least[query] + margin))
    keys = order_keys(foot[kept]).T
    kept = kept[np.lexsort((pieces.segment[piece[kept]], *keys[::-1], query[kept]))]
    first, where = np.unique(query[kept], return_index=True)
    kept = kept[where]
    segment[first] = pieces.segment[piece[kept]]
    offset[first] = pieces.offset[piece[kept]] + part[kept] * length[kept]
    return Places(segment, offset)


def path_lengths(lines: Lines, first: Places, second: Places) -> Floats:
    """Length (Q,) of the shortest path between each two places; inf where there is none, or one of them is missing."""
    lengths = np.full(len(first.segment), math.inf)
    both = np.flatnonzero((first.segment >= 0) & (second.segment >= 0))
    if not len(both):
        return lengths
    one, other = first.take(both), second.take(both)
    sources, row = np.unique(lines.ends[one.segment], return_inverse=True)
    row = row.reshape(-1, 2)
    table = dijkstra(_weights(lines), directed=False, indices=sources)
    direct = np.where(one.segment == other.segment, np.abs(one.offset - other.offset), math.inf)
    leaving = (one.offset, lines.length[one.segment] - one.offset)
    arriving = (other.offset, lines.length[other.segment] - other.offset)
    for i in (0, 1):
        for j in (0, 1):
            between = table[row[:, i], lines.ends[other.segment, j]]
            np.minimum(direct, leaving[i] + between + arriving[j], out=direct)
    lengths[both] = direct
    return lengths


def _weights(lines: Lines) -> coo_array:
    """Sparse matrix of the shortest segment between each two nodes; several are not to be added up."""
    ends = np.sort(lines.ends, axis=1)
    order = np.lexsort((lines.length, ends[:, 1], ends[:, 0]))
    pairs, first = np.unique(ends[order], axis=0, return_index=True)
    nodes = int(lines.ends.max()) + 1
    return coo_array((lines.length[order][first], (pairs[:, 0], pairs[:, 1])), shape=(nodes, nodes))


def _interpolated(path: Floats, offset: Floats) -> Floats:
    at = along(path)
    return np.stack([np.interp(offset, at, axis) for axis in path.T], axis=1)


def _at_thirds(path: Floats) -> Floats:
    """Start, one third, two thirds and end: what tells segments, and their two directions, apart."""
    return _interpolated(path, along(path)[-1] * np.array([0, 1 / 3, 2 / 3, 1]))


def _turned(ring: Floats) -> Floats:
    """A ring that starts, and ends, at its lowest point."""
    corners = ring[:-1]
    first = int(np.lexsort(order_keys(corners).T[::-1])[0])
    return np.concatenate([corners[first:], corners[: first + 1]])
