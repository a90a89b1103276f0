"""DM-Count: the count, and optimal transport from the predicted density to the points.

Reference: Wang, Liu, Samaras, Nguyen: Distribution matching for crowd counting. NeurIPS 2020, arXiv 2009.13077. The
Sinkhorn iterations are our own, in the domain of logarithms: Peyre, Cuturi: Computational optimal transport. 2019,
section 4.4.
"""

import math

import torch

from biocnn.losses.bayesian import block_centres, check_stride, squared_distances
from biocnn.losses.density import CountL1, DensityLoss, DensitySum, Points, pixel_of
from biocnn.networks.resolution import sum_pool

# Below this many predicted cells a map has no shape to be matched: its gradient would grow as 1 / count, up to dead
# maps, whose count alone is then corrected.
LEAST_COUNT = 0.5


class OptimalTransport(DensityLoss):
    """Cost of moving the predicted density onto the points, both normalised to sum 1, in squared pixels.

    The value is W(a, b) - W(b, b), where W(a, b) = min over plans P of <P, C> + reg KL(P | a b^T), C the squared
    distances, a the density and b the points: 0 if the density is the image of dots. Without the second term, which
    does not depend on the prediction, that would be near reg log N. A density drawn closer together than the points
    may come out somewhat below 0, by W(b, b) at most: the price of regularisation.

    The gradient is that of the paper: with f the potential of the pixels and S the predicted count, it is
    f / S - <f, prediction> / S^2. (The authors' potentials are those of an entropy in place of KL, and infinite where
    the density is 0.)

    Negative densities are no distribution and count as 0 here; the count keeps them. Where less than half a cell is
    predicted, the value is that of a uniform density and there is no gradient; a sample without points costs 0.

    Time and memory are O(N H W), with about three arrays of 260 MB for 1,000 points on 256x256 pixels: see `stride`.

    Args:
        reg: regularisation in squared pixels, positive; 10 in the paper.
        iterations: at most, for each sample; they end when `tolerance` is reached. Before them, the regularisation is
            lowered from the square of the map's diagonal by factors of 4, which takes fewer in all.
        tolerance: L1 error of the marginals of the plan.
        stride: whole number of pixels; density and points are summed over blocks of this side first, which saves the
            square of it in time and memory, and places are then known to half of it.

    Raises:
        ValueError: if an argument is out of range.
    """

    name = "transport"
    in_cells = True
    needs_points = True

    def __init__(self, reg: float = 10.0, iterations: int = 100, tolerance: float = 1e-3, stride: int = 1) -> None:
        super().__init__()
        if not (math.isfinite(reg) and reg > 0):
            raise ValueError(f"reg must be positive and finite, received {reg}.")
        if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
            raise ValueError(f"iterations must be an int of 1 or more, received {iterations!r}.")
        if not (math.isfinite(tolerance) and tolerance >= 0):
            raise ValueError(f"tolerance must be finite and 0 or more, received {tolerance}.")
        self.reg, self.iterations, self.tolerance = float(reg), iterations, float(tolerance)
        self.stride = check_stride(stride)

    def per_sample(
        self, prediction: torch.Tensor, density: torch.Tensor, points: Points, valid: torch.Tensor | None
    ) -> torch.Tensor:
        """(B,); arguments as for :meth:`DensityLoss.per_sample`."""
        maps = sum_pool(prediction.clamp(min=0), self.stride)[:, 0]
        places = block_centres(maps, self.stride)
        return torch.stack([self._one(one, places, p) for one, p in zip(maps, points, strict=True)])

    def _one(self, mass: torch.Tensor, places: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        if not len(points):
            return mass.sum() * 0
        shares = _shares(mass).flatten()
        truth = _dots(mass, points, self.stride).flatten()
        at = truth.nonzero()[:, 0]
        arguments = (self.reg, self.iterations, self.tolerance)
        with torch.no_grad():
            cost = squared_distances(places, places[at])
            potential, value = sinkhorn(shares.detach(), truth[at], cost, *arguments)
            _, least = sinkhorn(truth[at], truth[at], cost[at], *arguments)
        # The value of W, with its gradient: the derivative of W by the shares is the potential.
        return value - least + potential @ (shares - shares.detach())

    def extra_repr(self) -> str:
        """The arguments, for printing."""
        return f"reg={self.reg}, iterations={self.iterations}, tolerance={self.tolerance}, stride={self.stride}"


class TotalVariation(DensityLoss):
    """N / 2 times the L1 distance of the predicted density and the image of dots, both normalised to sum 1; in cells.

    It lies in 0..N, N points. Negative densities count as 0; where less than half a cell is predicted, the value is
    that of a uniform density and there is no gradient; a sample without points costs 0.
    """

    name = "variation"
    in_cells = True
    needs_points = True

    def per_sample(
        self, prediction: torch.Tensor, density: torch.Tensor, points: Points, valid: torch.Tensor | None
    ) -> torch.Tensor:
        """(B,); arguments as for :meth:`DensityLoss.per_sample`."""
        maps = prediction.clamp(min=0)[:, 0]
        return torch.stack(
            [
                (_shares(one) - _dots(one, p)).abs().sum() * (len(p) / 2) if len(p) else one.sum() * 0
                for one, p in zip(maps, points, strict=True)
            ]
        )


class DMCount(DensitySum):
    """DM-Count: `CountL1() + 0.1 * OptimalTransport() + 0.01 * TotalVariation()`, weights and regularisation as there.

    0 on the image of dots. The kernel of the density is of no account, only its sum.

    Args:
        transport: weight of the optimal transport, positive.
        variation: weight of the total variation, positive.
        reg: see :class:`OptimalTransport`.
        iterations: see there.
        stride: see there; of the transport only.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        transport: float = 0.1,
        variation: float = 0.01,
        reg: float = 10.0,
        iterations: int = 100,
        stride: int = 1,
    ) -> None:
        moved = OptimalTransport(reg, iterations, stride=stride)
        super().__init__([CountL1(), moved, TotalVariation()], [1.0, transport, variation])


def sinkhorn(
    source: torch.Tensor,
    target: torch.Tensor,
    cost: torch.Tensor,
    reg: float,
    iterations: int = 100,
    tolerance: float = 1e-3,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Regularised optimal transport, min <P, C> + reg KL(P | a b^T) over the plans P from a to b.

    Args:
        source: a, (P,), 0 or more, of sum 1.
        target: b, (N,), positive, of sum 1.
        cost: C, (P, N), of the same dtype, finite.
        reg: positive.
        iterations: at most, at the last regularisation.
        tolerance: L1 error of the marginal of the source at which they end.

    Returns:
        The potential of the source, (P,), finite also where it is 0, and the value <a, f> + <b, g>, a scalar; if the
        tolerance was not reached, that is a lower bound.
    """
    log_source, log_target = source.log(), target.log()
    f, g = torch.zeros_like(source), torch.zeros_like(target)
    steps = max(math.ceil(math.log(max(float(cost.amax()) / reg, 1), 4)), 0)
    for strength in [reg * 4.0**step for step in range(steps, 0, -1)]:
        f, g = _step(g, log_source, log_target, cost, strength)
    f, g = _step(g, log_source, log_target, cost, reg)
    for number in range(1, iterations):
        previous = f
        f, g = _step(g, log_source, log_target, cost, reg)
        # The marginal of the plan of the step before is a exp((previous - f) / reg), so its error costs no plan. Each
        # look waits for the device.
        if number % 10 == 0 and float((source * ((previous - f) / reg).exp() - source).abs().sum()) <= tolerance:
            break
    return f, source @ f + target @ g


def _step(
    g: torch.Tensor, log_source: torch.Tensor, log_target: torch.Tensor, cost: torch.Tensor, reg: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both potentials anew, that of the target last, so that the plan has sum 1."""
    f = -reg * torch.logsumexp((g - cost) / reg + log_target, 1)
    g = -reg * torch.logsumexp((f[:, None] - cost) / reg + log_source[:, None], 0)
    return f, g


def _shares(mass: torch.Tensor) -> torch.Tensor:
    """A map of 0 or more, normalised to sum 1; uniform if its sum is below `LEAST_COUNT`."""
    count = mass.sum()
    uniform = torch.full_like(mass, 1 / mass.numel())
    return torch.where(count < LEAST_COUNT, uniform, mass / count.clamp(min=LEAST_COUNT))


def _dots(like: torch.Tensor, points: torch.Tensor, stride: int = 1) -> torch.Tensor:
    """The image of dots, of sum 1, at blocks of `stride` pixels; (H, W) as `like`."""
    row, column = pixel_of(points, [size * stride for size in like.shape])
    dots = torch.zeros_like(like).detach()
    one = dots.new_ones(len(points)) / len(points)
    return dots.index_put((row // stride, column // stride), one, accumulate=True)
