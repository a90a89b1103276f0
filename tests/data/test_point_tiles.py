import pickle
from typing import Any

import albumentations as A
import numpy as np
import pytest
import torch

from biocnn.data.augmentation import Augmentation, PatchAugmentation, TileAugmentation
from biocnn.data.density import kernel_widths, rasterise
from biocnn.data.point_images import PointImages
from biocnn.data.point_tiles import PointTiles, WholePointImages, density_inside
from biocnn.errors import DataError
from tests.data.drawn_cells import cells, dot_pictures, drawn_cells, point_set

PLAIN: dict[str, Any] = {"brightness": 0, "contrast": 1, "gamma": 1, "colour": 0, "blur": 0, "noise": 0}
SYMMETRIES = TileAugmentation(affine_probability=0, **PLAIN)
ANY_ANGLE = TileAugmentation(affine_probability=1, scale=(0.4, 2.5), **PLAIN)


def tiles(
    images: PointImages, augmentation: Augmentation | None = None, sigma: float = 2.0, **arguments: Any
) -> PointTiles:
    settings = {"tile_size": 32, "length": 30, "augmentation": augmentation, **arguments}
    return PointTiles(images, [sigma] * len(images), **settings)


def all_tiles(dataset: PointTiles, epoch: int = 0) -> dict[str, Any]:
    return dataset.__getitems__([(epoch, index) for index in range(len(dataset))])


def test_a_batch_has_the_documented_shapes() -> None:
    batch = all_tiles(tiles(drawn_cells(), TileAugmentation()))
    assert (batch["image"].shape, batch["image"].dtype) == ((30, 32, 32, 1), torch.uint8)
    assert (batch["density"].shape, batch["density"].dtype) == ((30, 1, 32, 32), torch.float32)
    assert (batch["valid"].shape, batch["valid"].dtype) == ((30, 1, 32, 32), torch.bool)
    assert (batch["count"].shape, batch["count"].dtype) == ((30,), torch.float32)
    assert len(batch["points"]) == 30
    for points, count in zip(batch["points"], batch["count"], strict=True):
        assert (points.shape, points.dtype) == ((int(count), 2), torch.float32)
    assert batch["index"].tolist() == list(range(30))
    assert batch["id"] == [f"image{index % 3}" for index in range(30)]
    assert batch["group"] == []
    assert "mask" not in batch


@pytest.mark.parametrize(
    "augmentation",
    [None, TileAugmentation(), SYMMETRIES, ANY_ANGLE, TileAugmentation(1.0, scale=(0.1, 0.2))],
    ids=["none", "default", "symmetries", "any angle and scale", "far beyond the image"],
)
@pytest.mark.parametrize("sigma", [0.5, 4.0])
def test_the_sum_is_the_number_of_points(augmentation: Augmentation | None, sigma: float) -> None:
    dataset = tiles(drawn_cells(4, number=40), augmentation, sigma, length=1000)
    batch = all_tiles(dataset)
    sums = batch["density"].double().sum((1, 2, 3))
    torch.testing.assert_close(sums, batch["count"].double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(sums, batch["density"].where(batch["valid"], 0).double().sum((1, 2, 3)))
    assert batch["density"].min() >= 0
    assert len(set(batch["count"].tolist())) > 5


def shipped(kind: Any = Augmentation) -> list[Any]:
    """Every policy there is, as its class."""
    return [found for child in kind.__subclasses__() for found in (child, *shipped(child))]


def test_every_policy_keeps_the_number_of_points_or_is_refused() -> None:
    own = [policy for policy in shipped() if policy.__module__.startswith("biocnn.")]
    assert TileAugmentation in own
    rng = np.random.default_rng(0)
    drawn = drawn_cells(2, number=60)
    disc = (np.arange(96)[:, None] - 50) ** 2 + (np.arange(80) - 30) ** 2 < 35**2
    # Anywhere in their pixels; those of the second image are all inside a field of view.
    points = [one + rng.uniform(-0.499, 0.499, one.shape) for one in drawn.points]
    points[1] = points[1][disc[tuple(np.floor(points[1] + 0.5).astype(int).T)]]
    images = point_set(drawn.images, points, [np.ones((96, 80), bool), disc])
    for policy in own:
        if policy().moves_pixels:
            with pytest.raises(ValueError, match="move or remove pixels but not their points"):
                tiles(images, policy())
            continue
        batch = all_tiles(tiles(images, policy(), 3.0, length=400))
        sums = batch["density"].double().sum((1, 2, 3))
        numbers = torch.tensor([len(one) for one in batch["points"]]).double()
        torch.testing.assert_close(sums, numbers, atol=1e-4, rtol=0)
        assert torch.equal(batch["count"].double(), numbers)
        assert not batch["valid"].all()
        assert (batch["density"][~batch["valid"]] == 0).all()


def test_points_in_the_outermost_half_pixels_survive_every_symmetry() -> None:
    # Conventions that put the centre of the first pixel at a half lose or shift these when they mirror.
    end = 63.499
    corners = np.array([[-0.499, -0.499], [-0.499, end], [end, -0.499], [end, end], [-0.25, 20.5], [30.0, 63.25]])
    image = np.zeros((64, 64, 1), np.uint8)
    batch = all_tiles(tiles(point_set([image], [corners]), SYMMETRIES, tile_size=64, length=60))
    places = {tuple(map(tuple, points.double().sub(31.5).numpy().round(3))) for points in batch["points"]}
    centred = (corners - 31.5).round(3)
    expected = {
        tuple(map(tuple, (swapped * signs).round(3)))
        for swapped in (centred, centred[:, ::-1])
        for signs in ([1, 1], [1, -1], [-1, 1], [-1, -1])
    }
    assert places == expected
    torch.testing.assert_close(batch["density"].double().sum((1, 2, 3)), torch.full((60,), 6.0).double())


def test_points_are_on_their_pixels_under_every_symmetry() -> None:
    for size in (32, 33):
        batch = all_tiles(tiles(dot_pictures(number=60), SYMMETRIES, tile_size=size, length=90))
        assert batch["count"].sum() > 500
        for image, points in zip(batch["image"][..., 0], batch["points"], strict=True):
            expected = torch.argwhere(image == 255).float()
            found = points[np.lexsort(points.numpy().T[::-1])]
            assert torch.equal(found, expected)


def test_points_are_where_the_docstring_of_placement_says() -> None:
    images = drawn_cells(3, number=150, height=160, width=170)  # no tile sticks out
    dataset = tiles(images, ANY_ANGLE, length=200)
    batch = all_tiles(dataset)
    for index in range(200):
        place, points = dataset.place(0, index), images.points[index % 3]
        inside = np.array([np.linalg.solve(place.matrix, point - place.centre) for point in points]) + 15.5
        expected = points[((inside > -0.5) & (inside < 31.5)).all(1)]
        found = np.array([place.centre + place.matrix @ (point - 15.5) for point in batch["points"][index].numpy()])
        np.testing.assert_allclose(found.reshape(-1, 2), expected, atol=1e-4)


def test_any_angle_moves_cells_and_points_together() -> None:
    batch = all_tiles(tiles(drawn_cells(3, number=10, radius=4), ANY_ANGLE, length=90))
    values = [
        image[tuple(points.round().long().clamp(0, 31).T)]
        for image, points in zip(batch["image"][..., 0], batch["points"], strict=True)
    ]
    assert len(torch.cat(values)) > 90
    assert torch.cat(values).min() == 200  # at 0.4 of its size a disc of radius 4 still has the pixel and a margin


def test_points_keep_their_own_widths_in_tiles() -> None:
    """Widths are those of the whole image, also where a tile has lost the neighbours."""
    images = drawn_cells(2, number=40)
    rng = np.random.default_rng(0)
    images = point_set(images.images, [one + rng.uniform(-0.4, 0.4, one.shape) for one in images.points])
    widths = [kernel_widths(points, neighbours=3)[:, 0] for points in images.points]
    dataset = PointTiles(images, widths, 32, 20)  # upright
    for index, (points, density) in enumerate(
        zip(*(all_tiles(dataset)[name] for name in ("points", "density")), strict=True)
    ):
        place, row = dataset.place(0, index), index % 2
        corner = np.array(place.centre) - 15.5
        own = [widths[row][np.abs(images.points[row] - corner - one).sum(1).argmin()] for one in points.numpy()]
        expected = rasterise(points.numpy(), (32, 32), np.array(own))
        np.testing.assert_allclose(density[0], expected, atol=1e-6)


def test_kernels_of_their_own_widths_are_whole_inside_the_field_of_view() -> None:
    points = drawn_cells(1, number=30).points[0]
    valid = (np.arange(96)[:, None] - 50) ** 2 + (np.arange(80) - 30) ** 2 < 30**2
    points = points[valid[tuple(points.astype(int).T)]]
    widths = np.linspace(0.5, 9, len(points))
    found = density_inside(points, valid, widths)
    singly = sum(density_inside(points[[n]], valid, float(widths[n])) for n in range(len(points)))
    np.testing.assert_allclose(found, singly, atol=1e-6)
    assert abs(float(found.sum(dtype=np.float64)) - len(points)) < 1e-5
    assert (found[~valid] == 0).all()


def test_kernels_have_the_same_width_at_every_scale() -> None:
    image = np.zeros((80, 80, 1), np.uint8)
    lone = point_set([image], [np.array([[39.5, 39.5]])])
    offsets = torch.arange(48.0)
    for scale in (0.5, 1.0, 2.0):
        dataset = tiles(lone, TileAugmentation(1.0, scale=(scale, scale), **PLAIN), 3.0, tile_size=48, length=400)
        batch = all_tiles(dataset)
        checked = 0
        for points, density in zip(batch["points"], batch["density"][:, 0], strict=True):
            if len(points) and points.min() >= 13 and points.max() <= 34:  # far from the border
                rows = density.sum(1)
                variance = (rows * (offsets - points[0, 0]) ** 2).sum()
                assert float(variance) == pytest.approx(9, rel=0.01)  # cut at 4 sigma, a thousandth less
                checked += 1
        assert checked > 0


def test_tiles_lie_in_the_image_if_they_can() -> None:
    # Half of a turned tile of 32 px is at most 15.5 x 1.42 / 0.8 = 27.5 px: it fits into 96x80.
    batch = all_tiles(tiles(drawn_cells(), TileAugmentation(1.0, scale=(0.8, 1.25), **PLAIN), length=300))
    assert batch["valid"].all()
    corners = {tiles(drawn_cells(1)).place(epoch, 0).centre for epoch in range(400)}
    rows, columns = zip(*corners, strict=True)
    assert (min(rows), max(rows), min(columns), max(columns)) == (15.5, 79.5, 15.5, 63.5)


def test_what_is_beyond_the_image_is_not_valid_and_has_no_points() -> None:
    small = drawn_cells(2, height=40, width=36, number=30)
    batch = all_tiles(tiles(small, ANY_ANGLE, length=200))
    shares = batch["valid"].float().mean((1, 2, 3))
    assert shares.min() < 0.6
    assert (batch["density"][~batch["valid"]] == 0).all()
    assert (batch["count"] <= 30).all()
    assert batch["count"].max() == 30  # made small enough, a tile shows all of them


def test_a_tile_as_large_as_the_image_has_all_points() -> None:
    square = drawn_cells(2, height=64, width=64, number=50)
    batch = all_tiles(tiles(square, SYMMETRIES, tile_size=64))
    assert (batch["count"] == 50).all()
    assert batch["valid"].all()


def test_neighbouring_tiles_share_no_point() -> None:
    # Points on the border between two pixels, in the middle of the image: each half of it is a tile.
    points = np.array([[31.5, 5.0], [31.5, 31.5], [10.0, 31.5], [-0.4, -0.4]])
    whole = np.random.default_rng(0).integers(0, 255, (64, 64, 1), np.uint8)
    total = 0
    for top in (0, 32):
        for left in (0, 32):
            part = points - [top, left]
            half = point_set([np.ascontiguousarray(whole[top : top + 32, left : left + 32])], [part])
            total += int(all_tiles(tiles(half, length=1))["count"])
    assert total == len(points)


def test_density_inside_is_that_of_every_point_alone() -> None:
    _, points = cells(3, number=60)
    rng = np.random.default_rng(0)
    disc = (np.arange(96)[:, None] - 50) ** 2 + (np.arange(80) - 30) ** 2 < 35**2
    for valid in (disc, rng.random((96, 80)) < 0.5, np.ones((96, 80), bool)):
        for sigma in (0.3, 2.0, 15.0):
            inside = points[valid[tuple(points.astype(int).T)]] + rng.uniform(-0.4, 0.4, 2)
            expected = np.zeros((96, 80))
            for point in inside:
                kernel = rasterise([point], (96, 80), sigma).astype(np.float64) * valid
                expected += kernel / kernel.sum()
            found = density_inside(inside, valid, sigma)
            np.testing.assert_allclose(found, expected, atol=2e-6 * expected.max())
            assert found.sum(dtype=np.float64) == pytest.approx(len(inside), abs=1e-4)


def test_tiles_are_centred_inside_the_field_of_view() -> None:
    drawn = drawn_cells(2, number=40)
    valid = np.zeros((96, 80), bool)
    valid[:, :30] = True
    images = point_set(drawn.images, [points[points[:, 1] < 30] for points in drawn.points], [valid] * 2)
    batch = all_tiles(tiles(images, length=200))
    assert batch["valid"].flatten(1).any(1).all()
    assert (batch["density"][~batch["valid"]] == 0).all()
    assert batch["count"].sum() > 200
    torch.testing.assert_close(batch["density"].sum((1, 2, 3)), batch["count"], atol=1e-4, rtol=0)


def test_a_tile_depends_on_seed_epoch_and_index_only() -> None:
    images = drawn_cells()
    dataset = tiles(images, TileAugmentation())
    expected = dataset.__getitems__([(2, 7)])
    all_tiles(dataset)
    for other in (dataset, pickle.loads(pickle.dumps(dataset)), tiles(images, TileAugmentation(), length=60)):
        found = other.__getitems__([(0, 1), (2, 7)])
        for name in ("image", "density", "valid", "count"):
            assert torch.equal(found[name][1], expected[name][0])
        assert torch.equal(found["points"][1], expected["points"][0])
    seen = {
        tiles(images, TileAugmentation(), seed=seed).__getitems__([(epoch, index)])["image"].numpy().tobytes()
        for seed in range(2)
        for epoch in range(3)
        for index in range(30)
    }
    assert len(seen) == 180


def test_other_intensities_are_mapped_to_0_to_1() -> None:
    drawn = drawn_cells(2)
    scaled = point_set([image.astype(np.uint16) * 100 for image in drawn.images], drawn.points)
    eight = all_tiles(tiles(drawn, ANY_ANGLE))
    batch = all_tiles(tiles(scaled, ANY_ANGLE, intensity_range=(0, 25_500)))
    assert (batch["image"].shape, batch["image"].dtype) == ((30, 1, 32, 32), torch.float32)
    # 8 bits are rounded to 1/255 after interpolation.
    torch.testing.assert_close(batch["image"], eight["image"].permute(0, 3, 1, 2) / 255, atol=0.6 / 255, rtol=0)
    assert torch.equal(batch["density"], eight["density"])


def test_each_image_has_its_own_width() -> None:
    images = drawn_cells(2)
    batch = all_tiles(PointTiles(images, [1.0, 3.0], 32, 60))
    for index, points in enumerate(batch["points"]):
        expected = rasterise(points.numpy(), (32, 32), 1.0 if index % 2 == 0 else 3.0)
        np.testing.assert_array_equal(batch["density"][index, 0], expected)


@pytest.mark.parametrize(
    ("augmentation", "names"),
    [
        (PatchAugmentation(), "D4, RandomShift"),
        (Augmentation([A.OneOf([A.RandomScale(), A.RandomGamma()])]), "RandomScale"),
        (Augmentation([A.CoarseDropout()]), "CoarseDropout"),
    ],
)
def test_transforms_that_points_would_not_follow_are_refused(augmentation: Augmentation, names: str) -> None:
    with pytest.raises(ValueError, match=rf"The augmentation has {names}, which would move or remove pixels"):
        tiles(drawn_cells(), augmentation)


def test_transforms_of_values_are_welcome() -> None:
    changed, same = (
        all_tiles(tiles(drawn_cells(), augmentation)) for augmentation in (Augmentation([A.RandomGamma(p=1)]), None)
    )
    assert torch.equal(changed["density"], same["density"])
    assert not torch.equal(changed["image"], same["image"])


def test_bad_arguments() -> None:
    images = drawn_cells(2)
    with pytest.raises(DataError, match=r"image0 has 96x80 px .*less than a tile of 81 px.*at most 80"):
        tiles(images, tile_size=81)
    with pytest.raises(ValueError, match="a width for each of 2 images, received 32, 30 and 1 widths"):
        PointTiles(images, [2.0], 32, 30)


def test_whole_images_are_served_as_they_are() -> None:
    images = drawn_cells(2)
    dataset = WholePointImages(images)
    with pytest.raises(DataError, match="width of the kernels is not known"):
        dataset[0]
    dataset.widths = [2.0, 2.5]
    batch = dataset[1]
    np.testing.assert_array_equal(batch["density"][0, 0], rasterise(images.points[1], (96, 80), 2.5))
    np.testing.assert_array_equal(batch["points"][0], images.points[1])
    np.testing.assert_array_equal(batch["image"][0], images.images[1])
    assert (batch["count"].tolist(), batch["id"], batch["index"].tolist()) == ([12.0], ["image1"], [1])
    assert batch["density"].dtype == batch["count"].dtype == batch["points"][0].dtype == torch.float32
    assert batch["valid"].all()
    with pytest.raises(ValueError, match="one by one"):
        dataset.__getitems__([0, 1])
