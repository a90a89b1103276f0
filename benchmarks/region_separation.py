"""A training step with BCE, Dice and region separation, against one with BCE and Dice only.

    python benchmarks/region_separation.py > docs/results/region_separation.jsonl

8 tiles of 3x128x128 with drawn vessels, U-Nets of two widths, AdamW, the loss in 2-D with its defaults. Networks are
trained for some steps first, since paths through noise differ from those through vessels. Turns alternate, and the
median of the ratios counts, because machines are noisy. `first_call_seconds` is what compiling costs a process, or
reading what an earlier one has compiled; `loss_milliseconds` is the third term alone, forward and backward.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from biocnn.losses.base import Loss
from biocnn.losses.distance import truncated_distance
from biocnn.losses.overlap import BCE, Dice
from biocnn.losses.region_separation import RegionSeparation
from biocnn.networks import UNet

WIDTHS = [(16, 32, 64, 128, 256), (32, 32, 64, 128, 256)]
TILES, SIZE, MAX_DISTANCE = 8, 128, 15.0
WARM_UP = 15


def vessels(rng: np.random.Generator) -> np.ndarray:
    """A mask (SIZE, SIZE) of five curves, three pixels thick."""
    mask = np.zeros((SIZE + 2, SIZE + 2), bool)
    for _ in range(5):
        place, angle = rng.uniform(0, SIZE, 2), rng.uniform(0, 2 * np.pi)
        for turn in rng.normal(0, 0.08, 3 * SIZE):
            angle += turn
            place = place + 0.7 * np.array([np.sin(angle), np.cos(angle)])
            row, column = place.astype(int)
            if 0 <= row < SIZE and 0 <= column < SIZE:
                mask[row : row + 3, column : column + 3] = True
    return mask[1:-1, 1:-1]


def draw() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Images (TILES, 3, SIZE, SIZE) and their targets."""
    rng = np.random.default_rng(0)
    masks = [vessels(rng) for _ in range(TILES)]
    mask = torch.from_numpy(np.stack(masks)[:, None]).float()
    distance = torch.from_numpy(np.stack([truncated_distance(one, MAX_DISTANCE) for one in masks])[:, None])
    noise = torch.randn(TILES, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    return mask + 0.7 * noise, {"mask": mask, "distance": distance}


def stepper(channels: tuple[int, ...], loss: Loss, images: torch.Tensor, target: dict[str, torch.Tensor]) -> Callable:
    """A function that does one step of training."""
    torch.manual_seed(0)
    network: nn.Module = UNet(3, channels=channels)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)

    def step() -> None:
        optimizer.zero_grad()
        loss(network(images), target).backward()
        optimizer.step()

    return step


def seconds(function: Callable) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=25)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    images, target = draw()
    alone = RegionSeparation(MAX_DISTANCE)
    sure = torch.randn(TILES, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    logits = (6 * target["mask"] - 3 + 1.5 * sure).requires_grad_()

    def third_term() -> None:
        alone(logits, target).backward()

    first = seconds(third_term)
    for channels in WIDTHS:
        contestants = {
            "bce+dice": stepper(channels, BCE() + Dice(), images, target),
            "bce+dice+region_separation": stepper(channels, BCE() + Dice() + alone, images, target),
        }
        for _ in range(WARM_UP):
            for step in contestants.values():
                step()
        times: dict[str, list[float]] = {name: [] for name in (*contestants, "alone")}
        for _ in range(options.turns):
            for name, step in contestants.items():
                times[name].append(seconds(step))
            times["alone"].append(seconds(third_term))
        base = times["bce+dice"]
        for name in contestants:
            line = {
                "contestant": name,
                "channels": channels,
                "milliseconds": round(1e3 * statistics.median(times[name]), 1),
                "times_bce_dice": round(
                    statistics.median(own / other for own, other in zip(times[name], base, strict=True)), 3
                ),
            }
            if name != "bce+dice":
                line["loss_milliseconds"] = round(1e3 * statistics.median(times["alone"]), 1)
                line["loss_milliseconds_least"] = round(1e3 * min(times["alone"]), 1)
                line["first_call_seconds"] = round(first, 2)
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
