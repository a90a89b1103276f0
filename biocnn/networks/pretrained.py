"""Weights of parts of torchvision's networks, from its server or from a local file."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models import WeightsEnum

from biocnn.errors import CheckpointError, DownloadError

DEFAULT = "DEFAULT"


def load_features(features: nn.Module, weights: str | Path, default: WeightsEnum, network: str) -> None:
    """Load pretrained weights into a network that is the first part of the `features` of one of torchvision.

    Args:
        features: with the names and shapes of the tensors in the `features` of the whole network.
        weights: :data:`DEFAULT` for torchvision's own, which are downloaded to the cache of `torch.hub`
            (``$TORCH_HOME``) when they are not there; or the path of a file with the state dict of the whole
            network, or of its `features` only.
        default: torchvision's weights, which say where they are.
        network: name in torchvision, for messages.

    Raises:
        DownloadError: if the weights cannot be fetched.
        CheckpointError: if the file cannot be read or is of another architecture.
    """
    if weights == DEFAULT:
        source, state = default.url, _fetch(default, network)
    else:
        source, state = str(weights), _read(Path(weights), default.url, network)
    features.load_state_dict(_select(state, features, source, network))


def _fetch(default: WeightsEnum, network: str) -> dict[str, Any]:
    try:
        state: dict[str, Any] = default.get_state_dict(
            progress=True, check_hash=True, map_location="cpu", weights_only=True
        )
    except Exception as error:  # the network, the disk, the hash, and half a dozen types for a torn file in the cache
        raise DownloadError(
            f"The weights of {network} could not be fetched from {default.url} ({error}). Fetch the file on a machine "
            "with a connection and pass its path as weights, or put it into "
            f"{Path(torch.hub.get_dir()) / 'checkpoints'}; delete the one that is there, if it is damaged."
        ) from error
    return state


def _read(path: Path, url: str, network: str) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(
            f"There is no weights file {path}. Give the path of the state dict of torchvision's {network}, which is at "
            f"{url}, 'DEFAULT' to have it downloaded, or null for random weights."
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises half a dozen types for a file that is not one of its own
        raise CheckpointError(f"{path} is not a file of weights that torch can load safely: {error}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: expected a state dict, received a {type(state).__name__}.")
    return state


def _select(state: dict[str, Any], features: nn.Module, source: str, network: str) -> dict[str, torch.Tensor]:
    """The tensors of `features`; others are left out."""
    prefix = "features." if any(name.startswith("features.") for name in state) else ""
    selected = {}
    for name, own in features.state_dict().items():
        value = state.get(prefix + name)
        if not isinstance(value, torch.Tensor) or value.shape != own.shape:
            received = tuple(value.shape) if isinstance(value, torch.Tensor) else "none"
            raise CheckpointError(
                f"{source}: expected {prefix + name!r} of shape {tuple(own.shape)}, as in torchvision's {network}, "
                f"received {received}. It holds the weights of another architecture."
            )
        selected[name] = value
    return selected
