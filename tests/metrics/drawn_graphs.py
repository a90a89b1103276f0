"""Graphs for tests of graph metrics, and ways to write the same graph differently."""

import networkx as nx
import numpy as np

from biocnn.data.graphs import add_segment, new_graph, resampled


def graph_of(positions, edges, spacing=None):
    """A graph of nodes 0, 1, ... at `positions`, and edges (start, end, *points between)."""
    graph = new_graph(spacing, len(positions[0]) if positions else 2)
    graph.add_nodes_from((n, {"position": tuple(map(float, p)), "radius": np.nan}) for n, p in enumerate(positions))
    for start, end, *between in edges:
        add_segment(graph, start, end, [positions[start], *between, positions[end]])
    return graph


def line(*points, spacing=None):
    """A polyline between two end points."""
    return graph_of([points[0], points[-1]], [(0, 1, *points[1:-1])], spacing)


def random_graph(rng, dimensions=2, nodes=7, edges=8, size=40.0):
    """Bent edges between random nodes: loops, double edges, rings on their own and several components turn up."""
    positions = rng.uniform(0, size, (nodes, dimensions))
    ends = rng.integers(0, nodes - 1, (edges, 2))
    bends = [rng.uniform(0, size, (2, dimensions)) for _ in ends]
    drawn = [(int(u), int(v), *bend) for (u, v), bend in zip(ends, bends, strict=True)]
    return graph_of(positions.tolist(), [*drawn, (nodes - 1, nodes - 1, *rng.uniform(0, size, (3, dimensions)))])


def moved(graph, rng, amount):
    """The same with every node, and every point of a path, moved a little."""
    result = nx.MultiGraph(**graph.graph)
    shifts = {node: rng.normal(0, amount, len(data["position"])) for node, data in graph.nodes(data=True)}
    for node, data in graph.nodes(data=True):
        result.add_node(node, position=tuple(np.add(data["position"], shifts[node])), radius=np.nan)
    for u, v, data in graph.edges(data=True):
        start, end = (u, v) if data["start"] == u else (v, u)
        path = data["path"] + rng.normal(0, amount, data["path"].shape)
        path[0], path[-1] = result.nodes[start]["position"], result.nodes[end]["position"]
        add_segment(result, start, end, path)
    return result


def densified(graph, step):
    """The same with a node every `step`, and a point in the middle of every straight piece."""
    dense = resampled(graph, step)
    result = nx.MultiGraph(**graph.graph)
    result.add_nodes_from(dense.nodes(data=True))
    for u, v, data in dense.edges(data=True):
        start, end = (u, v) if data["start"] == u else (v, u)
        path = np.repeat(data["path"], 2, axis=0)[:-1]
        path[1::2] = (path[:-2:2] + path[2::2]) / 2
        add_segment(result, start, end, path)
    return result


def relabelled(graph, rng):
    """The same with other numbers for nodes, edges in another order, and half of them the other way round."""
    number = dict(zip(graph, (10 + 3 * rng.permutation(len(graph))).tolist(), strict=True))
    result = nx.MultiGraph(**graph.graph)
    for node in rng.permutation(list(graph)).tolist():
        result.add_node(number[node], **graph.nodes[node])
    edges = list(graph.edges(data=True))
    for index in rng.permutation(len(edges)):
        u, v, data = edges[index]
        start, end = (u, v) if data["start"] == u else (v, u)
        way = (start, end, data["path"]) if rng.random() < 0.5 else (end, start, data["path"][::-1])
        add_segment(result, number[way[0]], number[way[1]], way[2])
    return result


def united(*graphs, rings=True):
    """Graphs side by side, without single nodes; `rings`: with rings on their own."""
    result = nx.MultiGraph(**graphs[0].graph)
    for graph in graphs:
        shift = max(result, default=-1) + 1
        number = {node: shift + index for index, node in enumerate(graph)}
        for u, v, data in graph.edges(data=True):
            if u == v and graph.degree[u] == 2 and not rings:
                continue
            start, end = (u, v) if data["start"] == u else (v, u)
            result.add_nodes_from((number[node], graph.nodes[node]) for node in (u, v))
            add_segment(result, number[start], number[end], data["path"])
    return result
