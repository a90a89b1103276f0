"""Smooth paths have the length of the line that they follow."""

import math

import networkx as nx
import numpy as np
import pytest
from skimage.draw import line

from biocnn.data.graphs import add_segment, new_graph, total_length
from biocnn.delineation.delineate import METHODS, Method, delineate
from biocnn.delineation.smoothing import smooth_paths


def drawn(row: int, column: int) -> nx.MultiGraph:
    path = np.stack(line(0, 0, row, column), axis=1)
    graph = new_graph()
    graph.add_node(0, position=(0.0, 0.0), radius=math.nan)
    graph.add_node(1, position=(float(row), float(column)), radius=math.nan)
    add_segment(graph, 0, 1, path, score=0.5)
    return graph


@pytest.mark.parametrize("row", [0, 20, 41, 60, 83, 100])
def test_a_straight_line_has_its_length(row: int) -> None:
    true = math.hypot(row, 100)
    graph = smooth_paths(drawn(row, 100))
    assert total_length(graph) == pytest.approx(true, rel=0.01)
    (data,) = (data for _, _, data in graph.edges(data=True))
    np.testing.assert_array_equal(data["path"][[0, -1]], [(0, 0), (row, 100)])
    assert data["score"] == 0.5


def test_the_steps_of_pixels_would_not_have() -> None:
    assert total_length(drawn(41, 100)) > 1.08 * math.hypot(41, 100)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_measures_a_circle_alike(method: Method) -> None:
    mask = np.zeros((140, 140), np.float32)
    rows, columns = np.indices(mask.shape)
    away = np.hypot(rows - 70, columns - 70)
    mask[np.abs(away - 50) < 2.5] = 1
    assert total_length(delineate(mask, method=method)) == pytest.approx(2 * math.pi * 50, rel=0.02)


def test_the_graph_itself_is_not_changed_and_a_step_stays() -> None:
    graph = drawn(1, 1)
    before = total_length(graph)
    assert total_length(smooth_paths(graph)) == before == math.sqrt(2)


@pytest.mark.parametrize("width", [0.0, -1.0, math.nan])
def test_a_width_has_to_be_positive(width: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        smooth_paths(drawn(1, 1), width)
