"""A callback that writes the map, the mask and a picture of every image as soon as it is predicted."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from biocnn.data.file_names import file_names
from biocnn.report.overlay import overlay, overlay_legend, write_map, write_mask, write_overlay
from biocnn.tasks.segmentation import SegmentationTask


class MapWriter(Callback):
    """Writes what a :class:`SegmentationTask` predicts in `test` and `predict`, an image at a time.

    So no more than one map is in memory, and an interruption keeps those that were made. The map is a float32 TIFF with
    its pixel size, the mask a PNG of 0 and 255, the overlay a PNG in which found, missed and false structures have
    three colours.

    Args:
        folder: that gets the folders ``maps``, ``masks`` and the overlays.
        overlays: folder of the overlays, below `folder`.

    Attributes:
        rows: of `predict`: a dict of numbers for each image that this process predicted.
    """

    def __init__(self, folder: Path, overlays: str = "overlays") -> None:
        self.folder, self.overlays = folder, overlays
        self.rows: list[dict[str, Any]] = []
        self._names: list[str] = []

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Choose the names of the files."""
        self._names = file_names(trainer.datamodule.ids("test"))  # type: ignore[attr-defined]

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Choose the names of the files, in the folder that the first process has chosen."""
        self.folder = Path(trainer.strategy.broadcast(str(self.folder)))
        self._names = file_names(trainer.datamodule.ids("predict"))  # type: ignore[attr-defined]

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        """Write the images of a batch, with their truth."""
        self._write(trainer, pl_module, outputs, batch)

    def on_predict_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        """Write the images of a batch, and note what the table says of them."""
        self.rows += self._write(trainer, pl_module, outputs, batch)

    def _write(
        self, trainer: pl.Trainer, task: pl.LightningModule, outputs: Any, batch: dict[str, Any]
    ) -> list[dict[str, Any]]:
        assert isinstance(task, SegmentationTask)
        rows = []
        for position, index in enumerate(batch["index"].tolist()):
            name = self._names[index]
            probability = outputs["probability"][position, 0].float().cpu().numpy()
            image = batch["image"][position].permute(1, 2, 0).cpu().numpy()
            mask = batch["mask"][position, 0].cpu().numpy() > 0 if "mask" in batch else None
            valid = batch["valid"][position, 0].cpu().numpy() if "valid" in batch else None
            called = task.thresholds.call(probability, valid)
            size = batch["pixel_size_um"][position]
            write_map(self.folder / "maps" / f"{name}.tif", probability, size)
            write_mask(self.folder / "masks" / f"{name}.png", called)
            write_overlay(
                self.folder / self.overlays / f"{name}.png",
                overlay(image, called, mask, valid),
                overlay_legend(called, mask, valid),
            )
            rows.append(summary_row(batch["id"][position], called, size))
        return rows


def summary_row(name: str, called: np.ndarray, pixel_size_um: Sequence[float] | None) -> dict[str, Any]:
    """What the table of a prediction says of an image: its size and how much of it is structure.

    Args:
        name: id of the image.
        called: (H, W) bool.
        pixel_size_um: micrometres per pixel, row and column; None leaves the area in micrometres empty.
    """
    area = None if pixel_size_um is None else float(called.sum() * np.prod(pixel_size_um[-2:]))
    return {
        "id": name,
        "rows": called.shape[0],
        "columns": called.shape[1],
        "row_um": None if pixel_size_um is None else pixel_size_um[-2],
        "column_um": None if pixel_size_um is None else pixel_size_um[-1],
        "structure_px": int(called.sum()),
        "structure_share": round(float(called.mean()), 6),
        "structure_um2": area,
    }
