import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from biocnn.data.fingerprint import Fingerprint, choose_serving, fingerprint, scale, widest_radius
from biocnn.data.manifest import load_manifest
from biocnn.data.mask_images import MaskImages, read_split
from biocnn.errors import DataError
from tests.conftest import SHARED_DATA
from tests.data.drawn import collect, in_memory

DRIVE_LIKE = Fingerprint(16, (584, 565), (584, 565), (584, 565), None, (0, 255), (0.5,), (0.2,), (0.17,), 0.1, 10.0)


def widest_inside(images: MaskImages) -> float:
    distances = [ndimage.distance_transform_edt(mask) for mask in images.masks]
    parts = zip(distances, images.valid, strict=True)
    return max(float(distance[... if valid is None else valid].max()) for distance, valid in parts)


def test_values_are_those_of_all_pixels_together() -> None:
    images = in_memory(3, valid=True)
    found = fingerprint(images)
    inside = np.concatenate([image[valid] for image, valid in zip(images.images, images.valid, strict=True)]) / 255
    np.testing.assert_allclose(found.mean, inside.mean(0), rtol=1e-6)  # summed in float64, of values in float32
    np.testing.assert_allclose(found.std, inside.std(0), rtol=1e-5)
    area = sum(valid.sum() for valid in images.valid if valid is not None)
    hit = sum((mask & valid).sum() for mask, valid in zip(images.masks, images.valid, strict=True))
    assert found.foreground_share == hit / area
    assert found.widest_radius == pytest.approx(widest_inside(images), rel=1e-6)
    assert (found.n_images, found.size_smallest, found.intensity_range) == (3, (96, 80), (0.0, 255.0))


def test_sizes_and_pixel_sizes() -> None:
    shapes = [(40, 90), (60, 70), (50, 100)]
    drawn = [in_memory(1, height=height, width=width) for height, width in shapes]
    images = collect([part.images[0] for part in drawn], [part.masks[0] for part in drawn])
    found = fingerprint(images)
    assert (found.size_smallest, found.size_median, found.size_largest) == ((40, 70), (50, 90), (60, 100))
    assert found.pixel_size_um is None
    sized = replace(images, pixel_sizes=((1.0, 2.0), (3.0, 2.0), (1.5, 2.0)))
    assert fingerprint(sized).pixel_size_um == (1.5, 2.0)
    assert fingerprint(replace(images, pixel_sizes=((1.0, 2.0), None, None))).pixel_size_um is None


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.float32])
def test_other_types_are_mapped_from_their_range_inside(dtype: type) -> None:
    images = in_memory(2, valid=True, dtype=dtype)
    for image, valid in zip(images.images, images.valid, strict=True):
        image[~valid] = 60_000  # type: ignore[operator]
    values = np.concatenate([images.pixels_inside(row) for row in range(2)]).astype(float)
    found = fingerprint(images)
    assert found.intensity_range == (values.min(), values.max())
    mapped = (values - values.min()) / np.ptp(values)
    np.testing.assert_allclose(found.mean, mapped.mean(0), rtol=1e-5)
    np.testing.assert_allclose(scale(values, found.intensity_range), mapped, atol=1e-6)


def test_radius_by_hand() -> None:
    mask = np.zeros((40, 40), bool)
    assert widest_radius(mask) == 0
    mask[5, :] = True
    assert widest_radius(mask) == 1
    mask[20:27, :] = True  # 7 wide, also at the border of the image, which is no background
    assert widest_radius(mask) == 4
    assert widest_radius(np.ones((9, 30), bool)) == 5  # but when there is no other


def test_labels_outside_the_field_of_view_have_no_radius() -> None:
    mask, valid = np.zeros((2, 160, 200), bool)
    valid[:30] = True
    mask[10:13] = True  # a vessel of 3 px
    mask[45:145, 50:150] = True  # and a label where pixels do not count
    image = np.random.default_rng(0).integers(0, 255, (160, 200, 1), np.uint8)
    assert fingerprint(collect([image], [mask], [valid])).widest_radius == 2
    assert fingerprint(collect([image], [mask])).widest_radius == 50
    assert widest_radius(mask, ~valid) == 50
    assert widest_radius(mask, np.roll(valid, 30, 0) & ~mask) == 0  # nothing to find inside


def test_the_rim_of_the_field_of_view_is_no_background() -> None:
    mask, valid = np.zeros((2, 60, 80), bool)
    mask[:, 30:39] = True  # 9 px wide, so 5, 4 and so on from the middle to its edge
    valid[:30] = True
    assert widest_radius(mask, valid) == 5  # it crosses the rim
    for columns, radius in {33: 3, 35: 5}.items():  # it is cut along by the rim
        valid = np.broadcast_to(np.arange(80) < columns, mask.shape)
        assert widest_radius(mask, valid) == radius
    assert widest_radius(np.ones((9, 30), bool), np.ones((9, 30), bool)) == 5


def test_spread_of_the_means_of_the_images() -> None:
    # Halves of the images have the means 0.2 and 0.6: 0.4 on average, and 0.2 from it, half of it.
    levels = [51, 51, 153, 153]
    noise = np.random.default_rng(0).permutation(np.tile([-9, 9], 48 * 40)).reshape(48, 80, 1)
    masks = [np.eye(48, 80, dtype=bool)] * 4
    found = fingerprint(collect([np.dstack([noise + level, noise + 100]).astype(np.uint8) for level in levels], masks))
    np.testing.assert_allclose(found.mean_spread, (0.5, 0), atol=1e-6)
    assert fingerprint(in_memory(1)).mean_spread == (0.0,)
    # Only pixels inside count.
    images = in_memory(3, valid=True)
    means = np.array([images.pixels_inside(row).mean(0) / 255 for row in range(3)])
    found = fingerprint(images)
    np.testing.assert_allclose(found.mean_spread, means.std(0) / found.mean, rtol=1e-4)  # of a small difference


@pytest.mark.parametrize("kind", ["array", "tensor"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "float32"])
def test_values_beyond_the_range_are_cut(kind: str, dtype: str) -> None:
    values: Any = np.array([[0, 100, 150, 200, 250]], dtype)
    values = torch.from_numpy(values) if kind == "tensor" else values
    found = scale(values, (100.0, 200.0))
    assert isinstance(found, type(values))
    assert found.dtype == (torch.float32 if kind == "tensor" else np.float32)
    np.testing.assert_allclose(found, [[0, 0, 0.5, 1, 1]], atol=1e-7)
    assert np.isnan(scale(np.array([np.nan], np.float32), (0.0, 1.0))).all()  # is no value, and is not made one


@pytest.mark.parametrize(
    ("radius", "side", "tile", "batch"),
    [
        (10, 565, 128, 8),
        (16, 565, 128, 8),
        (16.1, 565, 160, 5),
        (33.6, 512, 288, 2),
        (200, 3000, 512, 2),
        (3, 97, 96, 14),
    ],
)
def test_tile_and_batch_size(radius: float, side: int, tile: int, batch: int) -> None:
    found = replace(DRIVE_LIKE, widest_radius=radius, size_smallest=(584, side))
    assert found.tile_size == tile
    assert found.batch_size(tile) == batch


def test_batch_size_has_bounds() -> None:
    assert [DRIVE_LIKE.batch_size(tile) for tile in (32, 64, 128, 256, 512, 4096)] == [16, 16, 8, 2, 2, 2]


def test_what_is_given_is_not_chosen() -> None:
    images = in_memory(3)  # of 96x80 px
    found = fingerprint(images)
    chosen = choose_serving(images, found, None, None, None)
    assert (chosen.tile_size, chosen.batch_size, chosen.tiles_per_epoch) == (64, 16, 129)  # 8 x 16, from 3 images
    assert [line.split(":")[0] for line in chosen.lines] == [
        "data.tile_size",
        "data.batch_size",
        "data.tiles_per_epoch",
    ]
    chosen = choose_serving(images, found, 16, 2, None)
    assert chosen.tiles_per_epoch == 90  # 3 x 96 x 80 / 16^2
    assert len(chosen.lines) == 1
    chosen = choose_serving(images, found, 16, 2, 7)
    assert (chosen.tile_size, chosen.batch_size, chosen.tiles_per_epoch, chosen.lines) == (16, 2, 9, ())


def test_images_too_small_for_any_tile() -> None:
    with pytest.raises(DataError, match=r"584 rows or 31 columns; tiles need at least 32 px.*at most 31"):
        _ = replace(DRIVE_LIKE, size_smallest=(584, 31)).tile_size


def test_plain_values_there_and_back() -> None:
    for found in (DRIVE_LIKE, replace(DRIVE_LIKE, pixel_size_um=(0.5, 0.5)), fingerprint(in_memory(2))):
        stored = json.loads(json.dumps(found.to_dict()))
        assert Fingerprint.from_dict(stored) == found
    with pytest.raises(ValueError, match="A fingerprint has the values"):
        Fingerprint.from_dict({**DRIVE_LIKE.to_dict(), "more": 1})


def test_lines_tell_people() -> None:
    text = "\n".join(DRIVE_LIKE.lines())
    assert "16 training images of 584x565 px (rows x columns), pixel size unknown" in text
    assert "foreground 10.0 %, widest radius 10.0 px" in text
    assert "the means of the images differ by 17 % (standard deviation, relative to the mean)" in text
    text = "\n".join(replace(DRIVE_LIKE, size_smallest=(100, 200), pixel_size_um=(0.5, 0.25)).lines())
    assert "100x200 to 584x565 px, median 584x565" in text
    assert "0.5 x 0.25 um" in text


def test_nothing_to_normalise() -> None:
    images = in_memory(2)
    dark = collect([np.dstack([image, image * 0]) for image in images.images], list(images.masks))
    with pytest.raises(DataError, match=r"Channel\(s\) \[1\] have one value in all training images"):
        fingerprint(dark)
    flat = collect([np.full((96, 80, 1), 5, np.uint16)], [images.masks[0]])
    with pytest.raises(DataError, match="All pixels of all training images have the value 5"):
        fingerprint(flat)


@pytest.mark.skipif(not (SHARED_DATA / "drive").is_dir(), reason="DRIVE is not in ../shared/data")
def test_drive() -> None:
    images = read_split(load_manifest("drive"), SHARED_DATA / "drive", "train")
    found = fingerprint(images)
    assert (found.n_images, found.size_median, found.tile_size, found.batch_size(128)) == (16, (584, 565), 128, 8)
    assert found.foreground_share == pytest.approx(0.126, abs=0.001)
    assert found.widest_radius == pytest.approx(widest_inside(images), rel=1e-6)
    # What the tone jitter of an augmentation has to cover: images differ by 17 to 22 % in their mean colour.
    np.testing.assert_allclose(found.mean_spread, (0.17, 0.21, 0.22), atol=0.02)
    red, green, blue = found.mean
    assert red > green > blue  # a fundus is red
    inside = np.concatenate([images.pixels_inside(row) for row in range(16)]) / 255
    np.testing.assert_allclose(found.mean, inside.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.std, inside.std(0), rtol=1e-5)
