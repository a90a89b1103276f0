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
