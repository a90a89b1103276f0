"""Graphs in files, by suffix: SWC, GraphML and GeoJSON. What each keeps is said in its own module."""

from collections.abc import Sequence
from pathlib import Path

import networkx as nx
import numpy as np

from biocnn.data.graph_geojson import read_geojson, write_geojson
from biocnn.data.graph_graphml import read_graphml, write_graphml
from biocnn.data.graph_swc import read_swc, write_swc
from biocnn.data.graphs import add_segment, new_graph
from biocnn.errors import DataError

SUFFIXES = (".swc", ".graphml", ".geojson", ".json")


def write_graph(path: str | Path, graph: nx.MultiGraph) -> None:
    """Write a graph in the format of the suffix.

    Args:
        path: target file ``.swc``, ``.graphml``, ``.geojson`` or ``.json``; its folder is made when missing.
        graph: of any kind; SWC cuts its loops, see :func:`biocnn.data.graph_swc.write_swc`.

    Raises:
        DataError: if the suffix is another one.
    """
    suffix = _suffix(path)
    if suffix == ".swc":
        write_swc(path, graph)
    elif suffix == ".graphml":
        write_graphml(path, graph)
    else:
        write_geojson(path, graph)


def read_graph(path: str | Path, spacing: Sequence[float] | None = None, tolerance: float = 1.0) -> nx.MultiGraph:
    """Read a graph: one of :func:`write_graph`, or a tracing of another program.

    Args:
        path: file ``.swc``, ``.graphml``, ``.geojson`` or ``.json``.
        spacing: micrometres per pixel along each axis, (plane,) row, column. It turns a graph in pixels into one in
            micrometres; radii are multiplied by the geometric mean. Of a graph in micrometres, whose places stay as
            they are, it replaces the pixel size, which SWC of other programs lacks. None leaves all as in the file.
        tolerance: in pixels, within which lines of GeoJSON of another program are joined.

    Raises:
        DatasetNotFoundError: if there is no such file.
        DataError: if the suffix is another one, the file cannot be read, or the spacing has another number of axes.
    """
    suffix = _suffix(path)
    empty = None if spacing is None else new_graph(spacing)
    dimensions = None if spacing is None else len(spacing)
    if suffix == ".swc":
        graph = read_swc(path, dimensions)
    elif suffix == ".graphml":
        graph = read_graphml(path)
    else:
        graph = read_geojson(path, dimensions or 2, tolerance)
    return graph if empty is None else _onto(empty, graph, path)


def _suffix(path: str | Path) -> str:
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"{path} has the suffix {suffix!r}; graphs are written and read as {', '.join(SUFFIXES)}.")
    return suffix


def _onto(result: nx.MultiGraph, graph: nx.MultiGraph, path: str | Path) -> nx.MultiGraph:
    """Add all of a graph to an empty one in micrometres, measured anew if it was in pixels."""
    spacing = result.graph["spacing"]
    if len(graph.graph["spacing"]) != len(spacing):
        raise DataError(f"{path} has {len(graph.graph['spacing'])} axes, the pixel size {len(spacing)}: {spacing}.")
    steps = np.array(spacing)
    if graph.graph["unit"] == "um":
        steps = np.ones(len(steps))
    mean = float(np.prod(steps)) ** (1 / len(steps))
    for node, data in graph.nodes(data=True):
        position = tuple((np.array(data["position"]) * steps).tolist())
        result.add_node(node, position=position, radius=data["radius"] * mean)
    for u, v, data in graph.edges(data=True):
        end = v if data["start"] == u else u
        add_segment(result, data["start"], end, data["path"] * steps, data["radius"] * mean, data["score"])
    return result
