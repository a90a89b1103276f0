"""Skeleton recall of Kirchhoff et al. 2024: the share of a tube around the true skeleton that is found.

Reference: Kirchhoff, Rokuss, Roy et al.: Skeleton recall loss for connectivity conserving and resource efficient
segmentation of thin tubular structures. ECCV 2024, arXiv 2404.03010.
"""

import torch

from biocnn.data.targets import skeleton_tube
from biocnn.losses.base import Loss

__all__ = ["SkeletonRecall", "skeleton_tube"]


class SkeletonRecall(Loss):
    """1 - sum(tube p) / sum(tube), the mean over channels and samples; p is the probability (paper, eq. 2).

    It sees misses only, never false foreground, so it goes with BCE or Dice. It costs a multiplication: the tube is
    made beforehand by :func:`skeleton_tube`. Alone it takes the tube as its target; in a sum, `target` is a mapping
    with `mask` and `tube`: ``(BCE() + SkeletonRecall())(logits, {"mask": mask, "tube": tube})``. A channel of a sample
    whose tube is empty has nothing to find and gives 0, without a gradient; a batch of these is warned about once.
    """

    name = "skeleton_recall"
    target_key = "tube"

    def per_sample(self, logits: torch.Tensor, target: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """(B,); arguments as for :meth:`Loss.per_sample`; `target` is 0 where not valid, so `valid` adds nothing."""
        tube = target.flatten(2)
        missed = (tube * torch.sigmoid(-logits).flatten(2)).sum(2)
        return (missed / tube.sum(2).clamp(min=1)).mean(1)
