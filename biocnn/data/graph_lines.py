"""Lines that were drawn one by one, as one graph.

Who draws vessels or roads with a mouse hits the end of another line by a few pixels. Within a tolerance,

- ends that are near each other become one node, at their mean; so do ends of a chain of near ones;
- an end near the inside of a line (a T) splits that line there, which then passes through the end.

Lines that cross without an end there stay apart: one may pass over the other. A piece of line whose two ends become the
same node is a ring, or, when it is no longer than twice the tolerance, is left out.
"""

from collections.abc import Sequence
from itertools import pairwise

import networkx as nx
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from biocnn.data.graphs import Floats, add_segment, merge_chains, new_graph


def join_lines(lines: Sequence[Floats], tolerance: float = 1.0) -> nx.MultiGraph:
    """A graph in pixels of lines that were drawn apart; two that meet at their ends are one segment.

    Args:
        lines: one or more, each (P, D), P >= 2, in pixels, all with the same D.
        tolerance: in pixels.
    """
    ends = np.concatenate([line[[0, -1]] for line in lines])
    pairs = cKDTree(ends).query_pairs(tolerance, output_type="ndarray")
    links = coo_array((np.ones(len(pairs)), pairs.T), shape=(len(ends), len(ends)))
    node_of = connected_components(links, directed=False)[1]
    places = np.stack([np.bincount(node_of, axis) / np.bincount(node_of) for axis in ends.T], axis=1)
    graph = new_graph(dimensions=ends.shape[1])
    for node, place in enumerate(places.tolist()):
        graph.add_node(node, position=tuple(place), radius=np.nan)
    tree = cKDTree(places)
    for line, (first, last) in zip(lines, node_of.reshape(-1, 2).tolist(), strict=True):
        along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
        stops = [(0.0, first), *_touches(line, along, first, last, tree, tolerance), (float(along[-1]), last)]
        for (low, start), (high, end) in pairwise(stops):
            if start != end or high - low > 2 * tolerance:
                inner = line[(along > low) & (along < high)]
                add_segment(graph, start, end, np.concatenate([places[[start]], inner, places[[end]]]))
    graph.remove_nodes_from(list(nx.isolates(graph)))
    return merge_chains(graph)


def _touches(
    line: Floats, along: Floats, first: int, last: int, tree: cKDTree, tolerance: float
) -> list[tuple[float, int]]:
    """Where nodes touch the inside of a line (P, D): arc lengths, ascending, and nodes.

    Of a stretch in which a node is near the line it is the nearest point. A node is near the line also at the line's
    own end, if it is that end: this is no touch.
    """
    start, step, length = line[:-1], np.diff(line, axis=0), np.diff(along)
    near = tree.query_ball_point(start + step / 2, length / 2 + tolerance)
    part = np.repeat(np.arange(len(start)), [len(nodes) for nodes in near])
    nodes = np.concatenate([np.asarray(found, dtype=np.int64) for found in near])
    offset = np.asarray(tree.data)[nodes] - start[part]
    squared = np.maximum(length[part] ** 2, np.finfo(np.float64).tiny)
    share = np.clip((offset * step[part]).sum(axis=1) / squared, 0, 1)
    distance = np.linalg.norm(offset - share[:, None] * step[part], axis=1)
    arc = along[part] + share * length[part]
    kept = np.flatnonzero(distance <= tolerance)
    kept = kept[np.lexsort((arc[kept], nodes[kept]))]
    breaks = np.flatnonzero((np.diff(nodes[kept]) != 0) | (np.diff(arc[kept]) > 2 * tolerance)) + 1
    found = []
    for stretch in np.split(kept, breaks):
        if not len(stretch):
            continue
        node = int(nodes[stretch[0]])
        at_start = node == first and arc[stretch[0]] <= 2 * tolerance
        at_end = node == last and arc[stretch[-1]] >= along[-1] - 2 * tolerance
        if not (at_start or at_end):
            found.append((float(arc[stretch[np.argmin(distance[stretch])]]), node))
    return sorted(found)
