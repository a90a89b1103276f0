"""Images with masks: one split read into memory, checked, before anything is trained on it.

Notation: N images, H rows, W columns, C channels; a pixel is *inside* where `valid` is True.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pytorch_lightning.utilities import rank_zero_warn

from biocnn.data.findings import listed
from biocnn.data.image_sets import (
    MAX_BYTES,
    ImageSet,
    Part,
    check_not_constant,
    columns,
    fit,
    no_partner,
    open_image,
    pixel_size_of,
    read_parts,
    read_valid,
    without_nan,
)
from biocnn.data.images import read_mask
from biocnn.data.manifest import ImageFiles, Manifest
from biocnn.errors import DataError


@dataclass(frozen=True, eq=False)
class MaskImages(ImageSet):
    """Images with masks, of one split.

    Attributes:
        masks: N arrays (H, W) bool, True for the structure to find.
    """

    masks: tuple[np.ndarray, ...]

    def foreground(self, row: int) -> np.ndarray:
        """Pixels of the structure that are inside, (H, W) bool."""
        mask, valid = self.masks[row], self.valid[row]
        return mask if valid is None else mask & valid


def read_split(manifest: Manifest, root: str | Path, split: str, max_bytes: int = MAX_BYTES) -> MaskImages:
    """Read one split of a data set of kind ``image-mask``, and check that images, masks and manifest fit together.

    Pixels of float images that are NaN or infinite and not inside become the smallest value inside: they must not
    count, and would spread through a network.

    Args:
        manifest: description of the data set.
        root: folder that holds the files.
        split: ``"train"``, ``"valid"`` or ``"test"``.
        max_bytes: memory that images and masks together may take.

    Raises:
        ManifestError: if the manifest has no such split, or a pattern is ambiguous.
        DatasetNotFoundError: if no image matches, or an image has no mask or field-of-view mask.
        DataError: if a file cannot be read; an image has another dtype or number of channels than the manifest says,
            or NaN or infinity inside; a mask differs in size from its image or has values that the manifest does not
            name; no pixel is inside; or the split needs more memory than `max_bytes`.
    """
    folder = Path(root)
    parts = read_parts(manifest, folder, split, max_bytes, lambda file: _read(manifest, folder, split, file, max_bytes))
    return MaskImages(**columns(manifest, parts), masks=tuple(part.target for part in parts))


def _read(manifest: Manifest, root: Path, split: str, file: ImageFiles, max_bytes: int) -> list[Part]:
    image, pixels = open_image(manifest, file, max_bytes)
    if file.mask is None:
        raise no_partner("mask", file.image, manifest.splits[split].masks)  # type: ignore[index]
    labels = read_mask(file.mask, manifest.mask_values, max_bytes=max_bytes)
    masks = fit(np.isin(labels, manifest.foreground) if manifest.foreground else labels != 0, file.mask, image)
    valid = read_valid(manifest, split, file, image, max_bytes)
    pixels = without_nan(image, pixels, valid)
    name = file.image.relative_to(root).as_posix()
    names = [name] if len(pixels) == 1 else [f"{name}#{number}" for number in range(len(pixels))]
    size = pixel_size_of(image, manifest)
    inside = [None] * len(pixels) if valid is None else list(valid)
    return [
        Part(*entries, size)
        for entries in zip(names, [name] * len(names), list(pixels), list(masks), inside, strict=True)
    ]


def check_content(images: MaskImages, split: str) -> None:
    """Look for images from which nothing can be learned; warns about those that are merely strange.

    Args:
        images: of the split.
        split: ``"train"``, where a constant image is an error, or another, where it is a warning.

    Raises:
        DataError: if a training image has one value in all pixels that are inside, or if no image of the split holds
            any foreground.
    """
    check_not_constant(images, split)
    empty = [images.ids[row] for row in range(len(images)) if not images.foreground(row).any()]
    if len(empty) == len(images):
        raise DataError(
            f"No mask of {split!r} holds any foreground where pixels count ({listed(empty)}). Check `foreground` and "
            "`mask_values` of the manifest with `biocnn data audit`."
        )
    if empty:
        rank_zero_warn(
            f"{len(empty)} of {len(images)} masks of {split!r} are empty: {listed(empty)}. That is right only if "
            "there is nothing to find in these images."
        )
