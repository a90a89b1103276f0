"""How much of the length of one graph lies near another, as plain functions of two graphs.

Lengths and tolerances are in the unit of the graphs, 2-D or 3-D. Nothing is sampled: the points of a straight line
within the tolerance of another straight piece form one interval, whose ends have a closed form, and the union of these
intervals is measured. So nodes of degree 2 and points in the middle of a straight line change nothing.

Rule for empty graphs, as in :mod:`biocnn.metrics.skeleton`: without any length in either graph every score is nan; with
length in only one of the two, every score is 0. Single nodes have no length.

These scores do not see a break: a gap of at most twice the tolerance costs nothing. Read them beside
:mod:`biocnn.metrics.graph_paths`.
"""

import math

import networkx as nx
import numpy as np
from scipy.spatial import cKDTree

from biocnn.metrics.graph_places import SLACK, Floats, Lines, Pieces, check_distance, check_pair, lines_of, neighbours

# Pieces at a time.
_BLOCK = 2000


def length_scores(prediction: nx.MultiGraph, truth: nx.MultiGraph, tolerance: float) -> dict[str, float]:
    """Correctness, completeness and quality by length, in [0, 1]; higher is better.

    Wiedemann et al. (1998), Empirical evaluation of automatically extracted road axes:

    - `correctness`: share of the predicted length within the tolerance (Euclidean) of the true graph;
    - `completeness`: share of the true length within the tolerance of the predicted graph;
    - `quality`: correctness * completeness / (correctness + completeness - correctness * completeness).

    Args:
        prediction: predicted graph.
        truth: true graph.
        tolerance: above 0; a point at exactly this distance is near.

    Raises:
        DataError: if units or numbers of axes of the graphs differ.
        ValueError: if the tolerance is not a finite length above 0.

    Examples:
        >>> from biocnn.data.graphs import add_segment, new_graph
        >>> graphs = [new_graph(), new_graph()]
        >>> for graph, length in zip(graphs, (10.0, 8.0)):
        ...     graph.add_nodes_from([(0, {"position": (0.0, 0.0)}), (1, {"position": (0.0, length)})])
        ...     _ = add_segment(graph, 0, 1, [(0.0, 0.0), (0.0, length)])
        >>> {name: round(value, 6) for name, value in length_scores(*graphs, tolerance=1.0).items()}
        {'correctness': 0.9, 'completeness': 1.0, 'quality': 0.9}
    """
    check_pair(prediction, truth)
    check_distance("tolerance", tolerance)
    predicted, true = lines_of(prediction), lines_of(truth)
    names = ("correctness", "completeness", "quality")
    if predicted.empty or true.empty:
        return dict.fromkeys(names, math.nan if predicted.empty and true.empty else 0.0)
    correctness, completeness = share_near(predicted, true, tolerance), share_near(true, predicted, tolerance)
    product = correctness * completeness
    quality = product / (correctness + completeness - product) if product else 0.0
    return dict(zip(names, (correctness, completeness, quality), strict=True))


def share_near(lines: Lines, other: Lines, tolerance: float) -> float:
    """Share of the length of `lines` within a tolerance of `other`; neither may be empty."""
    # Cut, a long piece is found by its middle; a five-thousandth of the whole keeps their number low.
    mine = lines.pieces(max(tolerance, lines.total / 5000))
    theirs = other.pieces(max(tolerance, other.total / 5000))
    tree = cKDTree((theirs.start + theirs.end) / 2)
    middle, reach = (mine.start + mine.end) / 2, tolerance * (1 + SLACK) + (mine.length + theirs.length.max()) / 2
    # All pieces end to end on one axis: what no interval covers is what the union of the intervals leaves out.
    bounds = np.concatenate([[0.0], np.cumsum(mine.length)])
    starts, ends = [], []
    # In blocks, as a piece may have hundreds of neighbours.
    for block in np.array_split(np.arange(len(middle)), math.ceil(len(middle) / _BLOCK)):
        query, near = neighbours(tree, middle[block], reach[block])
        piece = block[query]
        low, high = _near_interval(mine, piece, theirs, near, tolerance * (1 + SLACK))
        start, end = np.maximum(bounds[piece] + low, bounds[piece]), np.minimum(bounds[piece] + high, bounds[piece + 1])
        starts.append(start[start < end])
        ends.append(end[start < end])
    start, end = np.concatenate(starts), np.concatenate(ends)
    order = np.argsort(start, kind="stable")
    gaps = np.append(start[order], bounds[-1]) - np.append(0.0, np.maximum.accumulate(end[order]))
    return float(1 - np.clip(gaps, 0, None).sum() / bounds[-1])


def _near_interval(
    mine: Pieces, first: np.ndarray, theirs: Pieces, second: np.ndarray, tolerance: float
) -> tuple[Floats, Floats]:
    """For each pair of pieces, from where to where the line through the first is near the second: (E,) and (E,).

    What is near a straight piece is a cylinder with a ball at either end. That is convex, so the line meets it in one
    interval: the hull of those in which it meets the three. (inf, -inf) where there is none.
    """
    along = _units(mine)[first]
    axis, length = _units(theirs)[second], theirs.length[second]
    low, high = np.full(len(first), math.inf), np.full(len(first), -math.inf)
    for centre in (theirs.start[second], theirs.end[second]):
        way = centre - mine.start[first]
        middle = (way * along).sum(axis=1)
        spare = tolerance**2 - ((way - middle[:, None] * along) ** 2).sum(axis=1)
        half = np.sqrt(np.maximum(spare, 0))
        low, high = (
            np.where(spare < 0, low, np.minimum(low, middle - half)),
            np.where(spare < 0, high, np.maximum(high, middle + half)),
        )
    # The cylinder: |a + s b| <= tolerance across its axis, and between its two ends along it.
    way = mine.start[first] - theirs.start[second]
    height, slope = (way * axis).sum(axis=1), (along * axis).sum(axis=1)
    a, b = way - height[:, None] * axis, along - slope[:, None] * axis
    square, mixed, rest = (b * b).sum(axis=1), (a * b).sum(axis=1), (a * a).sum(axis=1) - tolerance**2
    round_low, round_high = _between(square, mixed, rest)
    with np.errstate(divide="ignore", invalid="ignore"):
        one, two = -height / slope, (length - height) / slope
    level = np.abs(slope) < 1e-12
    inside = (height >= 0) & (height <= length)
    flat_low = np.where(level, np.where(inside, -math.inf, math.inf), np.minimum(one, two))
    flat_high = np.where(level, np.where(inside, math.inf, -math.inf), np.maximum(one, two))
    inner_low, inner_high = np.maximum(round_low, flat_low), np.minimum(round_high, flat_high)
    met = inner_low <= inner_high
    return np.where(met, np.minimum(low, inner_low), low), np.where(met, np.maximum(high, inner_high), high)


def _between(square: Floats, mixed: Floats, rest: Floats) -> tuple[Floats, Floats]:
    """Where square * s ** 2 + 2 * mixed * s + rest <= 0; (inf, -inf) where nowhere."""
    # 1e-12: lines at an angle of a millionth pass for parallel, and then it is everywhere or nowhere.
    parallel = square < 1e-12
    inside = mixed**2 - square * rest
    root, scale = np.sqrt(np.maximum(inside, 0)), np.where(parallel, 1, square)
    nowhere = np.where(parallel, rest > 0, inside < 0)
    low = np.where(parallel, -math.inf, (-mixed - root) / scale)
    high = np.where(parallel, math.inf, (-mixed + root) / scale)
    return np.where(nowhere, math.inf, low), np.where(nowhere, -math.inf, high)


def _units(pieces: Pieces) -> Floats:
    """Directions (L, D); zeros for a piece without length."""
    return (pieces.end - pieces.start) / np.where(pieces.length > 0, pieces.length, 1)[:, None]
