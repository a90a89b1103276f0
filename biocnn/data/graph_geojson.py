"""Graphs as GeoJSON (RFC 7946): lines and points that QuPath, napari and ImageJ draw on the image.

Coordinates are pixels of the image, [column, row], and for a graph of three axes [column, row, plane]. As QuPath has
it, and as :mod:`biocnn.data.point_files` reads it, columns and rows are measured from the corner of the first pixel,
whose centre is (0.5, 0.5); planes are whole numbers.

A segment is a LineString with the numbers of its nodes, ``start`` and ``end``; a node is a Point with its number,
``node``. Measures have their unit in their name, as in ``length_um``; what is not known is null. ``objectType`` and
``measurements`` are what QuPath takes a feature's kind and its table from. ``unit`` and ``spacing`` of the whole are
members beside the features, which RFC 7946 allows and QuPath drops: what QuPath has saved is read as lines in pixels.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np

from biocnn.data.graph_lines import join_lines
from biocnn.data.graphs import UNITS, Floats, add_segment, new_graph
from biocnn.data.point_files import HALF, check_file
from biocnn.errors import DataError
from biocnn.files import write_text

Json = dict[str, Any]
_CLASSES: dict[str, Json] = {
    # Colours of Okabe & Ito (2008), which colour-blind readers tell apart.
    "LineString": {"name": "segment", "color": [86, 180, 233]},
    "Point": {"name": "node", "color": [230, 159, 0]},
}


def write_geojson(path: str | Path, graph: nx.MultiGraph) -> None:
    """Write a graph as GeoJSON; :func:`read_geojson` gives it back, but for rounding of the last digits.

    Segments are called by their number, 1, 2, ... in the order of ``graph.edges``, as in the table of segments.

    Args:
        path: target file ``.geojson`` or ``.json``; its folder is made when missing.
        graph: of any kind.
    """
    unit = graph.graph["unit"]
    spacing = np.array(graph.graph["spacing"], dtype=np.float64)
    features = []
    for number, (u, v, data) in enumerate(graph.edges(data=True), 1):
        end = v if data["start"] == u else u
        measures = {f"length_{unit}": data["length"], f"width_{unit}": data["width"], "score": data["score"]}
        radii = {f"radius_{unit}": [_known(value) for value in data["radius"].tolist()]}
        own = {"name": f"segment {number}", "start": data["start"], "end": end, **radii}
        features.append(_feature("LineString", _to_pixels(data["path"], spacing), own, measures))
    for node, data in graph.nodes(data=True):
        place = _to_pixels(np.array([data["position"]], dtype=np.float64), spacing)[0]
        own = {"name": f"node {node}", "node": node, "degree": graph.degree(node)}
        features.append(_feature("Point", place, own, {f"radius_{unit}": data["radius"]}))
    whole = {"type": "FeatureCollection", "unit": unit, "spacing": spacing.tolist(), "features": features}
    write_text(path, json.dumps(whole, allow_nan=False) + "\n")


def _feature(kind: str, coordinates: list[Any], own: Json, measures: dict[str, float]) -> Json:
    known = {name: _known(value) for name, value in measures.items()}
    properties = {
        "objectType": "annotation",
        "classification": _CLASSES[kind],
        **own,
        **known,
        "measurements": {name: value for name, value in known.items() if value is not None},
    }
    return {"type": "Feature", "geometry": {"type": kind, "coordinates": coordinates}, "properties": properties}


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _to_pixels(places: Floats, spacing: Floats) -> list[list[float]]:
    pixels = places / spacing
    pixels[:, -2:] += HALF
    return [place[::-1] for place in pixels.tolist()]


def _from_pixels(coordinates: list[list[float]], dimensions: int) -> Floats:
    """(P, D) pixels with whole numbers at their centres; further numbers of a place, such as a height, are left out."""
    places = np.array([place[:dimensions][::-1] for place in coordinates], dtype=np.float64)
    if places.ndim != 2 or places.shape[1] != dimensions or not np.isfinite(places).all():
        raise ValueError(f"expected places of {dimensions} finite numbers, received {coordinates[:2]}")
    places[:, -2:] -= HALF
    return places


def read_geojson(path: str | Path, dimensions: int = 2, tolerance: float = 1.0) -> nx.MultiGraph:
    """Read a graph of GeoJSON: one of :func:`write_geojson`, or lines that were drawn in QuPath or another program.

    Of a file of another program LineStrings and MultiLineStrings are read, in pixels, and joined as
    :func:`biocnn.data.graph_lines.join_lines` does; points and areas are left out. So a graph of it is in pixels, and
    has neither radii nor scores.

    Args:
        path: of the file.
        dimensions: 2, or 3 for lines of another program with the plane as third number; a file of biocnn says it.
        tolerance: in pixels, of lines of another program.

    Raises:
        DatasetNotFoundError: if there is no such file.
        DataError: if it is no GeoJSON, holds no line, or lines in several planes; or if a graph of biocnn lacks a node.
    """
    path = Path(path)
    check_file(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        if isinstance(content, dict) and "unit" in content and "spacing" in content:
            return _from_features(content)
        geometries = list(_geometries(content))
        lists = [part for geometry in geometries for part in _parts(geometry)]
        lines = [_from_pixels(part, dimensions) for part in lists]
        # Where QuPath keeps the plane of a stack.
        planes = {geometry.get("plane", {}).get("z", 0) for geometry in geometries if _parts(geometry)}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise DataError(
            f"{path} is no GeoJSON of a graph or of lines ({what}). Export lines as a FeatureCollection; of a file of "
            "biocnn that was edited, remove `unit` and `spacing` at the top, and it is read as lines in pixels."
        ) from error
    if not lines or min(map(len, lines)) < 2:
        raise DataError(f"{path} holds {len(lines)} lines, expected one or more, of at least two points each.")
    if len(planes) > 1:
        raise DataError(f"{path} has lines in {len(planes)} planes of a stack, expected one. Save one file per plane.")
    return join_lines(lines, tolerance)


def _geometries(content: Any) -> Iterator[Json]:
    """Geometries of GeoJSON, or of a bare list of features, which QuPath writes too."""
    if isinstance(content, list):
        inner = content
    elif content["type"] in ("FeatureCollection", "GeometryCollection"):
        inner = content["features" if content["type"] == "FeatureCollection" else "geometries"]
    elif content["type"] == "Feature":
        inner = [content["geometry"]] if content["geometry"] is not None else []
    else:
        yield content
        return
    for item in inner:
        yield from _geometries(item)


def _parts(geometry: Json) -> list[Any]:
    kind = geometry["type"]
    return {"LineString": [geometry.get("coordinates")], "MultiLineString": geometry.get("coordinates")}.get(kind) or []


def _from_features(content: Json) -> nx.MultiGraph:
    """The graph of a file of :func:`write_geojson`."""
    unit, spacing = content["unit"], content["spacing"]
    if unit not in UNITS:
        raise ValueError(f"unit {unit!r}, expected one of {UNITS}")
    graph = new_graph(spacing if unit == "um" else None, len(spacing))
    segments = []
    for feature in content["features"]:
        geometry, properties = feature["geometry"], feature["properties"]
        lone = geometry["type"] == "Point"
        pixels = [geometry["coordinates"]] if lone else geometry["coordinates"]
        places = _from_pixels(pixels, len(spacing)) * np.array(graph.graph["spacing"])
        radius = properties[f"radius_{unit}"]
        if lone:
            position = tuple(places[0].tolist())
            graph.add_node(properties["node"], position=position, radius=_number(radius))
        else:
            segments.append((properties, places, [_number(value) for value in radius]))
    for properties, places, radii in segments:
        add_segment(graph, properties["start"], properties["end"], places, radii, _number(properties["score"]))
    return graph


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
