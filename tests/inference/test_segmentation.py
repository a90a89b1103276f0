from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from skimage.morphology import remove_small_objects

import biocnn
from biocnn.checkpoints import read_checkpoint, update_biocnn_section
from biocnn.errors import DataError
from biocnn.inference.segmentation import Segmenter
from biocnn.networks import UNet
from biocnn.tasks.segmentation import SegmentationTask
from biocnn.tasks.thresholds import Thresholds

RANDOM = np.random.default_rng(0)
COLOURS = RANDOM.integers(0, 256, (45, 70, 3), dtype=np.uint8)
GREY = RANDOM.integers(500, 3000, (45, 70)).astype(np.uint16)


MEAN, STD = [0.4, 0.5, 0.3], [0.2, 0.3, 0.25]


def checkpoint(
    path: Path, count: int = 3, steps: int = 1, thresholds: tuple[float, int] = (0.4, 6), **data: Any
) -> Path:
    """A network that was not trained, for images of `count` channels."""
    torch.manual_seed(0)
    network = UNet(count + (steps > 1), channels=(4, 8))
    task = SegmentationTask(
        network, image_mean=MEAN[:count], image_std=STD[:count], refinement_steps=steps, tile_size=64
    )
    task.thresholds = Thresholds(*thresholds, 8, steps, True)
    task.data_description = data
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.strategy.connect(task)
    trainer.save_checkpoint(path)
    return path


def by_hand(path: Path, scaled: np.ndarray, steps: int = 1) -> np.ndarray:
    """Probabilities (H, W) of an image (H, W, C) in 0..1, from the weights in the file, all at once."""
    channels = scaled.shape[2]
    network = UNet(channels + (steps > 1), channels=(4, 8))
    state = read_checkpoint(path)["state_dict"]
    network.load_state_dict({name.removeprefix("network."): value for name, value in state.items()})
    network.eval()
    image = torch.from_numpy(((scaled - MEAN[:channels]) / STD[:channels]).transpose(2, 0, 1)[None]).float()
    total = torch.zeros(1, 1, *image.shape[2:])
    for mirrored in (False, True):
        for turns in range(4):
            view = torch.rot90(image.flip(3) if mirrored else image, turns, (2, 3))
            previous = torch.zeros_like(view[:, :1])
            with torch.inference_mode():
                for _ in range(steps):
                    logits = network(torch.cat([view, previous], 1) if steps > 1 else view)
                    previous = torch.sigmoid(logits)
            back = torch.rot90(logits, -turns, (2, 3))
            total += (back.flip(3) if mirrored else back) / 8
    return torch.sigmoid(total)[0, 0].numpy()


@pytest.mark.parametrize("steps", [1, 3])
def test_predicts_what_the_parts_give_by_hand(tmp_path: Path, steps: int) -> None:
    path = checkpoint(tmp_path / "a.ckpt", steps=steps)
    model = biocnn.load(path, device="cpu")
    assert isinstance(model, Segmenter)
    found = model.tubularity(COLOURS)
    assert (found.shape, found.dtype) == ((45, 70), np.float32)
    # float32 sums in another order, and two tiles along the columns
    np.testing.assert_allclose(found, by_hand(path, COLOURS / 255, steps), atol=1e-6)
    np.testing.assert_array_equal(model.tubularity(COLOURS[:1, :1]).shape, (1, 1))


def test_a_read_only_image_is_predicted_without_a_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    model = biocnn.load(checkpoint(tmp_path / "a.ckpt"), device="cpu")
    image = COLOURS.copy()
    image.flags.writeable = False
    recwarn.clear()
    model.tubularity(image)
    assert [str(warning.message) for warning in recwarn] == []


def test_other_types_are_scaled_as_the_training_images_were(tmp_path: Path) -> None:
    data = {"channels": ["grey"], "dtype": "uint16", "fingerprint": {"intensity_range": [400.0, 3500.0]}}
    path = checkpoint(tmp_path / "a.ckpt", count=1, **data)
    model = biocnn.load(path, device="cpu")
    expected = by_hand(path, (GREY[..., None] - 400.0) / 3100)
    np.testing.assert_allclose(model.tubularity(GREY), expected, atol=1e-6)
    np.testing.assert_array_equal(model.tubularity(GREY[..., None]), model.tubularity(GREY))
    assert model.channels == ("grey",)


def test_the_mask_has_threshold_and_size_of_the_checkpoint(tmp_path: Path) -> None:
    found = biocnn.load(checkpoint(tmp_path / "a.ckpt"), device="cpu").tubularity(COLOURS)
    threshold = float(np.quantile(found, 0.8))
    path = checkpoint(tmp_path / "b.ckpt", thresholds=(threshold, 6), pixel_size_um=[0.5, 0.25])
    model = biocnn.load(path, device="cpu")
    assert (model.threshold, model.min_component, model.pixel_size_um) == (threshold, 6, (0.5, 0.25))
    above, mask = model.tubularity(COLOURS) >= threshold, model.segment(COLOURS)
    np.testing.assert_array_equal(mask, remove_small_objects(above, max_size=5, connectivity=2))
    assert 0 < mask.sum() < above.sum() < above.size


def test_a_threshold_for_another_way_to_predict_is_warned_about(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "a.ckpt")
    update_biocnn_section(path, threshold_views=1)
    with pytest.warns(UserWarning, match="chosen for another way to predict"):
        biocnn.load(path, device="cpu")


def test_wrong_images_are_refused(tmp_path: Path) -> None:
    model = biocnn.load(checkpoint(tmp_path / "a.ckpt"), device="cpu")
    for image, text in (
        (COLOURS / 255, r"received float64 \(45, 70, 3\)"),
        (COLOURS[..., 0], r"received uint8 \(45, 70\)"),
        (COLOURS[None], r"received uint8 \(1, 45, 70, 3\)"),
        (COLOURS[:0], r"received uint8 \(0, 70, 3\)"),
        (COLOURS.astype(np.uint16), r"Expected a uint8 image of shape \(rows, columns, 3\).* received uint16"),
    ):
        with pytest.raises(DataError, match=text):
            model.tubularity(image)
    data = {"dtype": "float32", "fingerprint": {"intensity_range": [0.0, 1.0]}}
    model = biocnn.load(checkpoint(tmp_path / "b.ckpt", count=1, **data), device="cpu")
    image = np.zeros((8, 8), np.float32)
    image[2, 3] = np.nan
    with pytest.raises(DataError, match="holds nan or infinity"):
        model.tubularity(image)
