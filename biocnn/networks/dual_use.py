"""A U-Net that segments an image, and says of paths in it whether they follow a structure."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from biocnn.networks.blocks import init_kaiming
from biocnn.networks.unet import UNet

_HIDDEN = 32  # units of the path head


class DualUseUNet(nn.Module):
    """A U-Net for images of two dimensions with a second head, which classifies paths by the features along them.

    It goes wherever a :class:`biocnn.networks.UNet` does; sizes, tiles and repeatability are as there. One pass over an
    image serves its segmentation and any number of paths in it.

    Notation: B batch, C channels of the image, F features, ``channels[0]``, M paths, P pixels of a path.

    Reference: Mosinska, Kozinski, Fua: Joint segmentation and path classification of curvilinear structures. TPAMI
    2019, arXiv 1905.03892. Unlike there, a path is not drawn into another channel of the image, which takes a pass for
    each path and has to be learned by all layers before the head; see :class:`PathHead`.

    Args:
        in_channels: C; None is for pipelines, which put in the channels of the data.
        channels: of every level, see :class:`biocnn.networks.UNet`, as for the following.
        upsampling: ``"transposed"``, ``"bilinear"`` or ``"nearest"``.
        block: ``"plain"`` or ``"residual"``.
        norm: ``"batch"``, ``"instance"`` or ``"group"``.
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
        self.unet = UNet(in_channels, 1, channels, 2, upsampling, block, norm, dropout, deep_supervision)
        self.path_head = PathHead(channels[0] + 1)
        self.in_channels, self.init_args = in_channels, {**self.unet.init_args}
        for name in ("out_channels", "dimensions"):
            del self.init_args[name]

    def forward(self, image: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Logits (B, 1, H, W) of normalised images (B, C, H, W); a list of them as :meth:`UNet.forward` gives it.

        Raises:
            ValueError: if the image has another number of axes or channels.
        """
        logits: torch.Tensor | list[torch.Tensor] = self.unet(image)
        return logits

    def forward_with_features(self, image: torch.Tensor) -> tuple[torch.Tensor | list[torch.Tensor], torch.Tensor]:
        """Logits as of :meth:`forward`, and the features (B, F, H, W) of the finest level, for :meth:`path_logits`."""
        return self.unet.forward_with_features(image)

    def path_logits(self, features: torch.Tensor, paths: Sequence[NDArray[np.int64]]) -> torch.Tensor:
        """Logits of paths in an image following a structure.

        Args:
            features: (F, H, W) of the image.
            paths: M arrays (P, 2) of pixels, row and column.

        Returns:
            (M,).
        """
        head = self.unet.heads[0]
        along = []
        for path in paths:
            rows, columns = torch.from_numpy(np.ascontiguousarray(path.T)).to(features.device)
            values = features[:, rows, columns]
            along.append(torch.cat([values, head(values[None, :, :, None])[0, :, :, 0]]))
        return self.path_head(along) if along else features.new_zeros(0)

    @property
    def stride(self) -> int:
        """As :attr:`UNet.stride`."""
        return self.unet.stride

    @property
    def halo(self) -> int | None:
        """As :attr:`UNet.halo`."""
        return self.unet.halo

    @property
    def receptive_field(self) -> int | None:
        """As :attr:`UNet.receptive_field`."""
        return self.unet.receptive_field


class PathHead(nn.Module):
    """Mean, largest and smallest value of each feature along a path, and two fully connected layers.

    The features are those of the finest level of the decoder and the logit of the segmentation. They know what the
    segmentation knows of the neighbourhood of a pixel, so a path that leaves its structure shows in the smallest
    values, however short the gap is. A head on the coarsest features of the encoder, with the path drawn into the
    image, as in the paper, had learned nothing on DRIVE after 250 steps (area under the ROC curve 0.52); on features
    along the path of the same network a logistic regression had 0.98, on its map alone 0.97.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.hidden, self.last = nn.Linear(3 * channels, _HIDDEN), nn.Linear(_HIDDEN, 1)
        init_kaiming(self)

    def forward(self, along: Sequence[torch.Tensor]) -> torch.Tensor:
        """Logits (M,) of M paths, from the values (channels, P) along each."""
        pooled = torch.stack([torch.cat([values.mean(1), values.amax(1), values.amin(1)]) for values in along])
        logits: torch.Tensor = self.last(torch.relu(self.hidden(pooled)))[:, 0]
        return logits
