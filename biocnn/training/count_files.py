"""A callback that writes density, points and a picture of every image as soon as it is counted, and its rows."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from numpy.typing import NDArray
from pytorch_lightning.callbacks import Callback

from biocnn.data.counting_module import CountingDataModule
from biocnn.data.file_names import file_names
from biocnn.data.findings import listed
from biocnn.data.image_headers import read_header
from biocnn.data.point_images import pixels_of
from biocnn.data.regions import SUFFIXES, Region, read_regions, region_mask
from biocnn.errors import DataError, DatasetNotFoundError
from biocnn.inference.counting import count_of, density_points, flags_of, interval_note
from biocnn.inference.tables import write_csv
from biocnn.report.counting import count_columns, points_picture, write_points
from biocnn.report.overlay import write_map, write_overlay
from biocnn.tasks.counting import CountingTask
from biocnn.training.processes import own_rank, several_processes
from biocnn.training.runs import make_room, read_json, result_stamp, run_of

TABLE = "predictions.csv"
_PLANE = re.compile(r"#\d+$")
"""What stands after the path of a plane of a stack."""


def regions_for(rois: str | None, ids: Sequence[str]) -> list[list[Region]]:
    """The regions of every image.

    Args:
        rois: as of :class:`CountingDataModule`; None for no regions.
        ids: paths of the images, with ``#`` and the number of the plane for a stack.

    Raises:
        DatasetNotFoundError: if there is no such file or folder.
        DataError: if a folder has no file, or more than one, for an image; or a file cannot be read, see
            :func:`biocnn.data.regions.read_regions`.
    """
    if rois is None:
        return [[] for _ in ids]
    path = Path(rois)
    if not path.is_dir():
        regions = read_regions(path)
        return [regions for _ in ids]
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    found: list[list[Region]] = []
    wrong = []
    for name in ids:
        fitting = [file for file in files if file.stem == _file_of(name).stem]
        if len(fitting) == 1:
            found.append(read_regions(fitting[0]))
        else:
            wrong.append(f"{name} ({len(fitting)})")
    if not files:
        raise DatasetNotFoundError(f"{path} holds no file of regions ({', '.join(SUFFIXES)}).")
    if wrong:
        raise DataError(
            f"{path} has to hold one file of regions for each image, of the same name but for the suffix. Images with "
            f"another number: {listed(wrong)}."
        )
    return found


def _file_of(name: str) -> Path:
    """File of an image, without the number of the plane."""
    return Path(name) if Path(name).exists() else Path(_PLANE.sub("", name))


def check_regions(regions: Sequence[Sequence[Region]], ids: Sequence[str]) -> None:
    """Look whether every region has pixels in its image; reads the headers of the images only.

    Args:
        regions: of every image.
        ids: paths of the images, as for :func:`regions_for`.

    Raises:
        DataError: naming image and region, if one lies outside, or holds no centre of a pixel.
    """
    checked: set[tuple[int, int, int]] = set()  # of one file for many images of one size, each region once
    for name, found in zip(ids, regions, strict=True):
        if not found:
            continue
        header = read_header(_file_of(name))
        for region in found:
            case = (id(region), header.height, header.width)
            try:
                if case not in checked:
                    region_mask(region, (header.height, header.width))
            except DataError as error:
                raise DataError(f"{name}: {error}") from error
            checked.add(case)


def stamp_of(datamodule: CountingDataModule, checkpoint: Path) -> dict[str, Any]:
    """What results come from; the test split alone, whether or not an interval had to be fitted on validation."""
    data = datamodule.describe()
    return result_stamp({**data, "split_hash": data["test_hash"]}, checkpoint)


class CountWriter(Callback):
    """Writes what a :class:`CountingTask` counts in `test` and `predict`, an image at a time.

    So no more than one map is in memory, and an interruption keeps those that were made. The map is a float32 TIFF of
    cells per pixel, 0 where pixels do not count; its sum is the count. Points are CSV with row and column.

    Args:
        folder: that gets the folder ``maps`` and the others.
        overlays: folder of the overlays, below `folder`.
        points: folder of the points, below `folder`.
        rois: regions of `predict`, see :func:`regions_for`.

    Attributes:
        rows: of `predict`: a dict for each image that this process counted, and for each of its regions.
    """

    def __init__(
        self, folder: Path, overlays: str = "overlays", points: str = "points", rois: str | None = None
    ) -> None:
        self.folder, self.overlays, self.points, self.rois = folder, overlays, points, rois
        self.rows: list[dict[str, Any]] = []
        self._names: list[str] = []
        self._regions: list[list[Region]] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let the task find points."""
        assert isinstance(pl_module, CountingTask)
        pl_module.find_points = density_points

    @property
    def table(self) -> Path:
        """The table that this process writes while it counts."""
        return self.folder / (f"predictions_of_process_{own_rank()}.csv" if several_processes() else TABLE)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Choose the names of the files."""
        self._names = file_names(trainer.datamodule.ids("test"))  # type: ignore[attr-defined]

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Choose the names of the files, and read and check all regions before anything is predicted.

        Files go into the folder that the first process has chosen.
        """
        self.folder = Path(trainer.strategy.broadcast(str(self.folder)))
        ids = trainer.datamodule.ids("predict")  # type: ignore[attr-defined]
        self._names, self._regions = file_names(ids), regions_for(self.rois, ids)
        check_regions(self._regions, ids)

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        """Write the images of a batch, with their truth."""
        assert isinstance(pl_module, CountingTask)
        for position in range(len(batch["index"])):
            self._write(pl_module, outputs, batch, position)

    def on_predict_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        """Write the images of a batch, and note what the table says of them."""
        assert isinstance(pl_module, CountingTask)
        for position, index in enumerate(batch["index"].tolist()):
            density, points = self._write(pl_module, outputs, batch, position)
            image = batch["image"][position].permute(1, 2, 0).cpu().numpy()
            shape = (image.shape[0], image.shape[1])
            regions = [(region.name, region_mask(region, shape)) for region in self._regions[index]]
            size, beyond = batch["pixel_size_um"][position], batch["beyond"][position] if "beyond" in batch else 0.0
            self.rows += count_rows(pl_module, batch["id"][position], density, points, image, size, regions, beyond)
        # With every image, so that an interruption keeps what was counted; of several processes each has its own table.
        write_csv(self.table, self.rows)

    def _write(
        self, task: CountingTask, outputs: dict[str, Any], batch: dict[str, Any], position: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Write the files of an image; returns its density and points."""
        name = self._names[int(batch["index"][position])]
        density = outputs["density"][position, 0].float().cpu().numpy()
        points = None if outputs["points"] is None else outputs["points"][position].cpu().numpy()
        true = batch["points"][position].cpu().numpy() if "points" in batch else None
        valid = batch["valid"][position, 0].cpu().numpy() if "valid" in batch else None
        if valid is not None:
            density = np.where(valid, density, np.float32(0))
            points = None if points is None else points[valid[tuple(pixels_of(points).T)]]
        brightest = max(float(density.max()), float(np.finfo(np.float32).tiny))
        target = self.folder / "maps" / f"{name}.tif"
        write_map(target, density, batch["pixel_size_um"][position], limits=(0.0, brightest))
        found = np.zeros((0, 2), np.float32) if points is None else points
        if points is not None:
            write_points(self.folder / self.points / f"{name}.csv", points)
        image = batch["image"][position].permute(1, 2, 0).cpu().numpy()
        write_overlay(
            self.folder / self.overlays / f"{name}.png", *points_picture(image, found, true, task.tolerance, valid)
        )
        return density, points


class TestCounts(CountWriter):
    """Maps of a test in its run folder; results of other data or of another checkpoint are moved aside first."""

    __test__ = False

    def __init__(self, checkpoint: Path) -> None:
        # Below the maps, with which they are moved aside.
        super().__init__(run_of(checkpoint), "figures/overlays", "maps/points")
        self._checkpoint = checkpoint

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make room, then choose the names of the files."""
        if trainer.is_global_zero:
            stamp = stamp_of(trainer.datamodule, self._checkpoint)  # type: ignore[attr-defined]
            make_room(self.folder, stamp, read_json(self.folder / "metrics.json"))
        trainer.strategy.barrier()
        super().on_test_start(trainer, pl_module)


def count_rows(
    task: CountingTask,
    name: str,
    density: NDArray[np.float32],
    points: NDArray[np.float32] | None,
    image: NDArray[np.floating],
    pixel_size_um: Sequence[float] | None = None,
    regions: Sequence[tuple[str, NDArray[np.bool_]]] = (),
    beyond: float = 0.0,
) -> list[dict[str, Any]]:
    """Rows of the table of a prediction: one of the image, whose `region` is empty, and one of each region.

    Args:
        task: that made the density.
        name: id of the image.
        density: (H, W), cells per pixel.
        points: (N, 2); None leaves their number empty.
        image: (H, W, C) in 0..1.
        pixel_size_um: micrometres per pixel, row and column; None leaves the area in micrometres empty.
        regions: pairs of a name and the pixels (H, W) inside.
        beyond: share of the pixels beyond the range of the training images, see
            :func:`biocnn.inference.counting.flags_of`.
    """
    size = None if pixel_size_um is None else (float(pixel_size_um[-2]), float(pixel_size_um[-1]))
    flags = flags_of(task, count_of(task, density).cells, image, size, beyond=beyond)
    rows = []
    for region, inside in [("", np.ones(density.shape, bool)), *regions]:
        pixels = int(inside.sum())
        more = ["the interval is made for whole images"] if region and not interval_note(task) else []
        rows.append(
            {
                "id": name,
                "region": region,
                **count_columns(*count_of(task, density, inside)),
                "points": "" if points is None else int(inside[tuple(pixels_of(points).T)].sum()),
                "rows": density.shape[0],
                "columns": density.shape[1],
                "pixels": pixels,
                "row_um": "" if size is None else size[0],
                "column_um": "" if size is None else size[1],
                "area_um2": "" if size is None else round(pixels * size[0] * size[1], 4),
                "flags": "; ".join([*flags, *more]),
            }
        )
    return rows
