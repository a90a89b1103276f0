"""DRIVE at a fixed budget: every loss of biocnn, with and without refinement, against MONAI networks in a plain loop.

    python benchmarks/drive_budget.py --root DIR --only monai_dicece monai_dicecldice cldice --seeds 0 1 2
    python benchmarks/drive_budget.py --root DIR --only bce+dice skeleton_recall --refinement 1 3 --seeds 0

The budget: 16 training images, 4 for validation, 600 steps of 8 tiles of 128x128, a network of at most 2.0 M
parameters. All contestants are served the same tiles in the same order. The 20 test images are scored once, inside the
field of view; Betti numbers are of whole images, connectivity 8 for vessels. One JSON line for each contestant, seed,
number of views (1, or the mean of the logits of 8) and rule to call vessels: "0.5", "threshold" (chosen on validation),
and "threshold and size" (the smallest component too, see biocnn.metrics.calling, which is what a run does). Nobody
validates while training, and nobody chooses a checkpoint: the last weights count.
"""

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torchvision
from monai.losses import DiceCELoss, SoftDiceclDiceLoss
from monai.networks.nets import BasicUNet

from biocnn.data.batches import to_float
from biocnn.data.mask_images import MaskImages, read_split
from biocnn.data.segmentation_module import SegmentationDataModule
from biocnn.losses import (
    BCE,
    Dice,
    DistanceRegression,
    FeatureTopology,
    Loss,
    RegionSeparation,
    SkeletonRecall,
    SoftClDice,
    Term,
)
from biocnn.metrics.calling import SizeSearch, choose_size, robust_threshold
from biocnn.metrics.segmentation import dice_curves, score_histogram, score_image
from biocnn.networks import UNet
from biocnn.networks.views import d4_average
from biocnn.tasks.segmentation import SegmentationTask
from biocnn.training.callbacks import EMA

STEPS, BATCH, TILE, STEPS_PER_EPOCH = 600, 8, 128, 40
CHANNELS = (16, 32, 64, 128, 256)
PANEL = ("dice", "cldice", "betti0_error_fg8", "betti1_error_fg8", "sensitivity", "quality_3px")
Predict = Callable[[np.ndarray, int], np.ndarray]


def base() -> Loss:
    return 0.5 * BCE() + 0.5 * Dice()


def feature_topology(vgg19: str) -> Loss:
    """Weight 0.1 as in the papers' third-party codes; random weights tell what the loss costs, not what it is worth."""
    with tempfile.TemporaryDirectory() as folder:
        if vgg19 == "random":
            vgg19 = f"{folder}/vgg19.pth"
            torch.manual_seed(0)
            torch.save(torchvision.models.vgg19().state_dict(), vgg19)
        return base() + 0.1 * FeatureTopology(vgg19)


def betti_matching() -> Loss:
    """As a term: topolosses is optional."""
    from topolosses.losses import BettiMatchingLoss

    return base() + 0.01 * Term(BettiMatchingLoss(sigmoid=True, use_base_loss=False, alpha=1.0), name="betti_matching")


LOSSES: dict[str, Callable[[], Loss]] = {
    "bce+dice": base,
    "cldice": lambda: base() + 0.5 * SoftClDice(),
    "skeleton_recall": lambda: base() + 0.5 * SkeletonRecall(),
    "region_separation": lambda: base() + 0.5 * RegionSeparation(),
    "distance": lambda: DistanceRegression() + 0.1 * RegionSeparation(head="distance"),
    "betti_matching": betti_matching,
    "cldice+skeleton_recall": lambda: base() + 0.5 * SoftClDice() + 0.25 * SkeletonRecall(),
}

PEERS: dict[str, torch.nn.Module] = {
    "monai_dicece": DiceCELoss(sigmoid=True),
    "monai_dicecldice": SoftDiceclDiceLoss(iter_=10, alpha=0.5, sigmoid=True),
}


def data(root: Path, seed: int) -> SegmentationDataModule:
    return SegmentationDataModule(
        str(root), "drive", tile_size=TILE, batch_size=BATCH, tiles_per_epoch=STEPS_PER_EPOCH * BATCH, seed=seed
    )


def train_biocnn(root: Path, seed: int, loss: Loss, refinement: int) -> tuple[Predict, float, int]:
    """As `pipelines/tubularity.py` does, without writing a run."""
    pl.seed_everything(seed, verbose=False)
    network = UNet(3 + (refinement > 1), channels=CHANNELS, norm="instance")
    task = SegmentationTask(network, loss, refinement_steps=refinement)
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        max_epochs=STEPS // STEPS_PER_EPOCH,
        limit_val_batches=0,
        callbacks=[EMA(0.99)],
        enable_model_summary=False,
        num_sanity_val_steps=0,
        accelerator="cpu",
        **quiet,
    )
    start = time.perf_counter()
    trainer.fit(task, data(root, seed))
    seconds = time.perf_counter() - start
    task.eval()

    def predict(image: np.ndarray, views: int) -> np.ndarray:
        batch = to_float({"image": torch.from_numpy(image[None])})["image"]
        return torch.sigmoid(task.image_logits(batch[0], views))[0].numpy()

    return predict, seconds, sum(parameter.numel() for parameter in network.parameters())


def train_peer(root: Path, seed: int, loss: torch.nn.Module) -> tuple[Predict, float, int]:
    """A plain loop: Adam at 1e-3, no schedule, no averaged weights."""
    torch.manual_seed(seed)
    network = BasicUNet(2, 3, 1, features=(32, 32, 64, 128, 256, 32))
    datamodule = data(root, seed)
    datamodule.setup("fit")
    found = datamodule.fingerprint
    assert found is not None
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (found.mean, found.std))
    dataset = datamodule.dataset("train")
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    start = time.perf_counter()
    for epoch in range(STEPS // STEPS_PER_EPOCH):
        order = np.random.default_rng((seed, epoch)).permutation(len(dataset)).reshape(-1, BATCH)
        for rows in order:
            batch = to_float(dataset.__getitems__([(epoch, int(row)) for row in rows]))
            optimizer.zero_grad()
            loss(network((batch["image"] - mean) / std), batch["mask"]).backward()
            optimizer.step()
    seconds = time.perf_counter() - start
    network.eval()

    @torch.inference_mode()
    def predict(image: np.ndarray, views: int) -> np.ndarray:
        batch = (to_float({"image": torch.from_numpy(image[None])})["image"] - mean) / std
        rows, columns = batch.shape[2:]
        padded = torch.nn.functional.pad(batch, (0, -columns % 16, 0, -rows % 16), mode="reflect")
        return torch.sigmoid(d4_average(network, padded, views))[0, 0, :rows, :columns].numpy()

    return predict, seconds, sum(parameter.numel() for parameter in network.parameters())


def rules(predict: Predict, valid: MaskImages, views: int) -> dict[str, tuple[float, int]]:
    """Threshold and smallest component by each rule, the latter two chosen on the validation images."""
    search, histograms = SizeSearch(), []
    for row in range(len(valid)):
        inside = valid.valid[row]
        probability = predict(valid.images[row], views)
        histograms.append(score_histogram(probability[inside], valid.masks[row][inside]))
        search.update(*(torch.from_numpy(a)[None, None] for a in (probability, valid.masks[row], inside)))
    threshold = robust_threshold(*dice_curves(histograms))
    return {
        "0.5": (0.5, 0),
        "threshold": (threshold, 0),
        "threshold and size": (threshold, choose_size(*search.compute(), threshold)),
    }


def score(predict: Predict, root: Path, views: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    valid = read_split(data(root, 0).manifest, root, "valid")
    judged = valid if options.split == "valid" else read_split(data(root, 0).manifest, root, "test")
    pairs = rules(predict, valid, views)
    panel: dict[str, list[dict[str, float]]] = {name: [] for name in pairs}
    for row in range(len(judged)):
        probability = predict(judged.images[row], views)
        for name, (threshold, size) in pairs.items():
            numbers, _ = score_image(
                probability, judged.masks[row], judged.valid[row], threshold=threshold, min_component=size
            )
            panel[name].append(numbers)
    return [
        {
            "rule": name,
            "views": views,
            "split": options.split,
            "threshold": round(pairs[name][0], 4),
            "min_component": pairs[name][1],
            **{key: round(float(np.mean([numbers[key] for numbers in rows])), 4) for key in PANEL},
        }
        for name, rows in panel.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of DRIVE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--only", nargs="+", choices=[*PEERS, *LOSSES, "feature_topology"], default=["bce+dice", "cldice"]
    )
    parser.add_argument("--refinement", type=int, nargs="+", default=[1], help="steps K; 1 is without")
    parser.add_argument("--views", type=int, nargs="+", choices=[1, 8], default=[1, 8])
    parser.add_argument("--split", choices=["valid", "test"], default="test")
    parser.add_argument("--vgg19", default="DEFAULT", help="file with weights of VGG19; 'random' for random ones")
    options = parser.parse_args()
    for seed in options.seeds:
        for name in options.only:
            for refinement in [1] if name in PEERS else options.refinement:
                with contextlib.redirect_stdout(sys.stderr):
                    if name in PEERS:
                        predict, seconds, parameters = train_peer(options.root, seed, PEERS[name])
                    else:
                        loss = feature_topology(options.vgg19) if name == "feature_topology" else LOSSES[name]()
                        predict, seconds, parameters = train_biocnn(options.root, seed, loss, refinement)
                    lines = [line for views in options.views for line in score(predict, options.root, views, options)]
                about = {"contestant": name, "refinement": refinement, "seed": seed, "parameters": parameters}
                for line in lines:
                    print(json.dumps({**about, "train_seconds": round(seconds, 1), **line}), flush=True)


if __name__ == "__main__":
    main()
