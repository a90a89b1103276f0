"""Tubular structures without training: the best of scikit-image's ridge filters, scored as a network is.

Fit on the train split of a manifest, score the valid and the test split; half a minute for DRIVE:
    python pipelines/ridge_filters.py --data.root DIR --data.manifest drive
Membranes between cells, with V-Rand and V-Info:
    python pipelines/ridge_filters.py --data.root DIR --data.manifest isbi2012 --membranes

Everything, the threshold too, is chosen on the train split. Every run writes into runs/ridge_filters/TIME and nowhere
else: filter.json, metrics.json (of the test split; of the valid split with `valid_` before the name), predictions.csv
and run.json.
"""

import argparse
import csv
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from biocnn.data.manifest import load_manifest
from biocnn.data.mask_images import MaskImages, read_split
from biocnn.errors import BiocnnError
from biocnn.files import atomic_path, write_json
from biocnn.inference.ridge import RidgeFilter, fit_ridge_filter
from biocnn.metrics.segmentation import SegmentationMetrics, summarise
from biocnn.training.runs import new_run, write_run_record


def score(ridge: RidgeFilter, images: MaskImages, metrics: SegmentationMetrics) -> dict[str, Tensor]:
    """The table of :meth:`SegmentationMetrics.compute` for one split."""
    metrics.reset()
    for row, (image, mask, valid) in enumerate(zip(images.images, images.masks, images.valid, strict=True)):
        response = torch.from_numpy(ridge.response(image, valid))
        inside = None if valid is None else torch.from_numpy(valid)[None, None]
        metrics.update(torch.tensor([row]), response[None, None], torch.from_numpy(mask)[None, None], inside)
    return metrics.compute()


def write_predictions(path: Path, ids: Sequence[str], table: dict[str, Tensor]) -> None:
    """Write one row for each image: its id and its numbers, empty where undefined."""
    names = [name for name in table if name not in ("index", "histogram")]
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["id", *names])
        for row, name in enumerate(ids):
            values = [float(table[column][row]) for column in names]
            writer.writerow([name, *("" if value != value else f"{value:.6g}" for value in values)])


def print_summary(ridge: RidgeFilter, summaries: dict[str, dict[str, Any]]) -> None:
    """Print the filter, and the numbers of the splits side by side."""
    print(f"Chosen on train: {ridge.to_dict()}")
    print(f"{'':36}" + "".join(f"{split:>12}" for split in summaries))
    for name in next(iter(summaries.values())):
        values = [summary.get(name) for summary in summaries.values()]
        print(f"{name:36}" + "".join(f"{'-' if value is None else f'{value:.6g}':>12}" for value in values))


def run(options: argparse.Namespace) -> Path:
    """Fit, score and write; returns the run folder."""
    manifest = load_manifest(options.manifest)
    splits = {split: read_split(manifest, options.root, split) for split in ("train", "valid", "test")}
    train = splits.pop("train")
    start = time.perf_counter()
    ridge = fit_ridge_filter(train.images, train.masks, train.valid)
    seconds = time.perf_counter() - start
    metrics = SegmentationMetrics(threshold=ridge.threshold, membranes=options.membranes)
    tables = {split: score(ridge, images, metrics) for split, images in splits.items()}
    summaries = {split: summarise(table) for split, table in tables.items()}
    folder = new_run(options.out.parent, options.out.name)
    described = {"manifest": manifest.name, "sizes": {"train": len(train), **{s: len(i) for s, i in splits.items()}}}
    write_run_record(folder, None, described, RidgeFilter.__name__, 0)
    write_json(folder / "filter.json", ridge.to_dict())
    write_predictions(folder / "predictions.csv", splits["test"].ids, tables["test"])
    valid = {f"valid_{name}": value for name, value in summaries["valid"].items()}
    written = {
        "manifest": manifest.name,
        "fit_seconds": round(seconds, 1),
        **metrics.rules,
        **summaries["test"],
        **valid,
    }
    write_json(folder / "metrics.json", written)
    print_summary(ridge, summaries)
    return folder


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; that of the process when `args` is None. Returns 0, or 2 after an error in the input."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data.root", dest="root", type=Path, required=True, metavar="DIR", help="folder of the data")
    parser.add_argument("--data.manifest", dest="manifest", required=True, help="name, or path of a .yaml file")
    parser.add_argument("--out", type=Path, default=Path("runs/ridge_filters"), help="folder of the run folders")
    parser.add_argument("--membranes", action="store_true", help="compare the cells between the structures as well")
    options = parser.parse_args(args)
    try:
        print(f"Run folder: {run(options)}")
    except BiocnnError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
