"""Pixel-wise losses: binary cross-entropy and soft Dice."""

import math

import torch
from torch.nn import functional as F

from biocnn.losses.base import Loss


class BCE(Loss):
    """Binary cross-entropy of logits, the mean over the valid pixels and channels of each sample.

    Args:
        pos_weight: positive factor of the foreground pixels, as in `torch.nn.BCEWithLogitsLoss`.

    Raises:
        ValueError: if `pos_weight` is not positive and finite.
    """

    name = "bce"

    def __init__(self, pos_weight: float = 1.0) -> None:
        super().__init__()
        if not (math.isfinite(pos_weight) and pos_weight > 0):
            raise ValueError(f"pos_weight must be positive and finite, received {pos_weight}.")
        self.pos_weight = float(pos_weight)

    def per_sample(self, logits: torch.Tensor, target: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """(B,); arguments as for :meth:`Loss.per_sample`."""
        weight = None if self.pos_weight == 1 else 1 + (self.pos_weight - 1) * target
        values = F.binary_cross_entropy_with_logits(logits, target, weight, reduction="none").flatten(1)
        if valid is None:
            return values.mean(1)
        counted = valid.expand_as(target).flatten(1)
        return (values * counted).sum(1) / counted.sum(1).clamp(min=1)


class Dice(Loss):
    """Soft Dice, 1 - (2 sum(p t) + s) / (sum(p) + sum(t) + s), the mean over channels and samples.

    Sums run over the valid pixels of one channel of one sample (p probability, t target, s `smooth`). Where the truth
    is empty this is 1 - s / (sum(p) + s): 0 for an empty prediction, near 1 for more than a few pixels; it does push
    false foreground down, the less the more there is.

    Reference: Milletari, Navab, Ahmadi: V-Net. 3DV 2016, section 3, with the sums in the first power.

    Args:
        smooth: s in pixels, positive: with 0 an empty truth gives no gradient at all.

    Raises:
        ValueError: if `smooth` is not positive and finite.
    """

    name = "dice"

    def __init__(self, smooth: float = 1.0) -> None:
        super().__init__()
        self.smooth = check_smooth(smooth)

    def per_sample(self, logits: torch.Tensor, target: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """(B,); arguments as for :meth:`Loss.per_sample`."""
        probability = torch.sigmoid(logits)
        if valid is not None:
            probability = probability * valid
        probability, target = probability.flatten(2), target.flatten(2)
        both = (probability * target).sum(2)
        dice = (2 * both + self.smooth) / (probability.sum(2) + target.sum(2) + self.smooth)
        return 1 - dice.mean(1)


def check_smooth(smooth: float) -> float:
    """Return `smooth` as a float.

    Raises:
        ValueError: if it is not positive and finite.
    """
    if not (math.isfinite(smooth) and smooth > 0):
        raise ValueError(f"smooth must be positive and finite, received {smooth}.")
    return float(smooth)
