"""Patches to predict: an HDF5 file, a folder, or a glob of image files, all of one size."""

import glob
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from biocnn.data.hdf5 import map_array
from biocnn.data.manifest import Manifest
from biocnn.data.patches import PatchSource
from biocnn.errors import DataError, DatasetNotFoundError

_HDF5_SUFFIXES = (".h5", ".hdf5")
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


class ImageFileSource:
    """One RGB patch per image file.

    Attributes:
        paths: (N,) bytes.
        ids: (N,) bytes, the paths.
        size: (H, W) of every patch in pixels.
    """

    def __init__(self, paths: list[Path]) -> None:
        self.ids = np.array([str(path).encode() for path in paths])
        sizes = {_header_size(path): path for path in paths}
        if len(sizes) > 1:
            shown = ", ".join(f"{path.name} {height}x{width}" for (height, width), path in list(sizes.items())[:3])
            raise DataError(f"Patches must have one size; found {shown} px. Crop them first.")
        self.size = next(iter(sizes))

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, rows: np.ndarray) -> dict[str, Any]:
        """``image`` (B, H, W, 3) uint8, ``id`` and ``group`` lists."""
        names = [name.decode() for name in self.ids[rows]]
        return {"image": np.stack([_read_rgb(Path(name)) for name in names]), "id": names, "group": []}


def _header_size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            if image.mode not in ("RGB", "RGBA"):
                raise DataError(
                    f"{path} is an image of mode {image.mode!r}, expected RGB with 8 bits per channel. Convert it."
                )
            return image.height, image.width
    except OSError as error:
        raise DataError(f"{path} cannot be read as an image: {error}") from error


def _read_rgb(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except OSError as error:
        raise DataError(f"{path} cannot be read as an image: {error}") from error


def open_patch_images(pattern: str, manifest: Manifest) -> PatchSource | ImageFileSource:
    """Open patches without labels.

    Args:
        pattern: an HDF5 file with the manifest's image key, a folder of image files, or a glob.
        manifest: names the HDF5 key and the number of channels.

    Raises:
        DatasetNotFoundError: if nothing matches.
        DataError: if a file cannot be read, or patches differ in size or are not 8-bit RGB.
    """
    path = Path(pattern)
    if path.suffix in _HDF5_SUFFIXES:
        images = map_array(path, manifest.image_key)
        if len(images.shape) != 4 or images.shape[3] != len(manifest.channels) or images.dtype != np.uint8:
            raise DataError(
                f"{path}: {manifest.image_key!r} is {images.shape} {images.dtype}, expected uint8 (N, rows, columns, "
                f"{len(manifest.channels)})."
            )
        return PatchSource(path.stem, images)
    return ImageFileSource(matching_files(pattern, _IMAGE_SUFFIXES))


def matching_files(pattern: str, suffixes: Collection[str]) -> list[Path]:
    """Files that a user names for prediction, sorted by name.

    Args:
        pattern: a file, a folder, or a glob.
        suffixes: lower-case endings of the files that are taken; others, such as notes in the folder, are left out.

    Raises:
        DatasetNotFoundError: if nothing matches.
    """
    path = Path(pattern)
    # A path that exists is meant as it is, also when its name holds what would be a wildcard. A Zarr is a folder.
    if path.is_dir() and path.suffix.lower() not in suffixes:
        found = sorted(path.iterdir())
    else:
        found = [path] if path.exists() else [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
    paths = [name for name in found if name.suffix.lower() in suffixes]
    if not paths:
        raise DatasetNotFoundError(
            f"No image matches {pattern!r} in {Path.cwd()}. Give a file, a folder, or a quoted glob such as "
            f"'images/*.png'; the endings {', '.join(suffixes)} are read."
        )
    return paths
