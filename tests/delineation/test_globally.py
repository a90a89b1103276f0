import networkx as nx
import numpy as np
import pytest

from biocnn.data.drawn_networks import drawn_network
from biocnn.data.graphs import loop_count, total_length
from biocnn.delineation.candidates import Candidates
from biocnn.delineation.globally import delineate_globally
from biocnn.delineation.weights import log_odds
from biocnn.errors import DataError


def ring_with_gaps(gap: int) -> np.ndarray:
    """A ring of radius 40, five pixels thick, with a gap at each of two sides."""
    rows, columns = np.indices((101, 101)) - 50
    probability = np.where(np.abs(np.hypot(rows, columns) - 40) <= 2.5, 0.95, 0.02)
    probability[50 - gap // 2 : 50 + (gap + 1) // 2] = 0.02
    return probability


def test_the_gaps_of_a_ring_are_closed() -> None:
    graph, selection = delineate_globally(ring_with_gaps(10))
    assert loop_count(graph) == 1
    # A circle, but for the two chords over the gaps, which are 0.3 shorter, and the wobble of a path on a grid.
    assert total_length(graph) == pytest.approx(80 * np.pi, rel=0.03)
    assert (selection.method, selection.gap) == ("milp", 0.0)
    ((_, _, data),) = graph.edges(data=True)
    inside = np.isfinite(data["radius"])
    assert data["radius"][inside].max() == pytest.approx(2.5, abs=0.6)
    assert (~inside).sum() >= 18
    assert 0.8 < data["score"] < 0.95


def test_a_forest_has_no_loop() -> None:
    graph, _ = delineate_globally(ring_with_gaps(10), loops=False)
    assert loop_count(graph) == 0
    # One gap is closed, for the price of a component; of the other, there is no need.
    assert nx.number_connected_components(graph) == 1
    assert total_length(graph) == pytest.approx(80 * np.pi - 12, rel=0.04)


@pytest.mark.parametrize("gap", [4.0, 20.0])
def test_gaps_are_closed_up_to_the_length_asked_for(gap: float) -> None:
    graph, _ = delineate_globally(ring_with_gaps(10), gap=gap)
    assert nx.number_connected_components(graph) == (2 if gap < 10 else 1)


def test_the_unit_of_the_spacing_is_that_of_the_graph() -> None:
    plain, _ = delineate_globally(ring_with_gaps(10))
    scaled, _ = delineate_globally(ring_with_gaps(10), spacing=(0.5, 0.5))
    assert scaled.graph == {"unit": "um", "spacing": (0.5, 0.5)}
    assert total_length(scaled) == pytest.approx(total_length(plain) / 2)


def test_a_line_across_anisotropic_planes() -> None:
    # From plane 2 to 17 and column 5 to 65, with planes four times as far apart: 60 by 60 in micrometres.
    planes, rows, columns = np.indices((20, 21, 71))
    off = np.hypot((planes * 4 - columns - 3) / np.sqrt(2), rows - 10)
    line = (off <= 3) & (columns >= 5) & (columns <= 65)
    graph, _ = delineate_globally(np.where(line, 0.95, 0.02), spacing=(4.0, 1.0, 1.0))
    assert sorted(dict(graph.degree).values()) == [1, 1]
    assert total_length(graph) == pytest.approx(60 * np.sqrt(2), rel=0.1)


@pytest.mark.parametrize("shape", [(200, 200), (28, 110, 110)])
def test_a_tree_with_gaps_is_one_tree(shape: tuple[int, ...]) -> None:
    network = drawn_network(2, shape, loops=False, gap=8, crossings=0, specks=4)
    assert network.gaps > 0
    graph, _ = delineate_globally(network.probability, loops=False)
    assert nx.number_connected_components(graph) == nx.number_connected_components(network.graph) == 1
    assert total_length(graph) == pytest.approx(total_length(network.graph), rel=0.1)


def test_drawn_networks_are_as_described() -> None:
    tree, loops = drawn_network(5, loops=False, crossings=2), drawn_network(5, loops=True, crossings=2)
    assert loop_count(tree.graph) == 0 < loop_count(loops.graph)
    assert nx.number_connected_components(tree.graph) == 3
    again = drawn_network(5, loops=True, crossings=2)
    np.testing.assert_array_equal(again.probability, loops.probability)
    clean = drawn_network(5, gap=10, noise=0.0, specks=0, crossings=0)
    path = np.concatenate([data["path"] for *_, data in clean.graph.edges(data=True)]).round().astype(int)
    dark = (clean.probability[tuple(path.T)] < 0.5).mean() * total_length(clean.graph)
    assert dark == pytest.approx(10 * clean.gaps, rel=0.15)
    assert drawn_network(5, gap=0, noise=0.0).gaps == 0


def test_weights_of_ones_own() -> None:
    probability = ring_with_gaps(10)

    def of_the_left_half(candidates: Candidates) -> np.ndarray:
        left = np.array([path[:, 1].max() < 50 for path in candidates.paths])
        return np.where(left, log_odds(candidates, probability), 1e3)

    graph, _ = delineate_globally(probability, weights=of_the_left_half)
    assert total_length(graph) > 80
    assert max(data["position"][1] for _, data in graph.nodes(data=True)) < 50


def test_an_empty_map_has_an_empty_graph() -> None:
    graph, selection = delineate_globally(np.zeros((30, 30)), spacing=(0.5, 0.5))
    assert graph.number_of_nodes() == 0
    assert graph.graph["unit"] == "um"
    assert (len(selection.chosen), selection.objective, selection.gap) == (0, 0.0, 0.0)


@pytest.mark.parametrize("value", [np.nan, -0.5, 2.0])
def test_maps_that_cannot_be_used(value: float) -> None:
    with pytest.raises(DataError, match="probability"):
        delineate_globally(np.full((8, 8), value))
