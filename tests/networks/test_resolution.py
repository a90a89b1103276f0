import numpy as np
import pytest
import torch
from torch import nn

from biocnn.networks.resolution import output_stride_of, spread, sum_pool, valid_cells

SIZES = [(16, 24), (17, 24), (23, 31), (1, 1), (3, 50), (8, 9)]


def by_hand(density: np.ndarray, factor: int) -> np.ndarray:
    rows, columns = -(-density.shape[0] // factor), -(-density.shape[1] // factor)
    cells = np.empty((rows, columns))
    for row in range(rows):
        for column in range(columns):
            block = density[row * factor : (row + 1) * factor, column * factor : (column + 1) * factor]
            cells[row, column] = block.sum()
    return cells


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("factor", [1, 2, 3, 8])
def test_cells_sum_their_pixels_and_pixels_share_their_cell(size: tuple[int, int], factor: int) -> None:
    torch.manual_seed(0)
    density = torch.rand(2, 1, *size, dtype=torch.float64)
    cells = sum_pool(density, factor)
    for number in range(2):
        np.testing.assert_allclose(cells[number, 0], by_hand(density[number, 0].numpy(), factor), rtol=1e-13)
    torch.testing.assert_close(cells.sum((2, 3)), density.sum((2, 3)), rtol=1e-13, atol=0)
    full = spread(cells, factor, size)
    assert full.shape == density.shape
    torch.testing.assert_close(full.sum((2, 3)), density.sum((2, 3)), rtol=1e-13, atol=0)
    torch.testing.assert_close(sum_pool(full, factor), cells, rtol=1e-13, atol=0)  # spread is its right inverse


def test_whole_numbers_are_exact_in_single_precision() -> None:
    """Densities that are multiples of 2^-10 add up without rounding: the count is the same to the last bit."""
    torch.manual_seed(0)
    density = torch.randint(0, 40, (1, 1, 250, 173)).float() / 1024
    assert float(sum_pool(density, 8).double().sum()) == float(density.double().sum())
    # 250 = 31 x 8 + 2 rows: the last cells are shared by powers of two here, too.
    cells = torch.randint(0, 100, (1, 1, 32, 22)).float()
    assert float(spread(cells, 8, (250, 172)).double().sum()) == float(cells.sum())


def test_gradients() -> None:
    density = torch.rand(1, 2, 5, 7, dtype=torch.float64, requires_grad=True)
    cells = torch.rand(1, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda values: sum_pool(values, 3), density)
    assert torch.autograd.gradcheck(lambda values: spread(values, 3, (5, 7)), cells)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_single(dtype: torch.dtype) -> None:
    density = torch.full((1, 1, 300, 300), 1.0, dtype=dtype)  # the sum is more than half precision holds
    cells = sum_pool(density, 300)
    assert cells.dtype == torch.float32
    assert float(cells) == 90_000
    assert spread(torch.full((1, 1), 3.0, dtype=dtype), 8, (3, 3)).dtype == torch.float32


def test_a_cell_with_one_invalid_pixel_is_invalid() -> None:
    valid = torch.ones(1, 1, 17, 20, dtype=torch.bool)
    valid[0, 0, 9, 3] = False
    expected = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    expected[0, 0, 1, 0] = False
    assert torch.equal(valid_cells(valid, 8), expected)
    assert torch.equal(valid_cells(valid, 1), valid)


def test_networks_say_their_cells() -> None:
    network = nn.Conv2d(3, 1, 3)
    assert output_stride_of(network) == 1
    network.output_stride = 4  # type: ignore[assignment]
    assert output_stride_of(network) == 4


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"int of 1 or more, the side of a cell in pixels, received 0"):
        sum_pool(torch.rand(3, 3), 0)
    with pytest.raises(ValueError, match=r"image of 17x20 px has 3x3 cells of 8x8 px, received \(1, 1, 2, 3\)"):
        spread(torch.rand(1, 1, 2, 3), 8, (17, 20))
