"""Centrelines of masks, and the metrics that compare them, as plain functions of one image.

Notation as in :mod:`biocnn.metrics.overlap`. S(A) is the skeleton of mask A, one pixel wide. Lengths are in
pixels, whatever the pixel size. Everything outside `valid` is background before the skeleton is taken, and so
is everything beyond the image: a structure ends there.

Rule for empty masks: with a structure in neither the truth nor the prediction every score is nan; with one in
only one of the two, every score is 0.

None of these metrics sees a short break: a gap of at most twice the tolerance leaves quality at 1, and clDice
loses only the share of centreline in the gap. Read them beside :mod:`biocnn.metrics.topology`.
"""

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage
from skimage.morphology import skeletonize

from biocnn.metrics.overlap import Mask, check_mask, restrict


def skeletonize_safely(mask: ArrayLike) -> Mask:
    """Thin a mask to its centreline without losing a component.

    2-D after Zhang & Suen (1984), Commun. ACM 27:236; 3-D after Lee et al. (1994), CVGIP 56:462, both by
    scikit-image. Its 3-D thinning deletes columns of even width altogether (scikit-image issue 3757: 2 x 2,
    4 x 4 and 6 x 6 voxels leave nothing). Here a 3-D component that left nothing, or that has a voxel farther
    than 2 r + 2 from the skeleton, r being its greatest distance to the background, is thinned again on a grid
    of twice the resolution, where every width is odd. Should that fail too, the voxel farthest from the
    background stands for the component. A lost branch shorter than 2 r + 2 is not noticed.

    Args:
        mask: (H, W) or (D, H, W) bool.

    Returns:
        The same shape, bool, part of `mask`; every component (8-connected in 2-D, 26-connected in 3-D) keeps
        at least one pixel.

    Raises:
        DataError: if the mask has another shape or holds anything but 0 and 1.
    """
    mask = check_mask("mask", mask)
    skeleton = skeletonize(mask).astype(np.bool_) & mask
    labels, count = ndimage.label(mask, np.ones((3,) * mask.ndim))
    if count == 0:
        return skeleton
    index = np.arange(1, count + 1)
    suspect = ndimage.maximum(skeleton, labels, index) == 0
    if mask.ndim == 3 and skeleton.any():
        thickness = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1, 1:-1]
        reach = ndimage.maximum(ndimage.distance_transform_edt(~skeleton), labels, index)
        suspect |= reach > 2 * ndimage.maximum(thickness, labels, index) + 2
    boxes = ndimage.find_objects(labels)
    for number in np.flatnonzero(suspect):
        component = labels[boxes[number]] == number + 1
        thin = _skeletonize_doubled(component)
        if not thin.any():
            depth = ndimage.distance_transform_edt(np.pad(component, 1))[(slice(1, -1),) * mask.ndim]
            thin.flat[int(depth.argmax())] = True
        skeleton[boxes[number]] = np.where(component, thin, skeleton[boxes[number]])
    return skeleton


def _skeletonize_doubled(component: Mask) -> Mask:
    """Skeleton of one component by way of a grid of twice the resolution, at eight times the memory."""
    # Pixel i becomes the points 2i to 2i + 2, which neighbours share: a closed cube, so that touching corners
    # stay connected, a gap of one pixel stays a gap, and a width of w pixels becomes 2w + 1 points, always odd.
    fine = np.zeros(tuple(2 * size + 1 for size in component.shape), dtype=np.bool_)
    for offset in np.ndindex((3,) * component.ndim):
        window = tuple(
            slice(start, start + 2 * size - 1, 2) for start, size in zip(offset, component.shape, strict=True)
        )
        fine[window] |= component
    points = np.argwhere(skeletonize(np.pad(fine, 1))) - 1
    result = np.zeros(component.shape, dtype=np.bool_)
    last = np.array(component.shape) - 1
    # A point on a shared face goes to the first of the pixels it belongs to that is part of the component.
    for offset in np.ndindex((2,) * component.ndim):
        pixels = np.clip((points - offset) // 2, 0, last)
        # The point has to lie on the closed cube of this pixel.
        fits = (np.abs(points - 2 * pixels - 1) <= 1).all(axis=1) & component[tuple(pixels.T)]
        result[tuple(pixels[fits].T)] = True
        points = points[~fits]
    return result


def cldice(prediction: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None) -> float:
    """Centreline Dice of one image, in [0, 1]; higher is better.

    Shit et al. (2021), CVPR, arXiv 2003.07311, eqs. (1) and (2): the harmonic mean of the share of the
    predicted centreline inside the true mask and the share of the true centreline inside the predicted mask.
    It hardly depends on thickness. The rule for empty masks is that of this module; the authors' code gives
    nan as soon as one is empty.

    Args:
        prediction: (H, W) or (D, H, W) bool.
        truth: the same shape, bool.
        valid: the same shape, bool; None counts every pixel.

    Returns:
        A number in [0, 1]; nan where both are empty.

    Raises:
        DataError: if shapes differ, a mask holds anything but 0 and 1, or no pixel is valid.
    """
    return centreline_scores(prediction, truth, valid)["cldice"]


def centreline_scores(
    prediction: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None, tolerance: float = 3.0
) -> dict[str, float]:
    """All scores of centrelines of one image, from one skeleton each; higher is better.

    - `cldice`, with `cldice_precision` and `cldice_sensitivity`, of which it is the harmonic mean;
    - `correctness_<t>px`: share of the predicted centreline within t pixels (Euclidean) of the true one;
    - `completeness_<t>px`: share of the true centreline within t pixels of the predicted one;
    - `quality_<t>px`: correctness * completeness / (correctness + completeness - correctness * completeness).

    The last three after Wiedemann et al. (1998), Empirical evaluation of automatically extracted road axes.
    The truth is thinned as well; one that is a centreline already does not change.

    Args:
        prediction: (H, W) or (D, H, W) bool.
        truth: the same shape, bool.
        valid: the same shape, bool; None counts every pixel.
        tolerance: t, in pixels, 0 or more; part of the names.

    Raises:
        DataError: if shapes differ, a mask holds anything but 0 and 1, or no pixel is valid.
        ValueError: if `tolerance` is negative or not finite.

    Examples:
        >>> line = np.zeros((5, 9), dtype=bool)
        >>> line[2] = True
        >>> scores = centreline_scores(np.roll(line, 1, axis=0), line, tolerance=1)
        >>> scores["cldice"], scores["quality_1px"]
        (0.0, 1.0)
    """
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise ValueError(f"tolerance: expected a finite number of pixels, 0 or more, received {tolerance}")
    prediction, truth = restrict(prediction, truth, valid)
    names = centreline_names(tolerance)
    if not (prediction.any() and truth.any()):
        value = 0.0 if prediction.any() or truth.any() else math.nan
        return dict.fromkeys(names, value)
    predicted, true = skeletonize_safely(prediction), skeletonize_safely(truth)
    precision, sensitivity = float(truth[predicted].mean()), float(prediction[true].mean())
    correctness, completeness = _share_near(predicted, true, tolerance), _share_near(true, predicted, tolerance)
    product = correctness * completeness
    both = precision + sensitivity
    values = (
        2 * precision * sensitivity / both if both else 0.0,
        precision,
        sensitivity,
        correctness,
        completeness,
        product / (correctness + completeness - product) if product else 0.0,
    )
    return dict(zip(names, values, strict=True))


def centreline_names(tolerance: float) -> tuple[str, ...]:
    """Names of what :func:`centreline_scores` returns, in order."""
    near = f"{tolerance:g}px"
    parts = ("cldice", "cldice_precision", "cldice_sensitivity")
    return (*parts, f"correctness_{near}", f"completeness_{near}", f"quality_{near}")


def _share_near(skeleton: Mask, other: Mask, tolerance: float) -> float:
    return float((ndimage.distance_transform_edt(~other)[skeleton] <= tolerance).mean())
