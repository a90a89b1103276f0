"""Probabilities of candidate paths, of a trained network that classifies them."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from biocnn.data.dataset import to_float
from biocnn.delineation.candidates import Candidates
from biocnn.delineation.path_weights import learned_weights
from biocnn.errors import DataError
from biocnn.inference.segmentation import Segmenter
from biocnn.networks.path_tiles import path_tile_logits


def path_probabilities(
    segmenter: Segmenter, image: np.ndarray, candidates: Candidates, tile: int | None = None, batch_size: int = 16
) -> NDArray[np.float64]:
    """How probable it is that each candidate follows a structure.

    Each is drawn into a tile of the image of its own, see :func:`biocnn.networks.path_tiles.path_tile_logits`. In the
    training, half of the paths followed a structure.

    :func:`classifier_weights` makes weights of them.

    Args:
        segmenter: whose network was trained with :class:`biocnn.tasks.path_training.PathTraining`.
        image: as for :meth:`Segmenter.tubularity`.
        candidates: M of them, in two dimensions.
        tile: side of a tile in pixels; that of the training when None, or 128 if it is not known.
        batch_size: candidates that are classified together.

    Returns:
        (M,) float64, 0..1.

    Raises:
        DataError: if the network cannot classify paths, or the image is of another shape or dtype.
        ValueError: if a candidate leaves the image.
    """
    task = segmenter.task
    classify = path_classifier(segmenter)
    pixels = to_float({"image": torch.from_numpy(segmenter._prepare(np.asarray(image)))})["image"][0]
    logits = path_tile_logits(
        lambda tiles, drawn: classify(task.normalise(tiles), drawn),
        pixels.to(task.device),
        candidates.paths,
        tile or task.data_description.get("tile_size") or 128,
        batch_size,
    )
    return torch.sigmoid(logits.double()).cpu().numpy()


def path_classifier(segmenter: Segmenter) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The part of a network that classifies paths, see :meth:`biocnn.networks.DualUseUNet.path_logits`.

    Raises:
        DataError: if the network has none.
    """
    classify: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None
    classify = getattr(segmenter.task.network, "path_logits", None)
    if classify is None:
        raise DataError(
            f"{type(segmenter.task.network).__name__} cannot classify paths. Train a DualUseUNet with PathTraining, as "
            "in pipelines/delineation.yaml."
        )
    return classify


def classifier_weights(segmenter: Segmenter, image: np.ndarray) -> Callable[[Candidates], NDArray[np.float64]]:
    """Weights of the candidates in an image by a trained classifier, for the global method.

    `delineate(segmenter.tubularity(image), weights=classifier_weights(segmenter, image))` has them in place of the
    log-odds of the map.

    Args:
        segmenter: as for :func:`path_probabilities`.
        image: as for :meth:`Segmenter.tubularity`.

    Raises:
        DataError: if the network cannot classify paths.
    """
    path_classifier(segmenter)
    return lambda candidates: learned_weights(path_probabilities(segmenter, image, candidates), candidates)
