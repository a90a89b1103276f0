import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from biocnn.data.mask_outlines import mask_objects, signed_area
from biocnn.data.outline_files import (
    write_mask_geojson,
    write_mask_rois,
    write_points_csv,
    write_points_geojson,
    write_points_rois,
)
from biocnn.data.point_files import read_shapes, read_table
from biocnn.data.regions import Region, read_regions, region_mask
from biocnn.errors import DataError

EVERYWHERE = np.ones((3, 3), bool)
# Two objects: a frame with a hole that touches the outside at a corner, with a pixel inside another hole that touches
# the frame at a corner; and two pixels that touch each other at a corner only.
DRAWN = (
    np.array(
        [
            list("######...."),
            list("#.#..#..#."),
            list("#.##.#.#.."),
            list("#....#...."),
            list("####.#...."),
            list("...###...."),
        ]
    )
    == "#"
)


def random_masks() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    shapes = random.integers(1, 12, (100, 2))
    return [random.random(tuple(shape)) < share for shape, share in zip(shapes, np.linspace(0, 1, 100), strict=True)]


MASKS = [*random_masks(), DRAWN, np.zeros((3, 4), bool), np.ones((3, 4), bool)]


def test_area_is_the_number_of_pixels_and_rings_are_simple() -> None:
    for mask in MASKS:
        objects = mask_objects(mask)
        labels, count = ndimage.label(mask, EVERYWHERE)
        areas = [sum(piece.area for piece in pieces) for pieces in objects]
        assert areas == np.bincount(labels.ravel(), minlength=count + 1)[1:].tolist()
        assert [len(pieces) for pieces in objects] == [
            ndimage.label(labels == number)[1] for number in range(1, count + 1)
        ]
        for piece in (piece for pieces in objects for piece in pieces):
            assert signed_area(piece.outer) > 0
            assert all(signed_area(hole) < 0 for hole in piece.holes)
            for ring in (piece.outer, *piece.holes):
                assert len(np.unique(ring, axis=0)) == len(ring), "a ring passes a corner once"
                steps = np.diff(ring, axis=0, append=ring[:1])
                assert ((steps != 0).sum(1) == 1).all(), "edges are along rows or columns"
                straight = (steps[:, 0] == 0) == (np.roll(steps, 1, axis=0)[:, 0] == 0)
                assert not straight.any(), "every corner is one"


def test_a_piece_has_a_hole_for_each_part_of_the_background_that_it_encloses() -> None:
    for mask in MASKS:
        for piece in (piece for pieces in mask_objects(mask) for piece in pieces):
            alone = region_mask(Region("piece", (piece.outer, *piece.holes)), mask.shape)
            assert (alone & mask == alone).all()
            # Of one piece the background that touches at a corner is parted there, so it hangs together by edges.
            assert len(piece.holes) == ndimage.label(~np.pad(alone, 1))[1] - 1


def test_drawn_objects_have_the_rings_that_one_sees() -> None:
    first, second = mask_objects(DRAWN)
    assert [len(piece.holes) for piece in first] == [1]
    assert first[0].area == (DRAWN[:, :6]).sum()
    assert [piece.area for piece in second] == [1.0, 1.0]
    np.testing.assert_array_equal(second[0].outer, [[0.5, 7.5], [0.5, 8.5], [1.5, 8.5], [1.5, 7.5]])


def test_polygons_are_valid_for_another_library() -> None:
    geometry = pytest.importorskip("shapely.geometry", reason="shapely is not installed")
    for mask in MASKS:
        pieces = [piece for group in mask_objects(mask) for piece in group]
        polygons = [geometry.Polygon(piece.outer, piece.holes) for piece in pieces]
        assert all(polygon.is_valid for polygon in polygons)
        assert sum(polygon.area for polygon in polygons) == mask.sum()
        for pieces in mask_objects(mask):
            assert geometry.MultiPolygon([(piece.outer, piece.holes) for piece in pieces]).is_valid


def check_collection(content: Any) -> None:
    """What RFC 7946 asks of a collection of polygons and points."""
    assert content["type"] == "FeatureCollection"
    for feature in content["features"]:
        assert feature["type"] == "Feature"
        assert isinstance(feature["properties"], dict)
        kind, coordinates = feature["geometry"]["type"], feature["geometry"]["coordinates"]
        if kind == "MultiPoint":
            assert all(len(place) == 2 for place in coordinates)
            continue
        assert kind in ("Polygon", "MultiPolygon")
        for polygon in [coordinates] if kind == "Polygon" else coordinates:
            for number, ring in enumerate(polygon):
                assert len(ring) >= 4
                assert ring[0] == ring[-1]
                x, y = np.array(ring, float).T
                area = (x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2
                assert area > 0 if number == 0 else area < 0, "outer rings run by the right-hand rule, holes against it"


def union(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """Pixels of all regions of a file; each is of one region only."""
    masks = [region_mask(region, shape) for region in read_regions(path)]
    assert (np.sum(masks, axis=0) <= 1).all()
    return np.any(masks, axis=0)


def test_a_mask_comes_back_from_geojson(tmp_path: Path) -> None:
    path = tmp_path / "mask.geojson"
    for mask in (DRAWN, np.random.default_rng(1).random((60, 50)) < 0.6):
        write_mask_geojson(path, mask, pixel_size_um=(0.5, 0.25))
        content = json.loads(path.read_text())
        check_collection(content)
        np.testing.assert_array_equal(union(path, mask.shape), mask)
        measures = [feature["properties"]["measurements"] for feature in content["features"]]
        assert sum(one["area_px"] for one in measures) == mask.sum()
        assert sum(one["area_um2"] for one in measures) == mask.sum() * 0.125
    kinds = {feature["geometry"]["type"] for feature in content["features"]}
    assert kinds == {"Polygon", "MultiPolygon"}
    write_mask_geojson(path, np.zeros((3, 3), bool))
    assert json.loads(path.read_text()) == {"type": "FeatureCollection", "features": []}


def test_geojson_is_valid_for_another_library(tmp_path: Path) -> None:
    geojson = pytest.importorskip("geojson", reason="geojson is not installed")
    write_mask_geojson(tmp_path / "mask.geojson", DRAWN)
    write_points_geojson(tmp_path / "points.geojson", POINTS)
    for path in tmp_path.iterdir():
        found = geojson.loads(path.read_text())
        assert found.is_valid, found.errors()


def test_a_mask_comes_back_from_imagej(tmp_path: Path) -> None:
    roifile = pytest.importorskip("roifile", reason="roifile is not installed")
    path = tmp_path / "mask.zip"
    mask = np.random.default_rng(2).random((60, 50)) < 0.5
    for drawn in (DRAWN, mask):
        write_mask_rois(path, drawn, "vessel")
        np.testing.assert_array_equal(union(path, drawn.shape), drawn)
    rois = roifile.roiread(path)
    assert [roi.name for roi in rois] == [f"vessel {number}" for number in range(1, len(rois) + 1)]
    boxes = ndimage.find_objects(ndimage.label(mask, EVERYWHERE)[0])
    assert [(roi.top, roi.bottom, roi.left, roi.right) for roi in rois] == [
        (rows.start, rows.stop, columns.start, columns.stop) for rows, columns in boxes
    ]
    assert 0 < sum(roi.composite for roi in rois) < len(rois)
    with pytest.raises(DataError, match="nothing to select"):
        write_mask_rois(path, np.zeros((3, 3), bool))
    with pytest.raises(DataError, match=r"ends in \.zip"):
        write_mask_rois(tmp_path / "mask.roi", mask)


POINTS = np.array([[0.0, 3.25], [10.5, 0.0], [7.0, 7.0]])


def test_points_come_back(tmp_path: Path) -> None:
    pytest.importorskip("roifile", reason="roifile is not installed")
    write_points_geojson(tmp_path / "a.geojson", POINTS)
    content = json.loads((tmp_path / "a.geojson").read_text())
    check_collection(content)
    assert content["features"][0]["geometry"]["coordinates"][0] == [3.75, 0.5], "column, row from the corner"
    write_points_rois(tmp_path / "a.zip", POINTS)
    for name in ("a.geojson", "a.zip"):
        (shape,) = read_shapes(tmp_path / name)
        np.testing.assert_array_equal(shape.parts[0], POINTS)
        assert shape.name in ("cell", "cells")


def test_points_for_napari(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    write_points_csv(path, POINTS)
    assert path.read_text().splitlines()[:2] == ["index,axis-0,axis-1", "0,0.0,3.25"]
    np.testing.assert_array_equal(read_table(path), POINTS)
    write_points_csv(path, np.zeros((0, 2)))
    assert read_table(path).shape == (0, 2)


def test_points_that_are_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "points.geojson"
    write_points_geojson(path, np.zeros((0, 2)))
    assert json.loads(path.read_text())["features"] == []
    for points in (np.zeros((3, 3)), np.array([[0, np.nan]]), np.zeros(2)):
        with pytest.raises(DataError, match="finite rows and columns"):
            write_points_csv(path, points)
    with pytest.raises(DataError, match="nothing to select"):
        write_points_rois(tmp_path / "a.zip", np.zeros((0, 2)))
