import math
from itertools import combinations, pairwise

import networkx as nx
import numpy as np
import pytest

from biocnn.data.graphs import merge_chains
from biocnn.errors import DataError
from biocnn.metrics.graph_paths import apls, tlts
from biocnn.metrics.graph_places import Places, lines_of, path_lengths
from tests.metrics.drawn_graphs import densified, graph_of, line, moved, random_graph, relabelled, united

# Two uprights of 20 and a bar of 30 between their middles.
H = [(0, 0), (20, 0), (0, 30), (20, 30), (10, 0), (10, 30)]
H_EDGES = [(0, 4), (4, 1), (2, 5), (5, 3), (4, 5)]


def as_tuple(scores):
    return tuple(scores[name] for name in ("apls_truth_to_prediction", "apls_prediction_to_truth", "apls"))


def test_a_line_that_ends_early():
    # Control points at 0, 50, 100. Of the pairs only (0, 50) has both ends within 5 of the prediction: 1 of 3.
    # Back: 0, 30, 60 are all on the truth, at the same distances: 1. Harmonic mean 2 / 3 / (4 / 3).
    scores = apls(line((0, 0), (0, 60)), line((0, 0), (0, 100)), snap=5, interval=50)
    assert as_tuple(scores) == pytest.approx((1 / 3, 1, 1 / 2))
    assert (scores["apls_pairs_truth"], scores["apls_pairs_prediction"]) == (3, 3)


def test_a_match_that_is_off_along_the_line_costs_its_share():
    # 100 is matched to 96: costs (0, 50) 0, (50, 100) 4 / 50, (0, 100) 4 / 100. Back: 0, 48, 96 cost nothing.
    forth = 1 - (4 / 50 + 4 / 100) / 3
    scores = apls(line((0, 0), (0, 96)), line((0, 0), (0, 100)), snap=5, interval=50)
    assert as_tuple(scores) == pytest.approx((forth, 1, 2 * forth / (forth + 1)))


def test_a_removed_bridge():
    # 6 nodes, 15 pairs; without the bar the 9 from one upright to the other have no path: 6 / 15.
    # Back: each upright is one segment of two end points, both pairs right: 1. Harmonic mean 0.8 / 1.4.
    truth, broken = graph_of(H, H_EDGES), graph_of(H, H_EDGES[:-1])
    scores = apls(broken, truth, snap=4, interval=100)
    assert as_tuple(scores) == pytest.approx((6 / 15, 1, 4 / 7))
    assert (scores["apls_pairs_truth"], scores["apls_pairs_prediction"]) == (15, 2)


def test_pairs_without_a_path_in_the_reference_do_not_count():
    # The wrong bar costs nothing forth. Back: 6 of 15 pairs have a path in the truth, as long as theirs.
    truth, joined = graph_of(H, H_EDGES[:-1]), graph_of(H, H_EDGES)
    assert as_tuple(apls(joined, truth, snap=4, interval=100)) == pytest.approx((1, 6 / 15, 4 / 7))


def test_shortest_by_length_and_not_by_number_of_edges():
    # From 0 to 3: one bent segment of 3 + 30 + 3, or three of 10, of which the middle one has a double 50 long.
    positions = [(0, 0), (0, 10), (0, 20), (0, 30), (-7, 0), (-7, 30)]
    edges = [(0, 3, (3, 0), (3, 30)), (0, 1), (1, 2), (1, 2, (20, 10), (20, 20)), (2, 3), (0, 4), (3, 5)]
    lines = lines_of(graph_of(positions, edges))
    for length, low, high, expected in ((36, 0, 36, 30), (36, 4, 32, 28), (50, 5, 45, 20), (50, 5, 30, 25)):
        segment = np.flatnonzero(np.isclose(lines.length, length))
        assert len(segment) == 1
        places = Places(segment, np.array([float(low)])), Places(segment, np.array([float(high)]))
        assert path_lengths(lines, *places) == pytest.approx(expected)


def test_a_segment_without_length_is_a_way():
    graph = graph_of([(0, 0), (0, 5), (0, 5), (0, 9), (4, 5), (4, 6)], [(0, 1), (1, 2), (2, 3), (1, 4), (2, 5)])
    scores = apls(graph, graph, snap=1e-3, interval=100)
    assert scores["apls_pairs_truth"] == 14  # of 6 nodes 15, less the pair without length
    lines = lines_of(graph)
    ends = [int(np.argmax([tuple(path[0]) == (0.0, 0.0) for path in lines.paths]))]
    ends.append(int(np.argmax([tuple(path[-1]) == (0.0, 9.0) for path in lines.paths])))
    found = path_lengths(lines, Places(np.array(ends[:1]), np.zeros(1)), Places(np.array(ends[1:]), np.array([4.0])))
    assert found == pytest.approx(9)


@pytest.mark.parametrize("interval", [4.0, 1000.0])
def test_a_ring_is_seen_whatever_its_size(interval):
    ring = graph_of([(0, 0)], [(0, 0, (0, 10), (10, 10), (10, 0))])
    assert apls(ring, ring, 1, interval)["apls"] == pytest.approx(1)
    # Three points, 40 / 3 apart: at 0, on (0, 10)-(10, 10) and (10, 10)-(10, 0). Without the side from (10, 0) to
    # (0, 0) the pair of first and last, 40 / 3 the short way, is 80 / 3 apart: it costs 1, the others nothing.
    cut = graph_of([(0, 0), (10, 0)], [(0, 1, (0, 10), (10, 10))])
    if interval == 1000:
        assert apls(cut, ring, 1, interval)["apls_truth_to_prediction"] == pytest.approx(2 / 3)
    else:
        assert apls(cut, ring, 1, interval)["apls_truth_to_prediction"] < 0.9


def split_at(graph, places):
    """The graph with a node (edge, offset) at each place, by networkx alone."""
    fine = nx.MultiGraph()
    for edge in graph.edges(keys=True):
        data = graph.edges[edge]
        start = data["start"]
        end = edge[1] if start == edge[0] else edge[0]
        cuts = sorted({offset for other, offset in places if other == edge})
        names = [start, *((edge, offset) for offset in cuts), end]
        offsets = [0.0, *cuts, data["length"]]
        for (name, low), (following, high) in pairwise(zip(names, offsets, strict=True)):
            fine.add_edge(name, following, weight=high - low)
    return fine


def place_on(graph, point, snap):
    """Nearest place (edge, offset) to a point, over every straight piece; None beyond `snap`."""
    best = (math.inf, None)
    for edge in graph.edges(keys=True):
        offset = 0.0
        path = graph.edges[edge]["path"]
        for start, end in pairwise(path):
            length = float(np.linalg.norm(end - start))
            part = min(max(float((point - start) @ (end - start)) / length**2, 0.0), 1.0)
            distance = float(np.linalg.norm(point - start - part * (end - start)))
            if distance < best[0]:
                best = (distance, (edge, offset + part * length))
            offset += length
    return best[1] if best[0] <= snap else None


def one_way_by_hand(graph, other, snap, interval):
    controls = []
    for edge in graph.edges(keys=True):
        data = graph.edges[edge]
        parts = max(math.ceil(data["length"] / interval), 3 if edge[0] == edge[1] else 1)
        along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(data["path"], axis=0), axis=1))])
        for part in range(1, parts):
            offset = data["length"] * part / parts
            point = np.array([np.interp(offset, along, axis) for axis in data["path"].T])
            controls.append(((edge, offset), point))
    nodes = [(node, np.array(graph.nodes[node]["position"])) for node in graph if graph.degree[node]]
    fine = split_at(graph, [place for place, _ in controls])
    matches = {name: place_on(other, point, snap) for name, point in controls + nodes}
    fine_other = split_at(other, [place for place in matches.values() if place])
    lengths = dict(nx.all_pairs_dijkstra_path_length(fine))
    others = dict(nx.all_pairs_dijkstra_path_length(fine_other))
    costs = []
    for one, two in combinations([name for name, _ in controls + nodes], 2):
        if two in lengths[one]:
            found = others.get(matches[one], {}).get(matches[two], math.inf)
            costs.append(min(1, abs(found - lengths[one][two]) / lengths[one][two]))
    return 1 - np.mean(costs), len(costs)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_against_networkx_on_graphs_with_inserted_nodes(dimensions):
    rng = np.random.default_rng(0)
    for snap in (0.5, 2.0, 6.0):
        # The oracle does not know where a ring on its own starts.
        truth = united(merge_chains(random_graph(rng, dimensions, edges=6)), rings=False)
        wrong = merge_chains(random_graph(rng, dimensions, edges=2))
        prediction = united(moved(truth, rng, 0.8), wrong, rings=False)
        scores = apls(prediction, truth, snap, interval=15)
        assert (scores["apls_truth_to_prediction"], scores["apls_pairs_truth"]) == pytest.approx(
            one_way_by_hand(truth, prediction, snap, 15), abs=1e-9
        )
        assert (scores["apls_prediction_to_truth"], scores["apls_pairs_prediction"]) == pytest.approx(
            one_way_by_hand(prediction, truth, snap, 15), abs=1e-9
        )


@pytest.mark.parametrize("dimensions", [2, 3])
def test_identical_graphs_score_one(dimensions):
    rng = np.random.default_rng(1)
    for _ in range(5):
        graph = random_graph(rng, dimensions)
        assert as_tuple(apls(graph, graph, 1e-3, 10)) == pytest.approx((1, 1, 1))
        scores = tlts(graph, graph, 1e-3)
        assert (scores["tlts_correct"], scores["tlts_pairs"]) == (1, 1000)


def test_few_control_points_are_drawn_the_same_way_whatever_the_numbers():
    rng = np.random.default_rng(2)
    truth = random_graph(rng, edges=12)
    prediction = moved(truth, rng, 1.0)
    few = [apls(prediction, truth, 2, 5, points=30, seed=seed) for seed in (0, 0, 1)]
    assert few[0] == few[1] != few[2]
    assert few[0]["apls_pairs_truth"] <= 30 * 29 / 2
    again = apls(relabelled(densified(prediction, 3), rng), relabelled(densified(truth, 7), rng), 2, 5, points=30)
    assert again == pytest.approx(few[0], abs=1e-6)
    # 30 of about 150 points: the mean cost of their pairs is near that of all.
    assert few[0]["apls"] == pytest.approx(apls(prediction, truth, 2, 5)["apls"], abs=0.1)


def test_apls_of_short_pairs_and_of_nothing():
    empty, full = graph_of([(1, 1)], []), line((0, 0), (0, 100))
    assert all(math.isnan(value) for value in as_tuple(apls(empty, empty, 4, 50)))
    assert as_tuple(apls(empty, full, 4, 50)) == as_tuple(apls(full, empty, 4, 50)) == (0, 0, 0)
    # Pairs at exactly the least length count: of (0, 50), (50, 100) and (0, 100) all, or the last.
    assert [apls(full, full, 4, 50, shortest=least)["apls_pairs_truth"] for least in (50, 51, 100, 101)] == [3, 1, 1, 0]
    assert math.isnan(apls(full, full, 4, 50, shortest=101)["apls"])
    assert as_tuple(apls(line((50, 0), (50, 9)), full, 4, 50)) == (0, 0, 0)


# A wave of slope 1 and height 1 around the line from (0, 0) to (0, 100): 1.41 times as long.
WAVE = [(0.0 if n % 2 == 0 else (1.0 if n % 4 == 1 else -1.0), float(n)) for n in range(101)]


def test_paths_that_are_too_long_or_too_short():
    straight, wave = line((0, 0), (0, 100)), line(*WAVE)
    # A match is off by at most 1 along the line, on either side: at 20 or more a path is at least 1.41 * 18 long,
    # and, the other way, at most (1 / 1.41) * 20 + 2 < 0.95 * 20.
    assert tlts(wave, straight, snap=2, shortest=20)["tlts_too_long"] == 1
    assert tlts(straight, wave, snap=2, shortest=20)["tlts_too_short"] == 1
    assert tlts(line((2, 0), (2, 100)), straight, snap=2)["tlts_correct"] == 1
    # Within the margin: 4 % longer is correct at 5 %, and not at 3 %.
    slope = math.sqrt(1.04**2 - 1)
    gentle = line(*[(slope if n % 2 else 0.0, float(n)) for n in range(101)])
    assert tlts(gentle, straight, snap=2, shortest=50, margin=0.06)["tlts_correct"] == 1
    assert tlts(gentle, straight, snap=2, shortest=90, margin=0.02)["tlts_too_long"] == 1


def test_a_break_makes_paths_infeasible():
    # Points up to 45 match the part up to 40, points from 55 on the part from 60 on; between them there is no match.
    # Feasible: both left or both right, 2 * 0.45 ** 2. Four standard deviations of 4000 pairs are 0.031.
    broken = graph_of([(0, 0), (0, 40), (0, 60), (0, 100)], [(0, 1), (2, 3)])
    scores = tlts(broken, line((0, 0), (0, 100)), snap=5, pairs=4000)
    assert scores["tlts_infeasible"] == pytest.approx(1 - 2 * 0.45**2, abs=0.031)
    # Points from 40 to 45 match 40. So a pair is too short if both are there, 5 ** 2, or if one is, at 40 + e, and the
    # other less than 19 e below 40: twice the integral of min(19 e, 40) over e from 0 to 5.
    bend = 40 / 19
    one_side = 5**2 + 2 * (19 * bend**2 / 2 + 40 * (5 - bend))
    assert scores["tlts_too_short"] == pytest.approx(2 * one_side / 100**2, abs=0.02)
    shares = [scores[f"tlts_{name}"] for name in ("correct", "too_long", "too_short", "infeasible")]
    assert math.fsum(shares) == pytest.approx(1, abs=1e-12)


def test_components_are_drawn_by_their_length():
    truth = graph_of([(0, 0), (0, 30), (50, 0), (50, 10)], [(0, 1), (2, 3)])
    # 4 standard deviations of 4000 pairs.
    assert tlts(line((0, 0), (0, 30)), truth, 1, pairs=4000)["tlts_infeasible"] == pytest.approx(0.25, abs=0.028)
    # Pairs of at least 20 are on the longer one alone; of at least 31 there are none.
    assert tlts(line((0, 0), (0, 30)), truth, 1, shortest=20)["tlts_correct"] == 1
    none = tlts(truth, truth, 1, shortest=31)
    assert none.pop("tlts_pairs") == 0
    assert all(math.isnan(value) for value in none.values())


def test_tlts_of_nothing():
    empty, full = graph_of([(1, 1)], []), line((0, 0), (0, 100))
    both = tlts(empty, empty, 4)
    assert both.pop("tlts_pairs") == 0
    assert all(math.isnan(value) for value in both.values())
    for pair, count in (((empty, full), 1000), ((full, empty), 0)):
        assert list(tlts(*pair, 4).values()) == [0, 0, 0, 1, count]


def test_wrong_arguments_are_refused():
    graph = line((0, 0), (0, 9))
    for function in (lambda one, two: apls(one, two, 4, 50), lambda one, two: tlts(one, two, 4)):
        with pytest.raises(DataError, match="same axes"):
            function(graph, line((0, 0, 0), (0, 0, 9)))
    with pytest.raises(ValueError, match="snap: expected a finite length above 0, received 0"):
        apls(graph, graph, 0, 50)
    with pytest.raises(ValueError, match="interval: expected a finite length"):
        apls(graph, graph, 4, math.inf)
    with pytest.raises(ValueError, match="points: expected 2 or more"):
        apls(graph, graph, 4, 50, points=1)
    with pytest.raises(ValueError, match="margin between 0 and 1"):
        tlts(graph, graph, 4, margin=5)
