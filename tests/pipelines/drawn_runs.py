"""Drawn vessels with a field of view as a data set, and the tubularity pipeline run on it."""

import contextlib
import io
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from biocnn.training.pipeline import run_pipeline
from pipelines.tubularity import JOB
from tests.data.drawn import save, vessels, write_manifest

ROOT = Path(__file__).parents[2]
SCRIPT, CONFIG = ROOT / "pipelines" / "tubularity.py", ROOT / "pipelines" / "tubularity.yaml"
SPLITS = {"train": 4, "valid": 2, "test": 3}
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
"""Of a process that a test starts."""
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
QUIET += ["--trainer.enable_model_summary", "false"]


def disc(height: int, width: int) -> np.ndarray:
    """A round field of view, (H, W) bool."""
    rows, columns = np.mgrid[:height, :width]
    return (rows - (height - 1) / 2) ** 2 + (columns - (width - 1) / 2) ** 2 < (min(height, width) / 2 - 2) ** 2


def picture(seed: int, bits: int = 8, height: int = 96, width: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """An RGB image of 8 bits or a grey one of 16, and its mask (H, W) bool."""
    grey, mask = vessels(seed, height, width)
    image = grey.astype(np.uint16) * 40 + 1000 if bits == 16 else np.dstack([grey, grey // 2, grey // 3])
    return image, mask


def write_data(root: Path, bits: int = 8, counts: Mapping[str, int] = SPLITS, **manifest: Any) -> str:
    """A data set with a field of view for every image; returns the path of its manifest."""
    suffix = ".tif" if bits == 16 else ".png"
    for start, (split, count) in enumerate(counts.items()):
        for number in range(count):
            image, mask = picture(100 * start + number, bits)
            save(root / split / "images" / f"{number}{suffix}", image)
            save(root / split / "masks" / f"{number}.png", mask.astype(np.uint8) * 255)
            save(root / split / "fields" / f"{number}.png", disc(*mask.shape).astype(np.uint8) * 255)
    parts = {"images": "images/*" + suffix, "masks": "masks/*.png", "valid": "fields/*.png"}
    fields: dict[str, Any] = {
        "name": f"drawn{bits}",
        "channels": ["grey"] if bits == 16 else ["red", "green", "blue"],
        "image": {"dtype": f"uint{bits}"},
        "splits": {split: {part: f"{split}/{glob}" for part, glob in parts.items()} for split in counts},
    }
    return write_manifest(root, list(counts), **(fields | manifest))


def spoil(root: Path, what: str) -> list[str]:
    """Damage a data set in one way; returns options that go with it."""
    image, mask = picture(0)
    labels = mask.astype(np.uint8) * 255
    if what == "size":
        save(root / "train/masks/1.png", labels[:50])
    elif what == "values":
        save(root / "valid/masks/1.png", labels // 3)
    elif what == "empty":
        for number in range(SPLITS["train"]):
            save(root / f"train/masks/{number}.png", np.zeros_like(labels))
    elif what == "tile":
        return ["--data.tile_size", "96"]
    elif what == "nan":
        for path in sorted(root.glob("*/images/*.png")):
            pixels = np.asarray(Image.open(path))[..., 0].astype(np.float32)
            pixels[48, 40] = np.nan if path.parts[-3:] == ("train", "images", "2.png") else 0
            save(path.with_suffix(".tif"), pixels)
            path.unlink()
    elif what == "constant":
        save(root / "train/images/3.png", np.full_like(image, 9))
    elif what == "16 bits":
        (root / "train/images/2.png").unlink()
        save(root / "train/images/2.tif", image.astype(np.uint16))
    return []


def unet(in_channels: int = 3, **arguments: Any) -> str:
    """A network of 2,000 parameters for the command line."""
    init_args = {"in_channels": in_channels, "channels": [4, 8], **arguments}
    return json.dumps({"class_path": "biocnn.networks.UNet", "init_args": init_args})


def fit_arguments(manifest: str, runs: Path, *more: str, network: str | None = None) -> list[str]:
    """Command line of a training of a second."""
    return [
        *("fit", "--config", str(CONFIG), "--data.root", str(Path(manifest).parent), "--data.manifest", manifest),
        *("--trainer.default_root_dir", str(runs), "--run", "a", "--trainer.max_epochs", "2"),
        *("--trainer.check_val_every_n_epoch", "1", "--data.tile_size", "32", "--data.batch_size", "4"),
        *("--data.tiles_per_epoch", "16", "--model.tile_size", "64", "--trainer.log_every_n_steps", "1"),
        *("--model.network", unet() if network is None else network, *QUIET, *more),
    ]


def data_arguments(manifest: str) -> list[str]:
    """What a test has to be told besides the checkpoint."""
    return ["--data.root", str(Path(manifest).parent), "--data.manifest", manifest, *QUIET]


def run(*arguments: str, code: int = 0) -> str:
    """Run the pipeline in this process, on one thread; returns all that it says."""
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    logging.getLogger("pytorch_lightning").addHandler(handler)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            assert run_pipeline(JOB, arguments) == code, said.getvalue()
    finally:
        torch.set_num_threads(threads)
        logging.getLogger("pytorch_lightning").removeHandler(handler)
    return said.getvalue()
