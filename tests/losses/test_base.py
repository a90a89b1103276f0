"""What all losses promise: one signature, sums, masks, precision, and a word when one cannot act."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from biocnn.errors import DataError
from biocnn.losses import BCE, Dice, Loss, SkeletonRecall, SoftClDice, Term, WeightedSum

LOSSES = [BCE(), BCE(pos_weight=3.0), Dice(), SoftClDice(2), SkeletonRecall(), 0.3 * BCE() + 0.7 * SoftClDice(3)]
SHAPES = [(2, 1, 14, 17), (2, 2, 9, 10, 11)]
each_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: "+".join(loss.names))
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=["2d", "3d"])


def tubes(shape: tuple[int, ...]) -> torch.Tensor:
    """Two lines along the second but last axis in every sample and channel, three pixels wide."""
    target = torch.zeros(shape)
    target[..., 3:6] = 1
    target[0, ..., 8:9] = 1
    return target


def draw(
    shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor]:
    logits = 3 * torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    return logits, tubes(shape).to(dtype)


@each_shape
@each_loss
def test_truth_is_zero_and_its_opposite_is_not(loss: Loss, shape: tuple[int, ...]) -> None:
    target = tubes(shape)
    assert loss(80 * (2 * target - 1), target).item() == pytest.approx(0, abs=1e-6)
    assert loss(-80 * (2 * target - 1), target).item() > 0.3


@each_shape
@each_loss
def test_gradient(loss: Loss, shape: tuple[int, ...]) -> None:
    small = (*shape[:2], 4, 7) if len(shape) == 4 else (1, 2, 3, 3, 7)
    logits, target = draw(small)
    valid = torch.rand(small[0], 1, *small[2:], generator=torch.Generator().manual_seed(1)) > 0.2
    assert torch.autograd.gradcheck(lambda x: loss(x, target), logits.requires_grad_(), fast_mode=True)
    assert torch.autograd.gradcheck(lambda x: loss(x, target, valid), logits, fast_mode=True)


@each_shape
@each_loss
def test_mean_over_samples_does_not_depend_on_the_batch(loss: Loss, shape: tuple[int, ...]) -> None:
    logits, target = draw((4, *shape[1:]))
    alone = torch.stack([loss(logits[i : i + 1], target[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(loss(logits, target), alone.mean(), rtol=1e-12, atol=0)


@each_shape
@each_loss
def test_valid_rectangle_is_the_same_as_cropping(loss: Loss, shape: tuple[int, ...]) -> None:
    logits, target = draw(shape)
    inner = (..., *[slice(2, size - 1 - axis) for axis, size in enumerate(shape[2:])])
    valid = torch.zeros(shape[0], 1, *shape[2:], dtype=torch.bool)
    valid[inner] = True
    expected = logits[inner].clone().requires_grad_()
    loss(expected, target[inner]).backward()
    # What is not valid is never read.
    logits = torch.where(valid, logits, torch.nan).requires_grad_()
    value = loss(logits, torch.where(valid, target, 255.0), valid)
    value.backward()
    torch.testing.assert_close(value, loss(expected, target[inner]), rtol=1e-12, atol=0)
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad[inner], expected.grad, rtol=1e-9, atol=1e-15)
    assert (logits.grad[~valid.expand_as(logits)] == 0).all()


@each_loss
def test_all_valid_is_the_same_as_no_mask_and_samples_without_valid_pixels_do_not_count(loss: Loss) -> None:
    logits, target = draw(SHAPES[0])
    valid = torch.ones_like(logits, dtype=torch.bool)
    assert loss(logits, target, valid).item() == loss(logits, target).item()
    valid[1] = False
    torch.testing.assert_close(loss(logits, target, valid), loss(logits[:1], target[:1]), rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="no pixel of the batch counts"):
        loss(logits, target, torch.zeros_like(valid))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@each_loss
def test_half_precision_is_computed_in_float32(loss: Loss, half: torch.dtype) -> None:
    # Larger than a float16 sum can hold.
    logits, target = draw((1, 1, 300, 300), dtype=torch.float32)
    logits = logits.to(half)
    with torch.autocast("cpu", dtype=half):
        value = loss(logits.requires_grad_(), target.bool())
        assert value.dtype == torch.float32
        value.backward()
    assert logits.grad is not None
    assert logits.grad.dtype == half
    assert value.item() == pytest.approx(loss(logits.float(), target).item(), rel=1e-6)


@each_loss
def test_targets_of_any_dtype_and_copies_are_the_same(loss: Loss) -> None:
    logits, target = draw(SHAPES[0], dtype=torch.float32)
    expected = loss(logits, target).item()
    for dtype in (torch.bool, torch.uint8, torch.int64, torch.float16, torch.float64):
        assert loss(logits, target.to(dtype)).item() == expected
    assert copy.deepcopy(loss)(logits, target).item() == expected
    assert pickle.loads(pickle.dumps(loss))(logits, target).item() == expected


def test_weighted_sums() -> None:
    logits, target = draw(SHAPES[0])
    loss = 0.5 * (BCE() + 2 * Dice()) + SoftClDice(3) * 0.25 + Dice(smooth=5.0)
    assert isinstance(loss, nn.Module)
    assert loss.names == ["bce", "dice", "cldice", "dice_2"]
    assert [weight for _, weight, _ in loss.parts()] == [0.5, 1.0, 0.25, 1.0]
    terms = loss.terms(logits, target)
    assert list(terms) == loss.names
    assert terms["cldice"].item() == pytest.approx(0.25 * SoftClDice(3)(logits, target).item(), rel=1e-12)
    torch.testing.assert_close(loss(logits, target), torch.stack(list(terms.values())).sum())
    same = WeightedSum([BCE(), Dice(), SoftClDice(3), Dice(smooth=5.0)], [0.5, 1, 0.25, 1])
    assert same(logits, target).item() == loss(logits, target).item()
    assert (np.float32(0.5) * BCE()).parts()[0][1] == 0.5
    assert "weights=[0.5, 1.0, 0.25, 1.0]" in repr(same)
    assert Dice().terms(logits, target)["dice"].item() == Dice()(logits, target).item()


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_weights_that_make_no_sense(weight: float) -> None:
    with pytest.raises(ValueError, match="weight of 'bce' must be positive"):
        weight * BCE()


def test_sums_of_other_things() -> None:
    with pytest.raises(ValueError, match="0 losses and 0 weights"):
        WeightedSum([], [])
    with pytest.raises(ValueError, match="1 losses and 2 weights"):
        WeightedSum([BCE()], [1, 2])
    with pytest.raises(TypeError, match="unsupported operand"):
        BCE() + 1  # type: ignore[operator]
    with pytest.raises(TypeError, match="unsupported operand"):
        None * BCE()  # type: ignore[operator]
    with pytest.raises(NotImplementedError, match="Loss has to implement per_sample"):
        Loss()(*draw(SHAPES[0]))


class Mean(nn.Module):
    """As a loss of another package: it has a parameter and looks at every pixel."""

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.reduction = reduction

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        values = self.scale * F.binary_cross_entropy_with_logits(logits.float(), target.float(), reduction="none")
        return {"mean": values.mean(), "sample": values.flatten(1).mean(1), "none": values}[self.reduction]


def test_modules_of_other_packages_are_terms() -> None:
    logits, target = draw(SHAPES[0], dtype=torch.float32)
    for reduction in ("mean", "sample"):
        loss = 0.5 * Term(Mean(reduction)) + 0.5 * Term(Mean(), name="other")
        assert loss.names == ["mean", "other"]
        assert len(list(loss.parameters())) == 2
        assert loss(logits, target).item() == pytest.approx(BCE()(logits, target).item(), rel=1e-6)
    with pytest.raises(ValueError, match=r"scalar or one value per sample, received \(2, 1, 14, 17\)"):
        Term(Mean("none"))(logits, target)
    # Not valid: sure background, which costs nothing.
    valid = torch.ones_like(target, dtype=torch.bool)
    valid[:, :, :7] = False
    own, foreign = BCE()(logits, target, valid), Term(Mean())(logits, target, valid)
    assert foreign.item() == pytest.approx(own.item() / 2, rel=1e-5)


def test_a_term_without_a_gradient_says_so() -> None:
    class Detached(nn.Module):
        def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return (logits.detach() - target).mean()

    logits, target = draw(SHAPES[0])
    Term(Detached())(logits, target)
    with pytest.raises(ValueError, match=r"detached: its value .* does not depend on the logits"):
        Term(Detached())(logits.requires_grad_(), target)


def test_a_term_that_finds_nothing_to_correct_is_warned_about_once() -> None:
    class Silent(nn.Module):
        def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return torch.zeros(())

    logits, target = draw(SHAPES[0])
    loss = BCE() + Term(Silent())
    with pytest.warns(UserWarning, match="value is 0 and does not depend on the logits"):
        loss(logits.requires_grad_(), target).backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert loss(logits, target).item() == BCE()(logits, target).item()


def test_one_channel_becomes_two_classes() -> None:
    class CrossEntropy(nn.Module):
        def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return nn.functional.cross_entropy(logits, target)

    logits, target = draw(SHAPES[0])
    logits, target = logits[:, :1], target[:, :1]
    value = Term(CrossEntropy(), two_classes=True)(logits, target)
    assert value.item() == pytest.approx(BCE()(logits, target).item(), rel=1e-9)
    with pytest.raises(ValueError, match="two classes are made of one channel, received 2"):
        Term(CrossEntropy(), two_classes=True)(logits.repeat(1, 2, 1, 1), target.repeat(1, 2, 1, 1))


def test_monai_losses_are_terms() -> None:
    losses = pytest.importorskip("monai.losses")
    logits, target = draw(SHAPES[0], dtype=torch.float32)
    loss = 0.5 * BCE() + 0.5 * Term(losses.DiceLoss(sigmoid=True, smooth_nr=1, smooth_dr=1), name="dice")
    own = 0.5 * BCE() + 0.5 * Dice()
    assert loss(logits, target).item() == pytest.approx(own(logits, target).item(), rel=1e-6)


def test_terms_choose_their_targets() -> None:
    logits, mask = draw(SHAPES[0])
    tube = torch.roll(mask, 1, 3)
    loss = BCE() + SkeletonRecall()
    value = loss(logits, {"mask": mask, "tube": tube, "image": logits})
    torch.testing.assert_close(value, BCE()(logits, mask) + SkeletonRecall()(logits, tube))
    with pytest.raises(ValueError, match=r"pass a mapping with the keys \['mask', 'tube'\]"):
        loss(logits, mask)
    with pytest.raises(ValueError, match=r"\['tube'\] are missing; received \['mask'\]"):
        loss(logits, {"mask": mask})


def test_shapes_that_do_not_fit() -> None:
    logits, target = torch.randn(2, 1, 8, 9), torch.zeros(2, 1, 8, 9)
    for bad in (logits[0], logits.long(), logits[:0], logits[..., None, None]):
        with pytest.raises(ValueError, match="logits: expected a non-empty float tensor"):
            BCE()(bad, target)
    with pytest.raises(
        ValueError, match=r"expected shape \(2, 1, 8, 9\) .* received \(2, 8, 9\); give .* channel axis"
    ):
        BCE()(logits, target[:, 0])
    with pytest.raises(ValueError, match="two classes are one logit here"):
        BCE()(logits.expand(2, 2, 8, 9), target)
    with pytest.raises(ValueError, match="every logit channel needs a target channel"):
        BCE()(logits.expand(2, 3, 8, 9), target)
    with pytest.raises(ValueError, match=r"received \(2, 1, 8, 8\)\."):
        BCE()(logits, target[..., :8])
    for valid in (torch.ones(2, 1, 8, 9), torch.ones(2, 8, 9, dtype=torch.bool)):
        with pytest.raises(ValueError, match="valid: expected bool of shape"):
            BCE()(logits, target, valid)


@pytest.mark.parametrize("bad", [0.5, 255.0, -1.0, float("nan"), float("inf")])
def test_target_values(bad: float) -> None:
    logits, target = draw(SHAPES[0])
    target[0, 0, 0, 0] = bad
    with pytest.raises(DataError, match="target 'mask': expected 0 and 1 only"):
        BCE()(logits, target)
    valid = torch.ones_like(target, dtype=torch.bool)
    valid[0, 0, 0, 0] = False
    assert BCE()(logits, target, valid).isfinite()


def test_targets_that_are_not_binary_have_to_be_finite() -> None:
    logits, target = draw(SHAPES[0])
    loss = Term(nn.MSELoss(), binary_target=False)
    assert loss(logits, target * 7.5).isfinite()
    with pytest.raises(DataError, match="finite values"):
        loss(logits, target.masked_fill(target > 0, torch.inf))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_not_finite(bad: float) -> None:
    logits, target = draw(SHAPES[0])
    logits[0, 0, 3, 3] = bad
    with pytest.raises(DataError, match="did training diverge"):
        Dice()(logits, target)


def test_probabilities_for_logits_are_noticed_and_logits_are_not_taken_for_them() -> None:
    logits, target = draw(SHAPES[0])
    for wrong in (torch.sigmoid(8 * logits), target, F.softmax(torch.cat([9 * logits, -logits], 1), 1)[:, :1]):
        with pytest.raises(DataError, match="before the sigmoid"):
            Dice()(wrong, target)
    # A new network: zeros, small logits, positive logits; and a sure one.
    for right in (0 * logits, 0.01 * logits, 0.5 + 0.05 * logits, torch.rand_like(logits), 20 * logits):
        assert Dice()(right, target).isfinite()


@pytest.mark.parametrize("constant", [0, 1])
@pytest.mark.parametrize("loss", [BCE(), Dice(), SkeletonRecall()], ids=lambda loss: loss.name)
def test_constant_targets_are_warned_about_once(loss: Loss, constant: int) -> None:
    loss = copy.deepcopy(loss)
    logits, target = draw(SHAPES[0])
    with pytest.warns(UserWarning, match=f"every pixel of target '{loss.target_key}' in a batch is {constant}"):
        loss(logits, torch.full_like(target, constant))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(logits, torch.full_like(target, constant))
        copy.deepcopy(LOSSES[0])(logits, target)
