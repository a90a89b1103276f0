"""The datamodule of images with points: random tiles to train on, whole images to evaluate and to predict."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from pytorch_lightning.utilities import rank_zero_info

from biocnn.data.augmentation import Augmentation, symmetries
from biocnn.data.batches import Batch
from biocnn.data.datamodule import DataModule, StartMethod
from biocnn.data.dataset import BatchDataset
from biocnn.data.fingerprint import ImageFingerprint, choose_serving
from biocnn.data.image_sets import MAX_BYTES, deal, draw
from biocnn.data.image_splits import ImageSplits, check_counts, check_fold
from biocnn.data.point_fingerprint import point_fingerprint, share_beyond
from biocnn.data.point_images import PointImages, check_content, read_split
from biocnn.data.point_tiles import PointTiles, WholePointImages, Widths, widths_of
from biocnn.data.whole_images import trained_on


class CountingDataModule(DataModule):
    """Images with points, of a manifest of kind ``image-points``.

    What is None is chosen from the fingerprint of the training set, and printed with the reason. The test split is that
    of the manifest, whatever is drawn for training and validation: these come out of its train and valid.

    Args:
        root: folder that holds the files.
        manifest: name of a shipped manifest, or path of one.
        augmentation: of the training tiles; the symmetries of the square when None.
        tile_size: side of a training tile in pixels.
        tiles_per_epoch: training tiles in an epoch, rounded up so that every image gives as many; as many as cover
            the images once, and at least 8 batches, when None.
        sigma: standard deviation of the kernels in pixels.
        sigma_um: the same in micrometres, for images of known pixel size, instead of `sigma`.
        neighbours: instead of both, widths of 0.3 times the mean distance of each point to so many nearest neighbours,
            1 to 15 px; see :func:`biocnn.data.density.kernel_widths`. For crowds whose cells differ in size; `sigma`
            becomes their median in the training set, by which peaks are told.
        training_images: when given, so many images are drawn by `seed` from train and valid together to train on; see
            :func:`biocnn.data.image_sets.draw`.
        valid_images: so many of the others to validate on; all of them when None.
        folds: when given, train and valid (or train alone) are pooled and dealt to this many folds, by group if the
            manifest has a group rule, else by file.
        fold: the fold to validate on, 0..folds-1.
        images: images to predict: a file, a folder, or a glob.
        rois: GeoJSON or ImageJ file of regions, which are counted in every image to predict; or a folder with such a
            file for each image, of the same name but for the suffix.
        batch_size: training tiles in a batch, per process. Whole images come one by one.
        num_workers: worker processes; chosen for you when None.
        start_method: how workers are started.
        seed: of order, places, augmentation, draws and folds.
        max_bytes: memory that images and points of one split may take.
    """

    def __init__(
        self,
        root: str = ".",
        manifest: str = "vgg_cells",
        augmentation: Augmentation | None = None,
        tile_size: int | None = None,
        tiles_per_epoch: int | None = None,
        sigma: float | None = None,
        sigma_um: float | None = None,
        neighbours: int | None = None,
        training_images: int | None = None,
        valid_images: int | None = None,
        folds: int | None = None,
        fold: int = 0,
        images: str | None = None,
        rois: str | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
        start_method: StartMethod | None = None,
        seed: int = 0,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        super().__init__(1 if batch_size is None else batch_size, 1, num_workers, start_method, seed)
        check_counts(
            tile_size=tile_size,
            tiles_per_epoch=tiles_per_epoch,
            neighbours=neighbours,
            training_images=training_images,
            valid_images=valid_images,
        )
        check_fold(folds, fold)
        if folds is not None and (training_images, valid_images) != (None, None):
            raise ValueError("Give either folds, or training_images and valid_images: they are two ways to split.")
        for name, value in {"sigma": sigma, "sigma_um": sigma_um}.items():
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive, received {value}.")
        if (sigma, sigma_um, neighbours).count(None) < 2:
            raise ValueError(f"Give one of sigma, sigma_um and neighbours, received {sigma}, {sigma_um}, {neighbours}.")
        self._splits: ImageSplits[PointImages] = ImageSplits(
            root,
            manifest,
            "image-points",
            lambda split: read_split(self.manifest, self.root, split, max_bytes),
            check_content,
        )
        self.root, self.manifest, self.manifest_argument = self._splits.root, self._splits.manifest, manifest
        self.augmentation = symmetries() if augmentation is None else augmentation
        self.tile_size, self.tiles_per_epoch, self.sigma, self.sigma_um = tile_size, tiles_per_epoch, sigma, sigma_um
        self.neighbours, self.training_images, self.valid_images = neighbours, training_images, valid_images
        self.folds, self.fold, self.images, self.rois = folds, fold, images, rois
        self._batch_size_given = batch_size is not None

    @property
    def fingerprint(self) -> ImageFingerprint | None:
        """Of the training set, once it is open."""
        return self._splits.fingerprint

    def setup(self, stage: str) -> None:
        """Read the splits that a stage needs, check them, and choose what was not given.

        Raises:
            DatasetNotFoundError: if a file is missing.
            ManifestError: if the manifest has no such split.
            DataError: if files are damaged or do not fit together, see :func:`biocnn.data.point_images.read_split` and
                :func:`biocnn.data.point_images.check_content`; if there are too few images to draw from; if a group
                sits in two splits; if an image is smaller than a tile.
        """
        self._splits.open(stage, self._serve, self._rearrange(), self.images, self.trainer)

    def _serve(self, split: str, images: PointImages) -> BatchDataset:
        return self._tiles(images) if split == "train" else WholePointImages(images)

    def _rearrange(self) -> Callable[[PointImages], dict[str, PointImages]] | None:
        folds = self.folds
        if folds is not None:
            return lambda images: deal(images, folds, self.fold, self.seed)
        if self.training_images is None and self.valid_images is None:
            return None
        return lambda images: draw(images, self.training_images, self.valid_images, self.seed)

    def _tiles(self, images: PointImages) -> PointTiles:
        """The training tiles; chooses and prints what was not given."""
        found = self._splits.fingerprint = point_fingerprint(images)
        given = self.batch_size if self._batch_size_given else None
        chosen = choose_serving(images, found, self.tile_size, given, self.tiles_per_epoch)
        self.tile_size, self.tiles_per_epoch = chosen.tile_size, chosen.tiles_per_epoch
        self.batch_size = chosen.batch_size
        lines = [*found.lines(), *chosen.lines]
        if (self.sigma, self.sigma_um, self.neighbours) == (None, None, None):
            self.sigma = found.sigma
            lines.append(f"data.sigma: {self.sigma:g} px ({found.sigma_reason})")
        widths = self.widths(images)
        if self.neighbours is not None:
            every = np.concatenate(widths)
            self.sigma = round(float(np.median(every)), 2)
            lines.append(
                f"data.neighbours: kernels of {every.min():.2f} to {every.max():.2f} px, median {self.sigma:g}"
            )
        for line in lines:
            rank_zero_info(line)
        return PointTiles(
            images,
            widths,
            chosen.tile_size,
            chosen.tiles_per_epoch,
            self.augmentation,
            found.intensity_range,
            self.seed,
        )

    def widths(self, images: PointImages) -> list[Widths]:
        """Standard deviation of the kernels of every image, px; see :func:`biocnn.data.point_tiles.widths_of`.

        What was given or chosen, else that of the training, which the task remembers from its checkpoint.

        Raises:
            DataError: if neither is known; or it is in micrometres and an image has no pixel size.
        """
        if (self.sigma, self.sigma_um, self.neighbours) != (None, None, None):
            return widths_of(images, self.sigma, self.sigma_um, self.neighbours)
        stored = trained_on(self.trainer)
        return widths_of(images, stored.get("sigma"), stored.get("sigma_um"), stored.get("neighbours"))

    def dataset(self, split: str) -> BatchDataset:
        """The data set of a split that `setup` has opened."""
        found = self._splits.datasets[split]
        if isinstance(found, WholePointImages) and found.widths is None:
            # Not in `setup`: what needs images and points only, such as a baseline, needs no width.
            found.widths = self.widths(found.images)
        return found

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Images become float32 (B, C, H, W), on the device; the range of the training set becomes 0..1.

        Whole images that are not uint8 get ``beyond``, for each the share of its pixels that is cut by that; see
        :func:`biocnn.data.point_fingerprint.share_beyond`.

        Raises:
            DataError: if that range is not known: images are not uint8, and neither was this datamodule set up to
                fit nor does the task remember it from its checkpoint.
        """
        if batch.get("unscaled", False):
            limits = self._splits.intensity_range(self.trainer)
            batch = {**batch, "beyond": [share_beyond(image, limits) for image in batch["image"].movedim(1, -1)]}
        return self._splits.to_unit_range(batch, self.trainer)

    def points(self, split: str) -> PointImages:
        """Images and points of a split that `setup` has opened, as for baselines that need no network."""
        return self._splits.images[split]

    def ids(self, split: str) -> list[str]:
        """Id of every image of a split, in its order: its path."""
        return self._splits.ids(split)

    def groups(self, split: str) -> list[str] | None:
        """Group of every image of a split, in its order; None without a group rule."""
        return self._splits.groups(split)

    def describe(self) -> dict[str, Any]:
        """Name, sizes, split hash, fingerprint and how the data were served; plain values."""
        widths = ("sigma", "sigma_um", "neighbours")
        served = ("tile_size", "batch_size", "tiles_per_epoch", "training_images", "valid_images", "folds", "fold")
        return {**self._splits.describe(), **{name: getattr(self, name) for name in (*widths, *served, "seed")}}
