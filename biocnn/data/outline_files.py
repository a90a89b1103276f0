"""Masks and points as files that QuPath, Fiji and napari open on the image; :mod:`biocnn.data.regions` reads them back.

Programs differ by half a pixel, as said in :mod:`biocnn.data.point_files`; each gets the places as it has them. All
places are pixels of the image: these programs take the pixel size from the image file.
"""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from biocnn.data.mask_outlines import Piece, mask_objects
from biocnn.data.point_files import HALF
from biocnn.errors import DataError
from biocnn.files import atomic_path, write_text

if TYPE_CHECKING:
    from roifile import ImagejRoi

_BLUE, _ORANGE = [86, 180, 233], [230, 159, 0]  # of Okabe & Ito (2008), which colour-blind readers tell apart
_MOVE, _LINE, _CLOSE = 0, 1, 4  # of paths of ImageJ, as in java.awt.geom.PathIterator


def write_mask_geojson(
    path: str | Path, mask: NDArray[np.bool_], name: str = "structure", pixel_size_um: Sequence[float] | None = None
) -> None:
    """Write a mask as GeoJSON (RFC 7946) for QuPath: a polygon for each object, with its holes, along pixel edges.

    An object whose pieces touch at corners only is a MultiPolygon. Each has its area among its measurements.

    Args:
        path: target ``.geojson`` or ``.json``.
        mask: (H, W) bool; an empty one gives a collection without features.
        name: class of the objects in QuPath.
        pixel_size_um: of the image, row and column, for areas in square micrometres.
    """
    features = []
    for number, pieces in enumerate(mask_objects(mask), 1):
        polygons = [[_ring(ring) for ring in (piece.outer, *piece.holes)] for piece in pieces]
        measures = {"area_px": sum(piece.area for piece in pieces)}
        if pixel_size_um is not None:
            measures["area_um2"] = measures["area_px"] * pixel_size_um[0] * pixel_size_um[1]
        several = len(polygons) > 1
        geometry = {
            "type": "MultiPolygon" if several else "Polygon",
            "coordinates": polygons if several else polygons[0],
        }
        features.append(_feature(geometry, f"{name} {number}", {"name": name, "color": _BLUE}, measures))
    _write_collection(path, features)


def write_points_geojson(path: str | Path, points: ArrayLike, name: str = "cell") -> None:
    """Write points as GeoJSON for QuPath: one MultiPoint, which is what its tool for points makes and counts.

    Args:
        path: target ``.geojson`` or ``.json``.
        points: (N, 2), row and column in pixels with whole numbers at the centres of pixels; N may be 0.
        name: class of the points in QuPath.

    Raises:
        DataError: if points are not (N, 2), or not finite.
    """
    places = (_points(points)[:, ::-1] + HALF).tolist()
    geometry = {"type": "MultiPoint", "coordinates": places}
    own = {"name": name, "color": _ORANGE}
    _write_collection(path, [_feature(geometry, f"{name}s", own, {"count": float(len(places))})] if places else [])


def write_points_csv(path: str | Path, points: ArrayLike) -> None:
    """Write points as a table that napari opens as a points layer: ``index``, ``axis-0`` (row), ``axis-1`` (column).

    Args:
        path: target ``.csv``.
        points: as for :func:`write_points_geojson`.

    Raises:
        DataError: as there.
    """
    rows = [[number, *place] for number, place in enumerate(_points(points).tolist())]
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([["index", "axis-0", "axis-1"], *rows])


def write_mask_rois(path: str | Path, mask: NDArray[np.bool_], name: str = "structure") -> None:
    """Write a mask for the ROI manager of ImageJ and Fiji: a polygon for each object, composite if it has holes.

    Args:
        path: target ``.zip``.
        mask: (H, W) bool.
        name: of the selections, to which a number is added.

    Raises:
        DataError: if the mask has no object, which ImageJ cannot open, or the package `roifile` is missing.
    """
    _write_rois(path, [_area_roi(pieces, f"{name} {number}") for number, pieces in enumerate(mask_objects(mask), 1)])


def write_points_rois(path: str | Path, points: ArrayLike, name: str = "cell") -> None:
    """Write points for the ROI manager of ImageJ and Fiji: one multi-point selection.

    Args:
        path: target ``.zip``.
        points: as for :func:`write_points_geojson`.
        name: of the selection, with an s.

    Raises:
        DataError: as there; or if there is no point, or the package `roifile` is missing.
    """
    found = _points(points)
    _write_rois(path, [_point_roi(found, f"{name}s")] if len(found) else [])


def _points(points: ArrayLike) -> NDArray[np.float64]:
    found = np.asarray(points, np.float64)
    if found.ndim != 2 or found.shape[1] != 2 or not np.isfinite(found).all():
        raise DataError(f"Points are finite rows and columns (N, 2), received {found.shape}.")
    return found


def _ring(ring: NDArray[np.float64]) -> list[list[int]]:
    """Whole columns and rows from the corner of the first pixel, closed."""
    corners = (ring[:, ::-1] + HALF).astype(np.int64).tolist()
    return [*corners, corners[0]]


def _feature(geometry: dict[str, Any], name: str, group: dict[str, Any], measures: dict[str, float]) -> dict[str, Any]:
    own = {"objectType": "annotation", "name": name, "classification": group, "measurements": measures}
    return {"type": "Feature", "geometry": geometry, "properties": own}


def _write_collection(path: str | Path, features: list[dict[str, Any]]) -> None:
    whole = {"type": "FeatureCollection", "features": features}
    write_text(path, json.dumps(whole, allow_nan=False) + "\n")


def _roifile() -> Any:
    try:
        import roifile
    except ImportError as error:
        raise DataError("Selections of ImageJ need the package roifile: pip install 'biocnn[imagej]'.") from error
    return roifile


def _area_roi(pieces: tuple[Piece, ...], name: str) -> "ImagejRoi":
    roifile = _roifile()
    rings = [(ring[:, ::-1] + HALF).astype(np.int32) for piece in pieces for ring in (piece.outer, *piece.holes)]
    roi = roifile.ImagejRoi.frompoints(np.concatenate(rings), name=name)
    roi.roitype = roifile.ROI_TYPE.POLYGON
    roi.right, roi.bottom = np.concatenate(rings).max(0).tolist()  # `frompoints` adds one, as for pixels
    if len(rings) > 1:
        # A rectangle whose coordinates are a path that is filled by the even-odd rule: a composite selection.
        roi.roitype, roi.n_coordinates, roi.integer_coordinates = roifile.ROI_TYPE.RECT, 0, None
        roi.multi_coordinates = np.concatenate([_path(ring) for ring in rings])
        roi.shape_roi_size = len(roi.multi_coordinates)
    return roi


def _path(ring: NDArray[np.int32]) -> NDArray[np.float32]:
    corners = np.column_stack([np.full(len(ring), _LINE), ring])
    corners[0, 0] = _MOVE
    return np.append(corners.ravel(), _CLOSE).astype(np.float32)


def _point_roi(points: NDArray[np.float64], name: str) -> "ImagejRoi":
    roifile = _roifile()
    roi = roifile.ImagejRoi.frompoints(points[:, ::-1], name=name)
    roi.roitype = roifile.ROI_TYPE.POINT
    return roi


def _write_rois(path: str | Path, rois: list["ImagejRoi"]) -> None:
    if Path(path).suffix.lower() != ".zip":
        raise DataError(f"{path}: selections of ImageJ go into a file that ends in .zip.")
    if not rois:
        raise DataError(f"{path}: there is nothing to select, and ImageJ opens no empty file.")
    with atomic_path(path) as temporary:
        _roifile().roiwrite(temporary, rois, mode="w")
