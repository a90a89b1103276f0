"""Networks as plain data: how a checkpoint remembers what to build, without running code from the file."""

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import torchvision
from torch import nn

from biocnn.errors import CheckpointError

TRUSTED_PACKAGES = ("biocnn.networks", "torchvision.models", "segmentation_models_pytorch", "monai.networks")
"""Only network classes defined here, and torchvision's listed models, are made from a name in a checkpoint. Anything
else the user passes as an object. timm's models come through :class:`biocnn.networks.Backbone`."""

_PLAIN = (bool, int, float, str, type(None))

# Arguments by which networks of the trusted packages fetch pretrained weights, and what keeps them from it.
_NO_PRETRAINED: dict[str, bool | None] = {
    "encoder_weights": None,
    "weights": None,
    "weights_backbone": None,
    "pretrained_url": None,
    "pretrained": False,
    "pretrained_backbone": False,
}


def is_trusted(class_path: str) -> bool:
    """Whether a class path may be looked up: in a trusted package, and nowhere private.

    Looking up is not calling: :func:`build` calls network classes and listed models only, never any other function that
    happens to be importable from there.
    """
    private = any(part.startswith("_") for part in class_path.split("."))
    return not private and any(class_path.startswith(f"{name}.") for name in TRUSTED_PACKAGES)


def is_plain(value: Any) -> bool:
    """Whether a value is made of numbers, strings, None, lists, tuples and dicts only.

    A dict with the key ``class_path`` is not plain: jsonargparse would make an object of it.
    """
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and key != "class_path" and is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(is_plain(item) for item in value)
    return isinstance(value, _PLAIN)


def describe(network: nn.Module) -> dict[str, Any] | None:
    """Description from which :func:`build` makes the same network, without its weights.

    Our own networks carry their arguments as ``init_args``; :func:`remember` attaches a description to any other.

    Returns:
        ``{"class_path": str, "init_args": dict}``, or None when there is none: then `biocnn.load` has to be given
        the network.
    """
    remembered = getattr(network, "biocnn_spec", None)
    if remembered is not None:
        return dict(remembered)
    init_args = getattr(network, "init_args", None)
    if init_args is None:
        return None
    cls = type(network)
    return {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": dict(init_args)}


def remember(network: nn.Module, class_path: str, init_args: Mapping[str, Any]) -> nn.Module:
    """Attach how a network was made, if that is a trusted class path with plain arguments; returns the network.

    Pretrained weights that it started from are left out: the checkpoint holds the trained ones.
    """
    if describe(network) is None and is_trusted(class_path) and is_plain(init_args):
        kept = {**init_args, **_without_pretrained(init_args)}
        network.biocnn_spec = {"class_path": class_path, "init_args": kept}  # type: ignore[assignment]
    return network


def _without_pretrained(given: Mapping[str, Any]) -> dict[str, bool | None]:
    """The arguments that would fetch weights, turned off; other values of these names, such as lists, are left."""
    return {name: off for name, off in _NO_PRETRAINED.items() if given.get(name) and not _is_list(given[name])}


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple, Mapping))


def build(spec: Mapping[str, Any]) -> nn.Module:
    """Make a network from its description; its weights are freshly initialised, and never fetched.

    Args:
        spec: ``{"class_path": str, "init_args": dict}``.

    Raises:
        CheckpointError: as :func:`resolve`.
    """
    factory, init_args = resolve(spec)
    network: nn.Module = factory(**init_args)
    return remember(network, spec["class_path"], init_args)


def resolve(spec: Any) -> tuple[Callable[..., nn.Module], dict[str, Any]]:
    """What :func:`build` calls for a description, and with which arguments; nothing is called yet.

    Args:
        spec: from a file, so it may be anything.

    Raises:
        CheckpointError: if the class path is not trusted, its package is not installed, it names no network, or the
            arguments are not plain.
    """
    given = spec if isinstance(spec, Mapping) else {}
    class_path, init_args = given.get("class_path"), given.get("init_args", {})
    if not isinstance(class_path, str) or not is_trusted(class_path):
        raise CheckpointError(
            f"The network {class_path!r} is not made by name: only {', '.join(TRUSTED_PACKAGES)} are trusted. Make "
            "it yourself and pass it: biocnn.load(path, network=...)."
        )
    if not isinstance(init_args, Mapping) or not is_plain(init_args):
        raise CheckpointError(
            f"The arguments of the network {class_path!r} are not plain: only numbers, strings, None, lists and dicts "
            "without a class_path are. Make it yourself and pass it: biocnn.load(path, network=...)."
        )
    factory = _factory(class_path)
    defaults = {name: parameter.default for name, parameter in inspect.signature(factory).parameters.items()}
    known = {name: value for name, value in defaults.items() if value is not inspect.Parameter.empty}
    return factory, {**init_args, **_without_pretrained({**known, **init_args})}


def _factory(class_path: str) -> Callable[..., nn.Module]:
    """The class or torchvision builder of a trusted class path.

    Raises:
        CheckpointError: if it cannot be imported or is neither of the two.
    """
    module_name, _, name = class_path.rpartition(".")
    if module_name == "torchvision.models" and name in torchvision.models.list_models(module=torchvision.models):
        # The checkpoint holds the weights; initial ones must not be fetched again.
        return lambda **arguments: torchvision.models.get_model(name, **{**arguments, "weights": None})
    try:
        found = getattr(import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        message = f"The network {class_path!r} cannot be imported ({error}). Install its package."
        raise CheckpointError(message) from error
    is_network = isinstance(found, type) and issubclass(found, nn.Module)
    if not (is_network and is_trusted(f"{found.__module__}.{found.__qualname__}")):
        raise CheckpointError(f"{class_path!r} is no network class of a trusted package and is not called.")
    return found
