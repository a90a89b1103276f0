"""Skeleton recall of Kirchhoff et al. 2024: the share of a tube around the true skeleton that is found.

Reference: Kirchhoff, Rokuss, Roy et al.: Skeleton recall loss for connectivity conserving and resource efficient
segmentation of thin tubular structures. ECCV 2024, arXiv 2404.03010.
"""

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from skimage.morphology import skeletonize

from biocnn.errors import DataError
from biocnn.losses.base import Loss


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


def skeleton_tube(mask: ArrayLike, radius: int = 2) -> NDArray[np.uint8]:
    """The skeleton of a mask, made `radius` pixels thick on each side but not thicker than the mask.

    As in the authors' code: the skeleton (Zhang in 2-D, Lee in 3-D) is dilated `radius` times by the smallest cross,
    then cut with the mask. Every component (8- or 26-connected) keeps at least one pixel: Lee thinning as in
    scikit-image erases columns of an even width altogether. Such a component is thinned again with the last plane of
    each axis taken off, which makes its width odd, and if it is erased again, its point farthest from the background
    stands for it.

    Args:
        mask: (H, W) or (D, H, W), bool or 0 and 1; a channel at a time.
        radius: dilations, 0 or more; the paper uses 2.

    Returns:
        The same shape, uint8, 0 and 1; all 0 for an empty mask.

    Raises:
        ValueError: if the radius is not an int of 0 or more, or the mask does not have 2 or 3 axes.
        DataError: if the mask holds anything but 0 and 1.
    """
    if isinstance(radius, bool) or not isinstance(radius, int | np.integer) or radius < 0:
        raise ValueError(f"radius must be an int of 0 or more, received {radius!r}.")
    values = np.asarray(mask)
    if values.ndim not in (2, 3):
        raise ValueError(f"mask: expected shape (H, W) or (D, H, W), received {values.shape}.")
    if not np.isin(values, (0, 1)).all():
        raise DataError(f"mask: expected 0 and 1 only, received values from {values.min()} to {values.max()}.")
    foreground = values.astype(bool)
    tube = _skeleton(foreground)
    if radius:
        tube = ndimage.binary_dilation(tube, iterations=radius) & foreground
    return tube.astype(np.uint8)


def _skeleton(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Skeleton in which no component is lost."""
    if not mask.any():
        return np.zeros_like(mask)
    skeleton: NDArray[np.bool_] = skeletonize(mask).astype(bool)
    label, count = ndimage.label(mask, np.ones((3,) * mask.ndim))
    lost = np.setdiff1d(np.arange(1, count + 1), label[skeleton])
    places = ndimage.find_objects(label)
    for number in lost:
        place = places[number - 1]
        component = np.pad(label[place] == number, 1)
        again = skeletonize(_without_last_planes(component)).astype(bool) & component
        if not again.any():
            again.flat[ndimage.distance_transform_edt(component).argmax()] = True
        skeleton[place] |= again[(slice(1, -1),) * mask.ndim]
    return skeleton


def _without_last_planes(component: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """What stays of a component when the last pixel of every run along every axis is taken off."""
    for axis in range(component.ndim):
        component = component & np.roll(component, -1, axis)
    return component
