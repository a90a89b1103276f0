from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from biocnn.networks import fcrn as fcrn_module
from biocnn.networks.fcrn import FCRNA, OUTPUT_BIAS, extent
from biocnn.networks.spec import build, describe
from biocnn.networks.tiling import predict_tiles, tiling_of


def seeded(**arguments: int) -> FCRNA:
    torch.manual_seed(0)
    return FCRNA(**arguments)


def randomise_statistics(network: nn.Module) -> nn.Module:
    """Batch norm as after training, where it is not the identity."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
            nn.init.normal_(module.bias, std=0.3)
    return network.eval()


def test_parameters_of_the_paper() -> None:
    network = seeded()
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    # 3x3 convolutions 3-32-64-128-512-128-64-32, a 1x1 convolution with a bias, and two numbers a channel for norms.
    widths = [3, 32, 64, 128, 512, 128, 64, 32]
    weights = sum(9 * before * after for before, after in pairwise(widths))
    assert weights == 1_364_832  # "1.3 M"
    assert sum(weight.numel() for weight in network.parameters()) == weights + 33 + 2 * sum(widths[1:])
    # Encoder: 3x3 convolutions at 1, 2, 4 and 8 pixels and three 2x2 poolings between them see 38 pixels.
    assert 1 + 2 * (1 + 2 + 4 + 8) + (1 + 2 + 4) == 38
    assert [tuple(convolution.kernel_size) for convolution in convolutions] == [(3, 3)] * 7 + [(1, 1)]


def test_weights_start_orthogonal_and_the_density_near_zero() -> None:
    network = seeded(in_channels=1, out_channels=2)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            matrix = module.weight.detach().flatten(1)
            matrix = matrix if len(matrix) <= matrix.shape[1] else matrix.T
            torch.testing.assert_close(matrix @ matrix.T, torch.eye(len(matrix)), rtol=0, atol=1e-5)
    assert network.head.bias is not None
    assert torch.equal(network.head.bias.detach(), torch.full((2,), OUTPUT_BIAS))
    density = network(torch.randn(2, 1, 40, 40))
    assert (density < 0).any()  # linear
    assert (density > 0).any()
    assert 0.01 < float(density.detach().std()) < 5


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (2, 3), (8, 8), (33, 47), (64, 65)], ids=str)
def test_the_map_has_the_size_of_the_image(size: tuple[int, int]) -> None:
    network = seeded(in_channels=2, out_channels=3).eval()
    with torch.inference_mode():
        density = network(torch.rand(1, 2, *size))
    assert density.shape == (1, 3, *size)
    assert density.isfinite().all()


def test_it_is_made_again_and_trains() -> None:
    network = seeded(in_channels=2)
    network(torch.rand(2, 2, 21, 14)).square().mean().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in network.parameters())
    assert all(weight.grad.any() for weight in network.parameters())  # type: ignore[union-attr]
    spec = describe(network)
    assert spec == {"class_path": "biocnn.networks.fcrn.FCRNA", "init_args": {"in_channels": 2, "out_channels": 1}}
    again = build(spec)
    again.load_state_dict(network.state_dict())
    image = torch.rand(2, 2, 9, 13)
    with torch.inference_mode():
        torch.testing.assert_close(again.eval()(image), network.eval()(image), rtol=0, atol=0)


def test_it_learns_where_the_cells_are() -> None:
    """A few steps on one drawn image: the error falls far below that of the best constant map."""
    torch.manual_seed(1)
    dots = torch.zeros(1, 1, 32, 32)
    for row, column in torch.randint(0, 32, (6, 2)).tolist():
        dots[0, 0, row, column] = 1
    blur = torch.outer(*[torch.exp(-0.5 * (torch.arange(-8, 9) / 2.0) ** 2)] * 2)
    image = F.conv2d(dots, blur[None, None], padding=8)
    density = 100 * image / blur.sum()
    network = seeded(in_channels=1)
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(40):
        loss = (network(image) - density).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 0.1 * float(density.var())


def test_gradient_fills_the_receptive_field_and_ends_there(monkeypatch: pytest.MonkeyPatch) -> None:
    # Largest values hide the other pixels of a block from the gradient, means do not; and with positive weights and
    # images no ReLU cuts and nothing cancels, so every dependence has a gradient.
    monkeypatch.setattr(fcrn_module, "halve", lambda features: F.avg_pool2d(features, 2, ceil_mode=True))
    monkeypatch.setattr(fcrn_module, "CHANNELS", (2, 2, 2, 2))
    network = seeded(in_channels=1)
    for weight in network.parameters():
        weight.data.abs_().clamp_(min=0.01)
    network.eval().double()
    start = -(-network.halo // 8) * 8
    before, after = [], []
    for place in range(start, start + 8):
        image = torch.rand(1, 1, start + 8 + network.halo, start + 8 + network.halo).double().requires_grad_()
        network(image)[0, 0, place, place].backward()
        assert image.grad is not None
        found = image.grad[0, 0].nonzero()
        first, last = int(found.min()), int(found.max())
        assert len(found) == (last - first + 1) ** 2  # a full square, without holes
        before.append(place - first)
        after.append(last - place)
    assert (max(before), max(after)) == extent()
    assert network.halo == max(*before, *after)
    assert network.receptive_field == 2 * network.halo + 1


@pytest.mark.parametrize("size", [(150, 131), (97, 160)], ids=str)
def test_tiles_equal_the_whole_image(size: tuple[int, int]) -> None:
    network = randomise_statistics(seeded())
    assert tiling_of(network) == (36, 8)
    image = torch.rand(3, *size)
    with torch.inference_mode():
        whole = network(image[None])[0]
    tiled = predict_tiles(network, image, 96, *tiling_of(network), batch_size=2)
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-5)
    assert float(tiled.sum()) == pytest.approx(float(whole.sum()), abs=1e-5 * whole.numel())


def test_wrong_arguments_and_images_are_named() -> None:
    with pytest.raises(ValueError, match="pass in_channels"):
        FCRNA(None)
    with pytest.raises(ValueError, match="at least 1, received in_channels=3, out_channels=0"):
        FCRNA(out_channels=0)
    with pytest.raises(ValueError, match=r"made for images \(B, 3, H, W\), received \(1, 1, 32, 32\)"):
        FCRNA()(torch.rand(1, 1, 32, 32))
    with pytest.raises(ValueError, match=r"received \(3, 32, 32\)"):
        FCRNA()(torch.rand(3, 32, 32))
