"""Tiny data sets drawn on the spot, each in the layout of a kind."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from biocnn.data.manifest import Manifest


@pytest.fixture
def make_manifest() -> Callable[..., Manifest]:
    """Manifest of a kind with placeholders for what a test does not care about."""

    def make(**fields: object) -> Manifest:
        common: dict[str, object] = {
            "name": "drawn",
            "title": "Drawn",
            "description": "Drawn for a test.",
            "licence": "CC0-1.0",
            "citation": "none",
            "kind": "image-mask",
            "channels": ("grey",),
            "splits": {"train": {"images": "images/*.png", "masks": "masks/*.png"}},
        }
        return Manifest.model_validate(common | fields)

    return make


@pytest.fixture
def save_image() -> Callable[..., None]:
    """Write an array as an image file, making its folder."""

    def save(path: Path, pixels: np.ndarray, **options: object) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, **options)

    return save


PATCH_SPLITS = {
    split: {"images": f"{split}_x.h5", "labels": f"{split}_y.h5", "meta": f"{split}_meta.csv"}
    for split in ("train", "valid", "test")
}


@pytest.fixture
def patch_manifest(make_manifest: Callable[..., Manifest]) -> Manifest:
    return make_manifest(
        kind="patches-hdf5",
        classes=("normal", "tumour"),
        channels=("red", "green", "blue"),
        image={"dtype": "uint8", "height": 8, "width": 8},
        label_column="center_tumor_patch",
        group={"column": "wsi"},
        splits=PATCH_SPLITS,
    )


@pytest.fixture
def draw_patches() -> Callable[..., None]:
    """Write one split in the PCam layout: noise, labels 0 1 0 1 ..., two slides of its own unless told otherwise."""

    def draw(
        root: Path,
        split: str,
        images: np.ndarray | None = None,
        labels: np.ndarray | None = None,
        column: list[object] | None = None,
        slides: list[str] | None = None,
    ) -> None:
        rng = np.random.default_rng(sum(split.encode()))
        images = rng.integers(0, 256, (6, 8, 8, 3), np.uint8) if images is None else images
        labels = np.arange(len(images)) % 2 if labels is None else labels
        column = [bool(label) for label in labels] if column is None else column
        slides = [f"{split}_{row % 2}" for row in range(len(images))] if slides is None else slides
        with h5py.File(root / f"{split}_x.h5", "w") as file:
            file["x"] = images
        with h5py.File(root / f"{split}_y.h5", "w") as file:
            file["y"] = labels.astype(np.uint8).reshape(-1, 1, 1, 1)
        rows = [f"{row},{value},{slide}" for row, (value, slide) in enumerate(zip(column, slides, strict=True))]
        (root / f"{split}_meta.csv").write_text("\n".join([",center_tumor_patch,wsi", *rows]) + "\n")

    return draw
