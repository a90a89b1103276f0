"""A tubularity map on disk, and the files that its graph becomes."""

import math
from collections.abc import Mapping, Sequence
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

_WIDE = 600  # px, at least, of an overlay: smaller images are enlarged, or one would see nothing of the lines


def read_map(path: str | Path) -> tuple[NDArray[np.float32], tuple[float, ...] | None]:
    """A tubularity map or a mask, as values in 0..1, and its pixel size in micrometres; None if the file has none.

    Whole numbers are divided by the largest of their type, so that 255 of an 8-bit map or mask is 1; those of a mask of
    0 and 1 are taken as they are.

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
    if values.dtype.kind in "ui" and values.size and values.min() >= 0:
        values = values / np.float32(1 if values.max() <= 1 else np.iinfo(values.dtype).max)
    elif values.dtype.kind != "b" and not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
        raise DataError(
            f"{path} holds {values.dtype} from {values.min():g} to {values.max():g}; a map has probabilities "
            "from 0 to 1, without nan. Apply the sigmoid to logits."
        )
    size = image.pixel_size_um
    return values.astype(np.float32), size if size is None or len(size) == values.ndim else None


def check_targets(
    targets: Mapping[str, tuple[str | None, Sequence[str]]], inputs: Sequence[str], overwrite: bool
) -> None:
    """Make sure, before anything is computed, that files can be written.

    Args:
        targets: by option, the path, None if it is not wanted, and the suffixes that it may have.
        inputs: files that are read.
        overwrite: whether files that are there may be replaced; never one that is read.

    Raises:
        DataError: if a suffix is another one, a file is there and may not be replaced, or two options name one file.
    """
    seen = {Path(path).resolve(): "an input" for path in inputs}
    for option, (path, suffixes) in targets.items():
        if path is None:
            continue
        if Path(path).suffix.lower() not in suffixes:
            raise DataError(f"{option} {path}: expected a name that ends in {' or '.join(suffixes)}.")
        place = Path(path).resolve()
        if place in seen:
            raise DataError(f"{option} {path} is {seen[place]} as well. Give it a name of its own.")
        if place.exists() and not overwrite:
            raise DataError(f"{option} {path} is there already. Choose another name, or pass --overwrite.")
        seen[place] = f"that of {option}"


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
        picture = overlay[1]
        scale = max(1, math.ceil(_WIDE / picture.shape[-1 if picture.ndim != 3 or picture.shape[-1] > 4 else 1]))
        write_graph_overlay(overlay[0], picture, graph, scale=scale)
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
