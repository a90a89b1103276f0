import math
from itertools import permutations

import networkx as nx
import numpy as np
import pytest

from biocnn.data.graphs import new_graph
from biocnn.errors import DataError
from biocnn.metrics.graph_junctions import junction_scores, node_scores
from tests.metrics.drawn_graphs import densified, graph_of, line, random_graph

ARMS = [(10, 0), (0, 10), (10, 20), (20, 10)]


def star(arms, centre=(10, 10)):
    return graph_of([centre, *ARMS[:arms]], [(0, arm) for arm in range(1, arms + 1)])


def opt_j(prediction, truth, snap=4.0, weight=4.0):
    return tuple(junction_scores(prediction, truth, snap, weight).values())


def test_stars_with_an_arm_too_many_or_too_few():
    assert opt_j(star(3), star(3)) == (1, 1, 1)
    # Right: 3 ends and 3 of the centre; votes 3 + 3 predicted and 4 + 4 true.
    assert opt_j(star(3), star(4)) == pytest.approx((6 / 6, 6 / 8, 12 / 14))
    # Without the third arm the centre is a point on a line: right are 2 ends, of 2 and of 3 + 3.
    assert opt_j(star(2), star(3)) == pytest.approx((2 / 2, 2 / 6, 4 / 8))
    assert opt_j(star(3), star(2)) == pytest.approx((2 / 6, 2 / 2, 4 / 8))


def test_the_partner_of_like_degree_is_taken_unless_difference_is_cheap():
    # Beside the true centre of degree 3: an end point at 1, and a centre at 3. The rest is out of reach.
    truth = star(3)
    prediction = graph_of([(13, 10), (90, 0), (90, 10), (90, 20), (10, 11), (50, 50)], [(0, 1), (0, 2), (0, 3), (4, 5)])
    votes = 3 + 3 + 2
    # 3 / 4 + 0 against 1 / 4 + 2 * weight.
    assert opt_j(prediction, truth, snap=4) == pytest.approx((3 / votes, 3 / 6, 6 / (votes + 6)))
    assert opt_j(prediction, truth, snap=4, weight=0.24) == pytest.approx((1 / votes, 1 / 6, 2 / (votes + 6)))
    # Of equal cost, here of no cost for degree and the same distance, the one with more votes.
    moved = graph_of([(13, 10), (90, 0), (90, 10), (90, 20), (7, 10), (50, 50)], [(0, 1), (0, 2), (0, 3), (4, 5)])
    assert opt_j(moved, truth, snap=4, weight=0)[1] == pytest.approx(3 / 6)


def test_the_greatest_number_of_matches_comes_first():
    # True ends at 0 and 3, predicted at 3.5 and 6.4, of lines that lead far away: the nearest pair, 3 and 3.5, would
    # leave the other two 6.4 apart.
    truth = graph_of([(0, 0), (0, 3), (90, 0), (90, 3)], [(0, 2), (1, 3)])
    prediction = graph_of([(0, 3.5), (0, 6.4), (-90, 0), (-90, 3)], [(0, 2), (1, 3)])
    assert opt_j(prediction, truth) == pytest.approx((2 / 4, 2 / 4, 2 / 4))
    assert node_scores(prediction, truth, 4)["end_f1"] == pytest.approx(2 / 4)
    assert node_scores(prediction, truth, 3.4)["end_f1"] == pytest.approx(1 / 4)


def test_one_branch_point_as_two():
    # A crossing as two branch points, 2 apart: one match each.
    truth = star(4)
    prediction = graph_of([(10, 9), (10, 11), *ARMS], [(0, 1), (0, 2), (0, 3), (1, 4), (1, 5)])
    scores = node_scores(prediction, truth, 1.5)
    assert [scores[f"branch_{name}"] for name in ("precision", "recall", "f1")] == pytest.approx([1 / 2, 1, 2 / 3])
    assert [scores[f"end_{name}"] for name in ("precision", "recall", "f1")] == [1, 1, 1]
    # Votes: 4 ends and 3 right, of 4 + 6 predicted and 4 + 4 true.
    assert opt_j(prediction, truth, snap=1.5) == pytest.approx((7 / 10, 7 / 8, 14 / 18))


def test_nodes_at_exactly_the_tolerance_match_in_three_dimensions():
    one, other = line((0, 0, 0), (0, 0, 30)), line((2, 3, 6), (2, 3, 36))
    assert node_scores(other, one, 7)["end_f1"] == 1
    assert node_scores(other, one, 6.999)["end_f1"] == 0
    assert math.isnan(node_scores(other, one, 7)["branch_f1"])


def best_votes(found, true, snap, weight):
    """Over all one-to-one matchings: most pairs, then least cost, then most votes."""
    (points, degrees), (others, other_degrees) = found, true
    if len(points) > len(others):
        return best_votes(true, found, snap, weight)
    best = (0, 0.0, 0)
    slots = [*range(len(others)), *[None] * len(points)]
    for partners in set(permutations(slots, len(points))):
        pairs = [(one, two) for one, two in enumerate(partners) if two is not None]
        far = [np.linalg.norm(points[one] - others[two]) for one, two in pairs]
        if any(distance > snap for distance in far):
            continue
        cost = sum(far) / snap + weight * sum(abs(degrees[one] - other_degrees[two]) for one, two in pairs)
        best = max(best, (len(pairs), -cost, sum(min(degrees[one], other_degrees[two]) for one, two in pairs)))
    return best[2]


def bare_nodes(rng, dimensions, count):
    """A graph of nodes close together and of degrees 1 to 5, but for 2, by way of segments to nodes far away."""
    degrees = rng.choice([1, 3, 4, 5], count)
    graph = new_graph(dimensions=dimensions)
    positions = rng.uniform(0, 6, (count, dimensions))
    for node, (position, degree) in enumerate(zip(positions, degrees, strict=True)):
        graph.add_node(node, position=tuple(position))
        # A loop counts twice, and its single node is what the far end would be.
        graph.add_edges_from([(node, node)] * (degree // 2))
        if degree % 2:
            graph.add_node(-node - 1, position=(1000.0 * (node + 1) + rng.uniform(0, 500),) * dimensions)
            graph.add_edge(node, -node - 1)
    return graph, (positions, degrees)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_against_all_matchings(dimensions):
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(25):
        snap, weight = rng.uniform(1, 5), rng.choice([0.0, 0.3, 4.0])
        (prediction, found), (truth, true) = (bare_nodes(rng, dimensions, rng.integers(2, 5)) for _ in range(2))
        far = [sum(node < 0 for node in graph) for graph in (prediction, truth)]
        right = best_votes(found, true, snap, weight)
        votes = [found[1].sum() + far[0], true[1].sum() + far[1]]
        expected = (right / votes[0], right / votes[1], 2 * right / sum(votes))
        assert opt_j(prediction, truth, snap, weight) == pytest.approx(expected)
        seen.add(right)
    assert len(seen) > 4


def test_a_large_set_is_matched_group_by_group():
    # 60 x 60 ends, each 0.5 from its partner and 5 from any other; a full matrix would have 13 million entries.
    places = [(5.0 * row, 5.0 * column) for row in range(60) for column in range(60)]
    graphs = []
    for shift in (0.0, 0.5):
        graph = nx.MultiGraph(unit="px", spacing=(1.0, 1.0))
        graph.add_nodes_from((n, {"position": (row + shift, column)}) for n, (row, column) in enumerate(places))
        graph.add_edges_from((n, n + 1) for n in range(0, 3600, 2))
        graphs.append(graph)
    assert opt_j(*graphs, snap=2) == (1, 1, 1)
    assert node_scores(*graphs, 0.4)["end_f1"] == 0


def test_points_on_lines_single_nodes_and_rings_are_nothing():
    rng = np.random.default_rng(1)
    ring = graph_of([(0, 0)], [(0, 0, (0, 10), (10, 10), (10, 0))])
    for scores in (junction_scores(ring, densified(ring, 2), 3), node_scores(ring, graph_of([(0, 0)], []), 3)):
        assert all(math.isnan(value) for value in scores.values())
    graph = random_graph(rng)
    assert opt_j(densified(graph, 1), graph, 1e-3) == (1, 1, 1)
    # Loops count twice: of one node with a loop and an arm, 3, and the end of the arm, 1.
    loop = graph_of([(0, 0), (0, -9)], [(0, 0, (0, 10), (10, 10), (10, 0)), (0, 1)])
    assert opt_j(loop, ring) == opt_j(ring, loop) == (0, 0, 0)
    scores = node_scores(loop, star(3, centre=(0, 0.5)), 1)
    assert (scores["branch_f1"], scores["end_f1"]) == (1, 0)


def test_one_empty_graph_scores_zero_and_two_nan():
    empty, full = graph_of([], []), star(3)
    for function in (junction_scores, node_scores):
        assert all(math.isnan(value) for value in function(empty, empty, 3).values())
        for pair in ((empty, full), (full, empty)):
            assert set(function(*pair, 3).values()) == {0.0}


def test_wrong_arguments_are_refused():
    for function in (junction_scores, node_scores):
        with pytest.raises(DataError, match="same unit"):
            function(line((0, 0), (0, 9)), line((0, 0), (0, 9), spacing=(1, 1)), 3)
        with pytest.raises(ValueError, match="finite length above 0, received -1"):
            function(star(3), star(3), -1)
    with pytest.raises(ValueError, match="degree_weight: expected a finite number, 0 or more, received -1"):
        junction_scores(star(3), star(3), 3, degree_weight=-1)
