"""Twigs and crumbs: what thinning and noise leave on a graph, and how to take it off."""

import heapq

import networkx as nx

from biocnn.data.graphs import join_at, merge_chains, total_length


def prune_spurs(graph: nx.MultiGraph, shortest: float | None = None) -> nx.MultiGraph:
    """A copy without spurs: segments between an end point and a branch point that are too short.

    The shortest spur goes first. Where only two segments are left at its branch point they become one, so that of two
    short twigs of a fork one stays, as the continuation, if it is then long enough, or no spur any more. Segments
    between two end points and rings are kept, whatever their length, and so is every loop; see :func:`drop_small`.

    Args:
        graph: in which nodes that two segments meet at are no branch points.
        shortest: length below which a spur goes, in the unit of the graph. None takes the radius at the branch point,
            below which a spur ends within the structure that it branches from, and is an artefact of thinning; where
            that is not known the spur stays.

    Raises:
        ValueError: if `shortest` is negative or nan.
    """
    if shortest is not None and not shortest >= 0:
        raise ValueError(f"shortest: expected a length, 0 or more, received {shortest}")
    result = merge_chains(graph)
    spurs = [(length, node) for node in result if (length := _spur_length(result, node)) is not None]
    heapq.heapify(spurs)
    while spurs:
        length, end = heapq.heappop(spurs)
        if end not in result or _spur_length(result, end) != length:
            continue  # gone, or part of a longer segment now
        (branch,) = result[end]
        limit = result.nodes[branch]["radius"] if shortest is None else shortest
        if not length < limit:
            continue
        result.remove_node(end)
        if result.degree(branch) == 2 and branch not in result[branch]:
            for node in join_at(result, branch):
                if (longer := _spur_length(result, node)) is not None:
                    heapq.heappush(spurs, (longer, node))
    return result


def _spur_length(graph: nx.MultiGraph, node: int) -> float | None:
    """Length of the spur that ends at a node; None if it is no end point, or its segment ends nowhere else."""
    if graph.degree(node) != 1:
        return None
    ((_, other, length),) = graph.edges(node, data="length")
    return float(length) if graph.degree(other) > 2 else None


def drop_small(graph: nx.MultiGraph, shortest: float) -> nx.MultiGraph:
    """A copy without components whose segments have a total length below `shortest`, in the unit of the graph.

    A single node has length 0.

    Raises:
        ValueError: if `shortest` is negative or nan.
    """
    if not shortest >= 0:
        raise ValueError(f"shortest: expected a length, 0 or more, received {shortest}")
    kept = [
        node
        for nodes in nx.connected_components(graph)
        if total_length(graph.subgraph(nodes)) >= shortest
        for node in nodes
    ]
    return graph.subgraph(kept).copy()
