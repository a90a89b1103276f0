"""Smooth paths: a path from pixel to pixel is up to 8 % longer than the line that it follows."""

import networkx as nx
import numpy as np
from scipy import ndimage

from biocnn.data.graphs import add_segment

SMOOTHING = 2.0  # points: what is left of the 8 % then is 1 %


def smooth_paths(graph: nx.MultiGraph, width: float = SMOOTHING) -> nx.MultiGraph:
    """A copy with paths smoothed along their length, by a Gaussian; nodes stay where they are.

    Args:
        graph: with a point for each pixel of a path, as those of skeletons and of minimal paths.
        width: standard deviation in points, above 0.

    Raises:
        ValueError: if the width is not above 0.
    """
    if not width > 0:
        raise ValueError(f"width must be above 0, received {width}.")
    result = nx.MultiGraph(**graph.graph)
    result.add_nodes_from((node, dict(data)) for node, data in graph.nodes(data=True))
    for one, two, data in graph.edges(data=True):
        path = data["path"]
        # Mirrored about its ends, a path keeps them.
        reach = min(int(4 * width), len(path) - 1)
        longer = np.pad(path, ((reach, reach), (0, 0)), mode="reflect", reflect_type="odd")
        smooth = ndimage.gaussian_filter1d(longer, width, axis=0, mode="nearest")[reach : len(longer) - reach]
        smooth[0], smooth[-1] = path[0], path[-1]
        end = two if data["start"] == one else one
        add_segment(result, data["start"], end, smooth, data["radius"], data["score"])
    return result
