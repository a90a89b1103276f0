import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml
from torch import nn

from biocnn.data.counting_module import CountingDataModule
from biocnn.data.density import kernel_widths, rasterise
from biocnn.data.point_fingerprint import PointFingerprint
from biocnn.errors import DataError, DatasetNotFoundError, ManifestError
from tests.conftest import SHARED_DATA
from tests.data.drawn import save
from tests.data.drawn_cells import cells, dots, write_cells, write_point_manifest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn images that no test changes: 6, 3 and 2."""
    root = tmp_path_factory.mktemp("cells")
    write_cells(root, {"train": 6, "valid": 3, "test": 2})
    return root


def module(root: Path, stage: str = "fit", **arguments: Any) -> CountingDataModule:
    settings = {"manifest": str(root / "drawn.yaml"), "tile_size": 32, "batch_size": 4, "num_workers": 0, **arguments}
    made = CountingDataModule(str(root), **settings)
    made.setup(stage)
    return made


def epoch(loader: Any, number: int) -> list[dict[str, Any]]:
    loader.sampler.set_epoch(number)
    return list(loader)


def equal(first: Any, second: Any) -> bool:
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[name], second[name]) for name in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(equal, first, second))
    return torch.equal(first, second) if torch.is_tensor(first) else first == second


class Counter(pl.LightningModule):
    """A task of one weight, which keeps the batches it was given."""

    def __init__(self, **data_description: Any) -> None:
        super().__init__()
        self.network = nn.Conv2d(1, 1, 1)
        self.seen: list[dict[str, Any]] = []
        self.data_description = data_description

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        self.seen.append(batch)
        return (self.network(batch["image"]).sum((1, 2, 3)) - batch["count"]).abs().mean()

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.seen.append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-6)


def trainer(root: Path, **arguments: Any) -> pl.Trainer:
    settings: dict[str, Any] = {"max_epochs": 1, "limit_val_batches": 0, **arguments}
    return pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        default_root_dir=root,
        enable_checkpointing=False,
        enable_model_summary=False,
        **settings,
    )


def test_batches_do_not_depend_on_workers(folder: Path) -> None:
    reference = module(folder, tiles_per_epoch=12).train_dataloader()
    expected = [epoch(reference, number) for number in range(2)]
    assert len(expected[0]) == 3
    assert not equal(*expected)
    for workers in (1, 2):
        loader = module(folder, tiles_per_epoch=12, num_workers=workers, start_method="fork").train_dataloader()
        for number in range(2):
            assert equal(epoch(loader, number), expected[number]), workers


def test_what_is_not_given_is_chosen_and_printed(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        made = module(folder, tile_size=None, batch_size=None)
    # The images have 96x80 px: a tile of 64 fits, 16 of them are a batch, 8 batches are 128 tiles of 6 images.
    assert (made.tile_size, made.batch_size, made.tiles_per_epoch) == (64, 16, 132)
    assert isinstance(made.fingerprint, PointFingerprint)
    assert made.sigma == made.fingerprint.sigma
    for text in (
        "fingerprint: 6 training images of 96x80 px",
        "fingerprint: 10.5 cells per image (8 to 13)",
        "data.tile_size: 64 (64, or what holds 8 cells",
        "data.tiles_per_epoch: 132 (as many from every image",
        f"data.sigma: {made.sigma:g} px (a quarter of the median distance to the nearest neighbour",
        "data audit: train: 6 images",
    ):
        assert text in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        made = module(folder, sigma=3.0)
    assert made.sigma == 3
    assert "data.sigma" not in caplog.text


def test_a_task_is_given_images_and_points(folder: Path, tmp_path: Path) -> None:
    task = Counter()
    trainer(tmp_path).fit(task, datamodule=module(folder, tiles_per_epoch=12))
    batch = task.seen[0]
    assert set(batch) == {"image", "density", "valid", "points", "count", "index", "id", "group"}
    assert (batch["image"].shape, batch["image"].dtype) == ((4, 1, 32, 32), torch.float32)
    assert batch["image"].max() <= 1
    torch.testing.assert_close(batch["density"].sum((1, 2, 3)), batch["count"], atol=1e-4, rtol=0)


def test_whole_images_are_served_once_in_order(folder: Path) -> None:
    made = module(folder, "test", sigma=2.0)
    batches = [made.on_after_batch_transfer(batch, 0) for batch in made.test_dataloader()]
    assert [batch["id"][0] for batch in batches] == made.ids("test") == [f"test/images/{n}.png" for n in range(2)]
    for number, batch in enumerate(batches):
        image, points = cells(4000 + number, 8 + number)
        np.testing.assert_allclose(batch["image"][0, 0], image / 255, rtol=1e-6)
        np.testing.assert_array_equal(batch["points"][0], points)
        np.testing.assert_array_equal(batch["density"][0, 0], rasterise(points, (96, 80), 2.0))
        assert batch["count"].tolist() == [8 + number]
        assert (batch["index"].tolist(), batch["group"], batch["pixel_size_um"]) == ([number], [], [None])
    assert made.points("test").counts.tolist() == [8, 9]


def test_images_are_drawn_from_train_and_valid_and_never_from_test(folder: Path) -> None:
    small, large = (module(folder, training_images=number, valid_images=3) for number in (2, 4))
    assert [len(small.ids(split)) for split in ("train", "valid")] == [2, 3]
    assert set(small.ids("train")) < set(large.ids("train"))
    assert small.ids("valid") == large.ids("valid")
    pool = {f"{split}/images/{n}.png" for split, count in {"train": 6, "valid": 3}.items() for n in range(count)}
    drawn = set()
    for seed in range(12):
        made = module(folder, training_images=4, valid_images=3, seed=seed)
        train, valid = set(made.ids("train")), set(made.ids("valid"))
        assert not train & valid
        drawn |= train | valid
        made.setup("test")
        assert made.ids("test") == [f"test/images/{n}.png" for n in range(2)]
        assert made.describe()["test_hash"] == module(folder, "test", sigma=1.0).describe()["test_hash"]
    assert drawn == pool
    found = small.describe()
    assert (found["training_images"], found["valid_images"], found["sizes"]) == (2, 3, {"train": 2, "valid": 3})
    assert found["split_hash"] != large.describe()["split_hash"]
    assert found["valid_hash"] == large.describe()["valid_hash"]
    # The same validation images, opened alone, as for a test of a checkpoint.
    alone = module(folder, "validate", training_images=2, valid_images=3)
    assert alone.describe()["valid_hash"] == found["valid_hash"]
    with pytest.raises(DataError, match=r"hold 9 images .*expected 7 to train on and 3"):
        module(folder, training_images=7, valid_images=3)


def test_folds_cover_everything_once(folder: Path) -> None:
    seen = [name for fold in range(3) for name in module(folder, folds=3, fold=fold).ids("valid")]
    assert len(seen) == len(set(seen)) == 9
    with pytest.raises(ValueError, match=r"fold must be in 0\.\.2, received 3"):
        module(folder, folds=3, fold=3)


def test_groups_stay_together(tmp_path: Path) -> None:
    for number in range(8):
        image, points = cells(number)
        save(tmp_path / f"train/images/field{number // 2}_{number}.png", image)
        save(tmp_path / f"train/points/field{number // 2}_{number}.png", dots(points))
    write_point_manifest(tmp_path, ["train"], group={"pattern": r"(field\d)"})
    for arguments in ({"folds": 4}, {"valid_images": 2}, {"training_images": 3, "valid_images": 2}):
        made = module(tmp_path, **arguments)
        assert not set(made.groups("valid") or []) & set(made.groups("train") or [])
    with pytest.raises(ManifestError, match="no split 'valid'"):
        module(tmp_path)


def test_description_is_plain_and_names_the_data(folder: Path, tmp_path: Path) -> None:
    found = module(folder).describe()
    assert yaml.safe_load(yaml.safe_dump(found)) == found
    assert found["sizes"] == {"train": 6, "valid": 3}
    assert PointFingerprint.from_dict(found["fingerprint"]).count_mean == 10.5
    assert found["sigma"] == PointFingerprint.from_dict(found["fingerprint"]).sigma
    assert module(folder, seed=3).describe()["split_hash"] == found["split_hash"]
    write_cells(tmp_path, {"train": 6, "valid": 3, "test": 2})
    assert module(tmp_path).describe()["split_hash"] == found["split_hash"]
    save(tmp_path / "train/points/3.png", dots(cells(77)[1]))
    other = module(tmp_path).describe()
    assert other["split_hash"] != found["split_hash"]
    assert other["valid_hash"] == found["valid_hash"]


class SaveInTheMiddle(pl.Callback):
    """Writes a checkpoint after step 8, in the second epoch."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        if trainer.global_step == 8:
            trainer.save_checkpoint(self.path)


def test_a_run_that_was_stopped_goes_on_with_the_same_batches(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "stopped.ckpt"
    whole, rest = Counter(), Counter()
    saving = trainer(tmp_path, max_epochs=2, callbacks=[SaveInTheMiddle(path)])
    saving.fit(whole, datamodule=module(folder, tiles_per_epoch=24))
    trainer(tmp_path, max_epochs=2).fit(rest, datamodule=module(folder, tiles_per_epoch=24), ckpt_path=path)
    assert (len(whole.seen), len(rest.seen)) == (12, 4)
    assert equal(rest.seen, whole.seen[8:])
    other = module(folder, tiles_per_epoch=24, training_images=3)
    with pytest.raises(DataError, match="was trained on splits"):
        trainer(tmp_path, max_epochs=2).fit(Counter(), datamodule=other, ckpt_path=path)


def test_a_checkpoint_tells_width_and_range(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        for number in range(2):
            image, points = cells(10 * len(split) + number)
            save(tmp_path / split / f"images/{number}.tif", image.astype(np.uint16) * 100)
            save(tmp_path / split / f"points/{number}.png", dots(points))
    write_point_manifest(tmp_path, ["train", "valid", "test"], image={"dtype": "uint16"})
    made = module(tmp_path)
    later = Counter(**made.describe())  # what a task takes out of its checkpoint
    trainer(tmp_path).test(later, datamodule=module(tmp_path, "test"), verbose=False)
    image, points = cells(40)
    np.testing.assert_array_equal(later.seen[0]["density"][0, 0], rasterise(points, (96, 80), made.sigma or 0))
    assert made.fingerprint is not None
    low, high = made.fingerprint.intensity_range
    np.testing.assert_allclose(later.seen[0]["image"][0, 0], (image * 100.0 - low) / (high - low), atol=1e-6)
    with pytest.raises(DataError, match=r"width of the kernels is not known.*--data\.sigma.*--ckpt_path"):
        module(tmp_path, "test").test_dataloader()


def test_widths_in_micrometres(folder: Path, tmp_path: Path) -> None:
    write_cells(tmp_path, {"train": 2, "valid": 1}, pixel_size_um=[0.5, 0.5])
    made = module(tmp_path, sigma_um=1.5)
    batch = next(iter(made.val_dataloader()))
    np.testing.assert_array_equal(batch["density"][0, 0], rasterise(batch["points"][0].numpy(), (96, 80), 3.0))
    assert batch["pixel_size_um"] == [(0.5, 0.5)]
    found = made.describe()
    assert (found["sigma"], found["sigma_um"], found["pixel_size_um"]) == (None, 1.5, [0.5, 0.5])
    with pytest.raises(DataError, match=r"train/images/0\.png has no pixel size, which kernels of 1\.5 um need"):
        module(folder, sigma_um=1.5)


def test_widths_from_neighbours(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        made = module(folder, neighbours=2)
    widths = [kernel_widths(points, neighbours=2) for points in made.points("train").points]
    median = round(float(np.median(np.concatenate(widths))), 2)
    assert (made.sigma, made.describe()["neighbours"]) == (median, 2)
    assert f"px, median {median:g}" in caplog.text
    later = Counter(**made.describe())  # what a task takes out of its checkpoint
    trainer(tmp_path).test(later, datamodule=module(folder, "test"), verbose=False)
    for number, batch in enumerate(later.seen):
        points = cells(4000 + number, 8 + number)[1]
        expected = rasterise(points, (96, 80), kernel_widths(points, neighbours=2))
        np.testing.assert_allclose(batch["density"][0, 0], expected, atol=1e-7)
    for batch in made.train_dataloader():
        torch.testing.assert_close(batch["density"].sum((1, 2, 3)), batch["count"], atol=1e-4, rtol=0)


def test_pixels_that_are_cut_are_counted_before(tmp_path: Path) -> None:
    image = cells(0)[0].astype(np.uint16)
    save(tmp_path / "a.tif", image * 100)
    save(tmp_path / "b.tif", np.where(np.arange(96)[:, None] < 24, 60000, image * 100).astype(np.uint16))
    write_point_manifest(tmp_path, ["train"], image={"dtype": "uint16"})
    task = Counter(fingerprint={"intensity_range": [2000.0, 20000.0]})
    made = module(tmp_path, "predict", images=str(tmp_path / "*.tif"))
    made.trainer = trainer(tmp_path)
    made.trainer.strategy.connect(task)
    batches = [made.on_after_batch_transfer(batch, 0) for batch in made.predict_dataloader()]
    assert [batch["beyond"] for batch in batches] == [[0.0], [0.25]]
    assert batches[1]["image"].max() == 1


def test_images_to_predict(folder: Path, tmp_path: Path) -> None:
    for number in range(3):
        save(tmp_path / f"new/{number}.png", cells(number)[0])
    made = module(folder, "predict", images=str(tmp_path / "new/*.png"))
    batches = [made.on_after_batch_transfer(batch, 0) for batch in made.predict_dataloader()]
    assert made.ids("predict") == [str(tmp_path / f"new/{number}.png") for number in range(3)]
    assert set(batches[0]) == {"image", "index", "id", "pixel_size_um"}
    np.testing.assert_allclose(batches[2]["image"][0, 0], cells(2)[0] / 255, rtol=1e-6)
    with pytest.raises(DataError, match=r"Nothing to predict: give --data\.images"):
        module(folder, "predict")
    with pytest.raises(DatasetNotFoundError, match="No image matches"):
        module(folder, "predict", images=str(tmp_path / "*.png"))


def bad_inputs() -> list[Any]:
    image, points = cells(0)
    marks = dots(points)
    blob = (image > 100).astype(np.uint8) * 255
    return [
        pytest.param(image, marks[:50], r"differ in size", id="size"),
        pytest.param(image, blob, r"masks or dots of a brush", id="masks"),
        pytest.param(image, None, r"have no points that matches", id="no points"),
        pytest.param(image.astype(np.uint16) * 7, marks, r"images are not uint8", id="16 bits"),
        pytest.param(np.full_like(image, 9), marks, r"one value in all pixels.*train/images/1\.tif", id="constant"),
        pytest.param(image[:40, :20], marks[:40, :20], r"1\.tif has 40x20 px .*tile of 32 px", id="small"),
        pytest.param(np.dstack([image] * 3), marks, r"have not the 1 channels", id="colours"),
    ]


@pytest.mark.parametrize(("image", "marks", "message"), bad_inputs())
def test_bad_input_stops_before_training(
    tmp_path: Path, image: np.ndarray, marks: np.ndarray | None, message: str
) -> None:
    write_cells(tmp_path, {"train": 1, "valid": 1})
    save(tmp_path / "train/images/1.tif", image)
    if marks is not None:
        save(tmp_path / "train/points/1.tif", marks)
    with pytest.raises(DataError, match=f"(?s){message}"):
        module(tmp_path)


def test_images_without_points(tmp_path: Path) -> None:
    write_cells(tmp_path, {"train": 2, "valid": 1})
    nothing = np.zeros((96, 80), np.uint8)
    save(tmp_path / "train/points/1.png", nothing)
    with pytest.warns(UserWarning, match=r"1 of 2 images of 'train' have no point: train/images/1\.png"):
        made = module(tmp_path)
    assert made.points("train").counts.tolist() == [8, 0]
    assert all(torch.isfinite(batch["density"]).all() for batch in made.train_dataloader())
    save(tmp_path / "train/points/0.png", nothing)
    with pytest.raises(DataError, match=r"No image of 'train' has a point"):
        module(tmp_path)


def test_wrong_arguments(folder: Path) -> None:
    with pytest.raises(ManifestError, match="of kind 'image-mask'; this pipeline reads 'image-points'"):
        CountingDataModule(str(folder), "drive")
    for arguments, message in (
        ({"tile_size": 0}, "tile_size must be at least 1, received 0"),
        ({"training_images": 0}, "training_images must be at least 1"),
        ({"sigma": 0.0}, "sigma must be positive, received 0"),
        ({"sigma": 2.0, "sigma_um": 1.0}, r"one of sigma, sigma_um and neighbours, received 2\.0, 1\.0, None"),
        ({"sigma": 2.0, "neighbours": 3}, r"received 2\.0, None, 3"),
        ({"neighbours": 0}, "neighbours must be at least 1, received 0"),
        ({"folds": 3, "valid_images": 2}, "Give either folds, or training_images and valid_images"),
    ):
        with pytest.raises(ValueError, match=message):
            module(folder, **arguments)


@pytest.mark.skipif(not (SHARED_DATA / "vgg_cells").is_dir(), reason="VGG cells are not in ../shared/data")
def test_vgg_cells_with_few_images() -> None:
    made = CountingDataModule(str(SHARED_DATA / "vgg_cells"), training_images=8, valid_images=36, num_workers=0)
    made.setup("fit")
    assert (made.tile_size, made.batch_size, made.tiles_per_epoch) == (64, 16, 128)
    assert {split: len(made.ids(split)) for split in ("train", "valid")} == {"train": 8, "valid": 36}
    assert max(made.ids("train") + made.ids("valid")) <= "100cell.png"  # the authors test on 101 to 200
    for batch in made.train_dataloader():
        torch.testing.assert_close(batch["density"].sum((1, 2, 3)), batch["count"], atol=1e-4, rtol=0)
    for batch in made.val_dataloader():
        assert abs(float(batch["density"].double().sum()) - float(batch["count"])) < 1e-4
