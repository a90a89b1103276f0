"""One call from a tubularity map to a graph, by any of the delineators."""

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import networkx as nx
import numpy as np
from numpy.typing import ArrayLike

from biocnn.delineation.bridging import bridge_gaps
from biocnn.delineation.candidates import GAP, Candidates
from biocnn.delineation.globally import delineate_globally
from biocnn.delineation.pruning import drop_small, prune_spurs
from biocnn.delineation.samples import checked_map
from biocnn.delineation.skeleton_graph import mask_graph
from biocnn.delineation.smoothing import smooth_paths
from biocnn.errors import DataError

Method = Literal["global", "bridged", "skeleton"]
METHODS: tuple[Method, ...] = get_args(Method)


def delineate(
    probability: ArrayLike,
    pixel_size: Sequence[float] | None = None,
    method: Method = "global",
    threshold: float = 0.5,
    gap: float | None = None,
    shortest: float = 0.0,
    loops: bool = True,
    time_limit: float = 60.0,
    weights: Callable[[Candidates], ArrayLike] | None = None,
) -> nx.MultiGraph:
    """The graph of the structures in a tubularity map: their centrelines, branch points, lengths and widths.

    Args:
        probability: (H, W) or (D, H, W), 0..1; a mask is a map of 0 and 1.
        pixel_size: micrometres per pixel along each axis; None for a graph in pixels.
        method: ``"skeleton"``, the skeleton of the map at the threshold, without spurs; ``"bridged"``, that with gaps
            closed by paths of least cost; ``"global"``, the best selection of candidate paths, see
            :func:`~biocnn.delineation.globally.delineate_globally`.
        threshold: where structures are evident, above 0 and below 1.
        gap: longest gap that is closed, in the unit of the graph; None for 15 pixels. Not used by ``"skeleton"``.
        shortest: components of a smaller total length are left out, in the unit of the graph.
        loops: whether structures may close loops; False is for the global method, which then makes a forest.
        time_limit: seconds for the selection of the global method, which then falls back on a heuristic.
        weights: of the candidates of the global method, see :func:`~biocnn.delineation.globally.delineate_globally`;
            None takes them from the map.

    Returns:
        A graph as :mod:`biocnn.data.graphs` describes it; without nodes, if nothing reaches the threshold. Paths are
        smoothed, as lengths of steps from pixel to pixel are too large. Its attribute ``method`` is the method, and
        ``optimality_gap`` that of the global one: how far, relative to the best possible cost, the selection may be
        from it.

    Raises:
        DataError: if the map has another number of axes, holds nan or values outside 0..1, or the pixel size does not
            fit it.
        ValueError: if the method is not known, or a number is out of its range.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, received {method!r}.")
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must be above 0 and below 1, received {threshold}.")
    for name, length in (("gap", gap), ("shortest", shortest)):
        if length is not None and not 0 <= length < math.inf:
            raise ValueError(f"{name} must be a length of 0 or more, received {length}.")
    if not loops and method != "global":
        raise ValueError(f"Only the global method makes trees; received loops=False for {method!r}.")
    if weights is not None and method != "global":
        raise ValueError(f"Only the global method weighs candidates; received weights for {method!r}.")
    if pixel_size is not None and len(pixel_size) != np.ndim(probability):
        raise DataError(
            f"pixel_size: expected {np.ndim(probability)} numbers, one for each axis of the map, received {pixel_size}."
        )
    values, steps = checked_map(probability, pixel_size)
    if method == "global":
        graph, selection = delineate_globally(values, pixel_size, loops, time_limit, weights, threshold, gap)
        graph.graph["optimality_gap"] = selection.gap
    else:
        graph = prune_spurs(mask_graph(np.asarray(values >= threshold), pixel_size, values))
        if method == "bridged":
            graph = prune_spurs(bridge_gaps(graph, values, GAP * float(steps.min()) if gap is None else gap))
        graph = smooth_paths(graph)
    if shortest > 0:
        graph = drop_small(graph, shortest)
    graph.graph["method"] = method
    return graph
