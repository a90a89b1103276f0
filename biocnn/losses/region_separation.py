"""The region-separation loss of Oner et al. 2021: gaps and false connections, by the regions that structures enclose.

References:
    Oner, Kozinski, Citraro, Dadap, Konings, Fua: Promoting connectivity of network-like structures by enforcing region
    separation. TPAMI 2021, arXiv 2009.07011. In 3-D: Oner, Osman, Kozinski, Fua: Enforcing connectivity of 3D linear
    structures using their 2D projections. MICCAI 2022, arXiv 2207.07224.
"""

import math
from numbers import Real
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from biocnn.losses.base import Loss, warn_once
from biocnn.losses.distance import check_distances, check_max_distance
from biocnn.losses.maximin import pair_weights

Head = Literal["mask", "distance"]


class RegionSeparation(Loss):
    """Are pixels on two sides of a structure apart, and those on one side together?

    With the predicted distance y = d sigmoid(-logit), d = `max_distance` and t the true distance, both in pixels, the
    background of every window falls into regions (4-connected), which the structures of the truth separate. End points
    are the pixels with t > `margin`. The maximin path of two end points is the one whose lowest pixel is highest, and
    that lowest pixel decides whether the prediction separates them. The loss of a sample is

        gap_weight * mean((y / d)^2) + false_weight * mean((1 - y / y*)^2),

    the first mean over the pairs of end points in different regions, at the lowest pixel of the path through the
    structure, the second over the pairs that can be connected by end points, at the lowest pixel of such a path. y* is
    what a pixel of the background should have: d for ``head="mask"``, and t (with y cut at t) for ``head="distance"``.
    Both means are taken in every window, then over the windows of the sample that have such pairs, so that they lie in
    0..1 whatever the size of window, crop and batch. Paths have no gradient; y at their lowest pixels has.

    It sees few pixels at a time, so it goes with a loss of all pixels, and takes a mapping as its target:
    ``(BCE() + Dice() + RegionSeparation())(logits, {"mask": mask, "distance": distance})``, or
    ``DistanceRegression() + RegionSeparation(head="distance")``. Paths through a map that is noise are noise: let the
    other terms train the first steps.

    Where it differs from the paper and the authors' code, and why:

    - The height of a step is the lower of its two pixels, not their sum: by the sum, a wall one pixel thick is half a
      gap, and the pixel beside it would be pulled into the structure.
    - Windows are shifted until they cover the image; there, what is left over at two sides is in no window.
    - Means in place of sums over windows and batch, which tie the weights to crop and batch size.
    - Different regions are not connected by background at all. There, they are parts of what a dilation by 5 pixels
      leaves, and the end of a structure near the edge of a window is asked to grow to the edge.
    - Pixels off the structure, within `margin`, count as higher by d t / margin, and end points as highest. So
      structures that were found beside their true place are found, but of a gap the pixel on the structure is raised,
      and the background decides nothing. There, the background is cut at d, and weights are kept where t is small.
    - Paths of one region do not leave t > margin, and y* is d or t. There, the weights are kept where t >= d / 2 only,
      which does not see false connections between structures closer than d.

    Samples of 3 dimensions: the mean of the same over the minimum projections of y and t along the three axes, as in
    the MICCAI paper. Of a whole volume, the projected distance is the distance of the projected structure.

    The paths are found on the CPU, so a GPU is waited for. A batch in which no window has two regions is warned about
    once: gaps cannot be found in it.

    Args:
        max_distance: d, in pixels; that of the target, see :func:`truncated_distance`.
        window: side of the windows in pixels; cut to the size of the image.
        gap_weight: of the gaps, 0 or more.
        false_weight: of the false connections, 0 or more; a tenth of the former, as in the authors' code.
        margin: in pixels, 0 or more: how far from its true place a structure may be found.
        head: what the other terms teach the logits, ``"mask"`` (BCE, Dice) or ``"distance"`` (DistanceRegression).

    Raises:
        ValueError: if a number is out of its range, both weights are 0, `margin` is not below `max_distance`, a window
            has no room for end points on both sides of a structure, or `head` is neither.
    """

    name = "region_separation"
    target_key = "distance"
    binary_target = False

    def __init__(
        self,
        max_distance: float = 15.0,
        window: int = 32,
        gap_weight: float = 1.0,
        false_weight: float = 0.1,
        margin: float = 2.0,
        head: Head = "mask",
    ) -> None:
        super().__init__()
        self.max_distance = check_max_distance(max_distance)
        self.gap_weight = _check_not_negative("gap_weight", gap_weight)
        self.false_weight = _check_not_negative("false_weight", false_weight)
        self.margin = _check_not_negative("margin", margin)
        if self.gap_weight == self.false_weight == 0:
            raise ValueError("gap_weight and false_weight are both 0, so the loss cannot act.")
        if self.margin >= self.max_distance:
            raise ValueError(
                f"margin must be below max_distance, or no pixel is an end point; received {margin:g} and "
                f"{max_distance:g}."
            )
        smallest = 2 * (math.floor(self.margin) + 1) + 1
        if isinstance(window, bool) or not isinstance(window, int) or window < smallest:
            raise ValueError(
                f"window must be an int of at least {smallest} to have room for a structure and its margin of "
                f"{margin:g} pixels, received {window!r}."
            )
        self.window = window
        if head not in get_args(Head):
            raise ValueError(f"head must be one of {get_args(Head)}, received {head!r}.")
        self.head = head

    def per_sample(self, logits: torch.Tensor, target: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """(B,); arguments as for :meth:`Loss.per_sample`, the target in pixels.

        Raises:
            DataError: if the target leaves 0..max_distance.
        """
        check_distances(self, target, self.max_distance)
        height = torch.sigmoid(-logits)
        if logits.ndim == 4:
            pictures = [(height, target, valid)]
        else:
            pictures = [_project(height, target, valid, self.max_distance, axis) for axis in (2, 3, 4)]
        found = [self._of_pictures(*one) for one in pictures]
        apart, same = np.sum([windows for _, windows in found], axis=0)
        if not apart and self.gap_weight:
            warn_once(
                self,
                f"in no window of {self.window} pixels of a batch does a structure separate two regions, so gaps "
                "cannot be found. Said once; if it is so in every batch, use larger windows or look at the truth.",
            )
        if not same and self.false_weight:
            warn_once(
                self,
                f"no window of a batch has two connected pixels more than {self.margin:g} pixels from a structure, so "
                "false connections cannot be found. Said once; if it is so in every batch, use a smaller margin.",
            )
        return torch.stack([values for values, _ in found]).mean(0)

    def _of_pictures(
        self, height: torch.Tensor, distance: torch.Tensor, valid: torch.Tensor | None
    ) -> tuple[torch.Tensor, NDArray[np.int64]]:
        """The loss of each sample (B,), of y / d and t, (B, C, H, W); and the windows with pairs of the two kinds."""
        share = height
        if self.head == "distance":
            # Off a structure the distance is a pixel at least; on it the share is not used and has to be finite only.
            share = (height * (self.max_distance / distance.clamp(min=min(1.0, self.max_distance)))).clamp(max=1)
        with torch.no_grad():
            near = distance <= self.margin
            beside = distance / self.margin if self.margin else 0
            order_by = torch.where(near, height + beside, share)
            counted = torch.ones_like(near) if valid is None else valid.expand_as(near)
            first, second, windows = pair_weights(
                _pictures(order_by.float()),
                _pictures(near),
                _pictures((distance > 0) | ~counted),
                _pictures(counted),
                self.window,
            )
            apart, same = (torch.from_numpy(one).to(height).view_as(height) for one in (first, second))
        values = self.gap_weight * apart * height.square() + self.false_weight * same * (1 - share).square()
        return values.flatten(2).sum(2).mean(1), windows.sum(0)

    def extra_repr(self) -> str:
        """The arguments, for printing."""
        return (
            f"max_distance={self.max_distance:g}, window={self.window}, gap_weight={self.gap_weight:g}, "
            f"false_weight={self.false_weight:g}, margin={self.margin:g}, head={self.head!r}"
        )


def _pictures(values: torch.Tensor) -> NDArray[Any]:
    """(B, C, H, W) as an array (B C, H, W)."""
    return values.flatten(0, 1).cpu().numpy()


def _project(
    height: torch.Tensor, distance: torch.Tensor, valid: torch.Tensor | None, max_distance: float, axis: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Minimum projections; a ray is valid if a voxel on it is, and only valid ones are looked at."""
    if valid is None:
        return height.amin(axis), distance.amin(axis), None
    height, distance = height.masked_fill(~valid, 1), distance.masked_fill(~valid, max_distance)
    return height.amin(axis), distance.amin(axis), valid.any(axis)


def _check_not_negative(name: str, value: float) -> float:
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be 0 or more and finite, received {value!r}.")
    return float(value)
