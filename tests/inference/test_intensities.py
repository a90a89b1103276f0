"""A network is given the same values of an image by training tiles, by evaluation and by prediction."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from biocnn.data.segmentation_module import SegmentationDataModule
from biocnn.inference.segmentation import Segmenter
from biocnn.tasks.segmentation import SegmentationTask
from tests.data.drawn import save, write_manifest


class Listener(nn.Module):
    """The logit is the normalised image."""

    halo, stride = 0, 1

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image


def test_values_beyond_the_range_of_the_training_are_cut_everywhere(tmp_path: Path) -> None:
    image = np.full((32, 32), 2000, np.uint16)
    image[:16], image[:, :4], image[:, 28:] = 1000, 500, 4000  # beyond 1000..2000 at the left and the right
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 8:24] = 255
    inside = np.zeros((32, 32), np.uint8)
    inside[:, 4:28] = 255  # training and validation image are the same, but for which pixels count
    for split in ("train", "valid"):
        save(tmp_path / split / "images/0.tif", image)
        save(tmp_path / split / "masks/0.png", mask)
        save(tmp_path / split / "fields/0.png", inside)
    names = {"images": "images/*", "masks": "masks/*", "valid": "fields/*"}
    splits = {split: {name: f"{split}/{value}" for name, value in names.items()} for split in ("train", "valid")}
    manifest = write_manifest(tmp_path, [], image={"dtype": "uint16"}, splits=splits)
    data = SegmentationDataModule(str(tmp_path), manifest, tile_size=32, batch_size=2, num_workers=0)
    data.setup("fit")
    assert data.intensity_range() == (1000, 2000)
    expected = np.where(image >= 2000, 1.0, 0.0)

    whole = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)["image"]
    np.testing.assert_array_equal(whole[0, 0], expected)
    tiles = data.dataset("train")
    tiles.augmentation = None
    tile = data.on_after_batch_transfer(tiles.__getitems__([(0, index) for index in range(8)]), 0)["image"]
    assert (tile.min(), tile.max()) == (0, 1)
    task = SegmentationTask(Listener(), image_mean=[0.5], image_std=[0.25], test_time_augmentation=False).eval()
    task.data_description = data.describe()
    torch.testing.assert_close(
        torch.from_numpy(Segmenter(task).tubularity(image)), torch.sigmoid((whole[0, 0] - 0.5) / 0.25), rtol=0, atol=0
    )
