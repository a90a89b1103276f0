"""Graphs as GraphML, which yEd, Gephi, Cytoscape, igraph and networkx open.

The format is that of Brandes et al. 2002 (https://doi.org/10.1007/3-540-45848-4_59). What these programs can use are
plain numbers: of a node ``row``, ``column`` (``plane``) and ``radius``, of an edge ``length``, ``width`` and ``score``,
in the unit of the graph, which is the attribute ``unit`` of the whole. What they cannot is JSON: ``spacing`` of the
whole, and of an edge ``path`` and ``radii``, an array each. A number that is not known is left out, or null in an
array.
"""

import json
import math
import re
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError

import networkx as nx

from biocnn.data.graphs import UNITS, add_segment, new_graph
from biocnn.data.point_files import check_file
from biocnn.errors import DataError
from biocnn.files import atomic_path

AXES = ("plane", "row", "column")


def write_graphml(path: str | Path, graph: nx.MultiGraph) -> None:
    """Write a graph as GraphML; :func:`read_graphml` gives it back to the last digit.

    Args:
        path: target file ``.graphml``; its folder is made when missing.
        graph: of any kind; parallel segments and rings included.
    """
    spacing = [float(step) for step in graph.graph["spacing"]]
    plain = nx.MultiGraph(unit=graph.graph["unit"], spacing=json.dumps(spacing))
    for node, data in graph.nodes(data=True):
        place = map(float, data["position"])
        plain.add_node(node, **dict(zip(AXES[-len(spacing) :], place, strict=True)), **_known(data, "radius"))
    for number, (u, v, data) in enumerate(graph.edges(data=True)):
        # The key becomes the id, which has to be unique in the file: it is not that of networkx, which counts for
        # every pair of nodes from 0.
        plain.add_edge(
            u,
            v,
            key=number,
            start=data["start"],
            **_known(data, "length", "width", "score"),
            path=json.dumps(data["path"].tolist()),
            radii=json.dumps([value if math.isfinite(value) else None for value in data["radius"].tolist()]),
        )
    with atomic_path(path) as temporary:
        nx.write_graphml_xml(plain, temporary)


def _known(data: dict[str, Any], *names: str) -> dict[str, float]:
    return {name: float(data[name]) for name in names if math.isfinite(data[name])}


def read_graphml(path: str | Path) -> nx.MultiGraph:
    """Read a graph of GraphML: one of :func:`write_graphml`, or any whose nodes have ``row`` and ``column``.

    Names of nodes that are no whole numbers are replaced by 0, 1, ... in the order of the file. Edges without a path
    are straight. A graph without ``unit`` is in pixels. Lengths and widths are measured anew.

    Args:
        path: of the file.

    Raises:
        DatasetNotFoundError: if there is no such file.
        DataError: if it is no GraphML, its edges have directions, a node has no place, or a path does not fit.
    """
    path = Path(path)
    check_file(path)
    try:
        content = nx.read_graphml(path, force_multigraph=True)
        return _measured(content)
    except (ParseError, nx.NetworkXError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is no GraphML of a drawn graph ({type(error).__name__}: {error}). Expected edges without "
            "directions, and `row` and `column` (for stacks `plane`) of every node; networkx can write such a file."
        ) from error


def _measured(content: nx.MultiGraph) -> nx.MultiGraph:
    """The graph of what networkx has read, where numbers are plain and arrays are JSON."""
    if content.is_directed():
        raise ValueError("its edges have directions")
    unit = content.graph.get("unit", "px")
    if unit not in UNITS:
        raise ValueError(f"unit {unit!r}, expected one of {UNITS}")
    names = list(content.nodes)
    stack = bool(names) and all("plane" in content.nodes[name] for name in names)
    spacing = json.loads(content.graph.get("spacing", "[1, 1, 1]" if stack else "[1, 1]"))
    graph = new_graph(spacing if unit == "um" else None, len(spacing))
    numbered = all(re.fullmatch(r"-?\d+", name) for name in names)
    number_of = {name: int(name) if numbered else number for number, name in enumerate(names)}
    for name, data in content.nodes(data=True):
        position = tuple(float(data[axis]) for axis in AXES[-len(spacing) :])
        if not all(map(math.isfinite, position)):
            raise ValueError(f"node {name} is at {position}")
        graph.add_node(number_of[name], position=position, radius=float(data.get("radius", math.nan)))
    for u, v, data in content.edges(data=True):
        first, last = (v, u) if str(data.get("start", u)) == v else (u, v)
        line, radii = (json.loads(data.get(name, "null")) for name in ("path", "radii"))
        if line is None:
            line = [graph.nodes[number_of[name]]["position"] for name in (first, last)]
        if radii is not None:
            radii = [math.nan if value is None else value for value in radii]
        add_segment(graph, number_of[first], number_of[last], line, radii, float(data.get("score", math.nan)))
    return graph
