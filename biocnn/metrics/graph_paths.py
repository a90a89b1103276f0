"""Lengths of paths in one graph against those in another, as plain functions of two graphs.

Paths are shortest by length, not by number of edges. Lengths are in the unit of the graphs, 2-D or 3-D; graphs may have
any number of components. Points are matched to the nearest point *on* the other graph, node or not. Points are placed
by length, and drawn in an order that follows from geometry (:mod:`biocnn.metrics.graph_places`), so that numbers of
nodes, nodes of degree 2 and points in the middle of a straight line do not change a score.

Matching goes by place alone: where two segments of the other graph cross without a node, a point at the crossing may
be matched to either.

Rule for empty graphs, as in :mod:`biocnn.metrics.skeleton`: without any length in either graph every score is nan; with
length in only one of the two, every score is 0, and the share of infeasible pairs 1. Single nodes have no length.
"""

import math

import networkx as nx
import numpy as np

from biocnn.metrics.graph_places import (
    NO_LENGTH,
    SLACK,
    Lines,
    Places,
    check_distance,
    check_pair,
    lines_of,
    nearest,
    path_lengths,
    points_at,
)

# Batches of draws after which TLTS makes do with the pairs of the least length it has found.
_BATCHES = 50


def apls(
    prediction: nx.MultiGraph,
    truth: nx.MultiGraph,
    snap: float,
    interval: float,
    shortest: float = 0.0,
    points: int = 1000,
    seed: int = 0,
) -> dict[str, float]:
    """Similarity of average path lengths, in [0, 1]; higher is better.

    Van Etten et al. (2018), arXiv 1807.01232, in the form of the Python code of CosmiQ Works, which scores higher than
    codes that count pairs without a path in the reference. Control points of one graph, the reference, are its nodes of
    degree other than 2 and points along its segments. Each is matched to the nearest point on the other graph within
    `snap`. A pair of control points with a path of length L in the reference costs min(1, |L - L'| / L), L' being the
    length in the other graph, and 1 where one of them has no match or there is no path. The score of this direction is
    1 less the mean cost; APLS is the harmonic mean of the two directions, 0 where one of them is not above 0.

    Unlike there, the points along a segment divide it into equal parts of at most `interval`, so that they do not
    depend on where the segment starts; and a ring, or a loop at one node, has at least 3 parts, so that it is seen.

    Args:
        prediction: predicted graph.
        truth: true graph.
        snap: largest distance of a match; 4 m there.
        interval: largest distance of control points along a segment; 50 m there.
        shortest: pairs with a shorter path in the reference do not count.
        points: largest number of control points of a graph; of more, so many are drawn.
        seed: of that draw, the same in both directions.

    Returns:
        `apls`; `apls_truth_to_prediction`, whose reference is the truth; `apls_prediction_to_truth`, whose reference
        is the prediction; and the numbers of pairs, `apls_pairs_truth` and `apls_pairs_prediction`, that were
        evaluated in these. A direction in which no pair is as long as `shortest` is nan, and so is `apls` then.

    Raises:
        DataError: if units or numbers of axes of the graphs differ.
        ValueError: if a distance is not a finite length above 0, or fewer than 2 points are asked for.
    """
    check_pair(prediction, truth)
    check_distance("snap", snap)
    check_distance("interval", interval)
    if points < 2:
        raise ValueError(f"points: expected 2 or more control points, received {points}")
    predicted, true = lines_of(prediction), lines_of(truth)
    places = [_drawn(control_places(lines, interval), points, seed) for lines in (true, predicted)]
    forth, pairs_true = _one_way(true, places[0], predicted, snap, shortest)
    back, pairs_predicted = _one_way(predicted, places[1], true, snap, shortest)
    if predicted.empty != true.empty:
        forth = back = 0.0
    if math.isnan(forth) or math.isnan(back):
        both = math.nan
    else:
        both = 2 * forth * back / (forth + back) if min(forth, back) > 0 else 0.0
    return {
        "apls": both,
        "apls_truth_to_prediction": forth,
        "apls_prediction_to_truth": back,
        "apls_pairs_truth": float(pairs_true),
        "apls_pairs_prediction": float(pairs_predicted),
    }


def control_places(lines: Lines, interval: float) -> Places:
    """Control points of APLS: each node once, and points that divide each segment into parts of at most `interval`."""
    segments, offsets, seen = [], [], set()
    for segment, (length, ends) in enumerate(zip(lines.length, lines.ends.tolist(), strict=True)):
        parts = max(math.ceil(length / interval - SLACK), 3 if ends[0] == ends[1] else 1)
        inner = [length * part / parts for part in range(1, parts)]
        outer = []
        for node, offset in zip(ends, (0.0, length), strict=True):
            if node not in seen:
                seen.add(node)
                outer.append(offset)
        offsets += outer + inner
        segments += [segment] * (len(outer) + len(inner))
    return Places(np.array(segments, dtype=np.int64), np.array(offsets, dtype=np.float64))


def tlts(
    prediction: nx.MultiGraph,
    truth: nx.MultiGraph,
    snap: float,
    shortest: float = 0.0,
    pairs: int = 1000,
    margin: float = 0.05,
    seed: int = 0,
) -> dict[str, float]:
    """Shares of true paths that are too long, too short, or not there at all in the prediction.

    Wegner et al. (2013), CVPR, A higher-order CRF model for road network extraction. The first point of a pair is drawn
    uniformly by length from the whole true graph, the second from the component of the first, so that components
    count in proportion to their length. Both are matched to the nearest point on the predicted graph within `snap`. A
    pair with a path of length l* in the truth and l in the prediction is correct if |l - l*| <= margin * l*.

    What is predicted in excess costs nothing unless it is a short cut.

    Args:
        prediction: predicted graph.
        truth: true graph.
        snap: largest distance of a match.
        shortest: least l*; shorter pairs are drawn anew. Within a few times `snap`, being off to the side alone makes
            a pair incorrect.
        pairs: how many to draw.
        margin: of relative length.
        seed: of the draw.

    Returns:
        `tlts_correct`, `tlts_too_long`, `tlts_too_short` and `tlts_infeasible` (no match, or no path), which add up to
        1, and the number of pairs, `tlts_pairs`: fewer than asked for where hardly any are as long as `shortest`. nan
        and 0 pairs where none is.

    Raises:
        DataError: if units or numbers of axes of the graphs differ.
        ValueError: if `snap` is not a finite length above 0, `margin` not between 0 and 1, or no pair is asked for.
    """
    check_pair(prediction, truth)
    check_distance("snap", snap)
    if not (0 < margin < 1 and pairs > 0):
        raise ValueError(f"expected a margin between 0 and 1, and 1 or more pairs, received {margin} and {pairs}")
    predicted, true = lines_of(prediction), lines_of(truth)
    names = ("tlts_correct", "tlts_too_long", "tlts_too_short", "tlts_infeasible", "tlts_pairs")
    if true.empty:
        shares = [math.nan] * 4 if predicted.empty else [0.0, 0.0, 0.0, 1.0]
        return dict(zip(names, (*shares, 0.0), strict=True))
    first, second = _connected_pairs(true, pairs, shortest, seed)
    count = len(first.segment)
    if not count:
        return dict.fromkeys(names, math.nan) | {"tlts_pairs": 0.0}
    expected = path_lengths(true, first, second)
    ends = [nearest(predicted, points_at(true, places), snap) for places in (first, second)]
    found = path_lengths(predicted, *ends)
    room = margin * (1 + SLACK) * expected
    infeasible = int(np.isinf(found).sum())
    too_long = int((found > expected + room).sum()) - infeasible
    too_short = int((found < expected - room).sum())
    correct = count - infeasible - too_long - too_short
    shares = [number / count for number in (correct, too_long, too_short, infeasible)]
    return dict(zip(names, (*shares, float(count)), strict=True))


def _drawn(places: Places, most: int, seed: int) -> Places:
    """So many of the places, in their order."""
    if len(places.segment) <= most:
        return places
    rng = np.random.default_rng(seed)
    return places.take(np.sort(rng.choice(len(places.segment), most, replace=False)))


def _one_way(lines: Lines, places: Places, other: Lines, snap: float, shortest: float) -> tuple[float, int]:
    """Score of one direction of APLS, nan without pairs, and the number of pairs."""
    one, two = np.triu_indices(len(places.segment), 1)
    expected = path_lengths(lines, places.take(one), places.take(two))
    counted = np.isfinite(expected) & (expected >= max(shortest * (1 - SLACK), NO_LENGTH))
    if not counted.any():
        return math.nan, 0
    matched = nearest(other, points_at(lines, places), snap)
    found = path_lengths(other, matched.take(one[counted]), matched.take(two[counted]))
    cost = np.minimum(np.abs(found - expected[counted]) / expected[counted], 1)
    return float(1 - cost.mean()), int(counted.sum())


def _connected_pairs(lines: Lines, count: int, shortest: float, seed: int) -> tuple[Places, Places]:
    """Pairs of places on the same component, with a path of at least a length."""
    rng = np.random.default_rng(seed)
    # All segments end to end on one axis, component after component.
    bounds = np.concatenate([[0.0], np.cumsum(lines.length)])
    begins = np.flatnonzero(np.diff(lines.component, prepend=-1))
    low, high = bounds[begins], bounds[np.append(begins[1:], len(lines.length))]

    def places_at(position: np.ndarray) -> Places:
        segment = np.clip(np.searchsorted(bounds, position, side="right") - 1, 0, len(lines.length) - 1)
        return Places(segment, position - bounds[segment])

    batches: list[np.ndarray] = []
    for _ in range(_BATCHES):
        draw, again = rng.random((2, count))
        position = draw * bounds[-1]
        part = lines.component[places_at(position).segment]
        partner = low[part] + again * (high[part] - low[part])
        length = path_lengths(lines, places_at(position), places_at(partner))
        kept = np.isfinite(length) & (length >= max(shortest * (1 - SLACK), NO_LENGTH))
        batches.append(np.stack([position, partner])[:, kept])
        if sum(batch.shape[1] for batch in batches) >= count:
            break
    first, second = np.concatenate(batches, axis=1)[:, :count]
    return places_at(first), places_at(second)
