"""Pictures for a page: read from whatever file, made small, and encoded into the page itself."""

import base64
import io
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from biocnn.data.images import read_image
from biocnn.errors import BiocnnError
from biocnn.report.page import Picture

MAX_SIDE = 512
"""Pixels of the longer side of a picture in the gallery: enough for a card at twice its size on a fine display."""
MANY, SMALL_SIDE = 60, 384
"""Entries of a gallery from which its pictures are smaller, so that a page with 200 of them opens within 2 s."""
MAX_BYTES = 1_000_000_000
"""Of a decoded image; larger ones are left out of the gallery rather than read whole."""
QUALITY = 78
"""Of WebP: what it loses is not seen at this size."""
PERCENTILES = (0.5, 99.5)
"""Of the values of a channel that is not of 8 bits: these become black and white."""


def side_for(entries: int) -> int:
    """Pixels of the longer side of a picture in a gallery of so many entries."""
    return MAX_SIDE if entries <= MANY else SMALL_SIDE


def read_pixels(path: Path, page: int | None = None, max_bytes: int = MAX_BYTES) -> NDArray[np.generic] | None:
    """The array of a file: (H, W), or (H, W, C) with channels last; None where it is missing or cannot be shown.

    Args:
        path: of any kind that :func:`biocnn.data.images.read_image` knows.
        page: plane of a stack.
        max_bytes: memory that the decoded array may take.
    """
    try:
        image = read_image(path, page=page, max_bytes=max_bytes)
    except (BiocnnError, OSError):
        return None
    return image.array if image.axes in ("YX", "YXC") else None


def crop_to(pixels: NDArray[np.generic], rows: int, columns: int) -> NDArray[np.generic]:
    """The picture without the legend below it, and without the margin beside it that a long legend needs.

    Args:
        pixels: (H, W) or (H, W, C), at the size of the image or smaller.
        rows: of the image.
        columns: of the image.
    """
    height, width = pixels.shape[:2]
    if height >= rows and width >= columns:
        return pixels[:rows, :columns]
    return pixels[: max(1, round(width * rows / columns))]


def as_colours(pixels: NDArray[np.generic], side: int = MAX_SIDE) -> NDArray[np.uint8]:
    """What a screen shows of an image: 8 bits, grey (h, w) or colours (h, w, 3), the longer side at most `side`.

    Grey and colour of 8 bits stay as they are. Other values are stretched channel by channel; of another number of
    channels than three the mean is shown, so that none is lost.

    Args:
        pixels: (H, W) or (H, W, C), of any dtype; what is not finite counts as 0.
        side: in pixels.
    """
    channels = pixels.reshape(*pixels.shape[:2], -1)
    if pixels.dtype == np.uint8 and channels.shape[2] in (1, 3):
        small = _resize(Pillow.fromarray(channels[..., 0] if channels.shape[2] == 1 else channels), side)
        return np.asarray(small)
    shown = [_stretched(channel, side) for channel in np.moveaxis(channels, 2, 0)]
    values = np.stack(shown, axis=-1) if len(shown) == 3 else np.mean(shown, axis=0)
    return np.asarray(np.rint(255 * values), dtype=np.uint8)


def _stretched(channel: NDArray[np.generic], side: int) -> NDArray[np.float32]:
    """A small channel in 0..1."""
    values = np.nan_to_num(np.ascontiguousarray(channel, dtype=np.float32), posinf=0.0, neginf=0.0)
    small = np.asarray(_resize(Pillow.fromarray(values), side))
    low, high = np.percentile(small, PERCENTILES)
    if high <= low:  # few bright pixels in much black
        low, high = float(small.min()), float(small.max())
    return np.asarray(np.clip((small - low) / (high - low if high > low else 1.0), 0, 1), dtype=np.float32)


def as_map(values: NDArray[np.generic], top: float | None = None, side: int = MAX_SIDE) -> NDArray[np.uint8]:
    """A map in the colours of `inferno`, black to yellow, which are even for the eye and in grey.

    Args:
        values: (H, W), 0 or more.
        top: the value shown brightest; the largest when None.
        side: in pixels.

    Returns:
        (h, w, 3) uint8.
    """
    numbers = np.nan_to_num(np.ascontiguousarray(values, dtype=np.float32), posinf=0.0, neginf=0.0)
    small = np.asarray(_resize(Pillow.fromarray(numbers), side))
    brightest = float(small.max()) if top is None else top
    share = np.clip(small / brightest, 0, 1) if brightest > 0 else np.zeros_like(small)
    return np.asarray(matplotlib.colormaps["inferno"](share, bytes=True)[..., :3])


def _resize(picture: Pillow.Image, side: int) -> Pillow.Image:
    scale = side / max(picture.size)
    if scale >= 1:
        return picture
    size = tuple(max(1, round(length * scale)) for length in picture.size)
    return picture.resize((size[0], size[1]), Pillow.Resampling.BOX if scale < 0.25 else Pillow.Resampling.LANCZOS)


def encoded(kind: str, pixels: NDArray[np.uint8], lossless: bool = False) -> Picture:
    """A picture with its bytes in it, as WebP.

    Args:
        kind: what it is, such as ``"overlay"``.
        pixels: (h, w) or (h, w, 3) uint8.
        lossless: for drawings, which are then smaller as well.
    """
    if kind == "overlay" and max(pixels.shape[:2]) <= MAX_SIDE // 2:
        # WebP keeps colour at half the resolution: thin marks on a small picture would fade.
        pixels = pixels.repeat(2, axis=0).repeat(2, axis=1)
    buffer = io.BytesIO()
    Pillow.fromarray(pixels).convert("RGB").save(buffer, "WEBP", quality=QUALITY, method=2, lossless=lossless)
    uri = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return Picture(kind, uri, pixels.shape[1], pixels.shape[0])
