"""Losses of MONAI and of topolosses as terms of a sum: nothing is changed but what `Term` says.

topolosses 0.2.0 expects a background channel. Its Dice, clDice, Betti matching and Hu losses take one channel with
``sigmoid=True`` as well; Topograph looks which channel is the larger, so it needs both.
"""

from typing import Any

import pytest
import torch
from torch import nn

from biocnn.losses import BCE, Term
from biocnn.losses.base import BACKGROUND_LOGIT
from biocnn.networks import UNet

ALONE: dict[str, Any] = {"use_base_loss": False, "alpha": 1.0}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "monai dice": ("monai.losses", "DiceLoss", {"sigmoid": True}),
    "monai dice and cross-entropy": ("monai.losses", "DiceCELoss", {"sigmoid": True}),
    "monai generalized dice": ("monai.losses", "GeneralizedDiceLoss", {"sigmoid": True}),
    "monai tversky": ("monai.losses", "TverskyLoss", {"sigmoid": True}),
    "monai focal": ("monai.losses", "FocalLoss", {}),
    "monai cldice": ("monai.losses", "SoftclDiceLoss", {"sigmoid": True}),
    "monai hausdorff": ("monai.losses", "LogHausdorffDTLoss", {"sigmoid": True}),
    "topolosses dice": ("topolosses.losses", "DiceLoss", {"sigmoid": True}),
    "topolosses cldice": ("topolosses.losses", "CLDiceLoss", {"sigmoid": True, **ALONE}),
    "topolosses cldice and dice": ("topolosses.losses", "CLDiceLoss", {"sigmoid": True}),
    "topolosses betti matching": ("topolosses.losses", "BettiMatchingLoss", {"sigmoid": True, **ALONE}),
    "topolosses hu": ("topolosses.losses", "HutopoLoss", {"sigmoid": True, **ALONE}),
    "topolosses topograph": ("topolosses.losses", "TopographLoss", {"softmax": True, **ALONE}),
    "topolosses topograph and dice": ("topolosses.losses", "TopographLoss", {"softmax": True}),
}

# What topolosses says of a single channel, and what gudhi makes numpy 2 say.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Single-channel prediction detected"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]


class Foreign:
    """A module as it is, and how `Term` has to call it."""

    def __init__(self, module: nn.Module, two_classes: bool) -> None:
        self.module, self.two_classes = module, two_classes

    def term(self, **options: Any) -> Term:
        return Term(self.module, two_classes=self.two_classes, **options)

    def __call__(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The module alone; of two classes the softmax of the logits (0, x) is the sigmoid of x."""
        if self.two_classes:
            logits, target = torch.cat([0 * logits, logits], 1), torch.cat([1 - target, target], 1)
        value: torch.Tensor = self.module(logits, target)
        return value


@pytest.fixture(params=list(CASES))
def module(request: pytest.FixtureRequest) -> Foreign:
    package, name, arguments = CASES[request.param]
    reason = f"{package.partition('.')[0]}, which is optional, is not installed or cannot be loaded"
    losses = pytest.importorskip(package, reason=reason, exc_type=ImportError)
    found: nn.Module = getattr(losses, name)(**arguments)
    return Foreign(found, two_classes=arguments.get("softmax", False))


def draw() -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy logits of a truth with two lines, one of which they break."""
    target = torch.zeros(2, 1, 32, 40)
    target[..., 20:24, 4:-4] = 1
    target[0, ..., 6:9, 4:30] = 1
    seen = target.clone()
    seen[..., 20:24, 16:20] = 0
    return 2 * (2 * seen - 1) + torch.randn(target.shape, generator=torch.Generator().manual_seed(0)), target


def test_value_and_gradient_are_those_of_the_module(module: Foreign) -> None:
    logits, target = draw()
    own, sum_of, alone = (logits.clone().requires_grad_() for _ in range(3))
    expected = module(alone, target).mean()
    expected.backward()
    module.term()(own, target).backward()
    assert own.grad is not None
    assert alone.grad is not None
    assert (alone.grad != 0).any()
    assert torch.equal(own.grad, alone.grad)
    assert module.term()(logits - 0.02 * own.grad / own.grad.abs().max(), target) < expected

    loss = BCE() + 0.5 * module.term(name="foreign")
    terms = loss.terms(sum_of, target)
    assert terms["foreign"].item() == pytest.approx(0.5 * expected.item(), rel=1e-6)
    assert loss(sum_of, target).item() == pytest.approx(BCE()(logits, target).item() + 0.5 * expected.item(), rel=1e-6)


def test_outside_valid_it_sees_sure_background(module: Foreign) -> None:
    logits, target = draw()
    valid = torch.ones_like(target, dtype=torch.bool)
    valid[..., :12, :] = False
    alone = torch.where(valid, logits, BACKGROUND_LOGIT).requires_grad_()
    expected = module(alone, torch.where(valid, target, 0.0)).mean()
    expected.backward()
    logits = torch.where(valid, logits, torch.nan).requires_grad_()
    value = module.term()(logits, torch.where(valid, target, 255.0), valid)
    value.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    assert logits.grad is not None
    assert alone.grad is not None
    torch.testing.assert_close(logits.grad[valid], alone.grad[valid])
    assert (logits.grad[~valid] == 0).all()


def test_it_gets_float32_under_autocast(module: Foreign) -> None:
    logits, target = draw()
    half = logits.bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = module.term()(half, target.bool())
    value.backward()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(module(half.detach().float(), target).mean().item(), rel=1e-6)
    assert half.grad is not None
    assert half.grad.dtype == torch.bfloat16


def test_a_network_takes_a_step(module: Foreign) -> None:
    torch.manual_seed(0)
    image, target = draw()
    network = UNet(in_channels=1, channels=[4, 8])
    loss = BCE() + 0.5 * module.term()
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    value = loss(network(image), target)
    value.backward()
    for parameter in network.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    optimizer.step()
    assert value.isfinite()
    changed = [not torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True)]
    assert all(changed)
    assert loss(network(image), target).isfinite()


def test_the_defaults_of_topolosses_that_find_nothing_to_correct_do_not_stop_a_training() -> None:
    losses = pytest.importorskip("topolosses.losses", reason="topolosses is not installed", exc_type=ImportError)
    _, target = draw()
    logits = (20 * target - 10).requires_grad_()
    loss = BCE() + Term(losses.TopographLoss(softmax=True, **ALONE), two_classes=True)
    with pytest.warns(UserWarning, match="found nothing to correct"):
        loss(logits, target).backward()
