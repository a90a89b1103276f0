"""torch.compile as a callback: the same training, and checkpoints that do not know of it."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch._dynamo.utils import counters

from biocnn.checkpoints import AtomicCheckpointIO, read_checkpoint
from biocnn.networks import UNet
from biocnn.tasks.segmentation import SegmentationTask
from biocnn.training.callbacks import EMA, Compile
from tests.tasks.test_path_training import batches, loader

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="inductor needs a C++ compiler")


def trained(folder: Path, callbacks: list[pl.Callback]) -> dict[str, Any]:
    """The checkpoint of a training of four steps on tiles, validated on images of another size."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    counters.clear()
    network = UNet(1, channels=(4, 8), norm="instance")
    task = SegmentationTask(network, lr=1e-3, image_mean=[0.3], image_std=[0.2], tile_size=64)
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, max_epochs=2, num_sanity_val_steps=0, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, default_root_dir=folder,
        callbacks=[EMA(0.5), *callbacks], plugins=[AtomicCheckpointIO()],
    )  # fmt: skip
    trainer.fit(task, loader(batches(2, side=32)), loader([*batches(1, 1, side=48), *batches(1, 1, side=64)]))
    trainer.save_checkpoint(folder / "x.ckpt")
    return read_checkpoint(folder / "x.ckpt")


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=[pytest.mark.slow, needs_compiler])])
def test_compiled_training_is_the_plain_one(tmp_path: Path, backend: str) -> None:
    plain = trained(tmp_path, [])
    assert not counters["stats"]
    compiled = trained(tmp_path, [Compile(backend=backend)])
    # One of training; validation would add one for each size of image.
    assert counters["stats"]["unique_graphs"] == 1
    assert list(compiled["state_dict"]) == list(plain["state_dict"])
    for name, value in plain["state_dict"].items():
        # Four steps of AdamW at 1e-3, of which rounding may change the small ones.
        torch.testing.assert_close(compiled["state_dict"][name], value, rtol=1e-3, atol=1e-5)
    task = SegmentationTask(UNet(1, channels=(4, 8), norm="instance"), image_mean=[0.3], image_std=[0.2])
    task.load_checkpoint(tmp_path / "x.ckpt")  # without compiling
    assert torch.isfinite(task(torch.rand(1, 1, 32, 32))).all()
