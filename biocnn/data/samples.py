"""A small data set that needs no download: patches of a real picture, labelled by a rule.

The picture comes with scikit-image: colonic glands, FHL2 stained brown with DAB, nuclei blue with haematoxylin,
512 x 512 px, no known copyright restrictions. A patch of 96 x 96 px is positive when nuclei cover much of its
centre 32 x 32 px, as a PCam patch is positive when its centre holds tumour. The labels are made by a rule and all
patches come from one picture, so this shows how the pipeline is used; a score on it says nothing about other slides.
"""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml
from scipy.ndimage import gaussian_filter
from scipy.optimize import linear_sum_assignment
from skimage.color import rgb2hed
from skimage.data import immunohistochemistry

from biocnn.files import atomic_path, write_text

MANIFEST_NAME = "sample.yaml"
PATCH, CENTRE, STEP = 96, 32, 4
"""Sides of a patch and of its centre, and distance between neighbouring patches, in pixels."""
FEW, MANY = 0.10, 0.25
"""Share of the centre that nuclei cover: up to FEW is class 0, from MANY on class 1; between them no patch is taken."""
TOLERANCE = 3.0
"""Largest difference between the mean colours of a positive patch and its negative partner, in grey levels of 255."""


@dataclass(frozen=True)
class Region:
    """The part of the picture that one split is cut from; two splits share no pixel.

    Attributes:
        top: first row.
        bottom: row after the last one.
        left: first column.
        right: column after the last one.
        blocks: (rows, columns) of blocks that the centres are grouped by.
    """

    top: int
    bottom: int
    left: int
    right: int
    blocks: tuple[int, int]


REGIONS = {
    "train": Region(0, 512, 0, 256, (4, 2)),
    "valid": Region(0, 256, 256, 512, (2, 2)),
    "test": Region(256, 512, 256, 512, (2, 2)),
}


@dataclass(frozen=True)
class SamplePatches:
    """Patches of one split; N of them, as many of class 0 as of class 1.

    Attributes:
        images: (N, 96, 96, 3) uint8.
        labels: (N,) int64 of 0 and 1.
        corners: (N, 2) int64, row and column of the upper left pixel in the picture.
        blocks: N names of blocks of tissue; the centres of two blocks share no pixel, their surroundings may.
        nuclei: (N,) float64, share of the centre that nuclei cover.
    """

    images: np.ndarray
    labels: np.ndarray
    corners: np.ndarray
    blocks: list[str]
    nuclei: np.ndarray


def nuclei_mask(image: np.ndarray) -> np.ndarray:
    """Where there is more haematoxylin than around it: nuclei in the stroma and in the glands.

    The stain is taken apart by colour deconvolution (Ruifrok and Johnston 2001). A difference of Gaussians finds
    nuclei beside brown cytoplasm, where the amount of haematoxylin alone would not.

    Args:
        image: (H, W, 3) uint8.

    Returns:
        (H, W) bool.
    """
    haematoxylin = rgb2hed(image)[..., 0]
    # 1.5 px smooths noise away, 12 px is as wide as a nucleus; 0.006 was chosen by eye on this picture.
    return np.asarray(gaussian_filter(haematoxylin, 1.5) - gaussian_filter(haematoxylin, 12.0) > 0.006)


def window_means(values: np.ndarray, corners: np.ndarray, size: int) -> np.ndarray:
    """Means over square windows.

    Args:
        values: (H, W, C).
        corners: (N, 2) row and column of the upper left pixel of each window.
        size: side of the windows in pixels.

    Returns:
        (N, C) float64.
    """
    sums = np.zeros((values.shape[0] + 1, values.shape[1] + 1, values.shape[2]))
    sums[1:, 1:] = values.cumsum(0, dtype=np.float64).cumsum(1)
    top, left = corners.T
    bottom, right = top + size, left + size
    return (sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]) / size**2


def match_colours(positive: np.ndarray, negative: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of one positive and one negative patch of the same mean colour; as many as there are, each used once.

    Args:
        positive: (P, 3) mean colours.
        negative: (N, 3) mean colours.
        tolerance: largest difference in any channel.

    Returns:
        Rows of `positive` and of `negative`, both (M,) int64 with M <= min(P, N).
    """
    distance = np.abs(positive[:, None] - negative[None]).max(2)
    # A pair that is too far apart costs more than all good pairs together, so that it is made only when none is left.
    cost = np.where(distance <= tolerance, distance, tolerance * (min(distance.shape) + 1))
    first, second = linear_sum_assignment(cost)
    near = distance[first, second] <= tolerance
    return first[near], second[near]


def sample_patches(split: str) -> SamplePatches:
    """Cut, label and match the patches of one split; the same ones whenever it is called.

    Every positive patch has a negative partner of the same mean colour, so that the network has to look at the
    centre: the mean colour of the whole patch tells little.

    Args:
        split: ``"train"``, ``"valid"`` or ``"test"``.
    """
    image, region = immunohistochemistry(), REGIONS[split]
    corners, blocks = _places(region)
    centres = corners + (PATCH - CENTRE) // 2
    nuclei = window_means(nuclei_mask(image)[..., None], centres, CENTRE)[:, 0]
    colours = window_means(image, corners, PATCH)
    many, few = np.flatnonzero(nuclei >= MANY), np.flatnonzero(nuclei <= FEW)
    first, second = match_colours(colours[many], colours[few], TOLERANCE)
    chosen = np.sort(np.concatenate([many[first], few[second]]))
    cut = [image[row : row + PATCH, column : column + PATCH] for row, column in corners[chosen]]
    return SamplePatches(
        images=np.stack(cut),
        labels=(nuclei[chosen] >= MANY).astype(np.int64),
        corners=corners[chosen],
        blocks=[f"{split}_{block}" for block in blocks[chosen]],
        nuclei=nuclei[chosen],
    )


def _places(region: Region) -> tuple[np.ndarray, np.ndarray]:
    """Corners (N, 2) of all patches whose centre lies in one block, and the number (N,) of that block."""
    margin = (PATCH - CENTRE) // 2
    rows, row_block = _line(region.top + margin, region.bottom - margin, region.blocks[0])
    columns, column_block = _line(region.left + margin, region.right - margin, region.blocks[1])
    corners = np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2) - margin
    blocks = (row_block[:, None] * region.blocks[1] + column_block).ravel()
    return corners, blocks


def _line(start: int, stop: int, blocks: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts of the centres along one axis that cross no border between blocks, and the block of each."""
    starts = np.arange(start, stop - CENTRE + 1, STEP)
    borders = np.linspace(start, stop, blocks + 1)
    block = np.searchsorted(borders, starts, side="right") - 1
    inside = starts + CENTRE <= borders[block + 1]
    return starts[inside], block[inside]


def write_sample_patches(root: str | Path) -> Path:
    """Write the sample data set in the PCam layout: images, labels and a meta CSV for each split, and a manifest.

    The manifest is written last, so a folder that has one is complete and is left as it is.

    Args:
        root: folder, made when missing.

    Returns:
        Path of the manifest, ``root/sample.yaml``.
    """
    root = Path(root)
    path = root / MANIFEST_NAME
    if path.is_file():
        return path
    splits: dict[str, Any] = {}
    for split in REGIONS:
        patches = sample_patches(split)
        splits[split] = {
            "images": f"{split}_x.h5",
            "labels": f"{split}_y.h5",
            "meta": f"{split}_meta.csv",
            "count": len(patches.labels),
        }
        _write_split(root, splits[split], patches)
    write_text(path, yaml.safe_dump({**_MANIFEST, "splits": splits}, sort_keys=False, allow_unicode=True, width=110))
    return path


def _write_split(root: Path, names: dict[str, Any], patches: SamplePatches) -> None:
    for name, key, values in (
        (names["images"], "x", patches.images),
        (names["labels"], "y", patches.labels.astype(np.uint8).reshape(-1, 1, 1, 1)),
    ):
        with atomic_path(root / name) as temporary, h5py.File(temporary, "w") as file:
            file.create_dataset(key, data=values)
    with atomic_path(root / names["meta"]) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["", "coord_y", "coord_x", "nuclei", "many_nuclei", "block"])
        columns = zip(patches.corners.tolist(), patches.nuclei, patches.labels, patches.blocks, strict=True)
        for number, ((row, column), nuclei, label, block) in enumerate(columns):
            writer.writerow([number, row, column, f"{nuclei:.4f}", bool(label), block])


_MANIFEST = {
    "name": "sample",
    "title": "Nuclei in the centre of a patch (demonstration)",
    "description": (
        "Patches of 96x96 px from one picture of colonic glands (FHL2 with DAB, haematoxylin). A patch is positive "
        "when nuclei cover at least a quarter of its centre 32x32 px, and negative when they cover at most a tenth."
    ),
    "licence": "no known copyright restrictions",
    "citation": (
        "Picture: Center for Microscopy And Molecular Imaging (CMMI), skimage.data.immunohistochemistry. van der Walt "
        "et al.: scikit-image. PeerJ 2014, doi 10.7717/peerj.453."
    ),
    "homepage": "https://scikit-image.org/docs/stable/api/skimage.data.html",
    "kind": "patches-hdf5",
    "classes": ["few_nuclei", "many_nuclei"],
    "channels": ["red", "green", "blue"],
    "image": {"dtype": "uint8", "height": PATCH, "width": PATCH},
    "label_column": "many_nuclei",
    "group": {"column": "block"},
    "known_issues": [
        "Labels are made by a rule (colour deconvolution and a threshold), not by a pathologist.",
        "All patches come from one picture, and patches of one split overlap. A score says nothing about other slides.",
        "Patches were chosen in pairs of equal mean colour, so the share of positive ones is not that of the tissue.",
        "The pixel size is not published.",
    ],
}
