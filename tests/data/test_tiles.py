import math
import pickle
from typing import Any

import albumentations as A
import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.morphology import skeletonize

from biocnn.data.augmentation import Augmentation, TileAugmentation
from biocnn.data.mask_images import MaskImages
from biocnn.data.tiles import TARGETS, TileDataset
from biocnn.errors import DataError
from tests.data.drawn import collect, in_memory

GEOMETRY = TileAugmentation(brightness=0, contrast=1, gamma=1, colour=0, blur=0, noise=0, affine_probability=0)
ANY_ANGLE = TileAugmentation(brightness=0, contrast=1, gamma=1, colour=0, blur=0, noise=0, affine_probability=1)


def tiles(images: MaskImages, augmentation: Augmentation | None = None, **arguments: Any) -> TileDataset:
    return TileDataset(images, **{"tile_size": 32, "length": 30, "augmentation": augmentation, **arguments})


def all_tiles(dataset: TileDataset, epoch: int = 0) -> dict[str, Any]:
    return dataset.__getitems__([(epoch, index) for index in range(len(dataset))])


def test_a_batch_has_the_documented_shapes() -> None:
    dataset = tiles(in_memory(valid=True), TileAugmentation())
    dataset.targets = TARGETS
    batch = all_tiles(dataset)
    assert (batch["image"].shape, batch["image"].dtype) == ((30, 32, 32, 1), torch.uint8)
    for name, dtype in {"mask": torch.float32, "tube": torch.float32, "distance": torch.float32}.items():
        assert (batch[name].shape, batch[name].dtype) == ((30, 1, 32, 32), dtype)
    assert (batch["valid"].shape, batch["valid"].dtype) == ((30, 1, 32, 32), torch.bool)
    for name in ("mask", "tube"):
        assert set(batch[name].unique().tolist()) == {0.0, 1.0}
    assert (batch["tube"] <= batch["mask"]).all()
    assert batch["index"].tolist() == list(range(30))
    assert batch["group"] == []


def test_every_image_gives_as_many_tiles() -> None:
    batch = all_tiles(tiles(in_memory(5), length=40))
    assert {name: batch["id"].count(name) for name in set(batch["id"])} == {f"image{n}": 8 for n in range(5)}


def test_the_share_on_foreground_is_as_set() -> None:
    images = in_memory(2)
    chance = np.mean([mask.mean() for mask in images.masks])
    dataset = tiles(images, foreground_share=0.6, length=2000)
    centres = [dataset.place(0, index).centre for index in range(2000)]
    hits = sum(images.masks[n % 2][int(row + 0.5), int(column + 0.5)] for n, (row, column) in enumerate(centres))
    expected = 0.6 + 0.4 * chance
    # Four standard deviations of a binomial: passed by 99.99 % of seeds.
    assert abs(hits / 2000 - expected) < 4 * math.sqrt(expected * (1 - expected) / 2000)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_tiles_are_centred_inside_the_field_of_view(share: float) -> None:
    images = in_memory(2, valid=True)
    dataset = tiles(images, foreground_share=share, length=400)
    batch = all_tiles(dataset)
    assert batch["valid"][:, 0, 16, 16].all()
    if share == 1:
        assert batch["mask"][:, 0, 16, 16].all()
    # What is served as valid is the field of view, cut at the border of the image.
    for index in range(50):
        top, left = (round(place - 15.5) for place in dataset.place(0, index).centre)
        assert images.valid[0] is not None
        expected = np.pad(images.valid[0], 32)[top + 32 : top + 64, left + 32 : left + 64]
        np.testing.assert_array_equal(batch["valid"][index, 0], expected)


def test_an_image_without_foreground_is_drawn_from_anywhere() -> None:
    images = in_memory(1)
    empty = collect(list(images.images), [np.zeros_like(images.masks[0])])
    assert len({tiles(empty, foreground_share=1.0).place(0, index).centre for index in range(30)}) > 25


def test_symmetries_move_image_mask_valid_and_tube_together() -> None:
    drawn = in_memory(3, valid=True)
    same = collect([mask[..., None].astype(np.uint8) * 255 for mask in drawn.masks], list(drawn.masks), drawn.valid)
    dataset = tiles(same, GEOMETRY, length=90)
    dataset.targets = TARGETS
    batch = all_tiles(dataset)
    np.testing.assert_array_equal(batch["image"][..., 0] == 255, batch["mask"][:, 0] == 1)
    # Turned back by hand, valid and tube are those of the image.
    plain = tiles(same, length=90)
    plain.targets = TARGETS
    for index in range(30):
        matrix = dataset.place(0, index).matrix
        upright = plain.place(0, index)
        np.testing.assert_array_equal(upright.matrix, np.eye(2))
        turned = {name: batch[name][index, 0].numpy() for name in ("valid", "tube", "mask", "distance")}
        if np.linalg.det(matrix) < 0:
            turned = {name: array.T for name, array in turned.items()}
        sides = plain.__getitems__([(0, index)])
        assert any(
            all(np.array_equal(np.rot90(array, k), sides[name][0, 0]) for name, array in turned.items())
            for k in range(4)
        )


def test_any_angle_moves_image_and_mask_together() -> None:
    drawn = in_memory(3, valid=True, height=120, width=100)
    same = collect([mask[..., None].astype(np.uint8) * 255 for mask in drawn.masks], list(drawn.masks), drawn.valid)
    batch = all_tiles(tiles(same, ANY_ANGLE, length=60))
    image, mask = batch["image"][..., 0].numpy(), batch["mask"][:, 0].numpy() == 1
    # The nearest pixel has a quarter or more of the weight of a linear interpolation.
    assert (image[mask] >= 60).all()
    assert (image[~mask] <= 195).all()
    assert ((image > 127) == mask).mean() > 0.97
    assert 0 < mask.mean() < 0.5


def test_rotation_brings_in_the_image_and_no_border() -> None:
    even = np.ones((200, 200, 1), np.uint8) * 100
    image = collect([even], [np.pad(np.ones((2, 2), bool), 99)])
    batch = all_tiles(tiles(image, ANY_ANGLE, foreground_share=1.0))
    assert batch["valid"].all()  # a tile in the middle is valid up to its corners, at every angle and scale
    assert (batch["image"] == 100).all()
    assert len({float(mask.sum()) for mask in batch["mask"]}) > 1  # scales differ


def test_distance_counts_structures_outside_the_tile() -> None:
    images = in_memory(2, height=120, width=110)
    dataset = tiles(images, max_distance=9.5, length=60)
    dataset.targets = TARGETS
    whole = [np.minimum(ndimage.distance_transform_edt(~mask), 9.5) for mask in images.masks]
    batch = all_tiles(dataset)
    differs = 0
    for index in range(60):
        top, left = (
            round(place - (dataset.place(0, index).size - 1) / 2) + 10 for place in dataset.place(0, index).centre
        )
        rows, columns = slice(max(top, 0), min(top + 32, 120)), slice(max(left, 0), min(left + 32, 110))
        found = batch["distance"][index, 0].numpy()
        inside = found[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        np.testing.assert_allclose(inside, whole[index % 2][rows, columns], rtol=1e-6)
        mask = batch["mask"][index, 0].numpy() == 1
        alone = np.minimum(ndimage.distance_transform_edt(~mask), 9.5) if mask.any() else np.full((32, 32), 9.5)
        differs += bool((alone > found + 1e-3).any())
    assert differs > 20  # the margin matters in many tiles


def test_tube_is_a_thick_skeleton_within_the_mask() -> None:
    images = in_memory(1, thickness=9)
    dataset = tiles(images, length=40)
    dataset.targets = TARGETS
    tube = ndimage.binary_dilation(skeletonize(images.masks[0]), iterations=2) & images.masks[0]
    batch = all_tiles(dataset)
    checked = 0
    for index in range(40):
        top, left = (
            round(place - (dataset.place(0, index).size - 1) / 2) + 15 for place in dataset.place(0, index).centre
        )
        if top >= 0 and left >= 0 and top + 32 <= tube.shape[0] and left + 32 <= tube.shape[1]:
            np.testing.assert_array_equal(batch["tube"][index, 0] == 1, tube[top : top + 32, left : left + 32])
            checked += 1
    assert checked > 5


def test_targets_change_nothing_but_themselves() -> None:
    dataset = tiles(in_memory(valid=True), GEOMETRY)
    few = all_tiles(dataset)
    assert "tube" not in few
    assert "distance" not in few
    dataset.targets = TARGETS
    many = all_tiles(dataset)
    for name in ("image", "mask", "valid"):
        assert torch.equal(few[name], many[name])
    with pytest.raises(ValueError, match=r"targets \['distance', 'mask', 'tube'\], received \['skeleton'\]"):
        dataset.targets = frozenset({"skeleton"})


def test_a_tile_depends_on_seed_epoch_and_index_only() -> None:
    images = in_memory(3)
    dataset = tiles(images, TileAugmentation())
    dataset.targets = TARGETS
    expected = dataset.__getitems__([(2, 7)])
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(dataset)).__getitems__([(2, 7)])["image"], expected["image"]
    )
    all_tiles(dataset)
    for other in (dataset, tiles(images, TileAugmentation(), length=60)):
        other.targets = TARGETS
        for name in ("image", "mask", "valid", "tube", "distance"):
            assert torch.equal(other.__getitems__([(0, 1), (2, 7)])[name][1], expected[name][0])
    seen = {
        tiles(images, TileAugmentation(), seed=seed).__getitems__([(epoch, index)])["image"].numpy().tobytes()
        for seed in range(2)
        for epoch in range(3)
        for index in range(30)
    }
    assert len(seen) == 180


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.float32])
def test_other_intensities_are_mapped_to_0_to_1(dtype: type) -> None:
    drawn = in_memory(2)
    scaled = collect([(image.astype(float) * 100).astype(dtype) for image in drawn.images], list(drawn.masks))
    eight = all_tiles(tiles(drawn, ANY_ANGLE))["image"]
    batch = all_tiles(tiles(scaled, ANY_ANGLE, intensity_range=(0, 25_500)))
    assert (batch["image"].shape, batch["image"].dtype) == ((30, 1, 32, 32), torch.float32)
    # 8 bits are rounded to 1/255 after interpolation.
    torch.testing.assert_close(batch["image"], eight.permute(0, 3, 1, 2) / 255, atol=0.6 / 255, rtol=0)
    cut = all_tiles(tiles(scaled, TileAugmentation(), intensity_range=(5_000, 10_000)))["image"]
    assert (cut.min(), cut.max()) == (0, 1)


def test_photometric_changes_leave_the_targets_alone() -> None:
    images = in_memory(3, valid=True)
    strong = TileAugmentation(affine_probability=0, brightness=0.3, contrast=2, gamma=2, colour=0.3, blur=2, noise=0.2)
    changed, plain = (all_tiles(tiles(images, augmentation)) for augmentation in (strong, GEOMETRY))
    assert torch.equal(changed["mask"], plain["mask"])
    assert torch.equal(changed["valid"], plain["valid"])
    different = (changed["image"] != plain["image"]).flatten(1).any(1).float().mean()
    assert different > 0.6  # three quarters have another tone


def test_transforms_of_albumentations_go_with_tiles() -> None:
    images = in_memory(2, valid=True)
    same = collect([mask[..., None].astype(np.uint8) * 255 for mask in images.masks], list(images.masks), images.valid)
    batch = all_tiles(tiles(same, Augmentation([A.D4(p=1.0)])))
    np.testing.assert_array_equal(batch["image"][..., 0] == 255, batch["mask"][:, 0] == 1)


def test_bad_arguments() -> None:
    images = in_memory(2)
    with pytest.raises(DataError, match=r"image0 has 96x80 px .*less than a tile of 81 px.*at most 80"):
        tiles(images, tile_size=81)
    assert len(all_tiles(tiles(images, tile_size=80, length=2))["id"]) == 2
    with pytest.raises(ValueError, match=r"foreground_share in 0\.\.1, received 32, 30 and 1\.5"):
        tiles(images, foreground_share=1.5)
    with pytest.raises(ValueError, match="max_distance must be positive"):
        tiles(images, max_distance=0)
    with pytest.raises(ValueError, match=r"rotation in 0\.\.180.*received 0\.3, 270"):
        TileAugmentation(rotation=270)
    with pytest.raises(ValueError, match=r"contrast and gamma of 1 or more, received .* 0\.5 and 1\.5"):
        TileAugmentation(contrast=0.5)


def test_odd_tiles_are_centred_on_a_pixel() -> None:
    images = in_memory(1)
    dataset = tiles(images, tile_size=21, foreground_share=1.0, augmentation=GEOMETRY)
    assert all_tiles(dataset)["mask"][:, 0, 10, 10].all()
