"""Graphs of skeletons and of masks.

Two pixels touch if they share a corner (8 neighbours in 2-D, 26 in 3-D). Not every touching pair is a link: a diagonal
step is none if there are shorter steps instead, and of the links around a block of pixels that share a corner, so many
are cut that no loop is left in it. The links that remain have exactly the loops of the skeleton, its first Betti
number. Junction pixels, those with three or more links, and blocks form clusters where they touch; a cluster with two
ways out is a part of a path, any other one is a node. A hole inside a cluster becomes a ring at its node.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import combinations, product
from typing import Any, NamedTuple

import networkx as nx
import numpy as np
from numpy.typing import ArrayLike, NDArray

from biocnn.data.graphs import Floats, new_graph
from biocnn.delineation.skeleton_links import (
    Numbers,
    Table,
    find_blocks,
    find_clusters,
    find_exits,
    find_links,
    find_roots,
    find_touching,
    find_ways,
    trace,
)
from biocnn.delineation.thickness import distances, reach_border, row_distances
from biocnn.delineation.thinning import thinned
from biocnn.errors import DataError
from biocnn.metrics.overlap import Mask, check_mask
from biocnn.metrics.skeleton import skeletonize_safely


class _Steps(NamedTuple):
    """Steps to the 3^D touching pixels, itself in the middle, numbered in raster order, and groups of them."""

    offset: NDArray[np.int64]  # (3^D, D)
    # (3^D, 6): numbers of the steps to all other pixels of the box that a step spans, filled up with -1.
    between: NDArray[np.int64]
    # (2^D, 2^D): numbers of the steps from one member to another of a block of 2^D pixels around a corner.
    across: NDArray[np.int64]


def _number(offset: Sequence[int]) -> int:
    number = 0
    for step in offset:
        number = 3 * number + step + 1
    return number


def _steps(dimensions: int) -> _Steps:
    offsets = list(product((-1, 0, 1), repeat=dimensions))
    corners = list(product((0, 1), repeat=dimensions))
    between = np.full((len(offsets), 6), -1)
    for row, offset in zip(between, offsets, strict=True):
        parts = {tuple(a * b for a, b in zip(offset, corner, strict=True)) for corner in corners}
        inner = sorted(_number(part) for part in parts - {offset, (0,) * dimensions})
        row[: len(inner)] = inner

    def from_to(here: Sequence[int], there: Sequence[int]) -> int:
        return _number([b - a for a, b in zip(here, there, strict=True)])

    across = np.array([[from_to(here, there) for there in corners] for here in corners])
    return _Steps(np.array(offsets), between, across)


_STEPS = {dimensions: _steps(dimensions) for dimensions in (2, 3)}


def skeleton_graph(
    skeleton: ArrayLike,
    spacing: Sequence[float] | None = None,
    radius: ArrayLike | None = None,
    probability: ArrayLike | None = None,
) -> nx.MultiGraph:
    """The graph of a skeleton, see :mod:`biocnn.data.graphs`.

    Nodes are end points, branch points, pixels on their own, and of a ring one pixel; numbered in raster order. A
    cluster of junction pixels is one node, at that of its pixels which is nearest to their mean, the first of several.
    Paths lead from pixel to touching pixel, from the pixel of one node to that of the other; a corner that may be cut
    is not on them. Components, loops and rings are those of the skeleton, even where it is wider than one pixel.

    Args:
        skeleton: (H, W) or (D, H, W) bool, one pixel wide.
        spacing: micrometres per pixel along each axis; None for a graph in pixels.
        radius: the same shape, half the width of the structure, in micrometres or, without spacing, pixels; only its
            values on the skeleton count. None if it is not known.
        probability: the same shape, 0..1; segments get its mean as their score. None if there is none.

    Raises:
        DataError: if shapes differ, the mask holds anything but 0 and 1, or a probability is nan or not in 0..1.
    """
    skeleton = check_mask("skeleton", skeleton)
    graph = new_graph(_checked(spacing, skeleton.ndim), skeleton.ndim)
    pixels = _pixels(skeleton)
    if radius is None:
        radii = np.full(len(pixels), math.nan)
    else:
        radii = _like("radius", radius, skeleton)[tuple(pixels.T)].astype(np.float64)
    if probability is not None:
        probability = check_probability(probability, skeleton.shape)
    _fill(graph, skeleton, pixels, radii, probability)
    return graph


def mask_graph(
    mask: ArrayLike, spacing: Sequence[float] | None = None, probability: ArrayLike | None = None
) -> nx.MultiGraph:
    """The graph of the centrelines of a mask, with the width along them.

    2-D masks are thinned by :func:`biocnn.delineation.thinning.thinned`, 3-D masks by
    :func:`biocnn.metrics.skeleton.skeletonize_safely`. The radius is the distance from the centre of a pixel to that
    of the nearest background pixel less half a pixel: w / 2 for a structure of an odd width of w pixels, (w - 1) / 2
    for an even one, which has no pixel in its middle.

    Whatever leaves the image is taken to go on beyond its border: its centreline leads to the border, and the border
    does not make it thinner. A structure that runs along the border ends there.

    Args:
        mask: (H, W) or (D, H, W) bool.
        spacing: micrometres per pixel along each axis; None for a graph in pixels.
        probability: the same shape, 0..1; segments get its mean as their score. None if there is none.

    Raises:
        DataError: if shapes differ, the mask holds anything but 0 and 1, or a probability is nan or not in 0..1.
    """
    mask = check_mask("mask", mask)
    graph = new_graph(_checked(spacing, mask.ndim), mask.ndim)
    if probability is not None:
        probability = check_probability(probability, mask.shape)
    sizes = np.array(graph.graph["spacing"])
    in_row = row_distances(mask)
    skeleton = thinned(mask) if mask.ndim == 2 else skeletonize_safely(mask)
    reach_border(skeleton, mask, in_row, sizes)
    pixels = _pixels(skeleton)
    radii = distances(in_row, pixels, sizes) - sizes.min() / 2
    radii[np.isinf(radii)] = math.nan  # no background
    _fill(graph, skeleton, pixels, radii, probability)
    return graph


def check_probability(probability: ArrayLike, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return a map of probabilities as an array.

    Raises:
        DataError: if it has another shape, or a value is nan or not in 0..1.
    """
    values = np.asarray(probability)
    if values.shape != shape:
        raise DataError(f"probability: expected shape {shape} as the mask, received {values.shape}")
    if not (values.min() >= 0 and values.max() <= 1):  # nan is neither
        raise DataError(
            f"probability: expected numbers in 0..1, received {values.min()} to {values.max()}; "
            "apply a sigmoid to logits, and fill in what is nan"
        )
    return values


def _checked(spacing: Sequence[float] | None, dimensions: int) -> Sequence[float] | None:
    if spacing is not None and len(spacing) != dimensions:
        raise DataError(f"spacing: expected {dimensions} numbers, one for each axis of the mask, received {spacing}")
    return spacing


def _like(name: str, values: ArrayLike, skeleton: Mask) -> NDArray[Any]:
    array = np.asarray(values)
    if array.shape != skeleton.shape:
        raise DataError(f"{name}: expected shape {skeleton.shape} as the skeleton, received {array.shape}")
    return array


def _pixels(skeleton: Mask) -> Numbers:
    """The pixels (N, D) of a skeleton in raster order, faster than argwhere."""
    return np.stack(np.unravel_index(np.flatnonzero(skeleton), skeleton.shape), axis=1)


def _fill(
    graph: nx.MultiGraph, skeleton: Mask, pixels: Numbers, radii: Floats, probability: NDArray[Any] | None
) -> None:
    """Add to an empty graph what is on a skeleton with the given pixels (N, D) and their radii (N,)."""
    if not len(pixels):
        return
    nodes, sequence, stops = _traced(pixels, skeleton.shape)
    positions = pixels * np.array(graph.graph["spacing"])
    graph.add_nodes_from(
        (node, {"position": tuple(position), "radius": radius})
        for node, (position, radius) in enumerate(zip(positions[nodes].tolist(), radii[nodes].tolist(), strict=True))
    )
    if not len(stops):
        return
    begin = np.concatenate([[0], stops[:-1]])
    ends = np.searchsorted(nodes, sequence[[begin, stops - 1]]).T.tolist()
    path, radius = positions[sequence], radii[sequence]
    steps = np.zeros(len(path))
    steps[:-1] = np.linalg.norm(np.diff(path, axis=0), axis=1)
    steps[stops - 1] = 0
    share = steps / 2  # of the length, that a point stands for, as in mean_along
    share[1:] += steps[:-1] / 2
    lengths = np.add.reduceat(steps, begin).tolist()
    widths = (2 * _means(radius, share, begin)).tolist()
    if probability is None:
        scores = [math.nan] * len(stops)
    else:
        values = probability[tuple(pixels.T)].astype(np.float64)
        scores = _means(values[sequence], share, begin).tolist()
    for (start, end), low, high, length, width, score in zip(
        ends, begin.tolist(), stops.tolist(), lengths, widths, scores, strict=True
    ):
        key = graph.number_of_edges(start, end)
        part = {"path": path[low:high], "radius": radius[low:high]}
        graph.add_edge(start, end, key, start=start, **part, length=length, width=width, score=score)


def _means(values: Floats, share: Floats, begin: Numbers) -> Floats:
    """Mean of each segment, of points where values are known."""
    known = np.isfinite(values)
    total = np.add.reduceat(np.where(known, values * share, 0), begin)
    weight = np.add.reduceat(np.where(known, share, 0), begin)
    return np.divide(total, weight, out=np.full(len(begin), math.nan), where=weight > 0)


def _traced(pixels: Numbers, shape: tuple[int, ...]) -> tuple[Table, Table, Numbers]:
    """Pixels of the nodes in order, pixels along all segments, and where each segment ends in the latter."""
    table = _STEPS[len(shape)]
    strides = np.cumprod([1, *(size + 2 for size in shape[:0:-1])])[::-1]
    touching = find_touching(pixels @ strides, table.offset @ strides)
    links = find_links(touching, table.between)
    blocks = find_blocks(touching, links, table.across)
    clusters = find_clusters(touching, links, blocks, table.between)
    _cut_loops(links, blocks, table.across)
    exits, begin = find_exits(links, clusters)
    root, is_node = find_roots(pixels, links, clusters, exits, begin)
    before, depth, closing = find_ways(links, clusters, root)
    sequence, stops = trace(pixels, clusters, exits, begin, root, is_node, before, depth, closing)
    return np.sort(root[is_node]), sequence, stops


def _cut_loops(links: Table, blocks: Table, across: Numbers) -> None:
    """Cut so many links of blocks that all loops that are sums of loops within blocks are open, and no more.

    Without it, four pixels of a square would be a ring.
    """
    if len(across) == 4:  # 2-D: from the top down, the upper link of a square is a side of no other one that is left
        cut = blocks[:, :2]
    else:
        cut = np.array(_independent_links(blocks, links, across), dtype=np.int32).reshape(-1, 2)
    for one, other in (cut.T, cut.T[::-1]):
        row, step = np.nonzero(links[one] == other[:, None])
        links[one[row], step] = -1


def _independent_links(blocks: Table, links: Table, across: Numbers) -> list[tuple[int, int]]:
    """One link for each independent loop within blocks: pivots of an elimination modulo 2."""
    loops = dict(enumerate(_block_loops(blocks, links, across)))
    owners: dict[tuple[int, int], set[int]] = {}
    for number, loop in loops.items():
        for link in loop:
            owners.setdefault(link, set()).add(number)
    free = [link for link, numbers in owners.items() if len(numbers) == 1]
    pivots = []
    while loops:
        # A link of a single loop needs no addition to others; nearly all are found that way.
        while free and len(owners[free[-1]]) != 1:
            free.pop()
        number = next(iter(owners[free[-1]])) if free else next(iter(loops))
        loop = loops.pop(number)
        if not loop:
            continue
        link = free.pop() if free else min(loop)
        pivots.append(link)
        for other in owners[link] - {number}:
            for shared in loop:
                owners[shared] ^= {other}
            loops[other] ^= loop
        for shared in loop:
            owners[shared].discard(number)
            if len(owners[shared]) == 1:
                free.append(shared)
    return pivots


def _block_loops(blocks: Table, links: Table, across: Numbers) -> Iterator[set[tuple[int, int]]]:
    """A basis of the loops of each block, as sets of links (first pixel, last pixel)."""
    for members in blocks:
        places = np.flatnonzero(members >= 0).tolist()
        way: dict[int, set[tuple[int, int]]] = {places[0]: set()}  # to each place, from the first one
        queue = [places[0]]
        for place in queue:
            for other in places:
                if other not in way and links[members[place], across[place, other]] >= 0:
                    way[other] = way[place] | {_link(members, place, other)}
                    queue.append(other)
        for place, other in combinations(places, 2):
            if links[members[place], across[place, other]] >= 0:
                loop = way[place] ^ way[other] ^ {_link(members, place, other)}
                if loop:
                    yield loop


def _link(members: Table, place: int, other: int) -> tuple[int, int]:
    return int(min(members[place], members[other])), int(max(members[place], members[other]))
