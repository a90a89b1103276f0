"""The datamodule of images with masks: random tiles to train on, whole images to evaluate and to predict."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning.utilities import rank_zero_info
from torch.utils.data import DataLoader

from biocnn.data.augmentation import Augmentation, TileAugmentation
from biocnn.data.datamodule import STAGES, DataModule, StartMethod, report_quick_audit
from biocnn.data.dataset import Batch, BatchDataset, to_float
from biocnn.data.fingerprint import Fingerprint, choose_serving, fingerprint
from biocnn.data.manifest import Manifest, load_manifest
from biocnn.data.mask_images import MAX_BYTES, MaskImages, check_content, deal, join, read_split
from biocnn.data.splits import split_hash
from biocnn.data.targets import check_max_distance
from biocnn.data.tiles import TARGETS, TileDataset
from biocnn.data.whole_images import FileImages, WholeImages, as_trained, trained_on
from biocnn.errors import DataError, ManifestError


class SegmentationDataModule(DataModule):
    """Images with masks, of a manifest of kind ``image-mask``.

    What is None is chosen from the fingerprint of the training set, and printed with the reason.

    Args:
        root: folder that holds the files.
        manifest: name of a shipped manifest, or path of one.
        augmentation: of the training tiles; :class:`TileAugmentation` with its defaults when None.
        tile_size: side of a training tile in pixels.
        tiles_per_epoch: training tiles in an epoch, rounded up so that every image gives as many; as many as cover
            the images once, and at least 8 batches, when None.
        foreground_share: of training tiles that are centred on foreground.
        max_distance: px, where the target ``distance`` is cut.
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
        max_distance: float = 15.0,
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
        for name, value in {"tile_size": tile_size, "tiles_per_epoch": tiles_per_epoch}.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, received {value}.")
        if not 0 <= foreground_share <= 1:
            raise ValueError(f"foreground_share must be in 0..1, received {foreground_share}.")
        if folds is not None and not 0 <= fold < folds:
            raise ValueError(f"fold must be in 0..{folds - 1}, received {fold}.")
        self.root, self.manifest, self.manifest_argument = Path(root), load_manifest(manifest), manifest
        if self.manifest.kind != "image-mask":
            raise ManifestError(
                f"Manifest {self.manifest.name!r} is of kind {self.manifest.kind!r}; this pipeline reads 'image-mask'."
            )
        self.augmentation = TileAugmentation() if augmentation is None else augmentation
        self.tile_size, self.tiles_per_epoch = tile_size, tiles_per_epoch
        self.foreground_share, self.max_distance = foreground_share, check_max_distance(max_distance)
        self.folds, self.fold, self.images, self.max_bytes = folds, fold, images, max_bytes
        self.fingerprint: Fingerprint | None = None
        self._batch_size_given = batch_size is not None
        self._images: dict[str, MaskImages] = {}
        self._datasets: dict[str, BatchDataset] = {}

    def setup(self, stage: str) -> None:
        """Read the splits that a stage needs, check them, and choose what was not given.

        Raises:
            DatasetNotFoundError: if a file is missing.
            ManifestError: if the manifest has no such split.
            DataError: if files are damaged or do not fit together, see :func:`biocnn.data.mask_images.read_split` and
                :func:`biocnn.data.mask_images.check_content`; if a group sits in two splits; if an image is smaller
                than a tile.
        """
        wanted = [split for split in STAGES[stage] if split not in self._datasets]
        if not wanted:
            return
        if stage == "predict":
            if self.images is None:
                raise DataError("Nothing to predict: give --data.images an image file, a folder, or a glob.")
            self._datasets["predict"] = FileImages(self.images, as_trained(self.manifest, self.trainer))
            return
        if stage == "fit":
            report_quick_audit(self.manifest, self.root, pooled=self.folds is not None)
        if self.folds is not None and stage != "test":
            read = self._read([split for split in ("train", "valid") if split in self.manifest.splits])
            read = deal(join(list(read.values())), self.folds, self.fold, self.seed)
        else:
            read = self._read(wanted)
        for split in wanted:
            check_content(read[split], split)
            self._images[split] = read[split]
            self._datasets[split] = self._tiles(read[split]) if split == "train" else WholeImages(read[split])

    def _read(self, splits: Sequence[str]) -> dict[str, MaskImages]:
        for split in splits:
            if split not in self.manifest.splits:
                raise ManifestError(
                    f"Manifest {self.manifest.name!r} has no split {split!r}; it has {list(self.manifest.splits)}. "
                    "Add it, or hold out a part of train: --data.folds 5."
                )
        return {split: read_split(self.manifest, self.root, split, self.max_bytes) for split in splits}

    def _tiles(self, images: MaskImages) -> TileDataset:
        """The training tiles; chooses and prints what was not given."""
        found = self.fingerprint = fingerprint(images)
        given = self.batch_size if self._batch_size_given else None
        chosen = choose_serving(images, found, self.tile_size, given, self.tiles_per_epoch)
        self.tile_size, self.tiles_per_epoch = chosen.tile_size, chosen.tiles_per_epoch
        self.batch_size = chosen.batch_size
        for line in (*found.lines(), *chosen.lines):
            rank_zero_info(line)
        return TileDataset(
            images,
            chosen.tile_size,
            chosen.tiles_per_epoch,
            self.augmentation,
            self.foreground_share,
            found.intensity_range,
            self.max_distance,
            self.seed,
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled, augmented tiles with the targets that the task names in its attribute ``targets``, else all."""
        dataset = self.dataset("train")
        assert isinstance(dataset, TileDataset)  # `setup` made it
        task = None if self.trainer is None else self.trainer.lightning_module
        dataset.targets = TARGETS if task is None else getattr(task, "targets", frozenset({"mask"}))
        return super().train_dataloader()

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Images become float32 (B, C, H, W), on the device; the range of the training set becomes 0..1.

        Raises:
            DataError: if that range is not known: images are not uint8, and neither was this datamodule set up to
                fit nor does the task remember it from its checkpoint.
        """
        batch = to_float(batch)
        if not batch.pop("unscaled", False):  # uint8, or tiles, which are scaled before they are augmented
            return batch
        low, high = self.intensity_range()
        return {**batch, "image": (batch["image"] - low) / (high - low)}

    def intensity_range(self) -> tuple[float, float]:
        """What becomes 0 and 1: of this training set, else of the one that the task was trained on.

        Raises:
            DataError: if neither is known.
        """
        if self.fingerprint is not None:
            return self.fingerprint.intensity_range
        stored = (trained_on(self.trainer).get("fingerprint") or {}).get("intensity_range")
        if stored is None and self.manifest.image.dtype == "uint8":
            return 0.0, 255.0
        if stored is None:
            raise DataError(
                f"Images of {self.manifest.image.dtype} are scaled as the training images were, and their range is "
                "not known. Test or predict with the checkpoint of a training: --ckpt_path RUN/checkpoints/best.ckpt."
            )
        return stored[0], stored[1]

    def dataset(self, split: str) -> BatchDataset:
        """The data set of a split that `setup` has opened."""
        return self._datasets[split]

    def ids(self, split: str) -> list[str]:
        """Id of every image of a split, in its order: its path, with the number of the plane for a stack."""
        found = self._datasets[split]
        return found.ids if isinstance(found, FileImages) else list(self._images[split].ids)

    def groups(self, split: str) -> list[str] | None:
        """Group of every image of a split, in its order; None without a group rule."""
        groups = self._images[split].groups
        return None if groups is None else list(groups)

    def describe(self) -> dict[str, Any]:
        """Name, sizes, split hash, fingerprint and how the data were served; plain values."""
        return {
            "manifest": self.manifest.name,
            "classes": _classes(self.manifest),
            "channels": list(self.manifest.channels),
            "dtype": self.manifest.image.dtype,
            "pixel_size_um": _pixel_size(self.manifest, self.fingerprint),
            "sizes": {split: len(images) for split, images in self._images.items()},
            "split_hash": _hash(self._images),
            "valid_hash": _hash({"valid": self._images["valid"]}) if "valid" in self._images else None,
            "test_hash": _hash({"test": self._images["test"]}) if "test" in self._images else None,
            "fingerprint": None if self.fingerprint is None else self.fingerprint.to_dict(),
            "tile_size": self.tile_size,
            "batch_size": self.batch_size,
            "tiles_per_epoch": self.tiles_per_epoch,
            "foreground_share": self.foreground_share,
            "max_distance": self.max_distance,
            "folds": self.folds,
            "fold": self.fold,
            "seed": self.seed,
        }


def _hash(parts: Mapping[str, MaskImages]) -> str:
    return split_hash(
        {split: (np.array([name.encode() for name in part.ids]), part.digests) for split, part in parts.items()}
    )


def _pixel_size(manifest: Manifest, found: Fingerprint | None) -> list[float] | None:
    size = manifest.pixel_size_um
    if size is None and found is not None:
        size = found.pixel_size_um
    return None if size is None else list(size)


def _classes(manifest: Manifest) -> list[str]:
    """What 0 and 1 mean in the masks that are served."""
    values = manifest.mask_values or {}
    wanted = manifest.foreground or [value for value in values if value != 0]
    background = [name for value, name in values.items() if value not in wanted]
    return [", ".join(background) or "background", ", ".join(values[value] for value in wanted) or "foreground"]
