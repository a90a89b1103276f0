"""What all density losses promise: one signature, scales, sums, masks, precision, and errors; and the map losses."""

import copy
import math
import pickle
import warnings

import numpy as np
import pytest
import torch

from biocnn.data.density import rasterise
from biocnn.errors import DataError
from biocnn.losses.bayesian import BayesianLoss
from biocnn.losses.density import CountL1, DensityLoss, DensityMSE, DensitySum, LogCosh, SumPooled
from biocnn.losses.distribution_matching import DMCount, OptimalTransport, TotalVariation
from biocnn.networks.resolution import sum_pool

MAP_LOSSES = [
    DensityMSE(),
    LogCosh(),
    CountL1(),
    CountL1("count"),
    CountL1("pixels"),
    SumPooled(DensityMSE()),
    SumPooled(LogCosh(), (2, 4), (1.0, 0.5)),
    DensityMSE() + 0.01 * CountL1(),
]
SHARP = {"iterations": 400, "tolerance": 1e-13}
POINT_LOSSES = [
    BayesianLoss(2.0),
    BayesianLoss(2.0, math.inf, stride=2),
    OptimalTransport(5.0, **SHARP),
    OptimalTransport(5.0, stride=2, **SHARP),
    TotalVariation(),
    DMCount(),
]
LOSSES = [*MAP_LOSSES, *POINT_LOSSES]
name_of = lambda loss: "+".join(loss.names)  # noqa: E731
each_loss = pytest.mark.parametrize("loss", LOSSES, ids=name_of)
each_map_loss = pytest.mark.parametrize("loss", MAP_LOSSES, ids=name_of)
SHAPE = (13, 18)


def draw(
    batch: int = 3, shape: tuple[int, int] = SHAPE, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Positive predictions (B, 1, H, W), densities, and points; the second sample is empty."""
    rng = np.random.default_rng(seed)
    points = [rng.integers(0, shape, (0 if number == 1 else 4 + number, 2)) for number in range(batch)]
    density = np.stack([rasterise(one, shape, 1.5).astype(np.float64) for one in points])[:, None]
    prediction = rng.uniform(0.01, 0.06, density.shape)
    as_tensor = [torch.from_numpy(one).to(dtype) for one in points]
    return torch.from_numpy(prediction).to(dtype), torch.from_numpy(density).to(dtype), as_tensor


@each_map_loss
def test_truth_is_zero_at_every_scale_and_other_maps_are_not(loss: DensityLoss) -> None:
    prediction, density, points = draw()
    for scale in (1.0, 100.0):
        assert loss(density * scale, density, points, scale=scale).item() == pytest.approx(0, abs=1e-15)
        assert loss(prediction * scale, density, points, scale=scale).item() > 1e-4


# The terms of DM-Count are there by themselves, with the transport at its optimum, where its gradient is exact.
@pytest.mark.parametrize("loss", LOSSES[:-1], ids=name_of)
def test_gradient(loss: DensityLoss) -> None:
    prediction, density, points = draw(2, (5, 7))
    valid = torch.rand(prediction.shape, generator=torch.Generator().manual_seed(1)) > 0.2
    prediction = (3 * prediction).requires_grad_()
    for mask in (None, valid):
        check = lambda x, mask=mask: loss(x, density, points, mask, scale=2.0)  # noqa: E731
        assert torch.autograd.gradcheck(check, prediction, fast_mode=True)


@each_loss
def test_mean_over_samples_does_not_depend_on_the_batch(loss: DensityLoss) -> None:
    prediction, density, points = draw(4)
    alone = [loss(prediction[i : i + 1], density[i : i + 1], points[i : i + 1]) for i in range(4)]
    together = loss(prediction, density, points)
    torch.testing.assert_close(together, torch.stack(alone).mean(), rtol=1e-12, atol=0)


@each_loss
def test_what_is_not_valid_is_never_read(loss: DensityLoss) -> None:
    prediction, density, points = draw()
    valid = torch.zeros_like(density, dtype=torch.bool)
    valid[..., 2:10, 4:16] = True
    inside = [one[((one >= one.new_tensor([2, 4])) & (one < one.new_tensor([10, 16]))).all(1)] for one in points]
    clean = torch.where(valid, prediction, 0), torch.where(valid, density, 0)
    # Only the number of pixels differs from maps that are blank there: means over pixels are checked by hand below.
    expected = loss(*clean, inside, valid).item()
    noisy = torch.where(valid, prediction, torch.nan).requires_grad_()
    value = loss(noisy, torch.where(valid, density, -torch.inf), points, valid)
    assert value.item() == expected
    value.backward()
    assert noisy.grad is not None
    assert (noisy.grad[~valid] == 0).all()
    # A sample without a valid pixel does not count.
    valid[1:] = False
    value = loss(noisy.detach(), density, points, valid)
    expected = loss(clean[0][:1], clean[1][:1], inside[:1], valid[:1])
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@each_loss
def test_half_precision_is_computed_in_float32(loss: DensityLoss, half: torch.dtype) -> None:
    _, density, points = draw(2, (40, 48), dtype=torch.float32)
    # Sums beyond 65,504, the end of float16.
    prediction = (density * 3e4 + 40).to(half).requires_grad_()
    with torch.autocast("cpu", dtype=half):
        value = loss(prediction, density, points, scale=3e4)
        assert value.dtype == torch.float32
        value.backward()
    assert prediction.grad is not None
    assert prediction.grad.dtype == half
    assert prediction.grad.isfinite().all()
    assert value.item() == loss(prediction.float(), density, points, scale=3e4).item()
    assert loss(prediction.double(), density, points, scale=3e4).dtype == torch.float64


@each_loss
def test_copies_and_dtypes_of_the_truth_are_the_same(loss: DensityLoss) -> None:
    prediction, density, points = draw(dtype=torch.float32)
    expected = loss(prediction, density, points).item()
    for same in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert same(prediction, density.double(), [one.long() for one in points]).item() == expected


def test_values_by_hand() -> None:
    prediction, density, points = draw()
    valid = torch.rand(density.shape, generator=torch.Generator().manual_seed(2)) > 0.3
    scale = 50.0
    for mask in (None, valid):
        inside = torch.ones_like(valid) if mask is None else mask
        rows = {"mse": [], "log_cosh": [], "count": [], "relative": [], "pixels": []}
        for p, t, here in zip(prediction.numpy(), density.numpy(), inside.numpy(), strict=True):
            p, t = p[here].astype(np.longdouble), t[here].astype(np.longdouble)
            rows["mse"].append(np.mean((p - t * scale) ** 2))
            rows["log_cosh"].append(np.mean(np.log(np.cosh(p - t * scale))))
            error = abs(p.sum() / scale - t.sum())
            rows["count"].append(error / 3)
            rows["relative"].append(error / max(t.sum(), 1))
            rows["pixels"].append(error / here.sum())
        losses = [DensityMSE(), LogCosh(), CountL1(3.0), CountL1("count"), CountL1("pixels")]
        for loss, values in zip(losses, rows.values(), strict=True):
            value = loss(prediction, density, points, mask, scale=scale).item()
            assert value == pytest.approx(float(np.mean(values)), rel=1e-10)


def test_log_cosh_keeps_small_differences_and_does_not_overflow_at_large_ones() -> None:
    zero = torch.zeros(1, 1, 1, 1)
    for size in (1e-6, 1e-3, 0.5, 0.999, 1.001, 20.0):
        expected = math.log(math.cosh(size)) if size > 1e-3 else size**2 / 2 - size**4 / 12
        assert LogCosh()(zero + size, zero).item() == pytest.approx(expected, rel=1e-6)
    assert LogCosh()(zero - 1e4, zero).item() == pytest.approx(1e4 - math.log(2))


@pytest.mark.parametrize("shape", [(16, 24), (13, 18), (3, 1)])
def test_pooling_keeps_the_sum_and_deep_supervision_is_its_weighted_sum(shape: tuple[int, int]) -> None:
    prediction, density, _ = draw(2, shape)
    expected = 0.0
    for factor in (1, 2, 4, 8):
        blocks = [
            torch.stack([row.sum((1, 2, 3)) for row in strip.split(factor, 3)], 1)
            for strip in (prediction - density).split(factor, 2)
        ]
        pooled = torch.stack(blocks, 1)
        torch.testing.assert_close(sum_pool(prediction - density, factor)[:, 0], pooled, rtol=0, atol=1e-12)
        assert sum_pool(density, factor).sum().item() == pytest.approx(density.sum().item(), abs=1e-12)
        expected += pooled.square().mean().item() / factor**2
    assert SumPooled(DensityMSE())(prediction, density).item() == pytest.approx(expected, rel=1e-10)
    assert (SumPooled(DensityMSE()) + SumPooled(LogCosh())).names == ["mse_pooled", "log_cosh_pooled"]
    # One block of all: the square of the error of the count.
    whole = SumPooled(DensityMSE(), [24], [1.0])(prediction, density)
    torch.testing.assert_close(whole, (prediction - density).sum((1, 2, 3)).square().mean())
    with pytest.raises(ValueError, match="whole numbers of 1 or more"):
        SumPooled(DensityMSE(), [0])
    with pytest.raises(ValueError, match="expected 1 positive, finite numbers"):
        SumPooled(DensityMSE(), [2], [1.0, 1.0])
    for many in (DensityMSE() + CountL1(), BayesianLoss()):
        with pytest.raises(ValueError, match="expected a single term without points"):
            SumPooled(many)


def test_weighted_sums() -> None:
    prediction, density, points = draw()
    loss = 0.5 * (DensityMSE() + 2 * CountL1()) + LogCosh() * np.float32(0.25) + CountL1("pixels") + DMCount()
    assert loss.names == ["mse", "count", "log_cosh", "count_2", "count_3", "transport", "variation"]
    assert [weight for _, weight, _ in loss.parts()] == [0.5, 1.0, 0.25, 1.0, 1.0, 0.1, 0.01]
    terms = loss.terms(prediction, density, points, scale=10.0)
    assert list(terms) == loss.names
    assert terms["log_cosh"].item() == pytest.approx(0.25 * LogCosh()(prediction, density, scale=10.0).item())
    torch.testing.assert_close(loss(prediction, density, points, scale=10.0), torch.stack(list(terms.values())).sum())
    assert "weights=[0.5, 1.0" in repr(loss)
    for weight in (0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="weight of 'mse' must be positive"):
            weight * DensityMSE()
    with pytest.raises(ValueError, match="0 losses and 0 weights"):
        DensitySum([], [])
    with pytest.raises(TypeError, match="unsupported operand"):
        DensityMSE() + 1  # type: ignore[operator]
    with pytest.raises(TypeError, match="unsupported operand"):
        None * DensityMSE()  # type: ignore[operator]
    with pytest.raises(NotImplementedError, match="DensityLoss has to implement per_sample"):
        DensityLoss()(prediction, density)


def test_shapes_and_arguments_that_do_not_fit() -> None:
    prediction, density, points = draw()
    loss = DMCount()
    for bad in (prediction[0], prediction.long(), prediction[:0], prediction.expand(3, 2, *SHAPE)):
        with pytest.raises(ValueError, match="prediction: expected a non-empty float tensor"):
            loss(bad, density, points)
    with pytest.raises(ValueError, match="by sum_pool, which keeps its count"):
        loss(prediction[..., ::2, ::2], density, points)
    for valid in (torch.ones_like(density), torch.ones(3, *SHAPE, dtype=torch.bool)):
        with pytest.raises(ValueError, match="valid: expected bool of shape"):
            loss(prediction, density, points, valid)
    with pytest.raises(ValueError, match="no pixel of the batch counts"):
        loss(prediction, density, points, torch.zeros_like(density, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"\['transport', 'variation'\] need the points"):
        loss(prediction, density)
    for wrong in (points[:2], [one[:, :1] for one in points], [one.flatten() for one in points]):
        with pytest.raises(ValueError, match=r"points: expected 3 tensors of shape \(N, 2\)"):
            loss(prediction, density, wrong)
    for scale in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="scale must be positive"):
            loss(prediction, density, points, scale=scale)
    for normaliser in (0.0, -1.0, math.inf):
        with pytest.raises(ValueError, match="normaliser must be positive"):
            CountL1(normaliser)
    with pytest.raises(ValueError, match="'count' or 'pixels', received 'cells'"):
        CountL1("cells")  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [-0.01, math.nan, math.inf])
def test_densities_that_are_none(bad: float) -> None:
    prediction, density, points = draw()
    density[0, 0, 3, 3] = bad
    with pytest.raises(DataError, match="density: expected cells per pixel, finite and 0 or more"):
        DensityMSE()(prediction, density, points)
    # What a convolution by FFT leaves.
    density[0, 0, 3, 3] = -1e-9
    assert DensityMSE()(prediction, density, points).isfinite()


@pytest.mark.parametrize("bad", [(-0.6, 3.0), (3.0, 17.6), (math.nan, 0.0)])
def test_points_outside(bad: tuple[float, float]) -> None:
    prediction, density, points = draw()
    points[2][1] = points[2].new_tensor(bad)
    with pytest.raises(DataError, match=r"within -0.5..12.5 and -0.5..17.5, received 1 of 10 outside"):
        DensityMSE()(prediction, density, points)
    points[2][1] = points[2].new_tensor([-0.5, 17.5])
    assert DMCount()(prediction, density, points).isfinite()


def test_the_scale_acts_as_stated() -> None:
    # As many cells as in an image of VGG cells, kernels of 3 pixels: a map of zeros costs 3e-5 or 0.3, and so much
    # more by a factor of 1e4 in the MSE; what is in cells does not know the scale.
    points = np.random.default_rng(0).uniform(0, 255, (176, 2))
    density = torch.from_numpy(rasterise(points, (256, 256), 3.0))[None, None]
    zeros, places = torch.zeros_like(density), [torch.from_numpy(points)]
    # The square of a kernel sums to 1 / (4 pi sigma^2), and evenly spread cells overlap by n^2 / (H W) in all.
    alone, crowd = 176 / (4 * math.pi * 9), 176**2 / 256**2
    assert DensityMSE()(zeros, density).item() == pytest.approx((alone + crowd) / 256**2, rel=0.1)
    assert DensityMSE()(zeros, density).item() == pytest.approx(3.1e-5, rel=0.1)
    assert DensityMSE()(zeros, density, scale=100.0).item() == pytest.approx(0.31, rel=0.1)
    prediction = density * torch.linspace(0.5, 1.7, 256)
    for loss, power in ((DensityMSE(), 2), (CountL1(), 0), (BayesianLoss(4.0), 0), (TotalVariation(), 0)):
        plain, scaled = loss(prediction, density, places), loss(prediction * 100, density, places, scale=100.0)
        assert scaled.item() == pytest.approx(100**power * plain.item(), rel=1e-4), loss.name


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_squares_of_small_errors_do_not_vanish(half: torch.dtype) -> None:
    error = torch.full((1, 1, 8, 8), 1e-4, dtype=half)
    assert half == torch.bfloat16 or (error * error).sum() == 0  # in float16 they do
    with torch.autocast("cpu", dtype=half):
        value = DensityMSE()(error, torch.zeros(1, 1, 8, 8))
    assert value.item() == pytest.approx(1e-8, rel=0.02)


def test_diverged_predictions_and_scaled_densities_are_noticed() -> None:
    prediction, density, points = draw()
    loss = DensityMSE()
    with pytest.warns(UserWarning, match="sums to 1000, though it has 10 points; pass it in cells"):
        loss(prediction, density * 100, points)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(prediction, density * 100, points)
        LogCosh()(prediction, density, points)
    prediction[1, 0, 0, 0] = math.inf
    with pytest.raises(DataError, match="did training diverge"):
        loss(prediction, density, points)
