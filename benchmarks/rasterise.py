"""Density map of 1,000 points, sigma 4, on 2048x2048 px: `rasterise` against scipy, OpenCV and a loop over points.

    python benchmarks/rasterise.py > docs/results/rasterise.jsonl

Whole-numbered points, kernels cut at four sigma, borders mirrored, float32 maps, image of impulses included. Turns
alternate, and the median counts, because machines are noisy. `rasterise` uses one thread, whatever is allowed;
`rasterise_widths` gives every point a width of its own, between 2 and 6 px, which filters cannot. The loop of counting
repositories filters a whole image for each point and adds up: it is timed for `--loop` points and multiplied, as each
costs the same. `lost` is 1,000 minus the sum of the map, and `error` the largest difference from scipy in float64
(`rasterise_widths`: from outer products in float64).
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import cv2
import numpy as np
from scipy import ndimage

from biocnn.data.density import rasterise

SIZE, COUNT, SIGMA = 2048, 1000, 4.0
KERNEL = 2 * int(4 * SIGMA + 0.5) + 1


def impulses(points: np.ndarray) -> np.ndarray:
    image = np.zeros((SIZE, SIZE), np.float32)
    np.add.at(image, tuple(points.T), 1)
    return image


def loop_over_points(points: np.ndarray) -> np.ndarray:
    density = np.zeros((SIZE, SIZE), np.float32)
    for point in points:
        density += ndimage.gaussian_filter(impulses(point[None]), SIGMA, mode="reflect")
    return density


def outer_products(points: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """The oracle of a map whose points have widths of their own, away from the border."""
    density = np.zeros((SIZE, SIZE))
    for (row, column), width in zip(points, widths, strict=True):
        reach = int(4 * width + 0.5)
        kernel = np.exp(-((np.arange(-reach, reach + 1) / width) ** 2) / 2)
        kernel /= kernel.sum()
        place = slice(row - reach, row + reach + 1), slice(column - reach, column + reach + 1)
        density[place] += np.outer(kernel, kernel)
    return density


def milliseconds(function: Callable[[], np.ndarray]) -> float:
    start = time.perf_counter()
    function()
    return 1e3 * (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--loop", type=int, default=5, help="points that the loop is timed for")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    points, inner = rng.integers(0, SIZE, (COUNT, 2)), rng.integers(30, SIZE - 30, (COUNT, 2))
    widths = rng.uniform(2, 6, COUNT)
    same = ndimage.gaussian_filter(impulses(points).astype(np.float64), SIGMA, mode="reflect")
    own = outer_products(inner, widths)
    contestants: dict[str, tuple[Callable[[], np.ndarray], np.ndarray]] = {
        "rasterise": (lambda: rasterise(points, (SIZE, SIZE), SIGMA), same),
        "rasterise_widths": (lambda: rasterise(inner, (SIZE, SIZE), widths), own),
        "scipy": (lambda: ndimage.gaussian_filter(impulses(points), SIGMA, mode="reflect"), same),
        "opencv": (
            lambda: cv2.GaussianBlur(impulses(points), (KERNEL, KERNEL), SIGMA, borderType=cv2.BORDER_REFLECT),
            same,
        ),
    }
    for threads in (1, 2):
        cv2.setNumThreads(threads)
        maps = {name: function() for name, (function, _) in contestants.items()}  # which also compiles
        times: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(options.turns):
            for name, (function, _) in contestants.items():
                times[name].append(milliseconds(function))
        for name, (_, truth) in contestants.items():
            line = {
                "contestant": name,
                "threads": threads,
                "milliseconds": round(statistics.median(times[name]), 2),
                "least": round(min(times[name]), 2),
                "lost": float(f"{COUNT - maps[name].sum(dtype=np.float64):.1e}"),
                "error": float(f"{abs(maps[name] - truth).max():.1e}"),
            }
            print(json.dumps(line), flush=True)
    taken = milliseconds(lambda: loop_over_points(points[: options.loop]))
    line = {
        "contestant": "loop_over_points",
        "threads": 1,
        "milliseconds": round(taken * COUNT / options.loop),
        "timed_points": options.loop,
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
