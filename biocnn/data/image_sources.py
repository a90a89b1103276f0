"""What is known of an array in an image file before it is decoded.

Axes are letters, slowest first, as OME-TIFF and OME-Zarr write them: ``Y`` row, ``X`` column, ``C`` channel, ``S`` the
colours of one pixel, ``Z`` depth, ``T`` time, ``I`` a page of unknown meaning. All but Y, X, C and S count planes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isfinite, prod
from typing import Any

import numpy as np

Planes = tuple[int, ...] | None
"""Index of one plane, along all plane axes; None for all planes."""
Index = tuple[int | slice, ...]
"""What to take along each axis of an array."""

ORIENTATION = 0x0112
"""The tag of EXIF and of TIFF that says how the camera was held."""
_MICROMETRES = {"µm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "\\u00B5m": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4}
_MICROMETRES |= {"micrometer": 1.0, "nanometer": 1e-3, "millimeter": 1e3, "centimeter": 1e4}


@dataclass(frozen=True)
class Source:
    """One array in an open file, not yet decoded.

    Attributes:
        axes: a letter for every axis.
        shape: as long as `axes`.
        dtype: of the decoded array.
        read: decodes one plane, without its plane axes, or all.
        by_plane: `read` decodes no more than the plane it is asked for.
        pixel_size_um: micrometres between neighbours along ``Z``, ``Y`` and ``X``, as far as the file says.
        alpha: the last entry along ``S`` is how opaque the pixel is.
        orientation: of the camera, 1 to 8, as defined by EXIF and TIFF; 1 is upright.
        window: decodes a part, given a number for each plane axis, which is left out of the result, and a slice for
            each other; None when only `read` can.
        piece_bytes: memory of the largest piece, such as a tile or a chunk, that `window` has to decode at once; 0
            when the values are stored as they are.
        channel_names: of the entries along ``C``, or none when the file does not say.
    """

    axes: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[Planes], np.ndarray]
    by_plane: bool = True
    pixel_size_um: Mapping[str, float] = field(default_factory=dict)
    alpha: bool = False
    orientation: int = 1
    window: Callable[[Index], np.ndarray] | None = None
    piece_bytes: int = 0
    channel_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (
            len(self.axes) != len(self.shape)
            or len(set(self.axes)) != len(self.axes)
            or not set("YX") <= set(self.axes)
        ):
            raise ValueError(f"axes {self.axes!r} do not fit shape {self.shape}: give a letter for each, with Y and X")
        if 0 in self.shape:
            raise ValueError(f"it is empty: its shape is {self.shape}")
        if self.dtype.kind not in "buif":
            raise ValueError(f"its values are {self.dtype}, expected integers, floats or bool")

    @property
    def plane_shape(self) -> tuple[int, ...]:
        """Lengths of the plane axes."""
        return tuple(length for letter, length in zip(self.axes, self.shape, strict=True) if is_plane(letter))

    def bytes_to_read(self, planes: Planes) -> int:
        """Memory that `read` needs for its result."""
        total = prod(self.shape) * self.dtype.itemsize
        return total // prod(self.plane_shape) if planes is not None and self.by_plane else total


def is_plane(letter: str) -> bool:
    """Whether an axis counts planes."""
    return letter not in "YXCS"


def plane_index(axes: str, planes: Planes) -> Index:
    """Index of an array of these axes that takes one plane, or everything.

    >>> plane_index("TYX", (3,))
    (3, slice(None, None, None), slice(None, None, None))
    """
    places = iter(planes or ())
    return tuple(next(places) if planes and is_plane(letter) else slice(None) for letter in axes)


def micrometres(sizes: Mapping[str, Any], units: Mapping[str, Any]) -> dict[str, float]:
    """Sizes in known units as micrometres; what is missing, not positive or of an unknown unit is left out."""
    known = {axis: (float(size), units.get(axis)) for axis, size in sizes.items() if size is not None}
    return {
        axis: size * _MICROMETRES[unit]
        for axis, (size, unit) in known.items()
        if unit in _MICROMETRES and isfinite(size) and size > 0
    }
