"""A torchmetrics class that gathers one row of results per image, and the summary of these rows."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from biocnn.errors import DataError
from biocnn.metrics.calling import call_structure
from biocnn.metrics.overlap import Confusion, auroc_inside, check_mask, confusion
from biocnn.metrics.partition import membrane_names, membrane_scores
from biocnn.metrics.skeleton import centreline_names, centreline_scores
from biocnn.metrics.topology import BORDER_RULE, betti_errors, betti_suffix, check_connectivity

COUNT_NAMES = ("true_positive", "false_positive", "false_negative", "true_negative")
OVERLAP_NAMES = ("dice", "iou", "sensitivity", "specificity", "accuracy", "auroc")

# Bins of the pooled ROC curve: equal steps of the logit, because a trained network puts most pixels close to 0
# and 1. Edges lie between -16 and 16, which is 1e-7 from 0 and 1.
N_BINS = 2048
# Rounded to float32, so that `probability >= edge` says the same in that precision.
_EDGES = (1 / (1 + np.exp(-np.linspace(-16, 16, N_BINS - 1)))).astype(np.float32).astype(np.float64)


def score_histogram(probability: ArrayLike, truth: ArrayLike) -> NDArray[np.int64]:
    """Count pixels of background (row 0) and structure (row 1) by bins of the probability.

    Args:
        probability: (N,) in [0, 1].
        truth: (N,) bool.

    Returns:
        (2, N_BINS) int64; bins are equal steps of the logit from -16 to 16, the outer two are open.
    """
    bins = np.searchsorted(_EDGES, np.asarray(probability, dtype=np.float64), side="right")
    codes = bins + N_BINS * np.asarray(truth, dtype=np.int64)
    return np.bincount(codes, minlength=2 * N_BINS).reshape(2, N_BINS)


def dice_curves(histograms: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Dice of every image at every threshold that its histogram knows, exact.

    Args:
        histograms: (N, 2, N_BINS) counts of background and structure, as of :func:`score_histogram`.

    Returns:
        Dice (N, N_BINS - 1), nan for images without structure, and the thresholds (N_BINS - 1,), increasing.
    """
    counts = np.asarray(histograms, dtype=np.float64)
    # Bin k holds probabilities from edge k - 1 on, so the last sums are the pixels at or above each edge.
    false_positive, true_positive = np.moveaxis(np.cumsum(counts[..., ::-1], axis=-1)[..., -2::-1], 1, 0)
    structure = counts[:, 1].sum(-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        dice = 2 * true_positive / (true_positive + false_positive + structure)
    return np.where(structure > 0, dice, np.nan), _EDGES


def auroc_of_histogram(histogram: ArrayLike) -> tuple[float, float]:
    """Area under the ROC curve of pixels counted in bins, and the most by which binning can have moved it.

    Pairs in the same bin count one half, so the exact area differs by at most half the share of such pairs.

    Args:
        histogram: (2, K) counts of background and structure.

    Returns:
        The area in [0, 1] and the bound; both nan where one class is absent.
    """
    negative, positive = np.asarray(histogram, dtype=np.float64)
    pairs = negative.sum() * positive.sum()
    if pairs == 0:
        return math.nan, math.nan
    below = np.cumsum(negative) - negative
    tied = float(negative @ positive) / 2 / pairs
    return float(below @ positive) / pairs + tied, tied


def best_dice_threshold(histogram: ArrayLike) -> tuple[float, float]:
    """The threshold with the highest Dice over all pixels of a histogram, and that Dice, which is exact.

    Of equally good thresholds the one nearest to 0.5 is returned. To be chosen on validation images and kept for
    others.

    Args:
        histogram: (2, N_BINS) counts of background and structure, as of :func:`score_histogram`, summed over
            images.

    Returns:
        A probability, to be used as `probability >= threshold`, and the pooled Dice in [0, 1].

    Raises:
        DataError: if the histogram has another shape, or holds no structure.
    """
    counts = np.asarray(histogram, dtype=np.float64)
    if counts.shape != (2, N_BINS):
        raise DataError(f"histogram: expected shape (2, {N_BINS}), received {counts.shape}")
    if not counts[1].any():
        raise DataError("histogram: expected pixels of the structure, received background only")
    dice = dice_curves(counts[None])[0][0]
    best = np.flatnonzero(dice == dice.max())
    chosen = best[np.abs(_EDGES[best] - 0.5).argmin()]
    return float(_EDGES[chosen]), float(dice[chosen])


def score_image(
    probability: ArrayLike,
    mask: ArrayLike,
    valid: ArrayLike | None = None,
    *,
    threshold: float = 0.5,
    min_component: int = 0,
    tolerance: float = 3.0,
    connectivity: int | None = None,
    min_size: int = 0,
    membranes: bool = False,
) -> tuple[dict[str, float], NDArray[np.int64]]:
    """Every number about one image: what :class:`SegmentationMetrics` keeps of it.

    Args:
        probability: (H, W) or (D, H, W) in [0, 1].
        mask: the same shape, 0 and 1.
        valid: the same shape, bool; None counts every pixel. Outside it, probability and mask may hold anything.
        threshold: a pixel is called structure iff its probability >= this.
        min_component: and its component has at least as many pixels, see :mod:`biocnn.metrics.calling`.
        tolerance: of correctness, completeness and quality, in pixels.
        connectivity: of the structure for Betti numbers, 4 or 8 (2-D), 6 or 26 (3-D); None is 8 or 26.
        min_size: components of fewer pixels are removed before Betti numbers are counted.
        membranes: whether to compare the cells between the structures as well.

    Returns:
        The numbers by name, nan where undefined, and the histogram of :func:`score_histogram`.

    Raises:
        DataError: if shapes differ, a probability lies outside [0, 1], the mask holds anything but 0 and 1, or
            no pixel is valid.
        ValueError: if `tolerance`, `connectivity` or `min_size` is out of its range.
    """
    values = np.asarray(probability)
    if np.shape(mask) != values.shape:
        raise DataError(f"mask: expected shape {values.shape} as the probability, received {np.shape(mask)}")
    everything = np.ones(values.shape, dtype=np.bool_)
    inside = everything if valid is None else check_mask("valid", valid, values.shape)
    values, truth = np.where(inside, values, 0.0), check_mask("mask", np.where(inside, mask, 0))
    if not ((values >= 0) & (values <= 1)).all():
        raise DataError(
            f"probability: expected numbers in [0, 1], received [{values.min():.4g}, {values.max():.4g}]; "
            "pass logits through a sigmoid first"
        )
    called = call_structure(values, threshold, min_component, inside)
    counts = confusion(called, truth, inside)
    result: dict[str, float] = {
        **{name: getattr(counts, name) for name in COUNT_NAMES},
        **counts.ratios(),
        "auroc": auroc_inside(values, truth, inside),
        **centreline_scores(called, truth, inside, tolerance),
        **betti_errors(called, truth, inside, connectivity, min_size),
    }
    if membranes:
        result.update(membrane_scores(called, truth, inside))
    return result, score_histogram(values[inside], truth[inside])


class SegmentationMetrics(Metric):
    """Gathers one row of results for every image, so that means and pooled numbers are computed once from all.

    A row holds: pixel counts, Dice, IoU, sensitivity, specificity, accuracy and the exact area under the ROC
    curve inside `valid` (:mod:`biocnn.metrics.overlap`); clDice, correctness, completeness and quality
    (:mod:`biocnn.metrics.skeleton`); Betti numbers and their errors (:mod:`biocnn.metrics.topology`); with
    `membranes`, Rand error, variation of information, V-Rand and V-Info (:mod:`biocnn.metrics.partition`); and
    a histogram of the probabilities, from which the pooled ROC curve is made.

    The functions run in `update`, on the processor, image by image. A distributed sampler repeats images to
    make ranks even; repeats are dropped by index, so the result is the one of a single process. Everything is
    float64, but on Apple's GPUs, which lack it.

    Memory: 33 KB an image, nearly all of it the histogram; no image is kept.

    Args:
        ndim: dimensions of an image, 2 or 3.
        threshold: a pixel is called structure iff its probability >= this.
        tolerance: of correctness, completeness and quality, in pixels.
        connectivity: of the structure for Betti numbers, 4 or 8 (2-D), 6 or 26 (3-D); None is 8 or 26.
        min_size: components of fewer pixels are removed before Betti numbers are counted.
        membranes: whether to compare the cells between the structures as well.
        min_component: pixels in the component of a called pixel, at least.
        kwargs: as of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: if an argument is out of its range.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = None

    index: list[Tensor]
    value: list[Tensor]
    histogram: list[Tensor]

    def __init__(
        self,
        ndim: int = 2,
        threshold: float = 0.5,
        tolerance: float = 3.0,
        connectivity: int | None = None,
        min_size: int = 0,
        membranes: bool = False,
        min_component: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if ndim not in (2, 3):
            raise ValueError(f"ndim: expected 2 or 3, received {ndim}")
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold: expected a probability, received {threshold}")
        if not (math.isfinite(tolerance) and tolerance >= 0):
            raise ValueError(f"tolerance: expected a finite number of pixels, 0 or more, received {tolerance}")
        if min_size < 0:
            raise ValueError(f"min_size: expected a number of pixels, 0 or more, received {min_size}")
        self.ndim, self.threshold, self.tolerance = ndim, threshold, tolerance
        self.min_component = min_component
        self.connectivity = check_connectivity(connectivity, ndim)
        self.min_size, self.membranes = min_size, membranes
        for name in ("index", "value", "histogram"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the numbers in a row, in order."""
        rule = betti_suffix(self.ndim, self.connectivity, self.min_size)
        kinds = ("error", "prediction", "truth")
        betti = [f"betti{degree}_{kind}_{rule}" for degree in range(self.ndim) for kind in kinds]
        cells = membrane_names(self.ndim) if self.membranes else ()
        return (*COUNT_NAMES, *OVERLAP_NAMES, *centreline_names(self.tolerance), *betti, *cells)

    @property
    def rules(self) -> dict[str, str | float | int]:
        """What the numbers depend on, to be stored beside them."""
        duals = {8: 4, 4: 8, 26: 6, 6: 26}
        return {
            "threshold": self.threshold,
            "min_component_px": self.min_component,
            "tolerance_px": self.tolerance,
            "foreground_connectivity": self.connectivity,
            "background_connectivity": duals[self.connectivity],
            "smallest_component_px": self.min_size,
            "border_rule": BORDER_RULE,
        }

    def update(self, index: Tensor, probability: Tensor, mask: Tensor, valid: Tensor | None = None) -> None:
        """Add a batch of B images.

        Args:
            index: (B,) integers, the place of each image in the data set; it identifies the image.
            probability: (B, 1, H, W), or (B, 1, D, H, W), in [0, 1]; not logits.
            mask: the same shape, 0 and 1 of any dtype.
            valid: the same shape, bool; None counts every pixel.

        Raises:
            DataError: if shapes do not go together, a probability lies outside [0, 1], a mask holds anything
                but 0 and 1, or an image has no valid pixel.
        """
        shape = tuple(probability.shape)
        shapes = [tuple(other.shape) for other in (mask, valid) if other is not None]
        if (
            len(shape) != self.ndim + 2
            or shape[1] != 1
            or any(other != shape for other in shapes)
            or tuple(index.shape) != shape[:1]
        ):
            raise DataError(
                f"expected index (B,) and probability, mask and valid (B, 1, ...) with {self.ndim} axes of the image, "
                f"received {tuple(index.shape)} and {[shape, *shapes]}"
            )
        # numpy has no bfloat16. Other precisions stay, so that `probability >= threshold` is what torch says.
        score_dtype = probability.dtype if probability.dtype == torch.float64 else torch.float32
        values = probability.detach().to("cpu", score_dtype).numpy()
        inside = np.ones(shape, dtype=np.bool_) if valid is None else valid.detach().cpu().numpy().astype(np.bool_)
        rows = [
            score_image(
                score[0],
                truth[0],
                here[0],
                threshold=self.threshold,
                min_component=self.min_component,
                tolerance=self.tolerance,
                connectivity=self.connectivity,
                min_size=self.min_size,
                membranes=self.membranes,
            )
            for score, truth, here in zip(values, mask.detach().cpu().float().numpy(), inside, strict=True)
        ]
        if rows:
            self.index.append(index.detach().to(self.device).long())
            value = [[row[name] for name in self.names] for row, _ in rows]
            precision = torch.float32 if self.device.type == "mps" else torch.float64  # which Apple's GPUs lack
            self.value.append(torch.tensor(value, dtype=precision, device=self.device))
            self.histogram.append(torch.from_numpy(np.stack([counts for _, counts in rows])).to(self.device))

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the states of all ranks; arguments as in :meth:`torchmetrics.Metric.sync`."""
        # For a rank without images torchmetrics would send an empty float32 tensor of one dimension, which does
        # not match those of the other ranks.
        if isinstance(self.index, list) and not self.index:
            self.index.append(torch.empty(0, dtype=torch.int64, device=self.device))
            self.value.append(torch.empty(0, len(self.names), dtype=torch.float64, device=self.device))
            self.histogram.append(torch.empty(0, 2, N_BINS, dtype=torch.int64, device=self.device))
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
            A table of N rows: `index` (N,) int64, each of `names` (N,) float64, nan where undefined, and
            `histogram` (N, 2, N_BINS) int64. :func:`summarise` makes means and pooled numbers of it.

        Raises:
            DataError: if no image has been added.
        """
        index = dim_zero_cat(self.index) if len(self.index) else torch.empty(0)
        if index.numel() == 0:
            raise DataError("no images to evaluate: expected at least one batch, received none")
        value, histogram = dim_zero_cat(self.value), dim_zero_cat(self.histogram)
        ranked, order = torch.sort(index, stable=True)
        first = torch.ones_like(ranked, dtype=torch.bool)
        first[1:] = ranked[1:] != ranked[:-1]
        order = order[first]
        columns = {name: value[order, column] for column, name in enumerate(self.names)}
        return {"index": index[order], **columns, "histogram": histogram[order]}


def summarise(table: Mapping[str, Tensor]) -> dict[str, float | int | None]:
    """One flat dictionary, ready for `metrics.json`, of what :meth:`SegmentationMetrics.compute` returns.

    Keys:

    - each name of the table: the mean over the images for which it is defined, None if there is none; for the
      four pixel counts, the sum;
    - `<name>_undefined`: how many images were left out of that mean, present where there are any;
    - `dice_pooled`, `iou_pooled`, `sensitivity_pooled`, `specificity_pooled`, `accuracy_pooled`: from the pixel
      counts of all images together;
    - `auroc_pooled`: from the summed histograms, and `auroc_pooled_bound`, the most by which binning can have
      moved it;
    - `n_images`.

    Args:
        table: as returned by `compute`, any number of images.
    """
    result: dict[str, float | int | None] = {"n_images": len(table["index"])}
    columns = {n: v.cpu().double().numpy() for n, v in table.items() if n not in ("index", "histogram")}
    for name, column in columns.items():
        if name in COUNT_NAMES:
            result[name] = int(column.sum())
            continue
        defined = column[~np.isnan(column)]
        result[name] = float(defined.mean()) if defined.size else None
        if defined.size < column.size:
            result[f"{name}_undefined"] = int(column.size - defined.size)
    pooled = Confusion(*(int(columns[name].sum()) for name in COUNT_NAMES)).ratios()
    area, bound = auroc_of_histogram(table["histogram"].cpu().numpy().sum(axis=0))
    for name, number in {**pooled, "auroc": area}.items():
        result[f"{name}_pooled"] = None if math.isnan(number) else number
    result["auroc_pooled_bound"] = None if math.isnan(bound) else bound
    return result
