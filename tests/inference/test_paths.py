from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from biocnn.delineation.candidates import Candidates, candidate_paths
from biocnn.delineation.delineate import delineate
from biocnn.delineation.path_weights import learned_weights
from biocnn.delineation.samples import sample_points
from biocnn.delineation.weights import component_price, log_odds, with_continuations
from biocnn.errors import DataError
from biocnn.inference.paths import classifier_weights, path_probabilities
from biocnn.inference.segmentation import Segmenter
from biocnn.networks import DualUseUNet, UNet
from biocnn.tasks.segmentation import SegmentationTask
from biocnn.tasks.thresholds import Thresholds
from tests.data.drawn import vessels


def segmenter(network: nn.Module, **description: Any) -> Segmenter:
    task = SegmentationTask(network, image_mean=[0.3], image_std=[0.2], drop_specks=False)
    task.thresholds = Thresholds(0.5, 0, 8, 1)
    task.data_description = description
    return Segmenter(task.eval())


@pytest.fixture
def drawn() -> tuple[np.ndarray, Candidates]:
    """An image, and candidates in a map of it."""
    image, mask = vessels(3)
    probability = np.where(mask, 0.9, 0.05)
    return image, candidate_paths(probability, sample_points(probability))


def test_probabilities_are_those_of_the_network(drawn: tuple[np.ndarray, Candidates]) -> None:
    image, candidates = drawn
    torch.manual_seed(0)
    network = DualUseUNet(1, channels=(4, 8))
    # Tiles that hold the whole image: then what the network says of it is what is asked for.
    found = path_probabilities(segmenter(network), image, candidates, tile=96)
    normalised = ((torch.from_numpy(image) / 255 - 0.3) / 0.2)[None, None]
    with torch.inference_mode():
        features = network.eval().forward_with_features(normalised)[1][0]
        logits = network.path_logits(features, candidates.paths)
    assert len(candidates) > 5
    assert (found.shape, found.dtype) == ((len(candidates),), np.float64)
    np.testing.assert_allclose(found, torch.sigmoid(logits).numpy(), atol=1e-6)
    assert np.ptp(found) > 1e-3


def test_the_tile_is_that_of_the_training(drawn: tuple[np.ndarray, Candidates]) -> None:
    image, candidates = drawn
    torch.manual_seed(0)
    network = DualUseUNet(1, channels=(4, 8), norm="instance")  # the whole tile counts
    known = path_probabilities(segmenter(network, tile_size=48), image, candidates)
    np.testing.assert_array_equal(known, path_probabilities(segmenter(network), image, candidates, tile=48))
    assert (known != path_probabilities(segmenter(network), image, candidates, tile=96)).any()


class Brightness(DualUseUNet):
    """A path is probable if the image is bright all along it."""

    def forward_with_features(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return image, image

    def path_logits(self, features: torch.Tensor, paths: Sequence[np.ndarray]) -> torch.Tensor:
        return torch.stack([10 * features[0][tuple(path.T)].amin() for path in paths])


def test_a_delineation_weighs_its_candidates_by_them() -> None:
    image = np.full((64, 64), 50, np.uint8)
    image[30:33, 4:60] = 150
    probability = np.where(image > 100, 0.9, 0.02)
    probability[:, 28:40] = 0.02  # where the map has lost the line, by more than the longest gap
    model = segmenter(Brightness(1, channels=(4,)))
    weights = classifier_weights(model, image, probability)
    graph = delineate(probability, weights=weights, gap=13)
    assert (graph.number_of_nodes(), graph.number_of_edges()) == (2, 1)
    candidates = candidate_paths(probability, sample_points(probability), gap=13)
    learned = learned_weights(path_probabilities(model, image, candidates), candidates)
    evidence = (learned + log_odds(candidates, probability)) / 2
    expected = with_continuations(candidates, evidence, 0.75 * component_price((1, 1)))
    np.testing.assert_array_equal(weights(candidates), expected)


def test_none_and_networks_that_cannot(drawn: tuple[np.ndarray, Candidates]) -> None:
    image, candidates = drawn
    none = candidate_paths(np.zeros((96, 80)), [])
    assert path_probabilities(segmenter(DualUseUNet(1, channels=(4,))), image, none).shape == (0,)
    with pytest.raises(DataError, match="UNet cannot classify paths"):
        path_probabilities(segmenter(UNet(1, channels=(4,))), image, candidates)
    with pytest.raises(DataError, match="UNet cannot classify paths"):
        classifier_weights(segmenter(UNet(1, channels=(4,))), image, np.zeros((96, 80)))
    with pytest.raises(ValueError, match="not one of pixels"):
        path_probabilities(segmenter(DualUseUNet(1, channels=(4,))), image[:50], candidates)
