from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from biocnn.errors import DataError
from biocnn.inference.band_points import find_peaks_in_bands, points_of_bands, with_margin
from biocnn.inference.bands import call_bands, sum_bands
from biocnn.inference.counting import density_points
from biocnn.inference.peaks import find_peaks
from biocnn.metrics.calling import call_structure


def cut(array: np.ndarray, seed: int = 0, highest: int = 9) -> Iterator[np.ndarray]:
    """Bands of 1 to `highest` rows."""
    heights = np.random.default_rng(seed).integers(1, highest + 1, len(array))
    return iter([band for band in np.split(array, np.cumsum(heights)) if len(band)])


def spiral(side: int) -> np.ndarray:
    """One component, a line of 1 that winds through nearly all rows: bands see it in many pieces."""
    array = np.zeros((side, side), np.float32)
    for ring in range(0, side // 2, 4):
        inner = side - 1 - ring
        array[ring, ring : inner + 1] = array[ring : inner + 1, inner] = array[inner, ring + 2 : inner + 1] = 1
        array[ring + 4 : inner + 1, ring + 2] = 1
        array[min(ring + 4, side - 1), ring + 2 : ring + 5] = 1
    return array


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("least", [0, 1, 2, 7, 40])
def test_structure_is_called_as_in_the_whole_map(seed: int, least: int) -> None:
    random = np.random.default_rng(seed)
    noise = gaussian_filter(random.random((97, 43)), seed / 4).astype(np.float32)
    threshold = float(np.quantile(noise, 0.6))
    found = list(call_bands(lambda: cut(noise, seed), threshold, least))
    assert [band.shape for band in found] == [band.shape for band in cut(noise, seed)]
    np.testing.assert_array_equal(np.concatenate(found), call_structure(noise, threshold, least))


@pytest.mark.parametrize("highest", [1, 5, 30])
def test_a_component_that_winds_through_all_bands_is_one(highest: int) -> None:
    array = spiral(61)
    pixels = int(array.sum())
    for least in (pixels, pixels + 1):
        found = np.concatenate(list(call_bands(lambda: cut(array, 0, highest), 0.5, least)))
        np.testing.assert_array_equal(found, call_structure(array, 0.5, least))
        assert found.sum() == (pixels if least == pixels else 0)  # it is one component, or this tests nothing


def test_diagonals_join_across_a_border_in_both_directions() -> None:
    for array in (np.eye(6), np.eye(6)[:, ::-1]):
        found = np.concatenate(list(call_bands(partial(cut, array, 0, 1), 0.5, 6)))
        np.testing.assert_array_equal(found, array == 1)


def test_nothing_and_everything_are_called() -> None:
    for value in (0.0, 1.0):
        array = np.full((11, 5), value)
        found = np.concatenate(list(call_bands(partial(cut, array), 0.5, 3)))
        assert (found == (value == 1)).all()
    assert list(call_bands(list, 0.5, 3)) == []
    with pytest.raises(ValueError, match="received -1"):
        list(call_bands(list, 0.5, -1))


def test_the_sum_is_exact() -> None:
    # In float32, of which 2**24 + 1 is none, the ones would be lost.
    array = np.concatenate([np.full((1, 2), 2.0**24), np.ones((1000, 2))]).astype(np.float32)
    assert sum_bands(cut(array)) == 2.0**25 + 2000
    assert sum_bands([]) == 0


def dots(shape: tuple[int, int], number: int, sigma: float, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    array = np.zeros(shape, np.float32)
    np.add.at(array, (random.integers(0, shape[0], number), random.integers(0, shape[1], number)), 1)
    return gaussian_filter(array, sigma) + 1e-4 * random.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"min_distance": 4.0, "refine": True, "count": 150},
        {"min_distance": 2.0, "smooth": 2.0, "refine": True, "threshold": 0.1},
    ],
)
@pytest.mark.parametrize("highest", [7, 90])
def test_peaks_are_those_of_the_whole_map(options: dict[str, Any], highest: int) -> None:
    density = dots((700, 90), 200, 2, 0)
    density[300:303, 40:45] = 0.2  # a plateau
    found = find_peaks_in_bands(cut(density, 1, highest), 2.0, **options)
    # To half the spacing of float32 at 700, as centres of plateaus are means of other row numbers.
    np.testing.assert_allclose(found, find_peaks(density, 2.0, **options), rtol=0, atol=3e-5)
    assert len(found) > 100


def test_points_of_a_task_are_those_of_the_whole_map() -> None:
    for stride in (1, 4):
        network = SimpleNamespace(output_stride=stride)
        task: Any = SimpleNamespace(data_description={"sigma": 2.0 * stride}, network=network)
        density = np.kron(dots((160, 30), 60, 2, 2), np.full((stride, stride), 1 / stride**2, np.float32))
        found, whole = points_of_bands(task, partial(cut, density, 3, 40)), density_points(task, density)
        assert found is not None
        assert whole is not None
        np.testing.assert_allclose(found, whole, rtol=0, atol=3e-5)
        assert len(found) > 20
    task.data_description = {}
    assert points_of_bands(task, lambda: cut(density)) is None


def test_peaks_of_nothing_and_of_what_is_not_finite() -> None:
    assert find_peaks_in_bands([], 1.0).shape == (0, 2)
    density = np.zeros((9, 4))
    assert find_peaks_in_bands(cut(density), 1.0).shape == (0, 2)
    density[7, 1] = np.nan
    with pytest.raises(DataError, match="rows 0 to 8"):
        find_peaks_in_bands(cut(density), 1.0)


@pytest.mark.parametrize("margin", [0, 1, 4, 30])
def test_windows_have_their_margin_and_own_rows_follow_each_other(margin: int) -> None:
    array = np.arange(60)[:, None]
    own_rows = []
    for window, start, own in with_margin(cut(array, margin), margin):
        np.testing.assert_array_equal(window[:, 0], np.arange(start, start + len(window)))
        assert own.start >= min(margin, start + own.start)
        assert len(window) - own.stop >= min(margin, 60 - start - own.stop)
        own_rows.append(window[own, 0])
    np.testing.assert_array_equal(np.concatenate(own_rows), np.arange(60))
