"""Test-time augmentation over the symmetries of the square."""

from collections.abc import Callable

import torch

D4_VIEWS = 8


def d4_view(image: torch.Tensor, number: int) -> torch.Tensor:
    """One of the eight symmetries of the square applied to the last two axes.

    Args:
        image: (..., H, W) with H = W for odd quarter turns to keep the shape.
        number: 0..7; 0 is the image itself, 1 to 3 its quarter turns, 4 to 7 the same of its mirror image.

    Raises:
        ValueError: if `number` is not in 0..7.
    """
    if not 0 <= number < D4_VIEWS:
        raise ValueError(f"There are views 0 to {D4_VIEWS - 1}, received {number}.")
    mirrored = image.flip(-1) if number >= 4 else image
    return torch.rot90(mirrored, number % 4, (-2, -1))


def view_logits(network: Callable[[torch.Tensor], torch.Tensor], image: torch.Tensor, views: int) -> torch.Tensor:
    """Logits of the first `views` symmetries of every image, one pass each so that memory does not grow.

    Args:
        network: (B, C, H, W) -> (B,) logits.
        image: (B, C, H, W).
        views: 1 (the image itself) to 8.

    Returns:
        (B, views).
    """
    return torch.stack([network(d4_view(image, number)) for number in range(views)], 1)
