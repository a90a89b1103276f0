"""Two thresholds: faint structure counts where it is connected to strong structure; and their choice on validation.

One threshold has to choose between breaks, where a vessel fades, and specks, where noise is strong. With two, a pixel
is called structure iff its probability is at least `low` and its component of such pixels reaches `high` somewhere
(Canny 1986, section V). Components are those of connectivity 8 in 2-D, of 26 in 3-D, like those of the Betti numbers.

Notation: L low thresholds, K high ones.
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from torch import Tensor
from torchmetrics import Metric

from biocnn.errors import DataError
from biocnn.metrics.overlap import Mask, check_mask
from biocnn.metrics.topology import betti_numbers, remove_small

STEP, REACH = 0.25, 2.0
"""The thresholds that are tried: steps of the logit, and how far `low` may lie from the threshold to start from."""
LOW_COUNT = 2 * round(REACH / STEP) + 1
SLACK = 0.002
"""Dice that may be given up for fewer topological errors. On the validation images of DRIVE 0.001 takes the Betti-0 error
from 69 to 15, 0.002 to 5, and 0.005 to 2; trainings with other seeds differ by 0.003."""

FIELDS = ("true_positive", "called", "betti0_error", "betti1_error")


def hysteresis(probability: ArrayLike, low: float, high: float, valid: ArrayLike | None = None) -> Mask:
    """Call structure by two thresholds.

    Args:
        probability: (H, W) or (D, H, W).
        low: a called pixel has at least this probability.
        high: its component has at least this somewhere; `low` gives a plain threshold.
        valid: the same shape, bool; outside it nothing is called, and components do not touch there.

    Returns:
        The same shape, bool.

    Raises:
        ValueError: if `high` is less than `low`.

    >>> hysteresis([[0.9, 0.4, 0.4, 0.1, 0.4]], 0.3, 0.8).astype(int)
    array([[1, 1, 1, 0, 0]])
    """
    if high < low:
        raise ValueError(f"Expected low <= high, received {low} and {high}.")
    values = np.asarray(probability)
    faint = values >= low
    if valid is not None:
        faint &= np.asarray(valid, dtype=bool)
    if high == low:
        return faint
    labels, count = ndimage.label(faint, np.ones((3,) * values.ndim))
    strong = np.zeros(count + 1, dtype=bool)
    strong[labels[faint & (values >= high)]] = True
    return strong[labels]


def count_pairs(
    probability: ArrayLike,
    mask: ArrayLike,
    valid: ArrayLike | None,
    lows: NDArray[np.float64],
    highs: NDArray[np.float64],
    min_size: int = 0,
) -> NDArray[np.float64]:
    """What each pair of thresholds makes of an image: pixels, and errors of the Betti numbers, connectivity 8.

    Labelling once for each low threshold is enough: whether a component stays is decided by its maximum, and pixels,
    true pixels and the Euler characteristic are sums over components. The latter is counted in 2x2 squares, each of
    which meets one component at most (Gray 1971: chi = (q1 - q3 - 2 qd) / 4 with qd the diagonal pairs).

    Args:
        probability: (H, W) in 0..1.
        mask: (H, W), 0 and 1.
        valid: (H, W) bool; None counts every pixel.
        lows: (L,).
        highs: (K,); pairs with `high` below `low` are counted as if it were `low`.
        min_size: components of fewer pixels are left out of Betti numbers.

    Returns:
        (L, K, 4) float64, the numbers `FIELDS`.

    Raises:
        DataError: if shapes differ, or the mask holds anything but 0 and 1.
    """
    values = np.asarray(probability)
    inside = np.ones(values.shape, dtype=bool) if valid is None else check_mask("valid", valid, values.shape)
    truth = check_mask("mask", np.where(inside, mask, 0), values.shape)
    true_betti = betti_numbers(remove_small(truth, min_size))
    result = np.zeros((len(lows), len(highs), len(FIELDS)))
    for row, low in enumerate(lows):
        faint = (values >= low) & inside
        labels, count = ndimage.label(faint, np.ones((3, 3)))
        flat = labels[faint]
        size = np.bincount(flat, minlength=count + 1)
        found = np.bincount(flat, truth[faint], minlength=count + 1)
        peak = np.zeros(count + 1)
        np.maximum.at(peak, flat, values[faint])
        chi = _euler_by_component(labels, count)
        counted = size >= max(1, min_size)
        for column, high in enumerate(highs):
            kept = (peak >= high) & (size > 0)
            components = int((kept & counted).sum())
            loops = components - round(chi[kept & counted].sum())
            result[row, column] = (
                found[kept].sum(),
                size[kept].sum(),
                abs(components - true_betti[0]),
                abs(loops - true_betti[1]),
            )
    return result


def _euler_by_component(labels: NDArray[np.int32], count: int) -> NDArray[np.float64]:
    """Euler characteristic of every component of connectivity 8, (count + 1,)."""
    padded = np.pad(labels, 1)
    corners = [padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]]
    owner = np.maximum.reduce(corners)
    set_ = [corner > 0 for corner in corners]
    number = np.add.reduce(set_, dtype=np.int8)
    diagonal = (number == 2) & (set_[0] == set_[3])
    weight = (number == 1) * 1.0 - (number == 3) - 2.0 * diagonal
    where = weight != 0
    return np.bincount(owner[where], weight[where], minlength=count + 1) / 4


def thresholds_around(centre: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The low and high thresholds that are tried: equal steps of the logit around `centre`, highs further up.

    Args:
        centre: a probability, such as the threshold with the best Dice.

    Returns:
        Lows (L,) and highs (K,), increasing; every low is among the highs.
    """
    clipped = min(max(centre, 1e-4), 1 - 1e-4)
    start = math.log(clipped / (1 - clipped)) - REACH
    logits = start + STEP * np.arange(2 * LOW_COUNT)
    # Rounded to float32, in which maps are compared with them.
    probabilities = (1 / (1 + np.exp(-logits))).astype(np.float32).astype(np.float64)
    return probabilities[:LOW_COUNT], probabilities


def choose_pair(
    table: NDArray[np.float64], truth: float, lows: NDArray[np.float64], highs: NDArray[np.float64]
) -> tuple[float, float]:
    """The pair with the fewest topological errors of those whose pooled Dice is within `SLACK` of the best.

    Errors are those of components and loops, added up; of equals the pair with the higher Dice is taken.

    Args:
        table: (L, K, 4) sums over images of :func:`count_pairs`.
        truth: pixels of the true structure in all images.
        lows: (L,).
        highs: (K,).

    Raises:
        DataError: if there is no true structure.
    """
    if truth <= 0:
        raise DataError("The images show no structure, so no threshold can be chosen on them.")
    hit, called, *errors = np.moveaxis(table, 2, 0)
    dice = np.where(highs[None] >= lows[:, None], 2 * hit / (called + truth), -1.0)
    good = dice >= dice.max() - SLACK
    cost = np.where(good, sum(errors), np.inf)
    best = np.argmax(np.where(cost == cost.min(), dice, -1.0))
    row, column = np.unravel_index(best, dice.shape)
    return float(lows[row]), float(highs[column])


class HysteresisSearch(Metric):
    """Adds up :func:`count_pairs` over validation images, and chooses the pair of thresholds.

    The states are sums, so the choice is that of one process whatever the number of ranks.

    Args:
        min_size: components of fewer pixels are left out of Betti numbers.
        kwargs: as of :class:`torchmetrics.Metric`.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = None

    table: Tensor
    truth: Tensor

    def __init__(self, min_size: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.min_size = min_size
        self.centre = 0.5
        shape = (LOW_COUNT, 2 * LOW_COUNT, len(FIELDS))
        self.add_state("table", torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("truth", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, probability: Tensor, mask: Tensor, valid: Tensor | None = None) -> None:
        """Add a batch of B images; `centre` has to stay the same over all of them.

        Args:
            probability: (B, 1, H, W) in 0..1.
            mask: the same shape, 0 and 1.
            valid: the same shape, bool; None counts every pixel.
        """
        lows, highs = thresholds_around(self.centre)
        for number in range(len(probability)):
            score, truth = (values[number, 0].detach().float().cpu().numpy() for values in (probability, mask))
            inside = None if valid is None else valid[number, 0].cpu().numpy()
            counts = count_pairs(score, truth, inside, lows, highs, self.min_size)
            self.table += torch.from_numpy(counts).to(self.table)
            self.truth += float((truth > 0).sum() if inside is None else ((truth > 0) & inside).sum())

    def compute(self) -> tuple[float, float]:
        """The pair (low, high).

        Raises:
            DataError: if no image showed the structure.
        """
        return choose_pair(self.table.cpu().numpy(), self.truth.item(), *thresholds_around(self.centre))
