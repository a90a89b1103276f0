"""What a prediction is made of: files that are found, opened, and brought to the pixel size of the training."""

import glob
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from biocnn.data.image_headers import IMAGE_SUFFIXES, read_header
from biocnn.data.images import MAX_BYTES
from biocnn.data.lazy_images import LazyImage, from_array, open_lazy, resampled
from biocnn.errors import BiocnnError, DataError, DatasetNotFoundError
from biocnn.inference.regrid import Kind, regrid
from biocnn.tasks.base import Task

PixelSize = tuple[float, float]
Source = str | Path | np.ndarray

SUFFIXES = (*IMAGE_SUFFIXES, ".h5", ".hdf5", ".zarr")
"""Of files that are images, in a folder."""
SAME_SIZE = 1.1
"""Pixel sizes within this factor are taken as they are: a tenth changes the area of a cell by a fifth."""
OTHER_UNIT = 100
"""Pixel sizes that differ by this factor are a mistake, such as nanometres for micrometres, and are refused."""
_INFLATION = 5000
"""Bytes of pixels for each byte of a file, at most; zlib reaches 1,000 on a blank image."""
MAX_PIXELS = 64_000_000
"""Of an image that is predicted in memory."""


@dataclass(frozen=True)
class Reading:
    """How images are read.

    Attributes:
        page: one plane of several, counted from 0.
        channels: names or numbers, in the order of those of the training; None for all.
        key: name of the array in HDF5 or Zarr.
        pixel_size_um: micrometres per pixel, row and column, instead of what files say.
        resample: whether images are resampled to the pixel size of the training when theirs differs by more than 10 %.
        max_bytes: memory that decoding an image, or a tile of a large one, may take.
        max_pixels: of an image that is read as a whole.
    """

    page: int | None = None
    channels: tuple[int | str, ...] | None = None
    key: str | None = None
    pixel_size_um: PixelSize | None = None
    resample: bool = True
    max_bytes: int = MAX_BYTES
    max_pixels: int = MAX_PIXELS


@dataclass(frozen=True, eq=False)
class Opened:
    """An image that is open, and as the network gets it.

    Attributes:
        image: as it is in the file.
        prepared: at the pixel size of the training; `image` itself, unless it had to be resampled.
        flags: what is doubtful about the pixel size, in words.
    """

    image: LazyImage
    prepared: LazyImage
    flags: tuple[str, ...]

    @property
    def resampled_um(self) -> PixelSize | None:
        """Pixel size of `prepared`; None where it is `image` itself."""
        return None if self.prepared is self.image else self.prepared.pixel_size_um

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of `image`."""
        return self.image.shape[0], self.image.shape[1]

    @property
    def scale(self) -> tuple[float, float]:
        """Rows and columns of `image` along a pixel of `prepared`."""
        if self.image.pixel_size_um is None or self.prepared.pixel_size_um is None:
            return 1.0, 1.0
        (rows, columns), (old_rows, old_columns) = self.prepared.pixel_size_um, self.image.pixel_size_um
        return rows / old_rows, columns / old_columns

    def is_large(self, reading: Reading) -> bool:
        """Whether the image, or what is made of it for the network, is too large to be read as a whole."""
        return any(_too_large(image, reading) for image in (self.image, self.prepared))

    def read(self, reading: Reading) -> tuple[np.ndarray, np.ndarray]:
        """All of `image` and all of `prepared`, (H, W, C).

        Raises:
            DataError: if one has more pixels, or takes more memory, than is allowed.
        """
        image = _read_whole(self.image, reading)
        if self.prepared is self.image:
            return image, image
        # From the array, not from the file again.
        whole = from_array(image, self.image.pixel_size_um, self.image.path)
        assert self.prepared.pixel_size_um is not None  # what an image is resampled to
        return image, _read_whole(resampled(whole, self.prepared.pixel_size_um), reading)

    def back(self, values: np.ndarray, kind: Kind) -> NDArray[np.float32]:
        """A map (h, w) of `prepared` on the grid of `image`, (H, W)."""
        return values if self.prepared is self.image else regrid(values, self.shape, self.scale, kind)


def channel_names(task: Task) -> tuple[str, ...]:
    """Names of the channels that a task was trained on, numbers if it does not know them."""
    known = tuple(task.data_description.get("channels", ()))
    return known or tuple(map(str, range(len(task.image_mean))))


def find_images(patterns: Sequence[str | Path]) -> list[str]:
    """Paths of images: files and Zarr folders as they are, globs, all images in folders, and URLs; each once.

    Raises:
        DatasetNotFoundError: if a pattern matches nothing.
    """
    found: dict[str, None] = {}
    for pattern in map(str, patterns):
        if "://" in pattern:
            found[pattern] = None
            continue
        matches = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern, recursive=True), key=_natural)
        paths = [name for match in matches for name in _in_folder(Path(match))]
        if not paths:
            raise DatasetNotFoundError(
                f"No image matches {pattern!r} in {Path.cwd()}. Check the path; of folders, files that end in "
                f"{', '.join(SUFFIXES)} are taken."
            )
        found |= dict.fromkeys(paths)
    return list(found)


def _in_folder(path: Path) -> list[str]:
    if not path.is_dir() or path.suffix.lower() == ".zarr" or (path / "zarr.json").is_file():
        return [str(path)]
    inside = (str(name) for name in path.iterdir() if name.suffix.lower() in SUFFIXES and name.name[0] != ".")
    return sorted(inside, key=_natural)


def _natural(name: str) -> list[tuple[int, str]]:
    """Order in which 2 comes before 10."""
    return [(int(part or 0), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def pages_of(path: str, reading: Reading) -> list[int | None]:
    """The planes of a file that are images of their own; None for the only one, the one asked for, or a damaged file.

    The latter is found out when it is opened.
    """
    if reading.page is not None or "://" in path:
        return [reading.page]
    try:
        planes = read_header(Path(path)).planes if reading.key is None else 1
    except (BiocnnError, OSError):
        return [None]
    return [None] if planes == 1 else list(range(planes))


@contextmanager
def open_source(
    source: Source, reading: Reading, channels: tuple[str, ...], trained_um: PixelSize | None
) -> Iterator[Opened]:
    """Open an image, and resample it where its pixel size asks for it.

    Args:
        source: path, URL, or an array (H, W) or (H, W, C).
        reading: how.
        channels: names of those of the training images.
        trained_um: pixel size of the training images; None if not known.

    Raises:
        DatasetNotFoundError: if there is no such file.
        DataError: if it cannot be read, has another number of channels, or a pixel size that cannot be right.
    """
    if isinstance(source, np.ndarray):
        image = from_array(source)
        if reading.page is not None or reading.key is not None or reading.channels is not None:
            raise DataError("Page, key and channels are of files; take what you want of the array before.")
        yield _prepare(image, reading, channels, trained_um)
        return
    chosen = None if reading.channels is None else list(reading.channels)
    with open_lazy(source, page=reading.page, channels=chosen, key=reading.key, max_bytes=reading.max_bytes) as image:
        _check_inflation(image)
        yield _prepare(image, reading, channels, trained_um)


def _check_inflation(image: LazyImage) -> None:
    """Refuse files of a few kilobytes that say they are terabytes; slides that are nearly blank pass."""
    path, needed = Path(image.path), math.prod(image.shape) * image.dtype.itemsize
    if path.is_file() and needed > max(_INFLATION * path.stat().st_size, MAX_BYTES):
        raise DataError(
            f"{path} declares {image.shape[0]:,} x {image.shape[1]:,} px, {needed / 1e9:,.1f} GB of pixels in a file "
            f"of {path.stat().st_size:,} bytes. It is empty, damaged, or made to fill disks."
        )


def _prepare(image: LazyImage, reading: Reading, channels: tuple[str, ...], trained_um: PixelSize | None) -> Opened:
    if image.shape[2] != len(channels):
        raise DataError(
            f"{image.path} has {image.shape[2]} channel(s) ({', '.join(image.channel_names)}), the model was trained "
            f"on {len(channels)} ({', '.join(channels)}). Choose by --channels, in Python by channels=(...), names or "
            "numbers in this order."
        )
    size = reading.pixel_size_um or image.pixel_size_um
    image = replace(image, pixel_size_um=size)
    if trained_um is None:
        return Opened(image, image, ())
    trained = f"training: {trained_um[0]:g} x {trained_um[1]:g} um"
    if size is None:
        return Opened(image, image, (f"pixel size not known ({trained})",))
    factor = max(max(one / other, other / one) for one, other in zip(size, trained_um, strict=True))
    if factor <= SAME_SIZE:
        return Opened(image, image, ())
    if not reading.resample:
        return Opened(image, image, (f"pixel size {size[0]:g} x {size[1]:g} um ({trained}), not resampled",))
    if factor >= OTHER_UNIT:
        raise DataError(
            f"{image.path} has pixels of {size[0]:g} x {size[1]:g} um, {factor:,.0f} times off those of the training "
            f"({trained_um[0]:g} x {trained_um[1]:g} um). If that is a mistake, say the right size by --pixel-size, in "
            "Python by pixel_size_um=(...); or take the image as it is by --no-resample, resample=False."
        )
    return Opened(image, resampled(image, trained_um), ())


def _too_large(image: LazyImage, reading: Reading) -> bool:
    rows, columns, channels = image.shape
    return rows * columns > reading.max_pixels or image.dtype.itemsize * rows * columns * channels > reading.max_bytes


def _read_whole(image: LazyImage, reading: Reading) -> np.ndarray:
    if _too_large(image, reading):
        rows, columns, channels = image.shape
        raise DataError(
            f"{image.path} has {rows:,} x {columns:,} px, {rows * columns * channels * image.dtype.itemsize / 1e9:,.2f}"
            f" GB, more than the {reading.max_pixels / 1e6:,.0f} million px or {reading.max_bytes / 1e9:,.2f} GB that "
            "are predicted in memory. `biocnn predict` takes larger ones by tiles; in Python raise max_pixels or "
            "max_bytes."
        )
    return image.read(slice(None), slice(None))
