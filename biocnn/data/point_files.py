"""Coordinates in files of other programs: tables, GeoJSON as QuPath writes it, and ROIs of ImageJ.

Everything is returned as (row, column) in pixels with whole numbers at the centres of pixels. Programs differ by half a
pixel in what they store:

- QuPath measures from the upper left corner of the upper left pixel, whose centre is at (0.5, 0.5): half a pixel is
  subtracted.
- ImageJ does so for areas, where half a pixel is subtracted too, but stores points and lines with whole numbers at the
  centres of pixels: points are taken as they are.
- napari and scikit-image have whole numbers at the centres of pixels: tables are taken as they are.
"""

import csv
import io
import json
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from biocnn.data.findings import listed
from biocnn.errors import DataError, DatasetNotFoundError

if TYPE_CHECKING:
    from roifile import ImagejRoi

PAIRS = (("row", "column"), ("row", "col"), ("y", "x"), ("axis-0", "axis-1"))
"""Names of the columns of a table that hold row and column, in small letters."""
PLANES = ("slice", "frame", "plane", "z", "t")
"""Names of columns that say which plane of a stack a point is in."""
HALF = 0.5
"""From corners to centres of pixels."""


def check_file(path: Path) -> None:
    """Raise DatasetNotFoundError if there is no such file."""
    if not path.is_file():
        raise DatasetNotFoundError(f"There is no file {path}.")


def read_table(path: Path, pixel_size_um: tuple[float, float] | None = None) -> NDArray[np.float64]:
    """Points of a table with a header, separated by commas, semicolons or tabs.

    The columns are called ``row`` and ``column`` (or ``col``), ``y`` and ``x`` (ImageJ results), or ``axis-0`` and
    ``axis-1`` (napari), in capitals or not; others are left alone.

    Args:
        path: of the table.
        pixel_size_um: micrometres per pixel, row then column, if the table is in micrometres, as results of ImageJ are
            when the image has a scale; None if it is in pixels.

    Returns:
        (N, 2), as stored otherwise, NaN included.

    Raises:
        DatasetNotFoundError: if there is no such file.
        DataError: if no pair of columns is there, or more than one; a line holds no two numbers; or the points are in
            several planes of a stack.
    """
    check_file(path)
    lines = path.read_text(encoding="utf-8-sig", errors="replace")
    separator = max(",;\t", key=lines.partition("\n")[0].count)
    rows = csv.reader(io.StringIO(lines, newline=""), delimiter=separator)
    points: list[tuple[float, float]] = []
    planes: set[str] = set()
    try:
        header = [name.strip().lower() for name in next(rows, [])]
        row, column = _find_columns(path, header)
        plane = next((header.index(name) for name in PLANES if name in header), None)
        for cells in rows:
            if any(map(str.strip, cells)):
                points.append((float(cells[row]), float(cells[column])))
                if plane is not None:
                    planes.add(cells[plane].strip())
    except DataError:
        raise
    except (ValueError, IndexError, csv.Error) as error:
        raise DataError(f"{path}: line {rows.line_num} holds no point ({error}).") from error
    if plane is not None:
        _check_planes(path, planes)
    found = np.array(points, np.float64).reshape(-1, 2)
    return found if pixel_size_um is None else found / np.array(pixel_size_um, np.float64)


def _find_columns(path: Path, header: list[str]) -> tuple[int, int]:
    if "shape-type" in header or "vertex-index" in header:
        raise DataError(
            f"{path} has the columns {header}: the corners of shapes of napari, which are no cells. Save a points "
            "layer, with one point per cell."
        )
    if "axis-2" in header:
        raise DataError(
            f"{path} has the columns {header}: points in a stack, with three axes. Save the points of one plane, as "
            "`row` and `column`."
        )
    pairs = [pair for pair in PAIRS if set(pair) <= set(header)]
    if not pairs:
        raise DataError(f"{path} has the columns {header}; expected `row` and `column`, or `y` and `x`.")
    if len(pairs) > 1 or any(header.count(name) > 1 for name in pairs[0]):
        raise DataError(
            f"{path} has the columns {header}: more than one pair could be row and column. Keep one, and rename or "
            "remove the others."
        )
    return header.index(pairs[0][0]), header.index(pairs[0][1])


def _check_planes(path: Path, planes: set[str]) -> None:
    if len(planes) > 1:
        raise DataError(
            f"{path} has marks in {len(planes)} planes of a stack ({listed(sorted(planes))}), expected one image. "
            "Save one file per plane."
        )


@dataclass(frozen=True, eq=False)
class Shape:
    """One thing that was drawn.

    Attributes:
        name: as given by the user, or by its class; None without.
        kind: such as ``"Polygon"`` of GeoJSON or ``"POLYGON"`` of ImageJ.
        parts: of points, one array of them all; of an area, its closed outlines, holes included. Each (K, 2) float64,
            row and column in pixels. Empty for other kinds.
    """

    name: str | None
    kind: str
    parts: tuple[NDArray[np.float64], ...]


GEOJSON_POINTS, GEOJSON_AREAS = ("Point", "MultiPoint"), ("Polygon", "MultiPolygon")
IMAGEJ_POINTS = ("POINT",)
IMAGEJ_AREAS = ("POLYGON", "RECT", "OVAL", "FREEHAND", "TRACED")
POINTS, AREAS = (*GEOJSON_POINTS, *IMAGEJ_POINTS), (*GEOJSON_AREAS, *IMAGEJ_AREAS)
"""What kinds of shapes are points, and what kinds areas."""


def read_shapes(path: Path) -> list[Shape]:
    """All that is drawn in a GeoJSON file (``.geojson``, ``.json``) or one of ImageJ (``.roi``, ``.zip``).

    Raises:
        DatasetNotFoundError: if there is no such file.
        DataError: if it cannot be read; if the shapes are in several planes of a stack; or, for ImageJ, if the package
            `roifile` is missing.
    """
    check_file(path)
    if path.suffix.lower() in (".roi", ".zip"):
        rois = _read_rois(path)
        _check_planes(path, set().union(*map(_planes_of, rois)))
        return [_imagej_shape(roi) for roi in rois]
    return _read_geojson(path)


def _read_geojson(path: Path) -> list[Shape]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        features = list(_features(content))
        shapes = [_geojson_shape(name, geometry) for name, geometry in features]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise DataError(f"{path} is not GeoJSON with features ({what}). Export it as a FeatureCollection.") from error
    levels = [geometry.get("plane", {}) for name, geometry in features]  # where QuPath keeps the plane of a stack
    _check_planes(path, {f"z {level.get('z', 0)}, t {level.get('t', 0)}" for level in levels})
    return shapes


def _features(content: Any, name: str | None = None) -> Iterator[tuple[str | None, dict[str, Any]]]:
    """Names and geometries of GeoJSON, or of a bare list of features, which QuPath writes too."""
    if isinstance(content, list):
        for feature in content:
            yield from _features(feature)
    elif content["type"] == "FeatureCollection":
        yield from _features(content["features"])
    elif content["type"] == "Feature":
        properties = content.get("properties") or {}
        name = properties.get("name") or (properties.get("classification") or {}).get("name")
        if content["geometry"] is not None:
            yield from _features(content["geometry"], name)
    elif content["type"] == "GeometryCollection":
        for geometry in content["geometries"]:
            yield from _features(geometry, name)
    else:
        yield name, content


def _geojson_shape(name: str | None, geometry: dict[str, Any]) -> Shape:
    kind, coordinates = geometry["type"], geometry["coordinates"]
    if kind == "MultiPolygon":
        lists = [ring for polygon in coordinates for ring in polygon]
    elif kind == "Polygon":
        lists = coordinates
    elif kind in GEOJSON_POINTS:
        lists = [[coordinates] if kind == "Point" else coordinates]
    else:
        lists = []
    parts = [np.array([[point[1], point[0]] for point in part], np.float64).reshape(-1, 2) - HALF for part in lists]
    return Shape(name, kind, tuple(parts))


def _read_rois(path: Path) -> "list[ImagejRoi]":
    try:
        from roifile import roiread
    except ImportError as error:
        raise DataError(
            f"{path} is a file of ImageJ, which needs the package roifile: pip install 'biocnn[imagej]'. Or save the "
            "points as CSV with the columns `row` and `column`."
        ) from error
    try:
        found = roiread(path)
    except (ValueError, TypeError, IndexError, struct.error, zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{path} cannot be read as ROIs of ImageJ ({error}). Save it in the ROI manager.") from error
    return found if isinstance(found, list) else [found]


def _planes_of(roi: "ImagejRoi") -> set[str]:
    """Slices and frames of a selection; none if it is for all of them, which ImageJ writes as 0."""
    if roi.counter_positions is not None and (slices := {int(one) for one in roi.counter_positions if one > 0}):
        return set(map(str, slices))
    slice_, frame = roi.z_position or roi.position, roi.t_position
    frames = f", frame {frame}" if frame else ""
    return {f"{slice_}{frames}"} if slice_ or frame else set()


def _imagej_shape(roi: "ImagejRoi") -> Shape:
    kind = roi.roitype.name
    name = roi.name or None
    if kind in IMAGEJ_POINTS:
        points = np.asarray(roi.coordinates(), np.float64)
        return Shape(name, kind, (points[:, ::-1],))
    if kind in IMAGEJ_AREAS:
        rings = [_box(roi)] if kind in ("RECT", "OVAL") and not roi.composite else roi.coordinates(multi=True)
        parts = [np.asarray(ring, np.float64)[:, ::-1] - HALF for ring in rings]
        return Shape(name, kind, tuple(parts))
    return Shape(name, kind, ())


def _box(roi: "ImagejRoi") -> NDArray[np.float64]:
    """Outline of a rectangle or an oval, x and y, (K, 2)."""
    box: list[float] = [roi.left, roi.top, roi.right - roi.left, roi.bottom - roi.top]
    if roi.subpixelrect:
        box = [roi.xd, roi.yd, roi.widthd, roi.heightd]
    if roi.roitype.name == "RECT":
        unit = np.array([[0, 0], [0, 1], [1, 1], [1, 0]], np.float64)
    else:  # as a polygon, whose area is 0.02 % too small
        angle = np.linspace(0, 2 * np.pi, 180, endpoint=False)
        unit = 0.5 + 0.5 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return np.asarray(unit * box[2:] + box[:2], np.float64)
