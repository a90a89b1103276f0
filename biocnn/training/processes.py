"""What a training or a prediction on several processes needs: their results in one place, and one batch norm."""

from collections.abc import Sequence
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch.distributed as dist
from pytorch_lightning.plugins.layer_sync import LayerSync
from pytorch_lightning.utilities import rank_zero_warn
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from biocnn.errors import DataError
from biocnn.networks.synced_batch_norm import other_batch_norms, plain_batch_norms, synced

Item = TypeVar("Item")


def several_processes() -> bool:
    """Whether this process is one of several that have found each other."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def own_rank() -> int:
    """Number of this process, 0 if it is the only one."""
    return dist.get_rank() if several_processes() else 0


def gathered(items: Sequence[Item]) -> list[Item]:
    """The items of all processes, in the order of their ranks; the same in each of them, all of which have to ask.

    A :class:`biocnn.data.sampler.ShardSampler` deals items in order, so those of an evaluation come in order as well.
    """
    if not several_processes():
        return list(items)
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, list(items))
    return [item for part in parts for item in part]


def check_each_once(found: Sequence[str], expected: Sequence[str]) -> None:
    """Check that every item was predicted once, and that they come in order.

    Raises:
        DataError: if not.
    """
    if list(found) != list(expected):
        raise DataError(
            f"{len(expected)} item(s) were to be predicted once each, in order, and {len(found)} came, "
            f"{len(set(found))} different ones. Look whether all processes see the same files, and predict again."
        )


class BatchNormSync(LayerSync):
    """Batch norm over the batch of all processes while training, on any device, so that their number changes nothing.

    Lightning's own, `sync_batchnorm`, is torch's, which refuses to run on CPUs, and which leaves layers of another
    class behind. Nothing happens with one process.
    """

    def __init__(self) -> None:
        self._replaced: list[tuple[nn.Module, str, _BatchNorm]] = []

    def apply(self, model: nn.Module) -> nn.Module:
        """Put synced layers into the places of the plain ones."""
        device = model.trainer.strategy.root_device.type if isinstance(model, pl.LightningModule) else "cpu"
        self._replaced = plain_batch_norms(model)
        for parent, name, layer in self._replaced:
            parent.register_module(name, synced(layer, device))
        if left := other_batch_norms(model):
            rank_zero_warn(
                f"{', '.join(sorted(left))}: each process has batch statistics of its own, so that the training "
                "depends on their number."
            )
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Put the plain layers back, with what was learned."""
        for parent, name, layer in self._replaced:
            trained = parent.get_submodule(name)
            layer._parameters, layer._buffers = trained._parameters, trained._buffers
            parent.register_module(name, layer.train(trained.training))
        self._replaced = []
        return model
