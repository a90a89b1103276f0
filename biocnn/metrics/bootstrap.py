"""Confidence intervals for data that come in groups: patches of slides, images of patients.

Patches of one slide resemble each other, so resampling patches pretends to more evidence than there is.
Resampling whole groups does not: Field & Welsh (2007), J. R. Stat. Soc. B 69:369; Davison & Hinkley (1997),
Bootstrap Methods and their Application, sec. 3.8.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from biocnn.errors import DataError

FEW_GROUPS = 10
"""Below this many groups percentile intervals are clearly too narrow, and the result says so."""


@dataclass(frozen=True)
class BootstrapIntervals:
    """Percentile intervals of named statistics.

    Attributes:
        low: lower end of each statistic; nan where there is no interval.
        high: upper end of each statistic; nan where there is no interval.
        dropped: how many replicates of each statistic were undefined (nan) and left out.
        groups: number of distinct groups.
        repeats: number of replicates drawn.
        level: nominal coverage, such as 0.95.
        note: a sentence on why the intervals are missing or too narrow; empty if neither.
    """

    low: dict[str, float]
    high: dict[str, float]
    dropped: dict[str, int]
    groups: int
    repeats: int
    level: float
    note: str


def cluster_bootstrap(
    statistic: Callable[[NDArray[np.float64]], Mapping[str, float]],
    group: ArrayLike,
    *,
    repeats: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> BootstrapIntervals:
    """Percentile intervals from resampling groups with replacement.

    Strategy: a replicate is not a new table but a weight for each sample, the number of times its group was
    drawn. A statistic that can be weighted is then computed from data that were sorted and prepared once.

    Edge cases: a replicate in which a statistic is nan (it drew one class only) is dropped for that statistic
    and counted. Fewer than 2 groups: there is nothing to resample, all intervals are nan, and `note` says so.
    Fewer than `FEW_GROUPS` groups: `note` warns that the intervals are too narrow.

    Args:
        statistic: from a weight (N,) float64 of whole numbers to named values, always the same names.
        group: (N,) of str or int, the group of each sample.
        repeats: number of replicates, at least 1; 1000 give each end of a 95 % interval to about a
            fiftieth of its width.
        seed: of the resampling.
        level: nominal coverage between 0 and 1.

    Raises:
        DataError: if `group` is empty or not one-dimensional.
        ValueError: if `repeats` or `level` is out of range.
    """
    if repeats < 1:
        raise ValueError(f"repeats: expected at least 1, received {repeats}")
    if not 0 < level < 1:
        raise ValueError(f"level: expected a coverage between 0 and 1, such as 0.95, received {level}")
    names = np.asarray(group)
    if names.ndim != 1 or names.size == 0:
        raise DataError(f"group: expected a non-empty array of shape (N,), received shape {names.shape}")
    distinct, index = np.unique(names, return_inverse=True)
    groups = distinct.size
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(groups, np.full(groups, 1 / groups), size=repeats if groups > 1 else 1)
    replicates = [statistic(times.astype(np.float64)[index]) for times in drawn]
    low: dict[str, float] = {}
    high: dict[str, float] = {}
    dropped: dict[str, int] = {}
    for name in replicates[0]:
        values = np.array([replicate[name] for replicate in replicates], dtype=np.float64)
        defined = values[~np.isnan(values)]
        dropped[name] = values.size - defined.size
        if groups > 1 and defined.size:
            ends = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
        else:
            ends = np.array([np.nan, np.nan])
        low[name], high[name] = float(ends[0]), float(ends[1])
    return BootstrapIntervals(low, high, dropped, groups, len(drawn), level, _note(groups))


def _note(groups: int) -> str:
    if groups < 2:
        return "1 group: intervals need at least 2 groups (slides, patients) and are left out"
    if groups < FEW_GROUPS:
        return f"{groups} groups: intervals from fewer than {FEW_GROUPS} groups are too narrow"
    return ""
