"""A segmentation drawn over its image, and the files of a predicted image: picture, map and mask.

Colours: right is white, wrong has a colour, so that mistakes are what one sees: missed structure is sky blue and false
structure vermilion, both of the palette of Okabe & Ito (2008), which colour-blind readers tell apart; they differ in
lightness as well, for prints in grey. Without a truth what was called is yellow, of the same palette. The image below
is grey and dimmed, so that none of the colours occurs in it.

Notation: `called` and `mask` (H, W) are bool, the structure (vessel, neurite, membrane) as predicted and in truth;
`valid` (H, W) is False where pixels do not count (outside the field of view); None counts all of them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from biocnn.errors import DataError
from biocnn.files import atomic_path
from biocnn.metrics.overlap import Mask, check_mask, confusion

Colour = tuple[int, int, int]
Legend = Sequence[tuple[str, Colour]]

FOUND: Colour = (255, 255, 255)
MISSED: Colour = (86, 180, 233)
FALSE: Colour = (213, 94, 0)
CALLED: Colour = (240, 228, 66)

PERCENTILES = (1, 99)
"""Of the grey values inside `valid`: these become black and white, so that a few hot pixels do not darken the rest."""
DIMMED, DARKENED = 0.6, 0.15
"""Brightness of the grey image inside and outside `valid`: the first keeps white free for what was found."""
OPACITY = 0.85
"""Of the colours: enough of the image shines through to judge a mistake by."""
# Weights of red, green and blue in the luminance of sRGB (ITU-R BT.709).
_LUMINANCE = np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)
_IMAGEJ_BYTES = 2**32 - 2**16
"""ImageJ TIFFs have offsets of 32 bits; less some room for the tags."""


def overlay(
    image: ArrayLike, called: ArrayLike, mask: ArrayLike | None = None, valid: ArrayLike | None = None
) -> NDArray[np.uint8]:
    """Draw found, missed and false structure over a dimmed grey version of the image.

    Three channels are taken as red, green and blue and become their luminance; with another number each channel is
    stretched and the mean is taken, so that none is lost. Outside `valid` the image is darker and without colours. A
    blank image is black.

    Args:
        image: (H, W) or (H, W, C), integers or floats in any range; it is stretched by percentiles inside `valid`.
        called: (H, W) bool, or 0 and 1.
        mask: (H, W) bool, or 0 and 1; None draws the prediction in one colour.
        valid: (H, W) bool; outside it `image`, `called` and `mask` may hold anything.

    Returns:
        (H, W, 3) uint8, red, green and blue.

    Raises:
        DataError: if shapes do not go together, a mask holds anything but 0 and 1, a value of the image inside `valid`
            is not finite, or no pixel is valid.

    Examples:
        >>> overlay([[0, 0, 0]], [[1, 1, 0]], [[1, 0, 1]])[0].tolist()
        [[217, 217, 217], [181, 80, 0], [73, 153, 198]]
    """
    shape = np.shape(called)
    called, mask, inside = _check(called, mask, valid)
    grey = _grey(np.asarray(image), inside, shape)
    brightness = np.where(inside, np.float32(255 * DIMMED), np.float32(255 * DARKENED))
    picture = np.repeat((grey * brightness)[..., None], 3, axis=-1)
    if mask is None:
        layers = [(called, CALLED)]
    else:
        layers = [(called & mask, FOUND), (mask & ~called, MISSED), (called & ~mask, FALSE)]
    for where, colour in layers:
        picture[where] = (1 - OPACITY) * picture[where] + OPACITY * np.array(colour)
    return np.rint(picture).astype(np.uint8)


def overlay_legend(
    called: ArrayLike, mask: ArrayLike | None = None, valid: ArrayLike | None = None
) -> list[tuple[str, Colour]]:
    """What the colours of :func:`overlay` mean, with pixels and shares, for :func:`write_overlay`.

    Found and missed are shares of the true structure, false is a share of what was called; a share of nothing is
    left out.

    Args:
        called: (H, W) bool, or 0 and 1.
        mask: (H, W) bool, or 0 and 1; None for a prediction without truth.
        valid: (H, W) bool; None counts every pixel.

    Raises:
        DataError: if shapes differ, a mask holds anything but 0 and 1, or no pixel is valid.

    Examples:
        >>> overlay_legend([[1, 1, 0, 0]], [[1, 0, 1, 0]])[0]
        ('found: 1 px, 50.0 % of the structure', (255, 255, 255))
    """
    called, mask, inside = _check(called, mask, valid)
    if mask is None:
        return [(_entry("called", int(called.sum()), int(inside.sum()), "the image"), CALLED)]
    count = confusion(called, mask, inside)
    found, missed, false = count.true_positive, count.false_negative, count.false_positive
    return [
        (_entry("found", found, found + missed, "the structure"), FOUND),
        (_entry("missed", missed, found + missed, "the structure"), MISSED),
        (_entry("false", false, found + false, "what was called"), FALSE),
    ]


def write_overlay(path: str | Path, picture: NDArray[np.uint8], legend: Legend = ()) -> None:
    """Write a picture as PNG, with a legend on a strip below it.

    The picture keeps its pixels, in the upper left corner; the strip is below, and as wide as its words need.

    Args:
        path: target file ``.png``; its folder is made when missing.
        picture: (H, W, 3) uint8, as of :func:`overlay`.
        legend: pairs of words and colour, as of :func:`overlay_legend`; empty for no strip.

    Raises:
        DataError: if the picture has another shape or dtype.
        ValueError: if the suffix is not ``.png``.
    """
    target = _with_suffix(path, ".png")
    picture = np.asarray(picture)
    if picture.ndim != 3 or picture.shape[-1] != 3 or picture.size == 0 or picture.dtype != np.uint8:
        raise DataError(f"picture: expected uint8 (H, W, 3), received {picture.dtype} {picture.shape}")
    height, width = picture.shape[:2]
    strip = _draw_legend(width, legend) if legend else np.zeros((0, width, 3), dtype=np.uint8)
    whole = np.zeros((height + len(strip), strip.shape[1], 3), dtype=np.uint8)
    whole[:height, :width] = picture
    whole[height:] = strip
    with atomic_path(target) as temporary:
        Image.fromarray(whole).save(temporary, format="PNG")


def write_map(
    path: str | Path,
    values: ArrayLike,
    pixel_size_um: Sequence[float] | None = None,
    limits: tuple[float, float] = (0.0, 1.0),
) -> None:
    """Write a map as float32 TIFF with its pixel size, as ImageJ does; QuPath and :func:`read_image` know it, too.

    A map of 4 GiB or more, beyond what ImageJ TIFFs can hold, becomes a BigTIFF with its resolution per centimetre.

    Args:
        path: target file ``.tif`` or ``.tiff``; its folder is made when missing.
        values: (H, W) or (D, H, W), numbers of any range; kept as float32.
        pixel_size_um: micrometres between rows and between columns, with those between planes before them where there
            are planes; None writes none.
        limits: what ImageJ shows as black and as white.

    Raises:
        DataError: if the map has another number of axes, or the pixel size does not fit it or is not positive.
        ValueError: if the suffix is another one.
    """
    target = _with_suffix(path, ".tif", ".tiff")
    numbers = np.asarray(values, dtype=np.float32)
    if numbers.ndim not in (2, 3) or numbers.size == 0:
        raise DataError(f"values: expected a map (H, W) or (D, H, W), received shape {numbers.shape}")
    sizes = None if pixel_size_um is None else [float(size) for size in pixel_size_um]
    if sizes is not None and not (2 <= len(sizes) <= numbers.ndim and all(0 < size < np.inf for size in sizes)):
        raise DataError(
            f"pixel_size_um: expected positive micrometres (row, column), or (plane, row, column) of planes, for a map "
            f"of shape {numbers.shape}, received {tuple(sizes)}"
        )
    as_imagej = numbers.nbytes < _IMAGEJ_BYTES
    options: dict[str, Any] = {"imagej": True} if as_imagej else {"bigtiff": True}
    metadata: dict[str, Any] = {"axes": "ZYX"[-numbers.ndim :]}
    if as_imagej:
        metadata.update(min=limits[0], max=limits[1])  # else ImageJ shows the range of this image
    if sizes is not None:
        per_unit = 1.0 if as_imagej else 1e4  # micrometres in an ImageJ file, else in a centimetre
        options["resolution"] = (per_unit / sizes[-1], per_unit / sizes[-2])
        options["resolutionunit"] = "NONE" if as_imagej else "CENTIMETER"
        if as_imagej:
            metadata.update(unit="um", **({"spacing": sizes[0]} if len(sizes) == 3 else {}))
    with atomic_path(target) as temporary:
        tifffile.imwrite(temporary, numbers, photometric="minisblack", metadata=metadata, **options)


def write_mask(path: str | Path, mask: ArrayLike) -> None:
    """Write a mask as 8-bit PNG, 255 on the structure and 0 elsewhere.

    Args:
        path: target file ``.png``; its folder is made when missing.
        mask: (H, W) bool, or 0 and 1.

    Raises:
        DataError: if it has another shape, or holds anything but 0 and 1.
        ValueError: if the suffix is not ``.png``.
    """
    target = _with_suffix(path, ".png")
    structure = check_mask("mask", mask)
    if structure.ndim != 2:
        raise DataError(f"mask: expected (H, W), as a PNG holds one plane, received shape {structure.shape}")
    with atomic_path(target) as temporary:
        Image.fromarray(structure.astype(np.uint8) * np.uint8(255)).save(temporary, format="PNG")


def _with_suffix(path: str | Path, *suffixes: str) -> Path:
    target = Path(path)
    if target.suffix.lower() not in suffixes:
        raise ValueError(f"path: expected a file {' or '.join(suffixes)}, received {target}")
    return target


def _check(called: ArrayLike, mask: ArrayLike | None, valid: ArrayLike | None) -> tuple[Mask, Mask | None, Mask]:
    """Called, mask and valid as bool (H, W); the first two are False outside the third."""
    shape = np.shape(called)
    if len(shape) != 2 or 0 in shape:
        raise DataError(f"called: expected a mask of one image, (H, W), received shape {shape}")
    inside = np.ones(shape, dtype=np.bool_) if valid is None else check_mask("valid", valid, shape)
    if not inside.any():
        raise DataError(f"valid: expected at least one pixel that counts, received none of {inside.size}")
    if mask is not None and np.shape(mask) != shape:
        raise DataError(f"mask: expected shape {shape} as called, received {np.shape(mask)}")
    truth = None if mask is None else check_mask("mask", np.where(inside, mask, 0))
    return check_mask("called", np.where(inside, called, 0)), truth, inside


def _grey(image: np.ndarray, inside: Mask, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """(H, W) in 0..1: luminance of three channels, the mean of the stretched channels of any other number."""
    if image.ndim not in (2, 3) or image.shape[:2] != shape or 0 in image.shape:
        raise DataError(f"image: expected {shape} or {(*shape, 'C')} to go with the masks, received {image.shape}")
    values = image.astype(np.float32).reshape(*shape, -1)
    if not np.isfinite(values[inside]).all():
        raise DataError("image: expected finite values inside valid, received NaN or infinity")
    values = np.nan_to_num(values, posinf=0.0, neginf=0.0)
    if values.shape[-1] == 3:
        values = values @ _LUMINANCE[:, None]
    low, high = np.percentile(values[inside], PERCENTILES, axis=0)
    # Few bright pixels in much black: both percentiles are the background.
    flat = high <= low
    low = np.where(flat, values[inside].min(axis=0), low)
    high = np.where(flat, values[inside].max(axis=0), high)
    stretched = (values - low) / np.where(high > low, high - low, 1.0)
    return np.asarray(np.clip(stretched, 0, 1).mean(axis=-1))


def _entry(name: str, count: int, total: int, whole: str) -> str:
    return f"{name}: {count:,} px" + (f", {100 * count / total:.1f} % of {whole}" if total else "")


def _draw_legend(width: int, legend: Legend) -> NDArray[np.uint8]:
    """A black strip at least `width` wide: entries side by side as far as they fit, a square of colour before each."""
    size = int(np.clip(width / 45, 12, 48))  # readable when the picture fills a slide
    font = ImageFont.load_default(size)
    gap, line = size // 2, round(1.6 * size)
    lengths = [2 * gap + size + round(font.getlength(words)) for words, _ in legend]
    places, row, column = [], 0, gap
    for length in lengths:
        if column > gap and column + length + gap > width:
            row, column = row + 1, gap
        places.append((gap + row * line, column))
        column += length + 2 * gap
    wide = max(width, max(column + length for (_, column), length in zip(places, lengths, strict=True)) + gap)
    strip = Image.new("RGB", (wide, 2 * gap + (row + 1) * line))
    draw = ImageDraw.Draw(strip)
    for (words, colour), (top, left) in zip(legend, places, strict=True):
        edge = top + (line - size) // 2
        draw.rectangle((left, edge, left + size - 1, edge + size - 1), fill=colour)
        draw.text((left + size + gap, top + line / 2), words, fill=(255, 255, 255), font=font, anchor="lm")
    return np.asarray(strip)
