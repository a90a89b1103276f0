"""Candidate paths: a graph with more paths than there are structures, of which the best are then selected.

After Türetken et al.: Reconstructing curvilinear networks using path classifiers and integer programming. TPAMI 2016,
sec. 4. Where it differs: paths are found for all neighbouring samples at once, by fronts that meet; paths that share
their way through a structure are cut where they part, so that every stretch of a structure is one candidate and counts
once; and loose ends are also connected across other structures.

The cost of a path, per pixel of length, is -log p + 0.5 / max(r, 1), p clipped to 0.02..0.98 and r the distance to the
background in pixels: p keeps it in structures, r in their middle. It is about 4.4 in the background and 0.3 in a thin
structure. Across others, from loose end to loose end, it is 1.1 - p, as in Mosinska et al.: Joint segmentation and path
classification of curvilinear structures. TPAMI 2019: the way is hardly longer than straight.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage, sparse
from scipy.spatial import KDTree
from scipy.spatial.distance import cdist

from biocnn.compiled import compiled
from biocnn.delineation.fronts import Grid, Pixels, grid_of, grow, meetings, trace_pairs
from biocnn.delineation.samples import SAMPLE_DISTANCE, checked_map

Floats = NDArray[np.float64]

GAP = 15.0  # pixels: the longest stretch below the threshold on a candidate
CLIP = 0.02  # of probabilities, at both ends
CENTRING = 0.5  # against -log p: of a structure 5 pixels wide, the middle is half as expensive as the rim
PARTNERS = 4  # loose ends that a loose end is connected to
SEARCHES = 1000  # loose ends that are searched from, those with the nearest partners first; each takes 1 to 30 ms
# Of the shorter of two candidates, and pixels: if they share more they cannot both be selected. Two lines that cross at
# 45 degrees share 4 pixels.
SHARED, SHARED_PIXELS = 0.5, 4


@dataclass(frozen=True)
class Candidates:
    """Candidate paths between nodes.

    Attributes:
        nodes: (N, D) int64, pixels.
        ends: (M, 2) int64, nodes at the first and at the last pixel of every candidate.
        paths: M arrays (P, D) int64 of neighbouring pixels, from the one node to the other.
        conflicts: (K, 2) int64, candidates that run beside each other, of which one can be selected.
        spacing: (D,) float64, size of a pixel in the unit of the graph.
    """

    nodes: Pixels
    ends: Pixels
    paths: tuple[Pixels, ...]
    conflicts: Pixels
    spacing: Floats

    def __len__(self) -> int:
        return len(self.paths)


def half_widths(probability: ArrayLike, spacing: Sequence[float] | None = None, threshold: float = 0.5) -> Floats:
    """Distance of every pixel at the threshold or above to the rim of its structure, in the unit of the spacing.

    That is the distance to the nearest pixel below the threshold, less half the smallest side of a pixel; 0 below. The
    image does not end a structure, unless no pixel is below the threshold.
    """
    values, steps = checked_map(probability, spacing)
    mask = values >= threshold
    if mask.all():
        depth = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=steps)[(slice(1, -1),) * mask.ndim]
    else:
        depth = ndimage.distance_transform_edt(mask, sampling=steps)
    return np.maximum(depth - steps.min() / 2, 0)


def candidate_paths(
    probability: ArrayLike,
    samples: ArrayLike,
    spacing: Sequence[float] | None = None,
    threshold: float = 0.5,
    gap: float | None = None,
    reach: float | None = None,
) -> Candidates:
    """Minimal paths between neighbouring samples.

    Args:
        probability: (H, W) or (D, H, W), 0..1.
        samples: (N, D), pixels, all different.
        spacing: size of a pixel along each axis; None for pixels.
        threshold: where structures are evident; nothing is cut, and widths are not known, below it.
        gap: longest stretch of a candidate below the threshold, in the unit of the spacing; None for 15 pixels.
        reach: of the front of a sample, in the same unit; None for twice 10 pixels, or the gap if that is more.

    Returns:
        Candidates; none if there are fewer than two samples. A loop around background is there if it has three
        samples; one that runs around inside a structure is not.

    Raises:
        DataError: if the map or the spacing cannot be used.
        ValueError: if the samples are not different pixels of the map.
    """
    values, steps = checked_map(probability, spacing)
    places = _checked_samples(samples, values.shape)
    side = float(steps.min())
    gap = GAP * side if gap is None else gap
    reach = max(gap, 2 * SAMPLE_DISTANCE * side) if reach is None else reach
    if len(places) < 2:
        return _numbered([], values, steps)
    depth = half_widths(values, tuple(steps), threshold).astype(np.float32)
    cost = -np.log(np.clip(values, CLIP, 1 - CLIP)) + CENTRING / np.maximum(depth / side + 0.5, 1)
    grid = grid_of(cost, steps)
    total, owner, before = grow(grid.cost, grid.flat(places), grid.steps, grid.lengths, reach)
    meet, _ = meetings(grid, total, owner)
    flat, starts = trace_pairs(before, meet)
    pixels = grid.pixels(flat)
    faint = values[tuple(pixels.T)] < threshold
    short = _longest_runs(faint, _step_lengths(pixels, steps), starts) <= gap
    pairs = owner[meet]
    ways = [flat[starts[number] : starts[number + 1]] for number in np.flatnonzero(short)]
    kept = _without_contractible(pairs[short], ways, grid, depth, steps)
    pieces = _cut([ways[number] for number in kept], grid, values >= threshold)
    pieces += _across(pieces, grid, values, depth, steps, threshold, gap)
    return _numbered([grid.pixels(piece) for piece in pieces], values, steps)


def _checked_samples(samples: ArrayLike, shape: tuple[int, ...]) -> Pixels:
    places = np.asarray(samples)
    if places.size == 0:
        return np.empty((0, len(shape)), np.int64)
    if places.ndim != 2 or places.shape[1] != len(shape) or places.dtype.kind not in "iu":
        raise ValueError(f"samples: expected whole numbers of shape (N, {len(shape)}), received {places.shape}.")
    if (places < 0).any() or (places >= shape).any() or len(np.unique(places, axis=0)) < len(places):
        raise ValueError(f"samples: expected different pixels of a map of shape {shape}.")
    return places.astype(np.int64)


def _numbered(paths: list[Pixels], values: NDArray[np.float32], steps: Floats) -> Candidates:
    """Candidates of paths (P, D), with their end pixels as nodes and what runs beside each other as conflicts."""
    if not paths:
        nothing = np.empty((0, 2), np.int64)
        return Candidates(np.empty((0, values.ndim), np.int64), nothing, (), nothing, steps)
    corners = np.array([(path[0], path[-1]) for path in paths]).reshape(-1, values.ndim)
    nodes, ends = np.unique(corners, axis=0, return_inverse=True)
    return Candidates(nodes, ends.reshape(-1, 2), tuple(paths), conflicts_of(paths, values.shape), steps)


def _step_lengths(pixels: Pixels, spacing: Floats) -> Floats:
    return np.linalg.norm(np.diff(pixels, axis=0) * spacing, axis=1)


@compiled
def _longest_runs(faint: NDArray[np.bool_], lengths: Floats, starts: Pixels) -> Floats:
    """Longest stretch of every path with a faint pixel at one side of each of its steps, (N,)."""
    longest = np.zeros(len(starts) - 1)
    for number in range(len(longest)):
        run = 0.0
        for place in range(starts[number], starts[number + 1] - 1):
            run = run + lengths[place] if faint[place] or faint[place + 1] else 0.0
            longest[number] = max(longest[number], run)
    return longest


def _without_contractible(
    pairs: Pixels, ways: list[Pixels], grid: Grid, depth: NDArray[np.float32], spacing: Floats
) -> list[int]:
    """Numbers of the paths that are left, of those that come the cheapest first.

    A path is left out if two or three that were kept connect its samples as well, and the largest disc within the
    structure about each of its pixels is at most 2 pixels from such a disc of theirs: then the loop of all of them
    goes around nothing, or less than that.
    """
    kept: list[int] = []
    slack = 2 * float(spacing.min())
    between: dict[tuple[int, int], tuple[Floats, Floats]] = {}
    neighbours: dict[int, set[int]] = defaultdict(set)
    for number, (one, two) in enumerate(pairs.tolist()):
        pixels = grid.pixels(ways[number])
        points, radius = pixels * spacing, depth[tuple(pixels.T)]
        routes = [[one, third, two] for third in neighbours[one] & neighbours[two]]
        if not routes:
            routes = [
                [one, third, fourth, two]
                for third in sorted(neighbours[one])
                for fourth in sorted(neighbours[third] & neighbours[two] - {one})
            ]
        for route in routes:
            legs = [between[min(a, b), max(a, b)] for a, b in pairwise(route)]
            apart = cdist(points, np.concatenate([leg[0] for leg in legs])) - np.concatenate([leg[1] for leg in legs])
            if (apart.min(axis=1) <= radius + slack).all():
                break
        else:
            kept.append(number)
            between[min(one, two), max(one, two)] = points, radius
            neighbours[one].add(two)
            neighbours[two].add(one)
    return kept


def _cut(ways: list[Pixels], grid: Grid, evident: NDArray[np.bool_]) -> list[Pixels]:
    """Paths, cut at the evident pixels where they part from each other, every piece once."""
    if not ways:
        return []
    steps = np.concatenate([np.stack([way[:-1], way[1:]], axis=1) for way in ways])
    steps = np.unique(np.sort(steps, axis=1), axis=0)
    pixel, degree = np.unique(steps, return_counts=True)
    fork = pixel[degree > 2]
    forks = set(fork[evident[tuple(grid.pixels(fork).T)]].tolist())
    pieces: dict[tuple[int, ...], Pixels] = {}
    for way in ways:
        inner = [place for place, one in enumerate(way[1:-1].tolist(), start=1) if one in forks]
        for start, stop in pairwise([0, *inner, len(way) - 1]):
            piece = way[start : stop + 1]
            piece = piece if piece[0] <= piece[-1] else piece[::-1]
            pieces.setdefault((int(piece[0]), int(piece[1]), int(piece[-2]), int(piece[-1]), len(piece)), piece)
    return list(pieces.values())


def _across(
    pieces: list[Pixels],
    grid: Grid,
    values: NDArray[np.float32],
    depth: NDArray[np.float32],
    spacing: Floats,
    threshold: float,
    gap: float,
) -> list[Pixels]:
    """Paths from loose ends to loose ends that no piece connects already, over whatever is between."""
    evident = [piece for piece in pieces if (values[tuple(grid.pixels(piece).T)] >= threshold).all()]
    if not evident:
        return []
    ends, times = np.unique([(piece[0], piece[-1]) for piece in evident], return_counts=True)
    loose = ends[times == 1]
    if len(loose) < 2:
        return []
    pixels = grid.pixels(loose)
    inside = depth[tuple(pixels.T)]
    joined = {(min(a, b), max(a, b)) for a, b in ((piece[0], piece[-1]) for piece in pieces)}
    furthest = gap + 2 * float(inside.max(initial=0))
    distance, partner = KDTree(pixels * spacing).query(
        pixels * spacing, k=min(PARTNERS + 1, len(loose)), distance_upper_bound=furthest
    )
    wanted: dict[int, list[int]] = defaultdict(list)
    for one, (lengths, others) in enumerate(zip(np.atleast_2d(distance), np.atleast_2d(partner), strict=True)):
        for length, other in zip(lengths.tolist(), others.tolist(), strict=True):
            near = length <= gap + inside[one] + (inside[other] if other < len(loose) else 0)
            a, b = min(one, other), max(one, other)
            if near and one != other < len(loose) and (loose[a], loose[b]) not in joined and b not in wanted[a]:
                wanted[a].append(b)
    found = []
    nearest = sorted((float(distance[one].min(where=distance[one] > 0, initial=np.inf)), one) for one in wanted)
    for _, one in nearest[:SEARCHES]:
        found += _bridges(pixels[one], pixels[wanted[one]], values, spacing, threshold, gap, furthest)
    # What runs along a structure does not lead across.
    paths = [grid.pixels(piece) for piece in evident] + found
    along = conflicts_of(paths, values.shape)
    twice = set(along[along[:, 0] < len(evident)].ravel().tolist())
    return [grid.flat(path) for number, path in enumerate(paths) if number >= len(evident) and number not in twice]


def _bridges(
    source: Pixels,
    targets: Pixels,
    values: NDArray[np.float32],
    spacing: Floats,
    threshold: float,
    gap: float,
    furthest: float,
) -> list[Pixels]:
    """Paths (P, D) from a pixel to others, half as long again as straight at most, with a gap, and none that is longer.

    They are sought in a box about the pixel.
    """
    margin = np.ceil(1.5 * furthest / spacing).astype(int)
    low = np.maximum(source - margin, 0)
    high = np.minimum(source + margin + 1, values.shape)
    box = values[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    grid = grid_of(1.1 - box, spacing)
    start = grid.flat((source - low)[None])
    _, owner, before = grow(grid.cost, start, grid.steps, grid.lengths, 1.5 * furthest)
    places = grid.flat(targets - low)
    places = places[owner[places] >= 0]
    flat, starts = trace_pairs(before, np.stack([places, np.full_like(places, -1)], axis=1))
    pixels = grid.pixels(flat) + low
    lengths = _step_lengths(pixels, spacing)
    runs = _longest_runs(values[tuple(pixels.T)] < threshold, lengths, starts)
    paths = [pixels[a:b] for a, b in pairwise(starts.tolist())]
    whole = [_step_lengths(path, spacing).sum() for path in paths]
    straight = [np.linalg.norm((path[-1] - path[0]) * spacing) for path in paths]
    return [
        path
        for path, run, length, least in zip(paths, runs, whole, straight, strict=True)
        if 0 < run <= gap and length <= 1.5 * least
    ]


def conflicts_of(paths: Sequence[Pixels], shape: tuple[int, ...]) -> Pixels:
    """Pairs of paths that share more than 4 pixels and half of the shorter, (K, 2), the lower number first.

    Pixels are shared if they are the same or neighbours. The two pixels at each end are not looked at, as all paths of
    a node meet there; so short paths, and paths that cross, have no conflict.
    """
    inner = [path[2:-2] if len(path) > 5 else path[:0] for path in paths]
    owner = np.repeat(np.arange(len(inner)), [len(path) for path in inner])
    if not len(owner):
        return np.empty((0, 2), np.int64)
    framed = tuple(size + 2 for size in shape)
    pixels = np.concatenate(inner) + 1
    offsets = np.array(list(np.ndindex((3,) * len(shape)))) - 1
    place = np.ravel_multi_index(tuple(pixels.T), framed)
    around = np.ravel_multi_index(tuple((pixels[:, None] + offsets).reshape(-1, len(shape)).T), framed)
    _, column = np.unique(np.concatenate([place, around]), return_inverse=True)
    size = len(inner), int(column.max()) + 1
    own = sparse.csr_array((np.ones(len(place)), (owner, column[: len(place)])), size)
    near = sparse.csr_array((np.ones(len(around)), (np.repeat(owner, len(offsets)), column[len(place) :])), size)
    near.sum_duplicates()
    near.data[:] = 1
    shared = (own @ near.T).tocoo()
    length = np.bincount(owner, minlength=len(inner))
    least = np.maximum(SHARED * np.minimum(length[shared.row], length[shared.col]), SHARED_PIXELS)
    both = (shared.row != shared.col) & (shared.data > least)
    pairs = np.stack([shared.row[both], shared.col[both]], axis=1).astype(np.int64)
    return np.unique(np.sort(pairs, axis=1), axis=0)
