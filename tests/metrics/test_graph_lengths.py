import math

import numpy as np
import pytest

from biocnn.errors import DataError
from biocnn.metrics.graph_lengths import length_scores, share_near
from biocnn.metrics.graph_places import lines_of, nearest, points_at
from tests.metrics.drawn_graphs import graph_of, line, moved, random_graph


def straight_pieces(graph):
    return np.concatenate(
        [np.stack([data["path"][:-1], data["path"][1:]], axis=1) for *_, data in graph.edges(data=True)]
    )


def distances(points, pieces):
    """Of each point to each straight piece, one by one in the plain formula: (points, pieces)."""
    start, step = pieces[:, 0], pieces[:, 1] - pieces[:, 0]
    way = points[:, None] - start
    part = np.clip((way * step).sum(-1) / np.maximum((step**2).sum(-1), 1e-300), 0, 1)
    return np.linalg.norm(way - part[..., None] * step, axis=-1)


def sampled_share(graph, other, tolerance, count=4000):
    """Share of points near the other graph, `count` at the middles of equal parts of each straight piece."""
    near = total = 0.0
    for start, end in straight_pieces(graph):
        at = ((np.arange(count) + 0.5) / count)[:, None]
        close = distances(start + at * (end - start), straight_pieces(other)).min(axis=1) <= tolerance
        near += close.mean() * np.linalg.norm(end - start)
        total += np.linalg.norm(end - start)
    return near / total


@pytest.mark.parametrize("dimensions", [2, 3])
def test_shares_against_sampling(dimensions):
    rng = np.random.default_rng(0)
    for tolerance in (0.5, 3.0, 12.0):
        one, other = (random_graph(rng, dimensions, nodes=5, edges=3) for _ in range(2))
        share = share_near(lines_of(one), lines_of(other), tolerance)
        # Each of at most 13 straight pieces has at most 26 ends of near intervals, each off by half a sample of
        # 4000: 26 / 8000 at the very worst, were all off in one direction; they are not.
        assert share == pytest.approx(sampled_share(one, other, tolerance), abs=1e-3)


def test_crossing_lines_are_near_where_geometry_says():
    across = line((0, -10), (0, 10))
    for degrees in (90, 60, 30, 20):
        angle = math.radians(degrees)
        direction = 10 * np.array([math.sin(angle), math.cos(angle)])
        # At s from the crossing a line at this angle is s * sin(angle) away from the other.
        scores = length_scores(line(tuple(-direction), tuple(direction)), across, tolerance=1.5)
        assert scores["correctness"] == pytest.approx(min(1.5 / math.sin(angle), 10) / 10, abs=1e-9)
        assert scores["completeness"] == pytest.approx(scores["correctness"], abs=1e-9)


def test_skew_lines_and_line_beyond_an_end_in_three_dimensions():
    first = line((0, 0, -10), (0, 0, 10))
    # Perpendicular, 2 above: at s from the nearest point the distance is sqrt(4 + s * s), at most 3 for s * s <= 5.
    scores = length_scores(line((2, -10, 0), (2, 10, 0)), first, tolerance=3)
    assert scores["correctness"] == scores["completeness"] == pytest.approx(math.sqrt(5) / 10)
    # Quality c * c / (2 c - c * c).
    assert scores["quality"] == pytest.approx(math.sqrt(5) / 10 / (2 - math.sqrt(5) / 10))
    # It goes on in the same direction: 3 of 40 are near the end of the other, and 3 of 20.
    scores = length_scores(line((0, 0, 10), (0, 0, 50)), first, tolerance=3)
    assert (scores["correctness"], scores["completeness"]) == pytest.approx((3 / 40, 3 / 20))


def test_parallel_at_exactly_the_tolerance_is_near_however_it_is_rounded():
    rng = np.random.default_rng(1)
    for _ in range(50):
        angle, start, tolerance = rng.uniform(0, 2 * math.pi), rng.uniform(-100, 100, 2), rng.uniform(0.1, 5)
        direction = np.array([math.sin(angle), math.cos(angle)])
        aside = tolerance * np.array([direction[1], -direction[0]])
        pair = [line(tuple(start + shift), tuple(start + shift + 30 * direction)) for shift in (0 * aside, aside)]
        assert length_scores(*pair, tolerance)["quality"] == 1
        assert length_scores(*pair, tolerance * (1 - 1e-6))["quality"] == 0


def test_a_gap_of_twice_the_tolerance_is_not_seen_and_a_longer_one_is():
    truth = line((0, 0), (0, 100))
    for gap, completeness in ((6, 1.0), (10, 0.96)):
        parts = graph_of([(0, 0), (0, 50 - gap / 2), (0, 50 + gap / 2), (0, 100)], [(0, 1), (2, 3)])
        scores = length_scores(parts, truth, tolerance=3)
        assert scores == pytest.approx(
            {"correctness": 1.0, "completeness": completeness, "quality": completeness}, abs=1e-9
        )


@pytest.mark.parametrize("dimensions", [2, 3])
def test_identical_graphs_score_exactly_one(dimensions):
    rng = np.random.default_rng(2)
    for _ in range(10):
        graph = random_graph(rng, dimensions)
        assert length_scores(graph, graph, 1e-3) == {"correctness": 1.0, "completeness": 1.0, "quality": 1.0}


def test_empty_graphs():
    empty, node, full = graph_of([], []), graph_of([(3, 4)], []), line((0, 0), (0, 9))
    for one in (empty, node):
        assert all(math.isnan(value) for value in length_scores(one, one, 3).values())
        assert set(length_scores(one, full, 3).values()) == set(length_scores(full, one, 3).values()) == {0.0}


def test_far_apart_graphs_score_zero():
    assert set(length_scores(line((0, 0), (0, 9)), line((90, 0), (90, 9)), 3).values()) == {0.0}


@pytest.mark.parametrize("dimensions", [2, 3])
def test_nearest_places_against_every_piece(dimensions):
    rng = np.random.default_rng(3)
    for radius in (1.0, 5.0, 100.0):
        graph = moved(random_graph(rng, dimensions), rng, 1.0)
        lines, points = lines_of(graph), rng.uniform(-5, 45, (60, dimensions))
        least = distances(points, straight_pieces(graph)).min(axis=1)
        places = nearest(lines, points, radius)
        assert (places.segment >= 0).tolist() == (least <= radius).tolist()
        found = places.segment >= 0
        reached = np.linalg.norm(points_at(lines, places.take(found)) - points[found], axis=1)
        np.testing.assert_allclose(reached, least[found], atol=1e-9)


def test_of_two_equally_near_lines_it_is_the_one_of_the_lower_row():
    for order in ([(0, 1), (2, 3)], [(2, 3), (0, 1)]):
        lines = lines_of(graph_of([(8, 0), (8, 9), (2, 0), (2, 9)], order))
        place = nearest(lines, np.array([[5.0, 4.0]]), 3.0)
        assert points_at(lines, place).tolist() == [[2.0, 4.0]]


def test_what_cannot_be_compared_is_refused():
    pixels = line((0, 0), (0, 9))
    with pytest.raises(DataError, match="same unit, received px and um"):
        length_scores(pixels, line((0, 0), (0, 9), spacing=(0.5, 0.5)), 3)
    with pytest.raises(DataError, match="same axes, received 2 and 3"):
        length_scores(pixels, line((0, 0, 0), (0, 0, 9)), 3)
    for wrong in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="tolerance: expected a finite length above 0"):
            length_scores(pixels, pixels, wrong)
