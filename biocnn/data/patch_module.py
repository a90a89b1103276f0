"""The datamodule of patch classification."""

from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning.utilities import rank_zero_info

from biocnn.data.augmentation import Augmentation, PatchAugmentation
from biocnn.data.batches import Batch
from biocnn.data.datamodule import STAGES, DataModule, StartMethod, report_quick_audit
from biocnn.data.dataset import ConcatSource, ItemDataset, Source
from biocnn.data.device_patches import DevicePatches
from biocnn.data.manifest import load_manifest
from biocnn.data.patch_files import open_patch_images
from biocnn.data.patches import PatchSource, first_occurrences, open_patch_source
from biocnn.data.splits import group_folds, split_hash
from biocnn.errors import DataError, ManifestError


class PatchDataModule(DataModule):
    """Patches in the PCam layout, see :mod:`biocnn.data.patches`.

    Args:
        root: folder that holds the files.
        manifest: name of a shipped manifest, or path of one.
        augmentation: of the training patches; :class:`PatchAugmentation` with its defaults when None.
        unique_only: train on the first of every set of identical patches; 16 % of PCam's training patches repeat
            another one.
        folds: when given, train and valid (or train alone) are pooled and dealt to this many folds by group.
        fold: the fold to validate on, 0..folds-1.
        images: patches to predict: an HDF5 file, a folder, or a glob of image files.
        batch_size: of training, per process.
        eval_batch_size: of validation, test and prediction, per process.
        num_workers: worker processes; chosen for you when None.
        start_method: how workers are started.
        seed: of order, augmentation and folds.
        on_device: hold the training patches on the device, 7.2 GB for PCam, and augment them there; see
            :class:`biocnn.data.device_patches.DevicePatches`. For a GPU that the processors cannot feed.
    """

    def __init__(
        self,
        root: str = ".",
        manifest: str = "pcam",
        augmentation: Augmentation | None = None,
        unique_only: bool = False,
        folds: int | None = None,
        fold: int = 0,
        images: str | None = None,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        start_method: StartMethod | None = None,
        seed: int = 0,
        on_device: bool = False,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, start_method, seed)
        if folds is not None and not 0 <= fold < folds:
            raise ValueError(f"fold must be in 0..{folds - 1}, received {fold}.")
        self.root, self.manifest, self.manifest_argument = Path(root), load_manifest(manifest), manifest
        if self.manifest.kind != "patches-hdf5":
            raise ManifestError(
                f"Manifest {self.manifest.name!r} is of kind {self.manifest.kind!r}; this pipeline reads "
                "'patches-hdf5'."
            )
        if len(self.manifest.classes) not in (0, 2):
            raise ManifestError(
                f"Manifest {self.manifest.name!r} has the classes {list(self.manifest.classes)}; this pipeline "
                "tells two classes apart, labelled 0 and 1."
            )
        self.classes = self.manifest.classes or ("negative", "positive")
        self.augmentation = PatchAugmentation() if augmentation is None else augmentation
        self.unique_only, self.folds, self.fold, self.images = unique_only, folds, fold, images
        self.on_device = on_device
        self._patch_size: list[int] = []
        self._datasets: dict[str, ItemDataset] = {}
        self._labels: dict[str, np.ndarray] = {}
        self._groups: dict[str, np.ndarray | None] = {}
        self._ids: dict[str, np.ndarray] = {}

    def prepare_data(self) -> None:
        """Decode compressed files once, on one process of each machine."""
        for split in self.manifest.splits:
            if (self.root / self.manifest.splits[split].images).is_file():
                open_patch_source(self.manifest, self.root, split)

    def setup(self, stage: str) -> None:
        """Open the splits that a stage needs, and look at the data before training.

        Raises:
            DatasetNotFoundError: if a file is missing.
            DataError: if files are damaged or do not belong together, if a group sits in two splits, or if a split
                holds one class only.
        """
        wanted = [split for split in STAGES[stage] if split not in self._datasets]
        if not wanted:
            return
        if stage == "predict":
            self._datasets["predict"] = self._open_prediction()
            return
        if stage == "fit":
            report_quick_audit(self.manifest, self.root, pooled=self.folds is not None)
        if self.folds is not None and set(wanted) & {"train", "valid"}:
            self._open_folds(self.folds)
            return
        for split in wanted:
            if split not in self.manifest.splits:
                raise ManifestError(
                    f"Manifest {self.manifest.name!r} has no split {split!r}; it has {list(self.manifest.splits)}. "
                    "Add it, or hold out a part of train by group: --data.folds 5."
                )
            source = open_patch_source(self.manifest, self.root, split)
            rows = np.arange(len(source))
            if split == "train" and self.unique_only:
                rows = first_occurrences(source.content_hashes())
                rank_zero_info(f"unique_only: {len(rows):,} of {len(source):,} training patches are kept.")
            self._add(split, source, rows, source.labels, source.groups, source.ids)

    def _add(
        self,
        split: str,
        source: Source,
        rows: np.ndarray,
        labels: np.ndarray | None,
        groups: np.ndarray | None,
        ids: np.ndarray,
    ) -> None:
        assert labels is not None  # files of this kind have labels, `open_patch_source` has read them
        found = np.unique(labels)
        if not np.isin(found, (0, 1)).all():
            raise DataError(f"{self.root}: the labels of {split!r} are {found.tolist()}, expected 0 and 1.")
        height, width = source.read(rows[:1])["image"].shape[1:3]
        if height != width:
            raise DataError(
                f"{self.root}: the patches of {split!r} have {height}x{width} px, expected squares: quarter turns are "
                "part of training and prediction. Cut them to squares."
            )
        self._patch_size = [height, width]
        if split in ("train", "valid") and len(np.unique(labels[rows])) < 2:
            raise DataError(f"{self.root}: all {len(rows):,} patches of {split!r} have label {labels[rows][0]}.")
        augmentation = self.augmentation if split == "train" else None
        self._datasets[split] = ItemDataset(source, rows, augmentation, self.seed)
        self._labels[split], self._ids[split] = labels[rows], ids[rows]
        self._groups[split] = None if groups is None else groups[rows]
        if split == "train" and self.on_device:
            parts = labels[rows], ids[rows], self._groups[split]
            self._datasets[split] = DevicePatches(self._datasets[split], self.augmentation, *parts)

    def _open_folds(self, folds: int) -> None:
        pooled_splits = [split for split in ("train", "valid") if split in self.manifest.splits]
        sources = [open_patch_source(self.manifest, self.root, split) for split in pooled_splits]
        groups = [source.groups for source in sources]
        if any(group is None for group in groups):
            raise ManifestError(f"Folds need a group rule: manifest {self.manifest.name!r} has none.")
        pooled_groups = np.concatenate([group for group in groups if group is not None])
        labels = np.concatenate([source.labels for source in sources if source.labels is not None])
        ids = np.concatenate([source.ids for source in sources])
        fold = group_folds(pooled_groups, labels, folds, self.seed)
        pooled = ConcatSource(sources)
        train = np.flatnonzero(fold != self.fold)
        if self.unique_only:
            hashes = np.concatenate([source.content_hashes() for source in sources])
            train = train[first_occurrences(hashes[train])]
        self._add("train", pooled, train, labels, pooled_groups, ids)
        self._add("valid", pooled, np.flatnonzero(fold == self.fold), labels, pooled_groups, ids)

    def _open_prediction(self) -> ItemDataset:
        if self.images is None:
            raise DataError("Nothing to predict: give --data.images an HDF5 file, a folder, or a glob of image files.")
        source = open_patch_images(self.images, self.manifest)
        self._ids["predict"] = source.ids
        return ItemDataset(source)

    def dataset(self, split: str) -> ItemDataset:
        """The data set of a split that `setup` has opened."""
        return self._datasets[split]

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Images become float32 (B, C, H, W) in 0..1 on the device; those that are held there are made first."""
        training = self._datasets.get("train")
        if "image" not in batch and isinstance(training, DevicePatches):
            batch = training.complete(batch)
        return super().on_after_batch_transfer(batch, dataloader_idx)

    def ids(self, split: str) -> list[str]:
        """Id of every item of a split, in its order."""
        return [name.decode() for name in self._ids[split]]

    def groups(self, split: str) -> list[str] | None:
        """Group of every item of a split, in its order; None without a group rule."""
        groups = self._groups[split]
        return None if groups is None else [name.decode() for name in groups]

    def content_hashes(self, split: str) -> np.ndarray:
        """Digest of the pixels of every item of a split that is not made of folds, (N,) ``V16``."""
        source = self._datasets[split].source
        assert isinstance(source, PatchSource)
        return source.content_hashes()[self._datasets[split].rows]

    def _hash(self, *splits: str) -> str:
        return split_hash({split: (self._ids[split], self._labels[split]) for split in splits})

    def describe(self) -> dict[str, Any]:
        """Name, sizes, split hash and how the data were served; plain values."""
        return {
            "manifest": self.manifest.name,
            "classes": list(self.classes),
            "channels": list(self.manifest.channels),
            "pixel_size_um": None if self.manifest.pixel_size_um is None else list(self.manifest.pixel_size_um),
            "patch_size": self._patch_size,
            "sizes": {split: len(ids) for split, ids in self._ids.items() if split != "predict"},
            "split_hash": self._hash(*self._labels),
            "valid_hash": self._hash("valid") if "valid" in self._labels else None,
            "unique_only": self.unique_only,
            "folds": self.folds,
            "fold": self.fold,
            "seed": self.seed,
        }
