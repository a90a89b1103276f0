"""Inference over images and volumes of any size, tile by tile.

Notation: C channels of the image, K of the result, S the spatial axes, (H, W) or (D, H, W), B tiles of a batch, T
their sides.

Every axis is covered by windows, each with a weight for every pixel, and the weights at a pixel sum to one. A tile is
one window of each axis, and its weights are their products, which sum to one likewise. So the result is the sum of
the weighted tiles: no second map is needed to divide by, a constant stays what it is, and no pixel counts twice.

With a halo, weights are 0 and 1, and the result is that of the whole image (:func:`cut_axis`). Without one, when a
network has no finite halo, tiles are faded into each other (:func:`blend_axis`).
"""

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch import nn

from biocnn.errors import DataError
from biocnn.networks.views import D4_VIEWS, d4_average

CORES = {2: 512, 3: 64}
"""Side of a tile without its halo by default, in pixels; for the halo 51 of four levels in 2-D and the halo 23 of three
in 3-D that is 1.4 and 5 times the work of the whole image at most."""

AXES = {2: ("rows", "columns"), 3: ("planes", "rows", "columns")}


class Window(NamedTuple):
    """Part of an axis: its first pixel, and the weights (length,) float32 of the pixels from there."""

    start: int
    weight: torch.Tensor

    @property
    def pixels(self) -> slice:
        """Where it lies on the axis."""
        return slice(self.start, self.start + len(self.weight))


def cut_axis(length: int, tile: int, halo: int, stride: int = 1) -> list[Window]:
    """Windows whose cores, of weight 1, follow each other, with `halo` pixels or the end of the axis on either side.

    Windows are of one length, the least with which as many will do, and start at multiples of `stride`, so that
    pooling meets the grid it has in the whole image. They end anywhere: what a layer makes of a cell that is cut in
    two reaches no further than the halo.

    Args:
        length: of the axis in pixels.
        tile: greatest length of a window; an axis that is no longer is one window.
        halo: how far away a pixel can change the result.
        stride: side of the coarsest cell.

    Raises:
        ValueError: if the axis has to be cut and the tile has no room for a core.

    >>> [(window.pixels, window.weight.tolist()) for window in cut_axis(6, 5, 1, 2)]
    [(slice(0, 4, None), [1.0, 1.0, 1.0, 0.0]), (slice(2, 6, None), [0.0, 1.0, 1.0, 1.0])]
    """
    if length <= tile:
        return [Window(0, torch.ones(length))]
    step = (_side(length, tile, halo, stride) - 2 * halo) // stride * stride
    count = math.ceil((length - 2 * halo) / step)
    step = math.ceil((length - 2 * halo) / (count * stride)) * stride
    side = step + 2 * halo + (length - step - 2 * halo) % stride
    windows = []
    for number in range(count):
        last = number == count - 1
        start = length - side if last else number * step
        weight = torch.ones(side)
        if number > 0:
            weight[: number * step + halo - start] = 0
        if not last:
            weight[step + halo :] = 0
        windows.append(Window(start, weight))
    return windows


def blend_axis(length: int, tile: int, overlap: float, stride: int = 1) -> list[Window]:
    """Evenly spread windows that overlap, weighted with Gaussians.

    Windows are of one length, their standard deviation is an eighth of it, and neighbours overlap at least by
    `overlap`, as in nnU-Net (Isensee et al. 2021, Nature Methods 18, 203-211). Unlike there, windows start at
    multiples of `stride`.

    Args:
        length: of the axis in pixels.
        tile: length of a window, or up to `stride - 1` more than it. An axis that is no longer is one window.
        overlap: of neighbours, as a fraction of the window, in 0..1 without 1; less, if the stride is greater than
            what is left.
        stride: side of the coarsest cell.

    Raises:
        ValueError: if the axis has to be cut and the tile is less than `2 * stride - 1`.

    >>> [window.pixels for window in blend_axis(100, 41, 0.25, 2)]
    [slice(0, 40, None), slice(30, 70, None), slice(60, 100, None)]
    """
    if length <= tile:
        return [Window(0, torch.ones(length))]
    side = _side(length, tile, 0, stride)
    step = max(1, int(side * (1 - overlap)) // stride) * stride
    count = math.ceil((length - side) / step) + 1
    # Rounded up to the stride, they are still no further apart than a step, and the last one ends with the axis.
    starts = [math.ceil(number * (length - side) / ((count - 1) * stride)) * stride for number in range(count)]
    # At the ends it is exp(-8), which is far from nothing.
    bell = torch.exp(-0.5 * ((torch.arange(side, dtype=torch.float64) - (side - 1) / 2) / (side / 8)) ** 2)
    total = torch.zeros(length, dtype=torch.float64)
    for start in starts:
        total[start : start + side] += bell
    return [Window(start, (bell / total[start : start + side]).float()) for start in starts]


def _side(length: int, tile: int, halo: int, stride: int) -> int:
    """Greatest length up to `tile` that windows can all have: the last one, too, starts at a multiple of the stride."""
    if tile < (least := 2 * halo + 2 * stride - 1):
        raise ValueError(
            f"A tile of {tile} pixels is too small for an image of {length}, a halo of {halo} and a stride of "
            f"{stride}: make tiles at least {least} pixels long."
        )
    return tile - (tile - length) % stride


def tiling_of(network: nn.Module) -> tuple[int | None, int]:
    """Halo and stride for :func:`predict_tiles`: those of a network that has a `halo`, such as `UNet`, or (None, 1).

    >>> tiling_of(nn.Conv2d(3, 1, 3, stride=2))
    (None, 1)
    """
    return (network.halo, network.stride) if hasattr(network, "halo") else (None, 1)  # type: ignore[return-value]


def predict_tiles(
    function: Callable[[torch.Tensor], torch.Tensor],
    image: torch.Tensor,
    tile: int | Sequence[int] | None = None,
    halo: int | None = None,
    stride: int = 1,
    overlap: float = 0.25,
    batch_size: int = 1,
    views: int = 1,
    device: torch.device | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> torch.Tensor:
    """Result of a network over an image of any size, tile by tile.

    With a halo, tiles are cut at the ends of the image, not padded, and the result is that of the whole image but
    for rounding, so the sum of a density map is exact. Besides the image there are in memory the result and what one
    batch of tiles needs. Larger tiles cost less time, as less of them is halo.

    Args:
        function: (B, C, *T) float -> (B, K, *T), such as a network in evaluation mode. It gets the values of the
            image as they are, and normalises them if need be. Gradients are off.
        image: (C, *S) of any type; tiles of integers become float32 after they are cut, so that an image of bytes
            stays one. `torch.from_numpy(pixels).permute(2, 0, 1)` is such an image without a copy.
        tile: greatest side of a tile in pixels, halo included, the same for all axes or one for each; by default
            :data:`CORES` and a halo on either side. With a halo, sides are the least with which as many tiles do;
            without one best are those of the patches in training. An axis that is no longer is not cut.
        halo: how far away a pixel can change the result, from :func:`tiling_of`; None for a network in which every
            pixel can, by instance norm or global pooling.
        stride: side of the coarsest cell of the network. Tiles start at multiples of it, so that pooling meets the
            grid it has in the whole image; for that they are up to `stride - 1` pixels smaller. A network that takes
            no other sides than multiples of 32, say, needs 1 here, or an image of such sides.
        overlap: without a halo, the least overlap of neighbouring tiles as a fraction of the tile.
        batch_size: tiles in one call of the function; memory grows with it.
        views: 1 to 8 symmetries of the square, over whose results the mean is taken; the image is turned before it
            is cut, so the views are exact too. In 3-D rows and columns are turned, planes stay.
        device: where the function runs; that of the image by default.
        progress: called with the number of tiles done and of all tiles, after every batch.

    Returns:
        (K, *S) float32, on the device of the image.

    Raises:
        ValueError: if an argument is out of its range, a tile is too small for its halo, or the function returns
            another shape.
        DataError: if the image is empty or has another number of axes, or a result is not finite.
    """
    size = image.shape[1:]
    if image.ndim not in (3, 4) or image.numel() == 0:
        raise DataError(
            f"An image is (C, H, W) or (C, D, H, W) with at least one pixel, received {tuple(image.shape)}; images of "
            "a batch are predicted one by one."
        )
    sides = _sides(tile, halo, len(size))
    _check(halo, stride, overlap, batch_size, views)

    def grid(shape: Sequence[int]) -> list[tuple[Window, ...]]:
        axes = [
            blend_axis(length, side, overlap, stride) if halo is None else cut_axis(length, side, halo, stride)
            for length, side in zip(shape, sides, strict=True)
        ]
        return list(product(*axes))

    turned = (*size[:-2], size[-1], size[-2])
    total = sum(len(grid(turned if number % 2 else size)) for number in range(views))
    done = 0

    def predict(view: torch.Tensor) -> torch.Tensor:
        nonlocal done
        result = torch.empty(0)
        tiles_of_view = grid(view.shape[1:])
        for first in range(0, len(tiles_of_view), batch_size):
            tiles = tiles_of_view[first : first + batch_size]
            outputs = _call(function, view, tiles, device or view.device)
            if result.numel() == 0:
                result = torch.zeros(outputs.shape[1], *view.shape[1:], device=view.device)
            _add(result, outputs, tiles)
            del outputs  # freed before the next call, it leaves no hole in the heap
            done += len(tiles)
            if progress is not None:
                progress(done, total)
        return result

    return d4_average(predict, image, views)


def _sides(tile: int | Sequence[int] | None, halo: int | None, dimensions: int) -> tuple[int, ...]:
    """Side of the tiles along every axis."""
    if tile is None:
        tile = CORES[dimensions] + 2 * (halo or 0)
    sides = (tile,) * dimensions if isinstance(tile, int) else tuple(tile)
    if len(sides) != dimensions or min(sides) < 1:
        raise ValueError(
            f"tile must be one positive side or {dimensions}, for {', '.join(AXES[dimensions])}; received {tile}."
        )
    return sides


def _check(halo: int | None, stride: int, overlap: float, batch_size: int, views: int) -> None:
    least = {"halo": (halo or 0, 0), "stride": (stride, 1), "batch_size": (batch_size, 1)}
    for name, (value, bound) in least.items():
        if value < bound:
            raise ValueError(f"{name} must be at least {bound}, received {value}.")
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap must be a fraction of the tile, at least 0 and less than 1, received {overlap}.")
    if not 1 <= views <= D4_VIEWS:
        raise ValueError(f"views must be 1 to {D4_VIEWS}, received {views}.")


def _pixels(tile: tuple[Window, ...]) -> tuple[slice, ...]:
    return (slice(None), *(window.pixels for window in tile))


def _call(
    function: Callable[[torch.Tensor], torch.Tensor],
    image: torch.Tensor,
    tiles: list[tuple[Window, ...]],
    device: torch.device | str,
) -> torch.Tensor:
    """Results of one batch of tiles, (B, K, *T) float32 on the device of the image."""
    batch = torch.stack([image[_pixels(tile)] for tile in tiles]).to(device)
    batch = batch if batch.is_floating_point() else batch.float()
    with torch.inference_mode():
        outputs = function(batch)
    if not isinstance(outputs, torch.Tensor):
        raise ValueError(
            f"The function has to return one tensor, received {type(outputs).__name__}; a network with deep "
            "supervision does so in evaluation mode."
        )
    expected = (len(batch), *batch.shape[2:])
    if (*outputs.shape[:1], *outputs.shape[2:]) != expected:
        raise ValueError(
            f"For tiles {tuple(batch.shape)} the function has to return (B, K, *T) = "
            f"({expected[0]}, K, {', '.join(map(str, expected[1:]))}), received {tuple(outputs.shape)}."
        )
    outputs = outputs.to(image.device, torch.float32)
    if not outputs.isfinite().all():
        broken = next(tile for tile, output in zip(tiles, outputs, strict=True) if not output.isfinite().all())
        spans = [
            f"{axis} {window.pixels.start}..{window.pixels.stop - 1}"
            for axis, window in zip(AXES[len(broken)], broken, strict=True)
        ]
        raise DataError(
            f"The result of the tile at {', '.join(spans)} has values that are not finite. Look for such values in "
            "the image there and in the weights; with half precision, predict with single."
        )
    return outputs


def _add(result: torch.Tensor, outputs: torch.Tensor, tiles: list[tuple[Window, ...]]) -> None:
    """Add the weighted outputs (B, K, *T) to the result (K, *S)."""
    if outputs.shape[1] != len(result):
        raise ValueError(f"The function returned {len(result)} channels at first, and now {outputs.shape[1]}.")
    for tile, output in zip(tiles, outputs, strict=True):
        weight = tile[0].weight
        for window in tile[1:]:
            weight = weight[..., None] * window.weight
        result[_pixels(tile)].addcmul_(output, weight.to(result.device))
