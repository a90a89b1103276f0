"""U-Net for images and volumes of any size."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from biocnn.networks.blocks import (
    BLOCKS,
    CONVOLUTIONS,
    NORMS,
    UPSAMPLINGS,
    ConvBlock,
    Upsampling,
    crop_to,
    enlarge,
    halve,
    init_kaiming,
)


class UNet(nn.Module):
    """U-Net: an encoder that halves the resolution, a decoder that doubles it, and skip connections between them.

    Notation: B batch, C channels, S the spatial axes, (H, W) or (D, H, W), L levels.

    Any size from one pixel on is taken, and the logits have the size of the image. An odd row or column at the end
    is pooled as a block of its own, and what up-sampling makes of it beyond the end is cut off. Nothing is padded
    but by the convolutions, with zeros. So the grids of all levels are fixed at the first pixel: shifting the image
    by :attr:`stride` shifts the logits likewise, and a tile gives the same logits as the whole image at every pixel
    that is :attr:`halo` away from its cut sides, if it starts at a multiple of :attr:`stride`.

    Repeatable training: ``"transposed"`` and ``"nearest"`` have a deterministic backward pass on CPUs; on GPUs, too,
    under `torch.use_deterministic_algorithms`, which lists neither of them as an exception. The backward pass of
    bilinear and trilinear interpolation adds with atomics on GPUs (pytorch#83392 and pytorch#154183).

    Reference: Ronneberger, Fischer, Brox: U-Net: Convolutional networks for biomedical image segmentation. MICCAI
    2015, arXiv 1505.04597; in 3-D Cicek et al., MICCAI 2016, arXiv 1606.06650. Unlike there, convolutions are padded.

    Args:
        in_channels: C of the image; None is for pipelines, which put in the channels of the data.
        out_channels: logits of every pixel; 1 for foreground against background.
        channels: of every level, from full resolution to the coarsest; their number is L.
        dimensions: 2 or 3.
        upsampling: ``"transposed"`` (convolution), ``"bilinear"`` (trilinear in 3-D) or ``"nearest"``.
        block: ``"plain"`` or ``"residual"``.
        norm: ``"batch"``; or ``"instance"`` or ``"group"``, which do not need large batches, but make every logit
            depend on the whole image. Batch norm cannot train on a batch that has one value to a channel at the
            coarsest level, such as a single image no larger than :attr:`stride`.
        dropout: probability of dropping a feature map within a block, in 0..1.
        deep_supervision: give logits of the coarser decoder levels too, in training; see :meth:`forward`.

    Raises:
        ValueError: if an argument is not one of those listed.
    """

    def __init__(
        self,
        in_channels: int | None = 3,
        out_channels: int = 1,
        channels: Sequence[int] = (32, 64, 128, 256),
        dimensions: int = 2,
        upsampling: str = "transposed",
        block: str = "plain",
        norm: str = "batch",
        dropout: float = 0.0,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        if in_channels is None:
            raise ValueError("UNet needs the number of channels of the images: pass in_channels.")
        _check("dimensions", dimensions, tuple(CONVOLUTIONS))
        _check("upsampling", upsampling, UPSAMPLINGS)
        _check("block", block, BLOCKS)
        _check("norm", norm, NORMS)
        if not channels or min(*channels, in_channels, out_channels) < 1:
            raise ValueError(
                f"All numbers of channels must be at least 1, received in_channels={in_channels}, "
                f"out_channels={out_channels}, channels={list(channels)}."
            )
        self.init_args = {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "channels": list(channels),
            "dimensions": dimensions,
            "upsampling": upsampling,
            "block": block,
            "norm": norm,
            "dropout": dropout,
            "deep_supervision": deep_supervision,
        }
        self.dimensions, self.in_channels = dimensions, in_channels
        self.levels, self.upsampling, self.norm = len(channels), upsampling, norm
        pairs = list(pairwise([in_channels, *channels]))
        self.encoder = nn.ModuleList(
            ConvBlock(dimensions, before, width, block, norm, dropout) for before, width in pairs
        )
        # Entry k of the decoder brings level k + 1 to level k.
        self.up = nn.ModuleList(Upsampling(dimensions, coarse, width, upsampling) for width, coarse in pairs[1:])
        self.decoder = nn.ModuleList(
            ConvBlock(dimensions, 2 * width, width, block, norm, dropout) for width in channels[:-1]
        )
        heads = max(1, self.levels - 1) if deep_supervision else 1
        self.heads = nn.ModuleList(CONVOLUTIONS[dimensions](width, out_channels, 1) for width in channels[:heads])
        init_kaiming(self)
        if dimensions == 2:
            # Steps on a CPU take 15 to 20 % less time in this layout, and tensor cores want it.
            self.to(memory_format=torch.channels_last)

    def forward(self, image: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Logits of normalised images.

        Args:
            image: (B, C, *S) float.

        Returns:
            (B, out_channels, *S). In training with deep supervision a list of L - 1 of these (at least one), the
            finest first, so that the first is always the answer. Coarser logits are enlarged to S, by interpolation
            of the kind of the network (nearest for ``"transposed"``), so that all are compared with one target and
            no thin structure is lost in a reduced one.

        Raises:
            ValueError: if the image has another number of axes or channels.
        """
        return self.forward_with_features(image)[0]

    def forward_with_features(self, image: torch.Tensor) -> tuple[torch.Tensor | list[torch.Tensor], torch.Tensor]:
        """Logits as of :meth:`forward`, and the features (B, channels[0], *S) that the finest are made of."""
        skips = self.encode(image)
        features = skips.pop()
        supervised = len(self.heads) if self.training else 1
        logits: list[torch.Tensor] = []
        for level in reversed(range(self.levels)):
            if level < self.levels - 1:
                # Popped, and nothing enlarged is named: in inference what is done with is freed, a third of the peak.
                size = skips[-1].shape[2:]
                features = torch.cat([skips.pop(), crop_to(self.up[level](features), size)], 1)
                features = self.decoder[level](features)
            if level < supervised:
                logits.insert(0, self._to_full_size(self.heads[level](features), level, image.shape[2:]))
        return (logits if self.training and self.init_args["deep_supervision"] else logits[0]), features

    def encode(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Features of normalised images (B, C, *S) at every level, (B, channels[k], *ceil(S / 2^k)), the finest first.

        Raises:
            ValueError: if the image has another number of axes or channels.
        """
        if image.ndim != self.dimensions + 2 or image.shape[1] != self.in_channels:
            axes = "D, H, W" if self.dimensions == 3 else "H, W"
            raise ValueError(
                f"UNet was made for images (B, {self.in_channels}, {axes}), received {tuple(image.shape)}."
            )
        if self.dimensions == 2:
            image = image.contiguous(memory_format=torch.channels_last)
        features = [self.encoder[0](image)]
        for block in list(self.encoder)[1:]:
            features.append(block(halve(features[-1])))
        return features

    def _to_full_size(self, logits: torch.Tensor, level: int, size: Sequence[int]) -> torch.Tensor:
        if level == 0:
            return logits
        linear = "bilinear" if self.dimensions == 2 else "trilinear"
        return crop_to(enlarge(logits, 2**level, linear if self.upsampling == "bilinear" else "nearest"), size)

    @property
    def stride(self) -> int:
        """Side of a cell of the coarsest level in pixels, ``2^(L - 1)``: tiles start at multiples of it."""
        return 1 << (self.levels - 1)

    @property
    def halo(self) -> int | None:
        """How far away, along an axis and in pixels, the image can still change a logit; see :func:`extent`.

        None with instance or group norm, whose statistics are of the whole image.
        """
        return None if self.norm != "batch" else max(extent(self.levels, self.upsampling))

    @property
    def receptive_field(self) -> int | None:
        """Side of a square centred on a pixel that holds all its logits depend on, ``2 * halo + 1``; or None."""
        return None if self.halo is None else 2 * self.halo + 1


def extent(levels: int, upsampling: str) -> tuple[int, int]:
    """How many pixels before and after a pixel of a U-Net its output depends on, at the worst place of the grid.

    The interval of pixels that an output pixel depends on is followed backwards through the layers, for every
    position in a cell of the coarsest level: 3x3 convolutions widen it by one on either side, pooling turns cells
    ``a..b`` into ``2a..2b + 1``, and up-sampling turns ``a..b`` into ``a // 2..b // 2``, one more on the outer sides
    for linear interpolation.

    >>> extent(1, "transposed")
    (2, 2)
    """
    outer = 1 if upsampling == "bilinear" else 0

    def encoded(level: int, first: int, last: int) -> tuple[int, int]:
        first, last = first - 2, last + 2
        return (first, last) if level == 0 else encoded(level - 1, 2 * first, 2 * last + 1)

    def decoded(level: int, first: int, last: int) -> tuple[int, int]:
        if level == levels - 1:
            return encoded(level, first, last)
        first, last = first - 2, last + 2
        skip = encoded(level, first, last)
        coarse = decoded(level + 1, (first - outer) // 2, (last + outer) // 2)
        return min(skip[0], coarse[0]), max(skip[1], coarse[1])

    found = [(place, *decoded(0, place, place)) for place in range(1 << (levels - 1))]
    return max(place - first for place, first, _ in found), max(last - place for place, _, last in found)


def _check(name: str, value: object, known: tuple[object, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, received {value!r}.")
