"""Drawn networks with a known graph, and tubularity maps of them with gaps, crossings, specks and noise.

For tests and benchmarks of delineation, in 2-D and 3-D.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import networkx as nx
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree

from biocnn.data.graphs import add_segment, merge_chains, new_graph

Floats = NDArray[np.float64]

CELL = 48.0  # pixels between the nodes of the grid that networks are drawn on
NODE_CLEAR = 10.0  # pixels: no gap begins nearer to a node
CROSSING_CLEAR = 8.0  # pixels: no curve that crosses another is nearer to a third
STEEPNESS = 2.0  # logits per pixel at the rim of a structure
SURE = 4.0  # logits: no pixel is surer, before noise


@dataclass(frozen=True)
class DrawnNetwork:
    """A network.

    Attributes:
        probability: (H, W) or (D, H, W) float32, a tubularity map.
        graph: the truth, of end points and branch points, through all gaps.
        gaps: number of gaps in the map.
    """

    probability: NDArray[np.float32]
    graph: nx.MultiGraph
    gaps: int


def drawn_network(
    seed: int,
    shape: Sequence[int] = (256, 256),
    loops: bool = True,
    gap: float = 0.0,
    crossings: int = 3,
    specks: int = 10,
    noise: float = 0.7,
    spacing: Sequence[float] | None = None,
) -> DrawnNetwork:
    """A network of curves between the points of a jittered grid, and its map.

    Lengths are in pixels of the smallest side here, whatever the unit of the graph. Half of the curves have a gap.
    Curves that cross are 40 long, parts of their own, have no node where they cross another, and are 8 from all others.

    Args:
        seed: the same one gives the same network.
        shape: of the map, at least 60 pixels of the smallest side along two axes.
        loops: whether curves are added to a spanning tree of the grid: half of those that are left.
        gap: length of a gap: of the centreline that pixels without evidence are nearest to.
        crossings: number of curves that cross others; fewer if there is no room.
        specks: number of false blobs, of radius 2.
        noise: standard deviation of the noise of logits, which is smooth over a pixel.
        spacing: micrometres per pixel along each axis; None for pixels.
    """
    rng = np.random.default_rng(seed)
    steps = np.ones(len(shape)) if spacing is None else np.array(spacing, np.float64)
    side = float(steps.min())
    size = np.array(shape) * steps
    nodes, pairs = _jittered_grid(rng, size, CELL * side, loops)
    curves = [_curve(nodes[one], nodes[two], rng, side) for one, two in pairs]
    across = _crossings(curves, crossings, rng, side, size - steps)

    graph = new_graph(spacing, len(shape))
    radii = rng.uniform(1.5, 3.0, len(curves) + len(across)) * side
    for number, node in enumerate(nodes):
        graph.add_node(number, position=tuple(node.tolist()), radius=float("nan"))
    for number, (start, end) in enumerate(pairs):
        add_segment(graph, start, end, curves[number], np.full(len(curves[number]), radii[number]))
    for number, curve in enumerate(across, start=len(curves)):
        first = graph.number_of_nodes()
        for node, place in ((first, curve[0]), (first + 1, curve[-1])):
            graph.add_node(node, position=tuple(place.tolist()), radius=float(radii[number]))
        add_segment(graph, first, first + 1, curve, np.full(len(curve), radii[number]))
    shown = [_gap_of(curve, gap * side, rng, NODE_CLEAR * side) for curve in curves]
    gaps = sum(not one.all() for one in shown)
    dots = [rng.uniform(0.05, 0.95, (1, len(shape))) * size for _ in range(specks)]
    shown += [np.ones(len(curve), np.bool_) for curve in across + dots]
    widths = np.concatenate([radii, np.full(specks, 2.0 * side)])
    logits = _logits(curves + across + dots, shown, widths, shape, steps)
    blurred = ndimage.gaussian_filter(rng.normal(size=tuple(shape)), 1.0)
    logits += noise * blurred / blurred.std()
    probability = (1 / (1 + np.exp(-logits))).astype(np.float32)
    return DrawnNetwork(probability, merge_chains(graph), gaps)


def _jittered_grid(
    rng: np.random.Generator, size: Floats, cell: float, loops: bool
) -> tuple[Floats, list[tuple[int, int]]]:
    """Nodes (N, D), and pairs of neighbours: a spanning tree, and half of the others with loops."""
    counts = np.maximum(np.floor((size - 0.25 * cell) / cell), 1).astype(int)
    index = np.stack(np.meshgrid(*[np.arange(count) for count in counts], indexing="ij"), -1).reshape(-1, len(size))
    nodes = (index + 0.5) * size / counts + rng.uniform(-0.2, 0.2, index.shape) * cell * (counts > 1)
    number = {tuple(place): node for node, place in enumerate(index.tolist())}
    pairs = [
        (node, number[other])
        for place, node in number.items()
        for axis in range(len(size))
        if (other := (*place[:axis], place[axis] + 1, *place[axis + 1 :])) in number
    ]
    lattice = nx.Graph()
    lattice.add_weighted_edges_from((one, two, float(rng.random())) for one, two in pairs)
    tree = {(min(pair), max(pair)) for pair in nx.minimum_spanning_edges(lattice, data=False)}
    return nodes, [pair for pair in pairs if pair in tree or (loops and rng.random() < 0.5)]


def _curve(start: Floats, end: Floats, rng: np.random.Generator, step: float) -> Floats:
    """A bow (P, D) between two points, in steps of at most half of `step`, off the straight by up to 15 %."""
    length = float(np.linalg.norm(end - start))
    aside = rng.normal(size=len(start))
    aside -= (aside @ (end - start)) * (end - start) / length**2
    aside *= rng.uniform(-0.15, 0.15) * length / max(float(np.linalg.norm(aside)), 1e-9)
    along = np.linspace(0, 1, int(2.2 * length / step) + 2)[:, None]
    return start + along * (end - start) + np.sin(np.pi * along) * aside


def _crossings(
    curves: Sequence[Floats], count: int, rng: np.random.Generator, step: float, last: Floats
) -> list[Floats]:
    """Straight lines of 40 steps, each across the middle of a curve, at 60 to 120 degrees, and far from all others.

    They lie within the map, of which `last` is the last pixel.
    """
    found: list[Floats] = []
    for number in rng.permutation(len(curves)).tolist():
        if len(found) == count:
            break
        curve = curves[number]
        middle = len(curve) // 2
        along = curve[middle + 1] - curve[middle - 1]
        along /= np.linalg.norm(along)
        aside = rng.normal(size=len(along))
        aside -= (aside @ along) * along
        angle = rng.uniform(np.pi / 3, 2 * np.pi / 3)
        way = np.cos(angle) * along + np.sin(angle) * aside / np.linalg.norm(aside)
        line = curve[middle] + np.linspace(-20, 20, 81)[:, None] * step * way
        if (line < 0).any() or (line > last).any():
            continue
        others = [other for one, other in enumerate(curves) if one != number] + found
        if not others or KDTree(np.concatenate(others)).query(line)[0].min() >= CROSSING_CLEAR * step:
            found.append(line)
    return found


def _gap_of(curve: Floats, gap: float, rng: np.random.Generator, clear: float) -> NDArray[np.bool_]:
    """Which points (P,) of a curve are shown: all, or in every second curve all but a gap, if there is room for it."""
    along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(curve, axis=0), axis=1))])
    room = along[-1] - gap - 2 * clear
    start = clear + rng.random() * max(room, 0.0)
    if rng.random() < 0.5 or gap <= 0 or room < 0:
        return np.ones(len(curve), np.bool_)
    return (along < start) | (along > start + gap)


def _logits(
    curves: Sequence[Floats], shown: Sequence[NDArray[np.bool_]], radii: Floats, shape: Sequence[int], steps: Floats
) -> Floats:
    """Logits of a map: of a pixel, those of the curve that it is deepest in; none of what is nearest to a gap."""
    side = float(steps.min())
    depth = np.full(tuple(shape), -np.inf)
    for curve, seen, radius in zip(curves, shown, radii, strict=True):
        reach = float(radius) + 4 * side
        low = np.maximum(np.floor((curve.min(axis=0) - reach) / steps), 0).astype(int)
        high = np.minimum(np.ceil((curve.max(axis=0) + reach) / steps) + 1, shape).astype(int)
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        pixels = np.stack(np.meshgrid(*[np.arange(a, b) for a, b in zip(low, high, strict=True)], indexing="ij"), -1)
        distance, nearest = KDTree(curve).query(pixels * steps, distance_upper_bound=reach)
        seen_there = np.append(seen, False)[nearest]  # those out of reach have the number of points as their nearest
        depth[box] = np.where(seen_there, np.maximum(depth[box], radius - distance), depth[box])
    return np.clip(STEEPNESS * depth / side, -SURE, SURE)
