"""FCRN-A: the fully convolutional regression network of Xie, Noble and Zisserman for density maps of cells."""

import torch
from torch import nn

from biocnn.networks.blocks import crop_to, enlarge, halve

CHANNELS = (32, 64, 128, 512)
"""Of the four levels, from full resolution to an eighth of it; those of the paper."""
OUTPUT_BIAS = 0.01
"""Of the density at the start: a little above zero, where a map without cells is."""


class FCRNA(nn.Module):
    """FCRN-A: 3x3 convolutions with pooling down to an eighth, and with bilinear up-sampling back to full resolution.

    Every convolution but the last is followed by batch norm and ReLU. There are no skip connections. The density is a
    linear function of the last features, so it may be negative; a ReLU there could die with a map of zeros.

    Any size from one pixel on is taken, and the map has the size of the image. As in :class:`~biocnn.networks.UNet`
    the grids of all levels are fixed at the first pixel, an odd last row or column is pooled as a block of its own,
    and nothing is padded but by the convolutions, with zeros. So a tile gives the same density as the whole image at
    every pixel that is :attr:`halo` away from its cut sides, if it starts at a multiple of :attr:`stride`.

    Reference: Xie, Noble, Zisserman: Microscopy cell counting and detection with fully convolutional regression
    networks. Computer Methods in Biomechanics and Biomedical Engineering: Imaging & Visualization 6(3), 2018 (online
    2016). Weights start orthogonal as there; its "1.3 M parameters" are these, its "receptive field of 38 pixels" is
    that of the encoder. Batch norm was added by the first author in his own public re-implementation. The last
    convolution is 1x1, as there.

    Repeatable training: the backward pass of bilinear interpolation adds with atomics on GPUs, but not under
    `torch.use_deterministic_algorithms`.

    Args:
        in_channels: C of the image; None is for pipelines, which put in the channels of the data.
        out_channels: density maps, one for each kind of cell.

    Raises:
        ValueError: if a number of channels is missing or less than 1.
    """

    output_stride = 1
    stride = 8

    def __init__(self, in_channels: int | None = 3, out_channels: int = 1) -> None:
        super().__init__()
        if in_channels is None:
            raise ValueError("FCRNA needs the number of channels of the images: pass in_channels.")
        if min(in_channels, out_channels) < 1:
            raise ValueError(
                f"All numbers of channels must be at least 1, received in_channels={in_channels}, "
                f"out_channels={out_channels}."
            )
        self.init_args = {"in_channels": in_channels, "out_channels": out_channels}
        self.in_channels = in_channels
        finest, middle, coarse, bottom = CHANNELS
        self.encoder = nn.ModuleList(
            [_convolution(in_channels, finest), _convolution(finest, middle), _convolution(middle, coarse)]
        )
        self.bottom = _convolution(coarse, bottom)
        self.decoder = nn.ModuleList(
            [_convolution(bottom, coarse), _convolution(coarse, middle), _convolution(middle, finest)]
        )
        self.head = nn.Conv2d(finest, out_channels, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.orthogonal_(module.weight)
        assert self.head.bias is not None  # made so above
        nn.init.constant_(self.head.bias, OUTPUT_BIAS)
        self.to(memory_format=torch.channels_last)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Density maps of normalised images.

        Batch norm cannot train on a batch that has one value to a channel at an eighth of the resolution, such as a
        single image no larger than 8x8.

        Args:
            image: (B, C, H, W) float.

        Returns:
            (B, out_channels, H, W), cells per pixel times the scale that was trained for; also below zero.

        Raises:
            ValueError: if the image has another number of axes or channels.
        """
        if image.ndim != 4 or image.shape[1] != self.in_channels:
            raise ValueError(f"FCRNA was made for images (B, {self.in_channels}, H, W), received {tuple(image.shape)}.")
        features = image.contiguous(memory_format=torch.channels_last)
        sizes = []
        for encode in self.encoder:
            sizes.append(features.shape[2:])
            features = halve(encode(features))
        features = self.bottom(features)
        for decode in self.decoder:
            features = decode(crop_to(enlarge(features, 2, "bilinear"), sizes.pop()))
        density: torch.Tensor = self.head(features)
        return density

    @property
    def halo(self) -> int:
        """How far away, along an axis and in pixels, the image can still change the density."""
        return max(extent())

    @property
    def receptive_field(self) -> int:
        """Side of a square centred on a pixel that holds all its density depends on, ``2 * halo + 1``."""
        return 2 * self.halo + 1


def extent() -> tuple[int, int]:
    """How many pixels before and after a pixel its density depends on, at the worst place of the grid of 8x8 cells.

    The interval of pixels that an output pixel depends on is followed backwards, as in
    :func:`biocnn.networks.unet.extent`: a convolution widens it by one on either side, linear interpolation turns
    ``a..b`` into ``(a - 1) // 2..(b + 1) // 2``, and pooling cells ``a..b`` into ``2a..2b + 1``.

    >>> extent()
    (36, 36)
    """
    before, after = [], []
    for place in range(FCRNA.stride):
        first = last = place
        for _ in CHANNELS[1:]:
            first, last = (first - 2) // 2, (last + 2) // 2
        first, last = first - 1, last + 1
        for _ in CHANNELS[1:]:
            first, last = 2 * first - 1, 2 * last + 2
        before.append(place - first)
        after.append(last - place)
    return max(before), max(after)


def _convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    # Batch norm has a bias of its own.
    convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU())
