"""Paths in an image of any size through a network that classifies them, a tile for each.

Notation: M paths, P pixels of a path, C channels, T sides of a tile.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

Pixels = NDArray[np.int64]

# Pixels of the image around a path that is too long for a tile: what its ends join is still seen.
MARGIN = 16


def draw_paths(paths: Sequence[Pixels], shape: tuple[int, int]) -> torch.Tensor:
    """Paths (P, 2), row and column, drawn each into a picture of its own, 1 on its pixels: (M, 1, H, W) float32.

    >>> draw_paths([np.array([(0, 0), (1, 1)])], (2, 2))
    tensor([[[[1., 0.],
              [0., 1.]]]])
    """
    drawn = torch.zeros(len(paths), 1, *shape)
    for picture, path in zip(drawn[:, 0], paths, strict=True):
        rows, columns = torch.from_numpy(np.ascontiguousarray(path.T))
        picture[rows, columns] = 1
    return drawn


def path_window(path: Pixels, shape: tuple[int, int], tile: int) -> tuple[slice, slice]:
    """The tile of a path: `tile` pixels a side, centred on the path as far as the border of the image lets it.

    A path that does not fit in with 16 pixels on either side has a larger one; no tile is larger than the image.
    """
    window = []
    for low, high, size in zip(path.min(0).tolist(), path.max(0).tolist(), shape, strict=True):
        side = min(max(tile, high - low + 1 + 2 * MARGIN), size)
        start = min(max((low + high + 1 - side) // 2, 0), size - side)
        window.append(slice(start, start + side))
    return window[0], window[1]


def path_tile_logits(
    function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    image: torch.Tensor,
    paths: Sequence[Pixels],
    tile: int = 128,
    batch_size: int = 16,
) -> torch.Tensor:
    """What a network says of paths in an image, each in a tile of its own. Gradients are off.

    Args:
        function: images (B, C, *T) and paths (B, 1, *T) to logits (B,), such as :meth:`DualUseUNet.path_logits` in
            evaluation mode after a normalisation.
        image: (C, H, W) float.
        paths: M arrays (P, 2) of pixels, row and column.
        tile: side of a tile in pixels, best that of the training, see :func:`path_window`.
        batch_size: paths in one call of the function; tiles of one call are of one size.

    Returns:
        (M,) float32, on the device of the image.

    Raises:
        ValueError: if a tile or a batch has no room for anything, or a path leaves the image.
    """
    if tile < 1 or batch_size < 1:
        raise ValueError(f"tile and batch_size must be at least 1, received {tile} and {batch_size}.")
    shape = (image.shape[1], image.shape[2])
    for number, path in enumerate(paths):
        if path.ndim != 2 or path.shape[1] != 2 or not len(path) or (path < 0).any() or (path >= shape).any():
            raise ValueError(
                f"Path {number}, of shape {path.shape}, is not one of pixels (row, column) of an image of {shape}."
            )
    windows = [path_window(path, shape, tile) for path in paths]
    alike: dict[tuple[int, int], list[int]] = defaultdict(list)
    for number, (rows, columns) in enumerate(windows):
        alike[rows.stop - rows.start, columns.stop - columns.start].append(number)
    result = image.new_empty(len(paths), dtype=torch.float32)
    for sides, numbers in alike.items():
        for first in range(0, len(numbers), batch_size):
            batch = numbers[first : first + batch_size]
            tiles = torch.stack([image[:, windows[number][0], windows[number][1]] for number in batch])
            corners = [np.array([window.start for window in windows[number]]) for number in batch]
            drawn = draw_paths([paths[number] - low for number, low in zip(batch, corners, strict=True)], sides)
            with torch.inference_mode():
                result[batch] = function(tiles, drawn.to(image.device)).float()
    return result
