"""Statistics of batch norm, taken again after training."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from biocnn.errors import DataError


def reestimate_batch_norm(
    network: nn.Module, batches: Iterable[torch.Tensor], device: torch.device | str | None = None
) -> int:
    """Replace the running statistics of batch norm by those of clean training images, in one pass.

    In training they follow augmented images and weights that change. With few images a pass over these, as they are,
    with the final weights gives better ones: Guo, Wu, Stein, Krishnamurthy: SAU-Net: a universal deep network for cell
    counting. ACM BCB 2019.

    Layers of batch norm run as in training while all others, such as dropout, run as in evaluation. The new mean and
    (unbiased) variance of a channel are the averages over the batches, each with the same weight, so let all batches be
    of one size; with one batch they are exact, with more the variance between batches is left out, as in training.
    Nothing else changes: neither weights nor modes, and momentum is as before. If anything fails, the old statistics
    are restored. Call it with the same batches in every process of a distributed run, or in one.

    Args:
        network: called with a batch; on `device` already. A task may be passed too, if it normalises the images itself.
        batches: (B, C, *S) float each, as the network takes them.
        device: to which batches are moved; that of the first layer of batch norm by default.

    Returns:
        the number of batches.

    Raises:
        ValueError: if the network has no batch norm with running statistics, or there are no batches.
        DataError: if a statistic is not finite.
    """
    layers = [
        module
        for module in network.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None
    ]
    if not layers:
        raise ValueError(
            f"{type(network).__name__} has no batch norm with running statistics, so there is nothing to estimate. Use "
            "a network with batch norm, or leave the re-estimation out."
        )
    device = next(layers[0].buffers()).device if device is None else device
    modes = [(module, module.training) for module in network.modules()]
    momenta = [layer.momentum for layer in layers]
    before = [{name: buffer.clone() for name, buffer in layer.named_buffers()} for layer in layers]
    done = False
    try:
        network.eval()
        for layer in layers:
            layer.train()
            layer.reset_running_stats()
            layer.momentum = None  # the average over all batches since the reset
        count = _run(network, batches, device)
        _check_finite(layers)
        done = True
    finally:
        for module, mode in modes:
            module.training = mode
        for layer, momentum, buffers in zip(layers, momenta, before, strict=True):
            layer.momentum = momentum
            if not done:
                layer.load_state_dict(buffers, strict=False)
    return count


def _run(network: nn.Module, batches: Iterable[torch.Tensor], device: torch.device | str) -> int:
    count = 0
    with torch.no_grad():
        for batch in batches:
            network(batch.to(device))
            count += 1
    if count == 0:
        raise ValueError("Batch norm was to be re-estimated from no batches. Pass the training images.")
    return count


def _check_finite(layers: list[_BatchNorm]) -> None:
    if not all(buffer.isfinite().all() for layer in layers for buffer in layer.buffers()):
        raise DataError(
            "Batch norm statistics of the training images are not finite. Look for nan or infinity in the images and "
            "in the weights."
        )
