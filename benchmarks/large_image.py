"""An image larger than memory through a U-Net on a CPU: biocnn's strips against the network alone and MONAI's window.

    python benchmarks/large_image.py --size 30000 --threads 1 > docs/results/large_image.jsonl

The image is a tiled OME-TIFF of bytes, RGB, compressed with zlib, which is written to a temporary folder first; wanted
is a map of probabilities. The network is small, of 8 and 16 channels, so that an hour is not spent on a benchmark: the
smaller it is, the more weighs what goes on around it. One view.

- `strips`: :func:`biocnn.inference.strips.predict_strips`, from opening the file to the last strip on disk. To call
  structure in it, without specks, takes `seconds_calling` more.
- `network alone`: as many tiles of the same sides, but of a few that are in memory already as normalised floats. The
  pixels of `megapixels_per_second` are those of the image in both, so `of_network_alone` is a ratio of times.
- `monai`: `sliding_window_inference` of windows of 512 with a Gaussian, four at a time, as fast as in
  `tiled_inference.py`, on the top left square that its image, map and weights in single precision let it hold in
  `--memory`: six numbers of 4 bytes for each pixel. Reading the square counts, as it does for the strips.

Every turn is a process of its own, of whose whole life the peak of the resident memory is, libraries with it; turns
alternate, figures are medians, and ratios are taken within a turn.
"""

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tifffile
import torch
from monai.inferers.utils import sliding_window_inference

from biocnn.data.lazy_images import open_lazy
from biocnn.inference.bands import call_bands
from biocnn.inference.strips import predict_strips, tiling_of_task
from biocnn.networks import UNet
from biocnn.tasks.segmentation import SegmentationTask

CHANNELS = (8, 16)
SIDE = 512  # of the tiles of the file
MONAI_BYTES = 24  # for each pixel: three channels, the map, its weights, and their quotient
KEPT = 8  # tiles in memory, which the network alone gets in turn


def tiles(size: int) -> Iterator[np.ndarray]:
    """Tiles of an image with waves and noise, row by row."""
    noise = np.random.default_rng(0).integers(0, 25, (2 * SIDE, 2 * SIDE, 3), np.uint8)
    for top in range(0, size, SIDE):
        for left in range(0, size, SIDE):
            rows, columns = np.sin(np.arange(top, top + SIDE) / 40), np.sin(np.arange(left, left + SIDE) / 55)
            shift = (7 * top // SIDE) % SIDE, (11 * left // SIDE) % SIDE
            waves = (115 + 90 * rows[:, None] * columns).astype(np.uint8)[..., None]
            yield waves + noise[shift[0] : shift[0] + SIDE, shift[1] : shift[1] + SIDE]


def write_image(path: Path, size: int) -> None:
    with tifffile.TiffWriter(path, bigtiff=True, ome=True) as writer:
        writer.write(
            tiles(size),
            shape=(size, size, 3),
            dtype=np.uint8,
            tile=(SIDE, SIDE),
            photometric="rgb",
            compression="zlib",
            compressionargs={"level": 1},
            metadata={"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5},
        )


def make_task() -> SegmentationTask:
    torch.manual_seed(0)
    return SegmentationTask(UNet(3, channels=CHANNELS), image_mean=[0.5] * 3, image_std=[0.25] * 3).eval()


def strips(path: Path, size: int, memory: float) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        start = time.perf_counter()
        with open_lazy(path) as image:
            store = predict_strips(make_task(), image, Path(folder) / "strips", views=1)
        predicted = time.perf_counter()
        threshold = float(np.quantile(next(store.bands())[::8, ::8], 0.9))  # of a network that was not trained
        share = sum(int(band.sum()) for band in call_bands(store.bands, threshold, 20)) / size**2
        called = time.perf_counter() - predicted
    return {"seconds": predicted - start, "seconds_calling": called, "share_called": share}


def network_alone(path: Path, size: int, memory: float) -> dict[str, float]:
    task = make_task()
    windows = tiling_of_task(task).axis(size)
    side = len(windows[0].weight)
    with open_lazy(path) as image:
        parts = [windows[number % len(windows)].pixels for number in range(KEPT)]
        kept = [task.normalise(as_floats(image.read(part, windows[0].pixels))) for part in parts]
    assert kept[0].shape == (1, 3, side, side)
    start = time.perf_counter()
    with torch.inference_mode():
        for number in range(len(windows) ** 2):
            task.network(kept[number % KEPT])
    return {"seconds": time.perf_counter() - start}


def monai(path: Path, size: int, memory: float) -> dict[str, float]:
    held = min(size, math.isqrt(int(memory * 1e9 / MONAI_BYTES)))
    task = make_task()
    start = time.perf_counter()
    with open_lazy(path) as image, torch.inference_mode():
        whole = torch.empty(1, 3, held, held)
        for top in range(0, held, SIDE):
            rows = slice(top, min(top + SIDE, held))
            whole[:, :, rows] = as_floats(image.read(rows, slice(0, held)))
        logits = sliding_window_inference(whole, SIDE, 4, task, overlap=0.25, mode="gaussian")
        assert isinstance(logits, torch.Tensor)
        logits.sigmoid_()
    return {"seconds": time.perf_counter() - start, "size": held}


def as_floats(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels, 2, 0))).float()[None] / 255


CONTESTANTS: dict[str, Callable[[Path, int, float], dict[str, float]]] = {
    "strips": strips,
    "network alone": network_alone,
    "monai": monai,
}


def take_turn(name: str, options: argparse.Namespace) -> dict[str, float]:
    """One contestant in this process."""
    torch.set_num_threads(options.threads)
    with torch.inference_mode():
        make_task()(torch.zeros(1, 3, 64, 64))  # threads and kernels are set up once
    found = {"size": options.size, **CONTESTANTS[name](options.image, options.size, options.memory)}
    return {**found, "peak": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


def report(name: str, turns: dict[str, list[dict[str, float]]], threads: int) -> dict[str, object]:
    own = turns[name]
    seconds, size = statistics.median(turn["seconds"] for turn in own), int(own[0]["size"])
    line: dict[str, object] = {
        "contestant": name,
        "size": size,
        "seconds": round(seconds, 1),
        "megapixels_per_second": round(size**2 / seconds / 1e6, 2),
        "peak_gigabytes": round(max(turn["peak"] for turn in own) / 1e9, 2),
        "threads": threads,
        "turns": len(own),
    }
    if name == "strips":
        pairs = zip(turns["network alone"], own, strict=True)
        line["of_network_alone"] = round(statistics.median(bare["seconds"] / me["seconds"] for bare, me in pairs), 3)
        line["seconds_calling"] = round(statistics.median(turn["seconds_calling"] for turn in own), 1)
        line["share_called"] = round(own[0]["share_called"], 4)
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=30000, help="side of the image in pixels")
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of the network; another one reads")
    parser.add_argument("--memory", type=float, default=3.0, help="gigabytes of pixels and maps that MONAI may hold")
    parser.add_argument("--folder", type=Path, help="on a disk with 8 bytes for each pixel; that of temporary files")
    parser.add_argument("--image", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--one-turn-of", choices=list(CONTESTANTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one_turn_of:
        print(json.dumps(take_turn(options.one_turn_of, options)))
        return
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in CONTESTANTS}
    settings = ["--size", str(options.size), "--threads", str(options.threads), "--memory", str(options.memory)]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        image = Path(folder) / "image.ome.tif"
        write_image(image, options.size)
        for _ in range(options.turns):
            for name in CONTESTANTS:
                command = [sys.executable, __file__, *settings, "--image", str(image), "--one-turn-of", name]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                turns[name].append(json.loads(done.stdout.splitlines()[-1]))
    for name in CONTESTANTS:
        print(json.dumps(report(name, turns, options.threads)), flush=True)


if __name__ == "__main__":
    main()
