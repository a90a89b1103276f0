"""Drawn networks with gaps: the graph of `delineate_globally` against the plain skeleton of scikit-image.

    python benchmarks/synthetic_delineation.py > docs/results/synthetic_delineation.jsonl

Networks of 256 x 256 px with crossings, specks and noise (`drawn_network`), trees and networks with loops, 10 seeds
each; gaps of 0 to 12 px in every second curve. The skeleton is that of the map at 0.5. `recall` is the share of the
true length within 3 px of the result, `precision` the share of the result within 3 px of the truth; `paths` is the
share of pairs of true end points and branch points, connected in the truth, between which the shortest path of
the result is as long as the true one within 10 %, both nodes being at most 5 px away from it. Means over networks.

`--time` is for the last lines: a network of 565 x 584 px, and one of 2048 x 2048, on the threads that are allowed,
after compilation, with what is known of how good the selection is.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import networkx as nx
import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import dijkstra
from scipy.spatial import KDTree
from skimage.morphology import skeletonize

from biocnn.data.drawn_networks import drawn_network
from biocnn.delineation.globally import delineate_globally

NEAR, AT_NODE, TOLERANCE = 3.0, 5.0, 0.1

Net = tuple[np.ndarray, sparse.csr_array]  # points (N, D), and lengths between neighbours


def net_of_graph(graph: nx.MultiGraph) -> Net:
    """The points of all paths, those of a node once."""
    points = [data["position"] for _, data in graph.nodes(data=True)]
    index = {node: number for number, node in enumerate(graph.nodes)}
    rows, columns, lengths = [], [], []
    for one, two, data in graph.edges(data=True):
        path = data["path"]
        inner = list(range(len(points), len(points) + len(path) - 2))
        points += path[1:-1].tolist()
        start = data["start"]
        chain = [index[start], *inner, index[two if start == one else one]]
        rows += chain[:-1]
        columns += chain[1:]
        lengths += np.linalg.norm(np.diff(path, axis=0), axis=1).tolist()
    return np.array(points).reshape(-1, 2), shortest(len(points), rows, columns, lengths)


def net_of_skeleton(probability: np.ndarray) -> Net:
    """The pixels of the skeleton, with steps to their 8 neighbours."""
    points = np.argwhere(skeletonize(probability >= 0.5)).astype(np.float64)
    pairs = KDTree(points).query_pairs(1.5, output_type="ndarray")
    lengths = np.linalg.norm(points[pairs[:, 0]] - points[pairs[:, 1]], axis=1)
    return points, shortest(len(points), pairs[:, 0].tolist(), pairs[:, 1].tolist(), lengths.tolist())


def shortest(count: int, rows: list[int], columns: list[int], lengths: list[float]) -> sparse.csr_array:
    """A matrix of lengths, of two edges between the same points the shorter one."""
    order = np.argsort(-np.array(lengths), kind="stable")
    matrix = sparse.dok_array((count, count))
    for number in order.tolist():
        matrix[rows[number], columns[number]] = max(lengths[number], 1e-9)
    return matrix.tocsr()


def share_near(points: np.ndarray, matrix: sparse.csr_array, others: np.ndarray) -> float:
    """The share of the length of a net within NEAR of the points of another."""
    if not len(others):
        return 0.0
    edges = matrix.tocoo()
    middle = (points[edges.row] + points[edges.col]) / 2
    near = KDTree(others).query(middle)[0] <= NEAR
    return float(edges.data[near].sum() / edges.data.sum())


def scores(result: Net, truth: nx.MultiGraph) -> dict[str, float]:
    points, matrix = net_of_graph(truth)
    count = truth.number_of_nodes()
    true = dijkstra(matrix, directed=False, indices=np.arange(count))[:, :count]
    one, two = np.nonzero(np.triu(np.isfinite(true), 1))
    away, at = KDTree(result[0]).query(points[:count])
    nodes, back = np.unique(at, return_inverse=True)
    found = dijkstra(result[1], directed=False, indices=nodes)[:, nodes][back[one], back[two]]
    right = np.abs(found - true[one, two]) <= TOLERANCE * true[one, two]
    right &= (away[one] <= AT_NODE) & (away[two] <= AT_NODE)
    return {
        "recall": share_near(points, matrix, result[0]),
        "precision": share_near(*result, points),
        "paths": float(right.mean()),
    }


def races(seeds: range) -> None:
    for loops in (False, True):
        kinds: dict[str, Callable[[np.ndarray], Net]] = {
            "delineate_globally": lambda p, loops=loops: net_of_graph(delineate_globally(p, loops=loops)[0]),
            "skeletonize": net_of_skeleton,
        }
        for gap in (0, 4, 8, 12):
            networks = [drawn_network(seed, loops=loops, gap=gap) for seed in seeds]
            for name, method in kinds.items():
                every = [scores(method(network.probability), network.graph) for network in networks]
                line = {"contestant": name, "networks": "loops" if loops else "trees", "gap_px": gap}
                line |= {key: round(statistics.mean(one[key] for one in every), 4) for key in every[0]}
                line |= {"least_paths": round(min(one["paths"] for one in every), 4), "count": len(every)}
                print(json.dumps(line), flush=True)


def times() -> None:
    delineate_globally(drawn_network(0).probability)
    for size in ((584, 565), (2048, 2048)):
        for loops in (True, False):
            network = drawn_network(0, size, loops=loops, gap=12, crossings=20, specks=size[0] // 10)
            start = time.perf_counter()
            graph, selection = delineate_globally(network.probability, loops=loops)
            line = {
                "contestant": "delineate_globally",
                "shape": size,
                "loops": loops,
                "seconds": round(time.perf_counter() - start, 2),
                "selection_seconds": round(selection.seconds, 2),
                "method": selection.method,
                "optimality_gap": float(f"{selection.gap:.1e}"),
                "segments": graph.number_of_edges(),
            }
            print(json.dumps(line), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--time", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    races(range(options.first, options.first + options.seeds))
    if options.time:
        times()


if __name__ == "__main__":
    main()
