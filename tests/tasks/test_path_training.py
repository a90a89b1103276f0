from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

import biocnn
from biocnn.data.batches import to_float
from biocnn.data.tiles import TileDataset
from biocnn.delineation.path_examples import path_examples
from biocnn.inference.segmentation import Segmenter
from biocnn.losses import BCE
from biocnn.networks import DualUseUNet, UNet
from biocnn.tasks.path_training import PathTraining, classify_paths
from biocnn.tasks.segmentation import SegmentationTask
from tests.data.drawn import in_memory
from tests.tasks.test_segmentation import trainer

PLAIN: dict[str, Any] = {"image_mean": [0.3], "image_std": [0.2], "tile_size": 64}


def make(**arguments: Any) -> SegmentationTask:
    torch.manual_seed(0)
    network = DualUseUNet(1, channels=(8, 16), norm="batch")
    return SegmentationTask(network, paths=PathTraining(**arguments), **PLAIN)


def batches(count: int, size: int = 2, side: int = 64, seed: int = 0) -> list[dict[str, Any]]:
    """Tiles of drawn vessels, the mask of which the first image's field of view cuts."""
    tiles = TileDataset(in_memory(4, valid=True), side, count * size, seed=seed)
    return [to_float(tiles.__getitems__([(0, size * number + one) for one in range(size)])) for number in range(count)]


def loader(items: list[dict[str, Any]]) -> DataLoader[Any]:
    return DataLoader(items, batch_size=None)  # type: ignore[arg-type]


class Losses(pl.Callback):
    """What a training logs."""

    def __init__(self) -> None:
        self.total: list[float] = []
        self.paths: list[float | None] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *args: Any) -> None:
        self.total.append(outputs["loss"].item())
        logged = trainer.callback_metrics.get("train_path_loss")
        self.paths.append(None if logged is None else logged.item())


class Known(DualUseUNet):
    """The map that it makes is the image."""

    def forward_with_features(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits, features = super().forward_with_features(image)
        return image * 8 - 2 + 0 * logits, features  # type: ignore[operator]


def test_the_loss_is_that_of_the_parts() -> None:
    torch.manual_seed(0)
    task = SegmentationTask(
        Known(1, channels=(4, 8), norm="instance"),
        loss=BCE(),
        paths=PathTraining(weight=0.5, start=0, tiles=2, per_tile=6),
        **PLAIN,
    )
    task.data_description = {"seed": 7}
    data = batches(1, size=3)[0]
    with torch.no_grad():
        image = (data["image"] - 0.3) / 0.2
        logits = image * 8 - 2
        features = task.network.forward_with_features(image)[1]  # type: ignore[operator]
        expected, scores, labels = BCE()(logits, data["mask"], data["valid"]).item(), [], []
        for number in (0, 1):  # not the third tile
            random = np.random.Generator(np.random.Philox(key=[7, 2], counter=[0, int(data["index"][number]), 0, 0]))
            arrays = (torch.sigmoid(logits), data["mask"] > 0, data["valid"])
            found, kinds = path_examples(*(array[number, 0].numpy() for array in arrays), 6, random)  # type: ignore[misc]
            assert 0 < kinds.sum() < len(found) <= 6
            scores.append(task.network.path_logits(features[number], found))  # type: ignore[operator]
            labels += kinds.tolist()
        of_paths = F.binary_cross_entropy(torch.sigmoid(torch.cat(scores)), torch.tensor(labels).float()).item()
    seen = Losses()
    trainer(max_steps=1, callbacks=[seen]).fit(task, loader([data]))
    assert seen.paths == pytest.approx([of_paths], rel=1e-5)  # float32
    assert seen.total == pytest.approx([expected + 0.5 * of_paths], rel=1e-5)


def test_paths_begin_with_their_share_of_the_training() -> None:
    data, losses = batches(4), []
    for paths in (PathTraining(start=0.5), None):
        task = make()
        task.paths = paths
        seen = Losses()
        trainer(max_epochs=1, callbacks=[seen]).fit(task, loader(data))
        losses.append(seen.total)
        assert [value is None for value in seen.paths] == [True, True, paths is None, paths is None]
    assert losses[0][:2] == losses[1][:2]
    assert losses[0][2] != losses[1][2]


@pytest.mark.parametrize("start", [0.0, 1.0])
def test_every_parameter_has_a_gradient_in_every_step(start: float) -> None:
    class Check(pl.Callback):
        def on_after_backward(self, trainer: Any, module: Any) -> None:
            assert all(weight.grad is not None for weight in module.parameters())

    blank = {**batches(1)[0], "image": torch.zeros(2, 1, 64, 64)}  # no structure in the map, so no paths
    trainer(max_epochs=1, callbacks=[Check()]).fit(make(start=start), loader([blank, *batches(1)]))


def test_a_training_is_repeated_exactly_and_resumed_exactly(tmp_path: Path) -> None:
    data = batches(3)

    def train(**arguments: Any) -> dict[str, torch.Tensor]:
        task = make(start=0.2, weight=1.0)
        keep = pl.callbacks.ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
        fitted = trainer(max_epochs=2, callbacks=[keep], enable_checkpointing=True)
        fitted.fit(task, loader(data), **arguments)
        return {name: weight.clone() for name, weight in task.state_dict().items()}

    first = train()
    for again in (train(), train(ckpt_path=tmp_path / "epoch=0.ckpt")):
        for name, weight in first.items():
            torch.testing.assert_close(again[name], weight, rtol=0, atol=0)


def test_checkpoints_predict_without_the_part(tmp_path: Path) -> None:
    task = make()
    running = trainer()
    running.strategy.connect(task)
    running.save_checkpoint(tmp_path / "best.ckpt")
    with pytest.warns(UserWarning, match="chosen for another way"):
        model = biocnn.load(tmp_path / "best.ckpt", device="cpu")
    assert isinstance(model, Segmenter)
    assert isinstance(model.task.network, DualUseUNet)
    assert model.task.paths is None
    image, path = torch.rand(1, 1, 24, 24), np.stack([np.full(24, 5), np.arange(24)], 1)
    task.eval()
    with torch.inference_mode():
        torch.testing.assert_close(model.task(image), task(image), rtol=0, atol=0)
        found = classify_paths(model.task, image, [path])
        torch.testing.assert_close(found, classify_paths(task, image, [path]), rtol=0, atol=0)


def test_it_learns_to_tell_paths_on_vessels_from_others() -> None:
    task = make(start=0.3, weight=1.0)
    fitted = trainer(max_epochs=1)
    # Other images than those of the training: the seeds of the drawings go on.
    images = in_memory(7)
    held_out = to_float(TileDataset(images, 64, 7).__getitems__([(0, number) for number in (4, 5, 6)]))
    fitted.fit(task, loader(batches(40, size=4)), loader([held_out]))
    logged = fitted.callback_metrics
    assert logged["val_path_auroc"] > 0.8
    assert logged["val_path_accuracy"] > 0.7
    assert logged["val_dice"] > 0.8


def test_nothing_is_said_of_paths_before_they_are_trained() -> None:
    fitted = trainer(max_epochs=1)
    fitted.fit(make(start=1.0), loader(batches(3)), loader(batches(1)))
    assert not any("path" in name for name in fitted.callback_metrics)


def test_wrong_parts_are_named() -> None:
    with pytest.raises(ValueError, match="UNet cannot classify paths"):
        SegmentationTask(UNet(1, channels=(4,)), paths=PathTraining(), **PLAIN)
    with pytest.raises(ValueError, match="without refinement, received refinement_steps=2"):
        SegmentationTask(DualUseUNet(2, channels=(4,)), refinement_steps=2, paths=PathTraining(), **PLAIN)
    for wrong in ({"weight": 0}, {"start": 1.5}, {"tiles": 0}, {"per_tile": 1}):
        with pytest.raises(ValueError, match="Expected weight > 0, start"):
            PathTraining(**wrong)  # type: ignore[arg-type]
