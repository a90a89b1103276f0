import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.path import Path as Outline
from numpy.typing import NDArray

from biocnn.data.density import rasterise
from biocnn.data.regions import Region, read_regions, region_mask
from biocnn.errors import DataError, DatasetNotFoundError

SHAPE = (8, 10)


def region(*outlines: object, name: str = "r") -> Region:
    return Region(name, tuple(np.array(outline, np.float64) for outline in outlines))


def box(top: float, left: float, bottom: float, right: float) -> list[list[float]]:
    return [[top, left], [top, right], [bottom, right], [bottom, left]]


def picture(text: str) -> NDArray[np.bool_]:
    return np.array([[letter == "#" for letter in line] for line in text.split()])


def geojson(path: Path, *features: tuple[dict[str, object] | None, dict[str, object]]) -> Path:
    listed = [{"type": "Feature", "properties": properties, "geometry": geometry} for properties, geometry in features]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": listed}))
    return path


SQUARE = {"type": "Polygon", "coordinates": [[[2, 1], [6, 1], [6, 4], [2, 4], [2, 1]]]}  # x, y of corners


def test_pixels_of_a_square_with_a_hole() -> None:
    expected = picture(
        """
        ..........
        .######...
        .######...
        .##..##...
        .##..##...
        .######...
        .######...
        ..........
        """
    )
    found = region_mask(region(box(0.5, 0.5, 6.5, 6.5), box(2.5, 2.5, 4.5, 4.5)), SHAPE)
    assert found.dtype == bool
    np.testing.assert_array_equal(found, expected)
    backwards = region(box(0.5, 0.5, 6.5, 6.5)[::-1], box(2.5, 2.5, 4.5, 4.5))
    np.testing.assert_array_equal(region_mask(backwards, SHAPE), expected)


def test_pixels_of_a_triangle_and_of_an_outline_that_crosses_itself() -> None:
    triangle = region([[0.5, 0.5], [6.5, 0.5], [6.5, 9.5]])
    expected = picture(
        """
        ..........
        .#........
        .##.......
        .####.....
        .#####....
        .#######..
        .########.
        ..........
        """
    )
    # By hand: in row r the right side is at column 0.5 + (r - 0.5) * 1.5, that is 1.25, 2.75, 4.25, 5.75, 7.25, 8.75.
    np.testing.assert_array_equal(region_mask(triangle, SHAPE), expected)
    bow_tie = region([[0.5, 0.5], [6.5, 8.5], [0.5, 8.5], [6.5, 0.5]])
    mask = region_mask(bow_tie, SHAPE)
    np.testing.assert_array_equal(mask, mask[[7, 6, 5, 4, 3, 2, 1, 0]])
    assert mask[3, [1, 2, 6, 7]].all()
    assert not mask[[1, 6], 4].any()


def test_pixels_of_polygons_at_random_are_those_of_matplotlib() -> None:
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:30, :40]
    centres = np.stack([rows.ravel(), columns.ravel()], axis=1)
    for _ in range(30):
        angle = np.sort(rng.uniform(0, 2 * np.pi, 9))
        radius = rng.uniform(3, 25, 9)  # a star around the middle, which may reach beyond the frame
        corners = np.stack([14.3 + radius * np.sin(angle), 19.6 + radius * np.cos(angle)], axis=1)
        corners[:, 0] = corners[:, 0].clip(-1.4, 30.4)
        corners[:, 1] = corners[:, 1].clip(-1.4, 40.4)
        expected = Outline(np.concatenate([corners, corners[:1]]), closed=True).contains_points(centres).reshape(30, 40)
        np.testing.assert_array_equal(region_mask(region(corners), (30, 40)), expected)


def test_regions_that_share_a_border_share_every_pixel_out() -> None:
    # Borders run through the centres of pixels, and a slanted one through whole-numbered corners.
    top = region([[0, 0], [0, 9], [5, 9], [2, 0]])
    bottom = region([[2, 0], [5, 9], [7, 9], [7, 0]])
    both = region_mask(top, SHAPE).astype(int) + region_mask(bottom, SHAPE)
    np.testing.assert_array_equal(both, region_mask(region(box(0, 0, 7, 9)), SHAPE))
    assert both.sum() == 7 * 9


def test_parts_of_a_multipolygon_and_names(tmp_path: Path) -> None:
    two = {"type": "MultiPolygon", "coordinates": [SQUARE["coordinates"], [[[7, 0], [9, 0], [9, 2], [7, 2], [7, 0]]]]}
    path = geojson(
        tmp_path / "rois.geojson",
        ({"name": "tumour"}, SQUARE),
        ({"classification": {"name": "stroma", "color": [1, 2, 3]}}, two),
        (None, SQUARE),
        ({"name": "tumour", "classification": {"name": "other"}}, SQUARE),
        ({}, {"type": "Point", "coordinates": [1, 1]}),
        ({}, {"type": "LineString", "coordinates": [[1, 1], [2, 2]]}),
    )
    regions = read_regions(path)
    assert [one.name for one in regions] == ["tumour", "stroma", "region 3", "tumour (2)"]
    square = picture(
        """
        ..........
        ..####....
        ..####....
        ..####....
        ..........
        ..........
        ..........
        ..........
        """
    )
    np.testing.assert_array_equal(region_mask(regions[0], SHAPE), square)
    square[:2, 7:9] = True
    np.testing.assert_array_equal(region_mask(regions[1], SHAPE), square)


def test_regions_of_imagej(tmp_path: Path) -> None:
    roifile = pytest.importorskip("roifile", reason="needs the package roifile")
    outline = roifile.ImagejRoi.frompoints(np.array([[2, 1], [6, 1], [6, 4], [2, 4]]), name="outline")
    box_roi, oval = roifile.ImagejRoi(), roifile.ImagejRoi()
    for roi, kind, name in ((box_roi, roifile.ROI_TYPE.RECT, "box"), (oval, roifile.ROI_TYPE.OVAL, "oval")):
        roi.roitype, roi.name = kind, name
        roi.left, roi.top, roi.right, roi.bottom = 2, 1, 6, 4
    point = roifile.ImagejRoi.frompoints(np.array([[1, 1]]))
    point.roitype = roifile.ROI_TYPE.POINT
    roifile.roiwrite(tmp_path / "rois.zip", [outline, box_roi, oval, point])
    regions = read_regions(tmp_path / "rois.zip")
    assert [one.name for one in regions] == ["outline", "box", "oval"]
    expected = np.zeros(SHAPE, bool)
    expected[1:4, 2:6] = True
    for one in regions[:2]:
        np.testing.assert_array_equal(region_mask(one, SHAPE), expected)
    expected[[1, 1, 3, 3], [2, 5, 2, 5]] = False
    np.testing.assert_array_equal(region_mask(regions[2], SHAPE), expected)
    oval.right, oval.bottom = 402, 201
    oval.tofile(tmp_path / "large.roi")
    area = region_mask(read_regions(tmp_path / "large.roi")[0], (300, 500)).sum()
    assert area == pytest.approx(np.pi * 200 * 100, rel=1e-3)


def test_composite_region_of_imagej(tmp_path: Path) -> None:
    roifile = pytest.importorskip("roifile", reason="needs the package roifile")
    roi = roifile.ImagejRoi()
    roi.roitype, roi.name = roifile.ROI_TYPE.RECT, "ring"
    path = []  # of java.awt.geom: 0 moves, 1 draws a line, 4 closes
    for ring in (box(1, 1, 7, 7), box(3, 3, 5, 5)):
        for number, (row, column) in enumerate(ring):
            path += [float(number > 0), column, row]
        path.append(4.0)
    roi.multi_coordinates = np.array(path, np.float32)
    roi.shape_roi_size = len(path)
    roi.left, roi.top, roi.right, roi.bottom = 1, 1, 7, 7
    roi.tofile(tmp_path / "a.roi")
    mask = region_mask(read_regions(tmp_path / "a.roi")[0], SHAPE)
    assert mask.sum() == 36 - 4
    assert not mask[3:5, 3:5].any()


def test_regions_that_do_not_fit_the_image() -> None:
    with pytest.raises(
        DataError, match=r"Region 'r' \(rows 20 to 30 and columns 1 to 5\) lies outside the image of 8x10"
    ):
        region_mask(region(box(20, 1, 30, 5)), SHAPE)
    with pytest.raises(DataError, match="holds no centre of a pixel"):
        region_mask(region(box(2.1, 2.1, 2.9, 2.9)), SHAPE)
    with pytest.warns(UserWarning, match="reaches beyond the image .* only the part inside counts"):
        mask = region_mask(region(box(4.5, 6.5, 300, 400)), SHAPE)
    assert np.argwhere(mask).tolist() == [[row, column] for row in (5, 6, 7) for column in (7, 8, 9)]
    whole = region(box(-0.5, -0.5, 7.5, 9.5))
    assert region_mask(whole, SHAPE).all()


def test_files_without_regions(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    point: dict[str, object] = {"type": "Point", "coordinates": [1, 1]}
    with pytest.raises(DataError, match=r"a.geojson holds no region, but 2 Point"):
        read_regions(geojson(path, ({}, point), ({}, point)))
    with pytest.raises(DataError, match=r"holds no region, but nothing"):
        read_regions(geojson(path))
    with pytest.raises(DataError, match="'thin' has an outline of less than three corners"):
        read_regions(geojson(path, ({"name": "thin"}, {"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]})))
    corners = [[0, 0], [1, 1], [float("nan"), 3]]
    with pytest.raises(DataError, match="corners that are NaN"):
        read_regions(geojson(path, ({}, {"type": "Polygon", "coordinates": [corners]})))
    with pytest.raises(DataError, match=r"has the suffix '.png'; regions are read from .geojson, .json, .roi, .zip"):
        read_regions(tmp_path / "a.png")
    with pytest.raises(DatasetNotFoundError, match=r"b.geojson"):
        read_regions(tmp_path / "b.geojson")


def test_qupath_and_imagej_draw_the_same_regions_which_share_out_the_count(tmp_path: Path) -> None:
    roifile = pytest.importorskip("roifile", reason="needs the package roifile")
    shape = (40, 60)
    boxes = {"left": (0, 0, 23, 40), "top": (23, 0, 60, 17), "rest": (23, 17, 60, 40)}  # left, top, right, bottom
    features: list[Any] = []
    for name, (left, top, right, bottom) in boxes.items():
        ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
        features.append(({"name": name}, {"type": "Polygon", "coordinates": [ring]}))
    geojson(tmp_path / "a.geojson", *features)
    drawn = []
    for name, corners in boxes.items():
        roi = roifile.ImagejRoi()
        roi.roitype, roi.name = roifile.ROI_TYPE.RECT, name
        roi.left, roi.top, roi.right, roi.bottom = corners
        drawn.append(roi)
    roifile.roiwrite(tmp_path / "a.zip", drawn)
    drawn[0].tofile(tmp_path / "one.roi")
    density = rasterise(np.random.default_rng(0).uniform(0, 39, (50, 2)), shape, 2.0).astype(np.float64)
    files = [read_regions(tmp_path / name) for name in ("a.geojson", "a.zip")]
    for found in files:
        assert [one.name for one in found] == list(boxes)
        counts = [density[region_mask(one, shape)].sum() for one in found]
        assert sum(counts) == pytest.approx(50, abs=1e-4)
        assert min(counts) > 5
    for one, other in zip(*files, strict=True):
        np.testing.assert_array_equal(region_mask(one, shape), region_mask(other, shape))
    (alone,) = read_regions(tmp_path / "one.roi")
    np.testing.assert_array_equal(region_mask(alone, shape), region_mask(files[0][0], shape))
