"""OME-Zarr (NGFF 0.5) with a pyramid, written from bands of rows of images larger than memory."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from biocnn.data.pyramids import TILE, Kind, level_shapes, levels, written_beside
from biocnn.errors import DataError


def write_ome_zarr(
    path: str | Path,
    shape: tuple[int, ...],
    dtype: np.typing.DTypeLike,
    bands: Iterable[np.ndarray],
    pixel_size_um: tuple[float, float] | None,
    channel_names: Sequence[str] | None = None,
    kind: Kind = "map",
) -> None:
    """Write an OME-Zarr of Zarr format 3, in chunks of 512 x 512, with copies of half the size.

    The metadata are those of https://ngff.openmicroscopy.org/0.5: axes (channel,) row, column in micrometres, a scale
    and a translation for each copy, whose first pixel has its centre between those that it stands for. Memory is that
    of a few bands of 512 rows; chunks of zeros take no space. An existing Zarr folder is replaced when the new one is
    whole.

    Args:
        path: folder to write, by custom ending in ``.ome.zarr``.
        shape: (H, W) or (H, W, C).
        dtype: integers or floats; bool is written as 0 and 255 of uint8.
        bands: consecutive rows, (h, W) or (h, W, C), of any h.
        pixel_size_um: micrometres between rows and between columns; None if unknown, then axes have no unit.
        channel_names: one for each channel.
        kind: ``"map"``: copies show the mean; ``"mask"``: the largest value, so that thin structures stay in sight.

    Raises:
        DataError: if there is something else than a Zarr at `path`; or it cannot be written, because the disk is full
            or for want of permission, for instance.
        ValueError: if the bands do not fit `shape` and `dtype`.
    """
    path = Path(path)
    full = (shape[0], shape[1], shape[2] if len(shape) == 3 else 1)
    kept = np.dtype(np.uint8) if np.dtype(dtype) == bool else np.dtype(dtype)
    if channel_names is not None and len(channel_names) != full[2]:
        raise ValueError(f"received {len(channel_names)} names for {full[2]} channels")
    if path.exists() and not any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zarray")):
        raise DataError(f"{path} is there and no Zarr folder: it would be lost. Choose another name or remove it.")
    single = len(shape) == 2
    axes = ["y", "x"] if single else ["c", "y", "x"]
    with written_beside(path) as folder:
        group = zarr.create_group(folder / path.name, zarr_format=3)
        for number, rows in enumerate(levels(bands, full, kept, kind, folder)):
            height, width = level_shapes(full)[number][:2]
            array = group.create_array(
                str(number),
                shape=(height, width) if single else (full[2], height, width),
                chunks=(TILE, TILE) if single else (1, TILE, TILE),
                dtype=kept,
                dimension_names=axes,
            )
            top = 0
            for band in rows:
                values = band[..., 0] if single else np.moveaxis(band, -1, 0)
                array[..., top : top + len(band), :] = np.ascontiguousarray(values)
                top += len(band)
        copies = len(level_shapes(full))
        group.attrs["ome"] = _metadata(path.name, axes, copies, pixel_size_um, channel_names, kept, kind)


def _metadata(
    name: str,
    axes: list[str],
    copies: int,
    pixel_size_um: tuple[float, float] | None,
    channel_names: Sequence[str] | None,
    dtype: np.dtype[Any],
    kind: Kind,
) -> dict[str, Any]:
    unit = {} if pixel_size_um is None else {"unit": "micrometer"}
    sizes = dict(zip("yx", (1.0, 1.0) if pixel_size_um is None else map(float, pixel_size_um), strict=True))
    datasets = []
    for number in range(copies):
        scale = [sizes[axis] * 2**number if axis in sizes else 1.0 for axis in axes]
        shift = [sizes[axis] * (2**number - 1) / 2 if axis in sizes else 0.0 for axis in axes]
        steps = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": shift}]
        datasets.append({"path": str(number), "coordinateTransformations": steps})
    kinds = [
        {"name": axis, "type": "space", **unit} if axis in sizes else {"name": axis, "type": "channel"} for axis in axes
    ]
    scales = {"name": name, "axes": kinds, "datasets": datasets, "type": "mean" if kind == "map" else "max"}
    facts: dict[str, Any] = {"version": "0.5", "multiscales": [scales]}
    if channel_names is not None:
        top = 1.0 if dtype.kind == "f" else float(np.iinfo(dtype).max)
        window = {"min": 0.0, "max": top, "start": 0.0, "end": top}
        facts["omero"] = {
            "channels": [
                {"label": label, "color": "FFFFFF", "active": True, "window": window} for label in channel_names
            ]
        }
    return facts
