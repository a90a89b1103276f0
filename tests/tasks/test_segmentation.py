from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from biocnn.errors import DataError
from biocnn.losses import BCE, Dice, Loss, SkeletonRecall, SoftClDice
from biocnn.metrics.segmentation import best_dice_threshold, score_histogram, score_image
from biocnn.networks import UNet
from biocnn.tasks.segmentation import SegmentationTask

PLAIN: dict[str, Any] = {"image_mean": [0.5], "image_std": [0.25]}


class Recorder(nn.Module):
    """Logit = weight * image + previous map + bias; remembers what it was given."""

    halo, stride = 0, 1

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(-0.3))
        self.inputs: list[torch.Tensor] = []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.inputs.append(image.detach().clone())
        return image[:, :1] * self.weight + image[:, 1:].sum(1, keepdim=True) + self.bias


def batch(size: int = 32, count: int = 2, seed: int = 0) -> dict[str, Any]:
    """Bright lines on noise; `valid` leaves out the last column."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(count, 1, size, size)
    for number in range(count):
        mask[number, :, 5 + number :: 10] = 1
    image = (0.2 + 0.5 * mask + 0.2 * torch.rand(mask.shape, generator=generator)).clamp(0, 1)
    valid = torch.ones(mask.shape, dtype=torch.bool)
    valid[..., -1] = False
    return {
        "image": image,
        "mask": mask,
        "valid": valid,
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


def test_each_step_of_refinement_is_given_the_map_of_the_step_before() -> None:
    network = Recorder()
    task = SegmentationTask(network, refinement_steps=3, **PLAIN)
    image = batch()["image"]
    normalised = (image - 0.5) / 0.25
    logits = task(image)
    previous = torch.zeros_like(normalised)
    for given in network.inputs:
        torch.testing.assert_close(given, torch.cat([normalised, previous], 1))
        expected = 2 * normalised + previous - 0.3
        previous = torch.sigmoid(expected)
    assert len(network.inputs) == 3
    torch.testing.assert_close(logits, expected)


def test_losses_of_the_steps_are_weighted_by_their_number() -> None:
    task = SegmentationTask(Recorder(), loss=BCE(), refinement_steps=3, refinement_start=0.0, **PLAIN)
    trainer(max_steps=1).fit(task, loader([batch()]))
    task = SegmentationTask(Recorder(), loss=BCE(), refinement_steps=3, refinement_start=0.0, **PLAIN)
    data = batch()
    inputs = (data["image"] - 0.5) / 0.25
    previous, by_hand = torch.zeros_like(inputs), 0.0
    for number in (1, 2, 3):
        logits = 2 * inputs + previous - 0.3
        by_hand += number / 6 * BCE()(logits, data["mask"], data["valid"]).item()
        previous = torch.sigmoid(logits)
    losses: list[float] = []

    class Keep(pl.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *args: Any) -> None:
            losses.append(outputs["loss"].item())

    trainer(max_steps=1, callbacks=[Keep()]).fit(task, loader([data]))
    assert losses == pytest.approx([by_hand], rel=1e-5)  # float32


def test_the_first_part_of_the_training_makes_one_step() -> None:
    network = Recorder()
    task = SegmentationTask(network, refinement_steps=3, refinement_start=0.5, **PLAIN)
    trainer(max_epochs=1).fit(task, loader([batch(seed=number) for number in range(4)]))
    assert len(network.inputs) == 1 + 1 + 3 + 3


def test_refinement_costs_the_parameters_of_one_input_channel() -> None:
    plain, refined = (UNet(channels, channels=(8, 16)) for channels in (3, 4))
    numbers = [sum(parameter.numel() for parameter in network.parameters()) for network in (plain, refined)]
    assert numbers[1] - numbers[0] == 8 * 3 * 3  # one more 3x3 kernel for each of the 8 channels


def test_the_number_of_steps_can_be_chosen_at_prediction() -> None:
    data = batch()["image"]
    for steps in (1, 2, 5):
        network = Recorder()
        SegmentationTask(network, refinement_steps=3, prediction_steps=steps, **PLAIN)(data)
        assert len(network.inputs) == steps
    with pytest.raises(ValueError, match="trained with refinement_steps > 1"):
        SegmentationTask(Recorder(), prediction_steps=2, **PLAIN)


def test_tiles_give_the_maps_of_whole_images_with_refinement() -> None:
    torch.manual_seed(0)
    network = UNet(2, channels=(4, 8)).eval()
    whole = SegmentationTask(network, refinement_steps=2, tile_size=256, test_time_augmentation=False, **PLAIN).eval()
    tiled = SegmentationTask(network, refinement_steps=2, tile_size=64, test_time_augmentation=False, **PLAIN).eval()
    assert network.halo is not None
    assert 2 * 2 * network.halo < 64  # two steps, two sides: there is a core left
    image = torch.rand(1, 131, 150)
    expected = whole.image_logits(image, 1)
    with torch.inference_mode():
        torch.testing.assert_close(expected, whole(image[None])[0])
    # The bound, on logits of about 1.
    torch.testing.assert_close(tiled.image_logits(image, 1), expected, atol=1e-5, rtol=0)


def test_a_tile_that_is_too_small_for_the_halo_of_all_steps_is_enlarged() -> None:
    torch.manual_seed(0)
    network = UNet(2, channels=(4, 8)).eval()
    task = SegmentationTask(network, refinement_steps=2, prediction_steps=5, tile_size=16, **PLAIN).eval()
    image = torch.rand(1, 150, 40)
    with torch.inference_mode():
        expected = task(image[None])[0]
    torch.testing.assert_close(task.image_logits(image, 1), expected, atol=1e-5, rtol=0)


def test_a_network_without_a_finite_halo_gets_tiles_of_the_size_of_its_training() -> None:
    class Seen(nn.Conv2d):
        shapes: ClassVar[set[tuple[int, ...]]] = set()

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            self.shapes.add(tuple(image.shape[2:]))
            return super().forward(image)

    task = SegmentationTask(Seen(1, 1, 1), **PLAIN).eval()
    task.data_description = {"tile_size": 32}
    task.image_logits(torch.rand(1, 70, 90), 1)
    assert Seen.shapes == {(32, 32)}


def test_validation_within_a_training_makes_the_steps_of_the_training() -> None:
    network = Recorder()
    task = SegmentationTask(network, refinement_steps=3, refinement_start=0.5, **PLAIN)
    trainer(max_epochs=2).fit(task, loader([batch(count=1)]), loader([batch(count=1)]))
    # An epoch of one step each: one call to train and one to validate, then three and three.
    assert len(network.inputs) == 1 + 1 + 3 + 3
    assert not task.threshold_fits  # one view


def test_eight_views_are_averaged_as_logits() -> None:
    torch.manual_seed(0)
    task = SegmentationTask(UNet(1, channels=(4, 8)), **PLAIN).eval()
    image = torch.rand(1, 24, 32)
    with torch.inference_mode():
        views = []
        for mirrored in (False, True):
            for turns in range(4):
                view = torch.rot90(image.flip(-1) if mirrored else image, turns, (-2, -1))
                back = torch.rot90(task(view[None])[0], -turns, (-2, -1))
                views.append(back.flip(-1) if mirrored else back)
    torch.testing.assert_close(task.image_logits(image, 8), torch.stack(views).mean(0), atol=1e-5, rtol=1e-5)


def test_deep_supervision_weighs_each_level_half_of_the_one_before() -> None:
    torch.manual_seed(0)
    network = UNet(1, channels=(4, 8, 8), norm="group", deep_supervision=True)
    task = SegmentationTask(network, loss=BCE(), **PLAIN)
    data = batch()
    outputs = network((data["image"] - 0.5) / 0.25)
    fine, coarse = (BCE()(logits, data["mask"], data["valid"]).item() for logits in outputs)
    losses: list[float] = []

    class Keep(pl.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *args: Any) -> None:
            losses.append(outputs["loss"].item())

    trainer(max_steps=1, callbacks=[Keep()]).fit(task, loader([data]))
    assert losses == pytest.approx([(fine + 0.5 * coarse) / 1.5], rel=1e-5)  # float32


def test_validation_metrics_equal_those_of_the_parts() -> None:
    network = Recorder()
    network.bias.data.fill_(3.0)  # so that 0.5 is a bad threshold
    task = SegmentationTask(network, test_time_augmentation=False, drop_specks=False, **PLAIN)
    data = [batch(seed=number, count=1) for number in range(3)]
    logged = trainer().validate(task, loader(data), verbose=False)[0]
    histogram, rows = np.zeros((2, 2048), int), []
    for item in data:
        probability = torch.sigmoid(2 * (item["image"] - 0.5) / 0.25 + 3.0)[0, 0].numpy()
        mask, valid = item["mask"][0, 0].numpy() > 0, item["valid"][0, 0].numpy()
        histogram += score_histogram(probability[valid], mask[valid])
        rows.append(score_image(probability, mask, valid, threshold=0.5)[0])
    threshold, dice = best_dice_threshold(histogram)
    assert task.thresholds.threshold == threshold
    assert task.threshold_fits
    assert logged["val_dice"] == pytest.approx(dice, rel=1e-6)  # logged in float32
    assert logged["val_cldice"] == pytest.approx(np.mean([row["cldice"] for row in rows]), rel=1e-6)
    betti = np.mean([row["betti0_error_fg8"] for row in rows])
    assert logged["val_betti0_error"] == pytest.approx(betti, rel=1e-6)
    # The panel of the next epoch is made at the threshold of this one.
    again = trainer().validate(task, loader(data), verbose=False)[0]
    assert again["val_betti0_error"] == 0 < betti


def test_a_validation_split_without_structure_is_an_error() -> None:
    data = batch()
    data["mask"].zero_()
    with pytest.raises(DataError, match="No validation image shows the structure"):
        trainer().validate(SegmentationTask(Recorder(), **PLAIN), loader([data]), verbose=False)


def test_what_a_loss_asks_for_is_known() -> None:
    def targets(loss: Loss) -> frozenset[str]:
        return SegmentationTask(Recorder(), loss=loss, **PLAIN).targets

    assert targets(BCE()) == {"mask"}
    assert targets(BCE() + 0.5 * SkeletonRecall()) == {"mask", "tube"}


def test_wrong_networks_and_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"returned \(2, 2, 32, 32\), expected \(2, 1, 32, 32\)"):
        SegmentationTask(nn.Conv2d(1, 2, 1), **PLAIN)(batch()["image"])
    with pytest.raises(ValueError, match="normalisation is not known yet"):
        SegmentationTask(nn.Conv2d(1, 1, 1))(batch()["image"])
    with pytest.raises(ValueError, match="normalisation is for 1 channels, received images with 3"):
        SegmentationTask(nn.Conv2d(1, 1, 1), **PLAIN)(torch.rand(1, 3, 8, 8))
    with pytest.raises(ValueError, match="at least one step"):
        SegmentationTask(Recorder(), refinement_steps=0, **PLAIN)
    with pytest.raises(ValueError, match=r"share of the training in 0\.\.1"):
        SegmentationTask(Recorder(), refinement_start=2, **PLAIN)


def test_settings_and_what_was_learned_come_back() -> None:
    task = SegmentationTask(Recorder(), refinement_steps=3, prediction_steps=2, min_size=5, membranes=True, **PLAIN)
    assert not task.threshold_fits
    again = SegmentationTask(Recorder(), **task.settings())
    assert again.settings() == task.settings()
    trainer().validate(task, loader([batch(count=1)]), verbose=False)
    again.restore_learned(task.learned())
    assert (again.thresholds, again.threshold_fits) == (task.thresholds, True)


def monai_network() -> nn.Module:
    nets = pytest.importorskip("monai.networks.nets")
    return nets.BasicUNet(2, 1, 1, features=(4, 4, 8, 8, 8, 4))


def smp_network() -> nn.Module:
    smp = pytest.importorskip("segmentation_models_pytorch")
    return smp.Unet("resnet18", encoder_weights=None, in_channels=1, decoder_channels=(16, 8, 8, 8, 8))


@pytest.mark.parametrize("make", [monai_network, smp_network])
def test_networks_of_other_packages_drop_in(make: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    task = SegmentationTask(make(), loss=BCE() + Dice() + SoftClDice(iterations=2), tile_size=64, **PLAIN)
    data = batch(size=64)
    before = [parameter.detach().clone() for parameter in task.network.parameters()]
    trainer(max_epochs=2).fit(task, loader([data]), loader([data]))
    assert any(not torch.equal(old, new) for old, new in zip(before, task.network.parameters(), strict=True))
    task.eval()
    assert task.image_logits(data["image"][0], 1).shape == (1, 64, 64)
