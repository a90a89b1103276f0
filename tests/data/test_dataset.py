from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from biocnn.data.augmentation import PatchAugmentation
from biocnn.data.batches import to_float
from biocnn.data.dataset import ConcatSource, ItemDataset
from biocnn.data.manifest import load_manifest
from biocnn.data.patches import PatchSource, open_patch_source


@pytest.fixture
def source(pcam_folder: Path) -> PatchSource:
    return open_patch_source(load_manifest("pcam"), pcam_folder, "train")


def test_batch_equals_its_items(source: PatchSource) -> None:
    dataset = ItemDataset(source, np.arange(5, 40), PatchAugmentation(), seed=7)
    keys = [(2, index) for index in (3, 0, 34)]
    batch = dataset.__getitems__(keys)
    assert batch["image"].shape == (3, 96, 96, 3)
    assert batch["image"].dtype == torch.uint8
    assert batch["index"].tolist() == [3, 0, 34]
    assert batch["id"] == ["train:8", "train:5", "train:39"]
    for position, key in enumerate(keys):
        item = dataset[key]
        assert torch.equal(item["image"][0], batch["image"][position])
        assert item["label"] == batch["label"][position]


def test_without_augmentation_the_source_comes_through(source: PatchSource) -> None:
    batch = ItemDataset(source).__getitems__([1, 2])
    np.testing.assert_array_equal(batch["image"].numpy(), source.read(np.array([1, 2]))["image"])


def test_augmentation_belongs_to_the_row_not_to_its_place(source: PatchSource) -> None:
    whole = ItemDataset(source, None, PatchAugmentation(), seed=1)
    part = ItemDataset(source, np.array([50, 20]), PatchAugmentation(), seed=1)
    assert torch.equal(whole[(0, 20)]["image"], part[(0, 1)]["image"])


def test_concatenation_reads_rows_of_all_sources(pcam_folder: Path) -> None:
    sources = [open_patch_source(load_manifest("pcam"), pcam_folder, split) for split in ("train", "valid")]
    both = ConcatSource(sources)
    assert len(both) == 96
    rows = np.array([95, 3, 64, 63])
    batch = both.read(rows)
    assert batch["id"] == ["valid:31", "train:3", "valid:0", "train:63"]
    expected = [sources[1].read(np.array([31])), sources[0].read(np.array([3]))]
    np.testing.assert_array_equal(batch["image"][:2], np.concatenate([part["image"] for part in expected]))
    assert batch["group"][0] == "valid_slide_3"


def test_float_images_are_channel_first_in_0_to_1() -> None:
    image = torch.arange(2 * 4 * 3 * 3, dtype=torch.uint8).reshape(2, 4, 3, 3)
    batch: dict[str, Any] = to_float({"image": image, "label": torch.tensor([0, 1])})
    assert batch["image"].shape == (2, 3, 4, 3)
    assert batch["image"].is_contiguous()
    expected = image.numpy().transpose(0, 3, 1, 2) / 255
    np.testing.assert_allclose(batch["image"].numpy(), expected, rtol=1.2e-7)  # one rounding of float32
    assert torch.equal(to_float(batch)["image"], batch["image"])
