"""Images and masks read as they were written: dtype, axes, colours and pixel size are kept, or an error says why."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from biocnn.data.image_files import open_sources
from biocnn.data.image_sources import Planes, Source, is_plane
from biocnn.errors import DataError

MAX_BYTES = 4_000_000_000
"""Memory that one decoded image may take, unless a caller allows more."""
_SHOWN = 8


@dataclass(frozen=True, eq=False)
class Image:
    """An image and what its file says about it.

    Attributes:
        array: (row, column), (row, column, channel), (plane, row, column) or (plane, row, column, channel), in the
            dtype of the file and the byte order of this computer. An axis of length 1 other than row and column is
            left out.
        axes: its axes, ``"YX"``, ``"YXC"``, ``"ZYX"`` or ``"ZYXC"``: row Y, column X, channel C. Planes are ``Z``
            when they are depth, ``T`` when they are time, ``I`` when the file does not say.
        pixel_size_um: micrometres between neighbours, row then column, with the distance of planes before them
            when these are depth and the file says it; None when it says nothing.
        source: path of the file.
    """

    array: np.ndarray
    axes: str
    pixel_size_um: tuple[float, ...] | None
    source: Path

    def __repr__(self) -> str:
        size = "no pixel size" if self.pixel_size_um is None else f"pixel size {self.pixel_size_um} um"
        return f"Image({self.axes} {self.array.shape} {self.array.dtype}, {size}, {self.source})"


def read_image(
    path: str | Path,
    *,
    page: int | None = None,
    channels: int | Sequence[int] | None = None,
    key: str | None = None,
    axes: str | None = None,
    max_bytes: int = MAX_BYTES,
) -> Image:
    """Read an image of any kind; the kind is told by the content of the file, not by its name.

    What happens where readers differ:

    - PNG keeps 8 or 16 bits per colour; 1, 2 and 4 bits are spread over 0..255. Colours are red, green, blue.
    - A palette (PNG, GIF, BMP, TIFF) is applied: one value per pixel if all its entries are grey, else colours. The
      indices are never returned. Exceptions are TIFFs by ImageJ: its tables colour the display of grey values and
      labels, which are kept. A mask whose labels are indices of a colour table cannot be told from a colour picture;
      :func:`read_mask` refuses it.
    - An alpha channel is left out; colours below it stay as they are stored, not blended with a background. In TIFF
      that is a last sample which the file calls alpha; a fourth channel of unknown meaning is kept, and so are those
      of HDF5 and Zarr.
    - The rotation that a camera noted (EXIF, or the orientation tag of a TIFF) is applied. So it has to be to the
      mask: one drawn on the rotated image and saved without the note fits.
    - Several pages are planes of one array and never reduced to the first. Pages of different shapes, or along two
      axes such as time and depth, need `page`; thumbnails and reduced copies in a TIFF do not count, nor does what
      phones add behind the photograph in a JPEG.
    - TIFF values are returned as stored, also where 0 is to be shown white; 1 bit becomes 0 and 255. Pixel sizes
      come from OME, from ImageJ, or from a resolution per centimetre; dots per inch are settings for printers.
    - HDF5 and Zarr arrays without names of their axes are (row, column), (plane, row, column), or (row, column,
      channel) if the last axis has up to 4 entries, or (plane, row, column, channel). Of OME-Zarr the full
      resolution is read. A chunk that is not there has the fill value, as Zarr defines it.

    Args:
        path: PNG, JPEG, GIF, BMP, TIFF, OME-TIFF or HDF5 file, or Zarr folder.
        page: one plane of several, counted from 0 through all plane axes, and through all pages of a TIFF.
        channels: one channel, whose axis is then left out, or several, in this order.
        key: name of the array in HDF5 or Zarr; not needed when there is one only.
        axes: letters of the axes as they are in the file, such as ``"CYX"``, where it says nothing or is wrong.
        max_bytes: memory that the decoded array may take, checked before it is decoded.

    Raises:
        DatasetNotFoundError: if there is no such file.
        DataError: if it is truncated, damaged, too large, of no known kind, or needs `page`, `key` or `axes`; or has
            no such page, channel or key.

    Example:
        >>> from skimage import data
        >>> import tempfile, tifffile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     tifffile.imwrite(f"{folder}/cells.ome.tif", data.microaneurysms(), metadata={"PhysicalSizeX": 0.5,
        ...         "PhysicalSizeY": 0.5, "axes": "YX"})
        ...     image = read_image(f"{folder}/cells.ome.tif")
        >>> image.axes, image.array.shape, image.pixel_size_um
        ('YX', (102, 102), (0.5, 0.5))
    """
    path = Path(path)
    with open_sources(path, key, axes) as sources:
        source, planes = find_plane(path, sources, page)
        needed = source.bytes_to_read(planes)
        if needed > max_bytes:
            raise DataError(
                f"{path} is {_look(source)} and takes {needed / 1e9:,.2f} GB in memory, more than the "
                f"{max_bytes / 1e9:,.2f} GB of the limit. Read one `page`, cut it into smaller files, or raise "
                "`max_bytes`."
            )
        array, letters = _arrange(source, source.read(planes), planes)
    if channels is not None:
        array, letters = _take_channels(path, array, letters, channels)
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    return Image(np.ascontiguousarray(native), letters, _pixel_size(source, letters), path)


def _look(source: Source) -> str:
    return f"{source.axes} {'x'.join(map(str, source.shape))} {source.dtype}"


def find_plane(path: str | Path, sources: list[Source], page: int | None) -> tuple[Source, Planes]:
    """The array that a page is in and the place of the page there.

    Args:
        path: for the message of the error.
        sources: what is in the file.
        page: counted from 0 through all planes of all sources; None for the only source as it is.

    Raises:
        DataError: if there is no such page, or `page` is None and there are several sources or plane axes.
    """
    if page is None:
        if len(sources) > 1:
            looks = ", ".join(map(_look, sources[:_SHOWN]))
            raise DataError(f"{path} has {len(sources)} images of different kinds ({looks}). Choose one by `page`.")
        if sum(length > 1 for length in sources[0].plane_shape) > 1:
            raise DataError(
                f"{path} is {_look(sources[0])}: planes along more than one axis. Choose one plane by `page`, 0 to "
                f"{prod(sources[0].plane_shape) - 1}."
            )
        return sources[0], None
    before = 0
    for source in sources:
        count = prod(source.plane_shape)
        if 0 <= page - before < count:
            return source, tuple(int(place) for place in np.unravel_index(page - before, source.plane_shape))
        before += count
    raise DataError(f"{path} has the pages 0 to {before - 1}, received page={page}.")


def _arrange(source: Source, array: np.ndarray, planes: Planes) -> tuple[np.ndarray, str]:
    """Axes in the order plane, row, column, channel; alpha left out, upright."""
    letters = "".join(letter for letter in source.axes if planes is None or not is_plane(letter))
    order = sorted(letters, key=lambda letter: "YXCS".find(letter))  # planes, which are not in it, come first
    array = array.transpose([letters.index(letter) for letter in order])
    if source.alpha:
        array = array[..., :-1]
    rows = order.index("Y")
    count, channels = prod(array.shape[:rows]), prod(array.shape[rows + 2 :])
    long = [letter for letter, length in zip(order, array.shape[:rows], strict=False) if length > 1]
    shape, letters = array.shape[rows : rows + 2], "YX"
    if count > 1:
        shape, letters = (count, *shape), (long[0] if long[0] in "ZT" else "I") + letters
    if channels > 1:
        shape, letters = (*shape, channels), letters + "C"
    return upright(array.reshape(shape), source.orientation, letters.index("Y")), letters


def upright(array: np.ndarray, orientation: int, row_axis: int = 0) -> np.ndarray:
    """Undo the rotation or reflection that EXIF and TIFF number 1 to 8; columns follow the axis of rows.

    >>> upright(np.array([[1, 2, 3], [4, 5, 6]]), 6)
    array([[4, 1],
           [5, 2],
           [6, 3]])
    """
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(row_axis, row_axis + 1)
    if orientation in (3, 4, 7, 8):
        array = np.flip(array, row_axis)
    if orientation in (2, 3, 6, 7):
        array = np.flip(array, row_axis + 1)
    return array


def size_in_plane(source: Source) -> tuple[float, float] | None:
    """Micrometres per pixel of the upright image, row then column; None when the file does not say both."""
    sizes = source.pixel_size_um
    if "Y" not in sizes or "X" not in sizes:
        return None
    return (sizes["Y"], sizes["X"]) if source.orientation < 5 else (sizes["X"], sizes["Y"])


def _pixel_size(source: Source, letters: str) -> tuple[float, ...] | None:
    size = size_in_plane(source)
    if size is None or letters[0] != "Z" or "Z" not in source.pixel_size_um:
        return size
    return (source.pixel_size_um["Z"], *size)


def _take_channels(
    path: Path, array: np.ndarray, letters: str, channels: int | Sequence[int]
) -> tuple[np.ndarray, str]:
    if not letters.endswith("C"):
        array, letters = array[..., None], f"{letters}C"
    wanted = [channels] if isinstance(channels, int) else list(channels)
    if not wanted or not all(0 <= channel < array.shape[-1] for channel in wanted):
        raise DataError(f"{path} has the channels 0 to {array.shape[-1] - 1}, received channels={channels}.")
    return (array[..., channels], letters[:-1]) if isinstance(channels, int) else (array[..., wanted], letters)


def read_mask(
    path: str | Path,
    values: Collection[int] | None = None,
    *,
    page: int | None = None,
    key: str | None = None,
    max_bytes: int = MAX_BYTES,
) -> np.ndarray:
    """Read a label image and check its values.

    Colours are read as their largest channel, so that white on black and red on black say the same. Two colours with
    the same largest channel, such as red and blue, would become one label and are refused: that is also how the
    index images of some data sets, with a colour for each label, are found out.

    Args:
        path: file as for :func:`read_image`.
        values: all values that may occur, such as the `mask_values` of a manifest; None for no check.
        page: one plane of several.
        key: name of the array in HDF5 or Zarr.
        max_bytes: memory that the decoded array may take.

    Returns:
        (H, W), or (D, H, W) of several planes, in the dtype of the file; palettes are applied and 1-bit images are 0
        and 255.

    Raises:
        DatasetNotFoundError: if there is no such file.
        DataError: if it cannot be read, has other values than those allowed, or colours that cannot be told apart.
    """
    image = read_image(path, page=page, key=key, max_bytes=max_bytes)
    labels = image.array
    if image.axes.endswith("C"):
        labels = labels.max(axis=-1)
        _check_colours(image.source, image.array, labels)
    if values is not None:
        found = np.unique(labels)
        if strange := found[~np.isin(found, list(values))].tolist():
            raise DataError(_describe_strange(image.source, strange, found.tolist(), sorted(values)))
    return labels


def _check_colours(path: Path, colours: np.ndarray, labels: np.ndarray) -> None:
    if (colours == labels[..., None]).all():  # grey
        return
    found = np.unique(colours.reshape(-1, colours.shape[-1]), axis=0)
    largest = found.max(axis=1)
    values, counts = np.unique(largest, return_counts=True)
    if (counts > 1).any():
        pair = found[largest == values[counts > 1][0]][:2].tolist()
        raise DataError(
            f"{path} has colours that cannot be told apart as labels, such as {pair[0]} and {pair[1]}. If they are "
            "those of a palette, its indices may be the labels: save them as grey values."
        )


def _describe_strange(path: Path, strange: list[float], found: list[float], known: list[int]) -> str:
    text = f"{path} has mask values {_listed(strange)} that are not among {known}. "
    if len(found) == len(known) <= 2:
        return text + f"It looks as if the mask_values of the manifest should be {found}."
    if path.suffix.lower() in (".jpg", ".jpeg"):
        return text + "JPEG changes values when it compresses: save masks as PNG or TIFF."
    return text + "Add them to mask_values of the manifest, or correct the mask."


def _listed(values: Iterable[float]) -> str:
    shown = [f"{value:g}" for value in values]
    return ", ".join(shown[:_SHOWN]) + (f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else "")


def check_finite(image: Image) -> None:
    """Look for values that are no numbers; they would spread over everything that is computed from the image.

    Raises:
        DataError: if there is NaN or infinity, with how many and where the first is.
    """
    if image.array.dtype.kind != "f" or (finite := np.isfinite(image.array)).all():
        return
    first = tuple(np.argwhere(~finite)[0].tolist())
    raise DataError(
        f"{image.source} has {int((~finite).sum()):,} of {finite.size:,} values that are NaN or infinite, the first at "
        f"{image.axes} = {first}. Replace them, or mark the pixels as not valid."
    )
