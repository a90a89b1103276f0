import math
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from PIL import Image
from skimage.draw import line

from biocnn.data.graphs import add_segment, new_graph
from biocnn.errors import DataError
from biocnn.report.graph_overlay import BRANCH, COMPONENTS, END, SCORES, UNKNOWN, graph_picture, write_graph_overlay

RAMP = np.linspace(0, 200, 60 * 80).reshape(60, 80)


def drawn(spacing: tuple[float, ...] | None = None, offset: tuple[float, ...] = ()) -> nx.MultiGraph:
    """A Y with scores 0.6, 0.99 and none, and a line of score 0.6 apart, of places in pixels times the spacing."""
    graph = new_graph(spacing)
    steps = np.array(graph.graph["spacing"])
    places = [(30, 30), (5, 30), (50, 55), (50, 5), (5, 60), (45, 70)]
    for node, place in enumerate(places):
        graph.add_node(node, position=tuple(((*offset, *place) * steps).tolist()), radius=math.nan)
    for start, end, score in [(0, 1, 0.6), (2, 0, 0.99), (0, 3, math.nan), (4, 5, 0.6)]:
        path = [graph.nodes[start]["position"], graph.nodes[end]["position"]]
        add_segment(graph, start, end, path, score=score)
    return graph


def colours_along(picture: np.ndarray, start: tuple[int, int], end: tuple[int, int]) -> set[tuple[int, ...]]:
    """Colours of the middle of a line, where no mark is."""
    rows, columns = line(*start, *end)
    third = len(rows) // 3
    return {tuple(colour) for colour in picture[rows[third:-third], columns[third:-third]].tolist()}


def test_segments_have_the_colours_of_the_legend() -> None:
    picture, legend = graph_picture(RAMP, drawn())
    assert picture.shape == (60, 80, 3)
    assert picture.dtype == np.uint8
    words = [text for text, _ in legend]
    assert words == ["score 0.5 to 0.7: 2", "score 0.95 to 1: 1", "no score: 1", "branch points: 1", "ends: 5"]
    low, high, unknown, branch, end = [colour for _, colour in legend]
    assert (unknown, branch, end) == (UNKNOWN, BRANCH, END)
    assert colours_along(picture, (30, 30), (5, 30)) == {low}
    assert colours_along(picture, (5, 60), (45, 70)) == {low}
    assert high in colours_along(picture, (50, 55), (30, 30))
    assert unknown in colours_along(picture, (30, 30), (50, 5))
    assert tuple(picture[30, 30]) == BRANCH
    rows, columns = (picture == END).all(axis=-1).nonzero()
    for place in [(5, 30), (50, 55), (50, 5), (5, 60), (45, 70)]:
        apart = np.hypot(rows - place[0], columns - place[1])
        assert (apart <= 3).sum() >= 8  # a circle around it
    assert np.hypot(rows - 30, columns - 30).min() > 10


def test_the_pixel_size_moves_nothing() -> None:
    plain = graph_picture(RAMP, drawn())[0]
    np.testing.assert_array_equal(graph_picture(RAMP, drawn((0.5, 0.25)))[0], plain)


def test_components_have_colours_and_lengths() -> None:
    picture, legend = graph_picture(RAMP, drawn((0.5, 0.5)), "component")
    lengths = [0.5 * (25 + 2 * math.hypot(20, 25)), 0.5 * math.hypot(40, 10)]
    words = [f"component 1: {lengths[0]:.4g} um", f"component 2: {lengths[1]:.4g} um"]
    assert legend[:2] == list(zip(words, COMPONENTS[:2], strict=True))
    assert colours_along(picture, (30, 30), (5, 30)) == {COMPONENTS[0]}
    assert colours_along(picture, (5, 60), (45, 70)) == {COMPONENTS[1]}


def test_more_components_than_colours_are_grey() -> None:
    graph = new_graph()
    for number in range(8):
        row = 6.0 * number + 4
        for node, column in ((2 * number, 10.0), (2 * number + 1, 60.0 - number)):
            graph.add_node(node, position=(row, column), radius=math.nan)
        add_segment(graph, 2 * number, 2 * number + 1, [(row, 10), (row, 60 - number)])
    picture, legend = graph_picture(RAMP, graph, "component")
    assert ("3 more", UNKNOWN) in legend
    found = [tuple(picture[6 * number + 4, 30]) for number in range(8)]
    assert found == [*COMPONENTS, UNKNOWN, UNKNOWN, UNKNOWN]


def test_scale_leaves_a_place_in_its_pixel() -> None:
    graph = new_graph()
    for node, place in enumerate([(3.0, 2.0), (3.0, 12.0)]):
        graph.add_node(node, position=place, radius=math.nan)
    add_segment(graph, 0, 1, [(3, 2), (3, 12)], score=0.6)
    picture, legend = graph_picture(np.zeros((7, 15)), graph, scale=9)
    assert picture.shape == (63, 135, 3)
    assert tuple(picture[3 * 9 + 4, 7 * 9]) == legend[0][1]  # the middle of row 3
    rows = (picture[:, 7 * 9] == legend[0][1]).all(axis=-1).nonzero()[0]
    assert rows.mean() == pytest.approx(31, abs=0.5)


def test_a_stack_is_seen_along_its_planes() -> None:
    stack = np.zeros((4, 60, 80))
    stack[2] = RAMP
    flat = graph_picture(RAMP, drawn())[0]
    graph = drawn((2.0, 0.5, 0.5), offset=(3,))
    np.testing.assert_array_equal(graph_picture(stack, graph)[0], flat)
    np.testing.assert_array_equal(graph_picture(RAMP, graph)[0], flat)


def test_the_limits_of_scores_are_those_of_the_legend() -> None:
    for score, expected in [(0, 0), (0.4999, 0), (0.5, 1), (0.95, 5), (1, 5)]:
        graph = new_graph()
        for node in range(2):
            graph.add_node(node, position=(5.0, 9.0 * node), radius=math.nan)
        add_segment(graph, 0, 1, [(5, 0), (5, 9)], score=score)
        text = f"score {SCORES[expected]:g} to {SCORES[expected + 1]:g}: 1"
        assert graph_picture(RAMP, graph)[1][0][0] == text


def test_the_file(tmp_path: Path) -> None:
    write_graph_overlay(tmp_path / "new" / "a.png", RAMP, drawn())
    saved = np.asarray(Image.open(tmp_path / "new" / "a.png"))
    np.testing.assert_array_equal(saved[:60, :80], graph_picture(RAMP, drawn())[0])
    assert saved.shape[0] > 60
    write_graph_overlay(tmp_path / "empty.png", RAMP, new_graph())


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(DataError, match=r"received shape \(4,\)"):
        graph_picture(np.zeros(4), drawn())
    with pytest.raises(ValueError, match="expected 'score' or 'component', received 'width'"):
        graph_picture(RAMP, drawn(), "width")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected 1 or more, received 0"):
        graph_picture(RAMP, drawn(), scale=0)
