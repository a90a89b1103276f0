from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from biocnn.data.point_images import PointImages
from biocnn.data.point_tiles import PointTiles, density_inside
from biocnn.errors import CheckpointError
from biocnn.inference.counting import density_points
from biocnn.losses import CountL1, DensityLoss, DensityMSE
from biocnn.metrics.conformal import ConformalInterval
from biocnn.networks import FCRNA, UNet
from biocnn.tasks.counting import CountingTask, exchangeable_rows, floors_of, intensities, kernel_width
from tests.data.drawn_cells import cells, drawn_cells, point_set

PLAIN: dict[str, Any] = {"image_mean": [0.5], "image_std": [0.25]}
SIGMA = 2.0


class Linear(nn.Module):
    """Output = weight * image + bias, summed over cells of `output_stride` pixels; the last ones may have fewer."""

    halo = 0

    def __init__(self, stride: int = 1, weight: float = 0.3, bias: float = 0.1) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.tensor(weight)), nn.Parameter(torch.tensor(bias))
        self.output_stride = self.stride = stride

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        values = image[:, :1] * self.weight + self.bias
        rows, columns = (-length % self.output_stride for length in image.shape[2:])
        padded = nn.functional.pad(values, (0, columns, 0, rows))
        return nn.functional.avg_pool2d(padded, self.output_stride) * self.output_stride**2


def batch(size: int = 32, count: int = 2, seed: int = 0) -> dict[str, Any]:
    """Drawn cells; `valid` leaves out the last column, and points in it are left out."""
    parts = [cells(10 * seed + number, 5 + seed + number, size, size) for number in range(count)]
    valid = np.ones((size, size), bool)
    valid[:, -1] = False
    points = [one[one[:, 1] < size - 1] for _, one in parts]
    density = np.stack([density_inside(one, valid, SIGMA) for one in points])[:, None]
    return {
        "image": torch.from_numpy(np.stack([image for image, _ in parts])[:, None] / np.float32(255)),
        "density": torch.from_numpy(density),
        "points": [torch.from_numpy(one.astype(np.float32)) for one in points],
        "valid": torch.from_numpy(np.broadcast_to(valid, density.shape).copy()),
        "index": torch.arange(count) + count * seed,
        "id": [f"{seed}-{number}" for number in range(count)],
    }


def trainer(**arguments: Any) -> pl.Trainer:
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return pl.Trainer(**(quiet | arguments))


def loader(items: list[dict[str, Any]]) -> DataLoader[Any]:
    return DataLoader(items, batch_size=None)  # type: ignore[arg-type]


def test_the_scale_is_divided_out_once() -> None:
    data = batch()["image"]
    plain = CountingTask(Linear(), density_scale=1.0, **PLAIN)(data)
    torch.testing.assert_close(plain, 0.3 * (data - 0.5) / 0.25 + 0.1)
    torch.testing.assert_close(CountingTask(Linear(), density_scale=250.0, **PLAIN)(data), plain / 250)


def test_the_scale_is_a_unit_and_changes_no_number_of_cells() -> None:
    data = [batch(seed=number, count=1) for number in range(10)]
    found = []
    for scale in (1.0, 1000.0):
        network = Linear(weight=0.02 * scale, bias=0.013 * scale)
        task = CountingTask(network, loss=CountL1(), density_scale=scale, **PLAIN)
        logged = trainer().validate(task, loader(data), verbose=False)[0]
        assert task.interval is not None
        found.append([*logged.values(), task.interval.quantile, task.training_loss(data[0]).item()])
    assert found[0] == pytest.approx(found[1], rel=1e-5)  # float32
    assert found[0][0] > 1


def test_training_loss_is_the_formula_where_valid() -> None:
    data = batch()
    output = (0.3 * (data["image"] - 0.5) / 0.25 + 0.1).double()[..., :-1]
    true = data["density"].double()[..., :-1]
    square = (output - 100 * true).square().mean()
    numbers = torch.tensor([len(points) for points in data["points"]])
    count = (output.sum((1, 2, 3)) / 100 - numbers).abs().mean()
    found = CountingTask(Linear(), **PLAIN).training_loss(data)
    torch.testing.assert_close(found.double(), square + 0.01 * count, rtol=1e-5, atol=0)  # sums in float32


@pytest.mark.parametrize("stride", [1, 4, 8])
def test_maps_of_cells_keep_the_count(stride: int) -> None:
    image = torch.rand(1, 1, 45, 70, generator=torch.Generator().manual_seed(0))
    task = CountingTask(Linear(stride), test_time_augmentation=False, tile_size=24, **PLAIN)
    density = task(image)
    assert density.shape == (1, 1, 45, 70)
    expected = (0.3 * (image - 0.5) / 0.25 + 0.1).double().sum() / 100
    assert density.double().sum().item() == pytest.approx(expected.item(), rel=1e-6)
    # By tiles the cells are the same ones.
    torch.testing.assert_close(task.image_density(image[0], 1), density[0].detach(), atol=1e-8, rtol=1e-6)


class Kept(DensityLoss):
    """A loss that keeps what it was given."""

    name = "kept"
    needs_points = True

    def per_sample(
        self, prediction: torch.Tensor, density: torch.Tensor, points: Any, valid: torch.Tensor | None
    ) -> torch.Tensor:
        self.given = density, points, valid
        return prediction.flatten(1).sum(1)


def test_losses_of_cells_get_density_and_points_on_their_grid() -> None:
    data, loss = batch(), Kept()
    CountingTask(Linear(8), loss=loss, density_scale=1.0, **PLAIN).training_loss(data)
    density, points, valid = loss.given
    assert valid is not None
    # The last column of cells holds pixels that are not valid.
    np.testing.assert_array_equal(valid[0, 0].numpy(), np.tile([True, True, True, False], (4, 1)))
    blocks = data["density"].reshape(2, 1, 4, 8, 4, 8).sum((3, 5))[..., :3]
    torch.testing.assert_close(density[..., :3], blocks)
    for found, true in zip(points, data["points"], strict=True):
        inside = true[true[:, 1] < 24]
        np.testing.assert_array_equal(np.floor(found.numpy() + 0.5), inside.numpy() // 8)


def test_loss_and_density_are_single_precision_under_autocast() -> None:
    data = batch()
    torch.manual_seed(0)
    task = CountingTask(nn.Conv2d(1, 1, 3, padding=1), loss=DensityMSE() + CountL1(), **PLAIN)
    losses: list[torch.Tensor] = []

    class Keep(pl.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *args: Any) -> None:
            losses.append(outputs["loss"])

    with torch.autocast("cpu", torch.bfloat16):
        output = task.output(data["image"])
        density = task(data["image"])
    assert (output.dtype, density.dtype) == (torch.bfloat16, torch.float32)
    exact = output.detach().double()[..., :-1]
    error = (exact.sum((1, 2, 3)) / 100 - torch.tensor([len(points) for points in data["points"]])).abs().mean()
    expected = (exact - 100 * data["density"].double()[..., :-1]).square().mean() + error
    trainer(max_steps=1, precision="bf16-mixed", callbacks=[Keep()]).fit(task, loader([data]))
    assert losses[0].dtype == torch.float32
    # bfloat16 arithmetic of the loss would be wrong by 4e-3.
    assert losses[0].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_counts_are_exact_under_autocast(half: torch.dtype) -> None:
    """Sums in bfloat16 would be wrong by up to half a cell, and beyond 65,504 those in float16 are infinite."""
    torch.manual_seed(0)
    data = batch(count=1)
    network = nn.Conv2d(1, 1, 3, padding=1)
    nn.init.constant_(network.bias, 191.0)  # type: ignore[arg-type]
    task = CountingTask(network, CountL1(), density_scale=1000.0, test_time_augmentation=False, **PLAIN)
    with torch.autocast("cpu", half):
        output = task.output(data["image"])
        density, tiled, loss = task(data["image"]), task.image_density(data["image"][0]), task.training_loss(data)
    assert output.dtype == half
    assert density.dtype == tiled.dtype == loss.dtype == torch.float32
    exact = output.double()
    assert exact.sum() > 1.5e5
    assert density.double().sum().item() == pytest.approx(exact.sum().item() / 1000, rel=1e-6)
    assert tiled.double().sum().item() == pytest.approx(exact.sum().item() / 1000, rel=1e-6)
    error = exact[..., :-1].sum().item() / 1000 - len(data["points"][0])
    assert loss.item() == pytest.approx(error, rel=1e-5)
    if half == torch.bfloat16:  # Lightning has no mixed float16 on processors
        logged = trainer(precision="bf16-mixed").validate(task, loader([data]), verbose=False)[0]
        assert logged["val_mae"] == logged["val_bias"] == pytest.approx(error, rel=1e-6)


@pytest.mark.parametrize("make", [lambda: FCRNA(1), lambda: UNet(1, channels=(4, 8))])
def test_tiles_add_up_to_the_whole(make: Any) -> None:
    torch.manual_seed(0)
    network = make().eval()
    task = CountingTask(network, tile_size=1, test_time_augmentation=False, **PLAIN).eval()
    image = torch.rand(1, 2 * network.halo + 90, 41)
    with torch.inference_mode():
        expected = task(image[None])[0]
    found = task.image_density(image)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert found.double().sum().item() == pytest.approx(expected.double().sum().item(), abs=1e-3)


def test_eight_views_are_averaged() -> None:
    torch.manual_seed(0)
    task = CountingTask(UNet(1, channels=(4, 8)), **PLAIN).eval()
    image = torch.rand(1, 24, 32)
    with torch.inference_mode():
        views = []
        for mirrored in (False, True):
            for turns in range(4):
                view = torch.rot90(image.flip(-1) if mirrored else image, turns, (-2, -1))
                back = torch.rot90(task(view[None])[0], -turns, (-2, -1))
                views.append(back.flip(-1) if mirrored else back)
    assert task.views == 8
    torch.testing.assert_close(task.image_density(image), torch.stack(views).mean(0), atol=1e-7, rtol=1e-5)


def test_validation_logs_the_errors_and_fits_the_interval() -> None:
    task = CountingTask(Linear(weight=2.0, bias=2.4), **PLAIN)
    data = [batch(seed=number, count=1) for number in range(12)]
    found = [(2 * (one["image"] - 0.5) / 0.25 + 2.4).double()[..., :-1].sum().item() / 100 for one in data]
    true = [len(one["points"][0]) for one in data]
    logged = trainer().validate(task, loader(data), verbose=False)[0]
    error = np.array(found) - true
    assert logged["val_mae"] == pytest.approx(np.abs(error).mean(), rel=1e-5)  # logged in float32
    assert logged["val_rmse"] == pytest.approx(np.sqrt((error**2).mean()), rel=1e-5)
    assert logged["val_bias"] == pytest.approx(error.mean(), rel=1e-5)
    assert logged["val_mae"] <= logged["val_game1"] <= logged["val_game2"] <= logged["val_game3"]
    # More than chance, and within what a factor may be, so all counts get a factor before the interval is fitted.
    factor = sum(true) / sum(found)
    assert task.count_factor == pytest.approx(factor, rel=1e-5)
    assert logged["val_mae_scaled"] == pytest.approx(np.abs(np.array(found) * factor - true).mean(), rel=1e-5)
    assert task(data[0]["image"]).sum().item() == pytest.approx(
        factor * task.output(data[0]["image"]).sum().item() / task.density_scale, rel=1e-5
    )
    expected = ConformalInterval.fit(np.array(found) * factor, true, 0.1)
    assert task.interval is not None
    assert task.interval.quantile == pytest.approx(expected.quantile, rel=1e-5)
    assert (task.interval.images, task.interval_views, task.interval_fits) == (12, 8, True)
    task.alpha = 0.2
    assert not task.interval_fits


class Grouped:
    """What a task asks a datamodule for."""

    def __init__(self, groups: list[str] | None, seed: int = 0) -> None:
        self.seed, self._groups = seed, groups

    def groups(self, split: str) -> list[str] | None:
        assert split == "valid"
        return self._groups


def test_an_interval_is_fitted_on_one_image_of_each_group() -> None:
    groups = [f"slide{number % 7}" for number in range(30)]
    index = np.arange(30)
    drawn = set()
    for seed in range(8):
        rows, grouped = exchangeable_rows(index, Grouped(groups, seed))
        assert grouped
        assert sorted(groups[row] for row in rows) == sorted(set(groups))
        assert rows.tolist() == exchangeable_rows(index, Grouped(groups, seed))[0].tolist()
        drawn.add(tuple(rows))
    assert len(drawn) > 4  # it is the seed that chooses
    # Only those that were counted.
    rows, _ = exchangeable_rows(index[20:], Grouped(groups))
    assert sorted(groups[20 + row] for row in rows) == sorted(set(groups))
    for module in (None, Grouped(None)):
        rows, grouped = exchangeable_rows(index, module)
        assert (rows.tolist(), grouped) == (index.tolist(), False)


def test_validation_within_a_training_is_of_one_view() -> None:
    task = CountingTask(Linear(), **PLAIN)
    trainer(max_epochs=1).fit(task, loader([batch()]), loader([batch(count=1)]))
    assert (task.interval_views, task.interval_fits) == (0, False)


def test_points_are_scored_when_they_can_be_found() -> None:
    class Truth(Linear):
        density = torch.empty(0)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.density

    network = Truth()
    task = CountingTask(network, density_scale=1.0, test_time_augmentation=False, tolerance=1.0, **PLAIN)
    data = batch(count=1)
    points = np.array([[5.0, 5.0], [20.0, 9.0], [11.0, 25.0]])
    density = density_inside(points, np.ones((32, 32), bool), SIGMA)[None, None]
    data |= {"points": [torch.from_numpy(points)], "density": torch.from_numpy(density)}
    network.density = torch.from_numpy(density)
    trainer().test(task, loader([data]), verbose=False)
    assert torch.isnan(task.test_metrics.compute()["true_positive_tol1px"]).all()
    task.test_metrics.reset()
    task.find_points, task.data_description = density_points, {"sigma": SIGMA}
    trainer().test(task, loader([data]), verbose=False)
    table = task.test_metrics.compute()
    names = ("true_positive", "false_positive", "false_negative")
    assert [table[f"{name}_tol1px"].item() for name in names] == [3, 0, 0]


def test_kernels_in_micrometres_have_a_width_in_pixels() -> None:
    assert kernel_width({}) is None
    micrometres = {"sigma": None, "sigma_um": 2.0, "pixel_size_um": [0.5, 0.5]}
    assert kernel_width(micrometres) == 4
    assert kernel_width(micrometres, (1.0, 4.0)) == 1
    assert kernel_width({"sigma": 3.0}, (1.0, 4.0)) == 3


def test_a_network_that_predicts_zero_is_named() -> None:
    task = CountingTask(Linear(weight=0.0, bias=0.0), **PLAIN)
    with pytest.warns(UserWarning, match=r"hardly any cells: 0\.0 of \d+ cells in all validation images"):
        trainer().validate(task, loader([batch(count=1)]), verbose=False)


def test_settings_and_what_was_learned_come_back(tmp_path: Path) -> None:
    task = CountingTask(
        Linear(bias=1.0), density_scale=7.0, tolerance=2.5, alpha=0.2, reestimate_batch_norm=False, **PLAIN
    )
    task.floors = floors_of(drawn_cells(4))
    running = trainer()
    running.validate(task, loader([batch(seed=number, count=1) for number in range(5)]), verbose=False)
    running.save_checkpoint(tmp_path / "a.ckpt")
    again = CountingTask(Linear(), **task.settings())
    assert again.settings() == task.settings()
    again = CountingTask(Linear(), density_scale=100.0, alpha=0.2, **PLAIN)
    with pytest.warns(UserWarning, match="density_scale is 7, with which the weights were trained: 100 is not used"):
        again.load_checkpoint(tmp_path / "a.ckpt")
    assert (again.interval, again.interval_fits, again.floors) == (task.interval, True, task.floors)
    assert again.density_scale == 7.0  # the weights were trained with it
    with pytest.raises(CheckpointError, match="interval: expected the keys"):
        again.restore_learned({"interval": {"quantile": 1.0}, "settings": task.settings()})


def test_floors_count_valid_pixels_only() -> None:
    drawn = drawn_cells(5)
    valid = np.ones(drawn.images[0].shape[:2], bool)
    valid[:40] = False
    points = [one[one[:, 0] >= 40] for one in drawn.points]
    images: PointImages = point_set(drawn.images, points, [valid] * 5)
    sums = np.array([image[40:].astype(np.int64).sum() for image in images.images])
    np.testing.assert_array_equal(intensities(images)[:, 0], sums)
    slope, intercept = np.polyfit(sums, [len(one) for one in points], 1)
    floors = floors_of(images)
    assert floors["constant"] == pytest.approx(np.mean([len(one) for one in points]))
    assert floors["linear"]["slope"] == pytest.approx(slope, rel=1e-6)
    assert floors["linear"]["intercept"] == pytest.approx(intercept, rel=1e-6)
    assert floors_of(drawn_cells(2))["linear"] is None


def test_wrong_networks_and_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"returned \(2, 2, 32, 32\), expected \(2, 1, 32, 32\)"):
        CountingTask(nn.Conv2d(1, 2, 1), **PLAIN)(batch()["image"])
    with pytest.raises(ValueError, match=r"returned \(2, 1, 16, 16\), expected.*output_stride"):
        CountingTask(nn.AvgPool2d(2), **PLAIN)(batch()["image"])
    with pytest.raises(ValueError, match=r"returned a list, expected.*SumPooled"):
        CountingTask(UNet(1, channels=(4, 8, 8), deep_supervision=True), **PLAIN)(batch()["image"])
    for wrong in ({"density_scale": 0.0}, {"alpha": 1.0}, {"tile_size": 0}):
        with pytest.raises(ValueError, match="Expected a positive density_scale, alpha between 0 and 1"):
            CountingTask(Linear(), **wrong)


def test_it_learns_to_count() -> None:
    torch.manual_seed(0)
    images = [cells(number, 2 + 2 * number, 64, 64) for number in range(8)]
    split = point_set([image[..., None] for image, _ in images], [points for _, points in images])
    tiles = PointTiles(split, [SIGMA] * 8, 32, 32, None, (0.0, 255.0), 0)
    served = []
    for epoch in range(12):
        for first in range(0, 32, 8):
            one = tiles.__getitems__([(epoch, index) for index in range(first, first + 8)])
            served.append({**one, "image": one["image"].permute(0, 3, 1, 2).float() / 255})
    network = UNet(1, channels=(8, 16))
    task = CountingTask(network, lr=1e-2, image_mean=[0.25], image_std=[0.2], test_time_augmentation=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    trainer(max_epochs=1).fit(task, loader(served))
    new = [{**batch(64, 1, seed), "index": torch.tensor([seed])} for seed in range(4, 12)]
    error = trainer().validate(task, loader(new), verbose=False)[0]["val_mae"]
    torch.set_num_threads(threads)
    counts = np.array([len(one["points"][0]) for one in new])
    # Other images with 9 to 16 cells; the mean training count, 9, would be wrong by 3.3.
    assert error < 0.5 * np.abs(counts - 9).mean()
