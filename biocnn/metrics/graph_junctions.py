"""Branch points and end points of one graph against those of another, as plain functions of two graphs.

A branch point is a node of degree 3 or more, an end point one of degree 1; a loop counts twice at its node. Nodes of
degree 2 are points on a line, and single nodes belong to nothing: neither is compared. Distances are in the unit of the
graphs, 2-D or 3-D.

Rule for empty sets, as in :mod:`biocnn.metrics.skeleton`: without such a node in either graph every score is nan, as
for two rings; with some in only one of the two, every score is 0.
"""

import math

import networkx as nx
import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from biocnn.metrics.graph_places import SLACK, Floats, Integers, check_distance, check_pair, neighbours


def junction_scores(
    prediction: nx.MultiGraph, truth: nx.MultiGraph, snap: float, degree_weight: float = 4.0
) -> dict[str, float]:
    """OPT-J: branch points and end points, each with as many votes as segments meet there; in [0, 1], higher is better.

    Citraro et al. (2020), ECCV, Towards reliable evaluation of algorithms for road network reconstruction. Nodes of
    degree other than 2 are matched one to one within `snap`: as many as possible, and of all such matchings one of the
    least sum of distance / snap + degree_weight * |degree - degree'|. A match of degrees d and d' has min(d, d') right
    votes. Precision divides them by the degrees of all predicted nodes together, recall by those of all true ones, and
    F1 is the harmonic mean.

    Unlike in the authors' code, all nodes within `snap` are candidates, not the five nearest, and a node without a
    partner is not matched to a point in the middle of a segment: it has no right vote. Of equally good matchings it is
    the one with the most right votes.

    Args:
        prediction: predicted graph.
        truth: true graph.
        snap: largest distance of a match; 25 px there.
        degree_weight: what a difference of one degree costs, in units of `snap`; there 100 px, which is 4.

    Returns:
        `opt_j_precision`, `opt_j_recall` and `opt_j_f1`.

    Raises:
        DataError: if units or numbers of axes of the graphs differ.
        ValueError: if `snap` is not a finite length above 0, or the weight is negative or not finite.
    """
    check_pair(prediction, truth)
    check_distance("snap", snap)
    if not 0 <= degree_weight < math.inf:
        raise ValueError(f"degree_weight: expected a finite number, 0 or more, received {degree_weight}")
    (found, found_degree), (true, true_degree) = (_nodes(graph, least=1) for graph in (prediction, truth))
    one, two, distance = _candidates(found, true, snap)
    votes = np.minimum(found_degree[one], true_degree[two])
    difference = np.abs(found_degree[one] - true_degree[two])
    # A millionth: votes decide only between matchings that are equal otherwise.
    chosen = _assigned(one, two, distance / snap + degree_weight * difference - 1e-6 * votes)
    return _scores("opt_j", int(votes[chosen].sum()), int(found_degree.sum()), int(true_degree.sum()))


def node_scores(prediction: nx.MultiGraph, truth: nx.MultiGraph, tolerance: float) -> dict[str, float]:
    """Precision, recall and F1 of branch points, and of end points; in [0, 1], higher is better.

    As many as possible are matched one to one within the tolerance. Degrees above 3 are not told apart; a crossing that
    one graph has as one node of degree 4, and the other as two of degree 3, has one match.

    Args:
        prediction: predicted graph.
        truth: true graph.
        tolerance: above 0; nodes at exactly this distance may match.

    Returns:
        `branch_precision`, `branch_recall`, `branch_f1`, `end_precision`, `end_recall` and `end_f1`.

    Raises:
        DataError: if units or numbers of axes of the graphs differ.
        ValueError: if the tolerance is not a finite length above 0.
    """
    check_pair(prediction, truth)
    check_distance("tolerance", tolerance)
    scores: dict[str, float] = {}
    for name, least, most in (("branch", 3, math.inf), ("end", 1, 1)):
        (found, _), (true, _) = (_nodes(graph, least, most) for graph in (prediction, truth))
        one, two, distance = _candidates(found, true, tolerance)
        matched = len(_assigned(one, two, distance / tolerance))
        scores |= _scores(name, matched, len(found), len(true))
    return scores


def _nodes(graph: nx.MultiGraph, least: int, most: float = math.inf) -> tuple[Floats, Integers]:
    """Positions (N, D) and degrees (N,) of the nodes whose degree is in a range, and not 2."""
    chosen = [(node, degree) for node, degree in graph.degree if least <= degree <= most and degree != 2]
    positions = np.array([graph.nodes[node]["position"] for node, _ in chosen], dtype=np.float64)
    degrees = np.array([degree for _, degree in chosen], dtype=np.int64)
    return positions.reshape(-1, len(graph.graph["spacing"])), degrees


def _candidates(found: Floats, true: Floats, radius: float) -> tuple[Integers, Integers, Floats]:
    """Pairs within a radius: index of the first (E,), of the second (E,) and their distance (E,)."""
    if not (len(found) and len(true)):
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    one, two = neighbours(cKDTree(true), found, radius * (1 + SLACK))
    return one, two, np.linalg.norm(found[one] - true[two], axis=1)


def _assigned(one: Integers, two: Integers, cost: Floats) -> Integers:
    """Which of E pairs (one, two) to take: as many as possible, none twice, at the least cost."""
    if not len(one):
        return np.zeros(0, np.int64)
    # Group by group of nodes that candidates connect: a matrix of all with all would not fit where there are many.
    rows, columns = int(one.max()) + 1, int(two.max()) + 1
    links = coo_array((np.ones(len(one)), (one, rows + two)), shape=(rows + columns,) * 2)
    group = connected_components(links, directed=False)[1][one]
    order = np.argsort(group, kind="stable")
    chosen = []
    for pairs in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
        ones, row = np.unique(one[pairs], return_inverse=True)
        twos, column = np.unique(two[pairs], return_inverse=True)
        # One more match is worth more than all the cost that could be saved without it.
        worth = (np.abs(cost[pairs]).max() + 1) * 2 * (min(len(ones), len(twos)) + 1)
        matrix, pair = np.zeros((len(ones), len(twos))), np.full((len(ones), len(twos)), -1)
        matrix[row, column], pair[row, column] = cost[pairs] - worth, pairs
        taken = pair[linear_sum_assignment(matrix)]
        chosen.append(taken[taken >= 0])
    return np.concatenate(chosen)


def _scores(name: str, right: int, predicted: int, true: int) -> dict[str, float]:
    if not predicted + true:
        values = (math.nan,) * 3
    else:
        values = (right / max(predicted, 1), right / max(true, 1), 2 * right / (predicted + true))
    return dict(zip((f"{name}_precision", f"{name}_recall", f"{name}_f1"), values, strict=True))
