import warnings

import numpy as np
import pytest
import torch

from biocnn.errors import DataError
from biocnn.losses import SoftClDice, soft_skeleton


def line(gap: bool = False) -> torch.Tensor:
    """A line of three rows, 20 px from all edges, with or without four columns that are missing."""
    target = torch.zeros(1, 1, 43, 80)
    target[..., 20:23, 20:60] = 1
    if gap:
        target[..., 38:42] = 0
    return target


def logits_of(mask: torch.Tensor, sure: float = 4.0) -> torch.Tensor:
    return (sure * (2 * mask - 1)).requires_grad_()


def slow_cldice(logits: torch.Tensor, target: torch.Tensor, iterations: int, smooth: float) -> float:
    probability = 1 / (1 + np.exp(-logits.numpy()))
    of_prediction = soft_skeleton(torch.from_numpy(probability), iterations).numpy()
    of_truth = soft_skeleton(target, iterations).numpy()
    values = []
    for b, c in np.ndindex(target.shape[:2]):
        hits = total = found = length = 0.0
        for place in np.ndindex(target.shape[2:]):
            at = (b, c, *place)
            hits, total = hits + of_prediction[at] * target[at].item(), total + of_prediction[at]
            found, length = found + of_truth[at] * probability[at], length + of_truth[at]
        precision, sensitivity = (hits + smooth) / (total + smooth), (found + smooth) / (length + smooth)
        values.append(1 - 2 * precision * sensitivity / (precision + sensitivity))
    return float(np.mean(values))


@pytest.mark.parametrize("shape", [(2, 2, 12, 13), (2, 1, 7, 8, 9)])
def test_values(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, dtype=torch.float64, generator=generator)
    target = (torch.rand(shape, generator=generator) > 0.4).double()
    for smooth in (1.0, 0.1):
        expected = slow_cldice(logits, target, 3, smooth)
        assert SoftClDice(3, smooth)(logits, target).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_value_and_gradient_equal_monai(dimensions: int) -> None:
    peer = pytest.importorskip("monai.losses").SoftclDiceLoss(iter_=5, sigmoid=True, smooth=1e-8)
    target, generator = torch.zeros(2, 1, *[22] * dimensions), torch.Generator().manual_seed(1)
    inner = (..., *[slice(8, -8)] * dimensions)
    target[inner] = (torch.rand(target[inner].shape, generator=generator) > 0.4).float()
    # Nothing at the border, where MONAI mirrors.
    logits = torch.full(target.shape, -6.0)
    logits[inner] = 2 * torch.randn(target[inner].shape, generator=generator)
    own, other = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    value, expected = SoftClDice(5)(own, target), peer(other, target)
    assert value.item() == pytest.approx(expected.item(), abs=1e-5)
    value.backward()
    expected.backward()
    assert own.grad is not None
    assert other.grad is not None
    torch.testing.assert_close(own.grad[inner], other.grad[inner], rtol=0, atol=1e-6)


def test_gradient_raises_the_gap_and_lowers_a_false_branch() -> None:
    loss = SoftClDice(4)
    logits = logits_of(line(gap=True))
    broken = loss(logits, line())
    broken.backward()
    assert logits.grad is not None
    # Descending raises every pixel of the true skeleton in the gap, and nothing on it is lowered.
    assert (logits.grad[..., 21, 38:42] < 0).all()
    assert logits.grad[..., 38:42].sum() < 0
    assert loss(logits_of(line()), line()) < broken

    # Where the network hesitates, the pull is strongest.
    hesitant = logits_of(line(gap=True)).detach()
    hesitant[..., 20:23, 38:42] = -1
    loss(hesitant.requires_grad_(), line()).backward()
    assert hesitant.grad is not None
    assert hesitant.grad[..., 21, 38:42].max() < 3 * hesitant.grad[..., 21, 20:36].min()

    branch = line()
    branch[..., 23:34, 40] = 1
    logits = logits_of(branch)
    loss(logits, line()).backward()
    assert logits.grad is not None
    assert (logits.grad[..., 26:33, 40] > 0).all()


def test_a_few_steps_close_the_gap() -> None:
    logits = logits_of(line(gap=True), 2.0).detach().requires_grad_()
    optimizer = torch.optim.Adam([logits], 0.2)
    for _ in range(40):
        optimizer.zero_grad()
        SoftClDice(4)(logits, line()).backward()
        optimizer.step()
    assert (logits[..., 21, 38:42] > 0).all()


def test_thickness_is_not_seen() -> None:
    thick = torch.zeros_like(line())
    thick[..., 19:24, 20:60] = 1
    assert SoftClDice(4)(logits_of(thick, 30), line()).item() < 0.06


def test_an_empty_truth_pushes_the_skeleton_down() -> None:
    loss = SoftClDice(4)
    logits = logits_of(line())
    with pytest.warns(UserWarning, match="every pixel of target 'mask' in a batch is 0"):
        value = loss(logits, torch.zeros_like(line()))
    value.backward()
    assert value > 0.9
    assert logits.grad is not None
    assert logits.grad[..., 21, 25:55].sum() > 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert loss(torch.full_like(line(), -30), torch.zeros_like(line())).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_too_few_iterations_are_an_error(masked: bool) -> None:
    target = torch.zeros(2, 1, 40, 40)
    target[..., 10:31, 10:31] = 1
    valid = torch.ones_like(target, dtype=torch.bool)
    valid[..., 36:] = not masked
    with pytest.raises(DataError, match=r"no skeleton after 3 iterations.*iterations_for_radius"):
        SoftClDice(3)(logits_of(target), target, valid)
    assert SoftClDice(15)(logits_of(target), target, valid).isfinite()


def test_a_tile_inside_something_thick_is_a_warning() -> None:
    target = torch.zeros(1, 1, 40, 40)
    target[..., :21, :] = 1
    loss = SoftClDice(3)
    with pytest.warns(UserWarning, match="so wide that it has no skeleton after 3 iterations"):
        loss(logits_of(target), target)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(logits_of(target), target)
    valid = torch.ones_like(target, dtype=torch.bool)
    valid[..., :15, :] = False
    with pytest.warns(UserWarning, match="so wide"):
        SoftClDice(3)(logits_of(target), target, valid)


def test_one_channel_acts() -> None:
    # Dropping "the background channel" of a single one leaves nothing, and a loss of 0 for anything.
    logits = torch.zeros(1, 1, 43, 80, requires_grad=True)
    value = SoftClDice(4)(logits, line())
    value.backward()
    assert value > 0.1
    assert logits.grad is not None
    assert logits.grad.abs().sum() > 0


def test_without_iterations_it_cannot_be_used() -> None:
    with pytest.raises(ValueError, match="has no iterations: pass iterations_for_radius"):
        SoftClDice()(torch.randn(1, 1, 8, 8), torch.ones(1, 1, 8, 8).tril())
    with pytest.raises(ValueError, match=r"positive int, received 0; iterations_for_radius"):
        SoftClDice(0)
