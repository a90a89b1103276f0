from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from biocnn.networks import UNet
from biocnn.networks import unet as unet_module
from biocnn.networks.blocks import BLOCKS, NORMS, UPSAMPLINGS
from biocnn.networks.spec import build, describe
from biocnn.networks.unet import extent

VARIANTS = list(product(UPSAMPLINGS, BLOCKS, NORMS))


def small(**arguments: object) -> UNet:
    """A U-Net of a few channels with the same random weights every time."""
    torch.manual_seed(0)
    return UNet(**{"in_channels": 2, "channels": (4, 6, 8), **arguments})  # type: ignore[arg-type]


def randomise_statistics(network: nn.Module) -> nn.Module:
    """Batch norm as after training, where it is not the identity."""
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
            module.running_mean.normal_()  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
            nn.init.normal_(module.bias)
    return network


@pytest.mark.parametrize(("upsampling", "block", "norm"), VARIANTS)
def test_every_variant_trains_and_is_made_again(upsampling: str, block: str, norm: str) -> None:
    network = small(upsampling=upsampling, block=block, norm=norm, dropout=0.2)
    network(torch.rand(2, 2, 21, 14)).square().mean().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in network.parameters())
    assert all(weight.grad.any() for weight in network.encoder.parameters())  # type: ignore[union-attr]
    spec = describe(network)
    assert spec is not None
    assert spec["class_path"] == "biocnn.networks.unet.UNet"
    again = build(spec)
    again.load_state_dict(network.state_dict())
    image = torch.rand(2, 2, 9, 13)
    with torch.inference_mode():
        torch.testing.assert_close(again.eval()(image), network.eval()(image), rtol=0, atol=0)


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
@pytest.mark.parametrize("size", [(1, 1), (1, 50), (2, 3), (8, 8), (33, 47), (64, 65), (572, 9)], ids=str)
def test_logits_have_the_size_of_the_image(size: tuple[int, int], upsampling: str) -> None:
    network = small(channels=(2, 3, 4, 5), upsampling=upsampling, out_channels=3).eval()
    with torch.inference_mode():
        assert network(torch.rand(1, 2, *size)).shape == (1, 3, *size)


def test_the_default_network_on_the_size_of_the_paper() -> None:
    network = UNet().eval()
    assert sum(weight.numel() for weight in network.parameters()) == 1_927_009
    assert (network.halo, network.receptive_field, network.stride) == (51, 103, 8)
    with torch.inference_mode():
        logits = network(torch.randn(1, 3, 572, 572))
    assert logits.shape == (1, 1, 572, 572)
    # Weights that keep the variance: logits start neither dead nor saturated.
    assert 0.05 < float(logits.std()) < 5


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
def test_volumes(upsampling: str, norm: str) -> None:
    network = small(dimensions=3, upsampling=upsampling, norm=norm, block="residual", deep_supervision=True)
    logits = network(torch.rand(2, 2, 5, 9, 12))
    assert [tuple(level.shape) for level in logits] == [(2, 1, 5, 9, 12)] * 2
    sum(level.mean() for level in logits).backward()  # type: ignore[union-attr]
    with torch.inference_mode():
        assert network.eval()(torch.rand(1, 2, 1, 1, 7)).shape == (1, 1, 1, 1, 7)


@pytest.mark.parametrize("norm", ["instance", "group"])
def test_a_single_pixel_trains_without_batch_norm(norm: str) -> None:
    logits = small(norm=norm)(torch.rand(1, 2, 1, 1))
    assert logits.isfinite().all()


def make_positive(network: nn.Module) -> nn.Module:
    """Positive weights: on positive images no ReLU cuts and nothing cancels, so every dependence has a gradient."""
    for weight in network.parameters():
        weight.data.abs_().clamp_(min=0.01)
    return network.double().eval()


def reached(network: nn.Module, shape: tuple[int, ...], pixel: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Where the image can change the logit of a pixel, (*S) bool."""
    torch.manual_seed(seed)
    image = torch.rand(1, 2, *shape, dtype=next(network.parameters()).dtype, requires_grad=True)
    network(image)[(0, 0, *pixel)].backward()
    assert image.grad is not None
    return (image.grad != 0).any(1)[0]


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
@pytest.mark.parametrize(("levels", "dimensions"), [(1, 2), (2, 2), (3, 2), (4, 2), (2, 3)])
def test_gradient_fills_the_receptive_field_and_ends_there(
    monkeypatch: pytest.MonkeyPatch, upsampling: str, levels: int, dimensions: int
) -> None:
    # Largest values hide the other pixels of a block from the gradient; means do not.
    pool = F.avg_pool2d if dimensions == 2 else F.avg_pool3d
    monkeypatch.setattr(unet_module, "halve", lambda features: pool(features, 2, ceil_mode=True))
    network = make_positive(small(channels=(2,) * levels, dimensions=dimensions, upsampling=upsampling))
    assert isinstance(network, UNet)
    halo, stride = network.halo, network.stride
    assert halo is not None
    start = -(-halo // stride) * stride
    before, after = [], []
    for place in range(start, start + stride):
        found = reached(network, (start + stride + halo,) * dimensions, (place,) * dimensions).nonzero()
        first, last = int(found.min()), int(found.max())
        assert len(found) == (last - first + 1) ** dimensions  # a full square, without holes
        before.append(place - first)
        after.append(last - place)
    assert (max(before), max(after)) == extent(levels, upsampling)
    assert halo == max(*before, *after)
    assert network.receptive_field == 2 * halo + 1


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
def test_no_gradient_outside_the_halo(upsampling: str) -> None:
    network = randomise_statistics(small(upsampling=upsampling)).eval()
    assert isinstance(network, UNet)
    halo = network.halo
    assert halo is not None
    union = torch.zeros(80, 80, dtype=torch.bool)
    for seed in range(8):
        union |= reached(network, (80, 80), (37, 42), seed)
    rows, columns = union.nonzero().T
    assert 37 - halo <= int(rows.min()) < int(rows.max()) <= 37 + halo
    assert 42 - halo <= int(columns.min()) < int(columns.max()) <= 42 + halo


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
def test_a_tile_with_a_halo_gives_the_logits_of_the_whole_image(upsampling: str, block: str) -> None:
    network = randomise_statistics(small(upsampling=upsampling, block=block)).eval()
    assert isinstance(network, UNet)
    assert network.halo is not None
    halo = -(-network.halo // network.stride) * network.stride  # tiles start on the grid
    image = torch.rand(1, 2, 91, 77)
    with torch.inference_mode():
        whole = network(image)
        for top, left in ((0, 0), (40, 36), (64, 0), (32, 60)):
            rows = slice(max(0, top - halo), top + 20 + halo)
            columns = slice(max(0, left - halo), left + 20 + halo)
            inner = network(image[..., rows, columns])[..., top - rows.start :, left - columns.start :]
            expected = whole[..., top : top + 20, left : left + 20]
            found = inner[..., : expected.shape[2], : expected.shape[3]]
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_statistics_of_the_whole_image_have_no_halo() -> None:
    assert small(norm="instance").halo is None
    assert small(norm="group").receptive_field is None


def test_samples_do_not_mix_in_evaluation() -> None:
    image = torch.rand(3, 2, 19, 22)
    for norm in NORMS:
        network = randomise_statistics(small(norm=norm)).eval()
        with torch.inference_mode():
            alone = torch.cat([network(sample[None]) for sample in image])
            torch.testing.assert_close(network(image), alone, rtol=1e-4, atol=1e-5)


def test_deep_supervision_gives_full_size_logits_finest_first() -> None:
    plain, deep = small(channels=(2, 3, 4, 5)), small(channels=(2, 3, 4, 5), deep_supervision=True)
    deep.load_state_dict(plain.state_dict(), strict=False)
    image = torch.rand(2, 2, 21, 14)
    logits = deep(image)
    assert [tuple(level.shape) for level in logits] == [(2, 1, 21, 14)] * 3
    torch.testing.assert_close(logits[0], plain(image), rtol=0, atol=0)
    coarsest = logits[2][0, 0]
    assert torch.equal(coarsest[:4, :4], coarsest[:1, :1].expand(4, 4))  # nearest: one value to a cell
    assert coarsest[0, 3] != coarsest[0, 4]
    plain.eval(), deep.eval()
    with torch.inference_mode():
        assert torch.equal(deep(image), plain(image))
    assert len(small(channels=(4,), deep_supervision=True)(image)) == 1


@pytest.mark.parametrize("upsampling", ["transposed", "nearest"])
def test_backward_passes_repeat(upsampling: str) -> None:
    gradients = []
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(2):
            network = small(upsampling=upsampling, deep_supervision=True)
            sum(level.square().mean() for level in network(torch.rand(2, 2, 40, 31))).backward()  # type: ignore[union-attr]
            gradients.append(torch.cat([weight.grad.flatten() for weight in network.parameters()]))  # type: ignore[union-attr]
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(*gradients)


def test_wrong_arguments_and_images_are_named() -> None:
    with pytest.raises(ValueError, match="dimensions must be one of 2, 3, received 4"):
        UNet(dimensions=4)
    with pytest.raises(ValueError, match="upsampling must be one of 'transposed', 'bilinear', 'nearest', received 'b'"):
        UNet(upsampling="b")
    with pytest.raises(ValueError, match="block must be one of 'plain', 'residual', received 'dense'"):
        UNet(block="dense")
    with pytest.raises(ValueError, match="norm must be one of 'batch', 'instance', 'group', received None"):
        UNet(norm=None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"channels must be at least 1, received in_channels=3, .*channels=\[\]"):
        UNet(channels=())
    with pytest.raises(ValueError, match=r"made for images \(B, 3, H, W\), received \(1, 1, 32, 32\)"):
        UNet()(torch.rand(1, 1, 32, 32))
    with pytest.raises(ValueError, match=r"made for images \(B, 1, D, H, W\), received \(1, 32, 32\)"):
        UNet(in_channels=1, dimensions=3, channels=(2, 2))(torch.rand(1, 32, 32))
