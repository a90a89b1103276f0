from itertools import product

import numpy as np
import pytest
import torch

from biocnn.networks import DualUseUNet
from biocnn.networks.spec import build, describe
from biocnn.networks.tiling import predict_tiles, tiling_of


def small(**arguments: object) -> DualUseUNet:
    torch.manual_seed(0)
    return DualUseUNet(**{"in_channels": 2, "channels": (4, 6, 8), **arguments})  # type: ignore[arg-type]


PATH = np.array([(0, 3), (1, 3), (2, 4)])


@pytest.mark.parametrize(("size", "norm"), list(product([(8, 8), (21, 14), (33, 5)], ["batch", "instance", "group"])))
def test_logits_of_pixels_and_of_paths(size: tuple[int, int], norm: str) -> None:
    network = small(norm=norm)
    image = torch.rand(3, 2, *size)
    assert network(image).shape == (3, 1, *size)
    logits, features = network.forward_with_features(image)
    assert (logits.shape, features.shape) == ((3, 1, *size), (3, 4, *size))  # type: ignore[union-attr]
    assert network.path_logits(features[1], [PATH, PATH[:1]]).shape == (2,)
    assert network.path_logits(features[1], []).shape == (0,)


def test_the_segmentation_is_that_of_a_u_net() -> None:
    network = small().eval()
    image = torch.rand(2, 2, 20, 12)
    with torch.inference_mode():
        torch.testing.assert_close(network(image), network.unet(image), rtol=0, atol=0)
        torch.testing.assert_close(network.forward_with_features(image)[0], network(image), rtol=0, atol=0)
    assert (network.stride, network.halo, network.receptive_field) == (4, network.unet.halo, 2 * network.unet.halo + 1)  # type: ignore[operator]


def test_deep_supervision_gives_a_list_in_training() -> None:
    network = small(deep_supervision=True)
    assert [logits.shape for logits in network(torch.rand(2, 2, 16, 16))] == [(2, 1, 16, 16)] * 2


def test_both_heads_train_the_u_net() -> None:
    image = torch.rand(2, 2, 16, 16)
    for use_path in (False, True):
        network = small(norm="instance")
        logits, features = network.forward_with_features(image)
        value = network.path_logits(features[0], [PATH]) if use_path else logits
        value.square().sum().backward()  # type: ignore[union-attr]
        assert all(weight.grad is not None and weight.grad.any() for weight in network.unet.encoder.parameters())
        own = list(network.path_head.parameters())
        assert any(weight.grad is not None and weight.grad.any() for weight in own) == use_path


def test_the_head_takes_the_features_and_the_logit_along_the_path() -> None:
    torch.manual_seed(1)
    network = small().double().eval()
    features = torch.randn(4, 6, 7, dtype=torch.float64)
    path = np.array([(0, 0), (1, 1), (5, 6), (2, 2)])
    with torch.inference_mode():
        found = network.path_logits(features, [path[:2], path])[1].item()
        maps = np.concatenate([features.numpy(), network.unet.heads[0](features[None])[0].numpy()])
    along = np.array([maps[:, row, place] for row, place in path.tolist()])
    pooled = np.concatenate([along.mean(0), along.max(0), along.min(0)])
    head = {name: weight.detach().numpy() for name, weight in network.path_head.named_parameters()}
    hidden = np.maximum(head["hidden.weight"] @ pooled + head["hidden.bias"], 0)
    assert found == pytest.approx(float((head["last.weight"] @ hidden + head["last.bias"])[0]), rel=1e-12)


def test_it_is_made_again_from_its_description() -> None:
    network = small(norm="group", block="residual", upsampling="nearest").eval()
    spec = describe(network)
    assert spec is not None
    assert spec["class_path"] == "biocnn.networks.dual_use.DualUseUNet"
    again = build(spec).eval()
    again.load_state_dict(network.state_dict())
    assert isinstance(again, DualUseUNet)
    image, features = torch.rand(1, 2, 16, 24), torch.rand(4, 16, 24)
    with torch.inference_mode():
        torch.testing.assert_close(again(image), network(image), rtol=0, atol=0)
        expected = network.path_logits(features, [PATH])
        torch.testing.assert_close(again.path_logits(features, [PATH]), expected, rtol=0, atol=0)


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
    with pytest.raises(ValueError, match="received in_channels=None"):
        DualUseUNet(None)
    with pytest.raises(ValueError, match="norm must be one of"):
        small(norm="layer")
