import math

import pytest
import torch
from torch import nn

from biocnn.networks import Backbone, LeNet5, SmallDenseNet
from biocnn.networks.backbones import load_weights, replace_head
from biocnn.networks.densenet import crop_centre, log_mean_exp
from biocnn.networks.spec import build, describe

torch.manual_seed(0)
NETWORKS = [
    LeNet5(),
    SmallDenseNet(layers=(1, 2)),
    SmallDenseNet(layers=(1, 1), centre=None, stem_stride=1),
    Backbone("torchvision.models.resnet18", small_stem=True),
    Backbone("torchvision.models.shufflenet_v2_x0_5"),
    Backbone("timm.resnet10t"),
]


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: type(network).__name__)
def test_contract_of_every_network(network: nn.Module) -> None:
    network.eval()
    torch.manual_seed(1)
    image = torch.rand(3, 3, 96, 96, requires_grad=True)
    logits = network(image)
    assert logits.shape == (3, 1)
    assert not torch.equal(logits[0], logits[1])
    logits.sum().backward()
    assert image.grad is not None
    assert (image.grad != 0).flatten(1).any(1).all()  # every image reaches its logit
    spec = describe(network)
    assert spec is not None
    again = build(spec)
    again.load_state_dict(network.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(again.eval()(image), logits, rtol=0, atol=0)


def test_samples_do_not_mix_in_evaluation() -> None:
    network = SmallDenseNet(layers=(1, 2)).eval()
    image = torch.rand(4, 3, 96, 96)
    with torch.inference_mode():
        alone = torch.cat([network(image[item : item + 1]) for item in range(4)])
        torch.testing.assert_close(network(image), alone, rtol=1e-4, atol=1e-5)  # other kernels for other batch sizes


def test_lenet_names_the_size_it_was_made_for() -> None:
    with pytest.raises(ValueError, match=r"made for 96x96 px, received \(1, 3, 64, 64\)"):
        LeNet5()(torch.rand(1, 3, 64, 64))
    with pytest.raises(ValueError, match="at least 16x16 px"):
        LeNet5(input_size=12)
    assert LeNet5(input_size=64)(torch.rand(1, 3, 64, 64)).shape == (1, 1)


@pytest.mark.parametrize(("size", "cells"), [(6, 2), (12, 4), (7, 3), (5, 1), (1, 1)])
def test_centre_is_symmetric(size: int, cells: int) -> None:
    inside = torch.zeros(size, size, dtype=torch.bool)
    margin = (size - cells) // 2
    inside[margin : size - margin, margin : size - margin] = True
    features = torch.rand(2, 3, size, size)
    assert torch.equal(crop_centre(features, 1 / 3).flatten(2), features[:, :, inside])


def test_smooth_maximum() -> None:
    logits = torch.randn(4, 2, 5, 3, dtype=torch.float64)
    pooled = log_mean_exp(logits)
    torch.testing.assert_close(pooled, logits.exp().mean((2, 3)).log(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(log_mean_exp(torch.full((1, 1, 4, 4), 700.0)), torch.tensor([[700.0]]))  # no overflow
    assert (pooled <= logits.amax((2, 3))).all()
    assert (pooled >= logits.amax((2, 3)) - math.log(15)).all()


def test_label_is_about_the_centre() -> None:
    """With one place far more positive than all others, the logit follows it inside the centre only."""
    network = SmallDenseNet(layers=(0, 0, 0), dropout=0.0).eval()
    features = torch.zeros(1, 1, 12, 12)
    pooled = {}
    for name, place in {"centre": (5, 6), "border": (1, 2)}.items():
        places = features.clone()
        places[0, 0, place[0], place[1]] = 50.0
        pooled[name] = float(log_mean_exp(crop_centre(places, network.centre)))
    assert pooled["centre"] == pytest.approx(50 - math.log(16), abs=1e-5)
    assert pooled["border"] == 0


def test_centre_is_checked() -> None:
    with pytest.raises(ValueError, match=r"centre must be in 0\.\.1"):
        SmallDenseNet(centre=1.5)


def test_head_of_any_classifier_is_replaced() -> None:
    nested = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 1000)))
    assert replace_head(nested, 1)(torch.rand(2, 3, 2, 2)).shape == (2, 1)
    with pytest.raises(ValueError, match="has no linear layer that could give 1 logits"):
        Backbone("torchvision.models.squeezenet1_1")


def test_unknown_architectures_are_named() -> None:
    with pytest.raises(ValueError, match="torchvision has no classifier 'resnet17'"):
        Backbone("torchvision.models.resnet17")
    with pytest.raises(ValueError, match="timm has no model 'resnet17x'"):
        Backbone("timm.resnet17x")
    with pytest.raises(ValueError, match=r"'torchvision\.models\.<name>' or 'timm\.<name>', received 'resnet18'"):
        Backbone("resnet18")
    with pytest.raises(ValueError, match="small_stem needs a network with conv1 and maxpool"):
        Backbone("torchvision.models.shufflenet_v2_x0_5", small_stem=True)


def test_small_stem_keeps_the_resolution() -> None:
    network = Backbone("torchvision.models.resnet18", small_stem=True).network
    assert network.layer1(network.maxpool(network.conv1(torch.rand(1, 3, 96, 96)))).shape[2:] == (96, 96)


def test_weights_from_a_file_and_their_errors(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from biocnn.errors import CheckpointError

    donor = Backbone("torchvision.models.resnet18", num_logits=5)
    torch.save(donor.network.state_dict(), tmp_path / "weights.pt")
    taken = Backbone("torchvision.models.resnet18", weights=str(tmp_path / "weights.pt"))
    assert torch.equal(taken.network.layer4[1].conv2.weight, donor.network.layer4[1].conv2.weight)
    assert taken.network.fc.out_features == 1
    assert describe(taken) == {
        "class_path": "biocnn.networks.backbones.Backbone",
        "init_args": {
            "architecture": "torchvision.models.resnet18",
            "num_logits": 1,
            "weights": None,  # a checkpoint holds the weights; making the network again must not need the file
            "small_stem": False,
        },
    }
    with pytest.raises(CheckpointError, match="no weights file"):
        load_weights(taken.network, tmp_path / "missing.pt")
    (tmp_path / "text.pt").write_text("no weights")
    with pytest.raises(CheckpointError, match="not a file of weights that torch can load safely"):
        load_weights(taken.network, tmp_path / "text.pt")
    with pytest.raises(CheckpointError, match=r"tensors fit LeNet5\. It holds the weights of another"):
        load_weights(LeNet5(), tmp_path / "weights.pt")
