"""Weights of candidate paths: below 0 for paths that should be selected, above 0 for those that should not."""

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from biocnn.delineation.candidates import CLIP, GAP, Candidates
from biocnn.delineation.samples import checked_map

Floats = NDArray[np.float64]

# Most that a unit of length can weigh: the log-odds of a clipped probability, 3.9.
STEEPEST = math.log((1 - CLIP) / CLIP)
# Pixels of a structure behind an end, between which its direction is measured: at the tip a skeleton turns to a corner.
TIP, BEHIND = 3.0, 13.0


def component_price(spacing: Sequence[float], gap: float | None = None) -> float:
    """What a gap of the background weighs, of length `gap` in the unit of the spacing; None for 15 pixels.

    As the price of a component it means: two parts are connected over a gap of at most that length, and a part on its
    own needs as much evidence as a sure structure of that length.
    """
    return STEEPEST * (GAP * min(spacing) if gap is None else gap)


def continuation_reward(spacing: Sequence[float], gap: float | None = None) -> float:
    """What it is worth that a loose end goes on: three quarters of the price of a component.

    See :func:`with_continuations`; chosen on drawn networks.
    """
    return 0.75 * component_price(spacing, gap)


def log_odds(candidates: Candidates, probability: ArrayLike, threshold: float = 0.5) -> Floats:
    """Evidence against each candidate: the integral of -log(p / (1 - p)) along its path.

    Türetken et al. 2016, eq. (8), with the integral over length in place of a classifier. p is clipped to 0.02..0.98,
    and the log-odds of the threshold are taken off, so that a path at the threshold weighs nothing. Of a path with
    pixels below the threshold, what is before the first and after the last of them is not counted: it is the inside of
    the structures that the path connects, and speaks for them and not for the connection.

    Args:
        candidates: M of them.
        probability: the map they were found in.
        threshold: above 0, below 1.

    Returns:
        (M,) float64, in the unit of the spacing; of each path, a pixel stands for half of the steps on its two sides.
    """
    values, _ = checked_map(probability, None)
    values = np.clip(values, CLIP, 1 - CLIP).astype(np.float64)
    against = np.log((1 - values) / values) + math.log(threshold / (1 - threshold))
    result = np.empty(len(candidates))
    for number, path in enumerate(candidates.paths):
        along = against[tuple(path.T)]
        faint = np.flatnonzero(along > 0)
        part = slice(max(faint[0] - 1, 0), faint[-1] + 2) if len(faint) else slice(None)
        steps = np.linalg.norm(np.diff(path[part], axis=0) * candidates.spacing, axis=1)
        result[number] = steps @ (along[part][1:] + along[part][:-1]) / 2
    return result


def with_continuations(candidates: Candidates, weights: Floats, reward: float) -> Floats:
    """Weights that are lower for candidates that continue loose ends.

    A node at which one candidate of negative weight ends is a loose end. A candidate of positive weight that leads on
    from there, to a node where another one of negative weight ends, gets `reward` off, times the cosine of the angle by
    which it turns; twice, if it leads from one loose end to another. Every loose end is continued once: candidates that
    weigh least then come first. Evidence and the price of components alone never close the gap of a loop.

    Args:
        candidates: M of them.
        weights: (M,), see :func:`log_odds`.
        reward: 0 or more.
    """
    good: dict[int, list[int]] = defaultdict(list)
    for number, nodes in enumerate(candidates.ends.tolist()):
        for node in set(nodes) if weights[number] < 0 else ():
            good[node].append(number)
    ahead: dict[int, Floats] = {}
    offers: list[tuple[float, int, dict[int, float]]] = []
    for number in np.flatnonzero(weights > 0).tolist():
        one, two = candidates.ends[number].tolist()
        if one == two or not (good[one] and good[two]):
            continue
        offer = {}
        for node in (one, two):
            if len(good[node]) == 1:
                ahead.setdefault(node, _direction(candidates, good, node))
                way = _leaving(candidates, number, node)
                offer[node] = reward * max(float(ahead[node] @ _unit(way[-1] - way[0])), 0.0)
        offers.append((float(weights[number]) - sum(offer.values()), number, offer))
    result = weights.copy()
    continued: set[int] = set()
    for _, number, offer in sorted(offers, key=lambda one: one[:2]):
        result[number] -= sum(value for node, value in offer.items() if node not in continued)
        continued.update(node for node, value in offer.items() if value > 0)
    return result


def _leaving(candidates: Candidates, number: int, node: int) -> Floats:
    """Points of a candidate, from a node on, in the unit of the spacing."""
    path = candidates.paths[number]
    return (path if candidates.ends[number, 0] == node else path[::-1]) * candidates.spacing


def _direction(candidates: Candidates, good: dict[int, list[int]], node: int) -> Floats:
    """The direction in which a loose end would go on: along the structure behind it, over nodes of two candidates."""
    number, at = good[node][0], node
    way = _leaving(candidates, number, node)
    side = float(candidates.spacing.min())
    while True:
        along = np.append(0.0, np.cumsum(np.linalg.norm(np.diff(way, axis=0), axis=1)))
        first, last = candidates.ends[number].tolist()
        at = last if at == first else first
        following = [other for other in good[at] if other != number]
        if along[-1] >= BEHIND * side or len(following) != 1 or at == node:
            tip = TIP * side if along[-1] > 2 * TIP * side else 0.0
            start, stop = np.searchsorted(along, (tip, BEHIND * side))
            return _unit(way[start] - way[min(int(stop), len(way) - 1)])
        number = following[0]
        way = np.concatenate([way, _leaving(candidates, number, at)[1:]])


def _unit(vector: Floats) -> Floats:
    length = float(np.linalg.norm(vector))
    return vector / length if length > 0 else vector
