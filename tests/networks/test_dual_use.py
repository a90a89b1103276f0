from itertools import product

import numpy as np
import pytest
import torch

from biocnn.networks import DualUseUNet
from biocnn.networks.dual_use import PathHead
from biocnn.networks.spec import build, describe
from biocnn.networks.tiling import predict_tiles, tiling_of


def small(**arguments: object) -> DualUseUNet:
    torch.manual_seed(0)
    return DualUseUNet(**{"in_channels": 2, "channels": (4, 6, 8), **arguments})  # type: ignore[arg-type]


def column(count: int, height: int, width: int, place: int = 3) -> torch.Tensor:
    path = torch.zeros(count, 1, height, width)
    path[..., place] = 1
    return path


@pytest.mark.parametrize(("size", "norm"), list(product([(8, 8), (21, 14), (33, 5)], ["batch", "instance", "group"])))
def test_logits_of_pixels_and_of_paths(size: tuple[int, int], norm: str) -> None:
    network = small(norm=norm)
    image = torch.rand(3, 2, *size)
    assert network(image).shape == (3, 1, *size)
    assert network.path_logits(image, column(3, *size)).shape == (3,)
    assert network.path_logits(image, column(3, *size) > 0).shape == (3,)


def test_without_a_path_it_is_a_u_net_with_an_empty_channel() -> None:
    network = small().eval()
    image = torch.rand(2, 2, 20, 12)
    with torch.inference_mode():
        expected = network.unet(torch.cat([image, torch.zeros(2, 1, 20, 12)], 1))
        torch.testing.assert_close(network(image), expected, rtol=0, atol=0)
    assert (network.stride, network.halo, network.receptive_field) == (4, network.unet.halo, 2 * network.unet.halo + 1)  # type: ignore[operator]


def test_deep_supervision_gives_a_list_in_training() -> None:
    network = small(deep_supervision=True)
    assert [logits.shape for logits in network(torch.rand(2, 2, 16, 16))] == [(2, 1, 16, 16)] * 2


def test_both_heads_train_the_encoder_and_each_its_own_layers() -> None:
    image = torch.rand(2, 2, 16, 16)
    for use_path in (False, True):
        network = small(norm="instance")
        logits = network.path_logits(image, column(2, 16, 16)) if use_path else network(image)
        logits.square().sum().backward()
        assert all(weight.grad is not None and weight.grad.any() for weight in network.unet.encoder.parameters())
        own, other = network.path_head, network.unet.decoder
        if not use_path:
            own, other = other, own  # type: ignore[assignment]
        assert any(weight.grad.any() for weight in own.parameters())  # type: ignore[union-attr]
        assert all(weight.grad is None for weight in other.parameters())
        # The weights of the path's channel learn from paths only.
        assert network.unet.encoder[0].conv1.weight.grad[:, 2].any() == use_path  # type: ignore[union-attr, index, operator]


def test_the_head_takes_the_largest_values_along_the_path() -> None:
    torch.manual_seed(1)
    head = PathHead(3, 4).eval()
    features = torch.randn(1, 3, 3, 4)
    path = torch.zeros(1, 1, 10, 13)  # cells of 4 pixels; those at the end are cut
    for pixel in [(0, 0), (5, 5), (9, 12)]:
        path[(0, 0, *pixel)] = 1
    with torch.inference_mode():
        found = head(features, path).numpy()
        values = torch.relu(head.conv(features))[0].numpy()
    along = np.max([values[:, 0, 0], values[:, 1, 1], values[:, 2, 3]], 0)
    hidden = np.maximum(head.hidden.weight.detach().numpy() @ along + head.hidden.bias.detach().numpy(), 0)
    expected = head.last.weight.detach().numpy() @ hidden + head.last.bias.detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5)  # float32


def test_it_is_made_again_from_its_description() -> None:
    network = small(norm="group", block="residual", upsampling="nearest").eval()
    spec = describe(network)
    assert spec is not None
    assert spec["class_path"] == "biocnn.networks.dual_use.DualUseUNet"
    again = build(spec).eval()
    again.load_state_dict(network.state_dict())
    assert isinstance(again, DualUseUNet)
    image, path = torch.rand(1, 2, 16, 24), column(1, 16, 24)
    with torch.inference_mode():
        torch.testing.assert_close(again(image), network(image), rtol=0, atol=0)
        torch.testing.assert_close(again.path_logits(image, path), network.path_logits(image, path), rtol=0, atol=0)


def test_tiles_give_the_map_of_the_whole_image() -> None:
    network = small().eval()
    image = torch.rand(2, 90, 75)
    halo, stride = tiling_of(network)
    with torch.inference_mode():
        expected = network(image[None])[0]
    # Logits of about 1, in float32.
    torch.testing.assert_close(predict_tiles(network, image, 64, halo, stride), expected, atol=1e-5, rtol=0)


def test_wrong_shapes_and_channels_are_named() -> None:
    network = small()
    with pytest.raises(ValueError, match=r"made for images \(B, 2, H, W\), received \(1, 3, 8, 8\)"):
        network(torch.rand(1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"of shape \(2, 1, 8, 8\), received \(1, 1, 8, 8\)"):
        network.path_logits(torch.rand(2, 2, 8, 8), column(1, 8, 8))
    with pytest.raises(ValueError, match="received in_channels=None"):
        DualUseUNet(None)
    with pytest.raises(ValueError, match="norm must be one of"):
        small(norm="layer")
