"""Tiled inference of a U-Net over a large RGB image on a CPU: biocnn against MONAI's sliding_window_inference.

    python benchmarks/tiled_inference.py --size 4096 --turns 3 > docs/results/tiled_inference.jsonl

Given is an image of bytes, (H, W, C) as files are read; wanted are logits in single precision. Every turn is a process
of its own, and turns of the contestants alternate. Times are medians, and so are ratios, which are taken within a
turn. Peaks are of the resident memory above what the process held with libraries, network and image; `pixels_seen` is
how many pixels the network was given, as a multiple of those of the image. Differences are to the logits of the whole
image. Linux only.
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
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from monai.inferers import sliding_window_inference

from biocnn.networks import UNet
from biocnn.networks.tiling import predict_tiles, tiling_of

Function = Callable[[torch.Tensor], torch.Tensor]
Contestant = Callable[[Function, torch.Tensor], torch.Tensor]

CHANNELS = (16, 32, 64, 128, 256)
HALO, STRIDE = tiling_of(UNet(channels=CHANNELS))
PEER, WHOLE = "monai gaussian 4x512", "whole image"


def halo(tile: int | None) -> Contestant:
    return lambda function, image: predict_tiles(function, image, tile, HALO, STRIDE)


def blended(batch_size: int, tile: int) -> Contestant:
    """Tiles start at multiples of the stride, as MONAI's do with a tile of 512."""
    return lambda function, image: predict_tiles(
        function, image, tile, None, STRIDE, overlap=0.25, batch_size=batch_size
    )


def monai(mode: str, batch_size: int, tile: int) -> Contestant:
    """Its images are (B, C, H, W), and of the type that the result shall have."""
    return lambda function, image: sliding_window_inference(
        image.float()[None], tile, batch_size, function, overlap=0.25, mode=mode
    )[0]


CONTESTANTS: dict[str, Contestant] = {
    "biocnn halo": halo(None),
    "biocnn halo 1x1024": halo(1024),
    "biocnn blended 1x512": blended(1, 512),
    "biocnn blended 4x512": blended(4, 512),
    "biocnn blended 4x256": blended(4, 256),
    PEER: monai("gaussian", 4, 512),
    "monai constant 4x512": monai("constant", 4, 512),
    "monai gaussian 1x512": monai("gaussian", 1, 512),
    "monai gaussian 4x256": monai("gaussian", 4, 256),
    WHOLE: lambda function, image: function(image.float()[None])[0],
}


def take_turn(name: str, size: int, threads: int, folder: Path) -> dict[str, float]:
    """One contestant in this process; its logits go to a file."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = UNet(channels=CHANNELS).eval()
    waves = np.sin(np.arange(size) / 40)
    noise = np.random.default_rng(0).integers(-60, 60, (size, size, 3), np.int8)
    pixels = ((128 + 60 * waves[:, None] * waves).astype(np.uint8)[..., None] + noise).astype(np.uint8)
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    seen = 0

    def function(tiles: torch.Tensor) -> torch.Tensor:
        nonlocal seen
        seen += len(tiles) * math.prod(tiles.shape[2:])
        logits: torch.Tensor = network((tiles - 127.5) / 64)
        return logits

    with torch.inference_mode():
        network(torch.zeros(1, 3, 64, 64))  # threads and kernels are set up once
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far, of making the image, is forgotten
        held = resident_bytes()
        start = time.perf_counter()
        logits = CONTESTANTS[name](function, image)
        seconds = time.perf_counter() - start
        peak = peak_bytes() - held
    np.save(folder / f"{name}.npy", logits.numpy())
    return {"seconds": seconds, "peak": peak, "pixels_seen": seen / size**2}


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def report(name: str, turns: dict[str, list[dict[str, float]]], folder: Path) -> dict[str, object]:
    """The line of one contestant."""
    own = turns[name]
    line: dict[str, object] = {
        "contestant": name,
        "seconds": round(statistics.median(turn["seconds"] for turn in own), 2),
        "peak_megabytes": round(statistics.median(turn["peak"] for turn in own) / 1e6),
        "pixels_seen": round(own[0]["pixels_seen"], 2),
    }
    if PEER in turns:
        pairs = list(zip(own, turns[PEER], strict=True))
        line["times_as_fast_as_monai"] = round(
            statistics.median(peer["seconds"] / me["seconds"] for me, peer in pairs), 2
        )
        line["peak_times_monai"] = round(statistics.median(me["peak"] / peer["peak"] for me, peer in pairs), 2)
    if WHOLE in turns:
        truth, logits = (np.load(folder / f"{one}.npy", mmap_mode="r") for one in (WHOLE, name))
        line["greatest_difference_to_whole"] = float(np.abs(truth - logits).max())
        line["standard_deviation_of_logits"] = round(float(truth.std()), 3)
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--contestants", nargs="+", default=list(CONTESTANTS), choices=list(CONTESTANTS))
    parser.add_argument("--one-turn-into", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one_turn_into:
        print(json.dumps(take_turn(options.contestants[0], options.size, options.threads, options.one_turn_into)))
        return
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in options.contestants}
    settings = ["--size", str(options.size), "--threads", str(options.threads)]
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.turns):
            for name in options.contestants:
                own = ["--contestants", name, "--one-turn-into", folder]
                command = [sys.executable, __file__, *settings, *own]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                turns[name].append(json.loads(done.stdout.splitlines()[-1]))
        for name in options.contestants:
            print(json.dumps({**report(name, turns, Path(folder)), "size": options.size}), flush=True)


if __name__ == "__main__":
    main()
