import json
import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from biocnn.data.fingerprint import choose_serving
from biocnn.data.manifest import load_manifest
from biocnn.data.point_fingerprint import PointFingerprint, point_fingerprint, share_beyond
from biocnn.data.point_images import read_split
from tests.conftest import SHARED_DATA
from tests.data.drawn_cells import cells, drawn_cells, point_set

SIZE = (256, 256)
VGG_LIKE = PointFingerprint(32, SIZE, SIZE, SIZE, None, (0, 255), (0.5,), (0.2,), (0.1,), 176.0, 74, 317, 0.00268, 8.5)


def test_values_by_hand() -> None:
    noise = [np.random.default_rng(seed).integers(0, 256, (60, 100, 1), np.uint8) for seed in range(3)]
    grid = np.stack(np.meshgrid(np.arange(4) * 12.0, np.arange(5) * 10.0, indexing="ij"), -1).reshape(-1, 2)
    found = point_fingerprint(point_set(noise, [grid, grid[:1], np.zeros((0, 2))]))
    assert (found.count_mean, found.count_smallest, found.count_largest) == (7, 0, 20)
    assert found.points_per_pixel == 21 / (3 * 6000)
    assert found.density_largest == 20 / 6000
    assert found.neighbour_distance == 10
    assert (found.n_images, found.size_smallest) == (3, (60, 100))
    np.testing.assert_allclose(found.mean, np.mean(noise) / 255, rtol=1e-6)
    assert point_fingerprint(point_set(noise[:1], [grid[:1]])).neighbour_distance is None


def test_distances_are_those_of_all_pairs() -> None:
    images = drawn_cells(3, number=15)
    expected = []
    for points in images.points:
        pairs = np.linalg.norm(points[:, None] - points[None], axis=2)
        expected += (pairs + np.diag([np.inf] * len(points))).min(1).tolist()
    assert point_fingerprint(images).neighbour_distance == pytest.approx(np.median(expected), rel=1e-12)


def test_only_what_is_inside_counts() -> None:
    image, points = cells(1)
    valid = np.zeros((96, 80), bool)
    valid[:, :40] = True
    found = point_fingerprint(point_set([image[..., None]], [points[points[:, 1] < 40]], [valid]))
    assert found.points_per_pixel == found.density_largest == (points[:, 1] < 40).sum() / (96 * 40)
    np.testing.assert_allclose(found.mean, image[:, :40].mean() / 255, rtol=1e-6)


def test_an_empty_channel_is_not_blown_up(caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(0)
    strong, fair = rng.integers(0, 256, (2, 60, 100), np.uint8)
    picture = np.stack([strong, rng.integers(0, 3, (60, 100), np.uint8), fair // 2], axis=-1)
    with caplog.at_level(logging.INFO):
        found = point_fingerprint(point_set([picture], [np.array([[3.0, 4.0]])]))
    expected = picture.reshape(-1, 3).std(0) / 255
    np.testing.assert_allclose(found.std, [expected[0], expected[0] / 4, expected[2]], rtol=1e-5)
    assert "channel(s) [1] are all but empty" in caplog.text


@pytest.mark.parametrize(
    ("distance", "sigma", "reason"),
    [(8.5, 2.12, "8.5 px, within 1 and 4"), (2.0, 1, "2.0 px"), (27.1, 4, "27.1 px"), (None, 4, "no image has two")],
)
def test_sigma_is_a_quarter_of_the_distance(distance: float | None, sigma: float, reason: str) -> None:
    found = replace(VGG_LIKE, neighbour_distance=distance)
    assert found.sigma == sigma
    assert reason in found.sigma_reason


@pytest.mark.parametrize(
    ("per_pixel", "side", "tile"),
    [
        (0.00268, 256, 64),  # sqrt(8 / 0.00268) = 54.6, but not less than 64
        (3.5e-4, 600, 160),  # sqrt(8 / 3.5e-4) = 151.2
        (1e-5, 2048, 512),  # not more than 512
        (1e-5, 150, 128),  # nor than the image, in steps of 32
        (0.0, 256, 256),
        (1e-3, 70, 64),
    ],
)
def test_tiles_hold_some_cells(per_pixel: float, side: int, tile: int) -> None:
    assert replace(VGG_LIKE, points_per_pixel=per_pixel, size_smallest=(side, side)).tile_size == tile


def test_what_is_chosen_is_explained() -> None:
    images = drawn_cells(3)  # of 96x80 px
    chosen = choose_serving(images, point_fingerprint(images), None, None, None)
    assert (chosen.tile_size, chosen.batch_size, chosen.tiles_per_epoch) == (64, 16, 129)
    # 36 points on 3 x 96 x 80 px: 8 of them on 72 x 72 px.
    assert chosen.lines[0].startswith("data.tile_size: 64 (64, or what holds 8 cells on average, 72 px, if")
    text = "\n".join(VGG_LIKE.lines())
    assert "176.0 cells per image (74 to 317), 26.80 per 100x100 px, median distance to the nearest 8.5 px" in text


def test_plain_values_there_and_back() -> None:
    for found in (VGG_LIKE, replace(VGG_LIKE, neighbour_distance=None), point_fingerprint(drawn_cells(2))):
        assert PointFingerprint.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_checkpoints_without_the_largest_density_still_load() -> None:
    older = {name: value for name, value in VGG_LIKE.to_dict().items() if name != "density_largest"}
    assert PointFingerprint.from_dict(older) == VGG_LIKE
    with pytest.raises(ValueError, match="A fingerprint has the values"):
        PointFingerprint.from_dict({**older, "more": 1})


def test_share_of_pixels_beyond_the_training_range() -> None:
    values = np.full((10, 10, 2), 500, np.uint16)
    values[0, :3, 0], values[0, 2:5, 1], values[1, 1], values[2] = 399, 601, 600, 400
    image: Any
    for image in (values, torch.from_numpy(values.astype(np.float32))):
        assert share_beyond(image, (400.0, 600.0)) == 0.05  # a pixel counts once, the ends are inside
        assert share_beyond(image, (0.0, 1e4)) == 0
    most = np.array([[2**32 - 1]], np.uint32)  # which float32 rounds up
    for image in (most, torch.from_numpy(most.astype(np.float32))):
        assert share_beyond(image, (0.0, 2.0**32 - 1)) == 0
    assert share_beyond(np.array([[np.nan], [2.0]], np.float32), (0.0, 1.0)) == 0.5


@pytest.mark.skipif(not (SHARED_DATA / "vgg_cells").is_dir(), reason="VGG cells are not in ../shared/data")
def test_vgg_cells() -> None:
    found = point_fingerprint(read_split(load_manifest("vgg_cells"), SHARED_DATA / "vgg_cells", "train"))
    assert found.neighbour_distance is not None
    assert 8 <= found.neighbour_distance <= 9  # 8.5 over all 200 images
    assert (found.tile_size, found.batch_size(64)) == (64, 16)
    assert 2 <= found.sigma <= 2.25
    assert found.std[:2] == (found.std[2] / 4,) * 2  # the cells are in the blue channel
