import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage

from biocnn.data.density import TRUNCATE, inside_frame, kernel_widths, rasterise
from biocnn.errors import DataError
from biocnn.networks.resolution import sum_pool


def scattered(count: int, shape: tuple[int, int], seed: int = 0) -> NDArray[np.float64]:
    """Points anywhere in the frame, the first ones on its corners."""
    places = np.random.default_rng(seed).uniform(-0.5, np.array(shape) - 0.5, (count, 2))
    corners = np.array([[-0.5, -0.5], [shape[0] - 0.5, shape[1] - 0.5], [0, 0], [shape[0] - 1, -0.5]])
    places[: len(corners)] = corners[:count]
    return places


def dots(points: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.float64]:
    image = np.zeros(shape)
    np.add.at(image, tuple(points.astype(int).T), 1)
    return image


def mirrored(place: float, sigma: float, size: int) -> NDArray[np.float64]:
    """One axis by brute force: the kernel on a line, cut, of sum 1, whose pixels are walked back and forth."""
    reach = int(TRUNCATE * sigma + 0.5) + 0.5
    far = int(reach) + 2
    line = np.arange(int(place) - far, int(place) + far + 1)
    weights = np.where(abs(line - place) <= reach, np.exp(-(((line - place) / sigma) ** 2) / 2), 0)
    kernel = np.zeros(size)
    there_and_back = [*range(size), *reversed(range(size))]
    for pixel, weight in zip(line, weights / weights.sum(), strict=True):
        kernel[there_and_back[pixel % (2 * size)]] += weight
    return kernel


def oracle(points: NDArray[np.float64], shape: tuple[int, int], sigma: NDArray[np.float64]) -> NDArray[np.float64]:
    density = np.zeros(shape)
    for (row, column), (down, across) in zip(points, np.broadcast_to(sigma, points.shape), strict=True):
        density += np.outer(mirrored(row, down, shape[0]), mirrored(column, across, shape[1]))
    return density


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 3), (7, 40), (50, 31)])
@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 3.0, 11.0])
def test_density_is_the_one_of_the_oracle_and_its_sum_the_count(shape: tuple[int, int], sigma: float) -> None:
    points = scattered(25, shape)
    density = rasterise(points, shape, sigma)
    assert density.dtype == np.float32
    assert density.min() >= 0
    expected = oracle(points, shape, np.array([sigma, sigma]))
    np.testing.assert_allclose(density, expected, rtol=0, atol=1e-6 * max(1.0, expected.max()))
    assert density.sum(dtype=np.float64) == pytest.approx(25, abs=1e-4)


def test_every_point_has_a_width_of_its_own() -> None:
    points, sigma = scattered(30, (40, 33), 1), np.random.default_rng(2).uniform(0.3, 9, (30, 2))
    np.testing.assert_allclose(rasterise(points, (40, 33), sigma), oracle(points, (40, 33), sigma), rtol=0, atol=1e-6)
    one = rasterise(points, (40, 33), sigma[:, 0])
    np.testing.assert_array_equal(one, rasterise(points, (40, 33), np.repeat(sigma[:, :1], 2, axis=1)))
    alone = sum(rasterise(point[None], (40, 33), width) for point, width in zip(points, sigma[:, 0], strict=True))
    np.testing.assert_allclose(one, alone, rtol=0, atol=1e-6)


def test_whole_numbers_give_the_filters_of_scipy_and_opencv() -> None:
    shape, sigma = (90, 120), 4.0
    points = np.floor(scattered(200, shape) + 0.5).clip(0, np.array(shape) - 1)
    density = rasterise(points, shape, sigma)
    image = dots(points, shape)
    filtered = ndimage.gaussian_filter(image, sigma, mode="reflect", truncate=TRUNCATE)
    np.testing.assert_allclose(density, filtered, rtol=0, atol=1e-6 * filtered.max())
    blurred = cv2.GaussianBlur(image, (33, 33), sigma, borderType=cv2.BORDER_REFLECT)
    np.testing.assert_allclose(density, blurred, rtol=0, atol=1e-6 * filtered.max())
    # What counting repositories do loses what lies beyond the border, here 5 % of the count.
    padded = ndimage.gaussian_filter(image, sigma, mode="constant", truncate=TRUNCATE)
    assert 200 - padded.sum() > 5
    assert density.sum(dtype=np.float64) == pytest.approx(200, abs=1e-4)


@pytest.mark.parametrize("sigma", [0.5, 1.3, 4.0])
def test_sum_of_very_many_points_is_as_exact_as_float32(sigma: float) -> None:
    density = rasterise(np.floor(scattered(50_000, (300, 400)) + 0.5).clip(0, 299), (300, 400), sigma)
    assert density.sum(dtype=np.float64) == pytest.approx(50_000, rel=6e-8)


def test_turning_the_points_turns_the_density() -> None:
    shape = (24, 24)
    points = np.concatenate([scattered(20, shape, 3), [[3.5, 7.5], [10.5, 2.0]]])  # halves lie between pixels
    density = rasterise(points, shape, 1.7)
    flipped = np.stack([points[:, 0], 23 - points[:, 1]], axis=1)
    np.testing.assert_allclose(rasterise(flipped, shape, 1.7), density[:, ::-1], rtol=0, atol=1e-7)
    turned = np.stack([23 - points[:, 1], points[:, 0]], axis=1)
    np.testing.assert_allclose(rasterise(turned, shape, 1.7), np.rot90(density), rtol=0, atol=1e-7)


def test_zooming_the_points_keeps_the_count_where_zooming_the_density_does_not() -> None:
    shape = (100, 100)
    points = scattered(60, shape, 4)
    for zoom in (0.7, 1.3):
        centre = 49.5
        moved = (points - centre) * zoom + centre
        kept = moved[inside_frame(moved, shape)]
        assert rasterise(kept, shape, 2.0).sum(dtype=np.float64) == pytest.approx(len(kept), abs=1e-4)
    density = rasterise(points, shape, 2.0)
    assert abs(cv2.resize(density, (70, 70)).sum() - 60) > 20


def test_no_point_and_one_point() -> None:
    for nothing in ([], np.zeros((0, 2)), np.zeros((0, 2), np.float32)):
        np.testing.assert_array_equal(rasterise(nothing, (4, 5)), np.zeros((4, 5), np.float32))
    assert rasterise(np.zeros((0, 2)), (4, 5), np.zeros(0)).sum() == 0
    narrow = rasterise([[2, 3]], (4, 5), 0.001)
    assert np.argwhere(narrow).tolist() == [[2, 3]]
    assert narrow[2, 3] == 1
    assert rasterise([[1.5, 3]], (4, 5), 0.001)[1:3, 3].tolist() == [0.5, 0.5]


def test_points_that_are_not_in_the_frame_are_refused() -> None:
    with pytest.raises(DataError, match=r"1 of 2 points lie outside the frame of 4x9 px .* row 3.6, column 7. Check"):
        rasterise([[1, 1], [3.6, 7]], (4, 9))
    with pytest.raises(DataError, match="With row and column swapped all would lie inside"):
        rasterise([[8, 1], [3, 1]], (4, 9))
    with pytest.raises(DataError, match="1 of 2 points are NaN or infinite"):
        rasterise([[1, 1], [np.nan, 1]], (4, 9))


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"expected shape \(N, 2\), row and column, received \(3,\)"):
        rasterise([1.0, 2.0, 3.0], (4, 5))
    with pytest.raises(ValueError, match="at least one row"):
        rasterise([], (0, 5))
    for sigma in (0, -1, np.nan, np.inf, 10_001):
        with pytest.raises(ValueError, match=r"sigma: expected 0.001 to 10,000 pixels"):
            rasterise([[1, 1]], (4, 5), sigma)
    with pytest.raises(ValueError, match=r"received \(3,\)"):
        rasterise([[1, 1]], (4, 5), [1, 1, 1])
    for arguments in ({"neighbours": -1}, {"bounds": (0, 3)}, {"bounds": (4, 3)}, {"beta": 0}):
        with pytest.raises(ValueError, match="Expected neighbours of 0 or more"):
            kernel_widths([[1, 1]], **arguments)
    with pytest.raises(ValueError, match="sigma must be positive"):
        kernel_widths([[1, 1]], 0)
    with pytest.raises(ValueError, match="needs a positive pixel size, received None"):
        kernel_widths([[1, 1]], 2, "um")
    with pytest.raises(ValueError, match="expected 'pixel' or 'um', received 'mm'"):
        kernel_widths([[1, 1]], 2, "mm")  # type: ignore[arg-type]


def test_widths_from_neighbours_are_those_of_brute_force() -> None:
    points = scattered(40, (200, 300), 5)
    distance = np.sort(np.linalg.norm(points[:, None] - points, axis=2), axis=1)
    expected = np.clip(0.3 * distance[:, 1:4].mean(axis=1), 2, 9)
    widths = kernel_widths(points, neighbours=3, bounds=(2, 9))
    assert widths.shape == (40, 2)
    np.testing.assert_allclose(widths, np.repeat(expected[:, None], 2, axis=1), rtol=1e-12)
    assert len(np.unique(expected)) > 10
    assert rasterise(points, (200, 300), widths).sum(dtype=np.float64) == pytest.approx(40, abs=1e-4)


def test_widths_of_few_points() -> None:
    assert kernel_widths([], 2.0).shape == kernel_widths([], neighbours=3).shape == (0, 2)
    assert kernel_widths([[1, 1]], neighbours=3, bounds=(2, 9)).tolist() == [[9, 9]]
    assert kernel_widths([[0, 0], [0, 20]], neighbours=3, bounds=(2, 9)).tolist() == [[6, 6], [6, 6]]
    assert kernel_widths([[5, 5], [5, 5]], neighbours=1, bounds=(2, 9)).tolist() == [[2, 2], [2, 2]]
    assert kernel_widths([[5, 5]], 3, "um", pixel_size_um=(0.5, 0.25)).tolist() == [[6, 12]]


@pytest.mark.parametrize("factor", [1, 2, 3, 8])
def test_sum_pool_keeps_the_sum_for_any_size(factor: int) -> None:
    for shape in [(250, 250), (8, 16), (5, 7), (1, 1)]:
        density = torch.from_numpy(rasterise(scattered(50, shape, 6), shape, 1.0))[None, None]
        pooled = sum_pool(density, factor)
        assert pooled.shape[2:] == (-(-shape[0] // factor), -(-shape[1] // factor))
        assert pooled.sum(dtype=torch.float64).item() == pytest.approx(50, abs=1e-4)
        block = density[0, 0, :factor, -(((shape[1] - 1) % factor) + 1) :].sum().item()
        assert pooled[0, 0, 0, -1].item() == pytest.approx(block, abs=1e-5)


def test_resizing_instead_of_summing_is_wrong() -> None:
    # Cubic interpolation as in CSRNet, and areas with the factor of sizes that do not divide.
    density = rasterise(scattered(400, (250, 250), 7), (250, 250), 1.0)
    assert abs(64 * cv2.resize(density, (31, 31), interpolation=cv2.INTER_CUBIC).sum() - 400) > 5
    assert abs(64 * cv2.resize(density, (31, 31), interpolation=cv2.INTER_AREA).sum() - 400) > 5
    pooled = sum_pool(torch.from_numpy(density)[None, None], 8)
    assert pooled.sum().item() == pytest.approx(400, abs=1e-3)


def test_sum_pool_of_half_precision_is_float32() -> None:
    density = torch.full((2, 1, 64, 64), 100.0, dtype=torch.float16)
    pooled = sum_pool(density, 32)  # 102,400 each, beyond float16
    assert pooled.dtype == torch.float32
    assert pooled.flatten().tolist() == [102_400.0] * 8
    with torch.autocast("cpu", torch.bfloat16):
        assert sum_pool(density, 32).dtype == torch.float32


def test_sum_pool_passes_gradients_and_refuses_nonsense() -> None:
    density = torch.rand(1, 2, 5, 4, requires_grad=True)
    sum_pool(density, 3).sum().backward()
    assert density.grad is not None
    torch.testing.assert_close(density.grad, torch.ones(1, 2, 5, 4))
    for factor in (0, -2, 2.0, True):
        with pytest.raises(ValueError, match="factor must be an int of 1 or more"):
            sum_pool(density, factor)  # type: ignore[arg-type]
