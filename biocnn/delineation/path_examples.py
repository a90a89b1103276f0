"""Paths that follow structures and paths that do not, to train a classifier of paths with.

They are mined from a tubularity map as the candidates of a delineation are, and labelled by the ground truth, as in
Mosinska, Kozinski, Fua: Joint segmentation and path classification of curvilinear structures. TPAMI 2019, arXiv
1905.03892: a path of which 90 % lie on the structures is positive, a jump or a short cut is negative.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from skimage.draw import line
from skimage.graph import route_through_array

from biocnn.data.graphs import mean_along
from biocnn.delineation.candidates import candidate_paths
from biocnn.delineation.samples import checked_map, sample_points

Pixels = NDArray[np.int64]
Bools = NDArray[np.bool_]

POSITIVE = 0.9  # share of the length of a path
LEAST = 5  # pixels: whether 90 % of a shorter path lie on a structure, one pixel decides
REACH = 60  # pixels: the furthest that a path is made up over
TRIES = 2  # pairs of made-up paths for each that is asked for; a pair takes up to 10 ms


def follows(path: Pixels, near: Bools) -> bool:
    """Whether at least 90 % of the length of a path (P, 2) lie on the pixels that are set.

    >>> line = np.array([(0, column) for column in range(11)])
    >>> follows(line, np.arange(11)[None] < 10), follows(line, np.arange(11)[None] < 9)
    (True, False)
    """
    steps = np.linalg.norm(np.diff(path, axis=0), axis=1)
    return mean_along(near[tuple(path.T)].astype(np.float64), steps) >= POSITIVE


def path_examples(
    probability: ArrayLike, mask: ArrayLike, valid: ArrayLike, count: int, random: np.random.Generator
) -> tuple[list[Pixels], Bools]:
    """Labelled paths in a map, half of each kind if there are as many.

    Candidates of a delineation (:func:`candidate_paths` with its defaults) are drawn from at random. If there are too
    few of a kind, paths are made up: minimal ones between random samples, of cost 1.1 - p, which jump from one
    structure to another, cut bends short, or bridge gaps; and straight ones from there to anywhere.

    A path is positive if it follows the ground truth (:func:`follows`), made wider by a pixel: in maps that were drawn
    of the annotation of DRIVE itself, up to 14 % of the evident paths in a tile would be negative otherwise. Paths that
    leave `valid` or have fewer than 5 pixels are no examples.

    Args:
        probability: (H, W), 0..1.
        mask: (H, W), the structures.
        valid: (H, W), where they are known.
        count: most paths that are returned.
        random: what decides which.

    Returns:
        N paths (P, 2) of pixels, positive ones first, and their labels (N,) bool. None in a map without two samples.

    Raises:
        DataError: if the map cannot be used.
    """
    values, _ = checked_map(probability, None)
    near = ndimage.binary_dilation(np.asarray(mask, np.bool_))
    known = np.asarray(valid, np.bool_)
    samples = sample_points(values)
    kinds = _by_kind(candidate_paths(values, samples).paths, near, known)
    wanted = {True: count - count // 2, False: count // 2}
    chosen = {
        kind: [paths[number] for number in random.permutation(len(paths))[: wanted[kind]].tolist()]
        for kind, paths in kinds.items()
    }
    for _ in range(TRIES * count if len(samples) > 1 else 0):
        if all(len(chosen[kind]) == wanted[kind] for kind in chosen):
            break
        for kind, paths in _by_kind(_made_up(values, samples, random), near, known).items():
            chosen[kind] += paths[: wanted[kind] - len(chosen[kind])]
    labels = np.repeat([True, False], [len(chosen[True]), len(chosen[False])])
    return chosen[True] + chosen[False], labels


def _by_kind(paths: Sequence[Pixels], near: Bools, known: Bools) -> dict[bool, list[Pixels]]:
    """The positive and the negative ones of those paths that are examples."""
    kinds: dict[bool, list[Pixels]] = {True: [], False: []}
    for path in paths:
        if len(path) >= LEAST and known[tuple(path.T)].all():
            kinds[follows(path, near)].append(path)
    return kinds


def _made_up(values: NDArray[np.float32], samples: Pixels, random: np.random.Generator) -> list[Pixels]:
    """The minimal path from a random sample to another, if it is near, and a straight line from there to anywhere."""
    start, stop = samples[random.choice(len(samples), 2, replace=False)]
    away = np.clip(start + random.integers(-REACH // 2, REACH // 2 + 1, 2), 0, np.array(values.shape) - 1)
    paths = [np.stack(line(*start, *away), axis=1)]
    if np.linalg.norm(stop - start) <= REACH:
        low = np.maximum(np.minimum(start, stop) - REACH // 2, 0)
        high = np.maximum(start, stop) + REACH // 2 + 1
        box = values[low[0] : high[0], low[1] : high[1]]
        paths.append(np.array(route_through_array(1.1 - box, start - low, stop - low)[0]) + low)
    return paths
