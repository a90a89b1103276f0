"""A torchmetrics class that gathers the predictions of a binary classifier across batches and ranks."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from biocnn.errors import DataError


class BinaryPredictions(Metric):
    """Gathers index, logit and label of every sample, so that metrics are computed once from all of them.

    An area under a curve is not the mean of the areas of batches or ranks; this class holds state and nothing
    else, and :mod:`biocnn.metrics.evaluation` does the arithmetic. A distributed sampler repeats samples to
    make ranks even; repeats are dropped by index, so the result is the one of a single process.

    Memory: 16 bytes a sample and 4 for each further view.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = None

    index: list[Tensor]
    logit: list[Tensor]
    label: list[Tensor]
    views: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("index", "logit", "label"):
            self.add_state(name, default=[], dist_reduce_fx="cat")
        # Logits are held flat, so that a rank without samples can take part without knowing the number of
        # views.
        self.add_state("views", default=torch.tensor(0), dist_reduce_fx="max")

    def update(self, index: Tensor, logit: Tensor, label: Tensor) -> None:
        """Add a batch of B samples.

        Args:
            index: (B,) integers, the place of each sample in the data set; it identifies the sample.
            logit: (B,), or (B, V) for V views of each sample (test-time augmentation).
            label: (B,) of 0 and 1.

        Raises:
            DataError: if the shapes do not go together or differ in kind from an earlier batch.
        """
        if index.ndim != 1 or label.shape != index.shape or logit.ndim > 2 or logit.shape[:1] != index.shape:
            raise DataError(
                "expected index (B,), logit (B,) or (B, V) and label (B,), received "
                f"{tuple(index.shape)}, {tuple(logit.shape)} and {tuple(label.shape)}"
            )
        views = logit.shape[1] if logit.ndim == 2 else 0
        if self.index and views != int(self.views):
            raise DataError(f"logit: expected {int(self.views)} views (0: no view axis) as before, received {views}")
        self.views = torch.full_like(self.views, views)
        self.index.append(index.detach().long())
        self.logit.append(logit.detach().float().flatten())
        self.label.append(label.detach().long())

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the states of all ranks; arguments as in :meth:`torchmetrics.Metric.sync`."""
        # For a rank without samples torchmetrics would send an empty float32 tensor, which does not match the
        # int64 of the other ranks.
        if isinstance(self.index, list) and not self.index:
            for state, dtype in (
                (self.index, torch.int64),
                (self.logit, torch.float32),
                (self.label, torch.int64),
            ):
                state.append(torch.empty(0, dtype=dtype, device=self.device))
        super().sync(*args, **kwargs)

    def _wrap_compute(self, compute: Callable) -> Callable:
        # torchmetrics turns a result with one element into a scalar; one sample is still a table with one row.
        wrapped = super()._wrap_compute(compute)

        @functools.wraps(compute)
        def table() -> dict[str, Tensor]:
            single = {"index": (1,), "logit": (1, 1) if int(self.views) else (1,), "label": (1,)}
            return {name: value if value.ndim else value.reshape(single[name]) for name, value in wrapped().items()}

        return table

    def compute(self) -> dict[str, Tensor]:
        """All samples of all ranks, sorted by index, each index once (its first occurrence).

        Returns:
            `index` (N,) int64, `logit` (N,) or (N, V) float32, `label` (N,) int64.

        Raises:
            DataError: if no sample has been added.
        """
        index = dim_zero_cat(self.index) if len(self.index) else torch.empty(0)
        if index.numel() == 0:
            raise DataError("no predictions to evaluate: expected at least one batch, received none")
        label = dim_zero_cat(self.label)
        logit = dim_zero_cat(self.logit)
        if int(self.views):
            logit = logit.reshape(index.numel(), int(self.views))
        ranked, order = torch.sort(index, stable=True)
        first = torch.ones_like(ranked, dtype=torch.bool)
        first[1:] = ranked[1:] != ranked[:-1]
        order = order[first]
        return {"index": index[order], "logit": logit[order], "label": label[order]}
