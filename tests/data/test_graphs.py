import math

import networkx as nx
import numpy as np
import pytest

from biocnn.data.graphs import add_segment, loop_count, mean_along, merge_chains, new_graph, resampled, total_length
from biocnn.errors import DataError


def ring_with_tail() -> nx.MultiGraph:
    """A square ring of side 4 of four segments, and a tail of length 3 on its first corner."""
    graph = new_graph((0.5, 0.5))
    corners = [(0.0, 0.0), (0.0, 4.0), (4.0, 4.0), (4.0, 0.0), (-3.0, 0.0)]
    for number, corner in enumerate(corners):
        graph.add_node(number, position=corner, radius=1.0)
    for start, end in [(0, 1), (2, 1), (2, 3), (3, 0), (4, 0)]:
        add_segment(graph, start, end, [corners[start], corners[end]], [1.0, 1.0], score=0.5)
    return graph


def test_measures() -> None:
    graph = ring_with_tail()
    assert graph.graph == {"unit": "um", "spacing": (0.5, 0.5)}
    assert total_length(graph) == pytest.approx(19)
    assert loop_count(graph) == 1


def test_merge_chains_leaves_ends_and_branch_points() -> None:
    merged = merge_chains(ring_with_tail())
    assert sorted(merged.nodes) == [0, 4]
    assert total_length(merged) == pytest.approx(19)
    ring = merged.edges[0, 0, 0]
    assert ring["length"] == pytest.approx(16)
    assert ring["width"] == pytest.approx(2)
    assert ring["score"] == pytest.approx(0.5)
    assert loop_count(merged) == 1


def test_merge_chains_keeps_the_lowest_node_of_a_ring() -> None:
    graph = ring_with_tail()
    graph.remove_node(4)
    merged = merge_chains(graph)
    assert list(merged.nodes) == [0]
    assert merged.edges[0, 0, 0]["length"] == pytest.approx(16)


@pytest.mark.parametrize("step", [0.3, 1.0, 2.5, 100.0])
def test_resampled_and_merged_again_is_the_same(step: float) -> None:
    graph = merge_chains(ring_with_tail())
    fine = resampled(graph, step)
    assert max(length for _, _, length in fine.edges(data="length")) <= step + 1e-9
    assert total_length(fine) == pytest.approx(total_length(graph))
    assert loop_count(fine) == 1
    again = merge_chains(fine)
    assert sorted(again.nodes) == sorted(graph.nodes)
    assert sorted(d["length"] for *_, d in again.edges(data=True)) == pytest.approx([3, 16])


def test_mean_along_weights_by_length_and_leaves_out_the_unknown() -> None:
    assert mean_along(np.array([0.0, 1.0, 1.0]), np.array([2.0, 2.0])) == pytest.approx(0.75)
    assert mean_along(np.array([math.nan, 1.0, 3.0]), np.array([2.0, 2.0])) == pytest.approx((2 * 1 + 1 * 3) / 3)
    assert math.isnan(mean_along(np.array([math.nan, math.nan]), np.array([1.0])))
    assert mean_along(np.array([1.0, 3.0]), np.array([0.0])) == 2


def test_what_does_not_fit_is_refused() -> None:
    graph = ring_with_tail()
    with pytest.raises(DataError, match="expected to lead to node 1"):
        add_segment(graph, 0, 1, [(0, 0), (0, 3)])
    with pytest.raises(DataError, match=r"received shape \(1, 2\)"):
        add_segment(graph, 0, 1, [(0, 0)])
    with pytest.raises(DataError, match=r"radius: expected shape \(2,\)"):
        add_segment(graph, 0, 1, [(0, 0), (0, 4)], [1.0])
    for wrong in ((1.0,), (1.0, 0.0), (1.0, math.inf)):
        with pytest.raises(DataError, match="2 or 3 positive numbers"):
            new_graph(wrong)
    with pytest.raises(ValueError, match="step must be positive"):
        resampled(graph, 0)
