"""Tiny data sets, drawn."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

SHARED_DATA = Path(__file__).parents[1].parent / "shared" / "data"


def draw_patches(count: int, seed: int, size: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """Noisy patches with one dark disc each: in the centre of positives, in a corner of negatives.

    Both classes have the same mean colour, so only a look at where the disc is tells them apart.
    """
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    rows, columns = np.mgrid[:size, :size]
    images = rng.integers(150, 220, (count, size, size, 3), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        corner = rng.choice([size // 6, size - size // 6], 2)
        centre = np.full(2, size // 2) if label else corner
        image[(rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < (size // 10) ** 2] //= 3
    return images, labels


def write_split(
    root: Path, split: str, images: np.ndarray, labels: np.ndarray, groups: list[str], **storage: Any
) -> None:
    """Write one split in the official layout; `storage` goes to `h5py.create_dataset` for the images."""
    stem = root / f"camelyonpatch_level_2_split_{split}"
    with h5py.File(f"{stem}_x.h5", "w") as file:
        file.create_dataset("x", data=images, **storage)
    with h5py.File(f"{stem}_y.h5", "w") as file:
        file.create_dataset("y", data=labels.astype(np.uint8).reshape(-1, 1, 1, 1))
    with open(f"{stem}_meta.csv", "w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["", "coord_y", "coord_x", "tumor_patch", "center_tumor_patch", "wsi"])
        for row, (label, group) in enumerate(zip(labels, groups, strict=True)):
            writer.writerow([row, 0, 0, bool(label), bool(label), group])


@pytest.fixture
def make_pcam(tmp_path: Path) -> Callable[..., Path]:
    """Make a PCam-like folder: ``make_pcam(train=64, valid=32, test=32, **storage)``; four slides in each split."""

    def make(name: str = "pcam", train: int = 64, valid: int = 32, test: int = 32, **storage: Any) -> Path:
        root = tmp_path / name
        root.mkdir()
        for seed, (split, count) in enumerate({"train": train, "valid": valid, "test": test}.items()):
            images, labels = draw_patches(count, seed)
            groups = [f"{split}_slide_{(row // 2) % 4}" for row in range(count)]
            write_split(root, split, images, labels, groups, **storage)
        return root

    return make


@pytest.fixture(scope="session")
def pcam_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PCam-like folder that no test changes: 64, 32 and 32 patches."""
    root = tmp_path_factory.mktemp("shared_pcam")
    for seed, (split, count) in enumerate({"train": 64, "valid": 32, "test": 32}.items()):
        images, labels = draw_patches(count, seed)
        write_split(root, split, images, labels, [f"{split}_slide_{(row // 2) % 4}" for row in range(count)])
    return root
