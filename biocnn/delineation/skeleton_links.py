"""The loops over pixels behind :mod:`biocnn.delineation.skeleton_graph`, where the method is described.

Notation: N pixels of a skeleton in raster order; K = 3^D steps to touching pixels, numbered in raster order, so that
the middle one is no step and K - 1 - k the reverse of step k. Tables of pixels hold -1 where there is none.
"""

import numpy as np
from numpy.typing import NDArray

from biocnn.compiled import compiled

Table = NDArray[np.int32]
Numbers = NDArray[np.int64]
Flags = NDArray[np.bool_]


@compiled
def find_touching(sites: Numbers, jumps: Numbers) -> Table:
    """The touching pixels (N, K), each pixel itself in the middle.

    Args:
        sites: (N,) int64, places of the pixels in a raster with a margin of one pixel, in order.
        jumps: (K,) int64, how far each step leads in that raster.
    """
    count, steps = len(sites), len(jumps)
    touching = np.full((count, steps), -1, dtype=np.int32)
    for k in range(steps // 2, steps):
        j = 0
        for i in range(count):
            wanted = sites[i] + jumps[k]
            while j < count and sites[j] < wanted:
                j += 1
            if j == count:
                break
            if sites[j] == wanted:
                touching[i, k] = j
                touching[j, steps - 1 - k] = i
    return touching


@compiled
def find_links(touching: Table, between: Numbers) -> Table:
    """Links (N, K): of the touching pixels those that no pixel in `between` (K, 6), of a shorter step, stands for."""
    links = touching.copy()
    count, steps = touching.shape
    links[:, steps // 2] = -1
    for i in range(count):
        for k in range(steps):
            if links[i, k] < 0:
                continue
            for part in between[k]:
                if part >= 0 and touching[i, part] >= 0:
                    links[i, k] = -1
                    break
    return links


@compiled
def find_blocks(touching: Table, links: Table, across: Numbers) -> Table:
    """Blocks of 2^D pixels around a corner whose links form a loop: (n, 2^D), members in raster order, or -1.

    Args:
        touching: (N, K).
        links: (N, K).
        across: (2^D, 2^D), steps from member to member of a block.
    """
    size = len(across)
    found = np.empty((max(len(touching), 16), size), dtype=np.int32)
    total = 0
    members = np.empty(size, dtype=np.int32)
    for i in range(len(touching)):
        for own in range(size):  # the place of the pixel in the block
            present = 0
            for place in range(size):
                members[place] = touching[i, across[own, place]]
                if members[place] >= 0:
                    if present == 0 and members[place] != i:
                        break  # a block is looked at from the first of its pixels only
                    present += 1
            if present < 3:
                continue
            edges = 0
            for a in range(size):
                for b in range(a + 1, size):
                    if members[a] >= 0 and members[b] >= 0 and links[members[a], across[a, b]] >= 0:
                        edges += 1
            if edges >= present:
                if total == len(found):
                    found = np.concatenate((found, np.empty_like(found)))
                found[total] = members
                total += 1
    return found[:total]


@compiled
def _root(parents: Table, i: int) -> int:
    while parents[i] != i:
        parents[i] = parents[parents[i]]
        i = parents[i]
    return i


@compiled
def _unite(parents: Table, i: int, j: int) -> None:
    i, j = _root(parents, i), _root(parents, j)
    if i < j:
        parents[j] = i
    else:
        parents[i] = j


@compiled
def find_clusters(touching: Table, links: Table, blocks: Table, between: Numbers) -> Table:
    """The first pixel (N,) of the cluster that each pixel is in; a pixel on its own is one."""
    count, steps = touching.shape
    clusters = np.arange(count).astype(np.int32)
    for members in blocks:
        first = -1
        for member in members:
            if member >= 0:
                if first >= 0:
                    _unite(clusters, first, member)
                first = member
    degree = np.zeros(count, dtype=np.int32)
    for i in range(count):
        for k in range(steps):
            degree[i] += links[i, k] >= 0
    for i in range(count):
        if degree[i] < 3:
            continue
        for k in range(steps // 2 + 1, steps):
            j = touching[i, k]
            if j < 0 or degree[j] < 3:
                continue
            _unite(clusters, i, j)
            for part in between[k]:  # else these would be paths from the cluster to itself
                if part >= 0 and touching[i, part] >= 0:
                    _unite(clusters, i, touching[i, part])
    for i in range(count):
        clusters[i] = _root(clusters, i)
    return clusters


@compiled
def find_exits(links: Table, clusters: Table) -> tuple[Table, Numbers]:
    """Links that leave clusters.

    Returns:
        (E, 2) pixel and the one it is linked to, those of a cluster together; (N + 1,) where those of the cluster with
        the first pixel i begin.
    """
    count = len(links)
    begin = np.zeros(count + 1, dtype=np.int64)
    for i in range(count):
        for j in links[i]:
            if j >= 0 and clusters[j] != clusters[i]:
                begin[clusters[i] + 1] += 1
    for i in range(count):
        begin[i + 1] += begin[i]
    free = begin[:-1].copy()
    exits = np.empty((begin[-1], 2), dtype=np.int32)
    for i in range(count):
        for j in links[i]:
            if j >= 0 and clusters[j] != clusters[i]:
                exits[free[clusters[i]], 0] = i
                exits[free[clusters[i]], 1] = j
                free[clusters[i]] += 1
    return exits, begin


@compiled
def find_roots(pixels: Numbers, links: Table, clusters: Table, exits: Table, begin: Numbers) -> tuple[Table, Flags]:
    """Middle pixels of clusters, and which clusters are nodes, both (N,), at the first pixel of each.

    The middle pixel is the nearest one to the mean; that of a part of a path is one with a way out.
    """
    count = len(links)
    size, inner = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    for i in range(count):
        size[clusters[i]] += 1
    total = np.zeros(pixels.shape, dtype=np.int64)
    for i in range(count):
        c = clusters[i]
        if size[c] > 1:
            total[c] += pixels[i]
            for j in links[i]:
                inner[c] += j >= 0 and clusters[j] == c
    root = np.full(count, -1, dtype=np.int32)
    best = np.empty(count, dtype=np.int64)
    is_node = np.zeros(count, dtype=np.bool_)
    for i in range(count):
        c = clusters[i]
        if c == i:
            holes = inner[i] // 2 - size[i] + 1
            is_node[i] = holes > 0 or begin[i + 1] - begin[i] != 2
        if size[c] == 1:
            root[c] = i
        elif not is_node[c]:
            root[c] = exits[begin[c], 0]
        else:
            distance = 0
            for axis in range(pixels.shape[1]):
                distance += (size[c] * pixels[i, axis] - total[c, axis]) ** 2
            if root[c] < 0 or distance < best[c]:
                root[c], best[c] = i, distance
    return root, is_node


@compiled
def find_ways(links: Table, clusters: Table, root: Table) -> tuple[Table, Table, Table]:
    """Shortest ways along links from the middle pixels of clusters to the others.

    Returns:
        (N,) the pixel before each on its way, itself for a middle pixel; (N,) the number of links to it; (n, 2) pixels
        of the links within clusters that are on no way, each of which closes a loop.
    """
    count = len(links)
    before, depth = np.full(count, -1, dtype=np.int32), np.zeros(count, dtype=np.int32)
    alone = np.ones(count, dtype=np.bool_)
    for i in range(count):
        alone[clusters[i]] &= clusters[i] == i
        if clusters[i] == i:
            before[root[i]] = root[i]
    queue = np.empty(count, dtype=np.int32)
    end = 0
    for i in range(count):
        if clusters[i] == i and not alone[i]:
            queue[end] = root[i]
            end += 1
    place = 0
    while place < end:
        i = queue[place]
        place += 1
        for j in links[i]:
            if j >= 0 and clusters[j] == clusters[i] and before[j] < 0:
                before[j], depth[j] = i, depth[i] + 1
                queue[end] = j
                end += 1
    closing = [(np.int32(0), np.int32(0)) for _ in range(0)]
    for i in queue[:end]:
        for j in links[i]:
            if j > i and clusters[j] == clusters[i] and before[j] != i and before[i] != j:
                closing.append((i, j))
    table = np.empty((len(closing), 2), dtype=np.int32)
    for place in range(len(closing)):
        table[place, 0], table[place, 1] = closing[place]
    return before, depth, table


@compiled
def _leave(out: Table, at: int, before: Table, depth: Table, pixel: int) -> int:
    """Write the way from the middle of a cluster to one of its pixels; return the place after it."""
    end = at + depth[pixel] + 1
    for place in range(end - 1, at - 1, -1):
        out[place] = pixel
        pixel = before[pixel]
    return end


@compiled
def _arrive(out: Table, at: int, before: Table, depth: Table, pixel: int) -> int:
    """Write the way from a pixel of a cluster to its middle; return the place after it."""
    end = at + depth[pixel] + 1
    for place in range(at, end):
        out[place] = pixel
        pixel = before[pixel]
    return end


@compiled
def _touch(pixels: Numbers, i: int, j: int) -> bool:
    apart = 0
    for axis in range(pixels.shape[1]):
        apart = max(apart, abs(pixels[i, axis] - pixels[j, axis]))
    return apart <= 1


@compiled
def _cut_corners(out: Table, start: int, end: int, pixels: Numbers) -> int:
    """Leave out, from the first on, points whose neighbours on the path touch; return the new end."""
    last = start
    for place in range(start + 1, end):
        if place < end - 1 and _touch(pixels, out[last], out[place + 1]):
            continue
        last += 1
        out[last] = out[place]
    return last + 1


@compiled
def _back(exit_: int, clusters: Table, exits: Table, begin: Numbers) -> int:
    """The same link, seen from the other cluster."""
    pixel, target = exits[exit_]
    back = begin[clusters[target]]
    while exits[back, 0] != target or exits[back, 1] != pixel:
        back += 1
    return back


@compiled
def _way_on(exit_: int, clusters: Table, exits: Table, begin: Numbers) -> int:
    """The way out of the part of a path that a way out of another cluster leads to."""
    first = begin[clusters[exits[exit_, 1]]]
    return first + 1 if _back(exit_, clusters, exits, begin) == first else first


@compiled
def _ring_start(cluster: int, pixels: Numbers, clusters: Table, exits: Table, begin: Numbers, visited: Flags) -> int:
    """The cluster of a ring that becomes its node: the first pixel that is no corner, so that none is lost to it."""
    start, found = cluster, False
    exit_ = begin[cluster]
    while True:
        c = clusters[exits[exit_, 0]]
        visited[c] = True
        (one, before), (other, after) = exits[begin[c]], exits[begin[c] + 1]
        if one == other and not _touch(pixels, before, after) and (not found or c < start):
            start, found = c, True
        exit_ = _way_on(exit_, clusters, exits, begin)
        if clusters[exits[exit_, 0]] == cluster:
            return start


@compiled
def trace(
    pixels: Numbers,
    clusters: Table,
    exits: Table,
    begin: Numbers,
    root: Table,
    is_node: Flags,
    before: Table,
    depth: Table,
    closing: Table,
) -> tuple[Table, Numbers]:
    """Follow all paths between nodes; one pixel of every ring becomes a node, in `is_node`.

    Returns:
        The pixels of the paths, one after the other, and (S,) where each path ends in it.
    """
    count = len(pixels)
    room = 2 * count
    for pixel, _ in exits:
        room += depth[pixel] + 1
    for one, other in closing:
        room += depth[one] + depth[other] + 2
    out = np.empty(room, dtype=np.int32)
    stops = np.empty(len(exits) + len(closing), dtype=np.int64)
    used = np.zeros(len(exits), dtype=np.bool_)
    visited = is_node.copy()
    at = paths = 0
    for turn in range(2):  # rings are what is left in the second
        for cluster in range(count):
            if clusters[cluster] != cluster or (turn == 0 and not is_node[cluster]) or (turn == 1 and visited[cluster]):
                continue
            source = cluster
            if turn == 1:
                source = _ring_start(cluster, pixels, clusters, exits, begin, visited)
                is_node[source] = True
            for exit_ in range(begin[source], begin[source + 1]):
                if used[exit_]:
                    continue
                start = at
                at = _leave(out, at, before, depth, exits[exit_, 0])
                used[exit_] = True
                while not is_node[clusters[exits[exit_, 1]]]:
                    target = exits[exit_, 1]
                    visited[clusters[target]] = True
                    exit_ = _way_on(exit_, clusters, exits, begin)
                    if root[clusters[target]] == target:
                        at = _leave(out, at, before, depth, exits[exit_, 0])
                    else:
                        at = _arrive(out, at, before, depth, target)
                used[_back(exit_, clusters, exits, begin)] = True
                at = _arrive(out, at, before, depth, exits[exit_, 1])
                at = _cut_corners(out, start, at, pixels)
                stops[paths] = at
                paths += 1
    for one, other in closing:
        start = at
        at = _leave(out, at, before, depth, one)
        at = _arrive(out, at, before, depth, other)
        at = _cut_corners(out, start, at, pixels)
        stops[paths] = at
        paths += 1
    return out[:at], stops[:paths]
