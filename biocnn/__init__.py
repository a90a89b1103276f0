"""Pipelines for biomedical images: patches, tubular structures and cell counts.

Importing the package imports neither torch nor Lightning; `biocnn.load` brings them in when it is first used.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# albumentations asks a package index for newer versions when it is imported, which blocks for seconds on an
# offline cluster node. It reads this variable once, so it has to be set before anything imports it.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
# OpenMP threads that wait for each other spin by default: on a machine that does anything else at the same time, a
# small training step on the CPU then takes tens of times as long. It is read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
__all__ = ["__version__", "load"]

if TYPE_CHECKING:
    from biocnn.inference.load import load

_LAZY = {"load": "biocnn.inference.load"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'biocnn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
