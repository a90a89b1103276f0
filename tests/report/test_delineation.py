"""The command from a map to a graph, as a user runs it."""

import csv
import json
import math
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import tifffile
from PIL import Image

from biocnn.cli import main
from biocnn.data.graph_files import read_graph
from biocnn.data.graphs import loop_count, total_length
from biocnn.delineation.delineate import METHODS, delineate
from biocnn.errors import DataError
from biocnn.report.delineation import read_map
from biocnn.report.overlay import write_map


def cross(size: int = 81, gap: int = 0) -> np.ndarray:
    """A map of a cross of lines 3 px wide; the horizontal one has a gap left of the middle."""
    values = np.zeros((size, size), np.float32)
    middle = size // 2
    values[middle - 1 : middle + 2, 5 : size - 5] = values[5 : size - 5, middle - 1 : middle + 2] = 0.9
    if gap:
        values[:, 20 : 20 + gap] = np.where(values[:, 20 : 20 + gap] > 0, 0.3, 0)
    return values


@pytest.mark.parametrize("method", METHODS)
def test_a_cross_is_four_segments_whose_length_is_in_micrometres(method: str) -> None:
    graph = delineate(cross(), (0.5, 0.5), method=method)  # type: ignore[arg-type]
    assert sorted(degree for _, degree in graph.degree()) == [1, 1, 1, 1, 4]
    # Two lines of 71 px, less at most a pixel and a half, the radius, at each end.
    assert 2 * (71 - 3) * 0.5 <= total_length(graph) <= 2 * 71 * 0.5
    assert graph.graph["method"] == method
    for _, _, data in graph.edges(data=True):
        assert data["score"] == pytest.approx(0.9, abs=0.02)
        assert data["width"] == pytest.approx(1.5, abs=0.15)  # 3 px of 0.5 um, and wider in the crossing


@pytest.mark.parametrize(("method", "pieces"), [("global", 1), ("bridged", 1), ("skeleton", 2)])
def test_a_gap_is_closed_by_the_methods_that_say_so(method: str, pieces: int) -> None:
    graph = delineate(cross(gap=6), method=method)  # type: ignore[arg-type]
    assert nx.number_connected_components(graph) == pieces


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_a_graph_without_nodes(method: str) -> None:
    graph = delineate(np.zeros((40, 50), np.float32), method=method)  # type: ignore[arg-type]
    assert (graph.number_of_nodes(), graph.graph["unit"]) == (0, "px")


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="method must be one of global, bridged, skeleton, received 'best'"):
        delineate(cross(), method="best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="threshold must be above 0 and below 1"):
        delineate(cross(), threshold=1.0)
    with pytest.raises(ValueError, match=r"gap must be a length of 0 or more, received -3\.0"):
        delineate(cross(), gap=-3.0)
    with pytest.raises(ValueError, match="Only the global method makes trees"):
        delineate(cross(), method="bridged", loops=False)
    with pytest.raises(DataError, match="pixel_size: expected 2 numbers"):
        delineate(cross(), (0.5,))
    with pytest.raises(DataError, match="nan"):
        delineate(np.full((9, 9), np.nan))


def test_the_command_writes_all_files_and_says_what_it_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_map(tmp_path / "map.tif", cross(), (0.5, 0.5))
    names = {"--out": "g.graphml", "--swc": "g.swc", "--geojson": "g.geojson", "--table": "s.csv", "--overlay": "o.png"}
    arguments = [word for option, name in names.items() for word in (option, str(tmp_path / name))]
    assert main(["delineate", str(tmp_path / "map.tif"), *arguments]) == 0
    said = capsys.readouterr()
    assert "4 segments, 1 branch points, 4 ends, 0 loops, 1 components, length " in said.out
    assert " um\n" in said.out
    assert "pixels" not in said.err
    for name in names.values():
        assert f"wrote {tmp_path / name}" in said.out
    graph = read_graph(tmp_path / "g.graphml")
    assert (graph.graph["unit"], loop_count(graph)) == ("um", 0)
    for name in ("g.swc", "g.geojson"):
        assert total_length(read_graph(tmp_path / name)) == pytest.approx(total_length(graph), rel=1e-4)
    rows = list(csv.DictReader((tmp_path / "s.csv").open()))
    assert math.fsum(float(row["length_um"]) for row in rows) == pytest.approx(total_length(graph), abs=1e-3)
    assert json.loads((tmp_path / "g.geojson").read_text())["type"] == "FeatureCollection"
    assert np.asarray(Image.open(tmp_path / "o.png")).std() > 0


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_map(tmp_path / "map.tif", cross())
    target = tmp_path / "g.swc"
    target.write_text("mine")
    arguments = ["delineate", str(tmp_path / "map.tif"), "--method", "skeleton", "--out", str(target)]
    assert main(arguments) == 2
    assert "is there already" in capsys.readouterr().err
    assert target.read_text() == "mine"
    assert main([*arguments, "--overwrite"]) == 0
    assert "lengths are in pixels, not micrometres" in capsys.readouterr().err
    assert target.read_text() != "mine"
    for more, words in (
        (["--swc", str(target)], "is that of --out as well"),
        (["--table", str(tmp_path / "s.xlsx")], "expected a name that ends in .csv"),
        (["--overlay", str(tmp_path / "map.tif")], "expected a name that ends in .png"),
    ):
        assert main([*arguments, "--overwrite", *more]) == 2
        assert words in capsys.readouterr().err


def test_an_input_is_never_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "mask.png"
    Image.fromarray((cross() > 0).astype(np.uint8)).save(picture)
    before = picture.read_bytes()
    arguments = ["delineate", str(picture), "--method", "skeleton", "--out", str(tmp_path / "g.swc")]
    assert main([*arguments, "--overlay", str(picture), "--overwrite"]) == 2
    assert "is an input as well" in capsys.readouterr().err
    assert picture.read_bytes() == before
    # An image of another size is refused, and the mask of 0 and 1 is one.
    Image.fromarray(np.zeros((50, 60), np.uint8)).save(tmp_path / "other.png")
    assert main([*arguments, "--image", str(tmp_path / "other.png"), "--overlay", str(tmp_path / "o.png")]) == 2
    assert "differ in rows and columns" in capsys.readouterr().err
    assert not (tmp_path / "g.swc").exists()
    assert main(arguments) == 0
    assert "4 segments" in capsys.readouterr().out


def test_an_empty_map_is_said_to_be_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_map(tmp_path / "map.tif", 0.3 * cross())
    assert main(["delineate", str(tmp_path / "map.tif"), "--out", str(tmp_path / "g.swc")]) == 0
    said = capsys.readouterr()
    assert "Nothing reaches the threshold 0.5: the largest value is 0.27" in said.err
    assert "best possible" not in said.out


def test_maps_and_masks_of_all_kinds_are_read_alike(tmp_path: Path) -> None:
    mask = cross() > 0
    Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "mask.png")
    tifffile.imwrite(tmp_path / "mask.tif", mask.astype(np.uint16) * 65535)
    for name in ("mask.png", "mask.tif"):
        values, size = read_map(tmp_path / name)
        assert (values.dtype, size) == (np.float32, None)
        np.testing.assert_array_equal(values, mask)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.full((9, 9), 3.0, np.float32), "holds float32 from 3 to 3; a map has probabilities"),
        (np.full((9, 9), np.nan, np.float32), "without nan"),
        (np.zeros((9, 9, 3), np.uint8), "has 3 channels"),
    ],
)
def test_what_is_no_map_is_named(
    tmp_path: Path, values: np.ndarray, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tifffile.imwrite(tmp_path / "bad.tif", values, photometric="rgb" if values.ndim == 3 else "minisblack")
    assert main(["delineate", str(tmp_path / "bad.tif"), "--out", str(tmp_path / "g.swc")]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "bad.tif" in error
