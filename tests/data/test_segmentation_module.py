import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml
from torch import nn

from biocnn.data.augmentation import TileAugmentation
from biocnn.data.fingerprint import Fingerprint
from biocnn.data.segmentation_module import SegmentationDataModule
from biocnn.errors import DataError, DatasetNotFoundError, ManifestError
from biocnn.losses import BCE, DistanceRegression, Loss, RegionSeparation
from tests.conftest import SHARED_DATA
from tests.data.drawn import save, vessels, write_folder, write_manifest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn images that no test changes: 6, 2 and 2."""
    root = tmp_path_factory.mktemp("drawn")
    write_folder(root, {"train": 6, "valid": 2, "test": 2})
    return root


def module(root: Path, stage: str = "fit", **arguments: Any) -> SegmentationDataModule:
    settings = {"manifest": str(root / "drawn.yaml"), "tile_size": 32, "batch_size": 4, "num_workers": 0, **arguments}
    made = SegmentationDataModule(str(root), **settings)
    made.setup(stage)
    return made


def epoch(loader: Any, number: int) -> list[dict[str, Any]]:
    loader.sampler.set_epoch(number)
    return list(loader)


def same(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a[name], b[name]) if torch.is_tensor(a[name]) else a[name] == b[name]
        for a, b in zip(first, second, strict=True)
        for name in a
    )


class Counter(pl.LightningModule):
    """A task of one weight, which keeps the batches it was given."""

    targets = frozenset({"mask", "tube"})

    def __init__(self, loss: Loss | None = None) -> None:
        super().__init__()
        self.loss = loss
        if loss is not None:
            self.targets = frozenset(term.target_key for _, _, term in loss.parts())
        self.network = nn.Conv2d(1, 1, 1)
        self.seen: list[dict[str, Any]] = []
        self.data_description: dict[str, Any] = {}

    def on_fit_start(self) -> None:
        self.data_description = self.trainer.datamodule.describe()  # type: ignore[attr-defined]

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        self.seen.append(batch)
        logits: torch.Tensor = self.network(batch["image"])
        value: torch.Tensor = logits.mean() if self.loss is None else self.loss(logits, batch, batch["valid"])
        return value

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.seen.append(batch)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.seen.append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.fixture
def trainer(tmp_path: Path) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def test_batches_do_not_depend_on_workers(folder: Path) -> None:
    reference = module(folder, tiles_per_epoch=12).train_dataloader()
    expected = [epoch(reference, number) for number in range(2)]
    assert {"mask", "tube", "distance", "valid"} <= set(expected[0][0])  # all targets without a task
    assert not same(*expected)
    settings: list[dict[str, Any]] = [
        {"num_workers": 1, "start_method": "fork"},
        {"num_workers": 2, "start_method": "fork"},
    ]
    for setting in settings:
        loader = module(folder, tiles_per_epoch=12, **setting).train_dataloader()
        for number in range(2):
            assert same(epoch(loader, number), expected[number]), setting


def test_what_is_not_given_is_chosen_and_printed(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        made = module(folder, tile_size=None, batch_size=None)
    # The images have 96x80 px: a tile of 64 fits, 16 of them are a batch, 8 batches are 128 tiles of 6 images.
    assert (made.tile_size, made.batch_size, made.tiles_per_epoch) == (64, 16, 132)
    assert made.fingerprint is not None
    for text in (
        "fingerprint: 6 training images of 96x80 px",
        "data.tile_size: 64 (128, or 8 times the widest radius",
        "data.batch_size: 16 (2^17 pixels",
        "data.tiles_per_epoch: 132 (as many from every image",
        "data audit: train: 6 images",
    ):
        assert text in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        made = module(folder, tiles_per_epoch=31)
    assert (made.tile_size, made.batch_size, made.tiles_per_epoch, len(made.dataset("train"))) == (32, 4, 36, 36)
    assert "data.tile_size" not in caplog.text


def test_a_task_names_its_targets(folder: Path, trainer: pl.Trainer) -> None:
    task = Counter()
    trainer.fit(task, datamodule=module(folder, tiles_per_epoch=12))
    train, valid = task.seen[0], task.seen[-1]
    assert set(train) == {"image", "mask", "tube", "valid", "index", "id", "group"}
    assert (train["image"].shape, train["image"].dtype) == ((4, 1, 32, 32), torch.float32)
    assert (valid["image"].shape, valid["mask"].shape, valid["valid"].shape) == ((1, 1, 96, 80),) * 3
    assert max(train["image"].max(), valid["image"].max()) <= 1


def test_distances_are_cut_where_the_loss_cuts_them(folder: Path, trainer: pl.Trainer) -> None:
    made = module(folder, tiles_per_epoch=60, batch_size=30)
    assert made.describe()["max_distance"] is None
    task = Counter(BCE() + 0.5 * DistanceRegression(max_distance=25))
    trainer.fit(task, datamodule=made)
    distances = [batch["distance"] for batch in task.seen if "distance" in batch]
    assert max(distance.max() for distance in distances) == 25
    # Its checkpoint says it, and the datamodule for as long as it serves this task.
    assert task.data_description["max_distance"] == made.describe()["max_distance"] == 25


def test_terms_that_cut_distances_elsewhere_are_an_error(folder: Path, trainer: pl.Trainer) -> None:
    task = Counter(DistanceRegression(20) + RegionSeparation(max_distance=15))
    with pytest.raises(ValueError, match=r"one max_distance.*received distance: 20, region_separation: 15"):
        trainer.fit(task, datamodule=module(folder, tiles_per_epoch=12))


def test_the_widest_radius_in_tiles_is_magnified(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        made = module(folder)
    assert made.fingerprint is not None
    radius = made.fingerprint.widest_radius
    assert made.describe()["widest_radius_in_tiles"] == 1.25 * radius
    assert f"tiles are magnified up to 1.25 times: widest radius in them {1.25 * radius:.1f} px" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        upright = module(folder, augmentation=TileAugmentation(scale=(1, 1)))
    assert upright.describe()["widest_radius_in_tiles"] == radius
    assert "magnified" not in caplog.text
    assert module(folder, "test").describe()["widest_radius_in_tiles"] is None


def test_whole_images_are_served_once_in_order(folder: Path) -> None:
    made = module(folder, "test")
    batches = [made.on_after_batch_transfer(batch, 0) for batch in made.test_dataloader()]
    assert [batch["id"][0] for batch in batches] == made.ids("test") == [f"test/images/{n}.png" for n in range(2)]
    for number, batch in enumerate(batches):
        image, mask = vessels(4000 + number)
        np.testing.assert_allclose(batch["image"][0, 0], image / 255, rtol=1e-6)
        np.testing.assert_array_equal(batch["mask"][0, 0], mask)
        assert batch["valid"].all()
        assert (batch["index"].tolist(), batch["group"], batch["pixel_size_um"]) == ([number], [], [None])


def test_folds_cover_everything_once(folder: Path) -> None:
    seen: list[str] = []
    for fold in range(4):
        made = module(folder, folds=4, fold=fold)
        assert not set(made.ids("train")) & set(made.ids("valid"))
        assert len(made.ids("train")) == 6
        seen += made.ids("valid")
    assert len(seen) == len(set(seen)) == 8
    with pytest.raises(ValueError, match=r"fold must be in 0\.\.3, received 4"):
        module(folder, folds=4, fold=4)


def test_folds_keep_groups_and_stacks_together(tmp_path: Path) -> None:
    for number in range(6):
        image, mask = vessels(number)
        save(tmp_path / f"train/images/eye{number // 2}_{number}.png", image)
        save(tmp_path / f"train/masks/eye{number // 2}_{number}.png", mask.astype(np.uint8) * 255)
    write_manifest(tmp_path, ["train"], group={"pattern": r"(eye\d)"})
    made = module(tmp_path, folds=3, fold=1)
    assert len(set(made.groups("valid") or [])) == 1
    assert not set(made.groups("valid") or []) & set(made.groups("train") or [])
    batch = next(iter(made.val_dataloader()))
    assert batch["group"] == (made.groups("valid") or [])[:1]

    stacks = tmp_path / "stacks"
    for number in range(2):
        planes = [vessels(10 * number + plane) for plane in range(3)]
        save(stacks / f"train/images/{number}.tif", np.stack([image for image, _ in planes]))
        save(stacks / f"train/masks/{number}.tif", np.stack([mask.astype(np.uint8) * 255 for _, mask in planes]))
    write_manifest(stacks, ["train"])
    made = module(stacks, folds=2)
    names = [{name.split("#")[0] for name in made.ids(split)} for split in ("train", "valid")]
    assert [len(name) for name in names] == [1, 1]
    assert names[0] != names[1]


def test_a_missing_split_is_an_error(tmp_path: Path) -> None:
    write_folder(tmp_path, {"train": 3})
    with pytest.raises(ManifestError, match=r"no split 'valid'; it has \['train'\].*--data\.folds 5"):
        module(tmp_path)
    assert len(module(tmp_path, folds=3).ids("valid")) == 1


def test_description_is_plain_and_names_the_data(folder: Path, tmp_path: Path) -> None:
    found = module(folder).describe()
    assert yaml.safe_load(yaml.safe_dump(found)) == found
    assert found["classes"] == ["background", "vessel"]
    assert found["sizes"] == {"train": 6, "valid": 2}
    assert Fingerprint.from_dict(found["fingerprint"]).n_images == 6
    assert module(folder, seed=3).describe()["split_hash"] == found["split_hash"]
    write_folder(tmp_path, {"train": 6, "valid": 2, "test": 2})
    assert module(tmp_path).describe()["split_hash"] == found["split_hash"]
    _, mask = vessels(77)
    save(tmp_path / "train/masks/3.png", mask.astype(np.uint8) * 255)
    other = module(tmp_path).describe()
    assert other["split_hash"] != found["split_hash"]
    assert other["valid_hash"] == found["valid_hash"]
    assert module(tmp_path, "validate").describe()["valid_hash"] == found["valid_hash"]


def test_position_is_continued(folder: Path) -> None:
    whole = epoch(module(folder, tiles_per_epoch=24).train_dataloader(), 1)
    resumed = module(folder, tiles_per_epoch=24)
    position = {"epoch": 1, "consumed": 8, "seed": 0, "split_hash": resumed.describe()["split_hash"]}
    resumed.load_state_dict(position)
    loader = resumed.train_dataloader()
    assert same(epoch(loader, 1), whole[2:])
    assert len(epoch(loader, 2)) == 6
    with pytest.raises(DataError, match="trained on splits 0123"):
        resumed.load_state_dict({**position, "split_hash": "0123"})


def test_sixteen_bits_are_scaled_as_the_training_images_were(tmp_path: Path, trainer: pl.Trainer) -> None:
    for split in ("train", "valid"):
        for number in range(2):
            image, mask = vessels(number, height=64, width=64)
            save(
                tmp_path / split / f"images/{number}.tif",
                image.astype(np.uint16) * 100 + (50 if split == "valid" else 0),
            )
            save(tmp_path / split / f"masks/{number}.png", mask.astype(np.uint8) * 255)
    write_manifest(tmp_path, ["train", "valid"], image={"dtype": "uint16"})
    made = module(tmp_path, images=str(tmp_path / "valid/images"))
    low, high = made.intensity_range()
    batch = made.on_after_batch_transfer(next(iter(made.val_dataloader())), 0)
    expected = (vessels(0, height=64, width=64)[0] * 100.0 + 50 - low) / (high - low)
    assert expected.max() > 1
    expected = expected.clip(0, 1)  # as in tiles
    np.testing.assert_allclose(batch["image"][0, 0], expected, atol=1e-6)
    tiles = made.on_after_batch_transfer(next(iter(made.train_dataloader())), 0)["image"]
    assert (tiles.shape, tiles.min() >= 0, tiles.max() <= 1) == ((4, 1, 32, 32), True, True)
    # Without the training images the range comes from the checkpoint, which the task remembers.
    alone = module(tmp_path, "predict", images=str(tmp_path / "valid/images/*.tif"))
    with pytest.raises(DataError, match=r"Images of uint16 are scaled.*--ckpt_path"):
        alone.on_after_batch_transfer(next(iter(alone.predict_dataloader())), 0)
    task = Counter()
    task.data_description = made.describe()
    trainer.predict(task, datamodule=alone)
    np.testing.assert_allclose(task.seen[0]["image"][0, 0], expected, atol=1e-6)


def test_images_to_predict(folder: Path, tmp_path: Path) -> None:
    drawn = [vessels(seed, height=40 + seed, width=50)[0] for seed in range(3)]
    for number, image in enumerate(drawn):
        save(tmp_path / f"new/{number}.png", image)
    (tmp_path / "new/notes.txt").write_text("no image")
    save(tmp_path / "stack.tif", np.stack([image[:40] for image in drawn]))
    for pattern, count in {"new": 3, "new/*.png": 3, "new/1.png": 1, "stack.tif": 3}.items():
        made = module(folder, "predict", images=str(tmp_path / pattern))
        batches = [made.on_after_batch_transfer(batch, 0) for batch in made.predict_dataloader()]
        assert [batch["id"][0] for batch in batches] == made.ids("predict")
        assert len(batches) == count
    assert made.ids("predict")[2] == f"{tmp_path / 'stack.tif'}#2"
    np.testing.assert_allclose(batches[2]["image"][0, 0], drawn[2][:40] / 255, rtol=1e-6)
    assert set(batches[0]) == {"image", "index", "id", "pixel_size_um"}


def test_images_that_cannot_be_predicted(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Nothing to predict: give --data\.images"):
        module(folder, "predict")
    with pytest.raises(DatasetNotFoundError, match="No image matches"):
        module(folder, "predict", images=str(tmp_path / "*.png"))
    save(tmp_path / "a.png", np.zeros((40, 40, 3), np.uint8))
    with pytest.raises(DataError, match=r"a\.png is 40x40x3 uint8 .*expected 1 channel\(s\) \(grey\) of uint8"):
        module(folder, "predict", images=str(tmp_path / "a.png"))
    save(tmp_path / "b.tif", np.zeros((40, 40), np.uint16))
    with pytest.raises(DataError, match=r"b\.tif is 40x40x1 uint16 .*of uint8"):
        module(folder, "predict", images=str(tmp_path / "b.tif"))


def bad_inputs() -> list[Any]:
    image, mask = vessels(0)
    labels = mask.astype(np.uint8) * 255
    return [
        pytest.param(image, labels[:50], r"differ in size", id="size"),
        pytest.param(image, labels // 3, r"mask values 85 that are not among \[0, 255\]", id="values"),
        pytest.param(image.astype(np.uint16) * 7, labels, r"images are not uint8", id="16 bits"),
        pytest.param(np.full_like(image, 9), labels, r"one value in all pixels.*train/images/1\.tif", id="constant"),
        pytest.param(image[:40, :20], labels[:40, :20], r"1\.tif has 40x20 px .*tile of 32 px", id="small"),
        pytest.param(np.dstack([image] * 3), labels, r"have not the 1 channels", id="colours"),
        pytest.param(image, None, r"have no mask that matches", id="no mask"),
    ]


@pytest.mark.parametrize(("image", "labels", "message"), bad_inputs())
def test_bad_input_stops_before_training(
    tmp_path: Path, image: np.ndarray, labels: np.ndarray | None, message: str
) -> None:
    write_folder(tmp_path, {"train": 1, "valid": 1})
    save(tmp_path / "train/images/1.tif", image)
    if labels is not None:
        save(tmp_path / "train/masks/1.tif", labels)
    with pytest.raises(DataError, match=f"(?s){message}"):
        module(tmp_path)


def test_float_images_with_nan_stop_before_training(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        image, mask = vessels(len(split))
        bad = image.astype(np.float32)
        bad[5, 6] = np.inf if split == "train" else 0
        save(tmp_path / split / "images/0.tif", bad)
        save(tmp_path / split / "masks/0.tif", mask.astype(np.uint8) * 255)
    write_manifest(tmp_path, ["train", "valid"], image={"dtype": "float32"})
    with pytest.raises(DataError, match=r"0\.tif has 1 of 7,680 values that are NaN or infinite"):
        module(tmp_path)


def test_empty_masks(tmp_path: Path) -> None:
    write_folder(tmp_path, {"train": 2, "valid": 1})
    save(tmp_path / "train/masks/1.png", np.zeros((96, 80), np.uint8))
    with pytest.warns(UserWarning, match=r"1 of 2 masks of 'train' are empty: train/images/1\.png"):
        module(tmp_path)
    save(tmp_path / "train/masks/0.png", np.zeros((96, 80), np.uint8))
    with pytest.raises(DataError, match=r"No mask of 'train' holds any foreground"):
        module(tmp_path)


def test_wrong_arguments(folder: Path) -> None:
    with pytest.raises(ManifestError, match="of kind 'patches-hdf5'; this pipeline reads 'image-mask'"):
        SegmentationDataModule(manifest="pcam")
    for name, value in {"tile_size": 0, "tiles_per_epoch": 0, "batch_size": 0}.items():
        with pytest.raises(ValueError, match=f"{name} must be at least 1, received 0"):
            SegmentationDataModule(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"foreground_share must be in 0\.\.1, received 2"):
        SegmentationDataModule(foreground_share=2)
    with pytest.raises(DataError, match="12 training items do not fill one batch of 40"):
        module(folder, batch_size=40, tiles_per_epoch=12).train_dataloader()
    with pytest.raises(DataError, match=r"more than 0\.00 GB"):
        module(folder, max_bytes=20_000)


@pytest.mark.skipif(not (SHARED_DATA / "isbi2012").is_dir(), reason="ISBI 2012 is not in ../shared/data")
def test_isbi() -> None:
    made = SegmentationDataModule(str(SHARED_DATA / "isbi2012"), "isbi2012", num_workers=0)
    made.setup("fit")
    found = made.describe()
    assert found["classes"] == ["inside a cell", "membrane"]
    assert found["sizes"] == {"train": 20, "valid": 5}
    assert found["pixel_size_um"] == [0.004, 0.004]
    assert found["fingerprint"]["foreground_share"] == pytest.approx(0.229, abs=0.001)
    batch = next(iter(made.train_dataloader()))
    assert 0.1 < batch["mask"].mean() < 0.45
