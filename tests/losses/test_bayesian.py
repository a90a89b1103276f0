import math

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from biocnn.losses import bayesian
from biocnn.losses.bayesian import BayesianLoss


def posterior(points: np.ndarray, shape: tuple[int, int], sigma: float, margin: float) -> np.ndarray:
    """Probability (N + 1, H * W) of each point and of the background at each pixel, one at a time."""
    columns = []
    for r, c in np.ndindex(shape):
        distances = [math.hypot(r - p[0], c - p[1]) for p in points]
        distances.append(margin - min(distances))
        weights = [math.exp(-(d**2) / (2 * sigma**2)) for d in distances]
        columns.append([weight / sum(weights) for weight in weights])
    return np.array(columns).T


def draw() -> tuple[torch.Tensor, np.ndarray]:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.uniform(0, 0.1, (1, 1, 9, 12))), rng.uniform(0, 8, (5, 2))


def loss_of(loss: BayesianLoss, prediction: torch.Tensor, points: np.ndarray) -> float:
    density = torch.full_like(prediction, len(points) / prediction.numel())
    return loss(prediction, density, [torch.from_numpy(points)]).item()


@pytest.mark.parametrize("margin", [3.0, math.inf])
def test_the_value_is_that_of_loops(margin: float, monkeypatch: pytest.MonkeyPatch) -> None:
    prediction, points = draw()
    expected = posterior(points, (9, 12), 2.0, margin) @ prediction.numpy().ravel()
    value = np.abs(1 - expected[:-1]).sum() + abs(expected[-1])
    assert loss_of(BayesianLoss(2.0, margin), prediction, points) == pytest.approx(value, rel=1e-12)
    # Chunks of three pixels, the last one shorter; gradients too.
    tensors = [torch.from_numpy(points)]
    leaves = [prediction.clone().requires_grad_() for _ in range(2)]
    density = torch.full_like(prediction, 5 / prediction.numel())
    BayesianLoss(2.0, margin)(leaves[0], density, tensors).backward()
    monkeypatch.setattr(bayesian, "CHUNK", 16)
    chunked = BayesianLoss(2.0, margin)(leaves[1], density, tensors)
    chunked.backward()
    assert chunked.item() == pytest.approx(value, rel=1e-12)
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad, rtol=1e-12, atol=0)


def test_some_map_costs_nothing() -> None:
    _, points = draw()
    weights = posterior(points, (9, 12), 2.0, math.inf)[:-1]
    best, left = nnls(weights, np.ones(len(points)))
    assert left < 1e-9
    prediction = torch.from_numpy(best).reshape(1, 1, 9, 12)
    assert loss_of(BayesianLoss(2.0, math.inf), prediction, points) == pytest.approx(0, abs=1e-8)


def test_the_stated_floor_of_dots() -> None:
    sigma, margin = 1.5, 6.0
    points = np.array([[r, c] for r in range(5, 40, 10) for c in range(5, 40, 10)], dtype=np.float64)
    prediction = torch.zeros(1, 1, 42, 45, dtype=torch.float64)
    prediction[0, 0, points[:, 0].astype(int), points[:, 1].astype(int)] = 1
    floor = 2 * len(points) * math.exp(-(margin**2) / (2 * sigma**2))
    value = loss_of(BayesianLoss(sigma), prediction, points)
    assert 0.99 * floor < value <= floor
    assert value / len(points) == pytest.approx(0.0007, abs=5e-5)
    # A cell too many among them costs one, a cell in the empty corner too.
    prediction[0, 0, 5, 5] += 1
    assert loss_of(BayesianLoss(sigma), prediction, points) == pytest.approx(1, abs=0.02)
    prediction[0, 0, 5, 5] -= 1
    prediction[0, 0, 41, 41] += 1
    assert loss_of(BayesianLoss(sigma), prediction, points) == pytest.approx(1, abs=0.02)


def test_without_points_the_whole_sum_is_an_error() -> None:
    prediction, _ = draw()
    for sign in (1, -1):
        value = loss_of(BayesianLoss(), sign * prediction, np.zeros((0, 2)))
        assert value == pytest.approx(prediction.sum().item(), rel=1e-12)


def test_stride_sums_blocks_first_and_puts_them_at_their_centres() -> None:
    prediction, points = draw()
    blocks = prediction.reshape(1, 1, 3, 3, 4, 3).sum((3, 5))
    # Distances between centres of blocks, in blocks, are a third of those in pixels.
    expected = loss_of(BayesianLoss(2 / 3, 2.0), blocks, (points - 1) / 3)
    assert loss_of(BayesianLoss(2.0, 6.0, stride=3), prediction, points) == pytest.approx(expected, rel=1e-12)


def test_arguments() -> None:
    for sigma in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="sigma must be positive"):
            BayesianLoss(sigma)
    for margin in (0.0, math.nan):
        with pytest.raises(ValueError, match="margin must be positive"):
            BayesianLoss(1.0, margin)
    for stride in (0, 1.5, True):
        with pytest.raises(ValueError, match="stride must be an int"):
            BayesianLoss(stride=stride)  # type: ignore[arg-type]
    assert "sigma=8.0, margin=32.0, stride=1" in repr(BayesianLoss())
