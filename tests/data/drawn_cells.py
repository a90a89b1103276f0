"""Drawn cells, in memory and as a folder with its manifest."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from biocnn.data.point_images import PointImages
from tests.data.drawn import save, write_manifest


def cells(seed: int, number: int = 12, height: int = 96, width: int = 80, radius: int = 3) -> tuple[np.ndarray, Any]:
    """A grey image (H, W) uint8 with bright discs, and their centres (n, 2) float64, whole numbers, along rows."""
    rng = np.random.default_rng(seed)
    places = rng.choice(height * width, number, replace=False)
    points = np.stack(np.divmod(np.sort(places), width), axis=1)
    image = rng.integers(20, 60, (height, width), dtype=np.uint8)
    for row, column in points.tolist():
        cv2.circle(image, (column, row), radius, 200, cv2.FILLED)
    return image, points.astype(np.float64)


def dots(points: np.ndarray, height: int = 96, width: int = 80) -> np.ndarray:
    """A dot image (H, W) uint8, 255 at whole-numbered points."""
    image = np.zeros((height, width), np.uint8)
    image[tuple(points.astype(int).T)] = 255
    return image


def point_set(
    images: Sequence[np.ndarray], points: Sequence[np.ndarray], valid: Sequence[np.ndarray] | None = None
) -> PointImages:
    """Arrays (H, W, C) and points (n, 2) as a split."""
    names = tuple(f"image{number}" for number in range(len(images)))
    fields = (None,) * len(images) if valid is None else tuple(valid)
    sizes = (None,) * len(images)
    return PointImages(names, None, names, tuple(images), fields, sizes, np.arange(len(images)), tuple(points))


def drawn_cells(count: int = 3, **arguments: Any) -> PointImages:
    """Drawn images as a split."""
    images, points = zip(*(cells(seed, **arguments) for seed in range(count)), strict=True)
    return point_set([image[..., None] for image in images], points)


def dot_pictures(count: int = 3, **arguments: Any) -> PointImages:
    """Images that are their own dot images: 255 at the points and 0 elsewhere."""
    drawn = drawn_cells(count, **arguments)
    shape = drawn.images[0].shape[:2]
    return point_set([dots(points, *shape)[..., None] for points in drawn.points], drawn.points)


def write_cells(root: Path, splits: Mapping[str, int], **manifest: Any) -> str:
    """A folder of drawn PNGs, so many for each split, and its manifest; returns the path of the latter."""
    for split, count in splits.items():
        for number in range(count):
            image, points = cells(1000 * len(split) + number, 8 + number)
            save(root / split / "images" / f"{number}.png", image)
            save(root / split / "points" / f"{number}.png", dots(points))
    return write_point_manifest(root, list(splits), **manifest)


def write_point_manifest(root: Path, names: list[str], **fields: Any) -> str:
    """The manifest of such a folder; returns its path."""
    found = {split: {"images": f"{split}/images/*", "points": f"{split}/points/*"} for split in names}
    content = {"kind": "image-points", "mask_values": None, "foreground": [], "splits": found}
    return write_manifest(root, names, **{**content, **fields})
