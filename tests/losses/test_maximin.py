import itertools
import subprocess
import sys

import numpy as np
import pytest
from scipy import ndimage

from biocnn.losses.maximin import pair_weights, window_starts

CROSS = ndimage.generate_binary_structure(2, 1)


def decisive(height: np.ndarray, on_path: np.ndarray) -> np.ndarray:
    """The pixel that decides each pair, by Floyd and Warshall: (H W, H W) flat indices, -1 where there is no path.

    Of equal heights the first pixel counts as higher: heights are replaced by ranks, which all differ.
    """
    pixels = np.array(list(np.ndindex(height.shape)))
    rank = np.empty(height.size, int)
    rank[np.lexsort((-np.arange(height.size), height.ravel()))] = np.arange(height.size)
    path = np.full((height.size, height.size), -1)
    for u, v in itertools.product(range(height.size), repeat=2):
        if np.abs(pixels[u] - pixels[v]).sum() <= 1 and on_path.flat[u] and on_path.flat[v]:
            path[u, v] = min(rank[u], rank[v])
    for k in range(height.size):
        path = np.maximum(path, np.minimum(path[:, k, None], path[k]))
    pixel_of = np.append(np.argsort(rank), -1)
    return pixel_of[path]


def slow_window(
    height: np.ndarray, near: np.ndarray, background: np.ndarray, counted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Weights of one window, by all its pairs."""
    ends = ~near & counted
    region, _ = ndimage.label(background, CROSS)
    apart, same = np.zeros(height.size), np.zeros(height.size)
    # End points are open: higher than anything else, so none of them decides a pair that is apart.
    through = decisive(np.where(ends, height.max() + 1, height), counted)
    among = decisive(height, ends)
    for u, v in itertools.combinations(np.flatnonzero(ends), 2):
        if among[u, v] >= 0:
            same[among[u, v]] += 1
        if region.flat[u] != region.flat[v] and through[u, v] >= 0:
            apart[through[u, v]] += 1
    return tuple(w.reshape(height.shape) / max(w.sum(), 1) for w in (apart, same))


def slow_weights(
    height: np.ndarray, near: np.ndarray, background: np.ndarray, counted: np.ndarray, window: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    weights, windows = np.zeros((2, *height.shape)), np.zeros((len(height), 2), int)
    for n in range(len(height)):
        for row, column in itertools.product(*(window_starts(size, window) for size in height.shape[1:])):
            place = (n, slice(row, row + window), slice(column, column + window))
            for kind, one in enumerate(slow_window(*(a[place] for a in (height, near, background, counted)))):
                weights[kind][place] += one
                windows[n, kind] += one.any()
    weights /= np.maximum(windows.T, 1)[:, :, None, None]
    return weights[0], weights[1], windows


def picture(shape: tuple[int, ...], seed: int, levels: int = 0) -> tuple[np.ndarray, ...]:
    """Random heights and a few lines of truth; `levels` other than 0 makes ties."""
    rng = np.random.default_rng(seed)
    height = rng.random(shape).astype(np.float32)
    if levels:
        height = (np.floor(height * levels) / levels).astype(np.float32)
    mask = np.zeros(shape, bool)
    for one in mask:
        one[rng.integers(1, shape[1] - 1)] = rng.random() < 0.8
        one[:, rng.integers(1, shape[2] - 1)] |= rng.random() < 0.5
        one[rng.random(one.shape) < 0.1] = False
    near = mask | (rng.random(shape) < 0.1)
    counted = rng.random(shape) > 0.1 * (seed % 2)
    return height, near, ~mask | ~counted, counted


@pytest.mark.parametrize("levels", [0, 3])
def test_a_window_against_all_pairs(levels: int) -> None:
    acted = np.zeros(2)
    for seed in range(20):
        arrays = picture((2, 6, 6), seed, levels)
        found, expected = pair_weights(*arrays, 6), slow_weights(*arrays, 6)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=0)
        acted += found[2].sum(0)
    assert acted.min() >= 12  # or the heights have not been asked much


@pytest.mark.parametrize("shape", [(2, 9, 7), (1, 5, 13), (1, 8, 8), (1, 1, 9)])
def test_windows_against_all_pairs(shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    mask = rng.random(shape) < 0.3
    arrays = rng.random(shape).astype(np.float32), mask, ~mask, np.ones(shape, bool)
    for window in (4, 5, 40):
        if min(window, shape[1]) * min(window, shape[2]) > 64:
            continue
        for one, other in zip(pair_weights(*arrays, window), slow_weights(*arrays, window), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=0)


def test_known_by_hand() -> None:
    # Two regions of 2 and 3 end points on the sides of a wall, whose leak is its middle pixel.
    height = np.array([[[0.9, 0.1, 0.8], [0.5, 0.3, 0.7], [0.0, 0.2, 0.6]]], np.float32)
    wall = np.zeros((1, 3, 3), bool)
    wall[0, :, 1] = True
    counted = np.ones((1, 3, 3), bool)
    counted[0, 2, 0] = False
    apart, same, windows = pair_weights(height, wall, ~wall, counted, 3)
    np.testing.assert_array_equal(apart, [[[0, 0, 0], [0, 1, 0], [0, 0, 0]]])
    # One pair at the left, decided by 0.5; three at the right, one by 0.7 and two by 0.6.
    np.testing.assert_allclose(same, [[[0, 0, 0], [0.25, 0, 0.25], [0, 0, 0.5]]])
    np.testing.assert_array_equal(windows, [[1, 1]])


def test_regions_that_meet_around_the_end_of_a_structure_are_one() -> None:
    wall = np.zeros((1, 7, 7), bool)
    wall[0, :5, 3] = True
    near = ndimage.binary_dilation(wall, ndimage.generate_binary_structure(2, 1)[None], 2)
    near[0, 5:, 2:5] = True  # end points on the two sides are not connected by end points
    apart, _, windows = pair_weights(np.ones((1, 7, 7), np.float32), near, ~wall, np.ones_like(wall), 7)
    assert not apart.any()
    np.testing.assert_array_equal(windows, [[0, 1]])


def test_nothing_to_decide() -> None:
    shape = (2, 5, 5)
    height, no, yes = np.ones(shape, np.float32), np.zeros(shape, bool), np.ones(shape, bool)
    for near, counted in ((yes, yes), (no, no)):
        apart, same, windows = pair_weights(height, near, yes, counted, 3)
        assert not apart.any()
        assert not same.any()
        assert not windows.any()


@pytest.mark.parametrize("size", [1, 5, 31, 32, 33, 63, 64, 65, 100])
def test_windows_cover_every_pixel(size: int) -> None:
    starts = window_starts(size, 32)
    assert len(starts) == -(-size // 32)
    covered = np.zeros(size, int)
    for start in starts:
        assert start + min(32, size) <= size
        covered[start : start + 32] += 1
    assert covered.min() == 1
    assert starts.dtype == np.int64


def test_importing_the_package_does_not_import_the_compiler() -> None:
    code = "import sys, biocnn, biocnn.cli; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
