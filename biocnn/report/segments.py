"""The table of a graph: a row for each segment, as CSV."""

import math
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np

from biocnn.data.graphs import Floats, total_length
from biocnn.inference.tables import write_csv

AXES = ("plane", "row", "column")


def number_components(graph: nx.MultiGraph) -> dict[int, int]:
    """The component of every node: 1 is the longest; of equal ones, that with the lowest node comes first."""
    components = sorted(
        nx.connected_components(graph), key=lambda nodes: (-total_length(graph.subgraph(nodes)), min(nodes))
    )
    return {node: number for number, nodes in enumerate(components, 1) for node in nodes}


def segment_columns(graph: nx.MultiGraph) -> list[str]:
    """Names of the columns of :func:`segment_rows`, with the unit of the graph in them."""
    unit, axes = graph.graph["unit"], AXES[-len(graph.graph["spacing"]) :]
    ends = [f"{end}_{axis}_{unit}" for end in ("start", "end") for axis in axes]
    angles = ["angle_deg"] if len(axes) == 2 else ["angle_deg", "inclination_deg"]
    measures = [f"length_{unit}", "tortuosity", f"width_{unit}", *angles, "score"]
    return ["segment", "component", "start_node", "end_node", "free_ends", *measures, *ends]


def segment_rows(graph: nx.MultiGraph) -> list[dict[str, Any]]:
    """A row for each segment; what is not known or not defined is empty.

    `segment`: 1, 2, ... in the order of ``graph.edges``, as in :func:`biocnn.data.graph_geojson.write_geojson`.
    `component`: of :func:`number_components`. `free_ends`: how many of its ends, 0, 1 or 2, no other segment meets.
    `length`, `width` (mean along the path) and the places of both ends: in the unit of the graph, which the columns
    name. `tortuosity`: length through distance of the ends, 1 for a straight one. `angle_deg`: of the chord from end to
    end in the plane of the picture, 0 along a row and counter-clockwise as one sees it, so that 90 is along a column;
    0 or more and less than 180, as a segment has no direction. `inclination_deg`, of three axes only: of the chord to
    that plane, 0 to 90. A ring has no chord; nor has a chord across the planes an angle. `score`: mean
    probability.
    """
    component_of = number_components(graph)
    names = segment_columns(graph)
    rows = []
    for number, (u, v, data) in enumerate(graph.edges(data=True), 1):
        start, end = data["start"], v if data["start"] == u else u
        path: Floats = data["path"]
        chord = path[-1] - path[0]
        distance = float(np.linalg.norm(chord))
        ring = start == end or distance == 0
        angles = _angles(chord)[: len(chord) - 1]
        values = [
            number,
            component_of[start],
            start,
            end,
            0 if start == end else sum(graph.degree(node) == 1 for node in (start, end)),
            data["length"],
            math.nan if ring else data["length"] / distance,
            data["width"],
            *((math.nan,) * len(angles) if ring else angles),
            data["score"],
            *path[0].tolist(),
            *path[-1].tolist(),
        ]
        rows.append({name: _cell(value) for name, value in zip(names, values, strict=True)})
    return rows


def _angles(chord: Floats) -> tuple[float, float]:
    """Angle in the plane of rows and columns, [0, 180), and to it, [0, 90], in degrees; nan where there is none."""
    *planes, row, column = chord.tolist()
    flat = math.hypot(row, column)
    angle = math.degrees(math.atan2(-row, column)) % 180 if flat else math.nan
    # A tiny negative angle is 180 after rounding.
    return 0.0 if angle == 180 else angle, math.degrees(math.atan2(abs(planes[0]), flat)) if planes else math.nan


def _cell(value: float) -> float | int | str:
    if isinstance(value, int):
        return value
    return round(float(value), 4) if math.isfinite(value) else ""


def write_segments(path: str | Path, graph: nx.MultiGraph) -> None:
    """Write :func:`segment_rows` as CSV, four decimals; a graph without segments leaves the names of the columns.

    Args:
        path: target file ``.csv``; its folder is made when missing.
        graph: of any kind.
    """
    write_csv(path, segment_rows(graph), segment_columns(graph))
