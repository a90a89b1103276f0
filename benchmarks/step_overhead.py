"""Cost of a Lightning training step of the task, against the same step in a bare PyTorch loop.

    python benchmarks/step_overhead.py > docs/results/step_overhead.jsonl

LeNet-5, 96x96 patches in memory, batch 64, AdamW with the same schedule and parameter groups. The task runs as the
pipeline runs it: metrics logged every 10 steps into metrics.csv, checkpoints and random states on, progress bar on.
Both with and without the moving average of the weights, which the bare loop does by `swa_utils.AveragedModel`.
Turns alternate, and the median ratio counts, because machines are noisy.
"""

import argparse
import contextlib
import json
import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from biocnn.checkpoints import AtomicCheckpointIO
from biocnn.networks import LeNet5
from biocnn.tasks.base import warmup_cosine
from biocnn.tasks.classification import ClassificationTask
from biocnn.training.callbacks import EMA, RandomStates, checkpoint_callbacks
from biocnn.training.logger import MetricsCSV

WARM_UP = 10


def batches(steps: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    pool = [
        {
            "image": torch.rand(64, 3, 96, 96, generator=generator),
            "label": torch.randint(0, 2, (64,), generator=generator),
            "index": torch.arange(64),
        }
        for _ in range(8)
    ]
    return [pool[step % 8] for step in range(steps)]


class Clock(Callback):
    """Times from the end of the warm-up to the end of the last step."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        if trainer.global_step == WARM_UP:
            self.start = time.perf_counter()
        self.stop = time.perf_counter()


def lightning_step(steps: int, averaged: bool) -> float:
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        clock = Clock()
        callbacks = [*checkpoint_callbacks(Path(folder) / "c", "val_nll", "min", 500), RandomStates(), clock]
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=1,
            callbacks=callbacks + ([EMA()] if averaged else []),
            logger=MetricsCSV(folder),
            plugins=[AtomicCheckpointIO()],
            log_every_n_steps=10,
            enable_model_summary=False,
        )
        trainer.fit(ClassificationTask(LeNet5()), DataLoader(batches(steps), batch_size=None))  # type: ignore[arg-type]
    return (clock.stop - clock.start) / (steps - WARM_UP)


def bare_step(steps: int, averaged: bool) -> float:
    task = ClassificationTask(LeNet5())
    groups = [
        {"params": [p for p in task.parameters() if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in task.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, 1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, steps // 10, steps))
    average = AveragedModel(task.network, multi_avg_fn=get_ema_multi_avg_fn(0.999), use_buffers=True)
    for step, batch in enumerate(batches(steps)):
        if step == WARM_UP:
            start = time.perf_counter()
        optimizer.zero_grad()
        logits = task.network(task.normalise(batch["image"]))[:, 0]
        F.binary_cross_entropy_with_logits(logits, batch["label"].float()).backward()
        optimizer.step()
        schedule.step()
        if averaged:
            average.update_parameters(task.network)
    return (time.perf_counter() - start) / (steps - WARM_UP)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=110)
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    for averaged in (False, True):
        pairs = [
            (lightning_step(options.steps, averaged), bare_step(options.steps, averaged)) for _ in range(options.turns)
        ]
        line = {
            "moving_average": averaged,
            "lightning_ms": round(1e3 * statistics.median(own for own, _ in pairs), 2),
            "bare_ms": round(1e3 * statistics.median(bare for _, bare in pairs), 2),
            "ratio": round(statistics.median(own / bare for own, bare in pairs), 3),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
