import os
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from biocnn.errors import CheckpointError
from biocnn.networks import LeNet5
from biocnn.networks.spec import build, describe, is_plain, is_trusted, remember


class OwnNetwork(nn.Module):
    pass


def test_only_listed_packages_are_resolved() -> None:
    assert is_trusted("torchvision.models.resnet18")
    assert not is_trusted("torchvision.modelsevil.x")
    assert not is_trusted("os.system")
    with pytest.raises(CheckpointError, match=r"'os\.system' is not made by name"):
        build({"class_path": "os.system", "init_args": {"command": "true"}})


def test_untrusted_modules_are_not_even_imported(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "evil_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(CheckpointError):
        build({"class_path": "evil_module.Network", "init_args": {}})


@pytest.mark.parametrize(
    "class_path",
    [
        "torchvision.models.list_models",
        "torchvision.models.get_model",
        "torchvision.models.resnet.load_state_dict_from_url",
        "torchvision.models._api.load_state_dict_from_url",
        "timm.models._builder.load_state_dict_from_url",
        "biocnn.networks.backbones.load_weights",
        "biocnn.networks.spec.import_module",
        "torchvision.models.resnet17",
        "torchvision.models.resnet.Callable",
    ],
)
def test_functions_and_private_names_are_never_called(class_path: str) -> None:
    with pytest.raises(CheckpointError, match=r"not made by name|not called|cannot be imported"):
        build({"class_path": class_path, "init_args": {}})


def test_pickled_code_is_not_reached_through_a_trusted_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, ("touch pwned",)

    monkeypatch.chdir(tmp_path)
    torch.save(Evil(), tmp_path / "evil.pth")
    url = (tmp_path / "evil.pth").as_uri()
    for function in (
        "torchvision.models._api.load_state_dict_from_url",
        "torchvision.models.resnet.load_state_dict_from_url",
    ):
        with pytest.raises(CheckpointError):
            build({"class_path": function, "init_args": {"url": url, "model_dir": str(tmp_path / "hub")}})
    assert not (tmp_path / "pwned").exists()


def test_weights_of_torchvision_are_not_fetched_again() -> None:
    network = build(
        {"class_path": "torchvision.models.resnet18", "init_args": {"weights": "DEFAULT", "num_classes": 1}}
    )
    assert network.fc.out_features == 1


def test_functions_of_torchvision_are_remembered() -> None:
    network = build({"class_path": "torchvision.models.mobilenet_v3_small", "init_args": {"num_classes": 1}})
    assert isinstance(network, torchvision.models.MobileNetV3)
    assert describe(network) == {
        "class_path": "torchvision.models.mobilenet_v3_small",
        "init_args": {"num_classes": 1},
    }


def test_own_networks_of_a_user_have_no_description() -> None:
    assert describe(OwnNetwork()) is None
    assert describe(remember(OwnNetwork(), "my.module.OwnNetwork", {})) is None
    assert describe(remember(LeNet5(), "my.module.LeNet5", {}))["class_path"] == "biocnn.networks.lenet.LeNet5"


def test_plain_values() -> None:
    assert is_plain({"a": [1, 2.5, "x", None, (True,)]})
    assert not is_plain({"a": object()})
    assert not is_plain({1: "a"})
    assert not is_plain({"a": [{"class_path": "os.system"}]})  # says what to make, which is more than data


def test_arguments_that_describe_an_object_are_neither_remembered_nor_used() -> None:
    init_args = {"num_classes": 1, "norm_layer": {"class_path": "os.system"}}
    network = torchvision.models.resnet18(num_classes=1)
    assert describe(remember(network, "torchvision.models.resnet18", init_args)) is None
    with pytest.raises(CheckpointError, match="are not plain: only numbers"):
        build({"class_path": "torchvision.models.resnet18", "init_args": init_args})


PRETRAINED = [
    ("segmentation_models_pytorch.Unet", {"encoder_name": "resnet18", "encoder_weights": "imagenet", "classes": 1}),
    ("segmentation_models_pytorch.Unet", {"encoder_name": "resnet18"}),  # fetches weights by default
    ("monai.networks.nets.EfficientNetBN", {"model_name": "efficientnet-b0", "pretrained": True}),
    ("monai.networks.nets.EfficientNetBN", {"model_name": "efficientnet-b0"}),  # this one, too
    ("biocnn.networks.Backbone", {"architecture": "torchvision.models.resnet18", "weights": "DEFAULT"}),
    ("biocnn.networks.csrnet.CSRNet", {"weights": "DEFAULT"}),
]


@pytest.mark.parametrize(("class_path", "init_args"), PRETRAINED, ids=range(len(PRETRAINED)))
def test_building_again_fetches_no_pretrained_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, class_path: str, init_args: dict[str, object]
) -> None:
    pytest.importorskip(class_path.partition(".")[0])
    # Empty caches and a proxy that is not there: whatever were fetched would fail.
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    network = build({"class_path": class_path, "init_args": init_args})  # as an older version stored it
    again = build(describe(network))
    assert again.state_dict().keys() == network.state_dict().keys()
    assert not list(tmp_path.rglob("*.pth"))


def test_what_is_remembered_names_no_pretrained_weights() -> None:
    given = {"encoder_weights": "imagenet", "pretrained": True, "weights": "DEFAULT", "classes": 1}
    spec = describe(remember(nn.Identity(), "segmentation_models_pytorch.Unet", given))
    assert spec["init_args"] == {"encoder_weights": None, "pretrained": False, "weights": None, "classes": 1}
    assert given["encoder_weights"] == "imagenet"
    # Weights that are numbers are no pretrained ones.
    kept = describe(remember(nn.Identity(), "monai.networks.nets.UNet", {"weights": [0.5, 0.5]}))
    assert kept["init_args"] == {"weights": [0.5, 0.5]}
