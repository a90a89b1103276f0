"""Random graphs of every kind, and how far two graphs are from being the same."""

import math

import networkx as nx
import numpy as np

from biocnn.data.graphs import add_segment, merge_chains, new_graph


def random_graph(seed: int, spacing: tuple[float, ...] | None = None, dimensions: int = 2) -> nx.MultiGraph:
    """Trees, loops, parallel segments, rings on a node, a free ring of two segments and single nodes.

    Node numbers have gaps, paths run either way, some radii and scores are not known. Where a segment ends, its radius
    is that of the node.
    """
    rng = np.random.default_rng(seed)
    graph = new_graph(spacing, dimensions)
    dimensions = len(graph.graph["spacing"])
    numbers = rng.permutation(40)[:14].tolist()
    for number in numbers:
        radius = math.nan if rng.random() < 0.2 else float(rng.uniform(0.5, 3))
        graph.add_node(number, position=tuple(rng.uniform(0, 50, dimensions).tolist()), radius=radius)
    pairs = [(numbers[k], numbers[rng.integers(k)]) for k in range(1, 9)]  # a tree of nodes 0..8
    pairs += [tuple(rng.choice(numbers[:9], 2, replace=False).tolist()) for _ in range(3)]  # loops
    pairs += [pairs[0], pairs[0][::-1], (numbers[4], numbers[4]), (numbers[4], numbers[4])]
    pairs += [(numbers[9], numbers[10]), (numbers[10], numbers[9]), (numbers[11], numbers[11])]
    for start, end in pairs:
        inner = rng.uniform(0, 50, (rng.integers(1 if start == end else 0, 6), dimensions))
        path = np.vstack([graph.nodes[start]["position"], inner, graph.nodes[end]["position"]])
        radius = rng.uniform(0.5, 3, len(path))
        radius[rng.random(len(path)) < 0.2] = math.nan
        radius[[0, -1]] = [graph.nodes[start]["radius"], graph.nodes[end]["radius"]]
        score = math.nan if rng.random() < 0.3 else float(rng.random())
        add_segment(graph, start, end, path, radius, score)
    return graph


def same_numbers(one: nx.MultiGraph, other: nx.MultiGraph) -> bool:
    """Whether two graphs are equal to the last digit, with their numbers of nodes, whatever the order."""
    if one.graph != other.graph or set(one) != set(other):
        return False
    for node, data in one.nodes(data=True):
        again = other.nodes[node]
        if data["position"] != again["position"] or not _equal(data["radius"], again["radius"]):
            return False
    return sorted(map(_key, one.edges(data=True))) == sorted(map(_key, other.edges(data=True)))


def _equal(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


def _key(edge: tuple) -> tuple:
    u, v, data = edge
    numbers = [data["path"], data["radius"], [data["length"], data["width"], data["score"]]]
    end = v if data["start"] == u else u
    return (data["start"], end, *(str(np.asarray(item).tolist()) for item in numbers))


def descriptions(graph: nx.MultiGraph, score: bool = True) -> list[np.ndarray]:
    """A row of numbers for every segment and single node of the merged graph, in an order that numbers do not set.

    A segment: length, width and score (-1 for nan), then the points of its path with their radii, from the end that is
    first by its numbers; a ring of no other segment, which may begin anywhere, is turned to its smallest point.
    """
    rows = []
    merged = merge_chains(graph)
    for node, data in merged.nodes(data=True):
        if merged.degree(node) == 0:
            rows.append(np.array([*data["position"], data["radius"]]))
    for u, v, data in merged.edges(data=True):
        points = np.column_stack([data["path"], data["radius"]])
        if u == v and merged.degree(u) == 2:
            points = points[:-1]
            points = np.roll(points, -int(np.lexsort(points[:, :-1].T[::-1])[0]), axis=0)
            ways = [points, np.vstack([points[:1], points[:0:-1]])]
        else:
            ways = [points, points[::-1]]
        chosen = min(ways, key=lambda way: np.round(np.nan_to_num(way, nan=-1), 3).tolist())
        measures = [data["length"], data["width"], data["score"] if score else 0.0]
        rows.append(np.concatenate([measures, chosen.ravel()]))
    return sorted((np.nan_to_num(row, nan=-1) for row in rows), key=lambda row: (len(row), np.round(row, 3).tolist()))


def assert_same(one: nx.MultiGraph, other: nx.MultiGraph, within: float, score: bool = True) -> None:
    """The same graph but for numbers of nodes and chains; each number within a distance."""
    assert one.graph["unit"] == other.graph["unit"]
    np.testing.assert_allclose(one.graph["spacing"], other.graph["spacing"], rtol=1e-12)
    first, second = descriptions(one, score), descriptions(other, score)
    assert [len(row) for row in first] == [len(row) for row in second]
    for row, again in zip(first, second, strict=True):
        np.testing.assert_allclose(row, again, rtol=0, atol=within)
