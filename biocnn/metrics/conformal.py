"""An interval on every count, from the errors on validation images: split-conformal prediction.

If validation and new images are exchangeable (any order of them is as likely as any other), the interval holds the true
count of a new image with probability 1 - alpha or more, whatever the network and however its errors are distributed.
That is over draws of both: given one set of n validation images, the coverage itself varies, see
:meth:`ConformalInterval.coverage_range`. The promise is void for images unlike the validation images, and slightly
optimistic if these also chose the checkpoint; coverage on the test images shows how much. Where several images come
from one slide, patient or culture they are not exchangeable with those of another: give one image of each.

References: Vovk, Gammerman, Shafer: Algorithmic learning in a random world. 2005; Lei, G'Sell, Rinaldo, Tibshirani,
Wasserman: Distribution-free predictive inference for regression. JASA 2018, sections 2.2 and 5.2 (normalised errors).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import betabinom

from biocnn.errors import CheckpointError, DataError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ConformalInterval:
    """The interval `count` -/+ `quantile` * max(count, 1)^`power`, its lower end not below 0.

    With `power` 0.5, the default, the width grows as the root of the count, as it does where each cell is missed or
    counted twice on its own account; 1 suits errors in proportion to the count, and 0 those that do not depend on it.
    Coverage holds for each of them, provided that it was chosen without a look at the errors. On few images the root is
    the safe choice: between images of few and of many cells it is wrong by less than either of the others can be.

    Attributes:
        quantile: of the normalised errors; infinite if there are too few validation images for `alpha`.
        alpha: share of images whose true count may lie outside.
        power: of the predicted count.
        images: n, how many validation images there were.
    """

    quantile: float
    alpha: float = 0.1
    power: float = 0.5
    images: int = 0

    @classmethod
    def fit(
        cls, prediction: ArrayLike, truth: ArrayLike, alpha: float = 0.1, power: float = 0.5
    ) -> "ConformalInterval":
        """From the counts of validation images, by the ceil((n + 1)(1 - alpha))-th smallest normalised error.

        Leave-one-out schemes (jackknife+, CV+) would use all images for training as well, at the price of as many
        trainings; with validation images at hand nothing is gained.

        Args:
            prediction: (n,) counts predicted of images that were not trained on; finite.
            truth: (n,) true counts, 0 or more.
            alpha: between 0 and 1; 0.1 for an interval of 90 %.
            power: between 0 and 1.

        Raises:
            DataError: if there is no image, shapes differ or a value is not finite or a true count negative.
            ValueError: if `alpha` or `power` is out of range.
        """
        if not 0 < alpha < 1:
            raise ValueError(f"alpha: expected a share between 0 and 1, such as 0.1, received {alpha}")
        if not 0 <= power <= 1:
            raise ValueError(f"power: expected a number from 0 to 1, received {power}")
        found, true = check_counts(prediction, truth)
        errors = np.sort(np.abs(found - true) / _spread(found, power))
        # Less the rounding of 1 - alpha, which would ask for one image more where the product is a whole number.
        rank = math.ceil((len(errors) + 1) * (1 - alpha) - 1e-9)
        quantile = float(errors[rank - 1]) if rank <= len(errors) else math.inf
        return cls(quantile, float(alpha), float(power), len(errors))

    @property
    def images_needed(self) -> int:
        """The fewest validation images with which the interval is finite: ceil(1 / alpha) - 1."""
        return math.ceil(1 / self.alpha - 1 - 1e-9)

    @property
    def note(self) -> str:
        """A sentence on why the interval is missing; empty if it is not."""
        if math.isfinite(self.quantile):
            return ""
        return (
            f"{self.images} validation images: an interval of {1 - self.alpha:.4g} needs at least "
            f"{self.images_needed}; until then it is infinite, and counts come without one"
        )

    def interval(self, prediction: ArrayLike) -> tuple[Floats, Floats]:
        """Lower and upper end for predicted counts of any shape; 0 and infinity if `note` says that there is none.

        Raises:
            DataError: if a count is not finite.
        """
        found = np.asarray(prediction, dtype=np.float64)
        if not np.isfinite(found).all():
            raise DataError(f"prediction: expected finite counts, received {int((~np.isfinite(found)).sum())} others")
        reach = self.quantile * _spread(found, self.power)
        return np.maximum(found - reach, 0.0), np.maximum(found + reach, 0.0)

    def coverage_range(self, images: int, level: float = 0.9) -> tuple[float, float]:
        """Between which shares the coverage on new exchangeable images lies with probability `level`, given chance.

        The number of them inside the interval is beta-binomial with parameters (k, n + 1 - k), k the rank of the
        quantile (Vovk: Conditional validity of inductive conformal predictors. 2012); a coverage outside this range
        says that the images differ from the validation images.

        Args:
            images: how many new images, at least 1.
            level: between 0 and 1.

        Returns:
            Two shares; both 1 for an infinite interval.
        """
        if not math.isfinite(self.quantile):
            return 1.0, 1.0
        rank = math.ceil((self.images + 1) * (1 - self.alpha) - 1e-9)
        low, high = betabinom.ppf([(1 - level) / 2, (1 + level) / 2], images, rank, self.images + 1 - rank)
        return float(low) / images, float(high) / images

    def to_dict(self) -> dict[str, float | int | None]:
        """Plain numbers for a checkpoint or JSON; an infinite quantile is None."""
        quantile = self.quantile if math.isfinite(self.quantile) else None
        return {"quantile": quantile, "alpha": self.alpha, "power": self.power, "images": self.images}

    @classmethod
    def from_dict(cls, values: Mapping[str, float | int | None]) -> "ConformalInterval":
        """The inverse of :meth:`to_dict`.

        Raises:
            CheckpointError: if a key is missing or unknown, or a value is out of its range.
        """
        names = ("quantile", "alpha", "power", "images")
        if set(values) != set(names):
            raise CheckpointError(f"interval: expected the keys {list(names)}, received {sorted(values)}")
        alpha, power, images = (values[name] for name in names[1:])
        quantile = math.inf if values["quantile"] is None else values["quantile"]
        numbers = all(isinstance(one, int | float) for one in (quantile, alpha, power, images))
        if not (numbers and quantile >= 0 and 0 < alpha < 1 and 0 <= power <= 1 and images >= 0):  # type: ignore[operator]
            raise CheckpointError(f"interval: expected numbers in their ranges, received {dict(values)}")
        return cls(float(quantile), float(alpha), float(power), int(images))  # type: ignore[arg-type]


def interval_coverage(low: ArrayLike, high: ArrayLike, truth: ArrayLike) -> dict[str, float]:
    """`coverage`, the share of images with low <= truth <= high, and `interval_width`, the mean width in cells.

    Args:
        low: (N,).
        high: (N,), not below `low`; may be infinite.
        truth: (N,) true counts.

    Raises:
        DataError: if there is no image, shapes differ, or an end is nan or above the other.
    """
    ends = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
    true = np.asarray(truth, dtype=np.float64)
    if true.ndim != 1 or not true.size or any(end.shape != true.shape for end in ends):
        raise DataError(
            f"expected low, high and truth of one shape (N,), received {ends[0].shape}, {ends[1].shape}, {true.shape}"
        )
    if not (ends[0] <= ends[1]).all():
        raise DataError("low and high: expected low <= high for each image, received others")
    inside = (ends[0] <= true) & (true <= ends[1])
    return {"coverage": float(inside.mean()), "interval_width": float((ends[1] - ends[0]).mean())}


def check_counts(prediction: ArrayLike, truth: ArrayLike) -> tuple[Floats, Floats]:
    """Return predicted and true counts as float64 (N,).

    Raises:
        DataError: if there is none, shapes differ, a value is not finite, or a true count is negative.
    """
    found, true = np.asarray(prediction, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if found.ndim != 1 or not found.size or found.shape != true.shape:
        raise DataError(
            f"expected predicted and true counts of one shape (N,), not empty, received {found.shape} and {true.shape}"
        )
    for name, values in (("prediction", found), ("truth", true)):
        if not np.isfinite(values).all():
            raise DataError(f"{name}: expected finite counts, received {int((~np.isfinite(values)).sum())} others")
    if (true < 0).any():
        raise DataError(f"truth: expected counts of 0 or more, received {true.min():g}")
    return found, true


def _spread(prediction: Floats, power: float) -> Floats:
    return np.maximum(prediction, 1.0) ** power
