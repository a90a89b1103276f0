import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import tifffile
import torch
from PIL import Image
from torch import nn

from biocnn.data.images import read_image, read_mask
from biocnn.data.segmentation_module import SegmentationDataModule
from biocnn.tasks.segmentation import SegmentationTask
from biocnn.tasks.thresholds import Thresholds
from biocnn.training.maps import MapWriter, summary_row
from tests.data.drawn import save, vessels, write_folder, write_manifest


class Brightness(nn.Module):
    """The logit is the normalised image."""

    halo, stride = 0, 1

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image


def test_row_of_the_table() -> None:
    called = np.zeros((4, 5), bool)
    called[1:3, 1:4] = True
    row = summary_row("a.png", called, None)
    assert row == {
        "id": "a.png", "rows": 4, "columns": 5, "row_um": None, "column_um": None,
        "structure_px": 6, "structure_share": 0.3, "structure_um2": None,
    }  # fmt: skip
    row = summary_row("a.png", called, (0.5, 0.2))
    assert (row["row_um"], row["column_um"]) == (0.5, 0.2)
    assert row["structure_um2"] == pytest.approx(6 * 0.5 * 0.2)


def trainer(folder: Path, writer: MapWriter) -> pl.Trainer:
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return pl.Trainer(accelerator="cpu", callbacks=[writer], default_root_dir=folder, **quiet)


def task() -> SegmentationTask:
    made = SegmentationTask(Brightness(), image_mean=[0.5], image_std=[0.1], test_time_augmentation=False)
    made.thresholds = Thresholds(0.5, 9)
    return made


def test_planes_of_a_stack_are_predicted_one_by_one(tmp_path: Path) -> None:
    planes = np.stack([vessels(seed, height=40, width=50)[0] for seed in range(3)])
    options: dict[str, Any] = {"imagej": True, "resolution": (4.0, 2.0), "metadata": {"unit": "um", "axes": "TYX"}}
    tifffile.imwrite(tmp_path / "stack.tif", planes, photometric="minisblack", **options)
    manifest = write_folder(tmp_path / "data", {"train": 1})
    data = SegmentationDataModule(str(tmp_path), manifest, images=str(tmp_path / "stack.tif"))
    writer = MapWriter(tmp_path / "out")
    trainer(tmp_path, writer).predict(task(), datamodule=data, return_predictions=False)
    assert [row["id"] for row in writer.rows] == [f"{tmp_path / 'stack.tif'}#{plane}" for plane in range(3)]
    for plane, row in enumerate(writer.rows):
        name = f"stack_{plane}"
        # The logit is (v / 255 - 0.5) / 0.1, so the threshold 0.5 is the grey value 127.5.
        expected = 1 / (1 + np.exp(-(planes[plane] / 255 - 0.5) / 0.1))
        written = read_image(tmp_path / "out/maps" / f"{name}.tif")
        np.testing.assert_allclose(written.array, expected, atol=1e-6)
        assert written.pixel_size_um == pytest.approx((0.5, 0.25))
        mask = read_mask(tmp_path / "out/masks" / f"{name}.png") > 0
        assert set(planes[plane][mask] > 127) == {True}
        assert row["structure_px"] == mask.sum() > 0
        assert row["structure_um2"] == pytest.approx(mask.sum() / 8)
        with Image.open(tmp_path / "out/overlays" / f"{name}.png") as overlay:
            assert overlay.height > 40  # the legend is below


def test_structure_is_called_inside_the_field_of_view_only(tmp_path: Path) -> None:
    write_folder(tmp_path / "data", {"test": 2})
    patterns = {"images": "test/images/*", "masks": "test/masks/*", "valid": "test/fields/*"}
    manifest = write_manifest(tmp_path / "data", [], splits={"test": patterns})
    field = np.zeros((96, 80), np.uint8)
    field[:, :40] = 255
    for number in range(2):
        save(tmp_path / f"data/test/fields/{number}.png", field)
    writer = MapWriter(tmp_path / "out", "pictures")
    made = task()
    result = trainer(tmp_path, writer).test(
        made, SegmentationDataModule(str(tmp_path / "data"), manifest), verbose=False
    )
    assert result == [{}]  # the numbers are of all images together, see the report
    assert len(list((tmp_path / "out/pictures").iterdir())) == 2
    for number in range(2):
        mask = read_mask(tmp_path / f"out/masks/{number}.png") > 0
        assert mask[:, :40].any()
        assert not mask[:, 40:].any()
    # Bright lines on a dark ground are found without a mistake.
    dice = made.test_metrics.compute()["dice"]
    assert all(math.isclose(value, 1) for value in dice.tolist())
