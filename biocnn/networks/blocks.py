"""Blocks of fully convolutional networks, in two and three dimensions.

Notation: B batch, C channels, and S the spatial axes, (H, W) or (D, H, W). Blocks keep S; pooling and up-sampling
halve and double it with the grid fixed at the first pixel, so that cell `i` of the coarse grid always covers the
pixels `2 i` and `2 i + 1`, wherever the image ends.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

CONVOLUTIONS: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: dict[int, type[nn.ConvTranspose2d] | type[nn.ConvTranspose3d]] = {
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}
_BATCH_NORMS: dict[int, type[nn.BatchNorm2d] | type[nn.BatchNorm3d]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_DROPOUTS: dict[int, type[nn.Dropout2d] | type[nn.Dropout3d]] = {2: nn.Dropout2d, 3: nn.Dropout3d}
_LINEAR = {2: "bilinear", 3: "trilinear"}

UPSAMPLINGS = ("transposed", "bilinear", "nearest")
BLOCKS = ("plain", "residual")
NORMS = ("batch", "instance", "group")
GROUPS = 8
"""Most groups of group norm; Wu and He 2018 (arXiv 1803.08494) found 8 or more channels to a group to work well."""


class GroupNorm(nn.GroupNorm):
    """Group norm that takes features of a single value too, whose norm is 0; torch's refuses them.

    Instance norm is this with one group to a channel.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(B, C, *S) -> (B, C, *S)."""
        return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


def make_norm(norm: str, dimensions: int, channels: int) -> nn.Module:
    """Batch, instance or group norm of `channels` channels; groups are the largest divisor up to :data:`GROUPS`."""
    if norm == "batch":
        return _BATCH_NORMS[dimensions](channels)
    return GroupNorm(channels if norm == "instance" else math.gcd(channels, GROUPS), channels)


class ConvBlock(nn.Module):
    """Two 3x3 convolutions, each with norm and ReLU: (B, in_channels, *S) -> (B, out_channels, *S).

    A residual block adds its input before the last ReLU, through a 1x1 convolution where the channels differ (He et
    al. 2016, arXiv 1512.03385). Dropout acts on whole feature maps, between the convolutions.
    """

    def __init__(
        self, dimensions: int, in_channels: int, out_channels: int, block: str, norm: str, dropout: float
    ) -> None:
        super().__init__()
        conv = CONVOLUTIONS[dimensions]
        # The norm that follows has a bias of its own.
        self.conv1 = conv(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm1 = make_norm(norm, dimensions, out_channels)
        self.dropout = _DROPOUTS[dimensions](dropout)
        self.conv2 = conv(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = make_norm(norm, dimensions, out_channels)
        self.skip: nn.Module | None = None
        if block == "residual":
            self.skip = nn.Identity() if in_channels == out_channels else conv(in_channels, out_channels, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, *S) -> (B, out_channels, *S)."""
        hidden = self.dropout(F.relu(self.norm1(self.conv1(features))))
        result = self.norm2(self.conv2(hidden))
        return F.relu(result if self.skip is None else result + self.skip(features))


class Upsampling(nn.Module):
    """Double the resolution: (B, in_channels, *S) -> (B, out_channels, *2S).

    ``"transposed"`` is a 2x2 convolution of stride 2. The other two set the channels by a 1x1 convolution and then
    interpolate. As both are linear, the order does not change the result, and at the lower resolution the
    convolution costs a quarter (an eighth in 3-D).
    """

    def __init__(self, dimensions: int, in_channels: int, out_channels: int, upsampling: str) -> None:
        super().__init__()
        self.mode = _LINEAR[dimensions] if upsampling == "bilinear" else upsampling
        self.conv: nn.Module
        if upsampling == "transposed":
            self.conv = _TRANSPOSED[dimensions](in_channels, out_channels, 2, stride=2)
        else:
            self.conv = CONVOLUTIONS[dimensions](in_channels, out_channels, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, *S) -> (B, out_channels, *2S)."""
        features = self.conv(features)
        return features if self.mode == "transposed" else enlarge(features, 2, self.mode)


def enlarge(features: torch.Tensor, factor: int, mode: str) -> torch.Tensor:
    """Interpolate (B, C, *S) to (B, C, *(factor * S)); `mode` is that of :func:`torch.nn.functional.interpolate`."""
    return F.interpolate(features, scale_factor=factor, mode=mode, align_corners=None if mode == "nearest" else False)


def halve(features: torch.Tensor) -> torch.Tensor:
    """Largest of each 2x2 block: (B, C, *S) -> (B, C, *ceil(S / 2)); an odd last row is a block of its own."""
    pool = F.max_pool2d if features.ndim == 4 else F.max_pool3d
    pooled: torch.Tensor = pool(features, 2, ceil_mode=True)
    return pooled


def crop_to(features: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """The first `size` pixels of the spatial axes of (B, C, *S).

    >>> crop_to(torch.arange(6.0).reshape(1, 1, 2, 3), (1, 2))
    tensor([[[[0., 1.]]]])
    """
    for axis, length in enumerate(size, start=2):
        features = features.narrow(axis, 0, length)
    return features


def init_kaiming(network: nn.Module) -> None:
    """Set the weights of all convolutions so that ReLU layers keep the variance (He et al. 2015, arXiv 1502.01852)."""
    for module in network.modules():
        if isinstance(module, (nn.ConvTranspose2d, nn.ConvTranspose3d)):
            # With stride = kernel size every output pixel sees one tap; torch would count all of them, and on the
            # wrong axis.
            nn.init.normal_(module.weight, std=math.sqrt(2 / module.in_channels))
        elif isinstance(module, (nn.Conv2d, nn.Conv3d)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
