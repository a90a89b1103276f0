"""Probabilities of candidate paths, of a trained network that classifies them."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from biocnn.data.batches import to_float
from biocnn.delineation.candidates import Candidates
from biocnn.delineation.path_weights import learned_weights
from biocnn.delineation.weights import continuation_reward, log_odds, with_continuations
from biocnn.errors import DataError
from biocnn.inference.segmentation import Segmenter
from biocnn.networks.path_tiles import path_tile_logits
from biocnn.tasks.path_training import classify_paths


def path_probabilities(
    segmenter: Segmenter, image: np.ndarray, candidates: Candidates, tile: int | None = None
) -> NDArray[np.float64]:
    """How probable it is that each candidate follows a structure.

    Those of a tile are classified at once, see :func:`biocnn.networks.path_tiles.path_tile_logits`. In the training,
    half of the paths followed a structure.

    :func:`classifier_weights` makes weights of them.

    Args:
        segmenter: whose network was trained with :class:`biocnn.tasks.path_training.PathTraining`.
        image: as for :meth:`Segmenter.tubularity`.
        candidates: M of them, in two dimensions.
        tile: side of a tile in pixels; that of the training when None, or 128 if it is not known.

    Returns:
        (M,) float64, 0..1.

    Raises:
        DataError: if the network cannot classify paths, or the image is of another shape or dtype.
        ValueError: if a candidate leaves the image.
    """
    task = segmenter.task
    check_classifier(segmenter)
    pixels = to_float({"image": torch.from_numpy(segmenter._prepare(np.asarray(image)))})["image"][0]
    logits = path_tile_logits(
        partial(classify_paths, task),
        pixels.to(task.device),
        candidates.paths,
        tile or task.data_description.get("tile_size") or 128,
    )
    return torch.sigmoid(logits.double()).cpu().numpy()


def check_classifier(segmenter: Segmenter) -> None:
    """Raise DataError if a network cannot classify paths."""
    if not hasattr(segmenter.task.network, "path_logits"):
        raise DataError(
            f"{type(segmenter.task.network).__name__} cannot classify paths. Train a DualUseUNet with PathTraining, as "
            "in pipelines/delineation.yaml."
        )


def classifier_weights(
    segmenter: Segmenter, image: np.ndarray, probability: ArrayLike, threshold: float = 0.5
) -> Callable[[Candidates], NDArray[np.float64]]:
    """Weights of the candidates in an image by a trained classifier, for the global method.

    They are the mean of what the classifier says (:func:`learned_weights`) and what the map says
    (:func:`biocnn.delineation.weights.log_odds`), with continuations. On the validation images of DRIVE either alone
    had less similar path lengths. A classifier can reject what a map at a lower threshold has too much of, so take two
    thirds of the threshold that is right for masks, as ::

        probability, threshold = segmenter.tubularity(image), segmenter.threshold * 2 / 3
        weights = classifier_weights(segmenter, image, probability, threshold)
        graph = delineate(probability, threshold=threshold, weights=weights)

    Args:
        segmenter: as for :func:`path_probabilities`.
        image: as for :meth:`Segmenter.tubularity`.
        probability: (H, W), 0..1, the map that is delineated.
        threshold: of the delineation.

    Raises:
        DataError: if the network cannot classify paths.
    """
    check_classifier(segmenter)

    def weights(candidates: Candidates) -> NDArray[np.float64]:
        learned = learned_weights(path_probabilities(segmenter, image, candidates), candidates)
        evidence = (learned + log_odds(candidates, probability, threshold)) / 2
        return with_continuations(candidates, evidence, continuation_reward(candidates.spacing.tolist()))

    return weights
