"""Predicted and true points, matched one to one within a tolerance.

Notation: M predictions, N true points, (row, column) in pixels; the tolerance is the largest distance of a match.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from biocnn.errors import DataError


@dataclass(frozen=True)
class PointMatch:
    """Which prediction is which point.

    Attributes:
        prediction: (K,) int64, rising, indices of the matched predictions; the others are false positives.
        truth: (K,) int64, indices of the points they are matched to; the others are false negatives.
        distance: (K,) float64, in pixels.
        true_positive: K.
        false_positive: M - K; of two predictions on one cell, one.
        false_negative: N - K.
    """

    prediction: NDArray[np.int64]
    truth: NDArray[np.int64]
    distance: NDArray[np.float64]
    true_positive: int
    false_positive: int
    false_negative: int

    def scores(self) -> dict[str, float]:
        """`precision`, `recall` and `f1` of this image; nan where undefined, see :func:`point_scores`."""
        return point_scores(self.true_positive, self.false_positive, self.false_negative)


def match_points(prediction: ArrayLike, truth: ArrayLike, tolerance: float) -> PointMatch:
    """Match as many pairs as possible, no point twice, and of all such matchings one of the least total distance.

    A nearest-neighbour rule would let two predictions claim one cell. Pairs within the tolerance come from a k-d tree,
    and the assignment is solved exactly for each connected group of them, so that a thousand points take milliseconds
    where their groups are small.

    Args:
        prediction: (M, 2); M may be 0.
        truth: (N, 2); N may be 0.
        tolerance: in pixels, 0 or more; a pair at exactly this distance may match.

    Raises:
        DataError: if a shape differs or a point is not finite.
        ValueError: if `tolerance` is negative or not finite.
    """
    check_tolerance(tolerance)
    found, true = check_points("prediction", prediction), check_points("truth", truth)
    pairs = _candidates(found, true, tolerance)
    chosen = pairs[_assign(pairs, found, true, tolerance)]
    chosen = chosen[np.argsort(chosen[:, 0], kind="stable")]
    distance = np.hypot(*(found[chosen[:, 0]] - true[chosen[:, 1]]).T)
    matched = len(chosen)
    return PointMatch(chosen[:, 0], chosen[:, 1], distance, matched, len(found) - matched, len(true) - matched)


def point_scores(true_positive: float, false_positive: float, false_negative: float) -> dict[str, float]:
    """`precision`, `recall` and `f1`, from numbers of points of one image or of many together.

    nan where there is nothing to divide by: precision without predictions, recall without true points, and F1,
    2 TP / (2 TP + FP + FN), without either.
    """
    predicted, true = true_positive + false_positive, true_positive + false_negative
    return {
        "precision": true_positive / predicted if predicted else math.nan,
        "recall": true_positive / true if true else math.nan,
        "f1": 2 * true_positive / (predicted + true) if predicted + true else math.nan,
    }


def pooled_point_scores(matches: Iterable[PointMatch]) -> dict[str, float]:
    """`precision`, `recall` and `f1` of all points of all images together."""
    counts = np.array([(m.true_positive, m.false_positive, m.false_negative) for m in matches], np.int64).reshape(-1, 3)
    return point_scores(*(int(number) for number in counts.sum(0)))


def check_points(name: str, points: ArrayLike) -> NDArray[np.float64]:
    """Return points as float64 (N, 2); nothing at all becomes (0, 2).

    Raises:
        DataError: if the shape differs or a point is not finite.
    """
    values = np.asarray(points, dtype=np.float64)
    if values.size == 0:
        return np.zeros((0, 2))
    if values.ndim != 2 or values.shape[1] != 2:
        raise DataError(f"{name}: expected points of shape (N, 2), row and column, received {values.shape}")
    if not np.isfinite(values).all():
        raise DataError(f"{name}: expected finite points, received {int((~np.isfinite(values)).any(1).sum())} others")
    return values


def check_tolerance(tolerance: float) -> float:
    """Return `tolerance`.

    Raises:
        ValueError: if it is negative or not finite.
    """
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise ValueError(f"tolerance: expected a finite number of pixels, 0 or more, received {tolerance}")
    return tolerance


def _candidates(found: NDArray[np.float64], true: NDArray[np.float64], tolerance: float) -> NDArray[np.int64]:
    """Pairs (E, 2) within the tolerance, sorted, so that the result does not depend on how the tree was built."""
    if not (len(found) and len(true)):
        return np.zeros((0, 2), dtype=np.int64)
    near = cKDTree(found).query_ball_point(true, tolerance, return_sorted=True)
    sizes = np.array([len(one) for one in near])
    first = np.concatenate([np.asarray(one, dtype=np.int64) for one in near])
    return np.stack([first, np.repeat(np.arange(len(true)), sizes)], axis=1)


def _assign(
    pairs: NDArray[np.int64], found: NDArray[np.float64], true: NDArray[np.float64], tolerance: float
) -> NDArray[np.int64]:
    """Indices into `pairs` of those that are matched."""
    if not len(pairs):
        return np.zeros(0, dtype=np.int64)
    nodes = len(found) + len(true)
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], len(found) + pairs[:, 1])), shape=(nodes, nodes))
    _, group = connected_components(graph, directed=False)
    distance = np.hypot(*(found[pairs[:, 0]] - true[pairs[:, 1]]).T)
    order = np.argsort(group[pairs[:, 0]], kind="stable")
    starts = np.flatnonzero(np.diff(group[pairs[order, 0]])) + 1
    chosen = []
    for edges in np.split(order, starts):
        if len(edges) == 1:
            chosen.append(edges)
            continue
        rows, row = np.unique(pairs[edges, 0], return_inverse=True)
        columns, column = np.unique(pairs[edges, 1], return_inverse=True)
        # A match is worth more than all the distances it could save, so that their number comes first.
        worth = (tolerance + 1) * (min(len(rows), len(columns)) + 1)
        cost, edge = np.zeros((len(rows), len(columns))), np.full((len(rows), len(columns)), -1)
        cost[row, column], edge[row, column] = distance[edges] - worth, edges
        solved = edge[linear_sum_assignment(cost)]
        chosen.append(solved[solved >= 0])
    return np.concatenate(chosen)
