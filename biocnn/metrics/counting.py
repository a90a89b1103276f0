"""Errors of counts: functions of arrays, a torchmetrics class that gathers one row per image, and its summary.

Notation: N images with predicted count p, true count t and error e = p - t. Crowd-counting code prints the root of the
mean square as "MSE"; here it is `rmse`.
"""

import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from biocnn.errors import DataError
from biocnn.metrics.bootstrap import cluster_bootstrap
from biocnn.metrics.conformal import ConformalInterval, check_counts
from biocnn.metrics.game import game, grid_counts, grid_sums, pixels_of
from biocnn.metrics.points import check_points, check_tolerance, match_points, point_scores

_logger = logging.getLogger(__name__)

GAME_LEVELS = 4
"""Levels 0 to 3: 1, 4, 16 and 64 cells."""
POINT_NAMES = ("true_positive", "false_positive", "false_negative")

Floats = NDArray[np.float64]


def count_scores(prediction: ArrayLike, truth: ArrayLike) -> dict[str, float]:
    """Every number about N pairs of counts.

    `mae`, mean |e|; `rmse`, root of the mean e^2; `mape`, mean |e| / max(t, 1), a share and not per cent; `bias`, mean
    e; `undercount_share` and `overcount_share`, the sum of the errors below and above 0, without their sign, by the sum
    of all t; `slope` and `intercept` of the least-squares line of p on t.

    A share is nan if there is no cell at all, the line if all t are equal.

    Args:
        prediction: (N,), finite.
        truth: (N,), 0 or more.

    Raises:
        DataError: if there is no image, shapes differ or values are out of range.
    """
    found, true = check_counts(prediction, truth)
    return _weighted_scores(found, true)(np.ones(len(true)))


def errors_by_decile(prediction: ArrayLike, truth: ArrayLike, parts: int = 10) -> list[dict[str, float]]:
    """`n`, `mean_count` (true), `mae` and `bias` of each tenth of the images by their true count, smallest first.

    Images of equal count are in the same part, so some may be larger than others, or empty: n 0 and nan.

    Args:
        prediction: (N,), finite.
        truth: (N,), 0 or more.
        parts: how many, at least 1.

    Raises:
        DataError: if there is no image, shapes differ or values are out of range.
    """
    found, true = check_counts(prediction, truth)
    part = np.searchsorted(np.quantile(true, np.arange(1, parts) / parts), true, side="right")
    rows = []
    for number in range(parts):
        error, inside = (found - true)[part == number], true[part == number]
        means = (inside.mean(), np.abs(error).mean(), error.mean()) if len(error) else (math.nan,) * 3
        rows.append({"n": len(error), **dict(zip(("mean_count", "mae", "bias"), map(float, means), strict=True))})
    return rows


class CountingMetrics(Metric):
    """Gathers one row of counts and errors for every image, so that all numbers are computed once from all.

    A row holds the predicted and the true count; GAME(0) to GAME(3) against the dots (`game0`) and, where the true
    density is given, against that (`game0_blurred`); and, where predicted points are given, true and false positives
    and false negatives within the tolerance (:mod:`biocnn.metrics.points`). The true count is the number of points.

    A distributed sampler repeats images to make ranks even; repeats are dropped by index, so the result is the one of a
    single process. Everything is float64, which some accelerators lack: keep the metric on the processor there.

    Memory: about 110 bytes an image; no image is kept.

    Args:
        tolerance: largest distance of a predicted from a true point, in pixels.
        kwargs: as of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: if `tolerance` is negative or not finite.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = None

    index: list[Tensor]
    value: list[Tensor]

    def __init__(self, tolerance: float = 5.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tolerance = check_tolerance(tolerance)
        self.add_state("index", default=[], dist_reduce_fx="cat")
        self.add_state("value", default=[], dist_reduce_fx="cat")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the numbers in a row, in order."""
        games = [f"game{level}{suffix}" for suffix in ("", "_blurred") for level in range(GAME_LEVELS)]
        return ("predicted_count", "true_count", *games, *(f"{n}_tol{self.tolerance:g}px" for n in POINT_NAMES))

    def update(
        self,
        index: Tensor,
        prediction: Tensor,
        points: Sequence[Tensor],
        density: Tensor | None = None,
        predicted_points: Sequence[Tensor] | None = None,
        valid: Tensor | None = None,
    ) -> None:
        """Add a batch of B images.

        Args:
            index: (B,) integers, the place of each image in the data set; it identifies the image.
            prediction: (B, 1, H, W), cells per pixel, the scale divided out.
            points: B tensors (N_i, 2), (row, column) in pixels, inside the image.
            density: (B, 1, H, W), the true map with kernels as those of the prediction; None if there is none.
            predicted_points: B tensors (M_i, 2), inside the image; None if there are none.
            valid: (B, 1, H, W) bool; outside, neither density nor points count. None counts everything.

        Raises:
            DataError: if shapes do not go together, a density is not finite, or a point lies outside.
        """
        shape = tuple(prediction.shape)
        shapes = [tuple(other.shape) for other in (density, valid) if other is not None]
        lengths = [len(other) for other in (index, points, predicted_points) if other is not None]
        if len(shape) != 4 or shape[1] != 1 or any(s != shape for s in shapes) or set(lengths) != {shape[0]}:
            raise DataError(
                "expected prediction, density and valid (B, 1, H, W), and an index and a set of points for each image, "
                f"received {[shape, *shapes]} and {lengths} of the latter"
            )
        maps = [None if m is None else m.detach().double().cpu().numpy()[:, 0] for m in (prediction, density)]
        inside = None if valid is None else valid.detach().cpu().numpy()[:, 0].astype(np.bool_)
        sets = [
            None if s is None else [p.detach().double().cpu().numpy() for p in s] for s in (points, predicted_points)
        ]
        rows = []
        for number in range(shape[0]):
            found, dots, true, peaks, here = (
                None if one is None else one[number] for one in (maps[0], sets[0], maps[1], sets[1], inside)
            )
            assert found is not None
            assert dots is not None
            rows.append(score_counts(found, dots, true, peaks, here, self.tolerance))
        if rows:
            self.index.append(index.detach().to(self.device).long())
            self.value.append(torch.tensor(rows, dtype=torch.float64, device=self.device))

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the states of all ranks; arguments as in :meth:`torchmetrics.Metric.sync`."""
        # For a rank without images torchmetrics would send an empty float32 tensor of one dimension, which does not
        # match those of the other ranks.
        if isinstance(self.index, list) and not self.index:
            self.index.append(torch.empty(0, dtype=torch.int64, device=self.device))
            self.value.append(torch.empty(0, len(self.names), dtype=torch.float64, device=self.device))
        super().sync(*args, **kwargs)

    def _wrap_compute(self, compute: Callable) -> Callable:
        # torchmetrics turns a result with one element into a scalar; one image is still a table with one row.
        wrapped = super()._wrap_compute(compute)

        @functools.wraps(compute)
        def table() -> dict[str, Tensor]:
            return {name: value if value.ndim else value.reshape(1) for name, value in wrapped().items()}

        return table

    def compute(self) -> dict[str, Tensor]:
        """All images of all ranks, sorted by index, each index once (its first occurrence).

        Returns:
            A table of N rows: `index` (N,) int64, and each of `names` (N,) float64, nan where there was nothing to
            compare with. :func:`summarise_counts` makes the numbers of a report of it.

        Raises:
            DataError: if no image has been added.
        """
        index = dim_zero_cat(self.index) if len(self.index) else torch.empty(0)
        if index.numel() == 0:
            raise DataError("no images to evaluate: expected at least one batch, received none")
        value = dim_zero_cat(self.value)
        ranked, order = torch.sort(index, stable=True)
        first = torch.ones_like(ranked, dtype=torch.bool)
        first[1:] = ranked[1:] != ranked[:-1]
        order = order[first]
        return {"index": index[order], **{name: value[order, column] for column, name in enumerate(self.names)}}


def score_counts(
    prediction: ArrayLike,
    points: ArrayLike,
    density: ArrayLike | None = None,
    predicted_points: ArrayLike | None = None,
    valid: ArrayLike | None = None,
    tolerance: float = 5.0,
) -> list[float]:
    """The row of one image, see :class:`CountingMetrics`: maps (H, W), points (N, 2), in the order of its names."""
    maps = [np.asarray(one, dtype=np.float64) for one in (prediction, density) if one is not None]
    shape = (maps[0].shape[0], maps[0].shape[1])
    inside = np.ones(shape, dtype=np.bool_) if valid is None else np.asarray(valid, dtype=np.bool_)
    maps = [np.where(inside, one, 0.0) for one in maps]
    if not all(np.isfinite(one).all() for one in maps):
        raise DataError("expected finite densities where valid, received nan or infinity; did training diverge?")
    sets = []
    for name, one in (("points", points), ("predicted_points", predicted_points)):
        if one is not None:
            places = check_points(name, one)
            sets.append(places[inside[tuple(pixels_of(places, shape).T)]])
    level = GAME_LEVELS - 1
    cells = [grid_sums(one, level) for one in maps]
    row = [float(maps[0].sum()), float(len(sets[0])), *game(cells[0], grid_counts(sets[0], shape, level))]
    # The count is the sum of the map, without the rounding of sums over cells.
    row[2] = abs(row[0] - row[1])
    row += game(*cells) if len(cells) == 2 else [math.nan] * GAME_LEVELS
    if len(sets) < 2:
        return row + [math.nan] * len(POINT_NAMES)
    match = match_points(sets[1], sets[0], tolerance)
    return [*row, *(float(getattr(match, name)) for name in POINT_NAMES)]


def summarise_counts(
    table: Mapping[str, Tensor],
    *,
    interval: ConformalInterval | None = None,
    group: ArrayLike | None = None,
    repeats: int = 1000,
    seed: int = 0,
) -> dict[str, float | int | None]:
    """One flat dictionary, ready for `metrics.json`, of what :meth:`CountingMetrics.compute` returns.

    Keys:

    - `n_images`, `n_cells`, the sum of the true counts, and `n_groups`;
    - those of :func:`count_scores`; `game0` to `game3`, and `game0_blurred` to `game3_blurred` if known, means over
      images; `precision_tol5px`, `recall_tol5px` and `f1_tol5px` of all points together, if known;
    - with `interval`, `coverage`, `interval_width`, and `interval_level`, the coverage it promises;
    - `<key>_low` and `<key>_high` for all of these but the first three and the level: 95 % intervals from a bootstrap
      over groups; `bootstrap_repeats`;
    - `mae_decile1` to `mae_decile10`, `bias_decile1`, ..., and `mean_count_decile1`, ..., of
      :func:`errors_by_decile`.

    An undefined number is None, which JSON writes as null; so are coverage and width of an infinite interval.

    Args:
        table: as returned by `compute`.
        interval: fitted on the validation images.
        group: (N,) of str or int, such as the slide of each image, in the order of the table; None if each image stands
            for itself.
        repeats: bootstrap replicates; 0 leaves their intervals and keys out.
        seed: of the bootstrap.

    Raises:
        DataError: if `group` is of another length.
        ValueError: if `repeats` is negative.
    """
    columns = {name: value.cpu().double().numpy() for name, value in table.items() if name != "index"}
    found, true = check_counts(columns["predicted_count"], columns["true_count"])
    groups = np.arange(len(true)) if group is None else np.asarray(group)
    if groups.shape != true.shape:
        raise DataError(f"group: expected shape {true.shape} to go with the table, received {groups.shape}")
    statistic = _weighted_scores(found, true, columns, interval)
    result: dict[str, float | int | None] = {
        "n_images": len(true),
        "n_cells": int(true.sum()),
        "n_groups": len(np.unique(groups)),
        **statistic(np.ones(len(true))),
    }
    if repeats != 0:
        ends = cluster_bootstrap(statistic, groups, repeats=repeats, seed=seed)
        for name in ends.low:
            result[f"{name}_low"], result[f"{name}_high"] = ends.low[name], ends.high[name]
        result["bootstrap_repeats"] = repeats
        if ends.note:
            over = "images, each a group of its own" if group is None else "groups"
            _logger.warning("Confidence intervals over %s: %s.", over, ends.note)
    if interval is not None:
        result["interval_level"] = 1 - interval.alpha
        result.setdefault("coverage", None)
        result.setdefault("interval_width", None)
    for number, row in enumerate(errors_by_decile(found, true), 1):
        result.update({f"{name}_decile{number}": row[name] for name in ("mean_count", "mae", "bias")})
    return {name: None if value is None or not math.isfinite(value) else value for name, value in result.items()}


def _weighted_scores(
    found: Floats,
    true: Floats,
    columns: Mapping[str, Floats] | None = None,
    interval: ConformalInterval | None = None,
) -> Callable[[Floats], dict[str, float]]:
    """All numbers of a summary, prepared once as a function of the weight of each image.

    They are read off one matrix product, so that a bootstrap costs milliseconds.
    """
    error, centre = found - true, true.mean()
    p, t = found - centre, true - centre  # less cancellation in the squares of the line
    size = np.abs(error)
    sums = {"one": np.ones(len(true)), "mae": size, "square": error**2, "mape": size / np.maximum(true, 1)}
    sums |= {"bias": error, "under": np.maximum(-error, 0), "over": np.maximum(error, 0), "true": true}
    sums |= {"p": p, "t": t, "tt": t * t, "pt": p * t}
    means = ["mae", "mape", "bias"]
    extra = {name: one for name, one in (columns or {}).items() if not np.isnan(one).all()}
    for name in (one for one in extra if one.startswith("game")):
        defined = ~np.isnan(extra[name])
        sums |= {name: np.where(defined, extra[name], 0), f"{name} defined": defined.astype(np.float64)}
        means.append(name)
    if interval is not None and math.isfinite(interval.quantile):
        low, high = interval.interval(found)
        sums |= {"coverage": ((low <= true) & (true <= high)).astype(np.float64), "interval_width": high - low}
        means += ["coverage", "interval_width"]
    suffixes = [name.removeprefix(POINT_NAMES[0]) for name in extra if name.startswith(POINT_NAMES[0])]
    sums |= {f"{name}{suffix}": np.nan_to_num(extra[f"{name}{suffix}"]) for suffix in suffixes for name in POINT_NAMES}
    matrix = np.stack(list(sums.values()))

    def scores(weight: Floats) -> dict[str, float]:
        total = dict(zip(sums, (float(value) for value in matrix @ weight), strict=True))
        n, cells = total["one"], total["true"]
        result = {name: _ratio(total[name], total.get(f"{name} defined", n)) for name in means}
        result["rmse"] = math.sqrt(total["square"] / n) if n else math.nan
        result |= {f"{name}count_share": _ratio(total[name], cells) for name in ("under", "over")}
        spread = total["tt"] - _ratio(total["t"] ** 2, n)
        slope = math.nan
        if spread > 1e-12 * (cells * cells + 1):
            slope = (total["pt"] - total["p"] * total["t"] / n) / spread
        result["slope"] = slope
        result["intercept"] = centre + _ratio(total["p"] - slope * total["t"], n) - slope * centre
        for suffix in suffixes:
            points = point_scores(*(total[f"{name}{suffix}"] for name in POINT_NAMES))
            result |= {f"{name}{suffix}": value for name, value in points.items()}
        return result

    return scores


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else math.nan
