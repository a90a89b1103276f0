import math

import networkx as nx
import numpy as np
import pytest

from biocnn.data.graphs import add_segment
from biocnn.errors import DataError
from biocnn.metrics.graphs import graph_betti_errors, length_error, score_graph
from tests.metrics.drawn_graphs import densified, graph_of, line, moved, random_graph, relabelled, united

SEEDS = [(2, 0), (2, 1), (2, 2), (3, 3), (3, 4)]


def drawn_pair(dimensions, seed):
    """A truth of several components and a ring; a prediction that is off, and has something in excess."""
    rng = np.random.default_rng(seed)
    truth = random_graph(rng, dimensions)
    return rng, united(moved(truth, rng, 0.7), random_graph(rng, dimensions, nodes=3, edges=1)), truth


def assert_same(scores, expected):
    assert list(scores) == list(expected)
    assert scores == pytest.approx(expected, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize(("dimensions", "seed"), SEEDS)
def test_nodes_of_degree_two_and_points_on_lines_change_nothing(dimensions, seed):
    _, prediction, truth = drawn_pair(dimensions, seed)
    expected = score_graph(prediction, truth, 1.0, 2.0)
    assert 0 < expected["quality_1px"] < 1
    assert 0 < expected["apls_2px"] < 1
    for steps in ((1.7, 1000.0), (3.0, 5.0)):
        assert_same(score_graph(densified(prediction, steps[0]), densified(truth, steps[1]), 1.0, 2.0), expected)


@pytest.mark.parametrize(("dimensions", "seed"), SEEDS)
def test_numbers_of_nodes_and_order_and_direction_of_edges_change_nothing(dimensions, seed):
    rng, prediction, truth = drawn_pair(dimensions, seed)
    expected = score_graph(prediction, truth, 1.0, 2.0)
    for _ in range(3):
        assert_same(score_graph(relabelled(prediction, rng), relabelled(truth, rng), 1.0, 2.0), expected)


@pytest.mark.parametrize(("dimensions", "seed"), SEEDS)
def test_the_unit_of_length_changes_nothing(dimensions, seed):
    _, prediction, truth = drawn_pair(dimensions, seed)
    expected = score_graph(prediction, truth, 1.0, 2.0)
    scores = score_graph(scaled(prediction, 0.25), scaled(truth, 0.25), 0.25, 0.5)
    assert "opt_j_f1_0.5um" in scores
    for (name, value), (other, value_in_pixels) in zip(scores.items(), expected.items(), strict=True):
        assert name.rsplit("_", 1)[0] == other.rsplit("_", 1)[0]
        factor = 0.25 if other in ("length_prediction_px", "length_truth_px") else 1
        assert value == pytest.approx(factor * value_in_pixels, abs=1e-6, nan_ok=True)


def scaled(graph, factor):
    """The same in micrometres."""
    result = nx.MultiGraph(unit="um", spacing=(factor,) * len(graph.graph["spacing"]))
    for node, data in graph.nodes(data=True):
        result.add_node(node, position=tuple(np.multiply(data["position"], factor)), radius=np.nan)
    for u, v, data in graph.edges(data=True):
        start, end = (u, v) if data["start"] == u else (v, u)
        add_segment(result, start, end, data["path"] * factor)
    return result


@pytest.mark.parametrize(("dimensions", "seed"), SEEDS)
def test_exchanged_graphs_exchange_the_scores(dimensions, seed):
    _, prediction, truth = drawn_pair(dimensions, seed)
    forth, back = score_graph(prediction, truth, 1.0, 2.0), score_graph(truth, prediction, 1.0, 2.0)
    partners = {
        "correctness_1px": "completeness_1px",
        "branch_precision_1px": "branch_recall_1px",
        "end_precision_1px": "end_recall_1px",
        "opt_j_precision_2px": "opt_j_recall_2px",
        "apls_truth_to_prediction_2px": "apls_prediction_to_truth_2px",
        "apls_pairs_truth_2px": "apls_pairs_prediction_2px",
        "betti0_prediction_graph": "betti0_truth_graph",
        "betti1_prediction_graph": "betti1_truth_graph",
        "length_prediction_px": "length_truth_px",
    }
    partners |= {other: name for name, other in partners.items()}
    one_sided = [name for name in forth if name.startswith("tlts") or name == "length_error"]
    for name in set(forth) - set(one_sided):
        assert forth[name] == pytest.approx(back[partners.get(name, name)], abs=1e-9, nan_ok=True), name


@pytest.mark.parametrize(("dimensions", "seed"), SEEDS)
def test_identical_graphs_are_perfect(dimensions, seed):
    _, _, truth = drawn_pair(dimensions, seed)
    scores = score_graph(truth, truth, 0.1, 0.2)
    for name, value in scores.items():
        if "error" in name or name.startswith(("tlts_too", "tlts_infeasible")):
            assert value == 0, name
        elif not name.startswith(("betti", "length", "apls_pairs", "tlts_pairs")):
            assert value == pytest.approx(1), name


def test_a_removed_bridge_is_seen_by_paths_and_components_and_not_by_length():
    # Two uprights of 20 and a bar of 30. Without it 40 of 70 are left, and 3 at either end of the bar are near.
    positions = [(0, 0), (20, 0), (0, 30), (20, 30), (10, 0), (10, 30)]
    truth = graph_of(positions, [(0, 4), (4, 1), (2, 5), (5, 3), (4, 5)])
    broken = graph_of(positions, [(0, 4), (4, 1), (2, 5), (5, 3)])
    scores = score_graph(broken, truth, tolerance=3, snap=4, interval=100)
    assert scores["correctness_3px"] == pytest.approx(1)
    assert scores["completeness_3px"] == pytest.approx(46 / 70)
    assert scores["apls_4px"] == pytest.approx(4 / 7)  # 6 of 15 pairs forth, all back
    assert scores["opt_j_f1_4px"] == pytest.approx(2 * 4 / (4 + 10))  # 4 ends right; 4, and 4 + 3 + 3 votes
    assert (scores["branch_recall_3px"], scores["end_f1_3px"]) == (0, 1)
    assert [scores[f"betti0_{name}_graph"] for name in ("error", "prediction", "truth")] == [1, 2, 1]
    assert scores["length_error"] == pytest.approx(30 / 70)
    # 30 more, in place of 20 in each of the uprights, would hide the loss from the length.
    assert (scores["length_prediction_px"], scores["length_truth_px"]) == pytest.approx((40, 70))


def test_gaps_within_the_tolerance_are_seen_by_paths_and_loops_alone():
    # A mesh of 3 x 3 nodes, 20 apart; in the middle of each of its 6 horizontal edges 2 are missing.
    places = [(20.0 * row, 20.0 * column) for row in range(3) for column in range(3)]
    down = [(n, n + 3) for n in range(6)]
    across = [(n, n + 1) for n in range(9) if n % 3 < 2]
    truth = graph_of(places, down + across)
    stubs = [(r, c + side) for r, c in (places[n] for n, _ in across) for side in (9.0, 11.0)]
    ends = [(node, 9 + 2 * n + side) for n, pair in enumerate(across) for side, node in enumerate(pair)]
    scores = score_graph(graph_of(places + stubs, down + ends), truth, tolerance=3, snap=4)
    assert (scores["correctness_3px"], scores["quality_3px"]) == pytest.approx((1, 1))
    assert scores["length_error"] == pytest.approx(12 / 240)
    # Components: 1 and 3 uprights; loops: 4 and none.
    assert (scores["betti0_error_graph"], scores["betti1_error_graph"]) == (2, 4)
    # The corners are points on a line: control points are the middles of the sides and of the mesh, and 3 of their 10
    # pairs are on one upright.
    assert scores["apls_truth_to_prediction_4px"] == pytest.approx(3 / 10)
    assert scores["tlts_infeasible_4px"] > 0.5


def test_betti_numbers_of_known_graphs():
    # A ring, two nodes with three segments between them, a line, and a node: 4 components, 1 + 2 loops.
    several = graph_of(
        [(0, 0), (30, 0), (30, 9), (60, 0), (60, 9), (90, 0)],
        [(0, 0, (0, 9), (9, 9)), (1, 2), (1, 2, (35, 4)), (1, 2, (25, 4)), (3, 4)],
    )
    errors = graph_betti_errors(several, line((0, 0), (0, 9)))
    assert errors == {
        "betti0_error_graph": 3,
        "betti0_prediction_graph": 4,
        "betti0_truth_graph": 1,
        "betti1_error_graph": 3,
        "betti1_prediction_graph": 3,
        "betti1_truth_graph": 0,
    }


def test_empty_graphs():
    empty, full = graph_of([], []), graph_of([(0, 0), (0, 9), (9, 9), (9, 0)], [(0, 1), (0, 2), (0, 3)])
    errors = {"betti0_error_graph": 1, "betti1_error_graph": 0}
    for prediction, truth, expected in ((empty, empty, math.nan), (empty, full, 0.0), (full, empty, 0.0)):
        scores = score_graph(prediction, truth, 3, 5)
        rest = {name: value for name, value in scores.items() if not name.startswith(("betti", "length"))}
        pairs = {name: rest.pop(name) for name in list(rest) if "pairs" in name}
        if prediction is not truth:
            assert rest.pop("tlts_infeasible_5px") == 1
            assert {name: scores[name] for name in errors} == errors
        assert list(rest.values()) == pytest.approx([expected] * len(rest), nan_ok=True)
        assert pairs["tlts_pairs_5px"] == (0 if truth is empty else 1000)
    assert length_error(empty, full) == 1
    assert math.isnan(length_error(full, empty))


def test_what_cannot_be_compared_is_refused():
    pixels = line((0, 0), (0, 9))
    with pytest.raises(DataError, match="same unit, received um and px; convert one"):
        score_graph(line((0, 0), (0, 9), spacing=(0.5, 0.5)), pixels, 3, 5)
    with pytest.raises(DataError, match="same axes, received 3 and 2"):
        score_graph(line((0, 0, 0), (0, 0, 9)), pixels, 3, 5)


def test_the_seed_decides_the_draw():
    _, prediction, truth = drawn_pair(2, 0)
    scores = [score_graph(prediction, truth, 1, 2, seed=seed) for seed in (0, 0, 1)]
    assert_same(scores[0], scores[1])
    assert scores[0]["tlts_correct_2px"] != scores[2]["tlts_correct_2px"]
    assert scores[0]["tlts_correct_2px"] == pytest.approx(scores[2]["tlts_correct_2px"], abs=0.09)
