"""Densities at full resolution and summed over cells of pixels, without a change of the count.

A network with the attribute `output_stride` s gives, for images of H x W pixels, maps of ceil(H / s) x ceil(W / s)
cells. Cell (i, j) is the SUM of the density over the pixels ``s i..s i + s - 1`` by ``s j..s j + s - 1``, or as many of
them as there are in the image: the grid is fixed at the first pixel, and the last cells may have fewer pixels. So the
sum of the map is the count at either resolution. Networks without the attribute have 1: cells are pixels.

In training the truth is summed (:func:`sum_pool`) and compared with the output as it is; for a density at full
resolution the output is spread over its cells (:func:`spread`). A resized density has another sum.
"""

import math

import torch
from torch import nn


def output_stride_of(network: nn.Module) -> int:
    """Side in pixels of a cell of the output of a network: its `output_stride`, or 1.

    >>> output_stride_of(nn.Conv2d(3, 1, 3))
    1
    """
    return int(getattr(network, "output_stride", 1))


def sum_pool(density: torch.Tensor, factor: int) -> torch.Tensor:
    """Sum over cells of `factor` x `factor` pixels; the last row and column of cells sum what there is.

    Args:
        density: (..., H, W) float; half precision is summed in single.
        factor: side of a cell; 1 changes nothing.

    Returns:
        (..., ceil(H / factor), ceil(W / factor)), at least float32.

    Raises:
        ValueError: if the factor is less than 1.

    >>> sum_pool(torch.ones(3, 5), 2)
    tensor([[4., 4., 2.],
            [2., 2., 1.]])
    """
    _check_factor(factor)
    density = _single(density)
    height, width = density.shape[-2:]
    padded = nn.functional.pad(density, (0, -width % factor, 0, -height % factor))
    rows, columns = padded.shape[-2] // factor, padded.shape[-1] // factor
    return padded.reshape(*density.shape[:-2], rows, factor, columns, factor).sum((-3, -1))


def spread(cells: torch.Tensor, factor: int, size: tuple[int, int]) -> torch.Tensor:
    """Give every pixel its share of its cell: the inverse of :func:`sum_pool` with the same sum.

    Args:
        cells: (..., ceil(H / factor), ceil(W / factor)) float, sums over cells; half precision becomes single.
        factor: side of a cell in pixels; 1 changes nothing.
        size: (H, W) of the image.

    Returns:
        (..., H, W), at least float32, constant in every cell.

    Raises:
        ValueError: if the factor is less than 1 or the cells are not those of an image of this size.

    >>> spread(torch.tensor([[4.0, 1.0]]), 2, (2, 3))
    tensor([[1.0000, 1.0000, 0.5000],
            [1.0000, 1.0000, 0.5000]])
    """
    _check_factor(factor)
    height, width = size
    expected = (math.ceil(height / factor), math.ceil(width / factor))
    if tuple(cells.shape[-2:]) != expected:
        raise ValueError(
            f"An image of {height}x{width} px has {expected[0]}x{expected[1]} cells of {factor}x{factor} px, received "
            f"{tuple(cells.shape)}."
        )
    cells = _single(cells)
    shares = cells / (_lengths(height, factor, cells)[:, None] * _lengths(width, factor, cells))
    return shares.repeat_interleave(factor, -2)[..., :height, :].repeat_interleave(factor, -1)[..., :width]


def valid_cells(valid: torch.Tensor, factor: int) -> torch.Tensor:
    """Cells of which all pixels are valid: (..., H, W) bool to (..., ceil(H / factor), ceil(W / factor)) bool.

    >>> valid_cells(torch.tensor([[True, True, True], [True, False, True]]), 2)
    tensor([[False,  True]])
    """
    return sum_pool((~valid).float(), factor) == 0


def _lengths(length: int, factor: int, like: torch.Tensor) -> torch.Tensor:
    """Pixels of each cell of an axis."""
    starts = torch.arange(0, length, factor, device=like.device)
    return (length - starts).clamp(max=factor).to(like.dtype)


def _single(values: torch.Tensor) -> torch.Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _check_factor(factor: int) -> None:
    if isinstance(factor, bool) or not isinstance(factor, int) or factor < 1:
        raise ValueError(f"factor must be an int of 1 or more, the side of a cell in pixels, received {factor!r}.")
