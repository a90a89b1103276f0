"""Samplers whose order depends on nothing but (seed, epoch), and whose position can be restored."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data.distributed import DistributedSampler

ItemKey = tuple[int, int]
"""(epoch, index): names one item of one epoch, all that its augmentation depends on besides the seed."""


class EpochSampler(DistributedSampler[ItemKey]):
    """Shuffled items of a training epoch.

    The order is a permutation drawn from (seed, epoch). Rank r of R takes every R-th item of it, so that the union
    of the ranks' k-th batches is the k-th batch of one process with the R-fold batch size. The last N mod R items of
    the permutation, others in every epoch, are left out rather than repeated.

    It derives from `DistributedSampler` for one reason: Lightning leaves such a sampler alone and calls its
    `set_epoch`.

    Args:
        length: N, number of items.
        seed: of the run.
        rank: of this process, 0..R-1.
        world_size: R.

    Raises:
        ValueError: if there are fewer items than processes.
    """

    def __init__(self, length: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        if length < world_size:
            raise ValueError(f"{length} training items cannot be shared by {world_size} processes.")
        self.length, self.seed = length, seed
        self.rank, self.num_replicas = rank, world_size
        self.epoch = 0
        self._resumed_epoch, self._skipped = -1, 0

    def __len__(self) -> int:
        return self.length // self.num_replicas

    def resume(self, epoch: int, consumed: int) -> None:
        """Leave out the first `consumed` items of this rank when `epoch` is iterated; later epochs are whole."""
        self._resumed_epoch, self._skipped = epoch, consumed

    def __iter__(self) -> Iterator[ItemKey]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
        mine = order[self.rank : len(self) * self.num_replicas : self.num_replicas]
        start = self._skipped if self.epoch == self._resumed_epoch else 0
        for index in mine[start:].tolist():
            yield self.epoch, index


class ShardSampler(DistributedSampler[ItemKey]):
    """Items of an evaluation in order, each exactly once over all ranks: nothing is padded or repeated.

    Ranks get contiguous shares that differ by at most one item.
    """

    def __init__(self, length: int, rank: int = 0, world_size: int = 1) -> None:
        self.rank, self.num_replicas, self.epoch = rank, world_size, 0
        bounds = np.linspace(0, length, world_size + 1).round().astype(int)
        self._range = range(int(bounds[rank]), int(bounds[rank + 1]))

    def __len__(self) -> int:
        return len(self._range)

    def __iter__(self) -> Iterator[ItemKey]:
        return ((0, index) for index in self._range)
