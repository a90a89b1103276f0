"""torchvision and timm classifiers, adapted to the number of logits and to small patches."""

from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from biocnn.errors import CheckpointError


class Backbone(nn.Module):
    """A classifier of torchvision or timm with a new head.

    Args:
        architecture: ``"torchvision.models.resnet18"``, ``"timm.convnext_atto"`` and so on.
        num_logits: outputs; 1 for two classes.
        weights: None for random weights; ``"DEFAULT"`` for the library's pretrained ones, which are downloaded;
            or the path of a file with a state dict. A head of another shape in the weights is left out.
        small_stem: replace the first strided convolution and pooling of a ResNet-like network by a 3x3
            convolution of stride 1, so that 96 px patches keep their detail. Only for networks with `conv1` and
            `maxpool`.

    Raises:
        ValueError: if the architecture is unknown, or `small_stem` is asked of a network without such a stem.
        CheckpointError: if the weights file cannot be read or is of another architecture.
    """

    def __init__(
        self,
        architecture: str = "torchvision.models.resnet18",
        num_logits: int = 1,
        weights: str | None = None,
        small_stem: bool = False,
    ) -> None:
        super().__init__()
        # A checkpoint holds the trained weights, so making the network again must not fetch the initial ones.
        self.init_args = {
            "architecture": architecture,
            "num_logits": num_logits,
            "weights": None,
            "small_stem": small_stem,
        }
        pretrained = weights == "DEFAULT"
        self.network = _make(architecture, num_logits, pretrained)
        if small_stem:
            _replace_stem(self.network, architecture)
        if weights is not None and not pretrained:
            load_weights(self.network, weights)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (B, num_logits) of normalised images (B, 3, H, W)."""
        logits: torch.Tensor = self.network(image)
        return logits


def _make(architecture: str, num_logits: int, pretrained: bool) -> nn.Module:
    library, _, name = architecture.rpartition(".")
    if library == "torchvision.models":
        if name not in torchvision.models.list_models(module=torchvision.models):
            raise ValueError(f"torchvision has no classifier {name!r}; see torchvision.models.list_models().")
        network: nn.Module = torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None)
        return replace_head(network, num_logits)
    if library == "timm":
        import timm

        if not timm.is_model(name):
            raise ValueError(f"timm has no model {name!r}; see timm.list_models().")
        model: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=num_logits)
        return model
    raise ValueError(f"architecture must be 'torchvision.models.<name>' or 'timm.<name>', received {architecture!r}.")


def replace_head(network: nn.Module, num_logits: int) -> nn.Module:
    """Replace the last linear layer by one of `num_logits` outputs.

    Raises:
        ValueError: if there is none. SqueezeNet, for one, ends in a ReLU, which has no negative logits.
    """
    heads = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not heads:
        raise ValueError(f"{type(network).__name__} has no linear layer that could give {num_logits} logits.")
    parent_name, _, child = heads[-1].rpartition(".")
    head = network.get_submodule(heads[-1])
    assert isinstance(head, nn.Linear)  # by the way it was chosen
    setattr(network.get_submodule(parent_name), child, nn.Linear(head.in_features, num_logits))
    return network


def _replace_stem(network: nn.Module, architecture: str) -> None:
    stem = getattr(network, "conv1", None)
    if not isinstance(stem, nn.Conv2d) or not hasattr(network, "maxpool"):
        raise ValueError(f"small_stem needs a network with conv1 and maxpool; {architecture} has none.")
    network.conv1 = nn.Conv2d(stem.in_channels, stem.out_channels, 3, padding=1, bias=stem.bias is not None)
    network.maxpool = nn.Identity()


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Load a state dict from a local file into a network; tensors of another shape (the head) are left out.

    Raises:
        CheckpointError: if the file cannot be read, or fewer than half of the tensors fit: another architecture.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"There is no weights file {path}. Give a local file, 'DEFAULT' or null.")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises half a dozen types for a file that is not one of its own
        raise CheckpointError(f"{path} is not a file of weights that torch can load safely: {error}") from error
    state = state.get("state_dict", state)
    own = network.state_dict()
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    if len(fitting) < len(own) / 2:
        raise CheckpointError(
            f"{path}: only {len(fitting)} of {len(own)} tensors fit {type(network).__name__}. It holds the weights "
            "of another architecture."
        )
    network.load_state_dict(fitting, strict=False)
