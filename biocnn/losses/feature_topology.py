"""The topology loss of Mosinska et al. 2018: truth and prediction have to look the same to a frozen network.

Reference: Mosinska, Marquez-Neila, Kozinski, Fua: Beyond the pixel-wise loss for topology-aware delineation. CVPR 2018,
arXiv 1712.02190, section 3.2, eq. 3.
"""

import copy
from collections.abc import Sequence
from itertools import chain, pairwise
from pathlib import Path

import torch
import torchvision
from torch import nn
from torchvision.models import VGG19_Weights

from biocnn.losses.base import Loss
from biocnn.networks.pretrained import DEFAULT, load_features

RELU_LAYERS = (3, 8, 17)
"""relu1_2, relu2_2 and relu3_4 in `torchvision.models.vgg19().features`; 2, 7 and 16 are the convolutions before."""

# What torchvision's weights were trained with (`VGG19_Weights.DEFAULT.transforms()`).
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class FeatureTopology(Loss):
    """Squared distance of truth and prediction in the feature maps of a frozen network (paper, eq. 3).

    With the target y, the probability p and the M_n feature maps l_n of W_n x H_n pixels of layer n, for each channel,

        loss = sum_n 1 / (M_n W_n H_n) sum_m |l_n^m(y) - l_n^m(p)|^2:

    the mean over a layer, the SUM over layers; then the mean over channels and samples. The paper shows that ImageNet
    features (relu1_2, relu2_2, relu3_4 of VGG19) change more with a mistake that breaks a line than with as many wrong
    pixels that do not. They are no good for single pixels, so the term is added to BCE, as in the paper:
    ``BCE() + 0.1 * FeatureTopology()``; 0.1 is the weight in two public re-implementations. The scale depends on the
    network, so compare the two terms once. It is dear: in float32 it keeps 2.9 kB for each pixel
    of each channel until the gradient is taken (``torch.autograd.graph.saved_tensors_hooks``).

    The network is a part of the loss, not of the model: it stays as it is whatever is done to the modules around it.
    Its weights are no parameters of the loss, so no optimiser, weight average, `train()` or `half()` reaches them, no
    checkpoint holds them, and one that was trained with this loss is loaded without them. Copies and pickles of the
    loss do hold them. It moves to the device and precision of the logits when it is used.

    2-D only. Outside `valid` both maps are 0, so features near its border see the same blank in both; but the means run
    over whole feature maps, so a sample with few valid pixels has a small loss.

    Args:
        weights: ``"DEFAULT"`` for the ImageNet weights of torchvision, 548 MB, which are downloaded to the cache of
            `torch.hub` (``$TORCH_HOME``) when they are not there; or the path of a file with the state dict of
            torchvision's `vgg19`, or of its `features` only.
        network: used instead of VGG19: from maps (N, 1, H, W) in 0..1 to a tensor (N, M, ...) or a sequence of
            these, one a layer; it has to repeat and normalise the map itself, if it needs that, as
            :class:`VGG19Features` does. A frozen copy of it, in evaluation mode, is used.
        layers: indices into the `features` of torchvision's `vgg19` whose outputs are compared.

    Raises:
        ValueError: if `layers` are not rising indices from 0 to 36, or come with a `network`, or `weights` do.
        DownloadError: if the weights cannot be fetched; it says so now, not after an hour in the queue.
        CheckpointError: if the weights file cannot be read or is of another architecture.
    """

    name = "feature_topology"

    def __init__(
        self,
        weights: str | Path = DEFAULT,
        network: nn.Module | None = None,
        layers: Sequence[int] = RELU_LAYERS,
    ) -> None:
        super().__init__()
        if network is None:
            network = VGG19Features(weights, layers)
        elif weights != DEFAULT or tuple(layers) != RELU_LAYERS:
            raise ValueError(
                f"weights and layers are those of VGG19, so they do not go with network={type(network).__name__}; "
                f"received weights={str(weights)!r} and layers={tuple(layers)}."
            )
        else:
            network = copy.deepcopy(network)
        # In a tuple, nn.Module does not see it: no parameters, no entry in the state dict, no train().
        self._hidden = (network.eval().requires_grad_(False),)

    @property
    def network(self) -> nn.Module:
        """The frozen network: (N, 1, H, W) in 0..1 to feature maps."""
        return self._hidden[0]

    def per_sample(self, logits: torch.Tensor, target: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """(B,); arguments as for :meth:`Loss.per_sample`.

        Raises:
            ValueError: if the input is 3-D or too small for the network, or the network does not give feature maps of
                which a gradient can be taken.
        """
        if logits.ndim != 4:
            raise ValueError(
                f"FeatureTopology is for images (B, C, H, W), received {tuple(logits.shape)}. For volumes use "
                "SoftClDice or SkeletonRecall."
            )
        probability = torch.sigmoid(logits)
        if valid is not None:
            probability = probability * valid
        self._follow(logits)
        with torch.no_grad():
            expected = self._features(target)
        found = self._features(probability)
        if logits.requires_grad and torch.is_grad_enabled() and not all(layer.requires_grad for layer in found):
            raise ValueError(
                f"{type(self.network).__name__}: its features do not depend on the map, so they cannot train a "
                "network. Does it detach, or compute without gradients?"
            )
        distances = [(one - other).square().flatten(1).mean(1) for one, other in zip(found, expected, strict=True)]
        return torch.stack(distances).sum(0).unflatten(0, logits.shape[:2]).mean(1)

    def _features(self, maps: torch.Tensor) -> list[torch.Tensor]:
        """Feature maps of (B, C, H, W), each channel on its own: (B * C, M, ...) for each layer."""
        maps = maps.flatten(0, 1).unsqueeze(1)
        features = self.network(maps)
        layers = [features] if isinstance(features, torch.Tensor) else list(features)
        if not layers or any(len(layer) != len(maps) or layer.ndim < 2 for layer in layers):
            raise ValueError(
                f"{type(self.network).__name__}: expected feature maps (N, M, ...) of N = {len(maps)} maps, received "
                f"{[tuple(layer.shape) for layer in layers]}."
            )
        return layers

    def _follow(self, logits: torch.Tensor) -> None:
        """Bring the network to the device and dtype of the logits."""
        tensors = chain(self.network.parameters(), self.network.buffers())
        first = next((tensor for tensor in tensors if tensor.is_floating_point()), None)
        if first is not None and (first.device, first.dtype) != (logits.device, logits.dtype):
            # A tensor that is made in inference mode, as in Lightning's sanity check, could not be trained with later.
            with torch.inference_mode(False):
                self.network.to(logits.device, logits.dtype)

    def extra_repr(self) -> str:
        """The network, for printing."""
        return f"network={type(self.network).__name__}, frozen"


class VGG19Features(nn.Module):
    """Outputs of chosen layers of torchvision's VGG19 for maps with one channel.

    The map is repeated to three channels and normalised as the ImageNet images were. Layers after the last chosen one
    are not made. With the default layers, 2.3 M weights are left of 143.7 M, and a feature of the last sees 48 x 48
    pixels, with zeros around the image.

    Args:
        weights: as for :class:`FeatureTopology`.
        layers: as for :class:`FeatureTopology`.

    Raises:
        ValueError, DownloadError, CheckpointError: as for :class:`FeatureTopology`.
    """

    def __init__(self, weights: str | Path = DEFAULT, layers: Sequence[int] = RELU_LAYERS) -> None:
        super().__init__()
        # Nothing is computed or stored on this device: making the real one costs two seconds and 550 MB.
        with torch.device("meta"):
            features = torchvision.models.vgg19().features
        self.layers = _check_layers(layers, len(features))
        self.features = features[: self.layers[-1] + 1]
        for layer in self.features:
            if isinstance(layer, nn.ReLU):
                layer.inplace = False  # it would overwrite the output of a chosen convolution
        self.stride = 2 ** sum(isinstance(layer, nn.MaxPool2d) for layer in self.features)
        self.features.to_empty(device="cpu")
        load_features(self.features, weights, VGG19_Weights.DEFAULT, "vgg19")
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))

    def forward(self, maps: torch.Tensor) -> list[torch.Tensor]:
        """Feature maps of each layer.

        Args:
            maps: (N, 1, H, W) float in 0..1; H and W at least `stride`, 4 with the default layers.

        Returns:
            (N, M_n, H_n, W_n) for each layer n, after the ReLU with the default layers; a pooling halves H and W,
            rounding down.

        Raises:
            ValueError: if the maps are too small.
        """
        if min(maps.shape[2:]) < self.stride:
            raise ValueError(
                f"FeatureTopology with VGG19 layers {self.layers} needs images of at least {self.stride} x "
                f"{self.stride} pixels, received {tuple(maps.shape[2:])}. Use larger tiles; from 48 pixels on, "
                "relu3_4 sees its whole field."
            )
        values = (maps - self.mean) / self.std
        found = []
        for index, layer in enumerate(self.features):
            values = layer(values)
            if index in self.layers:
                found.append(values)
        return found


def _check_layers(layers: Sequence[int], count: int) -> tuple[int, ...]:
    found = tuple(layers)
    rising = all(before < after for before, after in pairwise(found))
    if not found or not rising or any(type(index) is not int for index in found) or found[0] < 0 or found[-1] >= count:
        raise ValueError(f"layers: expected rising indices from 0 to {count - 1}, received {found}.")
    return found
