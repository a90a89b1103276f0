"""From a mask to the graph of its centrelines, against skan and sknw: time, and loops that are kept.

    pip install skan sknw
    python benchmarks/skeleton_graph.py > docs/results/skeleton_graph.jsonl

Milliseconds are processor time of one thread, the least of all turns, which alternate: of skeleton and graph, and of
the graph alone. The skeleton is scikit-image's, but for `biocnn mask_graph`, which makes its own, finds the widths
along the paths besides, and leads them to the border. The mask is drawn: 2048 x 2048 pixels, branching vessels of 3 to
11 pixels.

Components, loops, and rings on their own are counted in the graphs, and beside them the right ones, by labels, the
Euler number, and neighbours of pixels: for this mask, and for a small hard case with two rings, a double segment, a
hole of one pixel, branch points side by side, blocks of pixels and a single pixel.

The last line is of 600 squares of 17 pixels that are torn into the mask, halved in the map, and bridged.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import cv2
import networkx as nx
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import euler_number
from skimage.morphology import skeletonize

from biocnn.delineation.bridging import bridge_gaps
from biocnn.delineation.pruning import prune_spurs
from biocnn.delineation.skeleton_graph import mask_graph, skeleton_graph
from biocnn.delineation.thinning import thinned

try:
    import sknw
    from skan import Skeleton, summarize
except ImportError as error:
    raise SystemExit(f"{error}; the peers are installed with: pip install skan sknw") from error

Mask = NDArray[np.bool_]

HARD = (
    "........................................",
    "..xxx......xxxx........x.......x.....x..",
    ".x...x....x....x......x.x.......x...x...",
    ".x...x..xxx....xxx...xx.xx.......x.x....",
    ".x...x....x....x......x.x......xxxxxxx..",
    "..xxx......xxxx........x..........x.....",
    "..................................x.....",
    "...x.....x...x......x...................",
    "..........x.x......x....xx........xx....",
    "...........x......x....xxx.......x..x...",
    ".xxxxxxxxxxxxxxxxxx....xx.......x....x..",
    "...x.......x......x..............x..x...",
    "...x.......x.......x..............xx....",
    "...xxxxxxxxx........x...................",
    "........................................",
)


def draw(size: int, seed: int, trees: int) -> Mask:
    """Trees of vessels that start anywhere, bend at random and branch twice."""
    random = np.random.default_rng(seed)
    mask = np.zeros((size, size), np.uint8)
    growing = [
        (random.uniform(0, size, 2), random.uniform(0, 2 * np.pi), random.uniform(5, 11), 0) for _ in range(trees)
    ]
    while growing:
        point, angle, width, generation = growing.pop()
        points = [point]
        for _ in range(int(random.integers(20, 50))):
            angle += random.normal(0, 0.12)
            point = point + 9 * np.array([np.cos(angle), np.sin(angle)])
            points.append(point)
        cv2.polylines(mask, [np.round(16 * np.array(points)).astype(np.int32)], False, 1, int(width), cv2.LINE_8, 4)
        if generation < 2:
            for side in (-1, 1):
                growing.append((point, angle + side * random.uniform(0.3, 0.9), max(0.75 * width, 3), generation + 1))
    return mask.astype(bool)


def of_skan(skeleton: Mask) -> nx.MultiGraph:
    table = summarize(Skeleton(skeleton), separator="_")
    return nx.MultiGraph(zip(table["node_id_src"], table["node_id_dst"], strict=True))


def of_sknw(skeleton: Mask) -> nx.MultiGraph:
    return sknw.build_sknw(skeleton.astype(np.uint8), multi=True)


def summed_up(skeleton: Mask) -> Any:
    return summarize(Skeleton(skeleton), separator="_")


def structure(graph: nx.MultiGraph) -> dict[str, int]:
    components = nx.number_connected_components(graph)
    rings = sum(len(nodes) == 1 and graph.degree(*nodes) == 2 for nodes in nx.connected_components(graph))
    loops = graph.number_of_edges() - graph.number_of_nodes() + components
    return {"components": components, "loops": loops, "rings": rings, "edges": graph.number_of_edges()}


def truth(skeleton: Mask) -> dict[str, int]:
    labels, components = ndimage.label(skeleton, np.ones((3, 3)))
    neighbours = ndimage.correlate(skeleton.astype(int), np.ones((3, 3), int), mode="constant") - 1
    rings = sum(bool((neighbours[labels == number] == 2).all()) for number in range(1, components + 1))
    return {"components": components, "loops": components - int(euler_number(skeleton, 2)), "rings": rings}


def milliseconds(function: Callable[[Mask], Any], mask: Mask, thin: bool = False) -> float:
    start = time.process_time()
    result = function(skeletonize(mask) if thin else mask)
    end = time.process_time()
    del result  # not within the time
    return 1e3 * (end - start)


def bridging(mask: Mask) -> dict[str, Any]:
    probability = 0.01 + 0.95 * ndimage.gaussian_filter(mask.astype(np.float32), 1.5)
    torn = mask.copy()
    inside = np.argwhere(mask)
    for row, column in inside[np.random.default_rng(0).choice(len(inside), 600, replace=False)]:
        square = slice(max(row - 8, 0), row + 9), slice(max(column - 8, 0), column + 9)
        torn[square] = False
        probability[square] *= 0.5
    graph = prune_spurs(mask_graph(torn, probability=probability))
    start = time.process_time()
    bridged = bridge_gaps(graph, probability, 30)
    seconds = time.process_time() - start
    return {
        "contestant": "biocnn bridge_gaps",
        "milliseconds": round(1e3 * seconds),
        "ends": sum(degree == 1 for _, degree in graph.degree()),
        "torn": structure(graph),
        "bridged": structure(bridged),
        "whole": structure(prune_spurs(mask_graph(mask))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--trees", type=int, default=33)
    parser.add_argument("--turns", type=int, default=25)
    options = parser.parse_args()
    mask = draw(options.size, 0, options.trees)
    skeleton, hard = skeletonize(mask), np.array([[pixel == "x" for pixel in row] for row in HARD])
    timed: dict[str, Callable[[Mask], Any]] = {
        "biocnn skeleton_graph": skeleton_graph,
        "skan": summed_up,
        "sknw": of_sknw,
    }
    thinning = {"skeleton of scikit-image": skeletonize, "skeleton of biocnn": thinned}
    alone: dict[str, list[float]] = {name: [] for name in timed}
    whole: dict[str, list[float]] = {name: [] for name in [*timed, "biocnn mask_graph", *thinning]}
    for turn in range(options.turns + 1):  # the first one compiles
        rows: dict[str, float] = {name: milliseconds(function, skeleton) for name, function in timed.items()}
        full = {name: milliseconds(function, mask, thin=True) for name, function in timed.items()}
        full["biocnn mask_graph"] = milliseconds(mask_graph, mask)
        full |= {name: milliseconds(function, mask) for name, function in thinning.items()}
        if turn:
            for name, value in rows.items():
                alone[name].append(value)
            for name, value in full.items():
                whole[name].append(value)
    graphs: dict[str, Callable[[Mask], nx.MultiGraph]] = {**timed, "skan": of_skan, "biocnn mask_graph": mask_graph}
    own = min(whole["biocnn skeleton_graph"])
    for name, times in whole.items():
        line: dict[str, Any] = {"contestant": name, "milliseconds": round(min(times), 1)}
        line["times_that_of_biocnn"] = round(min(times) / own, 2)
        if name in alone:
            line["graph_alone_milliseconds"] = round(min(alone[name]), 1)
            line["graph_alone_times_that_of_biocnn"] = round(min(alone[name]) / min(alone["biocnn skeleton_graph"]), 2)
        if name in graphs:
            line["structure"] = structure(graphs[name](mask if name == "biocnn mask_graph" else skeleton))
            if name != "biocnn mask_graph":
                line["hard_case"] = structure(graphs[name](hard))
        print(json.dumps(line), flush=True)
    line = {"contestant": "truth", "skeleton_pixels": int(skeleton.sum()), "structure": truth(skeleton)}
    print(json.dumps({**line, "hard_case": truth(hard)}))
    print(json.dumps(bridging(mask)))


if __name__ == "__main__":
    main()
