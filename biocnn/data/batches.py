"""What a loader serves, and its images as floats."""

from collections.abc import Mapping
from typing import Any

import torch

Batch = dict[str, Any]
"""What a loader serves. Keys, as far as a job has them:

``image`` (B, H, W, C) uint8, or (B, C, H, W) float32 in 0..1 after :func:`to_float`; ``label`` (B,) int64; ``mask``
and ``tube`` (B, 1, H, W) float32, 0 and 1; ``distance`` (B, 1, H, W) float32 in pixels; ``valid`` (B, 1, H, W) bool,
False where pixels must not count; ``density`` (B, 1, H, W) float32 in points per pixel; ``points``, a list of B arrays
(n, 2) float32, row and column in pixels; ``count`` (B,) float32, their number; ``index`` (B,) int64, row in the data
set; ``id`` and ``group`` lists of B strings.
"""


def to_float(batch: Mapping[str, Any]) -> Batch:
    """Turn the uint8 images of a batch into float32, on the device they are on.

    uint8 crosses from workers and to the accelerator in a quarter of the bytes; the conversion is done last.

    Args:
        batch: with ``image`` (B, H, W, C) uint8, or already (B, C, H, W) float.

    Returns:
        The batch with ``image`` (B, C, H, W) float32 in 0..1, contiguous.
    """
    image = batch["image"]
    if image.dtype == torch.uint8:
        planes = image.permute(0, 3, 1, 2)
        image = planes.to(torch.float32, memory_format=torch.contiguous_format).mul_(1 / 255)
    return {**batch, "image": image}
