"""From a tubularity map to a graph by the best selection of candidate paths: samples, candidates, weights, selection.

After Türetken et al.: Reconstructing curvilinear networks using path classifiers and integer programming. TPAMI 2016.
Where a map at its threshold has gaps, the skeleton has them; here a gap is closed if that is worth more than it costs.
"""

from collections.abc import Callable, Sequence

import networkx as nx
import numpy as np
from numpy.typing import ArrayLike, NDArray

from biocnn.data.graphs import add_segment, mean_along, new_graph
from biocnn.delineation.candidates import GAP, Candidates, candidate_paths, half_widths
from biocnn.delineation.pruning import prune_spurs
from biocnn.delineation.samples import SAMPLE_DISTANCE, checked_map, sample_points
from biocnn.delineation.selection import Selection, select_paths
from biocnn.delineation.smoothing import smooth_paths
from biocnn.delineation.weights import component_price, continuation_reward, log_odds, with_continuations

Floats = NDArray[np.float64]

SPUR = 5.0  # pixels: a branch that is not longer is the noise of a rim


def delineate_globally(
    probability: ArrayLike,
    spacing: Sequence[float] | None = None,
    loops: bool = True,
    time_limit: float = 60.0,
    weights: Callable[[Candidates], ArrayLike] | None = None,
    threshold: float = 0.5,
    gap: float | None = None,
    distance: float | None = None,
) -> tuple[nx.MultiGraph, Selection]:
    """The graph of the structures in a tubularity map.

    Args:
        probability: (H, W) or (D, H, W), 0..1.
        spacing: micrometres per pixel along each axis; None for a graph in pixels.
        loops: whether structures may close loops; without, the graph is a forest.
        time_limit: seconds, for the selection.
        weights: of the candidates, (M,), below 0 for those to be selected; None for their log-odds, with continuations
            of loose ends (:mod:`biocnn.delineation.weights`).
        threshold: where structures are evident, above 0 and below 1.
        gap: longest gap that is closed, in the unit of the graph; None for 15 pixels. As the price of a component, it
            also is the length that a structure on its own has to have, if its probability is 0.98 or more.
        distance: between samples along a structure, in the same unit; None for 10 pixels.

    Returns:
        The graph, of end points and branch points with smooth paths between them, without branches of up to 5 pixels
        or up to the half width of what they branch off; and the selection it was made from. An empty map has an empty
        graph.

    Raises:
        DataError: if the map or the spacing cannot be used.
        ValueError: if a number is out of its range.
    """
    values, steps = checked_map(probability, spacing)
    side = float(steps.min())
    gap = GAP * side if gap is None else gap
    distance = SAMPLE_DISTANCE * side if distance is None else distance
    samples = sample_points(values, spacing, threshold, distance)
    candidates = candidate_paths(values, samples, spacing, threshold, gap, max(gap, 2 * distance))
    price = component_price(candidates.spacing.tolist(), gap)
    if weights is None:
        reward = continuation_reward(candidates.spacing.tolist(), gap)
        worth = with_continuations(candidates, log_odds(candidates, values, threshold), reward)
    else:
        worth = np.asarray(weights(candidates), np.float64)
    selection = select_paths(candidates, worth, loops, price, time_limit)
    graph = graph_of(candidates, selection.chosen, values, spacing, threshold)
    return smooth_paths(prune_spurs(prune_spurs(graph), SPUR * side)), selection


def graph_of(
    candidates: Candidates,
    chosen: Sequence[int] | NDArray[np.int64],
    probability: ArrayLike,
    spacing: Sequence[float] | None = None,
    threshold: float = 0.5,
) -> nx.MultiGraph:
    """The graph of chosen candidates: radii as of :func:`half_widths`, nan below the threshold; score the mean of p."""
    values, steps = checked_map(probability, spacing)
    graph = new_graph(spacing, values.ndim)
    width = half_widths(values, spacing, threshold) if len(chosen) else np.zeros(values.shape)
    width = np.where(values >= threshold, width, np.nan)
    for node in np.unique(candidates.ends[chosen]).tolist():
        pixel = candidates.nodes[node]
        graph.add_node(node, position=tuple((pixel * steps).tolist()), radius=float(width[tuple(pixel)]))
    for number in chosen:
        path, (start, end) = candidates.paths[number], candidates.ends[number].tolist()
        along, points = tuple(path.T), path * steps
        lengths = np.linalg.norm(np.diff(points, axis=0), axis=1)
        score = mean_along(values[along].astype(np.float64), lengths)
        add_segment(graph, start, end, points, width[along], score)
    return graph
