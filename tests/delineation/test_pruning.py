"""Pruning of graphs whose right answer is known, and its properties on graphs of random masks."""

import math
from itertools import pairwise

import networkx as nx
import numpy as np
import pytest
from scipy import ndimage

from biocnn.data.graphs import add_segment, loop_count, new_graph, total_length
from biocnn.delineation.pruning import drop_small, prune_spurs
from biocnn.delineation.skeleton_graph import mask_graph


def graph_of(positions: list[tuple[float, float]], lines: list[tuple[int, int]], radius: float = 2) -> nx.MultiGraph:
    graph = new_graph((1, 1))
    for node, position in enumerate(positions):
        graph.add_node(node, position=position, radius=radius)
    for u, v in lines:
        add_segment(graph, u, v, [positions[u], positions[v]], [radius, radius], 0.5)
    return graph


def add_ring(graph: nx.MultiGraph, node: int) -> None:
    here = np.array(graph.nodes[node]["position"])
    add_segment(graph, node, node, here + np.array([(0, 0), (1, 1), (1, -1), (0, 0)]))


# A line with a twig of length 3, which is what is left at node 1 to be joined.
TWIG = ([(0, 0), (0, 10), (0, 30), (3, 10)], [(0, 1), (1, 2), (1, 3)])


def lengths(graph: nx.MultiGraph) -> list[float]:
    return sorted(length for *_, length in graph.edges(data="length"))


def test_a_twig_goes_and_what_it_was_on_becomes_one_segment() -> None:
    graph = graph_of(*TWIG)
    pruned = prune_spurs(graph, 4)
    assert lengths(pruned) == [30]
    assert set(pruned) == {0, 2}
    ((_, _, data),) = pruned.edges(data=True)
    assert data["path"].tolist() in ([[0, 0], [0, 10], [0, 30]], [[0, 30], [0, 10], [0, 0]])
    assert data["score"] == 0.5
    assert data["width"] == 4
    assert lengths(graph) == [3, 10, 20], "the graph that was given does not change"


def test_a_twig_as_long_as_the_limit_stays() -> None:
    assert lengths(prune_spurs(graph_of(*TWIG), 3)) == [3, 10, 20]


def test_without_a_limit_the_radius_at_the_branch_point_is_one() -> None:
    assert lengths(prune_spurs(graph_of(*TWIG, radius=2))) == [3, 10, 20]
    assert lengths(prune_spurs(graph_of(*TWIG, radius=3.5))) == [30]
    assert lengths(prune_spurs(graph_of(*TWIG, radius=math.nan))) == [3, 10, 20]


def test_of_two_twigs_of_a_fork_the_longer_one_goes_on() -> None:
    fork = graph_of([(0, 0), (0, 10), (3, 10), (-2, 10)], [(0, 1), (1, 2), (1, 3)])
    assert lengths(prune_spurs(fork, 5)) == [13]


def test_a_chain_of_forks_is_pruned_again_and_again() -> None:
    # The twigs 5 and 6 at node 2: one goes, the other one becomes a spur of node 1 of length 1 + 2, which goes as well.
    positions = [(0.0, 0.0), (0.0, 10.0), (1.0, 10.0), (0.0, 20.0), (9.0, 9.0), (2.0, 10.0), (1.0, 11.0)]
    graph = graph_of(positions, [(0, 1), (1, 2), (1, 3), (2, 5), (2, 6)])
    assert lengths(prune_spurs(graph, 1.5)) == [2, 10, 10]
    assert lengths(prune_spurs(graph, 2.5)) == [20]


def test_segments_and_rings_on_their_own_stay_and_so_does_the_stick_of_a_ring_end() -> None:
    graph = graph_of([(0, 0), (0, 1), (5, 5), (9, 9), (9, 10)], [(0, 1), (3, 4)])
    add_ring(graph, 2)
    add_ring(graph, 3)
    pruned = prune_spurs(graph, 100)
    assert loop_count(pruned) == 2
    assert nx.number_connected_components(pruned) == 3
    # The stick of the lollipop is a spur; the single segment is none.
    assert lengths(pruned) == [1, *[pytest.approx(2 + 2 * math.sqrt(2))] * 2]


def test_pruning_random_graphs_keeps_components_and_loops_and_leaves_no_spur() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        graph = mask_graph(np.abs(ndimage.gaussian_filter(random.normal(size=(80, 80)), 2)) < 0.05)
        for shortest in (3.0, 8.0):
            pruned = prune_spurs(graph, shortest)
            assert nx.number_connected_components(pruned) == nx.number_connected_components(graph)
            assert loop_count(pruned) == loop_count(graph)
            for u, v, length in pruned.edges(data="length"):
                ends = sorted((pruned.degree(u), pruned.degree(v)))
                assert not (ends[0] == 1 and ends[1] > 2) or length >= shortest
            assert 2 not in {pruned.degree(node) for node in pruned if node not in pruned[node]}
            longer = lengths(pruned)
            assert total_length(pruned) == pytest.approx(sum(longer))
            assert total_length(pruned) <= total_length(graph)


def test_a_larger_limit_never_leaves_more() -> None:
    graph = mask_graph(np.abs(ndimage.gaussian_filter(np.random.default_rng(1).normal(size=(120, 120)), 2)) < 0.05)
    totals = [total_length(prune_spurs(graph, shortest)) for shortest in (0, 2, 4, 8, 16)]
    assert all(more >= less for more, less in pairwise(totals))
    assert totals[0] > totals[-1]


def test_small_components_are_dropped_whole() -> None:
    graph = graph_of([(0, 0), (0, 3), (0, 6), (9, 0), (9, 5), (20, 20)], [(0, 1), (1, 2), (3, 4)])
    assert set(drop_small(graph, 0)) == set(graph)
    assert set(drop_small(graph, 5)) == {0, 1, 2, 3, 4}
    assert set(drop_small(graph, 5.5)) == {0, 1, 2}
    assert lengths(drop_small(graph, 6)) == [3, 3]
    assert len(drop_small(graph, 7)) == 0
    assert drop_small(graph, 5).graph == graph.graph


@pytest.mark.parametrize("wrong", [-1.0, math.nan])
def test_limits_that_are_no_lengths_are_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="shortest"):
        prune_spurs(new_graph(), wrong)
    with pytest.raises(ValueError, match="shortest"):
        drop_small(new_graph(), wrong)
