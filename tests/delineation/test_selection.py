"""Selections against all subsets of small graphs."""

from itertools import combinations

import networkx as nx
import numpy as np
import pytest

from biocnn.delineation.candidates import Candidates
from biocnn.delineation.integer_program import Problem, solve
from biocnn.delineation.selection import Selection, select_edges, select_paths


def cost(ends: np.ndarray, weights: np.ndarray, chosen: tuple[int, ...], price: float) -> float:
    graph = nx.MultiGraph(ends[list(chosen)].tolist())
    return float(weights[list(chosen)].sum() + price * nx.number_connected_components(graph))


def allowed(ends: np.ndarray, conflicts: np.ndarray, chosen: tuple[int, ...], loops: bool) -> bool:
    if any(one in chosen and two in chosen for one, two in conflicts.tolist()):
        return False
    graph = nx.MultiGraph(ends[list(chosen)].tolist())
    return loops or not chosen or nx.is_forest(graph)


def best_cost(ends: np.ndarray, weights: np.ndarray, conflicts: np.ndarray, loops: bool, price: float) -> float:
    """The least cost of all subsets."""
    return min(
        cost(ends, weights, chosen, price)
        for size in range(len(ends) + 1)
        for chosen in combinations(range(len(ends)), size)
        if allowed(ends, conflicts, chosen, loops)
    )


def random_graph(seed: int, edges: int = 10) -> tuple[int, np.ndarray, np.ndarray, np.ndarray, float]:
    """Nodes, ends with parallel edges, weights of both signs, conflicts, and a price."""
    rng = np.random.default_rng(seed)
    nodes = int(rng.integers(3, 9))
    ends = np.array([rng.choice(nodes, 2, replace=False) for _ in range(edges)])
    weights = np.round(rng.normal(0.5, 3, edges), 1)
    conflicts = np.array([rng.choice(edges, 2, replace=False) for _ in range(seed % 4)], np.int64).reshape(-1, 2)
    return nodes, ends, weights, conflicts, float(rng.choice([0.0, 1.0, 3.0, 6.0]))


def check(selection: Selection, ends: np.ndarray, weights: np.ndarray, conflicts: np.ndarray, loops: bool) -> None:
    assert allowed(ends, conflicts, tuple(selection.chosen.tolist()), loops)
    assert selection.bound <= selection.objective


@pytest.mark.parametrize("loops", [True, False])
@pytest.mark.parametrize("seed", range(16))
def test_selects_the_best_of_all_subsets(seed: int, loops: bool) -> None:
    nodes, ends, weights, conflicts, price = random_graph(seed)
    selection = select_edges(nodes, ends, weights, conflicts, loops, price)
    check(selection, ends, weights, conflicts, loops)
    best = best_cost(ends, weights, conflicts, loops, price)
    assert selection.objective == pytest.approx(best, abs=1e-5)
    assert selection.objective == pytest.approx(cost(ends, weights, tuple(selection.chosen.tolist()), price))
    assert selection.method == "milp"  # which stops at a gap of 1e-4; weights differ by 0.1
    assert selection.gap <= 1e-4


@pytest.mark.parametrize("loops", [True, False])
@pytest.mark.parametrize("seed", range(16))
def test_the_program_alone_is_as_good(seed: int, loops: bool) -> None:
    # Without any of the steps that make the problem smaller, which solve most of the small graphs on their own.
    nodes, ends, weights, conflicts, price = random_graph(seed)
    answer = solve(Problem(np.zeros(nodes), ends, weights, conflicts, price, loops), 20)
    assert answer is not None
    chosen = tuple(answer[1].tolist())
    assert allowed(ends, conflicts, chosen, loops)
    best = best_cost(ends, weights, conflicts, loops, price)
    assert cost(ends, weights, chosen, price) == pytest.approx(best, abs=1e-5)
    assert answer[2] == pytest.approx(best, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("loops", [True, False])
@pytest.mark.parametrize("seed", range(16))
def test_without_time_the_bound_is_below_the_best_and_the_answer_above(seed: int, loops: bool) -> None:
    nodes, ends, weights, conflicts, price = random_graph(seed)
    selection = select_edges(nodes, ends, weights, conflicts, loops, price, time_limit=0.0)
    check(selection, ends, weights, conflicts, loops)
    best = best_cost(ends, weights, conflicts, loops, price)
    assert selection.bound <= best + 1e-9
    assert best <= selection.objective + 1e-9
    assert selection.gap == pytest.approx(
        (selection.objective - selection.bound) / max(abs(selection.objective), 1e-9), abs=1e-8
    )


def test_without_time_the_answer_is_the_heuristic_one_and_says_so() -> None:
    # Two pairs of conflicts in a ring: greedily, 0 bars 1 and 2, that together weigh more.
    ends = np.array([(0, 1), (1, 2), (2, 0)])
    weights, conflicts = np.array([-5.0, -4.0, -4.0]), np.array([(0, 1), (0, 2)])
    quick = select_edges(3, ends, weights, conflicts, price=1.0, time_limit=0.0)
    assert (quick.method, quick.chosen.tolist(), quick.objective) == ("heuristic", [0], -4.0)
    assert quick.bound <= -7.0
    assert quick.gap == pytest.approx((quick.objective - quick.bound) / 4)
    slow = select_edges(3, ends, weights, conflicts, price=1.0)
    assert (slow.method, slow.chosen.tolist(), slow.objective) == ("milp", [1, 2], -7.0)


def test_a_ring_is_kept_with_loops_and_opened_at_its_weakest_for_a_tree() -> None:
    ends = np.array([(0, 1), (1, 2), (2, 3), (3, 0)])
    weights = np.array([-3.0, -2.0, -1.0, -4.0])
    assert select_edges(4, ends, weights, price=5.0).chosen.tolist() == [0, 1, 2, 3]
    tree = select_edges(4, ends, weights, loops=False, price=5.0)
    assert (tree.chosen.tolist(), tree.objective) == ([0, 1, 3], -4.0)


@pytest.mark.parametrize(("price", "chosen"), [(0.5, [0, 2, 3]), (1.5, [0, 1, 2, 3]), (5.0, [0, 1, 2]), (30.0, [])])
def test_the_price_of_a_component_decides_on_gaps_and_on_what_stands_alone(price: float, chosen: list[int]) -> None:
    # Two strong edges with a gap that weighs 1 between them, and a faint edge of weight -2 on its own.
    ends, weights = [(0, 1), (1, 2), (2, 3), (4, 5)], [-10.0, 1.0, -10.0, -2.0]
    assert select_edges(6, ends, weights, price=price).chosen.tolist() == chosen


def test_crossing_candidates_are_both_selected_and_overlapping_ones_are_not() -> None:
    across = [np.stack([np.full(21, 10), np.arange(21)], 1), np.stack([np.arange(21), np.full(21, 10)], 1)]
    nodes = np.array([(10, 0), (10, 20), (0, 10), (20, 10)])
    ends, spacing = np.array([(0, 1), (2, 3)]), np.ones(2)
    both = Candidates(nodes, ends, tuple(across), np.empty((0, 2), np.int64), spacing)
    assert select_paths(both, [-5.0, -4.0], price=1.0).chosen.tolist() == [0, 1]
    barred = Candidates(nodes, ends, tuple(across), np.array([(0, 1)]), spacing)
    assert select_paths(barred, [-5.0, -4.0], price=1.0).chosen.tolist() == [0]


def test_nothing_to_select_from() -> None:
    selection = select_edges(0, np.empty((0, 2)), [])
    assert (selection.chosen.tolist(), selection.objective, selection.bound, selection.gap) == ([], 0.0, 0.0, 0.0)
    assert select_edges(3, [(0, 1)], [4.0], price=2.0).chosen.tolist() == []


def test_edges_from_a_node_to_itself() -> None:
    ends, weights = [(0, 1), (1, 1)], [-3.0, -2.0]
    assert select_edges(2, ends, weights, price=1.0).chosen.tolist() == [0, 1]
    assert select_edges(2, ends, weights, loops=False, price=1.0).chosen.tolist() == [0]


@pytest.mark.parametrize(
    ("weights", "price", "message"),
    [([1.0], 0.0, "expected 2 finite"), ([1.0, np.nan], 0.0, "expected 2 finite"), ([1.0, 2.0], -1.0, "price")],
)
def test_what_cannot_be_selected_from(weights: list[float], price: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select_edges(3, [(0, 1), (1, 2)], weights, price=price)


@pytest.mark.parametrize("loops", [True, False])
def test_a_large_graph_takes_hardly_more_than_its_time(loops: bool) -> None:
    # A grid of 60 x 60 nodes, half of the edges in conflicts, which leaves integer programming everything to do.
    rng = np.random.default_rng(0)
    number = np.arange(3600).reshape(60, 60)
    steps = [(number[:, :-1], number[:, 1:]), (number[:-1], number[1:])]
    ends = np.concatenate([np.stack(pair, -1).reshape(-1, 2) for pair in steps])
    weights = rng.normal(1, 3, len(ends))
    conflicts = rng.permutation(len(ends))[: len(ends) // 2].reshape(-1, 2)
    selection = select_edges(3600, ends, weights, conflicts, loops, price=6.0, time_limit=1.0)
    check(selection, ends, weights, conflicts, loops)
    assert selection.objective < 0
    assert selection.seconds < 30  # the limit is 1; machines differ
