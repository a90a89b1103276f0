"""Losses of density maps, whose sum is a count: ``loss(prediction, density, points, valid, scale=100)``; 0 is best.

Notation: B samples of (H, W) pixels. `density` (B, 1, H, W) holds cells per pixel and is never scaled by hand: what a
network predicts is density * scale, and :meth:`DensityLoss.terms` is the one place where the two are brought together.
`points` are (row, column) in pixels as in :mod:`biocnn.data.density`: a map reaches from -0.5 to H - 0.5.

Arithmetic is done in float32 under any autocast precision, and in float64 if the prediction is: squares of densities
underflow in half precision, and their sums overflow. These losses share the weighted sums, the masks and the mean over
samples with those of yes-or-no logits (:mod:`biocnn.losses.base`), but not the base class: what is checked differs, and
a sum of the two kinds makes no sense.
"""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Literal

import torch
from torch import nn

from biocnn.errors import DataError
from biocnn.losses.base import mean_over_samples, warn_once
from biocnn.networks.resolution import sum_pool

Points = Sequence[torch.Tensor]


class DensityLoss(nn.Module):
    """Base of the losses of density maps.

    A new loss implements :meth:`per_sample` and sets `name`. The value is the mean over the samples that have a valid
    pixel, so it does not depend on how samples are shared out among batches. Weighted sums are written
    ``DensityMSE() + 0.01 * CountL1()``.

    Attributes:
        name: what :meth:`terms` calls it.
        in_cells: whether it is given both maps in cells per pixel; otherwise both times the scale, as the network
            predicts them.
        needs_points: whether it cannot do without the points.
    """

    name: str = "loss"
    in_cells: bool = False
    needs_points: bool = False
    __array_ufunc__ = None  # `numpy.float32(0.5) * loss` is asked of the loss, not of numpy

    def per_sample(
        self, prediction: torch.Tensor, density: torch.Tensor, points: Points, valid: torch.Tensor | None
    ) -> torch.Tensor:
        """The loss of each sample.

        Args:
            prediction: (B, 1, H, W) float32 or float64, finite, of any sign; 0 where not valid.
            density: the same shape and dtype, in the same unit (`in_cells`); 0 where not valid.
            points: B tensors (N_i, 2) of that dtype, those at valid pixels only; B empty ones if none were passed.
            valid: (B, 1, H, W) bool, or None if every pixel counts.

        Returns:
            (B,); what it says of a sample without a valid pixel is ignored, but must be finite.
        """
        raise NotImplementedError(f"{type(self).__name__} has to implement per_sample")

    def parts(self) -> list[tuple[str, float, "DensityLoss"]]:
        """Name, weight and loss of each term."""
        return [(self.name, 1.0, self)]

    @property
    def names(self) -> list[str]:
        """The keys of :meth:`terms`, in order."""
        return [name for name, _, _ in self.parts()]

    def terms(
        self,
        prediction: torch.Tensor,
        density: torch.Tensor,
        points: Points | None = None,
        valid: torch.Tensor | None = None,
        scale: float = 1.0,
    ) -> dict[str, torch.Tensor]:
        """The weighted terms by name; their sum is the loss, so that a training step can log them at no cost.

        Args:
            prediction: (B, 1, H, W), density * scale, any float dtype.
            density: the same shape, in cells per pixel, 0 or more, not scaled.
            points: B tensors (N_i, 2), (row, column) in pixels; None if no term needs them.
            valid: (B, 1, H, W) bool, False where pixels must not count; None if all count.
            scale: of the prediction, positive; stored with the network.

        Returns:
            A scalar tensor for each name.

        Raises:
            ValueError: if shapes, dtypes or `scale` do not fit, no pixel is valid, or points are missing.
            DataError: if the prediction is not finite, a density is negative or not finite, or a point lies outside.
        """
        parts = self.parts()
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"scale must be positive and finite, received {scale}.")
        needing = [name for name, _, loss in parts if loss.needs_points]
        if needing and points is None:
            raise ValueError(f"points: {needing} need the points of each sample, received none.")
        _check_shapes(prediction, density, points, valid)
        with torch.autocast(prediction.device.type, enabled=False):
            dtype = torch.float64 if prediction.dtype == torch.float64 else torch.float32
            prediction, density = _blank(prediction.to(dtype), valid), _blank(density.to(dtype), valid)
            placed = [p.to(prediction.device, dtype) for p in points or [density.new_empty(0, 2)] * len(density)]
            with torch.no_grad():
                _check_values(self, prediction, density, placed if points is not None else None, valid)
            counted = None if valid is None else valid.flatten(1).any(1)
            if valid is not None:
                placed = [_at_valid(p, inside[0]) for p, inside in zip(placed, valid, strict=True)]
            maps = {False: (prediction, density * scale), True: (prediction / scale, density)}
            return {
                name: weight * mean_over_samples(loss.per_sample(*maps[loss.in_cells], placed, valid), counted)
                for name, weight, loss in parts
            }

    def forward(
        self,
        prediction: torch.Tensor,
        density: torch.Tensor,
        points: Points | None = None,
        valid: torch.Tensor | None = None,
        scale: float = 1.0,
    ) -> torch.Tensor:
        """The loss, a scalar; arguments and errors as for :meth:`terms`."""
        return torch.stack(list(self.terms(prediction, density, points, valid, scale).values())).sum()

    def __add__(self, other: "DensityLoss") -> "DensitySum":
        if not isinstance(other, DensityLoss):
            return NotImplemented
        return _sum_of(self.parts() + other.parts())

    def __mul__(self, weight: float) -> "DensitySum":
        if not isinstance(weight, Real):
            return NotImplemented
        return _sum_of([(name, float(weight) * own, loss) for name, own, loss in self.parts()])

    __rmul__ = __mul__


class DensitySum(DensityLoss):
    """A weighted sum of density losses; usually written ``DensityMSE() + 0.01 * CountL1()``.

    A name that comes twice is numbered: `mse`, `mse_2`.

    Args:
        losses: the terms.
        weights: one positive, finite number for each.

    Raises:
        ValueError: if there is no term, the numbers differ, or a weight is not positive.
    """

    name = "sum"

    def __init__(self, losses: Sequence[DensityLoss], weights: Sequence[float]) -> None:
        super().__init__()
        if not losses or len(losses) != len(weights):
            raise ValueError(
                f"expected one weight for each of at least one loss, received {len(losses)} losses and "
                f"{len(weights)} weights."
            )
        self.losses, self.weights = nn.ModuleList(), []
        for loss, weight in zip(losses, weights, strict=True):
            if not (math.isfinite(weight) and weight > 0):
                raise ValueError(f"the weight of {loss.name!r} must be positive and finite, received {weight}.")
            for _, own, part in loss.parts():
                self.losses.append(part)
                self.weights.append(float(weight * own))

    def parts(self) -> list[tuple[str, float, DensityLoss]]:
        """Name, weight and loss of each term."""
        seen: dict[str, int] = {}
        found = []
        for weight, loss in zip(self.weights, self.losses, strict=True):
            assert isinstance(loss, DensityLoss)
            seen[loss.name] = seen.get(loss.name, 0) + 1
            number = seen[loss.name]
            found.append((loss.name if number == 1 else f"{loss.name}_{number}", weight, loss))
        return found

    def extra_repr(self) -> str:
        """The weights, for printing."""
        return f"weights={self.weights}"


class DensityMSE(DensityLoss):
    """Mean of (prediction - density * scale)^2 over the valid pixels of each sample.

    The scale squared is a factor of the whole, so it acts as a learning rate does, and keeps squares out of the range
    where they vanish: with scale 1 a map of zeros costs about 3e-5, with 100 about 0.3.
    """

    name = "mse"

    def per_sample(
        self, prediction: torch.Tensor, density: torch.Tensor, points: Points, valid: torch.Tensor | None
    ) -> torch.Tensor:
        """(B,); arguments as for :meth:`DensityLoss.per_sample`."""
        return _mean_over_pixels((prediction - density).square(), valid)


class LogCosh(DensityLoss):
    """Mean of log(cosh(prediction - density * scale)) over the valid pixels of each sample.

    Half the square where the difference is small, its absolute value less log 2 where it is large; unlike the square
    it changes its form with the scale, and with scale 1 it is half the MSE and no more.
    """

    name = "log_cosh"

    def per_sample(
        self, prediction: torch.Tensor, density: torch.Tensor, points: Points, valid: torch.Tensor | None
    ) -> torch.Tensor:
        """(B,); arguments as for :meth:`DensityLoss.per_sample`."""
        difference = prediction - density
        size = difference.abs()
        # The second form, exact for large differences, would lose small ones in the rounding of log 2.
        near = torch.log1p(2 * torch.sinh(difference.clamp(-1, 1) / 2).square())
        far = size + torch.log1p(torch.exp(-2 * size)) - math.log(2)
        return _mean_over_pixels(torch.where(size < 1, near, far), valid)


class CountL1(DensityLoss):
    """|sum(prediction) / scale - n| / normaliser for each sample; n is the sum of the true density where valid.

    Args:
        normaliser: a number of cells, so that 1 leaves the error in cells; `"count"`, max(n, 1), for the relative
            error; or `"pixels"`, the number of valid pixels, which makes it comparable with means over pixels.

    Raises:
        ValueError: if `normaliser` is anything else, or not positive and finite.
    """

    name = "count"
    in_cells = True

    def __init__(self, normaliser: float | Literal["count", "pixels"] = 1.0) -> None:
        super().__init__()
        if isinstance(normaliser, str):
            if normaliser not in ("count", "pixels"):
                raise ValueError(f"normaliser: expected a number, 'count' or 'pixels', received {normaliser!r}.")
        elif not (math.isfinite(normaliser) and normaliser > 0):
            raise ValueError(f"normaliser must be positive and finite, received {normaliser}.")
        self.normaliser = normaliser

    def per_sample(
        self, prediction: torch.Tensor, density: torch.Tensor, points: Points, valid: torch.Tensor | None
    ) -> torch.Tensor:
        """(B,); arguments as for :meth:`DensityLoss.per_sample`."""
        count = density.flatten(1).sum(1)
        error = (prediction.flatten(1).sum(1) - count).abs()
        if self.normaliser == "count":
            return error / count.clamp(min=1)
        if self.normaliser == "pixels":
            return error / (density[0].numel() if valid is None else valid.flatten(1).sum(1).clamp(min=1))
        return error / float(self.normaliser)


class SumPooled(DensityLoss):
    """Deep supervision: the weighted sum of a loss on both maps, sum-pooled by several factors.

    Sum-pooling keeps the count, so that coarse levels ask for the number of cells in each block and forgive where they
    lie in it. Side outputs of a network at a lower resolution need no wrapper but `biocnn.data.density.sum_pool`:
    ``loss(side, sum_pool(density, 4))``.

    Reference: He, Minn, Solnica-Krezel, Anastasio, Li: Deeply-supervised density regression for automatic cell counting
    in microscopy images. Medical Image Analysis 2021; factors and weights are theirs.

    Args:
        loss: of single terms that do without points, such as `DensityMSE()`.
        factors: block sizes in pixels, whole and positive; 1 is the map itself.
        weights: one for each factor; 1 / factor^2 if not given.

    Raises:
        ValueError: if there is no factor, one is not a positive int, weights do not match, or the loss needs points.
    """

    def __init__(
        self, loss: DensityLoss, factors: Sequence[int] = (1, 2, 4, 8), weights: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        if not factors or any(isinstance(k, bool) or not isinstance(k, int) or k < 1 for k in factors):
            raise ValueError(f"factors: expected whole numbers of 1 or more, received {list(factors)}.")
        chosen = [1 / k**2 for k in factors] if weights is None else [float(weight) for weight in weights]
        if len(chosen) != len(factors) or any(not (math.isfinite(weight) and weight > 0) for weight in chosen):
            raise ValueError(f"weights: expected {len(factors)} positive, finite numbers, received {chosen}.")
        if len(loss.parts()) > 1 or isinstance(loss, DensitySum) or loss.needs_points:
            raise ValueError(f"loss: expected a single term without points, received {loss.names}; sum wrapped terms.")
        self.loss, self.factors, self.weights = loss, tuple(factors), chosen
        self.name, self.in_cells = f"{loss.name}_pooled", loss.in_cells

    def per_sample(
        self, prediction: torch.Tensor, density: torch.Tensor, points: Points, valid: torch.Tensor | None
    ) -> torch.Tensor:
        """(B,); arguments as for :meth:`DensityLoss.per_sample`. A block with a valid pixel is valid."""
        total = torch.zeros_like(prediction[:, 0, 0, 0])
        for factor, weight in zip(self.factors, self.weights, strict=True):
            inside = None if valid is None else sum_pool(valid.to(prediction.dtype), factor) > 0
            pooled = sum_pool(prediction, factor), sum_pool(density, factor)
            total = total + weight * self.loss.per_sample(*pooled, points, inside)
        return total


def pixel_of(points: torch.Tensor, shape: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column, (N,) int64 each, of the pixels in which points (N, 2) of a map of `shape` (H, W) lie."""
    row, column = (points + 0.5).floor().long().unbind(1)
    return row.clamp(0, shape[0] - 1), column.clamp(0, shape[1] - 1)


def _mean_over_pixels(values: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    # Both maps are 0 where not valid, and so is what they cost there.
    if valid is None:
        return values.flatten(1).mean(1)
    return values.flatten(1).sum(1) / valid.flatten(1).sum(1).clamp(min=1)


def _blank(values: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    return values if valid is None else values.masked_fill(~valid, 0)


def _at_valid(points: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    return points[valid[pixel_of(points, valid.shape)]]


def _check_shapes(
    prediction: torch.Tensor, density: torch.Tensor, points: Points | None, valid: torch.Tensor | None
) -> None:
    shape = tuple(prediction.shape)
    if not prediction.is_floating_point() or len(shape) != 4 or shape[1] != 1 or prediction.numel() == 0:
        raise ValueError(
            f"prediction: expected a non-empty float tensor (B, 1, H, W), received {prediction.dtype} of shape {shape}."
        )
    if tuple(density.shape) != shape:
        raise ValueError(
            f"density: expected shape {shape} as that of the prediction, received {tuple(density.shape)}; bring a map "
            "to a lower resolution by sum_pool, which keeps its count, and never by interpolation."
        )
    if valid is not None and (valid.dtype != torch.bool or tuple(valid.shape) != shape):
        raise ValueError(
            f"valid: expected bool of shape {shape}, received {valid.dtype} of shape {tuple(valid.shape)}."
        )
    shapes = [] if points is None else [tuple(one.shape) for one in points]
    if points is not None and (len(shapes) != shape[0] or any(len(s) != 2 or s[1] != 2 for s in shapes)):
        raise ValueError(f"points: expected {shape[0]} tensors of shape (N, 2), received shapes {shapes}.")


def _check_values(
    loss: DensityLoss,
    prediction: torch.Tensor,
    density: torch.Tensor,
    points: Points | None,
    valid: torch.Tensor | None,
) -> None:
    """Check all values with one look at the device: on a GPU each look waits for all that was queued before it."""
    everything = torch.cat([density.new_empty(0, 2), *(points or [])])
    limit = everything.new_tensor(prediction.shape[2:]) - 0.5
    outside = ~((everything >= -0.5) & (everything <= limit)).all(1)
    share = density.new_ones(()) if valid is None else valid.to(density.dtype).mean()
    facts = (*prediction.aminmax(), *density.aminmax(), share, outside.sum(), density.sum())
    low, high, least, most, valid_share, strays, total = torch.stack([one.to(density.dtype) for one in facts]).tolist()
    if valid_share == 0:
        raise ValueError("valid: no pixel of the batch counts, so there is nothing to learn from it.")
    if not (math.isfinite(low) and math.isfinite(high)):
        raise DataError("prediction: expected finite values, received nan or infinity; did training diverge?")
    # Convolutions by FFT leave negative values of the size of the rounding error.
    if not (math.isfinite(least) and math.isfinite(most)) or least < -1e-5 * max(most, 1e-5):
        raise DataError(
            f"density: expected cells per pixel, finite and 0 or more where valid, received {least:.4g} to {most:.4g}; "
            "rasterise the points after augmentation, with a smooth kernel and no cubic interpolation."
        )
    if strays:
        worst = everything[outside][0].tolist()
        raise DataError(
            f"points: expected (row, column) within -0.5..{limit[0].item():g} and -0.5..{limit[1].item():g}, received "
            f"{int(strays)} of {len(everything)} outside, such as {worst}; drop them, and see that rows come first."
        )
    if points is not None and valid is None and abs(total - len(everything)) > 0.05 * len(everything) + 0.5:
        warn_once(
            loss,
            f"the density of a batch sums to {total:.6g}, though it has {len(everything)} points; pass it in cells per "
            "pixel, not scaled. Said once.",
        )


def _sum_of(parts: Sequence[tuple[str, float, DensityLoss]]) -> DensitySum:
    return DensitySum([loss for _, _, loss in parts], [weight for _, weight, _ in parts])
