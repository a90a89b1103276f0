"""Random tiles of images with masks, and the targets that a loss is given with them.

Notation: N images, B tiles in a batch, T side of a tile, M margin around it, C channels.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from biocnn.data.augmentation import Augmentation
from biocnn.data.batches import Batch
from biocnn.data.dataset import BatchDataset, epoch_and_index
from biocnn.data.fingerprint import scale
from biocnn.data.image_sets import ImageSet
from biocnn.data.mask_images import MaskImages
from biocnn.data.placement import Placement
from biocnn.data.sampler import ItemKey
from biocnn.data.targets import check_max_distance, skeleton_tube, truncated_distance
from biocnn.errors import DataError

TARGETS = frozenset({"mask", "tube", "distance"})
"""Targets that tiles can come with."""

# Second word of the Philox key: augmentation has 0, so the two never share a number.
_STREAM = 1


class TileDataset(BatchDataset):
    """Tiles drawn evenly over images: item i is a tile of image ``i % N``, another one in every epoch.

    Where a tile lies and how it is turned depends on (seed, epoch, i) alone. A share of the tiles is centred on a
    pixel of the foreground that is inside `valid`, the others on any pixel that is. Beyond the border of its image a
    tile shows the mirrored image, and is not valid.

    Args:
        images: at least one, none smaller than a tile.
        tile_size: T in pixels.
        length: items in an epoch.
        augmentation: of the tiles; they are cut upright and served as they are when None.
        foreground_share: of tiles centred on foreground, 0..1; an image without any is drawn from anywhere.
        intensity_range: what becomes 0 and 1 in images that are not uint8, see :func:`biocnn.data.fingerprint.scale`.
        max_distance: px, where the target `distance` is cut.
        seed: of the run.

    Raises:
        ValueError: if an argument is out of its range.
        DataError: if an image is smaller than a tile.
    """

    def __init__(
        self,
        images: MaskImages,
        tile_size: int,
        length: int,
        augmentation: Augmentation | None = None,
        foreground_share: float = 0.5,
        intensity_range: tuple[float, float] = (0.0, 255.0),
        max_distance: float = 15.0,
        seed: int = 0,
    ) -> None:
        if tile_size < 1 or length < 1 or not 0 <= foreground_share <= 1:
            raise ValueError(
                "Expected tile_size and length of 1 or more and foreground_share in 0..1, received "
                f"{tile_size}, {length} and {foreground_share}."
            )
        check_size(images, tile_size)
        self.images, self.tile_size, self.length = images, tile_size, length
        self.augmentation, self.foreground_share, self.seed = augmentation, foreground_share, seed
        self.intensity_range, self.max_distance = intensity_range, check_max_distance(max_distance)
        # 4 bytes for each pixel that a tile may be centred on; an image without a field of view needs no list.
        self._foreground = [places_of(images.foreground(row)) for row in range(len(images))]
        self._inside = [None if valid is None else places_of(valid) for valid in images.valid]
        self._targets = frozenset({"mask"})
        self._tubes: list[np.ndarray] = []

    @property
    def targets(self) -> frozenset[str]:
        """What every tile comes with, of :data:`TARGETS`; ``mask`` always."""
        return self._targets

    @targets.setter
    def targets(self, names: Iterable[str]) -> None:
        """Set them; skeletons are made of all masks when ``tube`` is first among them, 30 ms for 584x565 px."""
        names = frozenset(names) | {"mask"}
        if unknown := names - TARGETS:
            raise ValueError(f"Tiles have the targets {sorted(TARGETS)}, received {sorted(unknown)}.")
        if "tube" in names and not self._tubes:
            self._tubes = [skeleton_tube(mask) for mask in self.images.masks]
        self._targets = names

    def __len__(self) -> int:
        return self.length

    def __getitems__(self, keys: Sequence[ItemKey | int]) -> Batch:
        pairs = [epoch_and_index(key) for key in keys]
        tiles = [self._tile(epoch, index) for epoch, index in pairs]
        batch: Batch = {name: torch.from_numpy(np.stack([tile[name] for tile in tiles])) for name in tiles[0]}
        return {**batch, **names_of(self.images, [index for _, index in pairs])}

    def place(self, epoch: int, index: int) -> Placement:
        """Where an item lies in its image, with its margin."""
        random = placing_numbers(self.seed, epoch, index)
        row = index % len(self.images)
        columns = self.images.masks[row].shape[1]
        on_foreground, choice = random.random() < self.foreground_share, random.random()
        places = self._foreground[row] if on_foreground and len(self._foreground[row]) else self._inside[row]
        count = self.images.masks[row].size if places is None else len(places)
        number = int(choice * count)
        pixel = divmod(number if places is None else int(places[number]), columns)
        matrix = np.eye(2) if self.augmentation is None else self.augmentation.matrix(random)
        # The middle of an even number of pixels lies between two of them.
        shift = 0.5 if self.tile_size % 2 == 0 else 0.0
        return Placement((pixel[0] - shift, pixel[1] - shift), matrix, self.tile_size + 2 * self.margin)

    @property
    def margin(self) -> int:
        """M, pixels cut around a tile: structures that lie there count for its distances."""
        return math.ceil(self.max_distance) if "distance" in self._targets else 0

    def _tile(self, epoch: int, index: int) -> dict[str, np.ndarray]:
        row = index % len(self.images)
        place = self.place(epoch, index)
        arrays = self._cut(row, place)
        if self.augmentation is not None:
            arrays = self.augmentation(arrays, self.seed, epoch, index)
        inner = (slice(self.margin, self.margin + self.tile_size),) * 2
        tile = {
            "image": as_served(arrays["image"].reshape(place.size, place.size, -1)[inner]),
            "mask": arrays["mask"][inner][None].astype(np.float32),
            "valid": arrays["valid"][inner][None] != 0,
        }
        if "tube" in self._targets:
            tile["tube"] = arrays["tube"][inner][None].astype(np.float32)
        if "distance" in self._targets:
            tile["distance"] = truncated_distance(arrays["mask"], self.max_distance)[inner][None]
        return tile

    def _cut(self, row: int, place: Placement) -> dict[str, np.ndarray]:
        arrays = {"image": cut_image(self.images.images[row], place, self.intensity_range)}
        mask, valid = self.images.masks[row], self.images.valid[row]
        arrays["mask"] = place.cut(mask.view(np.uint8))
        inside = np.broadcast_to(np.uint8(1), mask.shape) if valid is None else valid.view(np.uint8)
        arrays["valid"] = place.cut(inside, outside=0)
        if "tube" in self._targets:
            arrays["tube"] = place.cut(self._tubes[row])
        return arrays


def placing_numbers(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Random numbers for the place of an item, the same in every process and none that augmentation is given."""
    return np.random.Generator(np.random.Philox(key=[seed, _STREAM], counter=[0, index, epoch, 0]))


def cut_image(image: np.ndarray, place: Placement, intensity_range: tuple[float, float]) -> np.ndarray:
    """Pixels of a tile, (S, S, C): uint8 as they are, others float32 with the range mapped to 0..1 and cut there."""
    cut = place.cut(image, smooth=True)
    return cut if image.dtype == np.uint8 else scale(cut, intensity_range)


def as_served(image: np.ndarray) -> np.ndarray:
    """(T, T, C) uint8 as it is: it becomes float on the device, and its channels go first there; others (C, T, T)."""
    return image if image.dtype == np.uint8 else np.moveaxis(image, 2, 0)


def names_of(images: ImageSet, indices: Sequence[int]) -> Batch:
    """``index`` (B,) int64, ``id`` and ``group`` of items, which are tiles of the images ``index % N``."""
    rows = [index % len(images) for index in indices]
    return {
        "index": torch.tensor(list(indices)),
        "id": [images.ids[row] for row in rows],
        "group": [] if images.groups is None else [images.groups[row] for row in rows],
    }


def places_of(pixels: np.ndarray) -> np.ndarray:
    """Numbers of the pixels that are set, along rows."""
    return np.flatnonzero(pixels).astype(np.uint32 if pixels.size < 2**32 else np.uint64)


def check_size(images: ImageSet, tile_size: int) -> None:
    """Raise DataError if an image is smaller than a tile."""
    for name, image in zip(images.ids, images.images, strict=True):
        if min(image.shape[:2]) < tile_size:
            raise DataError(
                f"{name} has {image.shape[0]}x{image.shape[1]} px (rows x columns), less than a tile of {tile_size} "
                f"px. Set --data.tile_size to at most {min(min(other.shape[:2]) for other in images.images)}, or leave "
                "small images out."
            )
