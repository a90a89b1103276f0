"""The one Dataset of all jobs: a source that reads rows, an augmentation, and the keys of the samplers."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from biocnn.data.augmentation import Augmentation
from biocnn.data.batches import Batch
from biocnn.data.sampler import ItemKey

_AUGMENTED = ("image", "mask", "valid")


class Source(Protocol):
    """What a job has to provide: rows of one split."""

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def read(self, rows: np.ndarray) -> dict[str, Any]:
        """Arrays with B rows each, and lists of B strings."""
        ...


class BatchDataset(Dataset[Batch]):
    """What a loader needs to know of a data set: its length, whole batches, and whether they are augmented.

    Attributes:
        augmentation: applied to every item; None for evaluation.
    """

    augmentation: Augmentation | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitems__(self, keys: Sequence[ItemKey | int]) -> Batch: ...

    def __getitem__(self, key: ItemKey | int) -> Batch:
        return self.__getitems__([key])


def epoch_and_index(key: ItemKey | int) -> ItemKey:
    """The key of an item; a plain index means epoch 0."""
    return key if isinstance(key, tuple) else (0, int(key))


class ItemDataset(BatchDataset):
    """Rows of a source, augmented, served as whole batches.

    Item i of the data set is row ``rows[i]`` of the source. A batch is read in one go (`__getitems__`), which is
    an order of magnitude faster than item by item when patches are small.

    Args:
        source: what to read.
        rows: (M,) int64 rows to serve; all of them when None.
        augmentation: applied to every item; None for evaluation.
        seed: of the run.
    """

    def __init__(
        self,
        source: Source,
        rows: np.ndarray | None = None,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        self.source, self.augmentation, self.seed = source, augmentation, seed
        self.rows = np.arange(len(source)) if rows is None else np.asarray(rows, np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, keys: Sequence[ItemKey | int]) -> Batch:
        pairs = [epoch_and_index(key) for key in keys]
        index = np.array([item for _, item in pairs], np.int64)
        batch = self.source.read(self.rows[index])
        if self.augmentation is not None:
            names = [name for name in _AUGMENTED if name in batch]
            for position, (epoch, item) in enumerate(pairs):
                arrays = {name: batch[name][position] for name in names}
                changed = self.augmentation(arrays, self.seed, epoch, int(self.rows[item]))
                for name in names:
                    batch[name][position] = changed[name]
        batch["index"] = index
        return {
            name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for name, value in batch.items()
        }


class ConcatSource:
    """Several sources of one kind as one, in the given order; for folds over training and validation data.

    Args:
        sources: at least one.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = list(sources)
        self._starts = np.cumsum([0] + [len(source) for source in self.sources])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, rows: np.ndarray) -> dict[str, Any]:
        """Rows 0..N-1 over all sources, in the given order."""
        which = np.searchsorted(self._starts, rows, side="right") - 1
        order = np.argsort(which, kind="stable")
        parts = [
            source.read(rows[which == number] - self._starts[number])
            for number, source in enumerate(self.sources)
            if (which == number).any()
        ]
        back = np.argsort(order, kind="stable")
        return {name: _join([part[name] for part in parts], back) for name in parts[0]}


def _join(parts: list[Any], order: np.ndarray) -> Any:
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)[order]
    joined = [item for part in parts for item in part]
    return [joined[position] for position in order] if joined else joined


def as_batch(batch: Batch) -> Batch:
    """Collate function: `ItemDataset.__getitems__` already returns a batch."""
    return batch
