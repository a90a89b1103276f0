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


def d4_inverse(image: torch.Tensor, number: int) -> torch.Tensor:
    """Undo :func:`d4_view` of the same number: (..., H, W) of the view to that of the image.

    >>> view = d4_view(torch.arange(6).reshape(2, 3), 5)
    >>> d4_inverse(view, 5)
    tensor([[0, 1, 2],
            [3, 4, 5]])
    """
    turned = torch.rot90(image, -(number % 4), (-2, -1))
    return turned.flip(-1) if number >= 4 else turned


def d4_average(
    function: Callable[[torch.Tensor], torch.Tensor], image: torch.Tensor, views: int = D4_VIEWS
) -> torch.Tensor:
    """Mean over the first `views` symmetries of what a function makes of every pixel of an image.

    The function sees one view at a time, and its result is turned back, so memory does not grow with the views.

    Args:
        function: (..., C, H, W) -> (..., K, H, W), for H and W exchanged too, as fully convolutional networks do.
        image: (..., C, H, W); axes before the last two are not turned, in 3-D the planes.
        views: 1 (the image itself) to 8.

    Returns:
        (..., K, H, W): of one view what the function returns, of more their mean, float32 at least.
    """
    mean = function(image)
    if views == 1:
        return mean
    mean = mean.to(torch.promote_types(mean.dtype, torch.float32)) / views
    for number in range(1, views):
        mean.add_(d4_inverse(function(d4_view(image, number)), number), alpha=1 / views)
    return mean


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
