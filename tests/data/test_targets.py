import numpy as np
import pytest
from scipy import ndimage

from biocnn.data.targets import exact_distance, truncated_distance
from biocnn.errors import DataError
from biocnn.losses.skeleton_recall import skeleton_tube


@pytest.mark.parametrize("share", [0.001, 0.05, 0.9])
def test_distance_is_the_one_of_brute_force(share: float) -> None:
    mask = np.random.default_rng(3).random((40, 33)) < share
    mask[7, 5] = True
    places = np.argwhere(mask)
    rows, columns = np.mgrid[:40, :33]
    nearest = np.sqrt(((np.stack([rows, columns], 2)[:, :, None] - places) ** 2).sum(3)).min(2)
    found = truncated_distance(mask, 6.5)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.minimum(nearest, 6.5), rtol=1e-6)
    np.testing.assert_array_equal(truncated_distance(mask.astype(np.float32), 6.5), found)


def test_distance_of_a_volume() -> None:
    mask = np.random.default_rng(4).random((5, 9, 8)) < 0.02
    expected = np.minimum(ndimage.distance_transform_edt(~mask), 4)
    np.testing.assert_allclose(truncated_distance(mask, 4), expected, rtol=1e-6)


def test_distance_is_exact_on_a_large_image() -> None:
    inside = np.ones((700, 900), bool)
    inside[13, 870] = inside[650, 20] = False
    expected = ndimage.distance_transform_edt(inside).astype(np.float32)
    for _ in range(5):  # OpenCV's own last bit is not always the same
        np.testing.assert_array_equal(exact_distance(inside), expected)


def test_nothing_and_everything() -> None:
    np.testing.assert_array_equal(truncated_distance(np.zeros((4, 5)), 7), np.full((4, 5), 7))
    np.testing.assert_array_equal(truncated_distance(np.ones((4, 5)), 7), np.zeros((4, 5)))


def test_bad_arguments() -> None:
    for bad in (0, -1, np.inf, np.nan, "15", True):
        with pytest.raises(ValueError, match="max_distance must be positive and finite"):
            truncated_distance(np.ones((2, 2)), bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"received \(1, 1, 3, 3\)"):
        truncated_distance(np.ones((1, 1, 3, 3)))
    for make in (truncated_distance, skeleton_tube):
        for value in (255, 0.5, np.nan):
            with pytest.raises(DataError, match="expected 0 and 1 only"):
                make(np.full((3, 3), value))
