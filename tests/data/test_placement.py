import numpy as np
import pytest
from scipy import ndimage

from biocnn.data.placement import SYMMETRIES, Placement

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (40, 50, 3), np.uint8)


def by_definition(array: np.ndarray, place: Placement, order: int) -> np.ndarray:
    """Every tile pixel looked up in the mirrored image by SciPy."""
    steps = np.stack(np.mgrid[: place.size, : place.size]).reshape(2, -1) - (place.size - 1) / 2
    where = np.asarray(place.centre)[:, None] + place.matrix @ steps
    planes = [
        ndimage.map_coordinates(plane.astype(float), where, order=order, mode="mirror")
        for plane in np.moveaxis(array, 2, 0)
    ]
    return np.stack(planes, 1).reshape(place.size, place.size, -1)


@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize(
    ("size", "centre"), [(16, (20.5, 24.5)), (15, (20.0, 24.0)), (16, (-0.5, 49.5)), (32, (39.5, 0.5))]
)
def test_symmetries_copy_pixels(number: int, size: int, centre: tuple[float, float]) -> None:
    place = Placement(centre, SYMMETRIES[number], size)
    assert place.is_exact
    np.testing.assert_array_equal(place.cut(IMAGE), by_definition(IMAGE, place, 0))
    np.testing.assert_array_equal(place.cut(IMAGE[..., 0]), place.cut(IMAGE)[..., 0])


def test_symmetries_are_the_eight() -> None:
    corner = np.arange(16).reshape(4, 4)
    made = {Placement((1.5, 1.5), matrix, 4).cut(corner.astype(np.uint8)).tobytes() for matrix in SYMMETRIES}
    square = corner.astype(np.uint8)
    expected = {np.ascontiguousarray(np.rot90(side, k)).tobytes() for side in (square, square.T) for k in range(4)}
    assert made == expected


@pytest.mark.parametrize("centre", [(20.3, 24.9), (1.0, 48.2), (38.7, 0.0)])
def test_any_angle_and_scale_interpolates_linearly(centre: tuple[float, float]) -> None:
    turn = np.array([[np.cos(0.7), -np.sin(0.7)], [np.sin(0.7), np.cos(0.7)]]) / 1.2
    place = Placement(centre, turn, 24)
    smooth = ndimage.gaussian_filter(IMAGE.astype(np.float32), (3, 3, 0))
    found, expected = place.cut(smooth, smooth=True), by_definition(smooth, place, 1)
    # Positions are rounded to 1/32 px: half of that along both axes, on the steepest slope of the image.
    slope = max(np.abs(np.diff(smooth, axis=axis)).max() for axis in (0, 1))
    assert np.abs(found - expected).max() < 2 * slope / 64 + 1e-3
    assert found.dtype == np.float32


def test_channels_are_turned_alike_however_many() -> None:
    turn = np.array([[0.8, -0.6], [0.6, 0.8]])
    place = Placement((20.0, 20.0), turn, 21)
    many = np.concatenate([IMAGE, IMAGE], axis=2)
    once = place.cut(IMAGE, smooth=True)
    # OpenCV rounds positions for some numbers of channels only: 1/64 px on both axes, of slopes of up to 255.
    np.testing.assert_allclose(place.cut(many, smooth=True), np.concatenate([once, once], axis=2), atol=8)
    np.testing.assert_allclose(place.cut(IMAGE[..., :1], smooth=True), once[..., :1], atol=8)
    assert place.cut(IMAGE.astype(np.uint32), smooth=True).dtype == np.float32


@pytest.mark.parametrize("matrix", [np.eye(2), SYMMETRIES[5], np.array([[0.8, -0.6], [0.6, 0.8]])])
def test_beyond_the_border_is_what_was_asked_for(matrix: np.ndarray) -> None:
    place = Placement((-0.5, 10.5), matrix, 20)
    inside = place.cut(np.ones((40, 50), np.uint8), outside=0)
    rows = (place.centre[0] + (matrix @ (np.stack(np.mgrid[:20, :20]).reshape(2, -1) - 9.5))[0]).reshape(20, 20)
    assert (inside[rows > 0.1] == 1).all()
    assert (inside[rows < -0.6] == 0).all()


def test_large_images_are_cut_before_they_are_turned() -> None:
    long = np.zeros((40_000, 8), np.uint8)  # OpenCV refuses more than 32,767 rows
    long[39_990] = 255
    found = Placement((39_990.0, 4.0), np.array([[0.6, -0.8], [0.8, 0.6]]), 9).cut(long)
    assert found[4, 4] == 255


def test_points_move_with_the_pixels() -> None:
    turn = np.array([[0.6, -0.8], [0.8, 0.6]]) / 1.1
    for matrix in (*SYMMETRIES, turn):
        place = Placement((20.5, 24.5), matrix, 32)
        image = np.zeros((40, 50), np.float32)
        points = np.array([[18, 22], [25, 30], [20, 24]])
        image[tuple(points.T)] = 1
        image = ndimage.gaussian_filter(image, 4)
        found = place.move(points)
        assert ((found >= 0) & (found <= 31)).all()
        spots = ndimage.map_coordinates(place.cut(image, smooth=True), found.T, order=1)
        # Twice interpolated, a peak of standard deviation 4 is lower by up to 2 / (4 * 4^2) of its height.
        np.testing.assert_allclose(spots, image[tuple(points.T)], rtol=0.032)
