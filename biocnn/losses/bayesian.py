"""Bayesian loss: points supervise the map by what is expected of each, without a kernel as the truth.

Reference: Ma, Wei, Hong, Gong: Bayesian loss for crowd count estimation with point supervision. ICCV 2019, arXiv
1908.03684.
"""

import math

import torch
from torch.utils.checkpoint import checkpoint

from biocnn.losses.density import DensityLoss, Points
from biocnn.networks.resolution import sum_pool

# Weights that are held at a time: 4 million float32 are 16 MB, and larger chunks are not faster.
CHUNK = 4_194_304


class BayesianLoss(DensityLoss):
    """|1 - c_1| + ... + |1 - c_N| + |c_0| for each sample, in cells; c_n is the count expected of point n.

    A pixel at distance d_n from point n belongs to it with the posterior probability softmax_n(-d_n^2 / (2 sigma^2)),
    and to the background as if that were a point at distance `margin` - min_n d_n (paper, eq. 13 to 17), so that it
    begins half of `margin` from the nearest point. c_n is the sum of the density by these probabilities. (The authors'
    code has (margin / d)^2 in place of the last distance squared, which is not of the same unit.) A sample without
    points costs |sum of the density|.

    Floor: dots farther than 6 sigma from each other, as a density, cost 2 N exp(-margin^2 / (2 sigma^2)), which is
    0.07 % of N by default; nearer ones share what lies between them, and their image of dots costs more.

    Time is O(N H W). Memory is not: pixels are done in chunks, which are computed again for the gradient.

    Args:
        sigma: in pixels, positive; 8 in the paper, for heads in photographs. It ought to be below the distance of
            neighbouring cells.
        margin: in pixels, positive; 4 sigma if not given. infinity leaves the background out: all of the density
            belongs to some point.
        stride: whole number of pixels; the density is summed over blocks of this side first, which saves the square of
            it in time, and places are then known to half of it.

    Raises:
        ValueError: if an argument is out of range.
    """

    name = "bayesian"
    in_cells = True
    needs_points = True

    def __init__(self, sigma: float = 8.0, margin: float | None = None, stride: int = 1) -> None:
        super().__init__()
        if not (math.isfinite(sigma) and sigma > 0):
            raise ValueError(f"sigma must be positive and finite, received {sigma}.")
        if margin is not None and not margin > 0:
            raise ValueError(f"margin must be positive, received {margin}.")
        self.sigma = float(sigma)
        self.margin = 4 * self.sigma if margin is None else float(margin)
        self.stride = check_stride(stride)

    def per_sample(
        self, prediction: torch.Tensor, density: torch.Tensor, points: Points, valid: torch.Tensor | None
    ) -> torch.Tensor:
        """(B,); arguments as for :meth:`DensityLoss.per_sample`."""
        maps = sum_pool(prediction, self.stride)[:, 0]
        places = block_centres(maps, self.stride)
        return torch.stack([self._one(one.flatten(), places, p) for one, p in zip(maps, points, strict=True)])

    def _one(self, mass: torch.Tensor, places: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        if not len(points):
            return mass.sum().abs()
        pixels = max(CHUNK // len(points), 1)
        expected = torch.stack(
            [
                checkpoint(_expected, part, where, points, self.sigma, self.margin, use_reentrant=False)
                for part, where in zip(mass.split(pixels), places.split(pixels), strict=True)
            ]
        ).sum(0)
        return (1 - expected[:-1]).abs().sum() + expected[-1].abs()

    def extra_repr(self) -> str:
        """The arguments, for printing."""
        return f"sigma={self.sigma}, margin={self.margin}, stride={self.stride}"


def block_centres(maps: torch.Tensor, stride: int) -> torch.Tensor:
    """Centres (H * W, 2) of the blocks of maps (..., H, W) as `block_sums` makes them, in pixels, row by row."""
    rows, columns = (
        torch.arange(size, device=maps.device, dtype=maps.dtype) * stride + (stride - 1) / 2 for size in maps.shape[-2:]
    )
    return torch.cartesian_prod(rows, columns)


def squared_distances(points: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """(N, P) of points (N, 2) and places (P, 2); by differences, which do not cancel as the usual product does."""
    row, column = (points[:, None, axis] - places[None, :, axis] for axis in (0, 1))
    return row.square() + column.square()


def check_stride(stride: int) -> int:
    """Return `stride`.

    Raises:
        ValueError: if it is not an int of 1 or more.
    """
    if isinstance(stride, bool) or not isinstance(stride, int) or stride < 1:
        raise ValueError(f"stride must be an int of 1 or more, received {stride!r}.")
    return stride


def _expected(
    mass: torch.Tensor, places: torch.Tensor, points: torch.Tensor, sigma: float, margin: float
) -> torch.Tensor:
    """Counts (N + 1,) expected of each point, and of the background last, of a mass (P,) at places (P, 2)."""
    squares = squared_distances(points, places)
    background = (margin - squares.amin(0, keepdim=True).sqrt()).square()
    weights = torch.softmax(torch.cat([squares, background]) / (-2 * sigma**2), 0)
    return weights @ mass
