from collections import deque
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from skimage.feature import peak_local_max
from skimage.io import imread

from biocnn.errors import DataError
from biocnn.inference.peaks import find_peaks

SHARED_DATA = Path(__file__).parents[2].parent / "shared" / "data"
VGG = SHARED_DATA / "vgg_cells"


def blurred(dots: np.ndarray, sigma: float) -> np.ndarray:
    density: np.ndarray = gaussian_filter(dots.astype(np.float32), sigma, mode="reflect")
    return density


def gaussian_at(row: float, column: float, shape: tuple[int, int], sigma: float) -> np.ndarray:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    exponent = -0.5 * ((rows - row) ** 2 + (columns - column) ** 2) / sigma**2
    density: np.ndarray = np.exp(exponent) / (2 * np.pi * sigma**2)
    return density


def by_flooding(values: np.ndarray) -> set[tuple[float, float]]:
    """Centres of all connected sets of equal pixels, of which none has a higher neighbour, and not the whole map."""
    seen, found = np.zeros(values.shape, bool), set()
    for start in np.ndindex(*values.shape):
        if seen[start]:
            continue
        plateau, queue, top = [], deque([start]), True
        seen[start] = True
        while queue:
            row, column = queue.popleft()
            plateau.append((row, column))
            for r in range(max(0, row - 1), min(values.shape[0], row + 2)):
                for c in range(max(0, column - 1), min(values.shape[1], column + 2)):
                    if values[r, c] > values[start]:
                        top = False
                    elif values[r, c] == values[start] and not seen[r, c]:
                        seen[r, c] = True
                        queue.append((r, c))
        if top and values[start] > 0 and len(plateau) < values.size:
            centre = np.mean(plateau, axis=0).astype(np.float32)
            found.add((float(centre[0]), float(centre[1])))
    return found


@pytest.mark.parametrize("shape", [(30, 41), (1, 17), (17, 1), (2, 9)], ids=str)
@pytest.mark.parametrize("levels", [3, 8, 10_000])
def test_peaks_are_all_plateaus_higher_than_their_surroundings(shape: tuple[int, int], levels: int) -> None:
    rng = np.random.default_rng(levels)
    values = rng.integers(-1, levels, shape) / levels
    points = find_peaks(values, sigma=1, min_distance=0, threshold=0)
    assert points.dtype == np.float32
    assert {(float(row), float(column)) for row, column in points} == by_flooding(values)
    assert len(points) == len(by_flooding(values))


def test_peaks_of_distinct_heights_are_those_of_scikit_image() -> None:
    density = blurred(np.random.default_rng(0).random((60, 70)) < 0.02, 2) + 1e-4
    expected = peak_local_max(density, min_distance=1, exclude_border=False, threshold_abs=0.3 / (8 * np.pi))
    found = find_peaks(density, sigma=2, threshold=0.3)
    single = {tuple(point) for point in found if (point == point.round()).all()}
    assert len(single) > 20
    assert single <= {tuple(point) for point in expected}  # scikit-image gives every pixel of a plateau


def test_cells_at_the_border_and_in_corners_are_found() -> None:
    dots = np.zeros((40, 50))
    places = [(0, 0), (0, 49), (39, 0), (39, 49), (0, 20), (20, 0), (39, 30), (15, 49), (20, 25)]
    for place in places:
        dots[place] = 1
    for refine in (False, True):
        found = find_peaks(blurred(dots, 1.5), 1.5, refine=refine)
        assert sorted(map(tuple, found.round().astype(int).tolist())) == sorted(places)
        # A mirror image pulls at a cell on the border only across it, where it is not refined.
        np.testing.assert_allclose(found, found.round(), rtol=0, atol=0.01)
    # In a corner four mirror images add up.
    assert set(map(tuple, found[:4].tolist())) == {(0, 0), (0, 49), (39, 0), (39, 49)}


def test_a_plateau_is_one_point() -> None:
    density = np.zeros((30, 30), np.float32)
    density[4:12, 8:16] = 0.1  # as of a network whose cells are 8x8 pixels
    density[4:12, 16:24] = 0.09  # a step down
    density[20, :] = 0.2  # a ridge from border to border
    assert find_peaks(density, 1).tolist() == [[20, 14.5], [7.5, 11.5]]
    smooth = find_peaks(density, 1, smooth=2, refine=True)
    assert len(smooth) == 2
    assert 11.5 < float(smooth[1, 1]) < 19.5  # smoothed, it leans to its neighbour


def test_refinement_is_exact_for_a_lone_gaussian() -> None:
    for row, column in ((10.3, 12.45), (9.51, 14.0), (11.0, 11.0)):
        density = gaussian_at(row, column, (25, 27), 1.7)
        np.testing.assert_allclose(find_peaks(density, 1.7, refine=True), [[row, column]], rtol=0, atol=1e-5)
        coarse = find_peaks(density, 1.7)
        assert coarse.tolist() == [[round(row), round(column)]]
    # Beside nothing there is no position to be had from logarithms; the point stays within the pixel.
    lone = np.zeros((5, 5))
    lone[2, 2], lone[2, 3], lone[1, 2] = 0.5, 0.4, -0.1
    ((row, column),) = find_peaks(lone, 1, refine=True).tolist()
    assert abs(row - 2) < 1e-6
    assert 2.3 < column < 2.5


@pytest.mark.parametrize(("sigma", "smooth"), [(2.0, 0.0), (2.0, 1.5), ((1.0, 3.0), 1.0)])
def test_the_unit_of_the_threshold_is_a_lone_cell(sigma: float | tuple[float, float], smooth: float) -> None:
    dots = np.zeros((61, 61))
    dots[30, 30] = 1
    density = gaussian_filter(dots, sigma, truncate=8)
    assert len(find_peaks(density, sigma, threshold=0.97, smooth=smooth)) == 1
    assert len(find_peaks(density, sigma, threshold=1.03, smooth=smooth)) == 0


def test_of_near_points_the_strongest_are_kept() -> None:
    density = np.zeros((12, 40))
    density[5, 3], density[5, 6], density[5, 9] = 0.3, 0.2, 0.1  # the middle one goes, so the last one stays
    density[5, 20], density[8, 24] = 0.25, 0.15  # exactly 5 apart
    assert find_peaks(density, 1, 5).tolist() == [[5, 3], [5, 20], [8, 24], [5, 9]]
    assert find_peaks(density, 1, 5.01).tolist() == [[5, 3], [5, 20], [5, 9]]
    assert len(find_peaks(density, 1)) == 5
    points = find_peaks(np.random.default_rng(0).random((80, 80)), 1, 6.5, threshold=0)
    assert (cdist(points, points) + 100 * np.eye(len(points))).min() >= 6.5


def test_a_count_keeps_the_strongest_and_makes_nothing_up() -> None:
    density = np.zeros((9, 30))
    density[4, [3, 10, 17, 24]] = [0.1, 0.4, 0.3, 0.2]
    assert find_peaks(density, 1, count=2).tolist() == [[4, 10], [4, 17]]
    assert find_peaks(density, 1, count=0).shape == (0, 2)
    assert len(find_peaks(density, 1, count=9)) == 4


def test_maps_without_peaks() -> None:
    blank = (np.zeros((7, 9)), np.full((7, 9), 0.3), np.full((4, 4), -1.0), np.zeros((0, 5)), np.array([[2.0]]))
    for density in blank:
        for smooth in (0, 1):
            points = find_peaks(density, 1, threshold=0, smooth=smooth, refine=True)
            assert points.shape == (0, 2)
            assert points.dtype == np.float32
    assert len(find_peaks(gaussian_at(5, 5, (11, 11), 2) - 1, 2, threshold=0)) == 0  # a peak below zero is none


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    density = np.zeros((7, 9), np.float16)
    density[2, 3] = value
    with pytest.raises(DataError, match="1 values that are not finite"):
        find_peaks(density, 1)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"is \(H, W\), received \(1, 4, 4\)"):
        find_peaks(np.zeros((1, 4, 4)), 1)
    with pytest.raises(ValueError, match=r"sigma must be positive, .* received 0"):
        find_peaks(np.zeros((4, 4)), 0)
    with pytest.raises(ValueError, match="min_distance must be 0 or more and finite, received nan"):
        find_peaks(np.zeros((4, 4)), 1, float("nan"))
    with pytest.raises(ValueError, match="threshold must be 0 or more and finite, received -1"):
        find_peaks(np.zeros((4, 4)), 1, threshold=-1)
    with pytest.raises(ValueError, match="count must be None or 0 or more, received -2"):
        find_peaks(np.zeros((4, 4)), 1, count=-2)


def f1(points: np.ndarray, truth: np.ndarray, tolerance: float) -> float:
    """Of a one-to-one assignment."""
    distance = cdist(points, truth)
    rows, columns = linear_sum_assignment(np.where(distance <= tolerance, distance, 1e6))
    return 2 * int((distance[rows, columns] <= tolerance).sum()) / (len(points) + len(truth))


@pytest.mark.skipif(not VGG.is_dir(), reason="needs ../shared/data/vgg_cells")
def test_ceilings_on_the_true_maps_of_vgg_cells() -> None:
    """How well points are found in perfect maps, mean F1 within 3 pixels over every fourth image.

    scikit-image, which counts each pixel of a plateau as a point, gets 0.995, 0.969 and 0.902. All plateaus are pairs
    of pixels, as two cells an odd number of pixels apart make them: it finds both by accident, on true maps only.
    """
    paths = sorted(VGG.glob("*dots.png"))[::4]
    scores: dict[int, list[float]] = {1: [], 2: [], 3: []}
    lost = 0
    for path in paths:
        dots = imread(path)[..., 0] == 255
        truth = np.argwhere(dots)
        for sigma, found in scores.items():
            found.append(f1(find_peaks(blurred(dots, sigma), sigma), truth, 3))
        points = find_peaks(blurred(dots, 1), 1)
        edge = (np.minimum(truth, 255 - truth) == 0).any(1)
        lost += int((cdist(truth[edge], points).min(1, initial=9) > 2).sum())
    assert len(paths) == 50
    assert lost == 0  # of the cells in the outermost pixels
    for sigma, expected in {1: 0.990, 2: 0.957, 3: 0.891}.items():
        assert np.mean(scores[sigma]) == pytest.approx(expected, abs=0.001)
