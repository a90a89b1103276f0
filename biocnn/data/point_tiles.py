"""Random tiles of images with points, and whole images with points, with their density maps.

Points are moved with the pixels, those that are not in the tile are dropped, and the map is made of the others last:
so its sum is their number, however the tile is turned and scaled. The width of a kernel is the same at every scale.

Convention: pixel [r, c] covers r - 0.5 <= row < r + 0.5 and c - 0.5 <= column < c + 0.5, half-open. So a tile of T rows
covers -0.5 <= row < T - 0.5, and tiles side by side have every point once.

Notation: N images, n points, B tiles in a batch, T side of a tile, C channels.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from biocnn.data.augmentation import Augmentation
from biocnn.data.batches import Batch
from biocnn.data.dataset import BatchDataset, epoch_and_index
from biocnn.data.density import TRUNCATE, kernel_widths, rasterise
from biocnn.data.placement import Placement
from biocnn.data.point_images import PointImages, pixels_of
from biocnn.data.sampler import ItemKey
from biocnn.data.tiles import as_served, check_size, cut_image, names_of, places_of, placing_numbers
from biocnn.data.whole_images import evaluation_entries, single
from biocnn.errors import DataError

Points = NDArray[np.floating]


Widths = float | NDArray[np.floating]
"""Standard deviation of the kernels of an image in pixels: one number, or (n,) for each point its own."""


def density_inside(points: Points, valid: NDArray[np.bool_], sigma: Widths) -> NDArray[np.float32]:
    """A density map whose sum over the pixels that are inside is the number of points.

    Kernels that reach beyond the frame are mirrored at its border, see :func:`biocnn.data.density.rasterise`; those
    that reach pixels that are not inside are cut there and raised to sum 1.

    Args:
        points: (n, 2) row and column, each in a pixel that is inside.
        valid: (H, W).
        sigma: standard deviation of the kernels in pixels, one number or (n,).

    Returns:
        (H, W), 0 where `valid` is False.
    """
    if valid.all():
        return rasterise(points, (valid.shape[0], valid.shape[1]), sigma)
    widths = np.broadcast_to(sigma, len(points))
    reaches = (TRUNCATE * widths).astype(int) + 2  # of a kernel, and one more pixel
    boxes = []
    for (row, column), reach in zip(pixels_of(points).tolist(), reaches.tolist(), strict=True):
        boxes.append((slice(max(row - reach, 0), row + reach + 1), slice(max(column - reach, 0), column + reach + 1)))
    whole = np.array([valid[box].all() for box in boxes], bool)
    density = rasterise(points[whole], (valid.shape[0], valid.shape[1]), widths[whole])
    for number in np.flatnonzero(~whole):
        box = boxes[number]
        inside = valid[box]
        kernel = rasterise(
            points[[number]] - [box[0].start, box[1].start], (inside.shape[0], inside.shape[1]), widths[number]
        ).astype(np.float64)
        density[box] += (kernel * inside / kernel[inside].sum()).astype(np.float32)
    return density


def widths_of(
    images: PointImages, sigma: float | None, sigma_um: float | None, neighbours: int | None = None
) -> list[Widths]:
    """Standard deviation of the kernels of every image in pixels, the same along rows and columns.

    Args:
        images: of a split.
        sigma: in pixels, the same for all.
        sigma_um: in micrometres, used without `sigma`. Tiles are turned, so pixels that are not square get the width
            of square ones of the same area.
        neighbours: when given, every point has its own width, from its distances to so many nearest neighbours in its
            image, see :func:`biocnn.data.density.kernel_widths`; the others are not used.

    Raises:
        DataError: if none is given, or an image has no pixel size, which micrometres need.
    """
    if neighbours is not None:
        return [kernel_widths(points, neighbours=neighbours)[:, 0] for points in images.points]
    if sigma is not None:
        return [sigma] * len(images)
    if sigma_um is None:
        raise DataError(
            "The width of the kernels is not known. Give --data.sigma, or the checkpoint of a training: "
            "--ckpt_path RUN/checkpoints/best.ckpt."
        )
    found: list[Widths] = []
    for name, size in zip(images.ids, images.pixel_sizes, strict=True):
        if size is None:
            raise DataError(
                f"{name} has no pixel size, which kernels of {sigma_um:g} um need. Write pixel_size_um into the "
                "manifest, or give --data.sigma in pixels."
            )
        found.append(sigma_um / math.sqrt(size[0] * size[1]))
    return found


class PointTiles(BatchDataset):
    """Tiles drawn evenly over images: item i is a tile of image ``i % N``, another one in every epoch.

    Where a tile lies and how it is turned depends on (seed, epoch, i) alone. Its middle is drawn from all pixels that
    are inside, and moved as little as needed for the tile to lie in the image. What sticks out all the same, because it
    is turned or made smaller, shows the mirrored image, is not valid, and has no points: those of the outermost pixels
    of the image are dropped with the tile pixel that they fall into, if its centre is beyond the image.

    A batch holds ``image`` (B, T, T, C) uint8 or (B, C, T, T) float32 in 0..1, ``density`` (B, 1, T, T) float32,
    ``valid`` (B, 1, T, T) bool, ``points``, a list of (n, 2) float32 row and column, ``count`` (B,) float32, ``index``
    (B,) int64, ``id`` and ``group``, lists of strings. The sum of a density map is the count.

    Args:
        images: at least one, none smaller than a tile.
        widths: N standard deviations of the kernels, px; see :data:`Widths`.
        tile_size: T in pixels.
        length: items in an epoch.
        augmentation: of the tiles; they are cut upright and served as they are when None. It may turn and scale by
            :meth:`~biocnn.data.augmentation.Augmentation.matrix` only.
        intensity_range: what becomes 0 and 1 in images that are not uint8; values beyond are cut.
        seed: of the run.

    Raises:
        ValueError: if an argument is out of its range, or a transform of the augmentation would move pixels.
        DataError: if an image is smaller than a tile.
    """

    def __init__(
        self,
        images: PointImages,
        widths: Sequence[Widths],
        tile_size: int,
        length: int,
        augmentation: Augmentation | None = None,
        intensity_range: tuple[float, float] = (0.0, 255.0),
        seed: int = 0,
    ) -> None:
        if tile_size < 1 or length < 1 or len(widths) != len(images):
            raise ValueError(
                f"Expected tile_size and length of 1 or more and a width for each of {len(images)} images, received "
                f"{tile_size}, {length} and {len(widths)} widths."
            )
        if augmentation is not None and (moving := augmentation.moves_pixels):
            raise ValueError(
                f"The augmentation has {', '.join(moving)}, which would move or remove pixels but not their points. "
                "Use TileAugmentation, which turns and scales both, and transforms of albumentations that change "
                "values only."
            )
        check_size(images, tile_size)
        self.images, self.widths, self.tile_size, self.length = images, list(widths), tile_size, length
        self.augmentation, self.intensity_range, self.seed = augmentation, intensity_range, seed
        self._inside = [None if valid is None else places_of(valid) for valid in images.valid]

    def __len__(self) -> int:
        return self.length

    def __getitems__(self, keys: Sequence[ItemKey | int]) -> Batch:
        pairs = [epoch_and_index(key) for key in keys]
        tiles = [self._tile(epoch, index) for epoch, index in pairs]
        points = [torch.from_numpy(tile.pop("points")) for tile in tiles]
        batch: Batch = {name: torch.from_numpy(np.stack([tile[name] for tile in tiles])) for name in tiles[0]}
        return {
            **batch,
            "points": points,
            "count": torch.tensor([float(len(part)) for part in points]),
            **names_of(self.images, [index for _, index in pairs]),
        }

    def place(self, epoch: int, index: int) -> Placement:
        """Where an item lies in its image."""
        random = placing_numbers(self.seed, epoch, index)
        row = index % len(self.images)
        shape = np.array(self.images.images[row].shape[:2])
        places = self._inside[row]
        number = int(random.random() * (shape.prod() if places is None else len(places)))
        pixel = divmod(number if places is None else int(places[number]), int(shape[1]))
        matrix = np.eye(2) if self.augmentation is None else self.augmentation.matrix(random)
        # The middle of an even number of pixels lies between two of them.
        wanted = np.array(pixel) - (0.5 if self.tile_size % 2 == 0 else 0.0)
        reach = np.abs(matrix).sum(1) * (self.tile_size - 1) / 2
        low, high = reach, shape - 1 - reach
        centre = np.where(low <= high, np.clip(wanted, low, np.maximum(low, high)), (shape - 1) / 2)
        return Placement((float(centre[0]), float(centre[1])), matrix, self.tile_size)

    def _tile(self, epoch: int, index: int) -> dict[str, np.ndarray]:
        row = index % len(self.images)
        place = self.place(epoch, index)
        image = cut_image(self.images.images[row], place, self.intensity_range)
        if self.augmentation is not None:
            image = self.augmentation({"image": image}, self.seed, epoch, index)["image"]
        inside = self.images.valid[row]
        everywhere = np.broadcast_to(np.uint8(1), self.images.images[row].shape[:2])
        valid = place.cut(everywhere if inside is None else inside.view(np.uint8), outside=0) != 0
        # Rounded first: what is in the tile in float64 may be on its border in float32.
        points = place.move(self.images.points[row]).astype(np.float32)
        kept = np.flatnonzero(((points >= -0.5) & (points < self.tile_size - 0.5)).all(1))
        kept = kept[valid[tuple(pixels_of(points[kept]).T)]]
        points, widths = points[kept], np.broadcast_to(self.widths[row], len(points))[kept]
        return {
            "image": as_served(image.reshape(self.tile_size, self.tile_size, -1)),
            "density": density_inside(points, valid, widths)[None],
            "valid": valid[None],
            "points": points,
        }


class WholePointImages(BatchDataset):
    """Images with points as they are, for evaluation.

    A batch holds what :func:`biocnn.data.whole_images.evaluation_entries` makes, ``density`` (1, 1, H, W) float32,
    ``points``, a list of one (n, 2) float32, and ``count`` (1,) float32.

    Attributes:
        widths: N standard deviations of the kernels, px, see :data:`Widths`; to be set before an item is asked for.

    Args:
        images: of a split.
        widths: when they are known already.
    """

    def __init__(self, images: PointImages, widths: Sequence[Widths] | None = None) -> None:
        self.images, self.widths = images, widths

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, keys: Sequence[ItemKey | int]) -> Batch:
        row = single(keys)
        if self.widths is None:
            raise DataError("The width of the kernels is not known: set `widths`, or give --data.sigma.")
        entries = evaluation_entries(self.images, row)
        points = self.images.points[row]
        density = density_inside(points, entries["valid"][0, 0].numpy(), self.widths[row])
        return {
            **entries,
            "density": torch.from_numpy(density[None, None]),
            "points": [torch.from_numpy(points.astype(np.float32))],
            "count": torch.tensor([float(len(points))]),
        }
