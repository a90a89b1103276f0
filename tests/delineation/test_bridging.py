"""Bridges over gaps of drawn lines, with maps on which the right answer is plain."""

import math

import networkx as nx
import numpy as np
import pytest
from numpy.typing import NDArray

from biocnn.data.graphs import loop_count, new_graph, total_length
from biocnn.delineation.bridging import bridge_gaps
from biocnn.delineation.skeleton_graph import skeleton_graph
from biocnn.errors import DataError

Map = NDArray[np.float64]


def torn(probability: Map, least: float = 0.5, spacing: tuple[float, ...] | None = None) -> nx.MultiGraph:
    """The graph of all pixels that are surely on a line."""
    return skeleton_graph(probability > least, spacing, np.full(probability.shape, 1.0), probability)


def line_with_gap(first: int, last: int, inside: float, size: int = 40) -> Map:
    """A line along row 10 with probability `inside` in columns first to last, both included."""
    probability = np.full((21, size), 0.01)
    probability[10] = 0.9
    probability[10, first : last + 1] = inside
    return probability


def test_a_gap_in_a_line_is_closed_and_the_line_is_one_segment() -> None:
    probability = line_with_gap(15, 20, 0.3)
    graph = torn(probability)
    assert nx.number_connected_components(graph) == 2
    bridged = bridge_gaps(graph, probability, 10)
    ((_, _, data),) = bridged.edges(data=True)
    assert data["length"] == 39
    assert (data["path"][:, 0] == 10).all()
    assert sorted(data["path"][:, 1]) == list(range(40))
    # By length, 14 and 18 steps at 0.9, 7 in the gap, of which those at the ends go from 0.9 to 0.3.
    assert data["score"] == pytest.approx((32 * 0.9 + 2 * 0.6 + 5 * 0.3) / 39)
    assert (data["radius"] == 1).all()
    assert nx.number_connected_components(graph) == 2, "the graph that was given does not change"


def test_a_bridge_follows_the_map_and_not_the_straight_line() -> None:
    probability = line_with_gap(15, 20, 0.01)
    bow = [(11, 15), (12, 16), (12, 17), (12, 18), (12, 19), (11, 20)]
    probability[tuple(zip(*bow, strict=True))] = 0.4
    ((_, _, data),) = bridge_gaps(torn(probability), probability, 12).edges(data=True)
    assert set(bow) <= {tuple(point) for point in data["path"].astype(int).tolist()}
    assert data["length"] == pytest.approx(14 + 18 + 4 * math.sqrt(2) + 3)


@pytest.mark.parametrize(("inside", "largest_gap"), [(0.3, 6.9), (0.0, 10), (0.01, 10)])
def test_nothing_is_joined_over_large_gaps_or_where_the_map_says_no(inside: float, largest_gap: float) -> None:
    probability = line_with_gap(15, 20, inside)
    bridged = bridge_gaps(torn(probability), probability, largest_gap)
    assert nx.number_connected_components(bridged) == 2
    assert total_length(bridged) == 14 + 18


def test_a_given_probability_decides() -> None:
    probability = line_with_gap(15, 20, 0.3)
    for least, components in ((0.29, 1), (0.31, 2)):
        bridged = bridge_gaps(torn(probability), probability, 10, least_probability=least)
        assert nx.number_connected_components(bridged) == components


def test_a_single_pixel_without_probability_is_not_bridged() -> None:
    probability = line_with_gap(15, 15, 0.0)
    assert nx.number_connected_components(bridge_gaps(torn(probability), probability, 10)) == 2


@pytest.mark.parametrize(("first", "last", "least_probability"), [(5, 35, 0.01), (8, 30, None)])
def test_parallel_lines_are_not_joined(first: int, last: int, least_probability: float | None) -> None:
    # Lines of the same length are joined by no means, shorter ones not across what is as faint as the background.
    probability = np.full((30, 40), 0.2)
    probability[10, 5:35] = probability[13, first:last] = 0.9
    graph = torn(probability)
    bridged = bridge_gaps(graph, probability, 12, least_probability)
    assert nx.number_connected_components(bridged) == 2
    assert total_length(bridged) == total_length(graph)


def test_an_end_joins_a_segment_within_and_makes_a_branch_point() -> None:
    probability = np.full((30, 40), 0.01)
    probability[:21, 20] = 0.9
    probability[20, :] = 0.9
    probability[14:20, 20] = 0.4
    bridged = bridge_gaps(torn(probability), probability, 10)
    assert sorted(degree for _, degree in bridged.degree()) == [1, 1, 1, 3]
    (branch,) = (node for node, degree in bridged.degree() if degree == 3)
    assert bridged.nodes[branch]["position"] == (20.0, 20.0)
    assert sorted(length for *_, length in bridged.edges(data="length")) == [19, 20, 20]


def test_a_bridge_to_near_an_end_leads_to_the_end_itself() -> None:
    probability = np.full((30, 40), 0.01)
    probability[10, 5:20] = 0.9
    probability[12:25, 27] = 0.9
    probability[[10, 10, 11, 11, 12, 12, 13], np.arange(20, 27)] = 0.5
    bridged = bridge_gaps(torn(probability, 0.6), probability, 14)
    assert sorted(degree for _, degree in bridged.degree()) == [1, 1]


def test_each_end_is_joined_at_most_once() -> None:
    probability = np.full((41, 60), 0.01)
    probability[20, :25] = 0.9
    probability[20, 25:30] = 0.5
    probability[20, 30:] = 0.9  # straight on
    probability[np.arange(10, 18), np.arange(44, 36, -1)] = 0.9
    probability[np.arange(12, 20), 33] = 0.4
    graph = torn(probability, 0.6)
    before = sum(degree == 1 for _, degree in graph.degree())
    bridged = bridge_gaps(graph, probability, 12)
    after = sum(degree == 1 for _, degree in bridged.degree())
    assert before == 6
    assert max(degree for _, degree in bridged.degree()) <= 3
    assert loop_count(bridged) == 0
    assert after in (3, 4)


def ring_with_gap(inside: float) -> Map:
    rows, columns = np.indices((61, 61)) - 30
    angle = np.arctan2(rows, columns)
    probability = np.where(np.abs(np.hypot(rows, columns) - 20) < 0.5, 0.9, 0.01)
    probability[(probability > 0.5) & (np.abs(angle) < 0.15)] = inside
    return probability


def test_a_ring_is_closed_because_the_way_round_is_far() -> None:
    probability = ring_with_gap(0.3)
    graph = torn(probability)
    assert loop_count(graph) == 0
    assert loop_count(bridge_gaps(graph, probability, 12)) == 1
    # Of 126 pixels round, 7 over the gap.
    assert loop_count(bridge_gaps(graph, probability, 12, shortcut=30)) == 0


def test_an_end_is_not_joined_to_its_own_segment_next_to_it() -> None:
    probability = np.full((30, 40), 0.5)
    probability[20, 5:30] = 0.9
    probability[14:20, 30] = 0.9
    probability[13, 25:30] = 0.9  # a hook: 17 pixels along the graph, 7 straight
    graph = torn(probability, 0.6)
    assert loop_count(bridge_gaps(graph, probability, 9, 0.4, largest_turn=180)) == 0
    assert loop_count(bridge_gaps(graph, probability, 9, 0.4, largest_turn=180, shortcut=1.5)) == 1


def test_volumes_with_spacing() -> None:
    probability = np.full((9, 15, 30), 0.01)
    probability[4, 7] = 0.9
    probability[4, 7, 12:16] = 0.3
    graph = torn(probability, spacing=(3.0, 1.0, 0.5))
    assert nx.number_connected_components(graph) == 2
    assert nx.number_connected_components(bridge_gaps(graph, probability, 2.4)) == 2
    bridged = bridge_gaps(graph, probability, 2.6)  # five steps of 0.5
    ((_, _, data),) = bridged.edges(data=True)
    assert data["length"] == pytest.approx(29 * 0.5)
    np.testing.assert_array_equal(np.unique(data["path"][:, :2], axis=0), [[12, 7]])


def test_anisotropic_pixels_decide_between_two_ways() -> None:
    # From the end at (10, 19) to lines 6 rows below and 6 columns to the right; rows are four times as far apart.
    probability = np.full((30, 40), 0.3)
    probability[10, 5:20] = 0.9
    probability[16, 16:28] = 0.9
    probability[2:14, 25] = 0.9
    bridged = bridge_gaps(torn(probability, 0.6, (4.0, 1.0)), probability, 8, least_probability=0.1, largest_turn=95)
    joined = max(nx.connected_components(bridged), key=len)
    assert any(bridged.nodes[node]["position"] == (40.0, 25.0) for node in joined)
    assert nx.number_connected_components(bridged) == 2


def test_graphs_without_ends_are_as_before() -> None:
    assert len(bridge_gaps(new_graph(), np.zeros((4, 4)), 5)) == 0
    dot = np.zeros((5, 5))
    dot[2, 2] = 1
    assert len(bridge_gaps(torn(dot), dot, 5)) == 1


def test_an_end_reaches_a_single_pixel() -> None:
    probability = np.full((11, 30), 0.01)
    probability[5, :15] = probability[5, 19] = 0.9
    probability[5, 15:19] = 0.4
    ((_, _, data),) = bridge_gaps(torn(probability), probability, 8).edges(data=True)
    assert data["length"] == 19


def test_errors_name_what_is_wrong() -> None:
    probability = line_with_gap(15, 20, 0.3)
    graph = torn(probability)
    with pytest.raises(DataError, match="2 axes"):
        bridge_gaps(graph, probability[None], 5)
    with pytest.raises(DataError, match="at least"):
        bridge_gaps(graph, probability[:, :30], 5)
    for wrong in (math.nan, -0.1, 1.5):
        with pytest.raises(DataError, match=r"0\.\.1"):
            bridge_gaps(graph, np.where(probability > 0.5, wrong, probability), 5)
    with pytest.raises(ValueError, match="largest_gap"):
        bridge_gaps(graph, probability, 0)
    with pytest.raises(ValueError, match="least_probability"):
        bridge_gaps(graph, probability, 5, least_probability=0)
    with pytest.raises(ValueError, match="shortcut"):
        bridge_gaps(graph, probability, 5, shortcut=0.5)
