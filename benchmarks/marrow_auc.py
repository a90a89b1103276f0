"""Test AUC on real bone-marrow patches: biocnn's default recipe against a plain loop around torchvision's resnet18.

    python benchmarks/marrow_auc.py --root DIR --seeds 0 1 2 > docs/results/marrow_auc.jsonl

Both train on train, are chosen on valid by the negative log likelihood, and see test once. One JSON line for each
contestant and seed; training time includes the validation after every epoch, for both.
"""

import argparse
import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch.nn import functional as F

from biocnn.data.manifest import load_manifest
from biocnn.data.patches import open_patch_source
from biocnn.metrics.binary import auroc, negative_log_likelihood
from biocnn.networks.views import view_logits

EPOCHS, BATCH_SIZE, LEARNING_RATE = 12, 64, 1e-3


def arrays(root: Path, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    source = open_patch_source(load_manifest("pcam"), root, split)
    image = torch.from_numpy(np.array(source.images.open())).permute(0, 3, 1, 2).contiguous().float() / 255
    return (image - 0.5) / 0.25, torch.from_numpy(source.labels)


def predict(network: torch.nn.Module, image: torch.Tensor, views: int) -> np.ndarray:
    network.eval()
    with torch.inference_mode():
        logits = [view_logits(lambda x: network(x)[:, 0], block, views) for block in image.split(256)]
    network.train()
    return torch.cat(logits).mean(1).double().numpy()


def result(contestant: str, seed: int, auroc: float, valid_auroc: float, seconds: float) -> dict[str, Any]:
    scores = {"test_auroc": round(auroc, 4), "valid_auroc": round(valid_auroc, 4)}
    return {"contestant": contestant, "seed": seed, **scores, "train_seconds": round(seconds, 1)}


def plain_resnet18(root: Path, seed: int) -> list[dict[str, Any]]:
    """Random D4 for every patch, AdamW with a one-cycle schedule: what one writes in an afternoon."""
    torch.manual_seed(seed)
    (image, label), valid, test = arrays(root, "train"), arrays(root, "valid"), arrays(root, "test")
    network = torchvision.models.resnet18(num_classes=1)
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE)
    steps = len(image) // BATCH_SIZE
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=EPOCHS * steps)
    best, best_state = float("inf"), {}
    start = time.perf_counter()
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(image))[: steps * BATCH_SIZE].split(BATCH_SIZE):
            batch = image[rows].clone()
            for item, (turns, mirror) in enumerate(zip(torch.randint(4, (64,)), torch.randint(2, (64,)), strict=True)):
                turned = torch.rot90(batch[item], int(turns), (1, 2))
                batch[item] = turned.flip(-1) if mirror else turned
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(network(batch)[:, 0], label[rows].float()).backward()
            optimizer.step()
            schedule.step()
        logit = predict(network, valid[0], 1)
        nll = negative_log_likelihood(valid[1].numpy(), logit)
        if nll < best:
            valid_auroc = auroc(valid[1].numpy(), logit)
            best, best_state = nll, {name: value.clone() for name, value in network.state_dict().items()}
    seconds = time.perf_counter() - start
    last = auroc(test[1].numpy(), predict(network, test[0], 1))
    network.load_state_dict(best_state)
    plain = auroc(test[1].numpy(), predict(network, test[0], 1))
    eight = auroc(test[1].numpy(), predict(network, test[0], 8))
    rows_out = [("plain loop, last epoch", last), ("plain loop", plain), ("plain loop, 8 views", eight)]
    return [result(f"resnet18 {name}", seed, value, valid_auroc, seconds) for name, value in rows_out]


def biocnn_recipe(root: Path, seed: int, extra: list[str]) -> list[dict[str, Any]]:
    """`pipelines/marrow.yaml` as a user runs it."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "pipelines"))
    from pcam import JOB

    from biocnn.training.logger import read_metrics
    from biocnn.training.pipeline import PipelineCLI, arguments_from_checkpoint

    config = Path(__file__).parents[1] / "pipelines" / "marrow.yaml"
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        common = ["--data.root", str(root), "--trainer.default_root_dir", folder, "--run", "race"]
        common += ["--trainer.enable_progress_bar", "false", "--seed_everything", str(seed)]
        start = time.perf_counter()
        PipelineCLI(JOB, ["fit", "--config", str(config), *common, *extra])
        seconds = time.perf_counter() - start
        PipelineCLI(JOB, arguments_from_checkpoint(JOB, ["test", *common]))
        run = Path(folder) / "pcam" / "race"
        metrics = json.loads((run / "metrics.json").read_text())
        epochs = [row for row in read_metrics(run / "metrics.csv") if row["val_nll"]]
        valid_auroc = float(min(epochs, key=lambda row: float(row["val_nll"]))["val_auroc"])
    rows_out = [("one view", metrics["auroc_one_view"]), ("8 views", metrics["auroc"])]
    return [result(f"biocnn {name}", seed, value, valid_auroc, seconds) for name, value in rows_out]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder with the marrow patches")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", choices=["plain", "biocnn"])
    options, extra = parser.parse_known_args()
    for seed in options.seeds:
        results = [] if options.only == "biocnn" else plain_resnet18(options.root, seed)
        results += [] if options.only == "plain" else biocnn_recipe(options.root, seed, extra)
        for result in results:
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
