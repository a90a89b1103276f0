"""The datamodule of images with masks: random tiles to train on, whole images to evaluate and to predict."""

from collections.abc import Callable
from typing import Any

from pytorch_lightning.utilities import rank_zero_info
from torch.utils.data import DataLoader

from biocnn.data.augmentation import Augmentation, TileAugmentation
from biocnn.data.batches import Batch
from biocnn.data.datamodule import DataModule, StartMethod
from biocnn.data.dataset import BatchDataset
from biocnn.data.fingerprint import Fingerprint, choose_serving, fingerprint
from biocnn.data.image_sets import MAX_BYTES, deal
from biocnn.data.image_splits import ImageSplits, check_counts, check_fold
from biocnn.data.manifest import Manifest
from biocnn.data.mask_images import MaskImages, check_content, read_split
from biocnn.data.targets import check_max_distance
from biocnn.data.tiles import TARGETS, TileDataset
from biocnn.data.whole_images import WholeImages


class SegmentationDataModule(DataModule):
    """Images with masks, of a manifest of kind ``image-mask``.

    What is None is chosen from the fingerprint of the training set, and printed with the reason. The planes of a stack
    are served one by one, as images of two dimensions: networks of three cannot be trained with this datamodule.

    The target ``distance`` is cut where the loss of the task expects it, see :func:`max_distance_of`.

    Args:
        root: folder that holds the files.
        manifest: name of a shipped manifest, or path of one.
        augmentation: of the training tiles; :class:`TileAugmentation` with its defaults when None.
        tile_size: side of a training tile in pixels.
        tiles_per_epoch: training tiles in an epoch, rounded up so that every image gives as many; as many as cover
            the images once, and at least 8 batches, when None.
        foreground_share: of training tiles that are centred on foreground.
        folds: when given, train and valid (or train alone) are pooled and dealt to this many folds, by group if the
            manifest has a group rule, else by file.
        fold: the fold to validate on, 0..folds-1.
        images: images to predict: a file, a folder, or a glob.
        batch_size: training tiles in a batch, per process. Whole images come one by one.
        num_workers: worker processes; chosen for you when None.
        start_method: how workers are started.
        seed: of order, places, augmentation and folds.
        max_bytes: memory that images and masks of one split may take.
    """

    def __init__(
        self,
        root: str = ".",
        manifest: str = "drive",
        augmentation: Augmentation | None = None,
        tile_size: int | None = None,
        tiles_per_epoch: int | None = None,
        foreground_share: float = 0.5,
        folds: int | None = None,
        fold: int = 0,
        images: str | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
        start_method: StartMethod | None = None,
        seed: int = 0,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        super().__init__(1 if batch_size is None else batch_size, 1, num_workers, start_method, seed)
        check_counts(tile_size=tile_size, tiles_per_epoch=tiles_per_epoch)
        check_fold(folds, fold)
        if not 0 <= foreground_share <= 1:
            raise ValueError(f"foreground_share must be in 0..1, received {foreground_share}.")
        self._splits: ImageSplits[MaskImages] = ImageSplits(
            root,
            manifest,
            "image-mask",
            lambda split: read_split(self.manifest, self.root, split, max_bytes),
            check_content,
        )
        self.root, self.manifest, self.manifest_argument = self._splits.root, self._splits.manifest, manifest
        self.augmentation = TileAugmentation() if augmentation is None else augmentation
        self.tile_size, self.tiles_per_epoch = tile_size, tiles_per_epoch
        self.foreground_share = foreground_share
        self.folds, self.fold, self.images = folds, fold, images
        self._batch_size_given = batch_size is not None

    @property
    def fingerprint(self) -> Fingerprint | None:
        """Of the training set, once it is open."""
        found = self._splits.fingerprint
        assert found is None or isinstance(found, Fingerprint)  # `_tiles` made it
        return found

    def setup(self, stage: str) -> None:
        """Read the splits that a stage needs, check them, and choose what was not given.

        Raises:
            DatasetNotFoundError: if a file is missing.
            ManifestError: if the manifest has no such split.
            DataError: if files are damaged or do not fit together, see :func:`biocnn.data.mask_images.read_split` and
                :func:`biocnn.data.mask_images.check_content`; if a group sits in two splits; if an image is smaller
                than a tile.
        """
        self._splits.open(stage, self._serve, self._rearrange(), self.images, self.trainer)

    def _serve(self, split: str, images: MaskImages) -> BatchDataset:
        return self._tiles(images) if split == "train" else WholeImages(images)

    def _rearrange(self) -> Callable[[MaskImages], dict[str, MaskImages]] | None:
        folds = self.folds
        return None if folds is None else lambda images: deal(images, folds, self.fold, self.seed)

    def _tiles(self, images: MaskImages) -> TileDataset:
        """The training tiles; chooses and prints what was not given."""
        found = self._splits.fingerprint = fingerprint(images)
        given = self.batch_size if self._batch_size_given else None
        chosen = choose_serving(images, found, self.tile_size, given, self.tiles_per_epoch)
        self.tile_size, self.tiles_per_epoch = chosen.tile_size, chosen.tiles_per_epoch
        self.batch_size = chosen.batch_size
        for line in (*found.lines(), *chosen.lines):
            rank_zero_info(line)
        if (largest := self.augmentation.largest_scale) != 1:
            rank_zero_info(
                f"data.augmentation: tiles are magnified up to {largest:g} times: widest radius in them "
                f"{largest * found.widest_radius:.1f} px"
            )
        return TileDataset(
            images,
            chosen.tile_size,
            chosen.tiles_per_epoch,
            self.augmentation,
            self.foreground_share,
            found.intensity_range,
            seed=self.seed,
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled, augmented tiles with the targets that the task names in its attribute ``targets``, else all.

        Raises:
            ValueError: if terms of the loss cut distances at different numbers of pixels.
        """
        dataset = self.dataset("train")
        assert isinstance(dataset, TileDataset)  # `setup` made it
        task = None if self.trainer is None else self.trainer.lightning_module
        dataset.targets = TARGETS if task is None else getattr(task, "targets", frozenset({"mask"}))
        if (max_distance := max_distance_of(task)) is not None:
            dataset.max_distance = max_distance
        return super().train_dataloader()

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Images become float32 (B, C, H, W) in 0..1, on the device.

        The range of the training set becomes 0..1; values beyond it, which a network never saw, are cut.

        Raises:
            DataError: if that range is not known: images are not uint8, and neither was this datamodule set up to
                fit nor does the task remember it from its checkpoint.
        """
        return self._splits.to_unit_range(batch, self.trainer)

    def intensity_range(self) -> tuple[float, float]:
        """What becomes 0 and 1: of this training set, else of the one that the task was trained on.

        Raises:
            DataError: if neither is known.
        """
        return self._splits.intensity_range(self.trainer)

    def dataset(self, split: str) -> BatchDataset:
        """The data set of a split that `setup` has opened."""
        return self._splits.datasets[split]

    def ids(self, split: str) -> list[str]:
        """Id of every image of a split, in its order: its path, with the number of the plane for a stack."""
        return self._splits.ids(split)

    def groups(self, split: str) -> list[str] | None:
        """Group of every image of a split, in its order; None without a group rule."""
        return self._splits.groups(split)

    def describe(self) -> dict[str, Any]:
        """Name, sizes, split hash, fingerprint and how the data were served; plain values.

        ``widest_radius_in_tiles`` is that of the fingerprint at the largest magnification of the augmentation.
        ``max_distance`` is None unless the loss of the task asks for distances.
        """
        found = self.fingerprint
        return {
            **self._splits.describe(),
            "classes": _classes(self.manifest),
            "widest_radius_in_tiles": None if found is None else found.widest_radius * self.augmentation.largest_scale,
            "tile_size": self.tile_size,
            "batch_size": self.batch_size,
            "tiles_per_epoch": self.tiles_per_epoch,
            "foreground_share": self.foreground_share,
            "max_distance": max_distance_of(None if self.trainer is None else self.trainer.lightning_module),
            "folds": self.folds,
            "fold": self.fold,
            "seed": self.seed,
        }


def max_distance_of(task: Any) -> float | None:
    """Pixels at which the loss of a task expects the target ``distance`` to be cut.

    Args:
        task: whose ``loss.parts()``, if there are any, give (name, weight, term), see :class:`biocnn.losses.base.Loss`.

    Returns:
        The ``max_distance`` of the terms that take this target; None if there is no such term, or none says it: tiles
        then cut at their default of 15 px.

    Raises:
        ValueError: if terms differ, as one target cannot serve them both, or it is not positive and finite.
    """
    parts: list[tuple[str, float, Any]] = getattr(getattr(task, "loss", None), "parts", list)()
    asked = [(name, term) for name, _, term in parts if getattr(term, "target_key", None) == "distance"]
    found = {name: term.max_distance for name, term in asked if getattr(term, "max_distance", None) is not None}
    if len(set(found.values())) > 1:
        raise ValueError(
            "The terms of a loss share the target 'distance', so they need one max_distance in pixels; received "
            f"{', '.join(f'{name}: {value:g}' for name, value in found.items())}. Give them the same."
        )
    return check_max_distance(next(iter(found.values()))) if found else None


def _classes(manifest: Manifest) -> list[str]:
    """What 0 and 1 mean in the masks that are served."""
    values = manifest.mask_values or {}
    wanted = manifest.foreground or [value for value in values if value != 0]
    background = [name for value, name in values.items() if value not in wanted]
    return [", ".join(background) or "background", ", ".join(values[value] for value in wanted) or "foreground"]
