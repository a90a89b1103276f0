"""Batch norm over the batch of all processes, on CPUs as well, where torch has none."""

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class _Sum(torch.autograd.Function):
    """Sum of a tensor over all processes. What a process contributes acts on the losses of all of them."""

    @staticmethod
    def forward(context: Any, values: torch.Tensor) -> torch.Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> torch.Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


class SyncedBatchNorm(_BatchNorm):
    """Batch norm, (B, C, *S) to the same shape, over the batches of all processes.

    So a batch that is shared out among processes trains as it does in one. Torch's `SyncBatchNorm`, which is faster,
    runs on GPUs only, and so does distributed training of whatever derives from it. Evaluation, and training in one
    process, is that of the plain layer. Mean and variance are found in two passes, as the plain layer does, in float32
    under any autocast.

    Reference: Ioffe, Szegedy: Batch normalization. ICML 2015.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(B, C, *S) -> (B, C, *S)."""
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(input)
        values = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        axes, shape = [0, *range(2, input.ndim)], [1, -1] + [1] * (input.ndim - 2)
        own = values.new_tensor([values.numel() / values.shape[1]])
        totals = _Sum.apply(torch.cat([values.sum(axes), own]))
        mean, count = totals[:-1] / totals[-1].detach(), totals[-1].detach()
        centred = values - mean.view(shape)
        variance = _Sum.apply(centred.square().sum(axes)) / count
        self._follow(mean.detach(), variance.detach() * count / (count - 1))
        result = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            result = result * self.weight.view(shape) + self.bias.view(shape)
        return result.to(input.dtype)

    def _check_input_dim(self, input: torch.Tensor) -> None:
        """Any number of spatial axes will do."""

    @torch.no_grad()
    def _follow(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        """Move the running statistics towards those of a batch."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def synced(layer: _BatchNorm, device: str = "cpu") -> _BatchNorm:
    """The synced layer for a kind of device that shares parameters and statistics with a plain one."""
    kind: type[_BatchNorm] = SyncedBatchNorm if device == "cpu" else nn.SyncBatchNorm
    made = kind(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
    made._parameters, made._buffers = layer._parameters, layer._buffers
    return made.train(layer.training)


def plain_batch_norms(network: nn.Module) -> list[tuple[nn.Module, str, _BatchNorm]]:
    """Parent, name and layer of all batch norms that :func:`synced` can stand in for.

    Subclasses, such as timm's with their activation inside, do more than the plain layer and are left out.
    """
    return [
        (parent, name, child)
        for parent in network.modules()
        for name, child in parent.named_children()
        if type(child) in _PLAIN and isinstance(child, _BatchNorm)
    ]


def other_batch_norms(network: nn.Module) -> set[str]:
    """Classes of the batch norms of which each process keeps its own statistics."""
    return {
        type(module).__name__
        for module in network.modules()
        if isinstance(module, _BatchNorm) and type(module) not in (*_PLAIN, SyncedBatchNorm, nn.SyncBatchNorm)
    }
