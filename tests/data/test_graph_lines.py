import math

import networkx as nx
import numpy as np
import pytest

from biocnn.data.graph_lines import join_lines
from biocnn.data.graphs import loop_count, total_length


def lines(*items: list[tuple[float, float]]) -> list[np.ndarray]:
    return [np.array(item, dtype=np.float64) for item in items]


def degrees(graph: nx.MultiGraph) -> list[int]:
    return sorted(dict(graph.degree).values())


def test_ends_within_the_tolerance_are_one_node() -> None:
    drawn = lines([(0, 0), (0, 10)], [(0.6, 10), (10, 10)], [(0, 10.6), (0, 20)])
    graph = join_lines(drawn, tolerance=1.0)
    assert degrees(graph) == [1, 1, 1, 3]
    (hub,) = (node for node, degree in graph.degree if degree == 3)
    assert graph.nodes[hub]["position"] == pytest.approx((0.2, 10.2))  # the mean of the three ends
    # The steps 0.6 hold the three together although the second and third end are 0.85 apart.
    assert degrees(join_lines(drawn, tolerance=0.7)) == [1, 1, 1, 3]
    assert degrees(join_lines(drawn, tolerance=0.5)) == [1] * 6


def test_two_lines_that_meet_are_one_segment() -> None:
    graph = join_lines(lines([(0, 0), (0, 10)], [(5, 10), (0, 10)]))
    assert degrees(graph) == [1, 1]
    assert total_length(graph) == pytest.approx(15)


@pytest.mark.parametrize("gap", [-0.9, -0.4, 0.0, 0.4, 0.9])
@pytest.mark.parametrize("at", [3.0, 10.0, 12.5])
def test_an_end_on_the_inside_of_a_line_splits_it(gap: float, at: float) -> None:
    # Too short or beyond; 10 is a point of the other line.
    graph = join_lines(lines([(0, 0), (0, 10), (0, 20)], [(8, at), (gap, at)]))
    assert degrees(graph) == [1, 1, 1, 3]
    (hub,) = (node for node, degree in graph.degree if degree == 3)
    assert graph.nodes[hub]["position"] == pytest.approx((gap, at))
    lengths = sorted(length for *_, length in graph.edges(data="length"))
    expected = [math.hypot(at, gap), 8 - gap, math.hypot(20 - at, gap)]
    if at != 10:  # the inner point of the line stays, on the longer side
        expected[2 if at < 10 else 0] = math.hypot(10 - at, gap) + 10
    assert lengths == pytest.approx(sorted(expected))


def test_what_only_crosses_or_stops_short_stays_apart() -> None:
    assert degrees(join_lines(lines([(0, 0), (10, 10)], [(0, 10), (10, 0)]))) == [1, 1, 1, 1]
    assert degrees(join_lines(lines([(0, 0), (0, 20)], [(8, 5), (1.1, 5)]))) == [1, 1, 1, 1]


def test_rings() -> None:
    square = [(0, 0), (0, 10), (10, 10), (10, 0), (0.5, 0)]
    graph = join_lines(lines(square))
    assert (len(graph), loop_count(graph)) == (1, 1)
    tail = join_lines(lines(square, [(10.5, 5), (30, 5)]))
    assert degrees(tail) == [1, 3]
    assert loop_count(tail) == 1


def test_a_line_that_ends_on_itself_is_a_noose() -> None:
    graph = join_lines(lines([(0, 0), (0, 20), (10, 20), (10, 10), (0.3, 10)]))
    assert degrees(graph) == [1, 3]
    assert loop_count(graph) == 1


def test_a_line_that_passes_an_end_twice_is_split_twice() -> None:
    eight = [(0, 0), (0, 20), (10, 20), (10, 10), (-10, 10), (-10, 0)]
    graph = join_lines(lines(eight, [(5, 5), (0.2, 9.8)]))
    assert degrees(graph) == [1, 1, 1, 5]
    assert loop_count(graph) == 1


def test_a_dot_is_left_out() -> None:
    graph = join_lines(lines([(0, 0), (0, 10)], [(5, 5), (5, 5.5)], [(7, 7), (7, 7)]))
    assert degrees(graph) == [1, 1]
    assert len(join_lines(lines([(5, 5), (5, 5)]))) == 0


def test_the_order_and_the_way_of_drawing_change_nothing() -> None:
    rng = np.random.default_rng(0)
    drawn = [rng.uniform(0, 60, (rng.integers(2, 6), 2)) for _ in range(12)]
    # Further lines that begin on the inside of those.
    drawn += [np.array([item[0] * 0.3 + item[1] * 0.7, rng.uniform(0, 60, 2)]) for item in drawn]
    graph = join_lines(drawn)
    turned = join_lines([item[::-1] for item in drawn[::-1]])
    assert degrees(turned) == degrees(graph)
    assert loop_count(turned) == loop_count(graph)
    np.testing.assert_allclose(*(sorted(length for *_, length in g.edges(data="length")) for g in (graph, turned)))
    assert max(degrees(graph)) > 2


def test_three_axes() -> None:
    graph = join_lines([np.array([(0.0, 0, 0), (9, 0, 0)]), np.array([(4.0, 0.5, 0), (4, 9, 0)])])
    assert degrees(graph) == [1, 1, 1, 3]
