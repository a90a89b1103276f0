"""Whole images of any size, one in a batch: for validation and test with their masks, for prediction without."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from biocnn.data.batches import Batch
from biocnn.data.dataset import BatchDataset
from biocnn.data.image_headers import IMAGE_SUFFIXES, read_header
from biocnn.data.image_sets import ImageSet, PixelSize, as_planes, pixel_size_of
from biocnn.data.images import check_finite, read_image
from biocnn.data.manifest import ImageFormat, Manifest
from biocnn.data.mask_images import MaskImages
from biocnn.data.patch_files import matching_files
from biocnn.data.sampler import ItemKey
from biocnn.errors import DataError

_SUFFIXES = (*IMAGE_SUFFIXES, ".h5", ".hdf5", ".zarr")


def image_entries(pixels: np.ndarray) -> dict[str, Any]:
    """An image as a batch of one.

    Args:
        pixels: (H, W, C).

    Returns:
        ``image`` (1, H, W, C) uint8, which becomes float on the device. Of other types ``image`` (1, C, H, W) float32
        with the values of the file, and ``unscaled`` True: the range that is to become 0..1, that of the training set,
        may be known to a checkpoint only, so the datamodule scales what has arrived on the device.
    """
    if pixels.dtype == np.uint8:
        return {"image": torch.from_numpy(np.array(pixels)[None])}  # a copy: arrays of readers may be read-only
    planes = np.array(np.moveaxis(pixels, 2, 0), np.float32, order="C")
    return {"image": torch.from_numpy(planes[None]), "unscaled": True}


def single(keys: Sequence[ItemKey | int]) -> int:
    """The row of the one item that is asked for.

    Raises:
        ValueError: if it is not one.
    """
    if len(keys) != 1:
        raise ValueError(f"Whole images come one by one, as they differ in size; received {len(keys)} keys.")
    return keys[0][1] if isinstance(keys[0], tuple) else int(keys[0])


def evaluation_entries(images: ImageSet, row: int) -> dict[str, Any]:
    """An image of a split as a batch of one, without its annotation.

    Returns:
        What :func:`image_entries` makes, ``valid`` (1, 1, H, W) bool, ``index`` (1,) int64, ``id``, ``group`` (empty
        without a group rule) and ``pixel_size_um``, lists of one.
    """
    image, valid = images.images[row], images.valid[row]
    inside = np.ones(image.shape[:2], bool) if valid is None else valid.copy()
    return {
        **image_entries(image),
        "valid": torch.from_numpy(inside[None, None]),
        "index": torch.tensor([row]),
        "id": [images.ids[row]],
        "group": [] if images.groups is None else [images.groups[row]],
        "pixel_size_um": [images.pixel_sizes[row]],
    }


class WholeImages(BatchDataset):
    """Images with masks as they are, for evaluation.

    A batch holds what :func:`evaluation_entries` makes, and ``mask`` (1, 1, H, W) float32.

    Args:
        images: of a split.
    """

    def __init__(self, images: MaskImages) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, keys: Sequence[ItemKey | int]) -> Batch:
        row = single(keys)
        mask = torch.from_numpy(self.images.masks[row].astype(np.float32)[None, None])
        return {**evaluation_entries(self.images, row), "mask": mask}


def trained_on(trainer: pl.Trainer | None) -> dict[str, Any]:
    """What the checkpoint of a task says about its training data; empty without one."""
    task = None if trainer is None else trainer.lightning_module
    found: dict[str, Any] = getattr(task, "data_description", {})
    return found


def as_trained(manifest: Manifest, trainer: pl.Trainer | None) -> Manifest:
    """A manifest that asks for what the network was trained on, so that a prediction needs none of its own.

    Args:
        manifest: what is returned, apart from name, channels and dtype if the checkpoint says them.
        trainer: whose task has been loaded from a checkpoint.
    """
    found = trained_on(trainer)
    if "channels" not in found:
        return manifest
    like = {"name": found["manifest"], "channels": tuple(found["channels"])}
    return manifest.model_copy(update={**like, "image": ImageFormat(dtype=found["dtype"])})


class FileImages(BatchDataset):
    """Images without masks, read from their files one by one, for prediction.

    A batch holds what :func:`image_entries` makes, ``index`` (1,) int64, ``id`` and ``pixel_size_um``,
    lists of one. The planes of a stack are images of their own.

    Attributes:
        ids: path of every image, with ``#`` and the number of the plane for a stack.

    Args:
        pattern: an image file, a folder of images, or a glob.
        manifest: of :func:`as_trained`; its pixel size, if it has one, is that of the images.

    Raises:
        DatasetNotFoundError: if nothing matches.
        DataError: if an image is of another dtype or number of channels than the manifest says; all files are looked
            at before the first is predicted.
    """

    def __init__(self, pattern: str, manifest: Manifest) -> None:
        self.manifest = manifest
        self._places: list[tuple[Path, int | None]] = []
        for path in matching_files(pattern, _SUFFIXES):
            header = read_header(path)
            if header.dtype != manifest.image.dtype or header.channels != len(manifest.channels):
                raise DataError(
                    f"{path} is {header} (rows x columns x channels), expected {len(manifest.channels)} channel(s) "
                    f"({', '.join(manifest.channels)}) of {manifest.image.dtype}, as the images of {manifest.name!r} "
                    "have. Convert the file."
                )
            self._places += [(path, None)] if header.planes == 1 else [(path, page) for page in range(header.planes)]
        self.ids = [str(path) if page is None else f"{path}#{page}" for path, page in self._places]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitems__(self, keys: Sequence[ItemKey | int]) -> Batch:
        row = single(keys)
        path, page = self._places[row]
        image = read_image(path, page=page)
        check_finite(image)
        size: PixelSize | None = pixel_size_of(image, self.manifest)
        return {
            **image_entries(as_planes(image, self.manifest)[0]),
            "index": torch.tensor([row]),
            "id": [self.ids[row]],
            "pixel_size_um": [size],
        }
