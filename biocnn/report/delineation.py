"""A tubularity map on disk, and the files that its graph becomes."""

from collections.abc import Sequence
from pathlib import Path

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from biocnn.data.graph_files import write_graph
from biocnn.data.graph_swc import write_swc
from biocnn.data.graphs import loop_count, total_length
from biocnn.data.images import read_image
from biocnn.errors import DataError
from biocnn.report.graph_overlay import write_graph_overlay
from biocnn.report.segments import write_segments


def read_map(path: str | Path) -> tuple[NDArray[np.float32], tuple[float, ...] | None]:
    """A tubularity map or a mask, as values in 0..1, and its pixel size in micrometres; None if the file has none.

    Whole numbers are divided by the largest of their type, so that 255 of an 8-bit map or mask is 1.

    Returns:
        (H, W) or (D, H, W) float32, and a number for each axis.

    Raises:
        DataError: if the file cannot be read, holds colours, or values that are neither whole numbers nor in 0..1.
        DatasetNotFoundError: if there is no such file.
    """
    image = read_image(path)
    values = image.array
    if "C" in image.axes:
        raise DataError(
            f"{path} has {values.shape[-1]} channels. A tubularity map has one: give the map of a prediction, such as "
            "RUN/maps/NAME.tif, or a mask."
        )
    if values.dtype.kind == "u":
        values = values / np.float32(np.iinfo(values.dtype).max)
    elif values.dtype.kind != "b" and not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
        raise DataError(
            f"{path} holds {values.dtype} from {values.min():g} to {values.max():g}; a map has probabilities "
            "from 0 to 1, without nan. Apply the sigmoid to logits."
        )
    size = image.pixel_size_um
    return values.astype(np.float32), size if size is None or len(size) == values.ndim else None


def check_targets(paths: Sequence[str | Path], overwrite: bool) -> None:
    """Make sure, before anything is computed, that files can be written.

    Raises:
        DataError: if a file is there and may not be overwritten, or a path is given twice.
    """
    names = [Path(path).resolve() for path in paths]
    if twice := {name for name in names if names.count(name) > 1}:
        raise DataError(f"{', '.join(map(str, sorted(twice)))} is named for two outputs. Give each a name of its own.")
    if not overwrite and (there := [str(path) for path in paths if Path(path).exists()]):
        raise DataError(f"{', '.join(there)} is there already. Choose another name, or pass --overwrite.")


def write_delineation(
    graph: nx.MultiGraph,
    graphs: Sequence[str | Path],
    table: str | Path | None = None,
    overlay: tuple[str | Path, NDArray] | None = None,
) -> list[str]:
    """Write a graph in all the forms that are wanted; each file is whole or not there.

    Args:
        graph: of any kind.
        graphs: files ``.graphml``, ``.swc``, ``.geojson`` or ``.json``.
        table: CSV with a row for each segment.
        overlay: PNG, and the image (H, W) or (H, W, C) that the graph is drawn on.

    Returns:
        A line about each file.

    Raises:
        DataError: if a suffix is not known, or the image does not fit the graph.
    """
    said = []
    for path in graphs:
        if Path(path).suffix.lower() == ".swc":
            cut = write_swc(path, graph)
            said.append(f"{path}" + (f" (a tree format: {cut} loop(s) cut, noted in its head)" if cut else ""))
        else:
            write_graph(path, graph)
            said.append(str(path))
    if table is not None:
        write_segments(table, graph)
        said.append(str(table))
    if overlay is not None:
        write_graph_overlay(overlay[0], overlay[1], graph)
        said.append(str(overlay[0]))
    return said


def describe_graph(graph: nx.MultiGraph) -> str:
    """One line: segments, branch points, ends, loops and length, with the unit."""
    degrees = dict(graph.degree())
    branches = sum(degree > 2 for degree in degrees.values())
    ends = sum(degree == 1 for degree in degrees.values())
    return (
        f"{graph.number_of_edges():,} segments, {branches:,} branch points, {ends:,} ends, {loop_count(graph):,} "
        f"loops, {nx.number_connected_components(graph):,} components, "
        f"length {total_length(graph):,.1f} {graph.graph['unit']}"
    )
