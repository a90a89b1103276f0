"""The datamodule that all jobs share: splits, folds, seeds, workers and the position in the epoch."""

import os
from abc import abstractmethod
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_info
from torch.utils.data import DataLoader

from biocnn.data.audit import quick_audit
from biocnn.data.batches import Batch, to_float
from biocnn.data.dataset import BatchDataset, as_batch
from biocnn.data.manifest import Manifest
from biocnn.data.sampler import EpochSampler, ShardSampler
from biocnn.data.worker_signals import obey_parent_only
from biocnn.errors import DataError

StartMethod = Literal["fork", "spawn", "forkserver"]

STAGES = {"fit": ("train", "valid"), "validate": ("valid",), "test": ("test",), "predict": ("predict",)}
"""The splits that a stage of Lightning needs."""


def sensible_workers(augmented: bool, accelerator: str, processes: int = 1) -> tuple[int, str]:
    """How many worker processes pay, and why.

    Workers copy batches between processes. Without augmentation that costs more than the reading itself; on a CPU
    they take the cores that train.

    Args:
        augmented: whether items are augmented.
        accelerator: Lightning's name of the device, such as ``"cpu"`` or ``"cuda"``.
        processes: training processes on this machine, which share its cores.

    Returns:
        (number, reason).
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not augmented:
        return 0, "reading without augmentation is faster in the main process"
    if accelerator == "cpu":
        return 0, "training on the CPU needs the cores itself"
    number = max(0, min(8, cores // processes - 1))
    return number, f"{cores} cores for {processes} process(es), one kept for training"


def _begin_worker(worker: int) -> None:
    obey_parent_only()
    # OpenCV and torch would each start a thread per core in every worker.
    import cv2

    cv2.setNumThreads(0)
    cv2.ocl.setUseOpenCL(False)
    torch.set_num_threads(1)


class DataModule(pl.LightningDataModule):
    """Loaders for training, validation, test and prediction; a job says how to open its splits and no more.

    Training items are shuffled by (seed, epoch) and augmented by (seed, epoch, index), so batches are the same for
    any number of workers and any start method. Evaluation items come in order, each exactly once over all
    processes. The position in the epoch is part of every checkpoint.

    Args:
        batch_size: of training, per process.
        eval_batch_size: of validation, test and prediction, per process; 4 x `batch_size` when None.
        num_workers: worker processes per loader; chosen by :func:`sensible_workers` when None.
        start_method: how workers are started; the platform's default when None.
        seed: of order and augmentation.
    """

    def __init__(
        self,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        start_method: StartMethod | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value in {"batch_size": batch_size, "eval_batch_size": eval_batch_size}.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, received {value}.")
        if num_workers is not None and num_workers < 0:
            raise ValueError(f"num_workers must be at least 0, received {num_workers}.")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or 4 * batch_size
        self.num_workers, self.start_method, self.seed = num_workers, start_method, seed
        self._position: dict[str, Any] = {"epoch": 0, "consumed": 0}

    @abstractmethod
    def dataset(self, split: str) -> BatchDataset:
        """The data set of ``"train"``, ``"valid"``, ``"test"`` or ``"predict"``, made in `setup`."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What a checkpoint and a run record must know about the data: plain values only."""

    def check_training_items(self) -> None:
        """Raise a DataError if there are too few training items for one batch."""
        items, world_size = len(self.dataset("train")), self._ranks()[1]
        if items < self.batch_size * world_size:
            raise DataError(
                f"{items} training items do not fill one batch of {self.batch_size} on each of "
                f"{world_size} process(es). Set data.batch_size to at most {items // world_size}."
            )

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled, augmented batches; the last incomplete batch of an epoch is left out."""
        self.check_training_items()
        dataset = self.dataset("train")
        rank, world_size = self._ranks()
        sampler = EpochSampler(len(dataset), self.seed, rank, world_size)
        sampler.resume(self._position["epoch"], self._position["consumed"] // world_size)
        # Lightning sets the epoch only after it has made the iterator, and workers read ahead at once.
        sampler.set_epoch(self._position["epoch"])
        return self._loader(dataset, sampler, self.batch_size, drop_last=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Validation batches, in order."""
        return self._evaluation_loader("valid")

    def test_dataloader(self) -> DataLoader[Batch]:
        """Test batches, in order."""
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Batches to predict, in order."""
        return self._evaluation_loader("predict")

    def _evaluation_loader(self, split: str) -> DataLoader[Batch]:
        dataset = self.dataset(split)
        rank, world_size = self._ranks()
        if len(dataset) < world_size:
            raise DataError(
                f"{len(dataset)} {split} item(s) are too few for {world_size} processes, which need one each. Set "
                f"--trainer.devices to at most {max(1, len(dataset))}."
            )
        return self._loader(dataset, ShardSampler(len(dataset), rank, world_size), self.eval_batch_size, False)

    def _ranks(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _loader(
        self, dataset: BatchDataset, sampler: EpochSampler | ShardSampler, batch_size: int, drop_last: bool
    ) -> DataLoader[Batch]:
        accelerator = "cpu" if self.trainer is None else self.trainer.strategy.root_device.type
        workers = self.num_workers
        if workers is None:
            workers, reason = sensible_workers(
                dataset.augmentation is not None, accelerator, 1 if self.trainer is None else self.trainer.num_devices
            )
            if dataset.augmentation is not None:
                rank_zero_info(f"data.num_workers: {workers} ({reason})")
        return DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=workers,
            collate_fn=as_batch,  # type: ignore[arg-type]  # `__getitems__` returns a batch, not a list
            pin_memory=accelerator == "cuda",
            drop_last=drop_last,
            worker_init_fn=_begin_worker if workers else None,
            multiprocessing_context=self.start_method if workers else None,
            persistent_workers=workers > 0,
            # Without it a loader draws from the global random state whenever it is iterated.
            generator=torch.Generator().manual_seed(self.seed),
        )

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Images become float32 (B, C, H, W) in 0..1 on the device, see :func:`biocnn.data.batches.to_float`."""
        return to_float(batch)

    def state_dict(self) -> dict[str, Any]:
        """Epoch to go on in, items consumed in it by all processes, seed, and fingerprint of the splits."""
        assert self.trainer is not None  # only a Trainer writes checkpoints
        loop = self.trainer.fit_loop
        epochs: Any = loop.epoch_progress.current
        batches: Any = loop.epoch_loop.batch_progress.current
        # `processed`, not `completed`: a checkpoint written in on_train_batch_end sees its own batch as processed
        # but not yet as completed. In on_train_epoch_end the epoch is processed as well, and the next one begins.
        between_epochs = epochs.processed > epochs.completed
        consumed = 0 if between_epochs else batches.processed * self.batch_size * self.trainer.world_size
        split_hash = self.describe().get("split_hash")
        return {"epoch": epochs.processed, "consumed": consumed, "seed": self.seed, "split_hash": split_hash}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at the stored position.

        Raises:
            DataError: if the checkpoint was written with another seed or on other data: its order could not be
                continued.
        """
        if state_dict["seed"] != self.seed:
            raise DataError(
                f"The checkpoint was trained with data.seed={state_dict['seed']}, received {self.seed}. Resume with "
                "the seed of the checkpoint."
            )
        expected = self.describe().get("split_hash")
        if state_dict["split_hash"] != expected:
            raise DataError(
                f"The checkpoint was trained on splits {state_dict['split_hash']}, the data at hand are {expected}. "
                "Resume with the data, folds and settings of the checkpoint, or start a new run."
            )
        self._position = dict(state_dict)


def report_quick_audit(manifest: Manifest, root: Path, pooled: bool = False) -> None:
    """Print what the quick audit found; errors stop before any training.

    Args:
        manifest: description of the data set.
        root: folder that holds the files.
        pooled: train and valid are pooled and dealt anew by group, so that groups in both of them are no leak.

    Raises:
        DataError: with all errors of the audit.
    """
    audit = quick_audit(manifest, root)
    audits = [audit]
    if pooled:
        # Looked at one by one, each beside the test split, the two cannot leak into each other.
        parts = [
            {name: split for name, split in manifest.splits.items() if name != left} for left in ("train", "valid")
        ]
        audits = [quick_audit(manifest.model_copy(update={"splits": part}), root) for part in parts]
    found = [finding.text for each in audits for finding in each.findings if finding.level == "error"]
    errors = list(dict.fromkeys(found))
    if errors:
        raise DataError(
            f"The data in {root} cannot be trained on:\n"
            + "\n".join(f"  - {text}" for text in errors)
            + f"\nSee `biocnn data audit {manifest.name} --root {root}`."
        )
    for row in audit.rows:
        content = f", {row.content}" if row.content else ""
        groups = "" if row.groups is None else f", {row.groups:,} groups"
        rank_zero_info(f"data audit: {row.split}: {row.images:,} images of {row.shape}{content}{groups}")
    for finding in audit.findings:
        rank_zero_info(f"data audit, {finding.level}: {finding.text}")
