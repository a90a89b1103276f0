"""The quickstart: make a small data set, train on it, test, and say where the pictures are.

About a minute on two CPU cores, without a download:
    python pipelines/quickstart.py
Shorter, and written elsewhere; what is not known here goes to the pipeline, see pcam.py:
    python pipelines/quickstart.py --runs DIR --trainer.max_epochs 2

The data are patches of a real picture that comes with scikit-image. Their labels are made by a rule, see
biocnn/data/samples.py: this shows what a run looks like, and its numbers are no result.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from pcam import JOB

from biocnn.data.manifest import load_manifest
from biocnn.data.patches import open_patch_source
from biocnn.data.samples import write_sample_patches
from biocnn.metrics.binary import auroc
from biocnn.training.pipeline import run_pipeline
from biocnn.training.runs import find_last

QUICKSTART = replace(JOB, name="quickstart")


def mean_colour_auc(manifest_path: Path) -> float:
    """Area under the ROC curve of the test set for a logistic regression on the mean colour of whole patches.

    Args:
        manifest_path: of patches that lie beside it.
    """
    manifest = load_manifest(manifest_path)
    colours, labels = {}, {}
    for split in ("train", "test"):
        source = open_patch_source(manifest, manifest_path.parent, split)
        assert source.labels is not None  # a split of a manifest has labels
        labels[split] = source.labels
        colours[split] = np.concatenate([block.mean((1, 2)) for block in source.blocks()])
    return auroc(labels["test"], _logits(colours["train"], labels["train"], colours["test"]))


def _logits(train: np.ndarray, label: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Logits of `test` by logistic regression on `train`, fitted by Newton's method; a weak ridge keeps it finite."""
    centre, scale = train.mean(0), train.std(0)
    rows, new = (np.column_stack([np.ones(len(x)), (x - centre) / scale]) for x in (train, test))
    weight = np.zeros(rows.shape[1])
    for _ in range(20):
        probability = 1 / (1 + np.exp(-rows @ weight))
        gradient = rows.T @ (label - probability) - 1e-3 * weight
        curvature = (rows.T * (probability * (1 - probability))) @ rows + 1e-3 * np.eye(len(weight))
        weight += np.linalg.solve(curvature, gradient)
    return np.asarray(new @ weight)


def main(args: Sequence[str] | None = None) -> int:
    """Make the data set, unless it is there, then fit and test in a new run folder.

    Args:
        args: command line; that of the process when None.

    Returns:
        Exit code, see :func:`run_pipeline`.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="folder that is written to")
    options, more = parser.parse_known_args(args)
    manifest = write_sample_patches(options.runs / "quickstart-data")
    # So small a network gains nothing from more threads, and on a busy machine they would wait for each other.
    torch.set_num_threads(1)
    common = ["--config", str(Path(__file__).with_suffix(".yaml")), "--trainer.default_root_dir", str(options.runs)]
    common += ["--data.root", str(manifest.parent), "--data.manifest", str(manifest), *more]
    for verb in ("fit", "test"):
        code = run_pipeline(QUICKSTART, [verb, *common])
        if code != 0:
            return code
    run, _ = find_last(options.runs, QUICKSTART.name)
    assert run is not None  # it has just been tested
    print(f"\nFor comparison, the mean colour of the whole patch gives an AUC of {mean_colour_auc(manifest):.4f}.")
    print("The labels are made by a rule from one picture: a demonstration, not a result.")
    print(f"Pictures to look at, in {run / 'figures'}:")
    for picture in sorted((run / "figures").glob("*.png")):
        print(f"  {picture.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
