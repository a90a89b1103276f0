import json
import math
from pathlib import Path

import networkx as nx
import numpy as np
import pytest

from biocnn.data.graph_files import read_graph, write_graph
from biocnn.data.graph_graphml import read_graphml
from biocnn.data.graphs import add_segment, new_graph, total_length
from biocnn.data.point_files import read_shapes
from biocnn.errors import DataError, DatasetNotFoundError
from tests.data.drawn_graphs import assert_same, random_graph, same_numbers

KINDS = {"2-D um": ((0.5, 0.25), 2), "3-D um": ((2.0, 0.5, 0.3), 3), "2-D px": (None, 2), "3-D px": (None, 3)}


def small_graph(spacing: tuple[float, float] | None = (0.5, 0.25)) -> nx.MultiGraph:
    """One bent segment from the centre of pixel [0, 0] to that of [2, 4], and a single node."""
    graph = new_graph(spacing)
    rows, columns = graph.graph["spacing"]
    for node, (row, column) in enumerate([(0, 0), (2, 4), (9, 9)]):
        graph.add_node(node, position=(row * rows, column * columns), radius=math.nan)
    add_segment(graph, 1, 0, [(2 * rows, 4 * columns), (2 * rows, 0), (0, 0)], [1, math.nan, 2], score=0.75)
    return graph


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("suffix", [".swc", ".graphml", ".geojson", ".json", ".GraphML"])
def test_reading_back_gives_the_same_graph(tmp_path: Path, suffix: str, seed: int, kind: str) -> None:
    graph = random_graph(seed, *KINDS[kind])
    path = tmp_path / "new" / f"a{suffix}"
    write_graph(path, graph)
    # SWC has four decimals, up to 40 steps a segment; GeoJSON divides by the spacing and multiplies again.
    within = {".swc": 40 * math.sqrt(3) * 1e-4}.get(suffix, 1e-11)
    assert_same(graph, read_graph(path), within, score=suffix != ".swc")
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("kind", KINDS)
def test_graphml_keeps_every_digit_and_number(tmp_path: Path, kind: str) -> None:
    graph = random_graph(8, *KINDS[kind])
    write_graph(tmp_path / "a.graphml", graph)
    assert same_numbers(graph, read_graph(tmp_path / "a.graphml"))


def test_geojson_keeps_the_numbers_of_nodes(tmp_path: Path) -> None:
    graph = random_graph(8, (0.5, 0.5))
    write_graph(tmp_path / "a.json", graph)
    again = read_graph(tmp_path / "a.json")
    assert set(again) == set(graph)
    starts = [data["start"] for *_, data in graph.edges(data=True)]
    assert sorted(data["start"] for *_, data in again.edges(data=True)) == sorted(starts)


@pytest.mark.parametrize("suffix", [".swc", ".graphml", ".geojson"])
def test_an_empty_graph(tmp_path: Path, suffix: str) -> None:
    write_graph(tmp_path / f"a{suffix}", new_graph((2.0, 1.0, 1.0)))
    again = read_graph(tmp_path / f"a{suffix}")
    assert len(again) == 0
    assert again.graph == {"unit": "um", "spacing": (2.0, 1.0, 1.0)}


def test_graphml_has_plain_numbers_for_other_programs(tmp_path: Path) -> None:
    write_graph(tmp_path / "a.graphml", random_graph(0, (0.5, 0.25)))
    write_graph(tmp_path / "b.graphml", small_graph())
    plain = nx.read_graphml(tmp_path / "b.graphml")
    assert plain.graph["unit"] == "um"
    assert plain.nodes["1"] == {"row": 1.0, "column": 1.0}  # the radius is not known: left out, not nan
    edge = plain.edges["0", "1"]
    assert (edge["length"], edge["score"]) == (2.0, 0.75)
    # Known at the two ends, which stand for half of the step beside them: of 1 each.
    assert edge["width"] == pytest.approx(2 * (1 * 0.5 + 2 * 0.5) / (0.5 + 0.5))
    text = (tmp_path / "a.graphml").read_text()
    assert "nan" not in text.lower()
    ids = [part.partition('"')[0] for part in text.split("<edge ")[1:] for part in [part.partition('id="')[2]]]
    assert len(set(ids)) == len(ids) == 18  # parallel edges, too: programs drop an edge with an id they have


def test_graphml_of_another_program(tmp_path: Path) -> None:
    other = nx.Graph()
    other.add_node("soma", row=0.0, column=0.0, radius=2.0)
    other.add_node("tip", row=3.0, column=4.0)
    other.add_edge("soma", "tip", weight=1.5)
    nx.write_graphml(other, tmp_path / "a.graphml")
    graph = read_graph(tmp_path / "a.graphml")
    assert graph.graph == {"unit": "px", "spacing": (1.0, 1.0)}
    assert [graph.nodes[node]["position"] for node in (0, 1)] == [(0, 0), (3, 4)]
    assert graph.nodes[0]["radius"] == 2
    assert total_length(graph) == 5
    assert math.isnan(graph.edges[0, 1, 0]["width"])


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (nx.Graph([(0, 1)]), "KeyError: 'row'"),
        (nx.DiGraph([(0, 1)]), "its edges have directions"),
        (nx.Graph(unit="mile"), "unit 'mile'"),
        (nx.Graph(spacing="[1]", unit="um"), "2 or 3 positive numbers"),
    ],
)
def test_graphml_that_is_no_drawn_graph_is_refused(tmp_path: Path, graph: nx.Graph, message: str) -> None:
    nx.write_graphml(graph, tmp_path / "a.graphml")
    with pytest.raises(DataError, match=rf"a\.graphml is no GraphML of a drawn graph .*{message}.*Expected edges"):
        read_graphml(tmp_path / "a.graphml")


def test_geojson_by_hand(tmp_path: Path) -> None:
    write_graph(tmp_path / "a.geojson", small_graph())
    content = json.loads((tmp_path / "a.geojson").read_text())
    assert (content["type"], content["unit"], content["spacing"]) == ("FeatureCollection", "um", [0.5, 0.25])
    line, *points = content["features"]
    # Column before row, in pixels, from the corner of the first one.
    assert line["geometry"] == {"type": "LineString", "coordinates": [[4.5, 2.5], [0.5, 2.5], [0.5, 0.5]]}
    properties = line["properties"]
    assert properties["objectType"] == "annotation"
    assert properties["classification"]["name"] == "segment"
    assert (properties["name"], properties["start"], properties["end"]) == ("segment 1", 1, 0)
    assert (properties["length_um"], properties["width_um"], properties["score"]) == (2.0, 3.0, 0.75)
    assert properties["measurements"] == {"length_um": 2.0, "width_um": 3.0, "score": 0.75}
    assert properties["radius_um"] == [1.0, None, 2.0]
    assert [point["geometry"]["coordinates"] for point in points] == [[0.5, 0.5], [4.5, 2.5], [9.5, 9.5]]
    assert points[2]["properties"]["node"] == 2
    assert points[2]["properties"]["radius_um"] is None
    assert points[2]["properties"]["measurements"] == {}
    # The reader of annotations takes the points where they are.
    shapes = [shape for shape in read_shapes(tmp_path / "a.geojson") if shape.kind == "Point"]
    assert [shape.parts[0][0].tolist() for shape in shapes] == [[0, 0], [2, 4], [9, 9]]


@pytest.mark.parametrize("kind", KINDS)
def test_geojson_is_what_rfc_7946_asks_for(tmp_path: Path, kind: str) -> None:
    graph = random_graph(4, *KINDS[kind])
    write_graph(tmp_path / "a.geojson", graph)
    content = json.loads((tmp_path / "a.geojson").read_text(), parse_constant=pytest.fail)  # no NaN
    axes = len(graph.graph["spacing"])
    assert len(content["features"]) == graph.number_of_nodes() + graph.number_of_edges()
    for feature in content["features"]:
        assert set(feature) == {"type", "geometry", "properties"}
        assert feature["type"] == "Feature"
        places = feature["geometry"]["coordinates"]
        if feature["geometry"]["type"] == "Point":
            places = [places]
        else:
            assert feature["geometry"]["type"] == "LineString"
            assert len(places) >= 2
        assert all(len(place) == axes and all(isinstance(value, float) for value in place) for place in places)
        # What QuPath puts into its table has to be numbers.
        assert all(isinstance(value, float) for value in feature["properties"]["measurements"].values())


def qupath(folder: Path, *geometries: dict, **members: object) -> Path:
    """A file as QuPath 0.5 exports it."""
    features = [{"type": "Feature", "id": "x", "geometry": item, "properties": {}} for item in geometries]
    path = folder / "a.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features, **members}))
    return path


def line(*places: tuple[float, ...], **members: object) -> dict:
    return {"type": "LineString", "coordinates": places, **members}


def test_lines_of_qupath(tmp_path: Path) -> None:
    area = {"type": "Polygon", "coordinates": [[(0, 0), (9, 0), (9, 9), (0, 0)]]}
    many = {"type": "MultiLineString", "coordinates": [[(10.5, 20.5), (10.5, 40.5)], [(90, 90), (95, 90)]]}
    path = qupath(
        tmp_path, line((0.5, 0.5), (10.5, 0.5), (10.5, 20.5)), area, many, {"type": "Point", "coordinates": [5, 5]}
    )
    graph = read_graph(path)
    assert graph.graph == {"unit": "px", "spacing": (1.0, 1.0)}
    assert sorted(data["path"].tolist() for *_, data in graph.edges(data=True)) == [
        [[0, 0], [0, 10], [20, 10], [40, 10]],
        [[89.5, 89.5], [89.5, 94.5]],
    ]
    micrometres = read_graph(path, spacing=(0.5, 0.25))
    assert micrometres.graph == {"unit": "um", "spacing": (0.5, 0.25)}
    assert total_length(micrometres) == pytest.approx(10 * 0.25 + 40 * 0.5 + 5 * 0.25)


def test_geojson_that_is_not_of_lines_is_refused(tmp_path: Path) -> None:
    for geometries, message in [
        ([{"type": "Point", "coordinates": [1, 2]}], "holds 0 lines, expected one or more"),
        ([line((1, 2))], "holds 1 lines, expected one or more, of at least two points each"),
        ([line((1, 2), (3, math.nan))], "expected places of 2 finite numbers"),
        ([line((1, 2), (3, 4), plane={"z": 1}), line((1, 2), (3, 4))], "lines in 2 planes of a stack"),
        ([line()], "expected places of 2 finite numbers"),
        ([{"type": "LineString"}], "no GeoJSON of a graph or of lines"),
    ]:
        with pytest.raises(DataError, match=message):
            read_graph(qupath(tmp_path, *geometries))
    with pytest.raises(DataError, match="remove `unit` and `spacing` at the top"):
        read_graph(qupath(tmp_path, line((1, 2), (3, 4)), unit="um", spacing=[1, 1]))
    with pytest.raises(DataError, match="unit 'mile'"):
        read_graph(qupath(tmp_path, unit="mile", spacing=[1, 1]))
    (tmp_path / "a.geojson").write_text("{")
    with pytest.raises(DataError, match=r"a\.geojson is no GeoJSON"):
        read_graph(tmp_path / "a.geojson")


def test_planes_of_lines_with_three_numbers(tmp_path: Path) -> None:
    path = qupath(tmp_path, line((0.5, 0.5, 0), (0.5, 0.5, 7)))
    graph = read_graph(path, spacing=(2.0, 1.0, 1.0))
    assert [data["path"].tolist() for *_, data in graph.edges(data=True)] == [[[0, 0, 0], [14, 0, 0]]]


def test_a_pixel_size_turns_pixels_into_micrometres(tmp_path: Path) -> None:
    in_pixels = random_graph(6)
    for suffix in (".graphml", ".geojson"):
        write_graph(tmp_path / f"a{suffix}", in_pixels)
        graph = read_graph(tmp_path / f"a{suffix}", spacing=(0.5, 2.0))
        assert graph.graph == {"unit": "um", "spacing": (0.5, 2.0)}
        for node, data in in_pixels.nodes(data=True):
            np.testing.assert_allclose(
                graph.nodes[node]["position"], np.multiply(data["position"], (0.5, 2)), atol=1e-9
            )
            # The geometric mean of 0.5 and 2 is 1.
            np.testing.assert_allclose(graph.nodes[node]["radius"], data["radius"], rtol=1e-12)
    # In micrometres already: the places stay, and the pixel size is replaced.
    write_graph(tmp_path / "b.graphml", graph)
    again = read_graph(tmp_path / "b.graphml", spacing=(1.0, 1.0))
    assert again.graph["spacing"] == (1.0, 1.0)
    assert total_length(again) == pytest.approx(total_length(graph))


def test_swc_of_another_program_with_two_axes(tmp_path: Path) -> None:
    (tmp_path / "a.swc").write_text("1 0 3 4 0 1 -1\n2 0 6 8 0 1 1\n")
    graph = read_graph(tmp_path / "a.swc", spacing=(0.5, 0.5))
    assert graph.graph == {"unit": "um", "spacing": (0.5, 0.5)}
    assert [data["position"] for _, data in graph.nodes(data=True)] == [(4, 3), (8, 6)]


def test_what_is_no_graph_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has the suffix '.png'; graphs are written and read as .swc"):
        read_graph(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"has the suffix ''"):
        write_graph(tmp_path / "a", small_graph())
    for suffix in (".swc", ".graphml", ".geojson"):
        with pytest.raises(DatasetNotFoundError, match="There is no file"):
            read_graph(tmp_path / f"a{suffix}")
    write_graph(tmp_path / "a.graphml", small_graph())
    with pytest.raises(DataError, match=r"has 2 axes, the pixel size 3: \(1.0, 1.0, 1.0\)"):
        read_graph(tmp_path / "a.graphml", spacing=(1, 1, 1))
    with pytest.raises(DataError, match="2 or 3 positive numbers"):
        read_graph(tmp_path / "a.graphml", spacing=(1,))
