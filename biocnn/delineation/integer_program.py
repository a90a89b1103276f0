"""The integer program behind the selection of paths, solved by HiGHS (`scipy.optimize.milp`).

Nodes with prizes, edges with weights, and a price of each component of what is selected. A virtual root is connected
to a node of each component, for that price, and sends one unit of flow to every selected node over an arborescence,
which makes the selection connected to the root: the single-commodity form of the program of Türetken et al. 2016, sec.
5, with the prizes of Ljubić et al.: An algorithmic framework for the exact solution of the prize-collecting Steiner
tree problem. Math. Program. 2006.

Variables: an arc each way of an edge, a node, its link to the root, flow on arcs and links; and, for loops, edges that
close them. For a tree, an edge is selected if one of its arcs is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

GAP = 1e-4  # relative, at which HiGHS stops: of what is left to it, less than one candidate of 10,000


@dataclass(frozen=True)
class Problem:
    """Which nodes and edges to select.

    Attributes:
        prizes: (N,), what a selected node is worth, 0 or more.
        ends: (M, 2), nodes of each edge.
        weights: (M,), what a selected edge costs; both its nodes are then selected.
        conflicts: (K, 2), edges that cannot both be selected.
        price: of each component of the selected nodes, 0 or more.
        loops: whether the selected edges may close loops.
    """

    prizes: Floats
    ends: Integers
    weights: Floats
    conflicts: Integers
    price: float
    loops: bool


def solve(problem: Problem, seconds: float) -> tuple[Integers, Integers, float] | None:
    """The best nodes and edges of a problem, in a limited time.

    Returns:
        Selected nodes, selected edges, and a number that the cost of no selection is below; None if HiGHS found no
        selection in time. Positive edges that no connection needs are not selected.
    """
    nodes, edges = len(problem.prizes), len(problem.weights)
    first, second = problem.ends.T
    proper = np.flatnonzero(first != second)  # arcs: forward, then backward
    tail = np.concatenate([first[proper], second[proper]])
    head = np.concatenate([second[proper], first[proper]])
    # With loops, edges of negative weight may be selected beside the arborescence.
    closing = np.flatnonzero(problem.weights < 0) if problem.loops else np.empty(0, np.int64)
    sizes = [len(tail), nodes, nodes, len(tail), nodes, len(closing)]
    arc, node, link, flow, link_flow, edge = (
        np.arange(end - size, end) for size, end in zip(sizes, np.cumsum(sizes), strict=True)
    )
    total = int(sum(sizes))
    # Row e of `chosen`: the variables of which the sum is 1 if edge e is selected.
    beside = np.isin(proper, closing)
    chosen = _matrix(
        [
            (proper[~beside], arc[: len(proper)][~beside], 1),
            (proper[~beside], arc[len(proper) :][~beside], 1),
            (closing, edge, 1),
        ],
        (edges, total),
    )
    at = np.arange(nodes)
    rows = [
        # A selected node has one arc, or its link, that leads to it; and of its flow, one unit stays.
        (_matrix([(head, arc, 1), (at, link, 1), (at, node, -1)], (nodes, total)), 0, 0),
        (_matrix([(head, flow, 1), (tail, flow, -1), (at, link_flow, 1), (at, node, -1)], (nodes, total)), 0, 0),
        (_matrix([(np.arange(len(tail)), flow, 1), (np.arange(len(tail)), arc, -nodes)], (len(tail), total)), None, 0),
        (_matrix([(at, link_flow, 1), (at, link, -nodes)], (nodes, total)), None, 0),
        # An edge is used one way at most, and by nodes that are selected.
        *[(_pair(arc, len(proper), node[side], total), None, 0) for side in (first[proper], second[proper])],
        *[(_below(edge, node[side], total), None, 0) for side in (first[closing], second[closing])],
        *[(_below(np.concatenate([arc[: len(proper)][beside], arc[len(proper) :][beside]]),
                  np.tile(edge[np.searchsorted(closing, proper[beside])], 2), total), None, 0)],
        (chosen[problem.conflicts[:, 0]] + chosen[problem.conflicts[:, 1]], None, 1),
    ]  # fmt: skip
    cost = chosen.T @ problem.weights
    cost[node] -= problem.prizes
    cost[link] += problem.price
    high = np.ones(total)
    high[flow] = high[link_flow] = nodes
    # Only nodes that may pay for a component are worth a link to the root.
    high[link] = (problem.prizes > 0) | np.isin(at, problem.ends[problem.weights < 0])
    whole = np.ones(total)
    whole[flow] = whole[link_flow] = 0
    answer = milp(
        cost,
        integrality=whole,
        bounds=Bounds(0, high),
        constraints=[
            LinearConstraint(matrix, -np.inf if low is None else low, up) for matrix, low, up in rows if matrix.shape[0]
        ],
        options={"time_limit": max(seconds, 1e-3), "mip_rel_gap": GAP},
    )
    if answer.x is None:
        return None
    bound = answer.mip_dual_bound
    least = -math.inf if bound is None or not math.isfinite(bound) else float(bound)
    return np.flatnonzero(answer.x[node] > 0.5), np.flatnonzero(chosen @ answer.x > 0.5), least


def _matrix(parts: Sequence[tuple[NDArray, NDArray, float]], shape: tuple[int, int]) -> sparse.csr_array:
    """Matrix of entries (rows, columns, value)."""
    row, column = (np.concatenate([part[which] for part in parts]) for which in (0, 1))
    value = np.concatenate([np.full(len(part[0]), float(part[2])) for part in parts])
    return sparse.csr_array((value, (row, column)), shape)


def _pair(arc: Integers, count: int, above: Integers, total: int) -> sparse.csr_array:
    """Rows: forward arc + backward arc - what is above."""
    row = np.arange(count)
    return _matrix([(row, arc[:count], 1), (row, arc[count:], 1), (row, above, -1)], (count, total))


def _below(low: Integers, above: Integers, total: int) -> sparse.csr_array:
    """Rows: a variable - what is above it."""
    row = np.arange(len(low))
    return _matrix([(row, low, 1), (row, above, -1)], (len(low), total))
