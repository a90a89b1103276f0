"""Agreement of two partitions of an image into cells, as plain functions of one image.

Notation: `prediction` and `truth` are label images, integer, (H, W) or (D, H, W), 0 between the cells; n is the
number of pixels that count, which are the valid ones with a true label other than 0 (foreground restriction);
p_ij is the share of these with predicted label i and true label j, s_i = sum_j p_ij, t_j = sum_i p_ij. A
*merge* is a predicted segment over several cells, a *split* a cell under several predicted segments.

`membrane` masks are bool, True on membrane, the structure that a tubularity network finds; a map in which cells
are bright, such as the labels of the ISBI 2012 challenge, has to be inverted first.

Without any true cell in `valid` every number is nan.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from skimage.segmentation import watershed

from biocnn.errors import DataError
from biocnn.metrics.overlap import check_mask, check_pair

Labels = NDArray[np.int64]

# Probabilities of membrane at which the challenge's score is looked for.
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def membrane_names(ndim: int) -> tuple[str, ...]:
    """Names of what :func:`membrane_scores` returns for images of 2 or 3 dimensions, in order."""
    parts = ("adapted_rand_error", "voi_split_bits", "voi_merge_bits", "v_rand_thinned", "v_info_thinned")
    return tuple(f"{part}_cell{2 * ndim}" for part in parts)


def label_cells(membrane: ArrayLike, valid: ArrayLike | None = None) -> Labels:
    """Number the cells, the components of what is not membrane; 4-connected in 2-D, 6-connected in 3-D.

    So a membrane that touches at corners only still separates. Outside `valid` there is no cell, so cells do
    not connect through it.

    Args:
        membrane: (H, W) or (D, H, W) bool.
        valid: the same shape, bool; None counts every pixel.

    Returns:
        The same shape, int64: 1, 2, ... in cells, 0 on membrane and outside `valid`.

    Raises:
        DataError: if shapes differ, a mask holds anything but 0 and 1, or no pixel is valid.
    """
    membrane, _, inside = check_pair(membrane, membrane, valid)
    return ndimage.label(~membrane & inside)[0].astype(np.int64)


def thin_borders(membrane: ArrayLike, valid: ArrayLike | None = None) -> Labels:
    """Number the cells after growing them until the membrane between them is one pixel wide.

    The border thinning of the ISBI 2012 challenge: a watershed, 4-connected, of the binary membrane map,
    flooded from the cells. A membrane that ends inside a cell vanishes. Where there is no cell to grow from, as
    in an image that is all membrane, the whole region becomes one, as in the challenge.

    Args:
        membrane: (H, W) or (D, H, W) bool.
        valid: the same shape, bool; None counts every pixel.

    Returns:
        The same shape, int64: 1, 2, ... in cells, 0 on the lines between them and outside `valid`.

    Raises:
        DataError: if shapes differ, a mask holds anything but 0 and 1, or no pixel is valid.
    """
    membrane, _, inside = check_pair(membrane, membrane, valid)
    cells, count = ndimage.label(~membrane & inside)
    regions, _ = ndimage.label(inside)
    barren = inside & ~np.isin(regions, np.unique(regions[cells > 0]))
    markers = cells + np.where(barren, regions + count, 0)
    flat = np.zeros(membrane.shape, dtype=np.uint8)
    return watershed(flat, markers, connectivity=1, mask=inside, watershed_line=True).astype(np.int64)


def contingency(
    prediction: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None, *, singletons: bool = False
) -> tuple[Labels, Labels, Labels]:
    """Count pixels by predicted and true label, over valid pixels with a true label other than 0.

    Args:
        prediction: (H, W) or (D, H, W) integer labels.
        truth: the same shape, integer labels.
        valid: the same shape, bool; None counts every pixel.
        singletons: whether each pixel of predicted label 0 is a segment of its own, as in the ISBI 2012
            challenge; otherwise label 0 is a segment like others.

    Returns:
        Three integer arrays: counts of the pairs (i, j) that occur, of each i, and of each j; all empty where
        no pixel counts.

    Raises:
        DataError: if shapes differ, labels are not integers, or no pixel is valid.
    """
    predicted, true = _check_labels("prediction", prediction), _check_labels("truth", truth)
    if predicted.shape != true.shape:
        raise DataError(f"prediction: expected shape {true.shape} as the truth, received {predicted.shape}")
    inside = true != 0
    if valid is not None:
        valid = check_mask("valid", valid, true.shape)
        if not valid.any():
            raise DataError(f"valid: expected at least one pixel that counts, received none of {valid.size}")
        inside &= valid
    rows, row = np.unique(predicted[inside], return_inverse=True)
    columns, column = np.unique(true[inside], return_inverse=True)
    if singletons and 0 in rows:
        alone = row == np.searchsorted(rows, 0)
        row = np.where(alone, rows.size - 1 + np.cumsum(alone), row)
    _, row = np.unique(row, return_inverse=True)
    _, pairs = np.unique(row * max(columns.size, 1) + column, return_counts=True)
    return pairs, np.bincount(row), np.bincount(column)


def _check_labels(name: str, value: ArrayLike) -> np.ndarray:
    labels = np.asarray(value)
    if labels.dtype.kind not in "iub" or labels.ndim not in (2, 3):
        raise DataError(
            f"{name}: expected integer labels of one image, (H, W) or (D, H, W), received {labels.dtype} of shape "
            f"{labels.shape}"
        )
    return labels


def _harmonic(first: float, second: float) -> float:
    return 2 * first * second / (first + second) if first + second else 0.0


def adapted_rand(prediction: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None) -> dict[str, float]:
    """Adapted Rand score and error: agreement on which pairs of pixels belong together.

    The SNEMI3D form, as `skimage.metrics.adapted_rand_error`: pairs of different pixels, predicted label 0
    being a segment like others. (scikit-image 0.26 returns precision and recall in the opposite order to its
    documentation; the error is the same.)

    Args:
        prediction: (H, W) or (D, H, W) integer labels.
        truth: the same shape, integer labels; 0 is not counted.
        valid: the same shape, bool; None counts every pixel.

    Returns:
        `precision` (low with merges), `recall` (low with splits), `f_score`, their harmonic mean, all higher is
        better, and `error`, 1 - `f_score`; in [0, 1]. A side without any pair (every segment one pixel) counts
        as 1; nan without a true cell.

    Raises:
        DataError: if shapes differ, labels are not integers, or no pixel is valid.
    """
    counts = contingency(prediction, truth, valid)
    if counts[0].size == 0:
        return dict.fromkeys(("precision", "recall", "f_score", "error"), math.nan)
    both, predicted, true = (float((count.astype(np.float64) * (count - 1)).sum()) for count in counts)
    precision, recall = (both / total if total else 1.0 for total in (predicted, true))
    score = _harmonic(precision, recall)
    return {"precision": precision, "recall": recall, "f_score": score, "error": 1 - score}


def _entropy(count: Labels) -> float:
    """Entropy in bits of the distribution with these counts."""
    share = count / count.sum()
    return float(-(share * np.log2(share)).sum())


def variation_of_information(
    prediction: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None
) -> dict[str, float]:
    """Variation of information in bits, 0 or more; lower is better.

    Meila (2007), J. Multivar. Anal. 98:873, over pixels with a true label; predicted label 0 is a
    segment like others. Equal to `skimage.metrics.variation_of_information` with `ignore_labels=(0,)`.

    Args:
        prediction: (H, W) or (D, H, W) integer labels.
        truth: the same shape, integer labels; 0 is not counted.
        valid: the same shape, bool; None counts every pixel.

    Returns:
        `split`, H(prediction | truth), `merge`, H(truth | prediction), and `total`, their sum; nan without a
        true cell.

    Raises:
        DataError: if shapes differ, labels are not integers, or no pixel is valid.
    """
    counts = contingency(prediction, truth, valid)
    if counts[0].size == 0:
        return dict.fromkeys(("split", "merge", "total"), math.nan)
    both, predicted, true = (_entropy(count) for count in counts)
    # Differences of equal entropies may come out as -1e-16.
    split, merge = max(both - true, 0.0), max(both - predicted, 0.0)
    return {"split": split, "merge": merge, "total": split + merge}


def v_scores(prediction: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None) -> dict[str, float]:
    """V-Rand and V-Info of two label images, without any thinning, in [0, 1]; higher is better.

    Arganda-Carreras et al. (2015), Front. Neuroanat. 9:142, eq. (3) with alpha = 1/2 and its information
    theoretic analogue:

        V_Rand = 2 sum_ij p_ij^2 / (sum_i s_i^2 + sum_j t_j^2),  V_Info = 2 I(S; T) / (H(S) + H(T)),

    where each pixel of predicted label 0 is a segment of its own. Two partitions of a single segment each agree
    wholly, so V_Info is 1 although both entropies are 0 (the challenge's code gives 0); if only one of them is
    a single segment, V_Info is 0.

    Args:
        prediction: (H, W) or (D, H, W) integer labels.
        truth: the same shape, integer labels; 0 is not counted.
        valid: the same shape, bool; None counts every pixel.

    Returns:
        `v_rand` and `v_info`; nan without a true cell.

    Raises:
        DataError: if shapes differ, labels are not integers, or no pixel is valid.
    """
    counts = contingency(prediction, truth, valid, singletons=True)
    if counts[0].size == 0:
        return {"v_rand": math.nan, "v_info": math.nan}
    both, predicted, true = (float((count.astype(np.float64) ** 2).sum()) for count in counts)
    h_both, h_predicted, h_true = (_entropy(count) for count in counts)
    total = h_predicted + h_true
    shared = max(total - h_both, 0.0)
    return {"v_rand": 2 * both / (predicted + true), "v_info": 2 * shared / total if total > 0 else 1.0}


def membrane_scores(prediction: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None) -> dict[str, float]:
    """Scores of the cells between two membrane masks of one image.

    The names tell the rules: `_cell4`, cells are 4-connected (`_cell6`, 6-connected, in 3-D); `_thinned`, the predicted
    membrane is thinned to one pixel first, as in the ISBI 2012 challenge, whose truth is not thinned since its
    membrane is not counted. Rand error and variation of information are without thinning, the predicted
    membrane being one segment: they punish a membrane that is too thick.

    Args:
        prediction: (H, W) or (D, H, W) bool, True on membrane.
        truth: the same shape, bool, True on membrane.
        valid: the same shape, bool; None counts every pixel. Cells end where validity ends.

    Returns:
        The names of :func:`membrane_names`: adapted Rand error and variation of information (lower is better), V-Rand
        and V-Info (higher is better).

    Raises:
        DataError: if shapes differ, a mask holds anything but 0 and 1, or no pixel is valid.
    """
    prediction, truth, inside = check_pair(prediction, truth, valid)
    cells, true = label_cells(prediction, inside), label_cells(truth, inside)
    information = variation_of_information(cells, true, inside)
    thinned = v_scores(thin_borders(prediction, inside), true, inside)
    values = (
        adapted_rand(cells, true, inside)["error"],
        information["split"],
        information["merge"],
        thinned["v_rand"],
        thinned["v_info"],
    )
    return dict(zip(membrane_names(truth.ndim), values, strict=True))


def best_v_scores(
    probabilities: Iterable[ArrayLike],
    truths: Iterable[ArrayLike],
    valids: Iterable[ArrayLike | None] | None = None,
    thresholds: Sequence[float] = THRESHOLDS,
) -> dict[str, float]:
    """V-Rand and V-Info after border thinning, at the best threshold of a stack, as in the ISBI 2012 challenge.

    For each threshold the score is the mean over the images (those with a true cell); the best threshold is
    chosen for each score by itself, on the images that are scored, so both are upper bounds of what a threshold
    chosen elsewhere gives.

    Args:
        probabilities: one (H, W) or (D, H, W) in [0, 1] for each image, of membrane; a pixel is membrane iff its
            probability >= the threshold.
        truths: one membrane mask for each.
        valids: one mask or None for each; None counts every pixel of all.
        thresholds: probabilities; the default is 0.1, 0.2, ..., 1.0.

    Returns:
        `v_rand_thinned_best`, `v_rand_threshold`, `v_info_thinned_best`, `v_info_threshold`.

    Raises:
        DataError: if there is no image, or none with a true cell, or shapes differ.
        ValueError: if `thresholds` is empty, or the numbers of images differ.
    """
    maps, masks = list(probabilities), list(truths)
    insides = [None] * len(masks) if valids is None else list(valids)
    if not thresholds:
        raise ValueError("thresholds: expected at least one, received none")
    scores = np.full((len(maps), len(thresholds), 2), np.nan)
    for row, (probability, mask, inside) in enumerate(zip(maps, masks, insides, strict=True)):
        values, true = np.asarray(probability), label_cells(mask, inside)
        for column, threshold in enumerate(thresholds):
            result = v_scores(thin_borders(values >= threshold, inside), true, inside)
            scores[row, column] = result["v_rand"], result["v_info"]
    scored = scores[~np.isnan(scores).any(axis=(1, 2))]
    if len(scored) == 0:
        raise DataError(f"truths: expected an image with at least one cell, received {len(maps)} without")
    means = scored.mean(axis=0)
    best = means.argmax(axis=0)
    return {
        "v_rand_thinned_best": float(means[best[0], 0]),
        "v_rand_threshold": float(thresholds[best[0]]),
        "v_info_thinned_best": float(means[best[1], 1]),
        "v_info_threshold": float(thresholds[best[1]]),
    }
