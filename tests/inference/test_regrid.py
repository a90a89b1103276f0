from itertools import pairwise

import cv2
import numpy as np
import pytest

from biocnn.data.lazy_images import from_array, resampled
from biocnn.inference.regrid import Kind, axis_weights, move_points, regrid, regrid_bands

RANDOM = np.random.default_rng(0)
SCALES = [(2.0, 2.0), (0.4, 0.7), (3.3, 1.0), (0.31, 5.7), (1.0, 1.0)]


def shape_before(target: tuple[int, int], scale: tuple[float, float]) -> tuple[int, int]:
    """Of the grid that an image of the target's shape is resampled to."""
    image = from_array(np.zeros(target), (1.0, 1.0))
    return resampled(image, scale).shape[:2]


@pytest.mark.parametrize("scale", SCALES)
def test_the_sum_of_amounts_stays(scale: tuple[float, float]) -> None:
    target = (61, 47)
    values = RANDOM.random(shape_before(target, scale))
    found = regrid(values, target, scale, "amount")
    assert found.shape == target
    assert found.sum(dtype=float) == pytest.approx(values.sum(), rel=1e-7)  # float32


@pytest.mark.parametrize(("source", "target", "scale"), [(5, 12, 2.4), (7, 3, 0.43), (1, 4, 4.0), (4, 1, 0.3)])
def test_overlaps_by_counting_small_pieces(source: int, target: int, scale: float) -> None:
    """Each source pixel is cut into 20,000 pieces, which are dealt to the target pixel that their middle is in."""
    pieces = 20_000
    ends = np.append(np.arange(source) * scale, target)
    places = [low + (high - low) * (np.arange(pieces) + 0.5) / pieces for low, high in pairwise(ends)]
    expected = np.stack([np.bincount(place.astype(int), minlength=target) / pieces for place in places], axis=1)
    found = axis_weights(source, target, scale, "amount").toarray()
    np.testing.assert_allclose(found, expected, atol=2 / pieces)
    np.testing.assert_allclose(found.sum(0), 1, rtol=1e-12)
    np.testing.assert_allclose(axis_weights(source, target, scale, "value").toarray().sum(1), 1, rtol=1e-12)


def test_values_on_a_finer_grid_are_those_of_opencv() -> None:
    values = RANDOM.random((20, 31)).astype(np.float32)
    found = regrid(values, (60, 62), (3.0, 2.0), "value")
    np.testing.assert_allclose(found, cv2.resize(values, (62, 60), interpolation=cv2.INTER_LINEAR), atol=1e-6)


def test_values_on_a_coarser_grid_are_means() -> None:
    values = RANDOM.random((30, 42))
    found = regrid(values, (10, 21), (1 / 3, 1 / 2), "value")
    np.testing.assert_allclose(found, values.reshape(10, 3, 21, 2).mean((1, 3)), rtol=1e-6)


@pytest.mark.parametrize("kind", ["value", "amount"])
@pytest.mark.parametrize("scale", SCALES)
def test_bands_do_not_matter(scale: tuple[float, float], kind: Kind) -> None:
    target = (61, 47)
    source = shape_before(target, scale)
    values = RANDOM.random(source)
    cuts = np.unique(RANDOM.integers(0, source[0], 5))
    found = list(regrid_bands(np.split(values, cuts), source, target, scale, kind))
    np.testing.assert_allclose(np.concatenate(found), regrid(values, target, scale, kind), rtol=1e-6)


def test_points_go_where_their_pixels_go() -> None:
    points = np.array([[0.0, 3.0], [4.0, 4.0]])
    # Pixel 0 of twice the size covers the pixels 0 and 1; the last point would lie beyond the border.
    np.testing.assert_array_equal(move_points(points, (9, 40), (2.0, 4.0)), np.float32([[0.5, 13.5], [8.5, 17.5]]))
    assert move_points(points[:0], (9, 9), (2.0, 2.0)).shape == (0, 2)
