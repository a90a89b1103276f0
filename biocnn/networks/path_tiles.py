"""Paths in an image of any size through a network that classifies them, all that are in a tile at once.

Notation: M paths, P pixels of a path, C channels, T sides of a tile.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

Pixels = NDArray[np.int64]
Window = tuple[slice, slice]

MARGIN = 16
"""Pixels of the image around a path that is too long for a tile: what its ends join is still seen."""


def path_window(path: Pixels, shape: tuple[int, int], tile: int) -> Window:
    """The tile of a path: `tile` pixels a side, one of a grid of tiles that overlap by half.

    It is the one whose middle is nearest to that of the path. A path that is longer than half of it along an axis has
    a tile of its own there, with the path in its middle and 16 pixels on either side, as far as the border of the image
    lets it. No tile is larger than the image.
    """
    window = []
    for low, high, size in zip(path.min(0).tolist(), path.max(0).tolist(), shape, strict=True):
        length = high - low + 1
        if 2 * length <= tile:
            side, step = min(tile, size), max(tile // 2, 1)
            start = round(((low + high + 1) / 2 - side / 2) / step) * step
        else:
            side = min(max(tile, length + 2 * MARGIN), size)
            start = (low + high + 1 - side) // 2
        start = min(max(start, 0), size - side)
        window.append(slice(start, start + side))
    return window[0], window[1]


def path_tile_logits(
    function: Callable[[torch.Tensor, Sequence[Pixels]], torch.Tensor],
    image: torch.Tensor,
    paths: Sequence[Pixels],
    tile: int = 128,
) -> torch.Tensor:
    """What a network says of paths in an image, tile by tile. Gradients are off.

    Args:
        function: a tile (1, C, *T), with M paths (P, 2) in it, to logits (M,), with a network in evaluation mode.
        image: (C, H, W) float.
        paths: M arrays (P, 2) of pixels, row and column.
        tile: side of a tile in pixels, best that of the training, see :func:`path_window`.

    Returns:
        (M,) float32, on the device of the image.

    Raises:
        ValueError: if the tile has no room for anything, or a path leaves the image.
    """
    if tile < 1:
        raise ValueError(f"tile must be at least 1, received {tile}.")
    shape = (image.shape[1], image.shape[2])
    for number, path in enumerate(paths):
        if path.ndim != 2 or path.shape[1] != 2 or not len(path) or (path < 0).any() or (path >= shape).any():
            raise ValueError(
                f"Path {number}, of shape {path.shape}, is not one of pixels (row, column) of an image of {shape}."
            )
    together: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, path in enumerate(paths):
        rows, columns = path_window(path, shape, tile)
        together[rows.start, rows.stop, columns.start, columns.stop].append(number)
    result = image.new_empty(len(paths), dtype=torch.float32)
    for (top, bottom, left, right), numbers in sorted(together.items()):
        corner = np.array([top, left])
        with torch.inference_mode():
            logits = function(image[None, :, top:bottom, left:right], [paths[number] - corner for number in numbers])
            result[numbers] = logits.float()
    return result
