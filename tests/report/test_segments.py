import csv
import math
from pathlib import Path

import networkx as nx
import numpy as np
import pytest

from biocnn.data.graphs import add_segment, new_graph, total_length
from biocnn.report.segments import number_components, segment_columns, segment_rows, write_segments
from tests.data.drawn_graphs import random_graph


def by_hand() -> nx.MultiGraph:
    """A Y of three segments, a ring and a single node, in micrometres."""
    graph = new_graph((0.5, 0.5))
    places = {5: (10.0, 10.0), 6: (10.0, 4.0), 7: (2.0, 10.0), 8: (13.0, 14.0), 1: (40.0, 40.0), 0: (90.0, 90.0)}
    for node, place in places.items():
        graph.add_node(node, position=place, radius=math.nan)
    add_segment(graph, 5, 6, [(10, 10), (10, 4)], [1, 2], score=0.5)
    add_segment(graph, 7, 5, [(2, 10), (2, 16), (10, 16), (10, 10)])
    add_segment(graph, 5, 8, [(10, 10), (13, 14)], [1, 1], score=1)
    add_segment(graph, 1, 1, [(40, 40), (40, 44), (43, 44), (40, 40)])
    return graph


def test_the_table_by_hand(tmp_path: Path) -> None:
    write_segments(tmp_path / "new" / "segments.csv", by_hand())
    lines = (tmp_path / "new" / "segments.csv").read_text().splitlines()
    assert lines[0] == (
        "segment,component,start_node,end_node,free_ends,length_um,tortuosity,width_um,angle_deg,score,"
        "start_row_um,start_column_um,end_row_um,end_column_um"
    )
    rows = {(row["start_node"], row["end_node"]): row for row in csv.DictReader(lines)}
    cells = {pair: list(row.values())[4:] for pair, row in rows.items()}
    assert cells["5", "6"] == ["1", "6.0", "1.0", "3.0", "0.0", "0.5", "10.0", "10.0", "10.0", "4.0"]
    # A detour of 20 over 8, from top to bottom.
    assert cells["7", "5"] == ["1", "20.0", "2.5", "", "90.0", "", "2.0", "10.0", "10.0", "10.0"]
    # Down to the right, which is 180 degrees less than the arc tangent of 3/4, 36.8699.
    assert cells["5", "8"] == ["1", "5.0", "1.0", "2.0", "143.1301", "1.0", "10.0", "10.0", "13.0", "14.0"]
    assert cells["1", "1"] == ["0", "12.0", "", "", "", "", "40.0", "40.0", "40.0", "40.0"]
    assert {row["component"] for row in rows.values()} == {"1", "2"}
    assert rows["1", "1"]["component"] == "2"  # shorter than the other, though its node comes first
    assert number_components(by_hand())[0] == 3


@pytest.mark.parametrize("degrees", [0, 1, 30, 89.9, 90, 135, 179, 180, 200, 270, 359])
def test_angles_are_counter_clockwise_in_the_picture(degrees: float) -> None:
    graph = new_graph()
    angle = math.radians(degrees)
    # Rows go down, so that a positive sine is up.
    ends = [(50.0, 50.0), (50 - 9 * math.sin(angle), 50 + 9 * math.cos(angle))]
    for node, place in enumerate(ends):
        graph.add_node(node, position=place, radius=1.0)
    add_segment(graph, 0, 1, ends)
    (row,) = segment_rows(graph)
    assert 0 <= row["angle_deg"] < 180
    assert math.cos(2 * math.radians(row["angle_deg"]) - 2 * angle) == pytest.approx(1)
    assert list(row)[5] == "length_px"


@pytest.mark.parametrize(
    ("end", "angle", "inclination"),
    [
        ((0, 0, 5), 0, 0),
        ((5, 0, 5), 0, 45),
        ((-5, 0, 5), 0, 45),
        ((5, -3, 4), 36.8699, 45),
        ((-1, 0, 0), "", 90),
        ((0, 1e-30, 1), 0, 0),
    ],
)
def test_three_axes_have_an_inclination(end: tuple, angle: float | str, inclination: float) -> None:
    graph = new_graph((2.0, 0.5, 0.5))
    for node, place in enumerate([(0.0, 0.0, 0.0), end]):
        graph.add_node(node, position=place, radius=1.0)
    add_segment(graph, 0, 1, [(0, 0, 0), end])
    (row,) = segment_rows(graph)
    assert (row["angle_deg"], row["inclination_deg"]) == (angle, inclination)
    assert (row["start_plane_um"], row["end_plane_um"]) == (0, end[0])
    assert row["free_ends"] == 2


@pytest.mark.parametrize("spacing", [(0.5, 0.5), (2.0, 0.5, 0.5)])
def test_rows_add_up_to_the_graph(spacing: tuple[float, ...]) -> None:
    graph = random_graph(2, spacing)
    rows = segment_rows(graph)
    assert [row["segment"] for row in rows] == list(range(1, graph.number_of_edges() + 1))
    assert sum(row["length_um"] for row in rows) == pytest.approx(total_length(graph), abs=len(rows) * 5e-5)
    assert sum(row["free_ends"] for row in rows) == sum(degree == 1 for _, degree in graph.degree)
    for row in rows:
        ring = row["start_node"] == row["end_node"]
        assert (row["tortuosity"] == "") == ring
        assert ring or row["tortuosity"] >= 1
        assert row["component"] == number_components(graph)[row["end_node"]]
    sums = dict.fromkeys(number_components(graph).values(), 0.0)
    for row in rows:
        sums[row["component"]] += row["length_um"]
    ordered = [sums[number] for number in sorted(sums)]
    assert ordered == sorted(ordered, reverse=True)
    assert len(ordered) == nx.number_connected_components(graph)


def test_a_graph_without_segments_leaves_the_names(tmp_path: Path) -> None:
    graph = new_graph((2.0, 1.0, 1.0))
    assert segment_rows(graph) == []
    write_segments(tmp_path / "a.csv", graph)
    text = (tmp_path / "a.csv").read_text()
    assert text.strip().split(",") == segment_columns(graph)
    assert "inclination_deg" in text
    assert np.unique(segment_columns(graph)).size == len(segment_columns(graph))
