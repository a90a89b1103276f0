import math

import numpy as np
import pytest
import torch

from biocnn.losses import BCE, Dice


def draw() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    logits, target = rng.normal(size=(3, 2, 4, 5)), rng.integers(0, 2, (3, 2, 4, 5))
    return torch.from_numpy(logits), torch.from_numpy(target), torch.from_numpy(rng.random((3, 1, 4, 5)) > 0.3)


def slow_bce(logits, target, valid, pos_weight):
    samples = []
    for b in range(3):
        costs = []
        for c, i, j in np.ndindex(2, 4, 5):
            if valid[b, 0, i, j]:
                p = 1 / (1 + math.exp(-logits[b, c, i, j]))
                costs.append(-pos_weight * math.log(p) if target[b, c, i, j] else -math.log(1 - p))
        samples.append(np.mean(costs))
    return np.mean(samples)


def slow_dice(logits, target, valid, smooth):
    values = []
    for b, c in np.ndindex(3, 2):
        both = p_sum = t_sum = 0.0
        for i, j in np.ndindex(4, 5):
            if valid[b, 0, i, j]:
                p = 1 / (1 + math.exp(-logits[b, c, i, j]))
                both, p_sum, t_sum = both + p * target[b, c, i, j], p_sum + p, t_sum + target[b, c, i, j]
        values.append(1 - (2 * both + smooth) / (p_sum + t_sum + smooth))
    return np.mean(values)


@pytest.mark.parametrize("masked", [False, True])
def test_values(masked: bool) -> None:
    logits, target, valid = draw()
    valid = valid if masked else torch.ones_like(valid)
    for pos_weight in (1.0, 4.0):
        expected = slow_bce(logits.numpy(), target.numpy(), valid.numpy(), pos_weight)
        assert BCE(pos_weight)(logits, target, valid).item() == pytest.approx(expected, rel=1e-12)
    for smooth in (1.0, 0.01):
        expected = slow_dice(logits.numpy(), target.numpy(), valid.numpy(), smooth)
        assert Dice(smooth)(logits, target, valid).item() == pytest.approx(expected, rel=1e-12)


def test_empty_truth() -> None:
    target = torch.zeros(1, 1, 8, 8)
    logits = torch.full((1, 1, 8, 8), -30.0)
    loss = Dice()
    with pytest.warns(UserWarning, match="is 0"):
        assert loss(logits, target).item() == pytest.approx(0, abs=1e-6)
    logits[..., :4, :] = 30
    assert loss(logits, target).item() == pytest.approx(1 - 1 / 33)
    logits = torch.zeros(1, 1, 8, 8, requires_grad=True)
    loss(logits, target).backward()
    assert logits.grad is not None
    assert (logits.grad > 0).all()


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_arguments(bad: float) -> None:
    with pytest.raises(ValueError, match="pos_weight must be positive"):
        BCE(bad)
    with pytest.raises(ValueError, match="smooth must be positive"):
        Dice(bad)
