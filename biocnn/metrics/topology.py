"""Betti numbers of masks and their errors, as plain functions of one image.

b0 counts components, b1 loops (2-D: holes; 3-D: handles), b2 cavities (3-D only). Notation as in
:mod:`biocnn.metrics.overlap`. The number of components depends on what counts as touching, so each name ends
with the connectivity of the foreground: `fg8` is foreground 8 with background 4 (2-D), `fg26` foreground 26
with background 6 (3-D); `fg4` and `fg6` are the reverse. Each pair is the one for which b0 - b1 (+ b2) is the
Euler characteristic. On thin structures the choice decides the result: the 40 vessel masks of DRIVE have 132
components with fg8 and 18,850 with fg4, since steps of a diagonal line touch at corners only.

Border rule ("open"): beyond the image everything is background, so a loop that only the image border would
close is no hole. `valid` is treated in the same way: outside it everything is background, in prediction and
truth alike; an island of invalid pixels inside a structure is thus a hole in both. Numbers are of the whole
image; sums over patches are something else, because patches open loops.

Smallest component: foreground components of fewer than `min_size` pixels are removed from prediction and truth
before anything is counted, and the names then end with `_min<size>`. Small holes are not filled.

The error is |b(prediction) - b(truth)|, 0 or more, lower is better. It does not ask where: a component too
many here and one too few there cancel. An image without structure has b = 0 and nothing is undefined.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage
from skimage.measure import euler_number

from biocnn.metrics.overlap import Mask, check_mask, restrict

# Foreground connectivity: number of axes along which neighbours may differ. Its dual has the other extreme.
_REACH = {2: {8: 2, 4: 1}, 3: {26: 3, 6: 1}}

DEFAULT_CONNECTIVITY = {2: 8, 3: 26}
BORDER_RULE = "open: beyond the image, and outside valid, everything is background"


def check_connectivity(connectivity: int | None, ndim: int) -> int:
    """Return the foreground connectivity, 8 (2-D) or 26 (3-D) where it is None.

    Raises:
        ValueError: if it is not one of 4 and 8 in 2-D, of 6 and 26 in 3-D.
    """
    connectivity = DEFAULT_CONNECTIVITY[ndim] if connectivity is None else connectivity
    if connectivity not in _REACH[ndim]:
        raise ValueError(
            f"connectivity: expected one of {sorted(_REACH[ndim])} for a {ndim}-D image, received {connectivity}"
        )
    return connectivity


def _count(mask: Mask, reach: int) -> int:
    return int(ndimage.label(mask, ndimage.generate_binary_structure(mask.ndim, reach))[1])


def remove_small(mask: ArrayLike, min_size: int, connectivity: int | None = None) -> Mask:
    """Remove components of fewer than `min_size` pixels.

    Args:
        mask: (H, W) or (D, H, W) bool.
        min_size: in pixels; 0 and 1 keep everything.
        connectivity: of the foreground, 4 or 8 (2-D), 6 or 26 (3-D); None is 8 or 26.

    Raises:
        DataError: if the mask has another shape or holds anything but 0 and 1.
        ValueError: if `connectivity` is none of these, or `min_size` is negative.
    """
    mask = check_mask("mask", mask)
    reach = _REACH[mask.ndim][check_connectivity(connectivity, mask.ndim)]
    if min_size < 0:
        raise ValueError(f"min_size: expected a number of pixels, 0 or more, received {min_size}")
    if min_size <= 1:
        return mask
    labels, _ = ndimage.label(mask, ndimage.generate_binary_structure(mask.ndim, reach))
    keep = np.bincount(labels.ravel()) >= min_size
    keep[0] = False
    return keep[labels]


def betti_numbers(mask: ArrayLike, connectivity: int | None = None) -> tuple[int, ...]:
    """Betti numbers of a mask: (b0, b1) in 2-D, (b0, b1, b2) in 3-D.

    b0 and the number of background components come from labelling, the background being padded by one pixel
    that joins it around the image. In 2-D, b1 is the background components less the outer one; in 3-D these
    are b2, and b1 = b0 + b2 - chi with the Euler characteristic chi.

    Args:
        mask: (H, W) or (D, H, W) bool.
        connectivity: of the foreground, 4 or 8 (2-D), 6 or 26 (3-D); None is 8 or 26. The background has the
            dual one.

    Raises:
        DataError: if the mask has another shape or holds anything but 0 and 1.
        ValueError: if `connectivity` is none of these.

    Examples:
        >>> betti_numbers([[1, 1, 1], [1, 0, 1], [1, 1, 1]])
        (1, 1)
        >>> betti_numbers([[1, 0], [0, 1]]), betti_numbers([[1, 0], [0, 1]], connectivity=4)
        ((1, 0), (2, 0))
    """
    mask = check_mask("mask", mask)
    reach = _REACH[mask.ndim][check_connectivity(connectivity, mask.ndim)]
    dual = 1 if reach == mask.ndim else mask.ndim
    components = _count(mask, reach)
    enclosed = _count(np.pad(~mask, 1, constant_values=True), dual) - 1
    if mask.ndim == 2:
        return components, enclosed
    return components, components + enclosed - int(euler_number(mask, connectivity=reach)), enclosed


def betti_suffix(ndim: int, connectivity: int | None = None, min_size: int = 0) -> str:
    """What ends the name of a Betti number: connectivity, and the smallest component where one is set."""
    smallest = f"_min{min_size}" if min_size > 1 else ""
    return f"fg{check_connectivity(connectivity, ndim)}{smallest}"


def betti_errors(
    prediction: ArrayLike,
    truth: ArrayLike,
    valid: ArrayLike | None = None,
    connectivity: int | None = None,
    min_size: int = 0,
) -> dict[str, int]:
    """Errors of the Betti numbers of one image, |b(prediction) - b(truth)|; lower is better.

    Clough et al. (2022), IEEE TPAMI 44:8766; border, `valid` and small components as this module says.

    Args:
        prediction: (H, W) or (D, H, W) bool.
        truth: the same shape, bool.
        valid: the same shape, bool; None counts every pixel.
        connectivity: of the foreground, 4 or 8 (2-D), 6 or 26 (3-D); None is 8 or 26.
        min_size: components of fewer pixels are removed first, in both masks; 0 and 1 keep all.

    Returns:
        For each degree k: `betti<k>_error_<rule>`, `betti<k>_prediction_<rule>` and `betti<k>_truth_<rule>`,
        the rule being :func:`betti_suffix`, such as `betti0_error_fg8` or `betti1_error_fg26_min5`.

    Raises:
        DataError: if shapes differ, a mask holds anything but 0 and 1, or no pixel is valid.
        ValueError: if `connectivity` is none of these, or `min_size` is negative.

    Examples:
        >>> errors = betti_errors([[1, 1, 0, 1, 1]], [[1, 1, 1, 1, 1]])
        >>> errors["betti0_error_fg8"], errors["betti0_prediction_fg8"]
        (1, 2)
    """
    masks = restrict(prediction, truth, valid)
    predicted, true = (betti_numbers(remove_small(mask, min_size, connectivity), connectivity) for mask in masks)
    suffix = betti_suffix(masks[0].ndim, connectivity, min_size)
    result = {}
    for degree, (found, wanted) in enumerate(zip(predicted, true, strict=True)):
        result[f"betti{degree}_error_{suffix}"] = abs(found - wanted)
        result[f"betti{degree}_prediction_{suffix}"] = found
        result[f"betti{degree}_truth_{suffix}"] = wanted
    return result
