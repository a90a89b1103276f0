"""Thinning against the same algorithm in scikit-image, and against Euler numbers."""

import numpy as np
from scipy import ndimage
from skimage.measure import euler_number
from skimage.morphology import thin

from biocnn.delineation.thinning import thinned


def test_random_masks_are_thinned_as_by_scikit_image_and_keep_components_and_loops() -> None:
    random = np.random.default_rng(0)
    corners = np.ones((3, 3))
    for turn in range(200):
        mask = random.random(random.integers(1, 15, 2)) < random.uniform(0.1, 0.97)
        if turn % 4 == 0:
            mask = ndimage.gaussian_filter(random.normal(size=(40, 50)), 2) > 0
        before = mask.copy()
        line = thinned(mask)
        assert line.dtype == np.bool_
        np.testing.assert_array_equal(line, thin(mask))
        np.testing.assert_array_equal(mask, before)
        assert ndimage.label(line, corners)[1] == ndimage.label(mask, corners)[1]
        assert euler_number(line, 2) == euler_number(mask, 2)


def test_a_large_blob_needs_many_iterations_and_a_longer_contour() -> None:
    rows, columns = np.indices((300, 300)) - 150
    mask = np.hypot(rows, columns) < 140
    mask[::7, ::11] = False  # holes, and so a contour of more than a thousand pixels
    np.testing.assert_array_equal(thinned(mask), thin(mask))
