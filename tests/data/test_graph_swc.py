import math
from pathlib import Path

import networkx as nx
import numpy as np
import pytest

from biocnn.data.graph_swc import check_swc, read_swc, write_swc
from biocnn.data.graphs import add_segment, loop_count, merge_chains, new_graph, resampled, total_length
from biocnn.errors import DataError, DatasetNotFoundError
from tests.data.drawn_graphs import assert_same, random_graph

KINDS = {"2-D um": ((0.5, 0.25), 2), "3-D um": ((2.0, 0.5, 0.5), 3), "2-D px": (None, 2), "3-D px": (None, 3)}


def samples_of(path: Path) -> np.ndarray:
    return np.loadtxt(path, ndmin=2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_reading_back_gives_the_same_graph(tmp_path: Path, kind: str, seed: int) -> None:
    graph = random_graph(seed, *KINDS[kind])
    assert write_swc(tmp_path / "a.swc", graph) == loop_count(graph)
    again = read_swc(tmp_path / "a.swc")
    # Four decimals: half a unit of the last for a number, twice that and the root of 3 for each of up to 40 steps.
    assert_same(graph, again, 40 * math.sqrt(3) * 1e-4, score=False)
    assert_same(again, _rewritten(tmp_path, again), 1e-9, score=False)  # what has four decimals keeps them
    assert all(degree != 2 or ring(again, node) for node, degree in again.degree)


def _rewritten(folder: Path, graph: nx.MultiGraph) -> nx.MultiGraph:
    write_swc(folder / "b.swc", graph)
    return read_swc(folder / "b.swc")


def ring(graph: nx.MultiGraph, node: int) -> bool:
    return set(graph.neighbors(node)) == {node}


@pytest.mark.parametrize("kind", KINDS)
def test_any_swc_program_can_read_it(tmp_path: Path, kind: str) -> None:
    graph = random_graph(3, *KINDS[kind])
    write_swc(tmp_path / "a.swc", graph, structure=2)
    table = samples_of(tmp_path / "a.swc")
    ids, types, radii, parents = table[:, 0], table[:, 1], table[:, 5], table[:, 6]
    assert (ids == np.arange(1, len(table) + 1)).all()
    assert (types == 2).all()
    assert (parents < ids).all()
    assert (radii > 0).all()
    assert (parents == -1).sum() == nx.number_connected_components(graph)
    linked = parents > 0
    steps = table[linked, 2:5] - table[parents[linked].astype(int) - 1, 2:5]
    # A cut loop keeps its length: so cables are as long as the graph. Four decimals for each of some 60 steps.
    assert np.linalg.norm(steps, axis=1).sum() == pytest.approx(total_length(graph), abs=60 * 2e-4)
    if len(graph.graph["spacing"]) == 2:
        assert (table[:, 4] == 0).all()
    assert check_swc(tmp_path / "a.swc") == []


def test_the_file_of_a_small_graph_by_hand(tmp_path: Path) -> None:
    graph = new_graph((0.5, 0.25))
    for node, position, radius in [(7, (0.0, 1.0), 1.5), (3, (2.0, 1.0), math.nan), (9, (-1e-9, 8.0), 0.25)]:
        graph.add_node(node, position=position, radius=radius)
    add_segment(graph, 3, 7, [(2, 1), (1, 3), (0, 1)], [math.nan, 0.75, 1.5])
    add_segment(graph, 7, 3, [(0, 1), (2, 1)], [1.5, math.nan])
    assert write_swc(tmp_path / "a.swc", graph) == 1
    # Node 3 is the root, of unknown radius: half of the smaller side of a pixel. Sample 4 is node 3 once more, and the
    # last is node 9, without a minus before the zero.
    assert (tmp_path / "a.swc").read_text() == (
        "# Written by biocnn: id type x y z radius parent\n"
        "# Lengths in micrometres; x is the column, y the row, z the plane\n"
        "# biocnn unit: um\n"
        "# biocnn spacing: 0.5 0.25\n"
        "# biocnn unknown radius: 1 4\n"
        "# biocnn loop: 4 1\n"
        "1 0 1.0000 2.0000 0.0000 0.1250 -1\n"
        "2 0 1.0000 0.0000 0.0000 1.5000 1\n"
        "3 0 3.0000 1.0000 0.0000 0.7500 2\n"
        "4 0 1.0000 2.0000 0.0000 0.1250 3\n"
        "5 0 8.0000 0.0000 0.0000 0.2500 -1\n"
    )


def test_a_long_chain_and_a_wide_star_need_no_recursion(tmp_path: Path) -> None:
    graph = new_graph()
    count = 5000  # Python allows 1000 calls
    for node in range(count):
        graph.add_node(node, position=(0.0, float(node)), radius=1.0)
    for node in range(1, count):
        add_segment(graph, node - 1, node, [(0, node - 1), (0, node)], [1, 1])
    for node in range(1000):
        place = (10.0, float(node))
        graph.add_node(count + node, position=place, radius=1.0)
        add_segment(graph, 0, count + node, [(0, 0), place], [1, 1])
    assert write_swc(tmp_path / "a.swc", graph) == 0
    again = read_swc(tmp_path / "a.swc")
    assert (again.number_of_nodes(), again.number_of_edges()) == (1002, 1001)
    assert total_length(again) == pytest.approx(total_length(graph), rel=1e-6)


def test_nodes_along_a_segment_are_merged(tmp_path: Path) -> None:
    graph = merge_chains(random_graph(1, (0.5, 0.5)))
    write_swc(tmp_path / "a.swc", resampled(graph, 3.0))
    again = read_swc(tmp_path / "a.swc")
    assert again.number_of_edges() == graph.number_of_edges()
    assert sorted(dict(again.degree).values()) == sorted(dict(graph.degree).values())
    # Points are added along straight steps, each off by the rounding of its four decimals.
    assert total_length(again) == pytest.approx(total_length(graph), abs=0.05)


def test_an_empty_graph(tmp_path: Path) -> None:
    assert write_swc(tmp_path / "a.swc", new_graph((0.5, 0.5))) == 0
    again = read_swc(tmp_path / "a.swc")
    assert len(again) == 0
    assert again.graph == {"unit": "um", "spacing": (0.5, 0.5)}


FOREIGN = (
    "\ufeff# ORIGINAL_SOURCE some tracer\r\n# SCALE 1.0 1.0 1.0\r\n\r\n"
    " 10 3  1.5e0 2 -3  0.5 20 0 0 77 # children come first, and there are more columns\r\n"
    "20\t1\t0\t0\t0\t2\t-1\r\n"
    "30 99 0 4 0 0 20\r\n"
    "5.0 3 0 5 0 NaN 30.0\r\n"
    "6 3 1 4 0 1 30\r\n"
    "4 0 9 9 9 1 -1\r\n"
)


def test_a_file_of_another_program(tmp_path: Path) -> None:
    path = tmp_path / "a.swc"
    path.write_bytes(FOREIGN.encode())
    assert check_swc(path) == []
    graph = read_swc(path)
    assert graph.graph == {"unit": "um", "spacing": (1.0, 1.0, 1.0)}
    # (plane, row, column) = (z, y, x); sample 20, a root with two children, is no node.
    places = {data["position"]: data["radius"] for _, data in graph.nodes(data=True)}
    assert set(places) == {(-3, 2, 1.5), (0, 4, 0), (0, 5, 0), (0, 4, 1), (9, 9, 9)}
    assert math.isnan(places[0, 4, 0])
    assert math.isnan(places[0, 5, 0])
    lengths = sorted(length for *_, length in graph.edges(data="length"))
    assert lengths == pytest.approx([1, 1, 4 + math.sqrt(1.5**2 + 2**2 + 3**2)])
    assert loop_count(graph) == 0
    with pytest.raises(DataError, match=r"samples in 3 planes \(z -3 to 9\)"):
        read_swc(path, dimensions=2)


def test_two_axes_of_a_flat_file_of_another_program(tmp_path: Path) -> None:
    path = tmp_path / "a.swc"
    path.write_text("1 0 3 4 7 1 -1\n2 0 6 8 7 1 1\n")
    graph = read_swc(path, dimensions=2)
    assert [data["position"] for _, data in graph.nodes(data=True)] == [(4, 3), (8, 6)]
    assert total_length(graph) == pytest.approx(5)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("1 0 0 0 0 1 -1\n2 0 1 0 0 1 7", "line 2: there is no sample 7, its parent"),
        ("1 0 0 0 0 1 -1\n\n2 0 1 0 0 1 2", "line 3: sample 2 is its own parent"),
        ("1 0 0 0 0 1 3\n2 0 1 0 0 1 1\n3 0 1 0 0 1 2\n4 0 1 0 0 1 1", "line 1: sample 1 is among its own ancestors"),
        ("1 0 0 0 0 1 -1\n1 0 1 0 0 1 1", "line 2: id 1 is that of line 1, too"),
        ("1 0 0 zero 0 1 -1", r"line 1: expected numbers, received \['0', 'zero', '0', '1'\]"),
        ("1 0 0 0 nan 1 -1", "line 1: expected a finite place"),
        ("1 0 0 0 0 -1 -1", "line 1: expected a radius of 0 or more, received -1; 0 is for one that is not known"),
        ("1 0 0 0 0 inf -1", "line 1: expected a radius"),
        ("1,0,0,0,0,1,-1", "line 1: expected 7 numbers with spaces between, received 1"),
        ("1 0 0 0 0 1", "line 1: expected 7 numbers with spaces between, received 6"),
        ("1.5 0 0 0 0 1 -1", "line 1: expected a whole number of 0 or more as id, received '1.5'"),
        ("x 0 0 0 0 1 -1", "line 1: expected a whole number of 0 or more as id, received 'x'"),
        ("1 0 0 0 0 1 -2", "line 1: expected a whole number of -1 or more as parent, received '-2'"),
        ("# nothing\n", "it holds no sample"),
        ("", "it holds no sample"),
    ],
)
def test_what_is_broken_is_said_with_its_line(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "a.swc"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"a\.swc is no SWC: {problem}.*Correct these lines"):
        read_swc(path)
    assert len(check_swc(path)) == 1


def test_all_that_is_broken_is_found_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.swc"
    path.write_text("1 0 0 0 0 -1 -1\n2 0 0 0 0 1\n3 0 0 0 0 1 9\n")
    assert [problem.partition(":")[0] for problem in check_swc(path)] == ["line 1", "line 2", "line 3"]
    path.write_text("1 0 0 0 0 1 2\n2 0 0 0 0 1 1\n3 0 0 0 0 1 4\n4 0 0 0 0 1 3\n5 0 0 0 0 1 4\n6 0 0 0 0 1 -1\n")
    assert len(check_swc(path)) == 2  # two circles, and 5, which leads into one


@pytest.mark.parametrize(
    ("note", "message"),
    [
        ("loop: 2 1", "samples 2 and 1 of a loop are 5 apart"),
        ("loop: 9 1", "does not fit the samples"),
        ("loop: 2", "does not fit the samples"),
        ("unit: mm", "unit 'mm'"),
        ("spacing: 1", "2 or 3 positive numbers"),
        ("unknown radius: 1-3", "samples 3"),
    ],
)
def test_comments_that_do_not_fit_are_refused(tmp_path: Path, note: str, message: str) -> None:
    path = tmp_path / "a.swc"
    path.write_text(f"# biocnn {note}\n1 0 0 0 0 1 -1\n2 0 3 4 0 1 1\n")
    with pytest.raises(DataError, match=message):
        read_swc(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match=r"There is no file .*a\.swc"):
        read_swc(tmp_path / "a.swc")
