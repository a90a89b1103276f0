"""Which candidate paths to select: the best connected subset, as a tree or with loops.

The cost of a selection is the sum of its weights, and a price for each of its connected components. Türetken et al.:
Reconstructing curvilinear networks using path classifiers and integer programming. TPAMI 2016, sec. 5, with any number
of components in place of given roots.

The problem is made smaller without loss before it is solved:

- Paths that weigh as much as a component, or more, are never worth it.
- With loops, a path of negative weight and without conflict is selected as soon as one of its nodes is; for trees, one
  that is in the minimum spanning forest of all negative paths. Their nodes become one, with the sum as its prize.
- Parts that no path connects are solved on their own, the smallest first; those without circle and conflict exactly, by
  dynamic programming, the others by integer programming in the time that is left.

What integer programming has no time for gets the answer of a heuristic: a greedy choice among conflicts, a minimum
spanning forest, the best part of it by dynamic programming, and the negative paths that close loops.
"""

import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from biocnn.delineation.candidates import Candidates
from biocnn.delineation.integer_program import Problem, solve

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

LARGEST = 20_000  # edges of a part that is given to HiGHS; of more, its first relaxation takes minutes


@dataclass(frozen=True)
class Selection:
    """A selection of candidates, and how good it is.

    Attributes:
        chosen: (S,) int64, numbers of the candidates, sorted.
        objective: its cost: weights, and prices of components.
        bound: the cost of no selection is below.
        gap: (objective - bound) / |objective|, 0 if they agree.
        seconds: taken.
        method: ``"milp"`` if every part was solved exactly or by integer programming, ``"heuristic"`` if one was not.
    """

    chosen: Integers
    objective: float
    bound: float
    gap: float
    seconds: float
    method: Literal["milp", "heuristic"]


def select_paths(
    candidates: Candidates, weights: ArrayLike, loops: bool = True, price: float = 0.0, time_limit: float = 60.0
) -> Selection:
    """The best connected subset of candidates, of which none has a conflict with another.

    Args:
        candidates: M of them.
        weights: (M,), negative for those that should be selected.
        loops: whether selected paths may close loops.
        price: of each component, 0 or more.
        time_limit: seconds, for integer programming.

    Raises:
        ValueError: see :func:`select_edges`.
    """
    return select_edges(len(candidates.nodes), candidates.ends, weights, candidates.conflicts, loops, price, time_limit)


def select_edges(
    nodes: int,
    ends: ArrayLike,
    weights: ArrayLike,
    conflicts: ArrayLike = (),
    loops: bool = True,
    price: float = 0.0,
    time_limit: float = 60.0,
) -> Selection:
    """The best subset of the edges of any graph; see :func:`select_paths`.

    Args:
        nodes: their number.
        ends: (M, 2), nodes of each edge.
        weights: (M,), finite.
        conflicts: (K, 2), edges that cannot both be selected.
        loops: whether selected edges may close loops.
        price: of each component, 0 or more.
        time_limit: seconds, for integer programming.

    Raises:
        ValueError: if shapes do not fit, weights are not finite, or the price is negative.
    """
    began = time.perf_counter()
    pairs = np.asarray(ends, np.int64).reshape(-1, 2)
    values = np.asarray(weights, np.float64)
    barred = np.asarray(conflicts, np.int64).reshape(-1, 2)
    if values.shape != (len(pairs),) or not np.isfinite(values).all():
        raise ValueError(f"weights: expected {len(pairs)} finite numbers, one a candidate, received {values.shape}.")
    if not 0 <= price < math.inf:
        raise ValueError(f"price must be 0 or more and finite, received {price}.")
    # An edge from a node to itself costs what it weighs, but has no place in a tree.
    useful = (values < price) & ~((pairs[:, 0] == pairs[:, 1]) & ((values >= 0) | (not loops)))
    barred = barred[useful[barred].all(axis=1) & (barred[:, 0] != barred[:, 1])]
    certain = _certain(nodes, pairs, values, useful, barred, loops)
    group = _groups(nodes, pairs[certain])
    prizes = np.zeros(int(group.max(initial=-1)) + 1)
    np.add.at(prizes, group[pairs[certain, 0]], -values[certain])
    merged = group[pairs]
    open_ = useful & ~certain & ((merged[:, 0] != merged[:, 1]) | (loops & (values < 0)))
    left = _without_dead_ends(np.flatnonzero(open_), merged, values, prizes)
    barred = barred[np.isin(barred, left).all(axis=1)]

    whole = Problem(prizes, merged[left], values[left], np.searchsorted(left, barred), price, loops)
    taken_nodes, taken_edges, bound, exact = _solve_parts(whole, began + time_limit)
    member = np.zeros(len(prizes), np.bool_)
    member[taken_nodes] = True
    chosen = np.union1d(np.flatnonzero(certain)[member[group[pairs[certain, 0]]]], left[taken_edges])
    objective = cost_of(pairs, values, chosen, price)
    bound = min(bound, objective)
    gap = (objective - bound) / max(abs(objective), 1e-9)
    return Selection(
        chosen.astype(np.int64),
        objective,
        bound,
        gap if gap > 1e-9 else 0.0,
        time.perf_counter() - began,
        "milp" if exact else "heuristic",
    )


def cost_of(ends: Integers, weights: Floats, chosen: Integers, price: float) -> float:
    """The sum of the weights of chosen edges, and the price of every component of them."""
    if not len(chosen):
        return 0.0
    _, own = np.unique(ends[chosen], return_inverse=True)
    group = _groups(int(own.max()) + 1, own.reshape(-1, 2))
    return float(weights[chosen].sum() + price * (group.max() + 1))


def _groups(nodes: int, ends: Integers) -> Integers:
    """The number of the component of every node, (nodes,)."""
    matrix = sparse.coo_array((np.ones(len(ends)), tuple(ends.T)), (nodes, nodes))
    return connected_components(matrix, directed=False)[1].astype(np.int64)


def _certain(
    nodes: int, ends: Integers, weights: Floats, useful: NDArray[np.bool_], conflicts: Integers, loops: bool
) -> NDArray[np.bool_]:
    """Edges that are selected in some best selection if one of their nodes is, (M,)."""
    certain = useful & (weights < 0)
    if not loops:
        negative = np.flatnonzero(certain)
        order = negative[np.argsort(weights[negative], kind="stable")]
        certain = np.zeros(len(weights), np.bool_)
        certain[order[_spanning(nodes, ends[order])]] = True
    certain[conflicts.ravel()] = False
    return certain


def _spanning(nodes: int, ends: Integers) -> list[int]:
    """Numbers of the edges that, taken in order, close no circle (Kruskal)."""
    parent = list(range(nodes))
    kept = []
    for number, (one, two) in enumerate(ends.tolist()):
        while parent[one] != one:
            parent[one] = one = parent[parent[one]]
        while parent[two] != two:
            parent[two] = two = parent[parent[two]]
        if one != two:
            parent[one] = two
            kept.append(number)
    return kept


def _without_dead_ends(left: Integers, ends: Integers, weights: Floats, prizes: Floats) -> Integers:
    """Edges that are left if those that lead to a node without prize, and not on from there, are dropped."""
    while len(left):
        degree = np.bincount(ends[left].ravel(), minlength=len(prizes))
        dead = (degree == 1) & (prizes == 0)
        drop = dead[ends[left]].any(axis=1) & (weights[left] >= 0)
        if not drop.any():
            break
        left = left[~drop]
    return left


def _solve_parts(problem: Problem, deadline: float) -> tuple[Integers, Integers, float, bool]:
    """Selected nodes and edges, a bound of the cost, and whether no part is left to the heuristic."""
    links = np.concatenate([problem.ends, problem.ends[problem.conflicts][..., 0]])
    part = _groups(len(problem.prizes), links)
    edges_of: dict[int, list[int]] = defaultdict(list)
    for number, node in enumerate(problem.ends[:, 0].tolist()):
        edges_of[int(part[node])].append(number)
    conflicts_of: dict[int, list[Sequence[int]]] = defaultdict(list)
    for pair in problem.conflicts.tolist():
        conflicts_of[int(part[problem.ends[pair[0], 0]])].append(pair)
    # Nodes without an edge are selected if they are worth a component.
    single = np.flatnonzero(np.bincount(problem.ends.ravel(), minlength=len(part)) == 0)
    worth = single[problem.prizes[single] > problem.price]
    nodes, edges = [worth], [np.empty(0, np.int64)]
    bound, exact = float((problem.price - problem.prizes[worth]).sum()), True
    for own in sorted(edges_of.values(), key=len):
        some = np.array(own)
        here, ends = np.unique(problem.ends[some], return_inverse=True)
        barred = np.searchsorted(some, np.array(conflicts_of[int(part[here[0]])], np.int64).reshape(-1, 2))
        small = Problem(
            problem.prizes[here], ends.reshape(-1, 2), problem.weights[some], barred, problem.price, problem.loops
        )
        some_nodes, some_edges, least, solved = _solve_part(small, deadline)
        nodes.append(here[some_nodes])
        edges.append(some[some_edges])
        bound += least
        exact &= solved
    return np.concatenate(nodes), np.concatenate(edges), bound, exact


def _solve_part(problem: Problem, deadline: float) -> tuple[Integers, Integers, float, bool]:
    """Selected nodes and edges of a connected problem, a bound, and whether it was not left to the heuristic."""
    nodes, edges = _heuristic(problem)
    cost = _cost(problem, nodes, edges)
    if len(problem.weights) == len(problem.prizes) - 1 and not len(problem.conflicts):
        return nodes, edges, cost, True  # a tree, of which dynamic programming finds the best part
    worth = problem.price - problem.prizes.sum() + np.minimum(problem.weights, 0).sum()
    bound = min(float(worth), 0.0)
    seconds = deadline - time.perf_counter()
    if cost <= bound + 1e-9 * abs(bound):
        return nodes, edges, bound, True
    if seconds <= 0 or len(problem.weights) > LARGEST:
        return nodes, edges, bound, False
    answer = solve(problem, seconds)
    if answer is None:
        return nodes, edges, bound, False
    better_nodes, better_edges, least = answer
    if _cost(problem, better_nodes, better_edges) < cost:
        nodes, edges = better_nodes, better_edges
    return nodes, edges, max(bound, least), True


def _cost(problem: Problem, nodes: Integers, edges: Integers) -> float:
    group = _groups(len(problem.prizes), problem.ends[edges])
    components = len(np.unique(group[nodes]))
    return float(problem.weights[edges].sum() - problem.prizes[nodes].sum() + problem.price * components)


def _heuristic(problem: Problem) -> tuple[Integers, Integers]:
    """A good selection of nodes and edges; the best one if the problem is a tree without conflicts."""
    order = np.argsort(problem.weights, kind="stable")
    barred: dict[int, list[int]] = defaultdict(list)
    for one, two in problem.conflicts.tolist():
        barred[one].append(two)
        barred[two].append(one)
    free: list[int] = []
    out: set[int] = set()
    for edge in order.tolist():
        if edge not in out:
            free.append(edge)
            out.update(barred[edge])
    able = np.array(free)
    forest = able[_spanning(len(problem.prizes), problem.ends[able])]
    nodes, edges = _best_of_forest(problem, forest)
    if problem.loops:
        inside = np.isin(problem.ends[able], nodes).all(axis=1)
        edges = np.union1d(edges, able[inside & (problem.weights[able] < 0)])
    return nodes, edges


def _best_of_forest(problem: Problem, forest: Integers) -> tuple[Integers, Integers]:
    """The best nodes and edges of a forest (edges that close no circle), by dynamic programming from the leaves."""
    beside: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for edge in forest.tolist():
        one, two = problem.ends[edge].tolist()
        beside[one].append((two, edge))
        beside[two].append((one, edge))
    above: dict[int, tuple[int, int]] = {}
    order: list[int] = []  # parents first
    for root in range(len(problem.prizes)):
        if root not in above:
            above[root] = (-1, -1)
            stack = [root]
            while stack:
                node = stack.pop()
                order.append(node)
                for other, edge in beside[node]:
                    if other not in above:
                        above[other] = (node, edge)
                        stack.append(other)
    # Cost of the part below a node: `on` if it is selected, without the price of its component, `off` if it is not.
    on, off = (-problem.prizes).tolist(), [0.0] * len(problem.prizes)
    for node in reversed(order):
        parent, edge = above[node]
        if parent >= 0:
            alone = min(on[node] + problem.price, off[node])
            on[parent] += min(on[node] + float(problem.weights[edge]), alone)
            off[parent] += alone
    nodes, edges = [], []
    selected = [False] * len(on)
    for node in order:
        parent, edge = above[node]
        alone = min(on[node] + problem.price, off[node])
        joined = parent >= 0 and selected[parent] and on[node] + float(problem.weights[edge]) < alone
        selected[node] = joined or on[node] + problem.price < off[node]
        if selected[node]:
            nodes.append(node)
        if joined:
            edges.append(edge)
    return np.array(nodes, np.int64), np.array(edges, np.int64)
