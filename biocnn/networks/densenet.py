"""A small densely connected network for patches."""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F


class DenseLayer(nn.Module):
    """Norm, ReLU, 3x3 convolution; its output is appended to its input.

    (B, C, H, W) -> (B, C + growth_rate, H, W).
    """

    def __init__(self, in_channels: int, growth_rate: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.conv = nn.Conv2d(in_channels, growth_rate, 3, padding=1, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Append `growth_rate` channels."""
        return torch.cat([features, self.conv(F.relu(self.norm(features)))], 1)


class Transition(nn.Module):
    """Norm, ReLU, 1x1 convolution, average pooling: (B, C, H, W) -> (B, out_channels, H // 2, W // 2)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Halve the resolution; pooling before the 1x1 convolution gives the same at a quarter of the work."""
        pooled: torch.Tensor = self.conv(F.avg_pool2d(F.relu(self.norm(features)), 2))
        return pooled


class SmallDenseNet(nn.Module):
    """DenseNet without bottlenecks, with about 200,000 parameters.

    A PCam patch is positive when any place in its centre is. So the network gives a logit to every place of its last
    feature map, and the logit of the patch is their log-mean-exp over the centre, a smooth maximum (Ilse et al. 2018,
    arXiv 1802.04712, discuss such pooling). By default the first block is empty: dense layers at half the resolution
    of the patch would take most of the time of a training step.

    Reference: Huang, Liu, van der Maaten, Weinberger: Densely connected convolutional networks. CVPR 2017.

    Args:
        in_channels: C.
        num_logits: outputs; 1 for two classes.
        stem_channels: channels after the first convolution, which has stride `stem_stride`.
        growth_rate: channels that each layer adds.
        layers: number of layers in each block; the resolution is halved between blocks.
        compression: share of the channels that a transition keeps.
        stem_stride: 2 for 96 px patches at 10x; 1 keeps all detail at four times the cost.
        dropout: probability of dropping a feature map before the logits of the places.
        centre: side of the centre that the label is about, as a share of the patch; 1/3 for the 32 px of a 96 px
            PCam patch. None if the label is about the whole patch.

    Raises:
        ValueError: if `centre` is not in 0..1.
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_logits: int = 1,
        stem_channels: int = 32,
        growth_rate: int = 32,
        layers: Sequence[int] = (0, 3, 4),
        compression: float = 0.5,
        stem_stride: int = 2,
        dropout: float = 0.1,
        centre: float | None = 1 / 3,
    ) -> None:
        super().__init__()
        if centre is not None and not 0 < centre <= 1:
            raise ValueError(f"centre must be in 0..1, received {centre}.")
        self.init_args = {
            "in_channels": in_channels,
            "num_logits": num_logits,
            "stem_channels": stem_channels,
            "growth_rate": growth_rate,
            "layers": list(layers),
            "compression": compression,
            "stem_stride": stem_stride,
            "dropout": dropout,
            "centre": centre,
        }
        self.centre = centre
        self.stem = nn.Conv2d(in_channels, stem_channels, 5, stride=stem_stride, padding=2, bias=False)
        channels = stem_channels
        blocks: list[nn.Module] = []
        for number, depth in enumerate(layers):
            if number:
                kept = int(channels * compression)
                blocks.append(Transition(channels, kept))
                channels = kept
            for _ in range(depth):
                blocks.append(DenseLayer(channels, growth_rate))
                channels += growth_rate
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout2d(dropout)
        self.places = nn.Conv2d(channels, num_logits, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        # Concatenations and narrow convolutions run 1.5 times as fast in this layout on CPUs and on tensor cores.
        self.to(memory_format=torch.channels_last)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (B, num_logits) of normalised images (B, C, H, W) of any size from 32 px."""
        features = self.blocks(self.stem(image.contiguous(memory_format=torch.channels_last)))
        places = self.places(self.dropout(F.relu(self.norm(features))))
        return log_mean_exp(places if self.centre is None else crop_centre(places, self.centre))


def crop_centre(features: torch.Tensor, share: float) -> torch.Tensor:
    """The centre of (B, C, H, W): as many rows and columns as are nearest to `share` and lie centred.

    The number of rows kept has the parity of H, so that the centre is a symmetric block of whole cells; so do columns.

    >>> crop_centre(torch.arange(36.0).reshape(1, 1, 6, 6), 1 / 3)
    tensor([[[[14., 15.],
              [20., 21.]]]])
    """
    margins = [max(0, min((size - 1) // 2, round(size * (1 - share) / 2))) for size in features.shape[2:]]
    rows, columns = (slice(margin, size - margin) for margin, size in zip(margins, features.shape[2:], strict=True))
    return features[:, :, rows, columns]


def log_mean_exp(logits: torch.Tensor) -> torch.Tensor:
    """Smooth maximum over the places of (B, C, H, W): log of the mean of exp, (B, C); equal logits keep their value."""
    places = logits.flatten(2)
    return torch.logsumexp(places, 2) - math.log(places.shape[2])
