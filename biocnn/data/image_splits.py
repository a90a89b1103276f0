"""The splits of a data set of images: what the datamodules of masks and of points have in common."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic

import numpy as np
import pytorch_lightning as pl

from biocnn.data.batches import Batch, to_float
from biocnn.data.datamodule import STAGES, report_quick_audit
from biocnn.data.dataset import BatchDataset
from biocnn.data.fingerprint import ImageFingerprint, scale
from biocnn.data.image_sets import Images, join
from biocnn.data.manifest import Kind, load_manifest
from biocnn.data.splits import split_hash
from biocnn.data.whole_images import FileImages, as_trained, trained_on
from biocnn.errors import DataError, ManifestError


class ImageSplits(Generic[Images]):
    """What has been opened of a data set: the images of its splits, and the data sets that serve them.

    Attributes:
        manifest: description of the data set.
        root: folder that holds the files.
        images: of every split that is open.
        datasets: of the same splits, and of ``"predict"``.
        fingerprint: of the training set, once it is open.

    Args:
        root: folder that holds the files.
        manifest: name of a shipped manifest, or path of one.
        kind: that the manifest must have.
        read: reads one split.
        check: looks at the images of a split, and raises an error or warns.

    Raises:
        ManifestError: if there is no such manifest, or it is of another kind.
    """

    def __init__(
        self, root: str, manifest: str, kind: Kind, read: Callable[[str], Images], check: Callable[[Images, str], None]
    ) -> None:
        self.root, self.manifest = Path(root), load_manifest(manifest)
        if self.manifest.kind != kind:
            raise ManifestError(
                f"Manifest {self.manifest.name!r} is of kind {self.manifest.kind!r}; this pipeline reads {kind!r}."
            )
        self._read, self._check = read, check
        self.images: dict[str, Images] = {}
        self.datasets: dict[str, BatchDataset] = {}
        self.fingerprint: ImageFingerprint | None = None

    def open(
        self,
        stage: str,
        serve: Callable[[str, Images], BatchDataset],
        rearrange: Callable[[Images], dict[str, Images]] | None,
        pattern: str | None,
        trainer: pl.Trainer | None,
    ) -> None:
        """Open what a stage needs and is not open yet.

        Args:
            stage: of Lightning; before ``"fit"`` the data are audited.
            serve: makes the data set of a split.
            rearrange: makes ``train`` and ``valid`` anew of both of them, or of train alone; None if they are as in
                the manifest. The test split is never given to it.
            pattern: images to predict.
            trainer: whose task may know what the images should be like.

        Raises:
            ManifestError: if the manifest has no such split.
            DatasetNotFoundError: if a file is missing, or no image to predict matches.
            DataError: if files are damaged or do not fit together; the audit finds an error; or there is no pattern of
                images to predict, or they are unlike those that the network was trained on.
        """
        wanted = [split for split in STAGES[stage] if split not in self.datasets]
        if stage == "predict" and wanted:
            if pattern is None:
                raise DataError("Nothing to predict: give --data.images an image file, a folder, or a glob.")
            self.datasets["predict"] = FileImages(pattern, as_trained(self.manifest, trainer))
        elif wanted:
            if stage == "fit":
                report_quick_audit(self.manifest, self.root, pooled=rearrange is not None)
            for split, images in self._read_all(wanted, None if stage == "test" else rearrange).items():
                self._check(images, split)
                self.images[split] = images
                self.datasets[split] = serve(split, images)

    def _read_all(
        self, wanted: Sequence[str], rearrange: Callable[[Images], dict[str, Images]] | None
    ) -> dict[str, Images]:
        if rearrange is None:
            for split in wanted:
                if split not in self.manifest.splits:
                    raise ManifestError(
                        f"Manifest {self.manifest.name!r} has no split {split!r}; it has "
                        f"{list(self.manifest.splits)}. Add it, or hold out a part of train: --data.folds 5."
                    )
            return {split: self._read(split) for split in wanted}
        pooled = [self._read(split) for split in ("train", "valid") if split in self.manifest.splits]
        if not pooled:
            raise ManifestError(f"Manifest {self.manifest.name!r} has neither train nor valid to make splits of.")
        found = rearrange(join(pooled))
        return {split: found[split] for split in wanted}

    def ids(self, split: str) -> list[str]:
        """Id of every image of a split, in its order: its path, with the number of the plane for a stack."""
        found = self.datasets[split]
        return found.ids if isinstance(found, FileImages) else list(self.images[split].ids)

    def groups(self, split: str) -> list[str] | None:
        """Group of every image of a split, in its order; None without a group rule."""
        groups = self.images[split].groups
        return None if groups is None else list(groups)

    def to_unit_range(self, batch: Batch, trainer: pl.Trainer | None) -> Batch:
        """Images become float32 (B, C, H, W) in 0..1 on the device, by :func:`biocnn.data.fingerprint.scale`.

        Raises:
            DataError: if that range is not known, see :meth:`intensity_range`.
        """
        batch = to_float(batch)
        if not batch.pop("unscaled", False):  # uint8, or tiles, which are scaled before they are augmented
            return batch
        return {**batch, "image": scale(batch["image"], self.intensity_range(trainer))}

    def intensity_range(self, trainer: pl.Trainer | None) -> tuple[float, float]:
        """What becomes 0 and 1: of this training set, else of the one that the task was trained on.

        Raises:
            DataError: if neither is known.
        """
        if self.fingerprint is not None:
            return self.fingerprint.intensity_range
        stored = (trained_on(trainer).get("fingerprint") or {}).get("intensity_range")
        if stored is None and self.manifest.image.dtype == "uint8":
            return 0.0, 255.0
        if stored is None:
            raise DataError(
                f"Images of {self.manifest.image.dtype} are scaled as the training images were, and their range is "
                "not known. Test or predict with the checkpoint of a training: --ckpt_path RUN/checkpoints/best.ckpt."
            )
        return stored[0], stored[1]

    def describe(self) -> dict[str, Any]:
        """Name, format, sizes, hashes of the splits and fingerprint; plain values."""
        found = self.fingerprint
        size = self.manifest.pixel_size_um
        if size is None and found is not None:
            size = found.pixel_size_um
        return {
            "manifest": self.manifest.name,
            "channels": list(self.manifest.channels),
            "dtype": self.manifest.image.dtype,
            "pixel_size_um": None if size is None else list(size),
            "sizes": {split: len(images) for split, images in self.images.items()},
            "split_hash": _hash(self.images),
            "valid_hash": _hash({"valid": self.images["valid"]}) if "valid" in self.images else None,
            "test_hash": _hash({"test": self.images["test"]}) if "test" in self.images else None,
            "fingerprint": None if found is None else found.to_dict(),
        }


def _hash(parts: Mapping[str, Images]) -> str:
    return split_hash(
        {split: (np.array([name.encode() for name in part.ids]), part.digests) for split, part in parts.items()}
    )


def check_counts(**counts: int | None) -> None:
    """Raise ValueError for a number of things that is given and below 1."""
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, received {value}.")


def check_fold(folds: int | None, fold: int) -> None:
    """Raise ValueError for a fold that is not there."""
    if folds is not None and not 0 <= fold < folds:
        raise ValueError(f"fold must be in 0..{folds - 1}, received {fold}.")
