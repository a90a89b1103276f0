"""Distance maps: the target of delineation as a number per pixel, and its regression on the logits.

No network needs a channel for it: the distance that a logit x stands for is y = max_distance * sigmoid(-x), in pixels,
so that y is 0 on a structure and `max_distance` far from all, and 1 - y / max_distance = sigmoid(x) is read like a
probability. It is 0.5 at half of `max_distance` from a structure and not at its edge, so the threshold has to be chosen
on the validation data.

Reference: Sironi, Tueretken, Lepetit, Fua: Multiscale centerline detection. TPAMI 2016; with a truncated distance as in
Oner et al., TPAMI 2021 (`region_separation`).
"""

import torch

from biocnn.data.targets import check_max_distance, truncated_distance
from biocnn.errors import DataError
from biocnn.losses.base import Loss, warn_once

__all__ = ["DistanceRegression", "check_distances", "check_max_distance", "predicted_distance", "truncated_distance"]

# Half-precision targets are rounded by less than this share.
ROUNDING = 0.01


class DistanceRegression(Loss):
    """Mean of ((y - t) / max_distance)^2 over the valid pixels and channels of each sample; t is the true distance.

    The target is made by :func:`truncated_distance` with the same `max_distance`, under the key `distance` if it comes
    in a mapping; y as in :func:`predicted_distance`. The values lie in 0..1 whatever `max_distance`, and the loss is 0
    if y = t; a network comes as near as its logits are far from 0, since y never quite reaches either end.

    Looking at the range of the target waits for the device once.

    Args:
        max_distance: where distances are cut, in pixels, positive; 15 and 20 are usual.

    Raises:
        ValueError: if `max_distance` is not positive and finite.
    """

    name = "distance"
    target_key = "distance"
    binary_target = False

    def __init__(self, max_distance: float = 15.0) -> None:
        super().__init__()
        self.max_distance = check_max_distance(max_distance)

    def per_sample(self, logits: torch.Tensor, target: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """(B,); arguments as for :meth:`Loss.per_sample`, the target in pixels.

        Raises:
            DataError: if the target leaves 0..max_distance.
        """
        check_distances(self, target, self.max_distance)
        values = (torch.sigmoid(-logits) - target / self.max_distance).square().flatten(1)
        if valid is None:
            return values.mean(1)
        counted = valid.expand_as(target).flatten(1)
        return (values * counted).sum(1) / counted.sum(1).clamp(min=1)


def predicted_distance(logits: torch.Tensor, max_distance: float = 15.0) -> torch.Tensor:
    """The distance to the nearest structure that logits stand for: max_distance * sigmoid(-logits).

    Args:
        logits: any shape, any float dtype.
        max_distance: the one of the training, in pixels, positive.

    Returns:
        The same shape and dtype, in 0..max_distance; high is background.

    Raises:
        ValueError: if `max_distance` is not positive and finite.
    """
    return check_max_distance(max_distance) * torch.sigmoid(-logits)


def check_distances(loss: Loss, target: torch.Tensor, max_distance: float) -> None:
    """Check a target of distances; one that looks like a mask is warned about, once for each loss.

    Args:
        loss: in whose name is warned.
        target: in pixels; 0 where not valid.
        max_distance: in pixels.

    Raises:
        DataError: if the target leaves 0..max_distance by more than half precision rounds.
    """
    with torch.no_grad():
        # x * x - x is 0 for 0 and 1 only.
        low, high, odd = torch.stack([*target.aminmax(), (target * target - target).abs().amax()]).tolist()
    if low < 0 or high > max_distance * (1 + ROUNDING):
        raise DataError(
            f"target 'distance': expected 0..{max_distance:g} where valid, received {low:g}..{high:g}; make it by "
            f"truncated_distance(mask, {max_distance:g}), with the max_distance of the loss."
        )
    if odd == 0 and high == 1 and max_distance > 1:
        warn_once(
            loss,
            "the target of a batch is 0 and 1 only, as a mask is, though distances were expected; make them by "
            f"truncated_distance(mask, {max_distance:g}). Said once.",
        )
