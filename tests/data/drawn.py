"""Drawn vessels: bright curves on a noisy background, with masks, in memory and as a folder with its manifest."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
import yaml
from PIL import Image

from biocnn.data.mask_images import MaskImages


def vessels(seed: int, height: int = 96, width: int = 80, thickness: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """A grey image (H, W) uint8 and its mask (H, W) bool: three lines across it."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), np.uint8)
    for _ in range(3):
        start, stop = (int(rng.integers(height)), 0), (int(rng.integers(height)), width - 1)
        cv2.line(mask, start[::-1], stop[::-1], 1, thickness)
    image = rng.integers(40, 90, (height, width)) + 100 * mask
    return image.astype(np.uint8), mask.astype(bool)


def in_memory(count: int = 3, valid: bool = False, dtype: Any = np.uint8, **size: int) -> MaskImages:
    """Drawn images, with a disc as field of view if wanted."""
    images, masks = zip(*(vessels(seed, **size) for seed in range(count)), strict=True)
    rows, columns = np.mgrid[: images[0].shape[0], : images[0].shape[1]]
    radius = min(images[0].shape) / 2 - 4
    disc = (rows - rows.max() / 2) ** 2 + (columns - columns.max() / 2) ** 2 < radius**2
    return collect([image[..., None].astype(dtype) for image in images], list(masks), [disc] * count if valid else None)


def collect(images: list[np.ndarray], masks: list[np.ndarray], valid: list[np.ndarray] | None = None) -> MaskImages:
    """Arrays (H, W, C) and masks (H, W) as a split."""
    names = tuple(f"image{number}" for number in range(len(images)))
    fields = (None,) * len(images) if valid is None else tuple(valid)
    sizes = (None,) * len(images)
    return MaskImages(names, None, names, tuple(images), fields, sizes, np.arange(len(images)), tuple(masks))


def save(path: Path, array: np.ndarray) -> None:
    """Write an image, making its folder; TIFF for what PNG has no place for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        tifffile.imwrite(path, array, photometric="rgb" if array.shape[-1] == 3 else "minisblack")
    else:
        Image.fromarray(array).save(path)


def write_folder(root: Path, splits: Mapping[str, int], **manifest: Any) -> str:
    """A folder of drawn PNGs, so many for each split, and its manifest; returns the path of the latter."""
    for split, count in splits.items():
        for number in range(count):
            image, mask = vessels(1000 * len(split) + number)
            save(root / split / "images" / f"{number}.png", image)
            save(root / split / "masks" / f"{number}.png", mask.astype(np.uint8) * 255)
    return write_manifest(root, list(splits), **manifest)


def write_manifest(root: Path, names: list[str], **fields: Any) -> str:
    """The manifest of such a folder; returns its path."""
    content: dict[str, Any] = {
        "name": "drawn",
        "title": "Drawn vessels",
        "description": "Lines.",
        "licence": "CC0-1.0",
        "citation": "none",
        "kind": "image-mask",
        "channels": ["grey"],
        "mask_values": {0: "background", 255: "vessel"},
        "foreground": [255],
        "splits": {split: {"images": f"{split}/images/*", "masks": f"{split}/masks/*"} for split in names},
    }
    path = root / "drawn.yaml"
    path.write_text(yaml.safe_dump(content | fields))
    return str(path)
