"""Iterative refinement: a network that is given its own previous map.

Reference: Mosinska, Marquez-Neila, Kozinski, Fua: Beyond the pixel-wise loss for topology-aware delineation. CVPR 2018,
arXiv 1712.02190, section 3.3.
"""

from collections.abc import Iterator

import torch
from torch import nn

Output = torch.Tensor | list[torch.Tensor]
"""Logits, or those of several depths in training, the finest first."""


def refine(network: nn.Module, image: torch.Tensor, steps: int) -> Iterator[Output]:
    """Outputs of `steps` calls of one network, each with the map of the call before as a last channel, 0 at first.

    Gradients flow through the maps, from every step to all before.

    Args:
        network: (B, C + 1, *S) to logits (B, 1, *S), or a list of them.
        image: (B, C, *S) normalised.
        steps: at least 1.

    Yields:
        What the network returns, `steps` times.
    """
    previous = image.new_zeros(len(image), 1, *image.shape[2:])
    for _ in range(steps):
        output = network(torch.cat([image, previous], 1))
        yield output
        previous = torch.sigmoid(finest(output)).to(image.dtype)


def finest(output: Output) -> torch.Tensor:
    """The logits of full depth."""
    return output[0] if isinstance(output, list) else output
