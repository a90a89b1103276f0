"""CSRNet: VGG16 features and dilated convolutions, for counts at an eighth of the resolution."""

import torch
from torch import nn
from torchvision.models import VGG16_Weights

from biocnn.networks.blocks import init_kaiming
from biocnn.networks.pretrained import load_features

FRONT_END = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512))
"""Channels of the first ten convolutions of VGG16, with pooling in between."""
BACK_END = (512, 512, 512, 256, 128, 64)
"""Channels of the dilated convolutions; configuration B of the paper, its best."""
DILATION = 2
OUTPUT_STD, OUTPUT_BIAS = 0.01, 0.01
"""Of the last layer at the start: counts of cells begin near zero, and a little above it."""


class CSRNet(nn.Module):
    """CSRNet: the first ten convolutions of VGG16, six convolutions of dilation 2, and a count for every 8x8 pixels.

    The output is the SUM of the density over the pixels of a cell, so it sums up to the count as it is; see
    :mod:`biocnn.networks.resolution` for how it is compared with a density and turned into one. It is linear in the
    last features, so it may be negative.

    Any size from one pixel on is taken. Grids are fixed at the first pixel; an odd last row or column is pooled as a
    block of its own, where VGG16 leaves it out, and nothing is padded but by the convolutions, with zeros. So a tile
    gives the same counts as the whole image for every pixel that is :attr:`halo` away from its cut sides, if it starts
    at a multiple of :attr:`stride`.

    It has 16.3 M parameters and no batch norm, and is meant for pretrained weights.

    Reference: Li, Zhang, Chen: CSRNet: Dilated convolutional neural networks for understanding the highly congested
    scenes. CVPR 2018, arXiv 1802.10062. Unlike there, new layers start with weights that keep the variance
    (:func:`~biocnn.networks.blocks.init_kaiming`), not with a standard deviation of 0.01, by which features shrink to
    less than a hundredth through the back end; and the truth is summed over cells, not resized by cubic interpolation.

    Args:
        in_channels: C of the image; None is for pipelines, which put in the channels of the data. With pretrained
            weights it is 3, or 1, for which the first convolution gets the sum over colours, as if a grey image were
            repeated.
        out_channels: maps, one for each kind of cell.
        weights: None for random weights; ``"DEFAULT"`` for the ImageNet weights of torchvision, 528 MB, which are
            downloaded to the cache of `torch.hub` (``$TORCH_HOME``) when they are not there; or the path of a file
            with the state dict of torchvision's `vgg16`, or of its `features` only.

    Raises:
        ValueError: if a number of channels is missing, less than 1, or goes with no pretrained weights.
        DownloadError: if the weights cannot be fetched.
        CheckpointError: if the weights file cannot be read or is of another architecture.
    """

    output_stride = 8
    stride = 8

    def __init__(self, in_channels: int | None = 3, out_channels: int = 1, weights: str | None = None) -> None:
        super().__init__()
        if in_channels is None:
            raise ValueError("CSRNet needs the number of channels of the images: pass in_channels.")
        if min(in_channels, out_channels) < 1:
            raise ValueError(
                f"All numbers of channels must be at least 1, received in_channels={in_channels}, "
                f"out_channels={out_channels}."
            )
        if weights is not None and in_channels not in (1, 3):
            raise ValueError(
                f"The pretrained VGG16 takes images of 3 channels, or 1, received in_channels={in_channels}. Choose "
                "such channels, or train from random weights: weights=None."
            )
        # A checkpoint holds the trained weights, so making the network again must not fetch the initial ones.
        self.init_args = {"in_channels": in_channels, "out_channels": out_channels, "weights": None}
        self.in_channels = in_channels
        self.front_end = _front_end(in_channels if weights is None else 3)
        self.back_end = _back_end()
        self.head = nn.Conv2d(BACK_END[-1], out_channels, 1)
        init_kaiming(self)
        assert self.head.bias is not None  # made so above
        nn.init.normal_(self.head.weight, std=OUTPUT_STD)
        nn.init.constant_(self.head.bias, OUTPUT_BIAS)
        if weights is not None:
            load_features(self.front_end, weights, VGG16_Weights.DEFAULT, "vgg16")
            if in_channels == 1:
                self.front_end[0] = _without_colour(self.front_end[0])
        self.to(memory_format=torch.channels_last)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Counts of normalised images.

        Args:
            image: (B, C, H, W) float.

        Returns:
            (B, out_channels, ceil(H / 8), ceil(W / 8)): cells per 8x8 pixels, times the scale that was trained for;
            also below zero.

        Raises:
            ValueError: if the image has another number of axes or channels.
        """
        if image.ndim != 4 or image.shape[1] != self.in_channels:
            raise ValueError(
                f"CSRNet was made for images (B, {self.in_channels}, H, W), received {tuple(image.shape)}."
            )
        features = self.front_end(image.contiguous(memory_format=torch.channels_last))
        counts: torch.Tensor = self.head(self.back_end(features))
        return counts

    @property
    def halo(self) -> int:
        """How far away, along an axis and in pixels, the image can still change the count of a pixel's cell.

        From the last pixel of a cell to the first that its count depends on, and by symmetry the other way.
        """
        reach = DILATION * len(BACK_END) * self.stride
        for level, channels in enumerate(FRONT_END):
            reach += len(channels) << level
        return reach + self.stride - 1

    @property
    def receptive_field(self) -> int:
        """Side of a square centred on a pixel that holds all its count depends on, ``2 * halo + 1``."""
        return 2 * self.halo + 1


def _front_end(in_channels: int) -> nn.Sequential:
    """Layers in the order of `torchvision.models.vgg16().features`, so that its weights have the same names."""
    layers: list[nn.Module] = []
    for level, widths in enumerate(FRONT_END):
        if level > 0:
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        for width in widths:
            layers += [nn.Conv2d(in_channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            in_channels = width
    return nn.Sequential(*layers)


def _back_end() -> nn.Sequential:
    layers: list[nn.Module] = []
    in_channels = FRONT_END[-1][-1]
    for width in BACK_END:
        layers.append(nn.Conv2d(in_channels, width, 3, padding=DILATION, dilation=DILATION))
        layers.append(nn.ReLU(inplace=True))
        in_channels = width
    return nn.Sequential(*layers)


def _without_colour(convolution: nn.Module) -> nn.Conv2d:
    """A convolution that does to a grey image what the given one does to the same grey in all channels."""
    assert isinstance(convolution, nn.Conv2d)  # the first layer
    assert convolution.bias is not None
    grey = nn.Conv2d(1, convolution.out_channels, 3, padding=1)
    with torch.no_grad():
        grey.weight.copy_(convolution.weight.sum(1, keepdim=True))
        assert grey.bias is not None
        grey.bias.copy_(convolution.bias)
    return grey
