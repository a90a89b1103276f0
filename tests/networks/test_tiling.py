from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from biocnn.errors import DataError
from biocnn.networks import UNet
from biocnn.networks.blocks import UPSAMPLINGS
from biocnn.networks.tiling import Window, blend_axis, cut_axis, predict_tiles, tiling_of
from biocnn.networks.views import D4_VIEWS, d4_inverse, d4_view


def unet(upsampling: str = "transposed", dimensions: int = 2, channels: tuple[int, ...] = (8, 16, 32)) -> UNet:
    """A U-Net in evaluation mode whose batch norm is not the identity."""
    torch.manual_seed(0)
    network = UNet(2, 3, channels, dimensions, upsampling).eval()
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.bias)
    return network


def whole(network: nn.Module, image: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = network(image[None])[0]
    return logits


def covered(windows: list[Window], length: int) -> torch.Tensor:
    total = torch.zeros(length, dtype=torch.float64)
    for window in windows:
        total[window.pixels] += window.weight.double()
    return total


def test_cores_follow_each_other_with_the_halo_on_either_side() -> None:
    for length, tile, halo, stride in product(range(1, 90, 3), (9, 20, 33), (0, 1, 4, 7), (1, 2, 4)):
        if tile < 2 * halo + 2 * stride - 1:
            continue
        windows = cut_axis(length, tile, halo, stride)
        cores = torch.cat([window.start + window.weight.nonzero()[:, 0] for window in windows])
        assert torch.equal(cores, torch.arange(length))  # every pixel once, in order
        assert (len(windows) == 1) == (length <= tile)
        for window in windows:
            assert window.start % stride == 0
            assert len(window.weight) <= tile
            assert window.pixels.stop <= length
            inside = window.start + window.weight.nonzero()[:, 0]
            assert window.start == 0 or int(inside[0]) - window.start >= halo
            assert window.pixels.stop == length or window.pixels.stop - 1 - int(inside[-1]) >= halo
        assert len({len(window.weight) for window in windows}) == 1


def test_windows_are_no_more_than_needed_and_no_longer_than_they_have_to_be() -> None:
    # The halo of a U-Net with five levels. Of 4096 pixels seven cores have 560 (the first and the last a halo more),
    # and 560 + 2 * 107 is rounded up to where 4096 - 784 is a multiple of 16.
    assert [window.start for window in cut_axis(4096, 850, 107, 16)] == [0, 560, 1120, 1680, 2240, 2800, 3312]
    assert {len(window.weight) for window in cut_axis(4096, 850, 107, 16)} == {784}
    assert [window.pixels for window in cut_axis(1100, 1024, 107, 16)] == [slice(0, 668), slice(432, 1100)]


def test_blended_weights_are_positive_and_sum_to_one() -> None:
    for length, tile, overlap, stride in product((1, 31, 32, 33, 100, 257), (32, 33), (0, 0.25, 0.5, 0.9), (1, 8)):
        windows = blend_axis(length, tile, overlap, stride)
        assert all((window.weight > 0).all() and window.start % stride == 0 for window in windows)
        torch.testing.assert_close(covered(windows, length), torch.ones(length).double(), rtol=0, atol=2e-7)
        ends = [window.pixels.stop for window in windows]
        assert ends[-1] == length
        side = len(windows[0].weight)
        assert {len(window.weight) for window in windows} == {side}
        assert side == length or tile - stride < side <= tile
        for end, window in zip(ends, windows[1:], strict=False):
            assert end - window.start >= min(side * overlap, side - stride)


# Of sizes that are not multiples of the stride 4, or no larger than a tile along one axis or both.
SIZES = [(91, 77), (64, 128), (130, 41), (63, 70), (33, 20)]


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_with_a_halo_tiles_give_the_result_of_the_whole_image(size: tuple[int, int], upsampling: str) -> None:
    network = unet(upsampling).double()
    image = torch.randn(2, *size, dtype=torch.float64)
    expected = whole(network, image).float()
    for tile, batch_size in ((64, 1), (67, 3), ((59, 200), 2)):
        found = predict_tiles(network, image, tile, *tiling_of(network), batch_size=batch_size)
        assert found.dtype == torch.float32
        # The only rounding is that of the result to single precision.
        torch.testing.assert_close(found, expected, rtol=2e-7, atol=0)


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
def test_single_precision_is_equal_to_1e_5(upsampling: str) -> None:
    network = unet(upsampling, channels=(8, 16, 32, 64))
    nn.init.normal_(network.heads[0].weight, std=0.1)  # type: ignore[arg-type]
    image = torch.randint(0, 256, (203, 221, 2), dtype=torch.uint8).permute(2, 0, 1)

    def function(tiles: torch.Tensor) -> torch.Tensor:
        assert tiles.dtype == torch.float32
        logits: torch.Tensor = network(tiles / 128 - 1)
        return logits

    with torch.inference_mode():
        expected = function(image[None].float())[0]
    found = predict_tiles(function, image, 150, *tiling_of(network), batch_size=3)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert float(expected.std()) > 0.1


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
def test_volumes(upsampling: str) -> None:
    network = unet(upsampling, 3, (3, 4)).double()
    image = torch.randn(2, 7, 45, 38, dtype=torch.float64)
    halo, stride = tiling_of(network)
    assert halo is not None
    expected = whole(network, image).float()
    for tile, batch_size in (((7, 30, 29), 1), (2 * halo + 6, 3)):
        found = predict_tiles(network, image, tile, halo, stride, batch_size=batch_size)
        torch.testing.assert_close(found, expected, rtol=2e-7, atol=0)


def test_too_small_a_halo_and_a_wrong_stride_differ() -> None:
    convolutions = nn.Sequential(*(nn.Conv2d(2, 2, 3, padding=1) for _ in range(3))).double()
    image = torch.randn(2, 91, 77, dtype=torch.float64)

    def error(network: nn.Module, halo: int, stride: int) -> float:
        return float((predict_tiles(network, image, 64, halo, stride) - whole(network, image)).abs().max())

    assert error(convolutions, 3, 1) < 1e-6
    assert error(convolutions, 2, 1) > 1e-4
    for upsampling in UPSAMPLINGS:
        network = unet(upsampling).double()
        halo, stride = tiling_of(network)
        assert halo is not None
        assert error(network, halo, stride) < 1e-5
        # Cores begin a halo after a multiple of the stride, and there the reach is one less than at the worst place.
        assert error(network, halo - 2, stride) > 1e-4
        assert error(network, halo + 1, 1) > 1e-2


def test_sums_are_those_of_the_whole_image() -> None:
    density = torch.rand(1, 203, 117)
    for halo, tile, views in product((0, 5), (20, 61), (1, D4_VIEWS)):
        found = predict_tiles(lambda tiles: tiles, density, tile, halo, views=views)
        torch.testing.assert_close(found, density, rtol=1e-6, atol=0)
    found = predict_tiles(torch.ones_like, density, 20, 5)
    assert found.double().sum() == 203 * 117


@pytest.mark.parametrize("size", [(100, 130), (64, 40), (20, 33)], ids=str)
def test_constants_stay_and_the_identity_gives_the_image(size: tuple[int, int]) -> None:
    image = torch.rand(3, *size)
    for overlap in (0, 0.25, 0.7):
        torch.testing.assert_close(predict_tiles(lambda tiles: tiles, image, 40, overlap=overlap), image)
        found = predict_tiles(lambda tiles: torch.full_like(tiles, 7), image, 40, overlap=overlap)
        torch.testing.assert_close(found, torch.full_like(image, 7), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("size", "tile"), [((104, 80), 32), ((40, 52, 28), 16)], ids=str)
def test_blending_equals_monai(size: tuple[int, ...], tile: int) -> None:
    inferers = pytest.importorskip("monai.inferers")
    torch.manual_seed(0)
    # Instance norm makes every result depend on the whole tile, so tiles disagree where they overlap.
    network = UNet(2, 3, (4, 6), len(size), norm="instance").eval()
    assert tiling_of(network) == (None, 2)
    image = torch.randn(2, *size)
    # MONAI lifts the smallest weights in the corners to 0.001 and shifts the last tile; given the same weights, and
    # sides that are whole numbers of steps, the same is meant.
    bell = torch.exp(-0.5 * ((torch.arange(tile) - (tile - 1) / 2) / (tile / 8)) ** 2)
    weights = bell
    for _ in size[1:]:
        weights = weights[..., None] * bell
    with torch.inference_mode():
        expected = inferers.sliding_window_inference(
            image[None], tile, 4, network, overlap=0.25, mode="gaussian", roi_weight_map=weights
        )[0]
    for batch_size in (1, 3):
        found = predict_tiles(network, image, tile, *tiling_of(network), overlap=0.25, batch_size=batch_size)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert float((whole(network, image) - expected).abs().max()) > 1e-2


def test_views_turn_the_whole_image() -> None:
    network = unet().double()
    image = torch.randn(2, 91, 77, dtype=torch.float64)
    seen: list[tuple[int, int]] = []
    found = predict_tiles(
        network, image, (60, 64), *tiling_of(network), views=D4_VIEWS, progress=lambda *counts: seen.append(counts)
    )
    expected = sum(d4_inverse(whole(network, d4_view(image, number)), number) for number in range(D4_VIEWS)) / D4_VIEWS
    torch.testing.assert_close(found, expected.float(), rtol=1e-6, atol=1e-7)  # type: ignore[union-attr]
    assert (found - whole(network, image)).abs().max() > 1e-2
    done, totals = zip(*seen, strict=True)
    assert done == tuple(range(1, len(seen) + 1))
    assert set(totals) == {len(seen)}


def test_calls_hold_no_more_than_a_batch_of_tiles() -> None:
    shapes = []

    def function(tiles: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(tiles.shape))
        assert torch.is_inference_mode_enabled()
        return tiles[:, :1]

    pixels = np.random.default_rng(0).integers(0, 2**16, (1000, 903), np.uint16)
    image = torch.from_numpy(pixels)[None]
    found = predict_tiles(function, image, 200, 20, 8, batch_size=4)
    assert np.array_equal(found[0].numpy(), pixels)
    assert not found.is_inference()  # so that it can be changed in place
    assert all(batch <= 4 and rows <= 200 and columns <= 200 for batch, _, rows, columns in shapes)
    assert len({shape[2:] for shape in shapes}) == 1
    # Cores of 160 at most: 6 of them and two halos of 20 are 1000, and 5 are less than 903.
    assert sum(shape[0] for shape in shapes) == 36
    shapes.clear()
    predict_tiles(function, image)
    assert {shape[2:] for shape in shapes} == {(512, 512)}


def test_autocast_of_the_caller_holds_and_the_result_is_single() -> None:
    types = []

    def function(tiles: torch.Tensor) -> torch.Tensor:
        logits = convolution(tiles)
        types.append(logits.dtype)
        return logits

    convolution = nn.Conv2d(1, 1, 3, padding=1)
    with torch.autocast("cpu", torch.bfloat16):
        found = predict_tiles(function, torch.rand(1, 40, 40), 30, 1)
    assert set(types) == {torch.bfloat16}
    assert found.dtype == torch.float32


def same(tiles: torch.Tensor) -> torch.Tensor:
    return tiles


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tile": 20, "halo": 9, "stride": 4}, r"a halo of 9 and a stride of 4: make tiles at least 25 pixels"),
        ({"tile": 14, "stride": 8}, "a halo of 0 and a stride of 8: make tiles at least 15 pixels"),
        ({"tile": (20, 20, 20)}, "one positive side or 2, for rows, columns; received"),
        ({"tile": 0}, "one positive side"),
        ({"halo": -1}, "halo must be at least 0, received -1"),
        ({"stride": 0}, "stride must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"overlap": 1.0}, "at least 0 and less than 1, received 1.0"),
        ({"views": 9}, "views must be 1 to 8, received 9"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predict_tiles(same, torch.rand(1, 50, 50), **arguments)  # type: ignore[arg-type]


def test_a_tile_needs_no_core_where_nothing_is_cut() -> None:
    image = torch.rand(1, 15, 20)
    assert torch.equal(predict_tiles(same, image, 20, 9, 4), image)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda tiles: tiles[..., 1:], r"\(B, K, \*T\) = \(1, K, 30, 30\), received \(1, 1, 30, 29\)"),
        (lambda tiles: tiles.mean(), r"received \(\)"),
        (lambda tiles: [tiles, tiles], "one tensor, received list"),
        (lambda tiles: tiles.expand(1, 1 + int(tiles.min() > 0.5), 30, 30), "2 channels at first, and now 1"),
    ],
)
def test_wrong_results_are_named(function: Callable[[torch.Tensor], torch.Tensor], message: str) -> None:
    image = torch.ones(1, 54, 54)
    image[:, -1] = 0
    with pytest.raises(ValueError, match=message):
        predict_tiles(function, image, 30, 3)


def test_broken_images_and_results_are_named() -> None:
    for shape in ((50, 50), (1, 1, 1, 50, 50), (3, 0, 50)):
        with pytest.raises(DataError, match="at least one pixel, received"):
            predict_tiles(same, torch.rand(shape))
    image = torch.rand(1, 54, 54)
    image[0, 50, 10] = torch.nan
    with pytest.raises(DataError, match=r"rows 24\.\.53, columns 0\.\.29 has values that are not finite"):
        predict_tiles(same, image, 30, 3, batch_size=4)


def test_networks_that_say_their_halo() -> None:
    assert tiling_of(UNet()) == (51, 8)
    assert tiling_of(nn.Conv2d(1, 1, 3)) == (None, 1)
