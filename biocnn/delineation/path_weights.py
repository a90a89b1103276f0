"""Weights of candidate paths from a classifier of paths, on the scale of :mod:`biocnn.delineation.weights`."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from biocnn.delineation.candidates import CLIP, Candidates

Floats = NDArray[np.float64]


def learned_weights(probabilities: ArrayLike, candidates: Candidates) -> Floats:
    """Evidence against each candidate: -log(p / (1 - p)) times the length of its path.

    Türetken et al.: Reconstructing curvilinear networks using path classifiers and integer programming. TPAMI 2016,
    eq. (8), p the probability of a path classifier, clipped to 0.02..0.98. Unlike there, it is multiplied by the
    length, in the unit of the spacing. So a path that is cut in two weighs the same, a sure path weighs what it weighs
    in :func:`biocnn.delineation.weights.log_odds`, and :func:`biocnn.delineation.weights.component_price` fits.

    Args:
        probabilities: (M,), 0..1, see :func:`biocnn.inference.paths.path_probabilities`.
        candidates: M of them.

    Returns:
        (M,) float64, below 0 where p is above one half.

    Raises:
        ValueError: if there is not one probability for each candidate.
    """
    values = np.asarray(probabilities, np.float64)
    if values.shape != (len(candidates),) or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(
            f"Expected a probability in 0..1 for each of the {len(candidates)} candidates, received shape "
            f"{values.shape}{f', {values.min():g} to {values.max():g}' if values.size else ''}."
        )
    clipped = np.clip(values, CLIP, 1 - CLIP)
    lengths = [np.linalg.norm(np.diff(path, axis=0) * candidates.spacing, axis=1).sum() for path in candidates.paths]
    return -np.log(clipped / (1 - clipped)) * np.array(lengths)
