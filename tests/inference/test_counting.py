import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

import biocnn
from biocnn.checkpoints import read_checkpoint
from biocnn.data.density import rasterise
from biocnn.errors import DataError
from biocnn.inference.counting import Counter, count_of, density_points, flags_of
from biocnn.metrics.conformal import ConformalInterval
from biocnn.networks import UNet
from biocnn.tasks.counting import CountingTask

RANDOM = np.random.default_rng(0)
COLOURS = RANDOM.integers(0, 256, (45, 70, 3), dtype=np.uint8)
GREY = RANDOM.integers(500, 3000, (45, 70)).astype(np.uint16)
MEAN, STD = [0.4, 0.5, 0.3], [0.2, 0.3, 0.25]
INTERVAL = ConformalInterval(2.0, 0.1, 0.5, 20)


def task_of(count: int = 3, interval: ConformalInterval | None = INTERVAL, views: int = 8, **data: Any) -> CountingTask:
    """A network that was not trained, for images of `count` channels."""
    torch.manual_seed(0)
    task = CountingTask(
        UNet(count, channels=(4, 8)), density_scale=50.0, image_mean=MEAN[:count], image_std=STD[:count], tile_size=64
    )
    task.interval, task.interval_views, task.data_description = interval, views, data
    return task.eval()


def checkpoint(path: Path, task: CountingTask) -> Path:
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.strategy.connect(task)
    trainer.save_checkpoint(path)
    return path


def by_hand(path: Path, scaled: np.ndarray) -> np.ndarray:
    """Density (H, W) of an image (H, W, C) in 0..1, from the weights in the file, all at once."""
    channels = scaled.shape[2]
    network = UNet(channels, channels=(4, 8))
    state = read_checkpoint(path)["state_dict"]
    network.load_state_dict({name.removeprefix("network."): value for name, value in state.items()})
    network.eval()
    image = torch.from_numpy(((scaled - MEAN[:channels]) / STD[:channels]).transpose(2, 0, 1)[None]).float()
    total = torch.zeros(1, 1, *image.shape[2:])
    for mirrored in (False, True):
        for turns in range(4):
            with torch.inference_mode():
                output = network(torch.rot90(image.flip(3) if mirrored else image, turns, (2, 3)))
            back = torch.rot90(output, -turns, (2, 3))
            total += (back.flip(3) if mirrored else back) / 8
    return total[0, 0].numpy() / 50


def test_counts_what_the_parts_give_by_hand(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "a.ckpt", task_of(sigma=2.0, pixel_size_um=[0.5, 0.25], channels=["r", "g", "b"]))
    model = biocnn.load(path, device="cpu")
    assert isinstance(model, Counter)
    assert (model.channels, model.pixel_size_um) == (("r", "g", "b"), (0.5, 0.25))
    found, expected = model.density(COLOURS), by_hand(path, COLOURS / 255)
    assert (found.shape, found.dtype) == ((45, 70), np.float32)
    np.testing.assert_allclose(found, expected, atol=1e-6)  # float32 sums in another order
    count, low, high = model.count(COLOURS)
    assert count == pytest.approx(expected.sum(dtype=np.float64), abs=45 * 70 * 1e-6)
    reach = 2 * math.sqrt(max(count, 1))
    assert (low, high) == pytest.approx((max(count - reach, 0), max(count + reach, 0)))
    np.testing.assert_array_equal(model.points(COLOURS), density_points(model.task, found))


def test_other_types_are_scaled_as_the_training_images_were(tmp_path: Path) -> None:
    data = {"channels": ["grey"], "dtype": "uint16", "fingerprint": {"intensity_range": [400.0, 3500.0]}}
    path = checkpoint(tmp_path / "a.ckpt", task_of(1, **data))
    model = biocnn.load(path, device="cpu")
    assert isinstance(model, Counter)
    np.testing.assert_allclose(model.density(GREY), by_hand(path, (GREY[..., None] - 400.0) / 3100), atol=1e-6)
    with pytest.raises(DataError, match="does not say how wide the kernels"):
        model.points(GREY)


def test_a_checkpoint_without_an_interval_says_so(tmp_path: Path) -> None:
    few = ConformalInterval.fit([3.0] * 5, [4.0] * 5, 0.1)
    cases = [(None, 0, "not been validated"), (INTERVAL, 1, "another way to predict"), (few, 8, "5 validation images")]
    for interval, views, words in cases:
        path = checkpoint(tmp_path / "a.ckpt", task_of(interval=interval, views=views))
        with pytest.warns(UserWarning, match=f"Counts come with no interval: .*{words}"):
            model = biocnn.load(path, device="cpu")
        assert isinstance(model, Counter)
        assert model.count(COLOURS)[1:] == (0.0, math.inf)


def test_wrong_images_are_refused(tmp_path: Path) -> None:
    model = biocnn.load(checkpoint(tmp_path / "a.ckpt", task_of()), device="cpu")
    assert isinstance(model, Counter)
    for image, text in (
        (COLOURS / 255, r"received float64 \(45, 70, 3\)"),
        (COLOURS[..., 0], r"received uint8 \(45, 70\)"),
        (COLOURS[:0], r"received uint8 \(0, 70, 3\)"),
    ):
        with pytest.raises(DataError, match=text):
            model.count(image)
    data = {"dtype": "float32", "fingerprint": {"intensity_range": [0.0, 1.0]}}
    model = biocnn.load(checkpoint(tmp_path / "b.ckpt", task_of(1, **data)), device="cpu")
    assert isinstance(model, Counter)
    with pytest.raises(DataError, match="holds nan or infinity"):
        model.count(np.full((8, 8), np.nan, np.float32))


def test_the_count_of_a_part_is_the_sum_inside() -> None:
    task, density = task_of(), np.arange(12, dtype=np.float32).reshape(3, 4)
    inside = density > 8
    assert count_of(task, density).cells == 66
    # 9 + 10 + 11, and 2 * sqrt(30) to each side
    assert count_of(task, density, inside) == pytest.approx((30, 30 - 2 * math.sqrt(30), 30 + 2 * math.sqrt(30)))


def test_points_of_a_true_map_are_found() -> None:
    points = np.array([[0.0, 3.0], [10.0, 10.0], [20.0, 30.0], [31.0, 47.0]])
    density = rasterise(points, (32, 48), 2.0)
    found = density_points(task_of(sigma=2.0), density)
    assert found is not None
    np.testing.assert_allclose(found[np.lexsort(found.T[::-1])], points, atol=0.05)
    half = density_points(task_of(sigma=2.0), density / 2)  # of two cells
    assert half is not None
    assert len(half) == 2
    # Kernels of 1 um in an image of 0.5 um a pixel are 2 px wide.
    again = density_points(task_of(sigma=None, sigma_um=1.0), density, (0.5, 0.5))
    np.testing.assert_array_equal(again, found)
    assert density_points(task_of(sigma=None, sigma_um=1.0), density) is None


PRINT: dict[str, Any] = {"mean": [0.5], "std": [0.1], "mean_spread": [0.04], "count_largest": 20}


@pytest.mark.parametrize(
    ("count", "mean", "std", "size", "words"),
    [
        (20.0, 0.5, 0.1, (0.5, 0.5), []),
        (20.5, 0.5, 0.1, (0.5, 0.5), ["more cells than in any training image (20)"]),
        (-0.5, 0.5, 0.1, (0.5, 0.5), ["count below zero"]),
        (5.0, 0.57, 0.1, (0.52, 0.5), []),  # 3.5 deviations between the images, 0.02 each
        (5.0, 0.59, 0.1, (0.5, 0.5), ["intensity unlike the training images (mean 0.590 in channel 0, there 0.500)"]),
        (5.0, 0.5, 0.02, (0.5, 0.5), ["contrast unlike the training images (0.20 times theirs)"]),
        (5.0, 0.5, 0.1, (0.6, 0.5), ["pixel size 0.6 x 0.5 um (training: 0.5 x 0.5 um)"]),
        (5.0, 0.5, 0.1, None, ["pixel size not known (training: 0.5 x 0.5 um)"]),
    ],
)
def test_flags(count: float, mean: float, std: float, size: Any, words: list[str]) -> None:
    task = task_of(1, fingerprint=PRINT, pixel_size_um=[0.5, 0.5])
    image = np.full((10, 10, 1), mean, np.float32)
    image[::2] += std
    image[1::2] -= std
    assert flags_of(task, count, image, size) == words
    # What does not count is not looked at.
    valid = np.zeros((20, 10), bool)
    valid[:10] = True
    assert flags_of(task, count, np.concatenate([image, np.ones_like(image)]), size, valid) == words


def test_many_cells_are_many_for_the_size_of_the_image() -> None:
    # Training images of 100x200 px with up to 20 cells; the densest, of 100x100 px, has 1.5 in 1,000 px.
    known = {"fingerprint": {**PRINT, "size_largest": [100, 200], "density_largest": 0.0015}}
    total, density = "more cells than in any training image (20)", "denser than any training image"

    def flags(count: float, rows: int, columns: int, valid: Any = None, **data: Any) -> list[str]:
        image = np.full((rows, columns, 1), 0.5, np.float32)
        image[::2], image[1::2] = 0.6, 0.4
        return flags_of(task_of(1, **(data or known)), count, image, valid=valid)

    assert flags(20, 16, 16) == [f"{density} (781 cells per 100x100 px, there at most 15)"]
    assert flags(1, 16, 16) == []  # one cell is no density
    assert flags(20.5, 100, 200) == [total]
    assert [flag.split(" (")[0] for flag in flags(35, 100, 200)] == [total.split(" (")[0], density]
    assert flags(80, 400, 200) == []  # a larger image of the same density
    assert [flag.split(" (")[0] for flag in flags(130, 400, 200)] == [density]
    valid = np.zeros((400, 200), bool)
    valid[:100] = True
    assert flags(20.5, 400, 200, valid) == [total]
    # A checkpoint that did not measure the density.
    older = {"fingerprint": {**PRINT, "size_largest": [100, 200]}}
    assert flags(20, 16, 16, **older) == []
    assert flags(20.5, 100, 200, **older) == [total]


def test_pixels_beyond_the_training_range_are_a_flag(tmp_path: Path) -> None:
    data = {
        "dtype": "uint16",
        "fingerprint": {**PRINT, "mean": [0.5], "std": [0.3], "intensity_range": [500.0, 3000.0]},
    }
    task = task_of(1, **data)
    image = np.full((10, 10, 1), 0.5, np.float32)
    image[::2], image[1::2] = 0.8, 0.2
    words = "2 % of the pixels beyond the training images (500 to 3000)"
    assert flags_of(task, 3.0, image, beyond=0.02) == [words]
    assert flags_of(task, 3.0, image, beyond=0.01) == []
    model = biocnn.load(checkpoint(tmp_path / "a.ckpt", task), device="cpu")
    assert isinstance(model, Counter)
    bright = GREY.copy()
    bright[:5] = 60000  # 5 of 45 rows; cut to the range they change mean and contrast by little
    assert words not in model.flags(GREY)
    assert "11 % of the pixels beyond the training images (500 to 3000)" in model.flags(bright)


def test_flags_of_an_image_are_those_of_its_count(tmp_path: Path) -> None:
    data = {
        "fingerprint": {"mean": [0.9] * 3, "std": [0.3] * 3, "mean_spread": [0.01] * 3},
        "pixel_size_um": [0.5, 0.5],
    }
    model = biocnn.load(checkpoint(tmp_path / "a.ckpt", task_of(**data)), device="cpu")
    assert isinstance(model, Counter)
    count = model.count(COLOURS).cells
    expected = flags_of(model.task, count, (COLOURS / 255).astype(np.float32), (0.5, 0.5))
    assert any("intensity unlike" in flag for flag in expected)
    assert model.flags(COLOURS) == expected
    assert model.flags(COLOURS, (1.0, 0.5)) == [*expected, "pixel size 1 x 0.5 um (training: 0.5 x 0.5 um)"]


def test_a_flagged_image_has_all_its_flags_and_nothing_is_cut() -> None:
    """What is doubtful is said beside the count; the count itself stays what the network says."""
    task = task_of(1, interval=None, fingerprint=PRINT, pixel_size_um=[0.5, 0.5])
    density = np.full((10, 10), 3.0, np.float32)
    assert count_of(task, density) == (300.0, 0.0, math.inf)
    assert count_of(task, -density).cells == -300.0
    flags = flags_of(task, 300.0, np.ones((10, 10, 1), np.float32))
    starts = ["more cells than in any", "intensity unlike", "contrast unlike", "pixel size not known", "no interval"]
    assert [flag.startswith(start) for flag, start in zip(flags, starts, strict=True)] == [True] * 5
    # Nothing is known of the training images: only the interval can be missed.
    assert flags_of(task_of(1), 300.0, np.ones((10, 10, 1), np.float32)) == []


def test_no_interval_is_a_flag() -> None:
    image = np.zeros((4, 4, 1), np.float32)
    assert flags_of(task_of(1, interval=None), 3.0, image) == ["no interval: the checkpoint has not been validated"]
