"""Cell counting: a map of cells per pixel whose sum is the count.

The network predicts density * `density_scale`, at the resolution of the image or summed over cells of pixels
(:mod:`biocnn.networks.resolution`). The scale is a setting of the checkpoint; :meth:`CountingTask.forward` divides it
out, and nothing else does. Density, sum and errors are float32 or more under any precision of the training.

Validation. During `fit` the validation images are predicted once per epoch, in one view; `Trainer.validate` predicts
them as `test` and `predict` do. Either way the interval of counts (:mod:`biocnn.metrics.conformal`) is fitted on them
and becomes part of the checkpoint, with the number of views that it is for; `Trainer.validate` finds the factor on all
counts (:mod:`biocnn.metrics.count_scale`) first. Where a manifest has groups it is fitted on
one image of each, drawn by the seed: images of one group err alike, so that more of them would promise too much.

References: Lempitsky, Zisserman: Learning to count objects in images. NIPS 2010; Xie, Noble, Zisserman: Microscopy cell
counting and detection with fully convolutional regression networks. 2018.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from biocnn.data.point_images import PointImages
from biocnn.losses import CountL1, DensityLoss, DensityMSE
from biocnn.metrics.conformal import ConformalInterval
from biocnn.metrics.count_scale import count_factor, scaled_mae
from biocnn.metrics.counting import CountingMetrics, summarise_counts
from biocnn.metrics.floors import LEAST_IMAGES, constant_floor, intensity_floor, summed_intensity
from biocnn.networks.resolution import output_stride_of, spread, sum_pool, valid_cells
from biocnn.networks.tiling import predict_tiles, tiling_of
from biocnn.networks.views import D4_VIEWS
from biocnn.tasks.base import Stage, Task

PointFinder = Callable[["CountingTask", NDArray[np.float32], Sequence[float] | None], NDArray[np.float32] | None]
"""Points (N, 2) in a density map (H, W) of an image of a pixel size, or None if it cannot tell."""

_LOGGED = ("mae", "rmse", "bias", "game1", "game2", "game3")
_NOTHING = 0.01  # of the true cells; a network that finds fewer in all images together has learned to say zero


class CountingTask(Task):
    """How many cells are there, and where?

    Batches hold ``image`` (B, C, H, W) float32 in 0..1, ``density`` (B, 1, H, W) float32, cells per pixel, ``points``,
    B tensors (n, 2) float32, ``valid`` (B, 1, H, W) bool and ``index`` (B,) int64. Training serves tiles, evaluation
    whole images of any size, which are taken through the network by tiles.

    Args:
        network: normalised images (B, C, H, W) to density * `density_scale`, (B, 1, H, W), or sums of it over cells
            of s x s pixels, (B, 1, ceil(H / s), ceil(W / s)), if it has an ``output_stride`` s.
        loss: of density maps; ``DensityMSE() + 0.01 * CountL1()`` when None. It compares at the resolution of the
            output, so what it says of distances is in cells of s pixels.
        density_scale: factor on the density in the output. The density of a checkpoint is divided by that of its
            training, whatever is given here.
        lr: peak learning rate of AdamW.
        weight_decay: of kernels.
        warmup: share of all steps in which the learning rate rises.
        image_mean: of each channel, for images in 0..1; that of the training set when None.
        image_std: of each channel.
        test_time_augmentation: whether `test` and `predict` average the eight symmetries of the image.
        tile_size: side of the tiles of evaluation and prediction in pixels; memory grows with its square, and on
            processors smaller tiles are faster, as they fit into the cache. A network whose halo needs more gets more;
            one without a finite halo gets the tile size of its training.
        tolerance: largest distance of a found from a true point, in pixels.
        alpha: share of images whose true count may lie outside the interval.
        reestimate_batch_norm: whether the pipeline takes the statistics of batch norm again after training, on
            training tiles that are not augmented, and keeps them if that lowers the validation error; None for up to
            64 training images.

    Attributes:
        interval: of counts; None before any validation.
        interval_views: symmetries of the image that it is for; 0 while training, after which it is fitted again.
        interval_per_group: whether it was fitted on one image of each group, as groups were known.
        count_factor: of all densities, as validation images were counted too low or too high; 1 before that.
        floors: ``constant``, the mean training count, and ``linear``, the fields of an
            :class:`~biocnn.metrics.floors.IntensityFloor` or None; empty if no training set was at hand.
        find_points: finds points in a density map, for the point metrics and callbacks; no points are found when None.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: DensityLoss | None = None,
        density_scale: float = 100.0,
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
        warmup: float = 0.1,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        test_time_augmentation: bool = True,
        tile_size: int = 512,
        tolerance: float = 3.0,
        alpha: float = 0.1,
        reestimate_batch_norm: bool | None = None,
    ) -> None:
        chosen = DensityMSE() + 0.01 * CountL1() if loss is None else loss
        super().__init__(network, chosen, lr, weight_decay, warmup, image_mean, image_std)
        if not (0 < density_scale < math.inf and 0 < alpha < 1 and tile_size >= 1):
            raise ValueError(
                "Expected a positive density_scale, alpha between 0 and 1, and tile_size of 1 or more, received "
                f"density_scale={density_scale}, alpha={alpha}, tile_size={tile_size}."
            )
        self.density_scale, self.alpha, self.tile_size = density_scale, alpha, tile_size
        self.test_time_augmentation, self.tolerance = test_time_augmentation, tolerance
        self.reestimate_batch_norm = reestimate_batch_norm
        self.val_metrics = CountingMetrics(tolerance)
        self.test_metrics = CountingMetrics(tolerance)
        self.interval: ConformalInterval | None = None
        self.interval_views, self.interval_per_group = 0, False
        self.count_factor = 1.0
        self.floors: dict[str, Any] = {}
        self.find_points: PointFinder | None = None

    @property
    def views(self) -> int:
        """Views of an image in `test` and `predict`."""
        return D4_VIEWS if self.test_time_augmentation else 1

    @property
    def interval_fits(self) -> bool:
        """Whether there is an interval for the way in which `test` and `predict` count."""
        found = self.interval
        return found is not None and (found.alpha, self.interval_views) == (self.alpha, self.views)

    def setup(self, stage: str) -> None:
        """Take the normalisation, if it was not given, from the fingerprint of the training set."""
        datamodule = getattr(self.trainer, "datamodule", None)
        found = None if stage != "fit" or datamodule is None else datamodule.describe().get("fingerprint")
        if found is not None and not self.image_mean:
            self.set_normalisation(found["mean"], found["std"])
            _tell_normalisation(self)

    def on_fit_start(self) -> None:
        """Remember what the data are, and how well the training images are counted without a network."""
        super().on_fit_start()
        self.count_factor = 1.0  # that of a checkpoint is of other weights
        points = getattr(getattr(self.trainer, "datamodule", None), "points", None)
        if points is not None:
            self.floors = floors_of(points("train"))

    def output(self, image: torch.Tensor) -> torch.Tensor:
        """What the network makes of images (B, C, H, W) in 0..1: (B, 1, h, w), density * scale summed over its cells.

        Raises:
            ValueError: if it is of another shape.
        """
        found: torch.Tensor = self.network(self.normalise(image))
        stride = output_stride_of(self.network)
        _check_output(self.network, found, (len(image), 1, *(math.ceil(side / stride) for side in image.shape[2:])))
        return found

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Density (B, 1, H, W) of images (B, C, H, W) in 0..1, all at once: cells per pixel, float32 or more."""
        size = (image.shape[2], image.shape[3])
        density = spread(self.output(image), output_stride_of(self.network), size)
        return density * (self.count_factor / self.density_scale)

    def image_density(self, image: torch.Tensor, views: int | None = None) -> torch.Tensor:
        """Density (1, H, W) float32 of one image (C, H, W) of any size, by tiles; the mean over its views.

        Args:
            image: in 0..1, or uint8, of which tiles are divided by 255 when they are cut.
            views: symmetries of the image, 1 to 8; those of `test` and `predict` when None.
        """
        halo, stride = tiling_of(self.network)
        trained = self.data_description.get("tile_size") or self.tile_size
        tile = trained if halo is None else max(self.tile_size, 2 * (halo + stride))
        function = self if image.is_floating_point() else lambda batch: self(batch * (1 / 255))
        return predict_tiles(function, image, tile, halo, stride, views=views or self.views)

    def training_loss(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """The loss of a batch of tiles, at the resolution of the output; in float32 under any autocast."""
        stride = output_stride_of(self.network)
        found, density, valid, points = self.output(batch["image"]), batch["density"], batch["valid"], batch["points"]
        if stride > 1:
            density, valid = sum_pool(density, stride), valid_cells(valid, stride)
            points = [(one + 0.5) / stride - 0.5 for one in points]
        loss: torch.Tensor = self.loss(found, density, points, valid, self.density_scale)
        return loss

    def _evaluate(self, batch: Mapping[str, Any], metrics: CountingMetrics, views: int) -> dict[str, Any]:
        found = self._predict(batch, views)
        metrics.update(
            batch["index"], found["density"], batch["points"], batch["density"], found["points"], batch.get("valid")
        )
        return found

    def _predict(self, batch: Mapping[str, Any], views: int) -> dict[str, Any]:
        density = torch.stack([self.image_density(image, views) for image in batch["image"]])
        return {"density": density, "points": _points_of(self, batch, density)}

    def _step(self, batch: dict[str, Any], stage: Stage) -> torch.Tensor:
        if stage == "train":
            return self.training_loss(batch)
        fitting = self.trainer.state.fn == "fit"
        found = self._evaluate(batch, self.val_metrics, 1 if fitting else self.views)
        density: torch.Tensor = found["density"]
        return density

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Density (B, 1, H, W) of the images of a batch, and their points, for tables and pictures."""
        return self._evaluate(batch, self.test_metrics, self.views)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Density (B, 1, H, W) of images without dots, and their points."""
        return self._predict(batch, self.views)

    def on_validation_epoch_end(self) -> None:
        """Log the errors of all validation images of all processes, and fit the interval on them."""
        table = self.val_metrics.compute()
        self.val_metrics.reset()
        summary = summarise_counts(table, repeats=0)
        values = {f"val_{name}": torch.tensor(float(summary[name] or 0.0)) for name in _LOGGED}
        fitting = self.trainer.state.fn == "fit"
        # Every process has computed the same values from all images; their mean is the same again.
        counts = [table[name].cpu().numpy() for name in ("predicted_count", "true_count")]
        values["val_mae_scaled"] = torch.tensor(scaled_mae(*counts))
        self.log_dict(values, prog_bar=True, sync_dist=True)
        _learn_from(self, table, fitting)

    def settings(self) -> dict[str, Any]:
        """Constructor arguments other than network and loss, as plain data."""
        own = ("density_scale", "test_time_augmentation", "tile_size", "tolerance", "alpha", "reestimate_batch_norm")
        return {**super().settings(), **{name: getattr(self, name) for name in own}}

    def learned(self) -> dict[str, Any]:
        """Interval and factor of the last validation, and the floors."""
        interval = None if self.interval is None else self.interval.to_dict()
        own = ("interval_views", "interval_per_group", "count_factor", "floors")
        return {"interval": interval, **{name: getattr(self, name) for name in own}}

    def restore_learned(self, stored: dict[str, Any]) -> None:
        """Take interval, factor and floors from a checkpoint, and the scale that its weights were trained with."""
        interval = stored.get("interval")
        self.interval = None if interval is None else ConformalInterval.from_dict(interval)
        self.interval_views, self.floors = stored.get("interval_views", 0), stored.get("floors", {})
        self.interval_per_group = stored.get("interval_per_group", False)
        self.count_factor = stored.get("count_factor", 1.0)
        self.density_scale = _trained_scale(stored["settings"]["density_scale"], self.density_scale)


def _learn_from(task: CountingTask, table: Mapping[str, torch.Tensor], fitting: bool) -> None:
    """Fit the interval on the validation images of a table; and before that, once training is over, the factor."""
    found, true, index = (table[name].cpu().numpy() for name in ("predicted_count", "true_count", "index"))
    rows, task.interval_per_group = exchangeable_rows(index, getattr(task.trainer, "datamodule", None))
    factor = 1.0 if fitting else count_factor(found[rows], true[rows])
    task.count_factor *= factor
    task.interval_views = 0 if fitting else task.views
    if not fitting:
        warn_of_nothing(table, "validation")
    task.interval = ConformalInterval.fit(found[rows] * factor, true[rows], task.alpha)


def exchangeable_rows(index: NDArray[np.int64], datamodule: Any) -> tuple[NDArray[np.int64], bool]:
    """Which validation images an interval is to be fitted on.

    Args:
        index: (N,) place of each image that was counted in the validation split.
        datamodule: of the trainer, or None.

    Returns:
        Rows of `index` and False: all of them; or, if the images have groups, one of each, drawn by the seed of the
        data, and True.
    """
    groups = None if datamodule is None else datamodule.groups("valid")
    if groups is None:
        return np.arange(len(index)), False
    order = np.random.default_rng(datamodule.seed).permutation(len(groups))
    drawn = {groups[number]: number for number in order if number in index}
    return np.flatnonzero(np.isin(index, list(drawn.values()))), True


def _points_of(task: CountingTask, batch: Mapping[str, Any], density: torch.Tensor) -> list[torch.Tensor] | None:
    """Points of each image of a batch; None if nobody finds them, or not in every image."""
    if task.find_points is None:
        return None
    sizes = batch.get("pixel_size_um") or [None] * len(density)
    maps = density[:, 0].float().cpu().numpy()
    points = [task.find_points(task, one, size) for one, size in zip(maps, sizes, strict=True)]
    known = [torch.from_numpy(one) for one in points if one is not None]
    return known if len(known) == len(points) else None


def _trained_scale(trained: float, given: float) -> float:
    if trained != given:
        rank_zero_warn(f"density_scale is {trained:g}, with which the weights were trained: {given:g} is not used.")
    return trained


def _tell_normalisation(task: CountingTask) -> None:
    mean, std = ([round(value, 4) for value in values] for values in (task.image_mean, task.image_std))
    rank_zero_info(f"model.image_mean, model.image_std: {mean}, {std} (of the training images inside `valid`)")


def _check_output(network: nn.Module, found: Any, expected: tuple[int, ...]) -> None:
    if isinstance(found, torch.Tensor) and found.shape == expected:
        return
    what = tuple(found.shape) if isinstance(found, torch.Tensor) else f"a {type(found).__name__}"
    raise ValueError(
        f"{type(network).__name__} returned {what}, expected {expected}: make it with one output channel and without "
        "deep supervision, for which there is the loss SumPooled; a network with smaller maps says so by an attribute "
        "`output_stride`."
    )


def kernel_width(data: Mapping[str, Any], pixel_size_um: Sequence[float] | None = None) -> float | None:
    """Standard deviation of the kernels of a training in pixels of an image; None if it is not known.

    Args:
        data: what a checkpoint says of its training data.
        pixel_size_um: of the image, row and column; that of the training when None.
    """
    if data.get("sigma") is not None:
        return float(data["sigma"])
    size = data.get("pixel_size_um") if pixel_size_um is None else pixel_size_um
    if data.get("sigma_um") is None or size is None:
        return None
    return float(data["sigma_um"]) / math.sqrt(size[-2] * size[-1])


def intensities(images: PointImages) -> NDArray[np.float64]:
    """Summed intensity (N, C) of the images of a split, of pixels that count only."""
    return np.stack(
        [
            summed_intensity(image if valid is None else np.where(valid[..., None], image, 0))
            for image, valid in zip(images.images, images.valid, strict=True)
        ]
    )


def floors_of(images: PointImages) -> dict[str, Any]:
    """The floors of a training set as plain data, see :class:`CountingTask`; no line of fewer than three images."""
    counts = images.counts
    line = intensity_floor(intensities(images), counts) if len(counts) >= LEAST_IMAGES else None
    return {"constant": constant_floor(counts), "linear": None if line is None else asdict(line)}


def warn_of_nothing(table: Mapping[str, torch.Tensor], split: str) -> bool:
    """Warn, and return True, if in all images together hardly any cell was found although there are some.

    Args:
        table: as :class:`~biocnn.metrics.counting.CountingMetrics` makes it.
        split: what the images are, for the message.
    """
    found, true = float(table["predicted_count"].sum()), float(table["true_count"].sum())
    if found > _NOTHING * true:
        return False
    rank_zero_warn(
        f"The network predicts hardly any cells: {found:.1f} of {true:.0f} cells in all {split} images together. "
        "Train longer, lower model.lr, raise model.density_scale, or use a network whose last layer is linear."
    )
    return True
