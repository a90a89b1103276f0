"""Images brought to another pixel size: means of areas, straight lines kept, and no trace of how they are read."""

import cv2
import numpy as np
import pytest

from biocnn.data.lazy_images import from_array, resampled
from biocnn.errors import DataError

ALL = slice(None)


def resample(array: np.ndarray, old: tuple[float, float], new: tuple[float, float]) -> np.ndarray:
    return resampled(from_array(array, old), new).read(ALL, ALL)


def area_average(array: np.ndarray, ratio: float) -> np.ndarray:
    """Means over the squares of new pixels, by the overlap of each pair of intervals; float64."""

    def matrix(length: int) -> np.ndarray:
        weights = np.zeros((round(length / ratio), length))
        for new in range(len(weights)):
            for old in range(length):
                weights[new, old] = max(0.0, min((new + 1) * ratio, old + 1) - max(new * ratio, old))
        return weights / weights.sum(axis=1, keepdims=True)

    return matrix(array.shape[0]) @ array @ matrix(array.shape[1]).T


@pytest.mark.parametrize("ratio", [1.25, 1.5, 2.0, 2.7, 7.3])
def test_shrinking_is_the_mean_over_the_new_pixel(ratio: float) -> None:
    array = np.random.default_rng(0).normal(size=(41, 30))
    found = resample(array, (1.0, 1.0), (ratio, ratio))[..., 0]
    np.testing.assert_allclose(found, area_average(array, ratio), rtol=0, atol=1e-12)


def test_shrinking_agrees_with_opencv() -> None:
    array = np.random.default_rng(0).random((40, 60)).astype(np.float32)
    expected = cv2.resize(array, (24, 16), interpolation=cv2.INTER_AREA)
    found = resample(array, (0.2, 0.4), (0.5, 1.0))[..., 0]  # by 2.5
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_enlarging_agrees_with_opencv() -> None:
    array = np.random.default_rng(0).random((10, 12)).astype(np.float32)
    expected = cv2.resize(array, (48, 40), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(resample(array, (1.0, 1.0), (0.25, 0.25))[..., 0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(0.3, 0.7), (1.0, 1.0), (2.0, 3.0), (4.5, 0.9), (100.0, 100.0)])
def test_a_constant_and_a_linear_ramp(size: tuple[float, float]) -> None:
    np.testing.assert_allclose(resample(np.full((23, 17), 3.0), (1.0, 1.0), size), 3.0, rtol=1e-14)
    rows, columns = np.mgrid[:24, :18] + 0.5  # the physical position of the centre of a pixel
    found = resample(np.stack([rows, columns], -1), (1.0, 1.0), size)
    for axis in (0, 1):
        centres = (np.arange(found.shape[axis]) + 0.5) * size[axis]
        values = found[:, 0, 0] if axis == 0 else found[0, :, 1]
        inside = (centres > 0.5) & (centres < (24, 18)[axis] - max(0.5, size[axis] / 2) + 1e-9)
        # The mean over a part of a pixel is off by at most an eighth of a pixel; with whole pixels it is exact.
        tolerance = 1e-12 if size[axis] <= 1 or size[axis] == int(size[axis]) else 0.125
        np.testing.assert_allclose(values[inside], centres[inside], rtol=0, atol=tolerance)


def test_shape_pixel_size_and_dtype() -> None:
    image = resampled(from_array(np.zeros((100, 31, 2), np.uint16), (0.5, 0.25)), (1.0, 0.5))
    assert (image.shape, image.dtype, image.pixel_size_um) == ((50, 16, 2), np.uint16, (1.0, 0.5))
    assert resampled(from_array(np.zeros((3, 3)), (1.0, 1.0)), (50.0, 50.0)).shape == (1, 1, 1)
    same = np.random.default_rng(0).integers(0, 65536, (9, 8), np.uint16)
    np.testing.assert_array_equal(resample(same, (0.3, 0.3), (0.3, 0.3))[..., 0], same)
    assert resample(np.array([[0, 255], [255, 255]], np.uint8), (1.0, 1.0), (2.0, 2.0)).tolist() == [[[191]]]
    assert resample(np.array([[True, True], [True, False]]), (1.0, 1.0), (2.0, 2.0)).tolist() == [[[True]]]


@pytest.mark.parametrize("size", [(0.37, 0.61), (1.9, 3.3), (0.8, 2.0)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_value_does_not_depend_on_the_part_it_is_read_in(size: tuple[float, float], dtype: type) -> None:
    rng = np.random.default_rng(0)
    image = resampled(from_array((rng.random((90, 70, 2)) * 255).astype(dtype), (1.0, 1.0)), size)
    whole = image.read(ALL, ALL)
    for _ in range(20):
        top, bottom = sorted(rng.integers(0, image.shape[0] + 1, 2).tolist())
        left, right = sorted(rng.integers(0, image.shape[1] + 1, 2).tolist())
        part = image.read(slice(top, bottom), slice(left, right))
        np.testing.assert_array_equal(part, whole[top:bottom, left:right])


def test_strong_shrinking_is_done_in_steps() -> None:
    blocks = np.random.default_rng(0).integers(0, 256, (200, 100), np.uint8)
    large = blocks.repeat(30, 0).repeat(30, 1)  # 18 million pixels, 72 MB as float32: more than one step
    np.testing.assert_array_equal(resample(large, (1.0, 1.0), (30.0, 30.0))[..., 0], blocks)


def test_no_number_stays_where_it_is() -> None:
    array = np.ones((8, 8))
    array[3, 3] = np.nan
    expected = np.zeros((4, 4), bool)
    expected[1, 1] = True
    np.testing.assert_array_equal(np.isnan(resample(array, (1.0, 1.0), (2.0, 2.0))[..., 0]), expected)


def test_what_cannot_be_resampled() -> None:
    with pytest.raises(DataError, match="does not say its pixel size"):
        resampled(from_array(np.zeros((3, 3))), (1.0, 1.0))
    with pytest.raises(DataError, match=r"positive numbers of micrometres, received \(0\.0, 1\.0\)"):
        resampled(from_array(np.zeros((3, 3)), (1.0, 1.0)), (0.0, 1.0))
