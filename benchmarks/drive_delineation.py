r"""DRIVE: graphs from the maps of trained networks, by each delineator, with map weights and with learned weights.

    for SEED in 0 1 2; do
        python pipelines/tubularity.py fit --config pipelines/delineation.yaml --data.root DIR --run seed$SEED \
            --seed_everything $SEED --trainer.max_epochs 30
    done
    python benchmarks/drive_delineation.py --root DIR runs/tubularity/seed*/checkpoints/best.ckpt

The truth is the graph of `1st_manual` inside the field of view, by the same skeleton. Maps are means of 8 views, at the
threshold that the run chose on its validation images, and 0 outside the field of view; with the classifier, at two
thirds of it, as its part is to reject. One JSON line for each checkpoint and delineator, with means over the images;
the second observer is scored likewise with `--observer`.
"""

import argparse
import json
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import numpy as np

import biocnn
from biocnn.data.images import read_image, read_mask
from biocnn.data.manifest import load_manifest, split_files
from biocnn.delineation.delineate import delineate
from biocnn.inference.paths import classifier_weights
from biocnn.inference.segmentation import Segmenter
from biocnn.metrics.graphs import score_graph

TOLERANCE, SNAP = 3.0, 10.0
PANEL = {
    "apls": "apls_10px",
    "tlts_correct": "tlts_correct_10px",
    "tlts_infeasible": "tlts_infeasible_10px",
    "quality": "quality_3px",
    "correctness": "correctness_3px",
    "completeness": "completeness_3px",
    "opt_j_f1": "opt_j_f1_10px",
    "betti0_error": "betti0_error_graph",
    "betti1_error": "betti1_error_graph",
}


def images(root: Path, split: str) -> Iterator[tuple[np.ndarray, nx.MultiGraph, np.ndarray, Path]]:
    """Pixels, true graph and field of view of each image, and its mask file."""
    manifest = load_manifest("drive")
    for files in split_files(manifest, root, split):
        assert files.mask is not None
        assert files.valid is not None
        inside = read_mask(files.valid) != 0
        truth = (read_mask(files.mask, manifest.mask_values) == 255) & inside
        yield read_image(files.image).array, skeleton(truth), inside, files.mask


def skeleton(mask: np.ndarray) -> nx.MultiGraph:
    return delineate(mask.astype(np.float32), method="skeleton")


def graphs(segmenter: Segmenter, image: np.ndarray, inside: np.ndarray) -> Iterator[tuple[str, nx.MultiGraph, float]]:
    """Graph of each delineator, and the seconds it took; the map takes the same for all."""
    probability = np.where(inside, segmenter.tubularity(image), 0).astype(np.float32)
    threshold = segmenter.threshold

    def with_classifier() -> nx.MultiGraph:
        lower = threshold * 2 / 3  # the classifier is there to reject
        weights = classifier_weights(segmenter, image, probability, lower)
        return delineate(probability, threshold=lower, weights=weights)

    ways = {
        "skeleton": lambda: delineate(probability, method="skeleton", threshold=threshold),
        "bridged": lambda: delineate(probability, method="bridged", threshold=threshold),
        "global, map weights": lambda: delineate(probability, method="global", threshold=threshold),
        "global, learned weights": with_classifier,
    }
    for name, way in ways.items():
        start = time.perf_counter()
        graph = way()
        yield name, graph, time.perf_counter() - start


def line(about: dict[str, object], rows: list[dict[str, float]], seconds: list[float]) -> str:
    means = {name: round(float(np.mean([row[key] for row in rows])), 4) for name, key in PANEL.items()}
    times = {"seconds": round(float(np.mean(seconds)), 2), "most_seconds": round(max(seconds), 2)} if seconds else {}
    return json.dumps({**about, "images": len(rows), **means, **times})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="*", type=Path)
    parser.add_argument("--root", type=Path, required=True, help="folder of DRIVE")
    parser.add_argument("--split", choices=["valid", "test"], default="test")
    parser.add_argument("--observer", action="store_true", help="score the second human observer, of the test images")
    options = parser.parse_args()
    if options.observer:
        rows = []
        for _, truth, inside, mask in images(options.root, "test"):
            second = options.root / "test" / "2nd_manual" / mask.name.replace("manual1", "manual2")
            called = (read_image(second, channels=0).array > 127) & inside
            rows.append(score_graph(skeleton(called), truth, TOLERANCE, SNAP))
        print(line({"contestant": "second observer"}, rows, []), flush=True)
    for checkpoint in options.checkpoints:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of thresholds that are not for masks
            segmenter = biocnn.load(checkpoint)
        assert isinstance(segmenter, Segmenter)
        found: dict[str, tuple[list[dict[str, float]], list[float]]] = {}
        for image, truth, inside, _ in images(options.root, options.split):
            for name, graph, seconds in graphs(segmenter, image, inside):
                rows, times = found.setdefault(name, ([], []))
                rows.append(score_graph(graph, truth, TOLERANCE, SNAP))
                times.append(seconds)
        for name, (rows, times) in found.items():
            about = {"contestant": name, "run": checkpoint.parent.parent.name, "split": options.split}
            print(line(about, rows, times), flush=True)


if __name__ == "__main__":
    main()
