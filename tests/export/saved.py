"""Checkpoints of the three jobs, of networks that were not trained."""

from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from biocnn.metrics.calibration import Calibration
from biocnn.metrics.conformal import ConformalInterval
from biocnn.networks import LeNet5, UNet
from biocnn.tasks.base import Task
from biocnn.tasks.classification import ClassificationTask
from biocnn.tasks.counting import CountingTask
from biocnn.tasks.segmentation import SegmentationTask
from biocnn.tasks.thresholds import Thresholds

RANDOM = np.random.default_rng(0)
COLOURS = RANDOM.integers(0, 256, (48, 72, 3), dtype=np.uint8)
GREY = RANDOM.integers(0, 3500, (48, 72, 1)).astype(np.uint16)  # some of it beyond the range below
PATCHES = RANDOM.integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
MEAN, STD = [0.4, 0.5, 0.3], [0.2, 0.3, 0.25]


def save(path: Path, task: Task, **data: Any) -> Path:
    task.data_description = data
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.strategy.connect(task)
    trainer.save_checkpoint(path)
    return path


def segmentation(path: Path) -> Path:
    """A U-Net that is given its own map, for grey images of 16 bits."""
    torch.manual_seed(0)
    network = UNet(2, channels=(4, 8), norm="instance")
    task = SegmentationTask(
        network, image_mean=MEAN[:1], image_std=STD[:1], refinement_steps=2, test_time_augmentation=False
    )
    task.thresholds = Thresholds(0.4, 6, 1, 2, True)
    fingerprint = {"intensity_range": [400.0, 3000.0]}
    return save(
        path,
        task,
        manifest="own",
        channels=["grey"],
        dtype="uint16",
        fingerprint=fingerprint,
        pixel_size_um=[0.5, 0.25],
    )


def counting(path: Path) -> Path:
    """A U-Net of one level, with a scale of the training and a factor of the validation."""
    torch.manual_seed(0)
    network = UNet(3, channels=(4,))
    task = CountingTask(network, density_scale=50.0, image_mean=MEAN, image_std=STD, test_time_augmentation=False)
    task.interval, task.interval_views, task.count_factor = ConformalInterval(2.0, 0.1, 0.5, 20), 1, 1.1
    return save(path, task, channels=["red", "green", "Blue stain"], pixel_size_um=[0.5, 0.5], sigma=2.0)


def classification(path: Path) -> Path:
    """LeNet-5 with a temperature."""
    torch.manual_seed(0)
    task = ClassificationTask(LeNet5(input_size=32), image_mean=MEAN, image_std=STD, test_time_augmentation=False)
    task.calibration = Calibration(temperature=1.7, threshold=0.3, kept=True)
    return save(path, task, manifest="pcam", classes=["normal", "tumour"], patch_size=[32, 32], pixel_size_um=[1, 1])


JOBS = {"segmentation": segmentation, "counting": counting, "classification": classification}
PICTURES = {"segmentation": GREY[None], "counting": COLOURS[None], "classification": PATCHES}


def answer(job: str, model: Any) -> np.ndarray:
    """What `biocnn.load` gives for the pictures of a job, in the shape of an exported file."""
    pictures = PICTURES[job]
    if job == "classification":
        return np.asarray(model.predict(pictures))[:, None]
    predict = model.tubularity if job == "segmentation" else model.density
    return np.stack([predict(picture) for picture in pictures])[:, None]


def stored(job: str) -> np.ndarray:
    """The pictures of a job as an exported file takes them: (B, C, H, W) float32, as stored."""
    return np.ascontiguousarray(np.moveaxis(PICTURES[job], 3, 1), dtype=np.float32)
