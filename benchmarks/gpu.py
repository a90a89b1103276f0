"""Images per second of whole trainings on a GPU, against the same networks on batches that already lie there.

    python benchmarks/gpu.py > docs/results/gpu.jsonl

Data are drawn into a temporary folder, in the sizes of PCam, DRIVE and VGG cells. Networks, losses and optimisers are
those of pipelines/*.yaml; tiles and batches are large enough to fill a GPU. A line for each contestant, in order:

- loop: network, loss, backward pass and optimiser in a bare PyTorch loop over a few batches on the device. In float32
  and bf16, with channels first and last (as the networks have it), and compiled, with the seconds that this took.
- lightning: Lightning's Trainer over the same batches, with all that a pipeline adds: metrics, checkpoints, averaged
  weights.
- pipeline: the same over the datamodule, with workers and augmentation. `share` is its rate over that of the loop of
  equal precision and layout, 0.95 is the goal; `data_wait_share` is what throughput.csv says.
- on device: for PCam, the same with `--data.on_device`.

The training is one long epoch without validation. Without a GPU all sizes are tiny, which shows that the script runs;
such numbers mean nothing.
"""

import argparse
import contextlib
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import h5py
import numpy as np
import pytorch_lightning as pl
import torch
import yaml
from lightning_fabric.utilities import move_data_to_device
from PIL import Image, ImageDraw
from pytorch_lightning.callbacks import Callback
from torch.utils.data import DataLoader

from biocnn.checkpoints import AtomicCheckpointIO
from biocnn.data.counting_module import CountingDataModule
from biocnn.data.datamodule import DataModule
from biocnn.data.patch_module import PatchDataModule
from biocnn.data.segmentation_module import SegmentationDataModule
from biocnn.losses import BCE, DensityMSE, Dice, SoftClDice
from biocnn.networks import SmallDenseNet, UNet
from biocnn.tasks.base import Task
from biocnn.tasks.classification import ClassificationTask
from biocnn.tasks.counting import CountingTask
from biocnn.tasks.segmentation import SegmentationTask
from biocnn.training.callbacks import EMA, RandomStates, checkpoint_callbacks
from biocnn.training.logger import MetricsCSV, read_metrics
from biocnn.training.throughput import Throughput

MEAN, STD = [0.5] * 3, [0.25] * 3
DISTINCT = 8  # batches that lie on the device


@dataclass(frozen=True)
class Size:
    """How much is trained on: `steps` steps of `batch` images or tiles of `side` px, after `warm_up` steps."""

    batch: int
    side: int
    warm_up: int
    steps: int

    @property
    def items(self) -> int:
        return self.batch * (self.warm_up + self.steps)


@dataclass(frozen=True)
class Contest:
    """One job: its data, its task and its loader."""

    task: Callable[[], Task]
    write: Callable[[Path, Size], None]
    datamodule: Callable[[Path, Size, int | None], DataModule]
    monitor: str
    batch: int
    side: int


def write_patches(root: Path, size: Size) -> None:
    rng = np.random.default_rng(0)
    for split, count in {"train": size.items, "valid": 64, "test": 64}.items():
        stem = root / f"camelyonpatch_level_2_split_{split}"
        labels = np.arange(count) % 2
        with h5py.File(f"{stem}_x.h5", "w") as file:
            x = file.create_dataset("x", (count, 96, 96, 3), np.uint8)
            for start in range(0, count, 1024):
                x[start : start + 1024] = rng.integers(0, 255, (min(1024, count - start), 96, 96, 3), np.uint8)
        with h5py.File(f"{stem}_y.h5", "w") as file:
            file["y"] = labels.astype(np.uint8).reshape(-1, 1, 1, 1)
        rows = [f"{row},0,0,{bool(label)},{bool(label)},{split}" for row, label in enumerate(labels)]
        text = ",coord_y,coord_x,tumor_patch,center_tumor_patch,wsi\n" + "\n".join(rows) + "\n"
        Path(f"{stem}_meta.csv").write_text(text)


def write_images(root: Path, kind: str, height: int, width: int, train: int) -> None:
    """Noisy RGB images with white lines and their masks, or with white dots; and a manifest of them."""
    rng = np.random.default_rng(0)
    target = "masks" if kind == "image-mask" else "points"
    for split, count in {"train": train, "valid": 2}.items():
        for name in ("images", target):
            (root / split / name).mkdir(parents=True)
        for number in range(count):
            drawn = Image.new("L", (width, height))
            if target == "masks":
                for _ in range(20):
                    ends = [tuple(rng.integers(0, (width, height)).tolist()) for _ in range(2)]
                    ImageDraw.Draw(drawn).line(ends, 255, 3)
            else:
                places = rng.integers(0, (width, height), (max(8, height * width // 400), 2))
                ImageDraw.Draw(drawn).point(places.ravel().tolist(), 255)
            noise = rng.integers(0, 128, (height, width, 3), np.uint8)
            Image.fromarray(noise + np.asarray(drawn)[..., None] // 2).save(root / split / "images" / f"{number}.png")
            drawn.save(root / split / target / f"{number}.png")
    manifest: dict[str, Any] = {
        **dict.fromkeys(("title", "description", "licence", "citation"), "drawn"),
        "name": "drawn",
        "kind": kind,
        "channels": ["red", "green", "blue"],
        "splits": {name: {"images": f"{name}/images/*", target: f"{name}/{target}/*"} for name in ("train", "valid")},
    }
    if target == "masks":
        manifest |= {"mask_values": {0: "background", 255: "line"}, "foreground": [255]}
    (root / "drawn.yaml").write_text(yaml.safe_dump(manifest))


CONTESTS = {
    "pcam": Contest(
        lambda: ClassificationTask(SmallDenseNet(), lr=2e-3),
        write_patches,
        lambda root, size, workers: PatchDataModule(str(root), batch_size=size.batch, num_workers=workers),
        "val_nll",
        batch=256,
        side=96,
    ),
    "tubularity": Contest(
        lambda: SegmentationTask(
            UNet(3, channels=(16, 32, 64, 128, 256), norm="instance"),
            0.5 * BCE() + 0.5 * Dice() + 0.5 * SoftClDice(iterations=5),
            image_mean=MEAN,
            image_std=STD,
        ),
        lambda root, size: write_images(root, "image-mask", *((584, 565) if size.side > 64 else (96, 80)), 16),
        lambda root, size, workers: SegmentationDataModule(
            str(root), str(root / "drawn.yaml"), tile_size=size.side, tiles_per_epoch=size.items,
            batch_size=size.batch, num_workers=workers,
        ),
        "val_bce",
        batch=32,
        side=256,
    ),
    "counting": Contest(
        lambda: CountingTask(
            UNet(3, channels=(16, 32, 64)), DensityMSE(), lr=3e-3, image_mean=MEAN, image_std=STD, density_scale=100
        ),
        lambda root, size: write_images(root, "image-points", *((256, 256) if size.side > 64 else (96, 80)), 64),
        lambda root, size, workers: CountingDataModule(
            str(root), str(root / "drawn.yaml"), tile_size=size.side, tiles_per_epoch=size.items,
            batch_size=size.batch, num_workers=workers,
        ),
        "val_mae",
        batch=64,
        side=128,
    ),
}  # fmt: skip


class Clock(Callback):
    """Seconds from the end of the warm-up to the end of the last step; the device is waited for at these two only."""

    def __init__(self, size: Size) -> None:
        self.size, self.marks = size, [0.0, 0.0]

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        for place, step in enumerate((self.size.warm_up, self.size.warm_up + self.size.steps)):
            if trainer.global_step == step:
                self.marks[place] = now(trainer.strategy.root_device)

    @property
    def rate(self) -> float:
        return self.size.batch * self.size.steps / (self.marks[1] - self.marks[0])


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextlib.contextmanager
def peak(device: torch.device, found: dict[str, Any]) -> Iterator[None]:
    """Put the most memory that was allocated on a GPU into `found`."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    yield
    if device.type == "cuda":
        found["peak_gb"] = round(torch.cuda.max_memory_allocated(device) / 1e9, 2)


def first_batches(datamodule: DataModule, device: torch.device) -> list[dict[str, Any]]:
    datamodule.setup("fit")
    loader = iter(datamodule.train_dataloader())
    batches = (move_data_to_device(next(loader), device) for _ in range(DISTINCT))
    return [datamodule.on_after_batch_transfer(batch, 0) for batch in batches]


def loop(
    contest: Contest, batches: list[dict[str, Any]], size: Size, precision: str, last: bool, compiled: bool
) -> dict[str, Any]:
    """A bare loop; with `last` unset, the channels stay where they are, although the networks move them last."""
    device = batches[0]["image"].device
    found: dict[str, Any] = {}
    layout = contextlib.nullcontext() if last else patch.object(torch, "channels_last", torch.contiguous_format)
    with layout, peak(device, found):
        torch.manual_seed(0)
        task = contest.task().to(device).train()
        # Some ask how far the training is.
        task.trainer = pl.Trainer(accelerator="cpu", max_epochs=-1, max_steps=size.steps, logger=False)
        if compiled:
            task.network.compile(dynamic=False, backend="inductor" if device.type == "cuda" else "eager")
        optimizer = torch.optim.AdamW(task.parameters(), 1e-3)
        start = now(device)
        for step in range(size.warm_up + size.steps):
            with torch.autocast(device.type, torch.bfloat16, precision == "bf16-mixed"):
                loss = task._step(batches[step % len(batches)], "train")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step == 0 and compiled:
                found["first_step_s"] = round(now(device) - start, 1)
            if step == size.warm_up - 1:
                start = now(device)
        found["images_per_s"] = size.batch * size.steps / (now(device) - start)
    return found


def whole(contest: Contest, data: Any, size: Size, precision: str, device: torch.device) -> dict[str, Any]:
    """What a pipeline does, over a datamodule or over batches that lie on the device."""
    found: dict[str, Any] = {}
    clock = Clock(size)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr), peak(device, found):
        torch.manual_seed(0)
        table = MetricsCSV(folder, table="throughput.csv")
        callbacks = [*checkpoint_callbacks(Path(folder) / "c", contest.monitor, "min", 500), RandomStates(), EMA()]
        trainer = pl.Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=1,
            precision=precision,  # type: ignore[arg-type]
            max_epochs=1,
            max_steps=size.warm_up + size.steps,
            limit_val_batches=0,
            callbacks=[*callbacks, Throughput(table), clock],
            logger=MetricsCSV(folder),
            plugins=[AtomicCheckpointIO()],
            log_every_n_steps=max(1, size.steps // 10),
            enable_model_summary=False,
        )
        if isinstance(data, DataModule):
            trainer.fit(contest.task(), datamodule=data)
        else:
            trainer.fit(contest.task(), DataLoader(data, batch_size=None))
        rows = [row for row in read_metrics(table.path) if row["data_wait_share"] and int(row["step"]) > size.warm_up]
        found["data_wait_share"] = round(statistics.mean(float(row["data_wait_share"]) for row in rows), 3)
    return {**found, "images_per_s": clock.rate}


def say(job: str, contestant: str, found: dict[str, Any], reference: float | None = None) -> float:
    rate: float = found.pop("images_per_s")
    share = {} if reference is None else {"share": round(rate / reference, 3)}
    line = {"job": job, "contestant": contestant, "images_per_s": round(rate, 1), **share, **found}
    print(json.dumps(line), flush=True)
    return rate


def race(job: str, size: Size, workers: int | None, device: torch.device) -> None:
    contest = CONTESTS[job]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        contest.write(root, size)
        batches = first_batches(contest.datamodule(root, size, 0), device)
        slow = say(job, "loop, float32, channels first", loop(contest, batches, size, "32-true", False, False))
        for precision, last in (("32-true", True), ("bf16-mixed", False), ("bf16-mixed", True)):
            name = f"loop, {'bf16' if precision == 'bf16-mixed' else 'float32'}, channels {'last' if last else 'first'}"
            best = say(job, name, loop(contest, batches, size, precision, last, False), slow)
        say(job, "loop, bf16, channels last, compiled", loop(contest, batches, size, "bf16-mixed", True, True), best)
        endless = [batches[step % len(batches)] for step in range(size.warm_up + size.steps)]
        say(job, "lightning, bf16", whole(contest, endless, size, "bf16-mixed", device), best)
        datamodule = contest.datamodule(root, size, workers)
        say(job, "pipeline, bf16", whole(contest, datamodule, size, "bf16-mixed", device), best)
        if job == "pcam":
            held = PatchDataModule(str(root), batch_size=size.batch, num_workers=0, on_device=True)
            say(job, "pipeline, bf16, on device", whole(contest, held, size, "bf16-mixed", device), best)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", nargs="+", choices=CONTESTS, default=list(CONTESTS))
    parser.add_argument("--batch", type=int, help="images or tiles in a batch; that of the job when not given")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--workers", type=int, help="of the pipeline; chosen by it when not given")
    options = parser.parse_args()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where = {"torch": str(torch.__version__), "cores": os.cpu_count()}
    if device.type == "cuda":
        print(json.dumps({"device": torch.cuda.get_device_name(device), **where}), flush=True)
    else:
        print(json.dumps({"device": "cpu", **where, "note": "no GPU, tiny sizes: these numbers mean nothing"}))
    for job in options.jobs:
        contest = CONTESTS[job]
        size = Size(options.batch or contest.batch, contest.side, 30, options.steps)
        race(job, size if device.type == "cuda" else Size(4, min(contest.side, 64), 4, 4), options.workers, device)


if __name__ == "__main__":
    main()
