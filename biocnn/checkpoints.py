"""Checkpoints that are whole or not there, read without running code from them."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import CheckpointIO
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from biocnn.errors import CheckpointError
from biocnn.files import atomic_path

LAST, BEST = "last.ckpt", "best.ckpt"
CHECKPOINT_FORMAT = 1
WEIGHTS = ".safetensors"
_PREFIX = "biocnn."  # of what biocnn writes into the header of safetensors


class AtomicCheckpointIO(CheckpointIO):
    """Writes a checkpoint beside its target, syncs it and renames it; reads with `weights_only=True`.

    Lightning writes to the system's temporary folder and copies over the old file when that is another file system:
    a process killed in between leaves neither the old nor the new checkpoint.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write a checkpoint, whole or not at all; a full disk leaves the old one as it was."""
        with atomic_path(Path(path)) as temporary:
            torch.save(checkpoint, temporary)

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint; `weights_only` is always on, whatever is passed."""
        return read_checkpoint(path, map_location)

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


def read_checkpoint(path: str | os.PathLike[str], map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint from a local file without running code from it.

    Args:
        path: of the file. URLs are refused: torch and Lightning would run code that such a file contains.
        map_location: as in :func:`torch.load`.

    Raises:
        CheckpointError: if it is a URL, missing, torn, or holds anything but tensors and plain data.
    """
    path = _local(path)
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # torch.load raises half a dozen types for a file that is not one of its own
        # The words of torch tell how to load such a file all the same; they are in the traceback alone.
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint. It is torn, or holds more than tensors and plain data, which is "
            f"never loaded, as it may run code ({type(error).__name__})."
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise CheckpointError(f"{path} is not a Lightning checkpoint: it has no 'state_dict'.")
    return checkpoint


def _local(path: str | os.PathLike[str]) -> Path:
    if "://" in str(path):
        raise CheckpointError(f"{path} is a URL. Download the checkpoint from a source you trust and pass its path.")
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint {path.resolve()}.")
    return path


def write_weights(path: str | os.PathLike[str], checkpoint: dict[str, Any]) -> None:
    """Write what predicts of a checkpoint as safetensors, a format that has no place for code; whole or not at all.

    The header holds the ``biocnn`` section as text, each entry as JSON: ``biocnn.task``, ``biocnn.network`` (how the
    network is made), ``biocnn.settings`` (with the normalisation), ``biocnn.data`` (channels, pixel size, fingerprint),
    thresholds and so on. Tensors have the names of the state dict, ``network.`` first. A training cannot be continued
    from it.

    Args:
        path: target ``.safetensors``.
        checkpoint: as of :func:`read_biocnn_checkpoint`.
    """
    # Copies, as the format takes neither other layouts than the plain one nor tensors that share memory.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in checkpoint["state_dict"].items()
    }
    said = {f"{_PREFIX}{name}": json.dumps(value) for name, value in checkpoint["biocnn"].items()}
    with atomic_path(Path(path)) as temporary:
        save_file(tensors, temporary, {"format": "pt", **said})


def _read_weights(path: Path) -> dict[str, Any]:
    """The inverse of :func:`write_weights`; of a file of another program without the ``biocnn`` section."""
    try:
        with safe_open(path, "pt") as file:
            said = {name: text for name, text in (file.metadata() or {}).items() if name.startswith(_PREFIX)}
            section = {name.removeprefix(_PREFIX): json.loads(text) for name, text in said.items()}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 it is no dict
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read as safetensors: it is torn, or no such file ({error})."
        ) from error
    return {"state_dict": tensors, **({"biocnn": section} if section else {})}


def read_biocnn_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint that biocnn wrote, or the weights of :func:`write_weights` (``.safetensors``).

    Raises:
        CheckpointError: as :func:`read_checkpoint`, and if it was written by another program or a newer format.
    """
    weights = Path(path).suffix.lower() == WEIGHTS
    checkpoint = _read_weights(_local(path)) if weights else read_checkpoint(path)
    stored = checkpoint.get("biocnn")
    if not isinstance(stored, dict):
        raise CheckpointError(f"{path} was not written by biocnn: it does not say how to rebuild its network.")
    if stored.get("format") != CHECKPOINT_FORMAT:
        raise CheckpointError(
            f"{path} has format {stored.get('format')}, this version of biocnn reads format {CHECKPOINT_FORMAT}."
        )
    return checkpoint


def update_biocnn_section(path: str | os.PathLike[str], **values: Any) -> None:
    """Replace entries of the checkpoint's ``biocnn`` section, such as its calibration; whole or not at all."""
    checkpoint = read_biocnn_checkpoint(path)
    checkpoint["biocnn"].update(values)
    if Path(path).suffix.lower() == WEIGHTS:
        write_weights(path, checkpoint)
    else:
        AtomicCheckpointIO().save_checkpoint(checkpoint, path)


def remove_torn_files(folder: Path) -> list[Path]:
    """Delete the temporary files that a killed process left in a checkpoint folder; returns them."""
    torn = sorted(folder.glob(".*.part.ckpt"))
    for path in torn:
        path.unlink()
    return torn
