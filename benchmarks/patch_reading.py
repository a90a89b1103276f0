"""Random patches per second out of a file in the official PCam layout: biocnn against peers, in one run.

    python benchmarks/patch_reading.py | grep contestant > docs/results/patch_reading.jsonl

32,768 patches of 96x96x3 in a contiguous HDF5 file (made in a temporary folder, 0.9 GB), random order, batches of 64,
float32 (B, 3, 96, 96) in 0..1 out, 0 workers, warm page cache. Contestants take turns, and the median of the turns
counts, because machines are noisy.

- torchvision: `torchvision.datasets.PCAM` (opens the file for every item) with `ToTensor`, default collate.
- one handle: a Dataset of ten lines that keeps one h5py file open.
- memmap: `numpy.memmap` with one fancy index a batch, then the same conversion to float as biocnn.
- biocnn: the loader of `PatchDataModule` without augmentation, and `to_float`.
- biocnn gzip: the same from a gzip-compressed, chunked file, after its one-time decoding.

With --augmentation: biocnn's training loader with the whole default augmentation, against albumentations alone
called on the same patches, held in memory, in the same order.
"""

import argparse
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import PCAM
from torchvision.transforms import ToTensor

from biocnn.data.augmentation import PatchAugmentation
from biocnn.data.batches import to_float
from biocnn.data.patch_module import PatchDataModule

COUNT, BATCH = 32_768, 64


def write(root: Path, **storage: Any) -> None:
    """The three splits; train holds the patches, the others are tiny."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True)
    for split, count in {"train": COUNT, "valid": 64, "test": 64}.items():
        stem = root / f"camelyonpatch_level_2_split_{split}"
        with h5py.File(f"{stem}_x.h5", "w") as file:
            x = file.create_dataset("x", (count, 96, 96, 3), np.uint8, **storage)
            for start in range(0, count, 1024):
                x[start : start + 1024] = rng.integers(0, 255, (min(1024, count - start), 96, 96, 3), np.uint8)
        labels = (np.arange(count) % 2).astype(np.uint8)
        with h5py.File(f"{stem}_y.h5", "w") as file:
            file["y"] = labels.reshape(-1, 1, 1, 1)
        rows = [f"{row},0,0,{bool(label)},{bool(label)},{split}" for row, label in enumerate(labels)]
        text = ",coord_y,coord_x,tumor_patch,center_tumor_patch,wsi\n" + "\n".join(rows) + "\n"
        Path(f"{stem}_meta.csv").write_text(text)


class OneHandle(Dataset[tuple[torch.Tensor, int]]):
    """What one writes first."""

    def __init__(self, root: Path) -> None:
        self.x = h5py.File(root / "camelyonpatch_level_2_split_train_x.h5")["x"]
        self.y = h5py.File(root / "camelyonpatch_level_2_split_train_y.h5")["y"][:].reshape(-1)

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(self.x[row]).permute(2, 0, 1).float() / 255, int(self.y[row])


def torchvision_batches(root: Path) -> Iterable[torch.Tensor]:
    # The class adds "pcam" to its root.
    dataset = PCAM(str(root.parent), "train", transform=ToTensor())
    return (image for image, _ in DataLoader(dataset, BATCH, shuffle=True))


def one_handle_batches(root: Path) -> Iterable[torch.Tensor]:
    return (image for image, _ in DataLoader(OneHandle(root), BATCH, shuffle=True))


def memmap_batches(root: Path) -> Iterable[torch.Tensor]:
    with h5py.File(root / "camelyonpatch_level_2_split_train_x.h5") as file:
        x = np.memmap(file.filename, np.uint8, "r", file["x"].id.get_offset(), file["x"].shape)
    for rows in np.random.default_rng(0).permutation(COUNT).reshape(-1, BATCH):
        yield to_float({"image": torch.from_numpy(x[rows])})["image"]


def biocnn_batches(root: Path, augmented: bool = False) -> Iterable[torch.Tensor]:
    module = PatchDataModule(str(root), batch_size=BATCH, num_workers=0)
    module.setup("fit")
    if not augmented:
        module.dataset("train").augmentation = None
    return (to_float(batch)["image"] for batch in module.train_dataloader())


def albumentations_batches(images: np.ndarray) -> Iterable[torch.Tensor]:
    compose = PatchAugmentation()._compose  # the bare albumentations.Compose, without seeding
    for rows in np.random.default_rng(0).permutation(len(images)).reshape(-1, BATCH):
        batch = np.stack([compose(image=images[row])["image"] for row in rows])
        yield to_float({"image": torch.from_numpy(batch)})["image"]


def patches_per_second(batches: Iterable[torch.Tensor], seconds: float) -> float:
    iterator = iter(batches)
    next(iterator)
    count, start = 0, time.perf_counter()
    for image in iterator:
        assert image.shape == (BATCH, 3, 96, 96)
        assert image.dtype == torch.float32
        count += BATCH
        if time.perf_counter() - start > seconds:
            break
    return count / (time.perf_counter() - start)


def race(contestants: dict[str, Callable[[], Iterable[torch.Tensor]]], reference: str, turns: int) -> None:
    """Print one line for each contestant: median rate, and its ratio to the reference of the same turn."""
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(turns):
        for name, batches in contestants.items():
            rates[name].append(patches_per_second(batches(), seconds=3.0))
    for name, found in rates.items():
        ratios = [rate / other for rate, other in zip(found, rates[reference], strict=True)]
        line = {"contestant": name, "patches_per_second": round(statistics.median(found))}
        print(json.dumps({**line, f"ratio_to_{reference}": round(statistics.median(ratios), 3)}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--augmentation", action="store_true", help="race with the whole augmentation instead")
    options = parser.parse_args()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "pcam"
        write(root)
        if options.augmentation:
            with h5py.File(root / "camelyonpatch_level_2_split_train_x.h5") as file:
                images = file["x"][:]
            race(
                {
                    "albumentations": lambda: albumentations_batches(images),
                    "biocnn": lambda: biocnn_batches(root, augmented=True),
                },
                "albumentations",
                options.turns,
            )
            return
        packed = Path(folder) / "packed" / "pcam"
        write(packed, chunks=(1, 96, 96, 3), compression="gzip", compression_opts=1)
        race(
            {
                "torchvision": lambda: torchvision_batches(root),
                "one handle": lambda: one_handle_batches(root),
                "memmap": lambda: memmap_batches(root),
                "biocnn": lambda: biocnn_batches(root),
                "biocnn gzip": lambda: biocnn_batches(packed),
            },
            "memmap",
            options.turns,
        )


if __name__ == "__main__":
    main()
