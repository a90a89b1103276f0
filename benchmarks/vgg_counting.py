"""Cell counting on VGG cells with 8 to 64 training images: the counting pipeline, seed by seed, against its floors.

    python benchmarks/vgg_counting.py --root DIR --out docs/results/vgg_counting.jsonl
    python benchmarks/vgg_counting.py --out docs/results/vgg_counting.jsonl --summary

DIR holds the files of VGG cells. The test images are 101 to 200, those of the authors, for every seed. A seed draws N
training images from 1 to 100, and the others validate: they choose the checkpoint, the factor on counts and the
interval. Every run is `pipelines/counting.py fit` with `pipelines/counting.yaml`, and `test` once. It is 25 epochs
instead of 50 for 64 images, so that they take no more steps than 32. One JSON line for each run goes into the file;
runs that are in it are not made again. `--summary` prints mean and standard deviation over seeds.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

EPOCHS = 50
MOST_STEPS = 1600  # an epoch has a step for each training image, or 8
PIPELINES = Path(__file__).parents[1] / "pipelines"
KEYS = (
    *("mae", "rmse", "mape", "bias", "game1", "game2", "game3", "precision", "recall", "f1", "slope", "intercept"),
    *("coverage", "interval_width", "floor_constant_mae", "floor_linear_mae"),
)


def one_run(root: Path, count: int, seed: int, runs: Path, threads: int, more: list[str]) -> dict[str, Any]:
    """Train with `count` images and test; what `metrics.json` says, and the seconds that training took."""
    name = f"n{count}_seed{seed}"
    script = [sys.executable, str(PIPELINES / "counting.py")]
    data = ["--data.root", str(root), "--data.manifest", "vgg_cells", "--data.num_workers", "0"]
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
    fit = [
        *(*script, "fit", "--config", str(PIPELINES / "counting.yaml"), *data, *quiet),
        *("--seed_everything", str(seed), "--data.training_images", str(count)),
        *("--trainer.max_epochs", str(min(EPOCHS, MOST_STEPS // count))),
        *("--trainer.default_root_dir", str(runs), "--run", name, *more),
    ]
    best = runs / "counting" / name / "checkpoints" / "best.ckpt"
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    start = time.perf_counter()
    run_quietly(fit, environment)
    seconds = time.perf_counter() - start
    run_quietly([*script, "test", "--ckpt_path", str(best), *data, *quiet], environment)
    metrics = json.loads((runs / "counting" / name / "metrics.json").read_text())
    return {
        "training_images": count,
        "seed": seed,
        "fit_s": round(seconds),
        "threads": threads,
        **{key: None if metrics[key] is None else round(metrics[key], 4) for key in KEYS},
    }


def run_quietly(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def print_summary(lines: list[dict[str, Any]]) -> None:
    keys = ("mae", "rmse", "bias", "game1", "game2", "game3", "f1", "coverage", "interval_width", "floor_linear_mae")
    print(f"| N | seeds | {' | '.join(keys)} | fit s |\n|{'---|' * (len(keys) + 3)}")
    for count in sorted({line["training_images"] for line in lines}):
        own = [line for line in lines if line["training_images"] == count]
        cells = []
        for key in keys:
            values = np.array([line[key] for line in own])
            spread = values.std(ddof=1) if len(values) > 1 else np.nan
            cells.append(
                f"{values.mean():.3f}±{spread:.3f}"
                if key in ("f1", "coverage")
                else f"{values.mean():.2f}±{spread:.2f}"
            )
        print(f"| {count} | {len(own)} | {' | '.join(cells)} | {max(line['fit_s'] for line in own)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, help="folder of the images")
    parser.add_argument("--out", type=Path, required=True, help="file of JSON lines that is added to")
    parser.add_argument("--images", type=int, nargs="+", default=[8, 16, 32, 64], help="numbers of training images")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="of a run; two runs side by side take 1 each"
    )
    parser.add_argument("--summary", action="store_true", help="print the table of what is there, and stop")
    parser.add_argument("more", nargs="*", help="options of the pipeline, after --, such as -- --model.lr 1e-3")
    arguments = parser.parse_args()
    if not arguments.summary:
        with tempfile.TemporaryDirectory() as folder:
            for count in arguments.images:
                for seed in arguments.seeds:
                    if (count, seed) in {(line["training_images"], line["seed"]) for line in read_lines(arguments.out)}:
                        continue
                    line = one_run(arguments.root, count, seed, Path(folder), arguments.threads, arguments.more)
                    print(json.dumps(line), flush=True)
                    with open(arguments.out, "a") as file:
                        file.write(json.dumps(line) + "\n")
    print_summary(read_lines(arguments.out))


if __name__ == "__main__":
    main()
