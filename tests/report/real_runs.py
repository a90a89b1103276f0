"""Small runs of the three pipelines and a drawn prediction, for the tests of reports."""

import contextlib
import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from biocnn.training.job import Job
from biocnn.training.pipeline import run_pipeline
from pipelines.counting import JOB as COUNTING
from pipelines.pcam import JOB as PCAM
from pipelines.tubularity import JOB as TUBULARITY
from tests.data.drawn_cells import write_cells
from tests.pipelines import drawn_runs

ROOT = Path(__file__).parents[2]
BEST = "checkpoints/best.ckpt"
HOSTILE = "<img src=x onerror=window.hacked=1><script>window.hacked=1"
"""Name of the first test image of the segmentation, without suffix."""
PATCH_NETWORK = '{"class_path": "biocnn.networks.SmallDenseNet", "init_args": {"layers": [0, 1], "growth_rate": 8}}'


def _run(job: Job, *arguments: str) -> None:
    """Run a pipeline in this process, on one thread and in silence."""
    said = io.StringIO()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            assert run_pipeline(job, arguments) == 0, said.getvalue()
    finally:
        torch.set_num_threads(threads)


def segmentation_run(folder: Path) -> Path:
    """A tested run on drawn vessels; one test image has a name that is HTML."""
    manifest = drawn_runs.write_data(folder / "data")
    for part in ("images", "masks", "fields"):
        (folder / "data/test" / part / "0.png").rename(folder / "data/test" / part / f"{HOSTILE}.png")
    _run(TUBULARITY, *drawn_runs.fit_arguments(manifest, folder / "runs"))
    run = folder / "runs" / "tubularity" / "a"
    _run(TUBULARITY, "test", "--ckpt_path", str(run / BEST), *drawn_runs.data_arguments(manifest))
    return run


def counting_run(folder: Path) -> Path:
    """A tested run on drawn cells."""
    manifest = write_cells(folder / "data", {"train": 4, "valid": 12, "test": 5})
    _run(
        COUNTING,
        *("fit", "--config", str(ROOT / "pipelines" / "counting.yaml"), "--data.root", str(folder / "data")),
        *("--data.manifest", manifest, "--trainer.default_root_dir", str(folder / "runs"), "--run", "a"),
        *("--trainer.max_epochs", "2", "--trainer.check_val_every_n_epoch", "1", "--data.tile_size", "32"),
        *("--data.batch_size", "4", "--data.tiles_per_epoch", "16", "--data.num_workers", "0"),
        *("--model.network", drawn_runs.unet(None), "--trainer.log_every_n_steps", "1", *drawn_runs.QUIET),
    )
    run = folder / "runs" / "counting" / "a"
    _run(COUNTING, "test", "--ckpt_path", str(run / BEST), *drawn_runs.data_arguments(manifest))
    return run


def patch_run(folder: Path, data: Path) -> Path:
    """A tested run on drawn patches in the layout of PCam."""
    given = ["--data.root", str(data), *drawn_runs.QUIET]
    _run(
        PCAM,
        *("fit", "--config", str(ROOT / "pipelines" / "pcam.yaml"), "--trainer.default_root_dir", str(folder)),
        *("--trainer.max_epochs", "2", "--run", "a", "--data.batch_size", "16", "--model.network", PATCH_NETWORK),
        *("--trainer.log_every_n_steps", "1", *given),
    )
    run = folder / "pcam" / "a"
    _run(PCAM, "test", "--ckpt_path", str(run / BEST), *given)
    return run


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as CSV."""
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def drawn_results(folder: Path, count: int, side: int = 24, pictures: bool = True) -> Path:
    """A folder as `biocnn predict` writes it for counts: the second image has failed, the third has a flag."""
    rows = []
    for number in range(count):
        failed, flagged = number == 1, number == 2
        rows.append(
            {
                "image": f"dish/{number}.png",
                "status": "failed" if failed else "ok",
                "message": "truncated & empty" if failed else "",
                "rows": side,
                "columns": side,
                "cells": "" if failed else f"{1000 - 7 * number}.5",
                "cells_low": "" if failed else "1",
                "cells_high": "" if failed else "2000",
                "flags": "darker than the training images" if flagged else "",
                "folder": "" if failed else str(number),
            }
        )
        if pictures and not failed:
            noise = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
            target = folder / "images" / str(number)
            target.mkdir(parents=True)
            Image.fromarray(noise).save(target / "thumbnail.png")
            Image.fromarray(255 - noise).save(target / "overlay.png")
    folder.mkdir(exist_ok=True)
    write_table(folder / "predictions.csv", rows)
    model = {"path": "elsewhere/best.ckpt", "task": "CountingTask", "digest": "0123"}
    (folder / "predictions.json").write_text(
        json.dumps({"model": model, "made_by": {"settings": {"views": 8}}}), encoding="utf-8"
    )
    return folder
