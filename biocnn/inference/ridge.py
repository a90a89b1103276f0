"""A baseline without training: one of scikit-image's ridge filters, with its settings chosen on training images.

Filters of Frangi (1998), Sato (1998) and Meijering (2004) answer to lines by the curvature of the image at given
scales. They say what a network has to beat, and what labelling images buys.

Images are (H, W) or (H, W, C), of any real dtype; volumes are not supported.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from skimage.filters import frangi, meijering, sato
from skimage.morphology import skeletonize

from biocnn.errors import DataError
from biocnn.metrics.overlap import Mask, check_mask
from biocnn.metrics.segmentation import best_dice_threshold, score_histogram

Plane = NDArray[np.float32]

FILTERS: Mapping[str, Callable[..., NDArray[Any]]] = {"sato": sato, "frangi": frangi, "meijering": meijering}
"""Names, in the order in which they are tried: of equally good ones the first is taken."""
GREY = "grey"

# An (H, W, C) array with more channels than this is taken for a volume.
_MOST_CHANNELS = 16
# Rims that are tried, in pixels. The edge of a field of view is blurred: on the 16 training images of DRIVE (Sato,
# green channel) 30 % of the background within 8 px of the edge is called vessel with a rim of 0, 14 % with 3 px, 1 %
# with 6 px, and 5 % further inside; Dice is 0.67, 0.69 and 0.71, and 0.70 with 12 px.
_RIMS = (6, 0, 3, 12)
# Gaussian, in pixels, that the image is averaged with before it is continued outside: the noise of single pixels
# would be drawn out into lines.
_SMOOTHING = 2.0
# Scales in units of half widths: a bar answers most at 1 when the filter multiplies by the square of the scale, as
# Sato's does, at 1 / sqrt(3) when it does not, as Frangi's.
_FACTORS = (1.0, 1 / math.sqrt(3))
# scikit-image cuts its Gaussians at 100 sigma up to a sigma of 1, else at 8: 0.17 s instead of 0.04 s an image of
# DRIVE, for nothing that pixels could show.
_SMALLEST_SIGMA = 1.01
# Of the responses on the structure, in per cent; a maximum would hang on a single pixel.
_HIGH_PERCENTILE = 99.9


@dataclasses.dataclass(frozen=True)
class RidgeFilter:
    """A ridge filter with all its settings; :func:`fit_ridge_filter` chooses them.

    The image is brought to mean 0 and standard deviation 1 first, over the valid pixels inside the rim, so that
    brightness and contrast of the camera do not matter: on the 16 training images of DRIVE (Sato, green channel)
    that raises Dice from 0.69 to 0.71. So a response depends on the whole image, and changes when the image is cropped.

    Attributes:
        name: ``"sato"``, ``"frangi"`` or ``"meijering"``, with the defaults of scikit-image but for what follows. The
            latter two divide by the largest curvature of the image, so where there is no structure, noise answers.
        sigmas: scales, standard deviations of Gaussians in pixels; the largest response counts.
        channel: index of the channel that is filtered, or ``"grey"``, the mean of all.
        dark: whether the structure is darker than what surrounds it.
        rim: width in pixels of the edge of the field of view that is not looked at: there and outside, the image is
            continued by the (smoothed) values of the nearest pixels further inside, because the edge is itself a
            ridge. Structures in the rim are mostly lost. Without effect where everything is valid.
        high: response that becomes 1; greater ones are cut.
        threshold: of the response in 0..1 from which a pixel is called structure.

    Raises:
        ValueError: if a setting is out of its range.
    """

    name: str
    sigmas: tuple[float, ...]
    channel: int | str = GREY
    dark: bool = True
    rim: int = _RIMS[0]
    high: float = 1.0
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if self.name not in FILTERS:
            raise ValueError(f"name: expected one of {', '.join(FILTERS)}, received {self.name!r}")
        if not self.sigmas or not all(math.isfinite(sigma) and sigma > 0 for sigma in self.sigmas):
            raise ValueError(f"sigmas: expected one or more positive numbers of pixels, received {self.sigmas}")
        if self.channel != GREY and not (isinstance(self.channel, int) and self.channel >= 0):
            raise ValueError(f"channel: expected an index or {GREY!r}, received {self.channel!r}")
        if self.rim < 0:
            raise ValueError(f"rim: expected a number of pixels, 0 or more, received {self.rim}")
        if not (math.isfinite(self.high) and self.high > 0):
            raise ValueError(f"high: expected a positive response, received {self.high}")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold: expected a number in 0..1, received {self.threshold}")

    def response(self, image: ArrayLike, valid: ArrayLike | None = None) -> Plane:
        """How much each pixel looks like a part of a line; to be used as `response >= threshold`.

        Args:
            image: (H, W) or (H, W, C), finite where valid.
            valid: (H, W) bool, the field of view; None when all of the image is valid.

        Returns:
            (H, W) float32 in 0..1; 0 outside `valid`, and everywhere on a constant image.

        Raises:
            DataError: if shapes do not go together, the channel is missing, a valid value is no number, or no pixel
                is valid.
        """
        return self._scaled(self._raw(image, valid))

    def _scaled(self, raw: Plane) -> Plane:
        return np.minimum(raw / np.float32(self.high), np.float32(1))

    def _raw(self, image: ArrayLike, valid: ArrayLike | None) -> Plane:
        plane = _take_channel(image, self.channel)
        inside = _check_valid(valid, plane)
        kept = _without_rim(inside, self.rim)
        continued = _continue_outside(_standardise(plane, kept), kept)
        response = FILTERS[self.name](continued, sigmas=self.sigmas, black_ridges=self.dark)
        return np.where(inside, response, 0).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain values, for JSON."""
        return {**dataclasses.asdict(self), "sigmas": list(self.sigmas)}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "RidgeFilter":
        """The filter that :meth:`to_dict` describes.

        Raises:
            DataError: if a setting is missing, unknown or out of its range.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        if set(settings) != set(names):
            raise DataError(f"ridge filter: expected the settings {names}, received {sorted(settings)}")
        try:
            return cls(**{**settings, "sigmas": tuple(settings["sigmas"])})
        except (ValueError, TypeError) as error:
            raise DataError(f"ridge filter: {error}") from error


def fit_ridge_filter(
    images: Sequence[ArrayLike],
    masks: Sequence[ArrayLike],
    valid: Sequence[ArrayLike | None] | None = None,
    most_images: int = 6,
) -> RidgeFilter:
    """Choose all settings of a ridge filter by the Dice of all pixels of training images, each at its best threshold.

    One after the other: channel and polarity; filter and scales, which are taken from the widths of the structure;
    the rim, where there is a field of view. Then the scaling and the threshold, on all images. Nothing is random.

    Time: for the 16 training images of DRIVE (584x565, 3 channels) 18 s of one core.

    Args:
        images: N arrays (H, W) or (H, W, C), with the same channels; sizes may differ.
        masks: N arrays (H, W), 0 and 1.
        valid: N arrays (H, W) bool, or None, which counts every pixel.
        most_images: how many, evenly spaced among `images`, the choices are made on, for speed.

    Raises:
        DataError: if shapes do not go together, no mask has a structure in its field of view, or no filter answers
            on any structure, as on constant images.
        ValueError: if `most_images` is less than 1.
    """
    if most_images < 1:
        raise ValueError(f"most_images: expected 1 or more, received {most_images}")
    fields = _check_fields(images, masks, valid)
    structured = [field for field in fields if field.mask.any()]
    if not structured:
        raise DataError(
            f"masks: expected pixels of the structure inside the field of view, received none in {len(fields)} "
            "images. Which mask values are the structure? See `foreground` of the manifest."
        )
    spaced = np.linspace(0, len(structured) - 1, min(most_images, len(structured))).round().astype(int)
    few = [structured[place] for place in spaced]
    scales = _candidate_scales(few)
    count = few[0].image.shape[2] if few[0].image.ndim == 3 else 1
    channels: list[int | str] = [GREY, *range(count if count > 1 else 0)]
    start = RidgeFilter(next(iter(FILTERS)), scales[0])
    best = _best([dataclasses.replace(start, channel=c, dark=dark) for c in channels for dark in (True, False)], few)
    best = _best([dataclasses.replace(best, name=name, sigmas=sigmas) for name in FILTERS for sigmas in scales], few)
    if not all(field.valid.all() for field in few):
        best = _best([dataclasses.replace(best, rim=rim) for rim in _RIMS], few)
    return _calibrated(best, fields)[0]


@dataclasses.dataclass(frozen=True, eq=False)
class _Field:
    """One training image: (H, W) or (H, W, C); its mask, empty outside the field of view; the field of view."""

    image: np.ndarray
    mask: Mask
    valid: Mask


def _check_fields(
    images: Sequence[ArrayLike], masks: Sequence[ArrayLike], valid: Sequence[ArrayLike | None] | None
) -> list[_Field]:
    known = [None] * len(images) if valid is None else valid
    if not len(images) == len(masks) == len(known) or not len(images):
        raise DataError(
            f"expected one mask, and one valid if any, for each image, and at least one image; received {len(images)} "
            f"images, {len(masks)} masks and {len(known)} valid"
        )
    fields = []
    for number, (image, mask, here) in enumerate(zip(images, masks, known, strict=True)):
        array = np.asarray(image)
        try:
            plane = _take_channel(array, GREY)
            inside = _check_valid(here, plane)
            fields.append(_Field(array, check_mask("mask", mask, plane.shape) & inside, inside))
        except DataError as error:
            raise DataError(f"training image {number}: {error}") from error
    channels = {field.image.shape[2:] for field in fields}
    if len(channels) > 1:
        counts = sorted(shape[0] if shape else 1 for shape in channels)
        raise DataError(f"images: expected the same channels in all of them, received images with {counts}")
    return fields


def _take_channel(image: ArrayLike, channel: int | str) -> Plane:
    array = np.asarray(image)
    colours = array.shape[2:]
    if array.ndim not in (2, 3) or array.size == 0 or (colours and colours[0] > _MOST_CHANNELS):
        raise DataError(
            f"image: expected (H, W), or (H, W, C) of up to {_MOST_CHANNELS} channels, received shape {array.shape}. "
            "Of a volume, filter plane by plane."
        )
    if channel == GREY:
        return array.mean(axis=2, dtype=np.float32) if colours else array.astype(np.float32)
    if not colours or int(channel) >= colours[0]:
        raise DataError(
            f"image: the filter was chosen for channel {channel}, but the image has "
            f"{f'{colours[0]} channels' if colours else 'none, its shape is (H, W)'}."
        )
    return array[..., int(channel)].astype(np.float32)


def _check_valid(valid: ArrayLike | None, plane: Plane) -> Mask:
    inside = np.ones(plane.shape, dtype=np.bool_) if valid is None else check_mask("valid", valid, plane.shape)
    if not inside.any():
        raise DataError(f"valid: expected at least one pixel that counts, received none of {inside.size}")
    if bad := int((~np.isfinite(plane[inside])).sum()):
        raise DataError(f"image: {bad} valid pixels are NaN or infinite. Replace them, or mark them as not valid.")
    return inside


def _without_rim(inside: Mask, rim: int) -> Mask:
    """Pixels deeper than `rim` in the field of view; all of it where it is nowhere wider than its rim."""
    if inside.all():
        return inside
    depth = ndimage.distance_transform_edt(np.pad(inside, 1, mode="edge"))[1:-1, 1:-1]
    return depth > rim if depth.max() > rim else inside


def _standardise(plane: Plane, kept: Mask) -> Plane:
    mean, spread = plane[kept].mean(dtype=np.float64), plane[kept].std(dtype=np.float64)
    # A constant image has no lines, and no spread to divide by but rounding.
    if spread <= 1e-6 * abs(mean):
        return np.zeros_like(plane)
    return ((plane - mean) / spread).astype(np.float32)


def _continue_outside(plane: Plane, kept: Mask) -> Plane:
    """Replace what is not kept by the smoothed value of the nearest kept pixel."""
    if kept.all():
        return plane
    weight = ndimage.gaussian_filter(kept.astype(np.float32), _SMOOTHING)
    values = ndimage.gaussian_filter(np.where(kept, plane, np.float32(0)), _SMOOTHING)
    nearest = tuple(ndimage.distance_transform_edt(~kept, return_distances=False, return_indices=True))
    return np.where(kept, plane, values[nearest] / weight[nearest])


def _candidate_scales(fields: Sequence[_Field]) -> list[tuple[float, ...]]:
    """Sets of scales from the half widths on the centreline that 10, 50 and 90 % of the structure's area are below."""
    radii = np.sort(
        np.concatenate([ndimage.distance_transform_edt(field.mask)[skeletonize(field.mask)] for field in fields])
    )
    # A piece of the centreline stands for an area in proportion to its width.
    area = np.cumsum(radii) / radii.sum()
    thin, middle, thick = (float(radii[np.searchsorted(area, share)]) for share in (0.1, 0.5, 0.9))
    sets = [
        tuple(sorted({round(max(_SMALLEST_SIGMA, factor * radius), 2) for radius in chosen}))
        for factor in _FACTORS
        for chosen in ((middle,), (middle, thick), (thin, middle, thick))
    ]
    return list(dict.fromkeys(sets))


def _calibrated(candidate: RidgeFilter, fields: Sequence[_Field]) -> tuple[RidgeFilter, float]:
    """The filter with the scaling and the threshold that suit these images, and its Dice of all their pixels."""
    raw = [candidate._raw(field.image, field.valid) for field in fields]
    on_structure = np.concatenate([values[field.mask] for values, field in zip(raw, fields, strict=True)])
    high = float(np.percentile(on_structure, _HIGH_PERCENTILE))
    if high <= 0:
        return candidate, 0.0
    scaled = dataclasses.replace(candidate, high=high)
    counts = [
        score_histogram(scaled._scaled(values)[field.valid], field.mask[field.valid])
        for values, field in zip(raw, fields, strict=True)
    ]
    threshold, dice = best_dice_threshold(np.sum(counts, axis=0))
    return dataclasses.replace(scaled, threshold=threshold), dice


def _best(candidates: Sequence[RidgeFilter], fields: Sequence[_Field]) -> RidgeFilter:
    """The candidate with the highest Dice; the first of equal ones."""
    best, dice = max((_calibrated(candidate, fields) for candidate in candidates), key=lambda pair: pair[1])
    if dice == 0:
        raise DataError(
            "images: no ridge filter answers where the masks have a structure. Are the images constant, and do they "
            "belong to these masks?"
        )
    return best
