"""From a checkpoint to a file in one of the formats."""

from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import nn

from biocnn.checkpoints import WEIGHTS, read_biocnn_checkpoint, write_weights
from biocnn.errors import CheckpointError, DataError
from biocnn.export.bioimage_package import write_bioimage_package
from biocnn.export.model_card import Card
from biocnn.export.programs import write_onnx, write_torch
from biocnn.export.whole_model import WholeModel, describe_model
from biocnn.inference.load import load

FORMATS = {"onnx": ".onnx", "torch": ".pt2", "safetensors": WEIGHTS, "bioimageio": ".bioimageio.zip"}
"""Formats, and how their files end."""


def export(
    checkpoint: str | Path,
    format: str,
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
    network: nn.Module | None = None,
    card: Card | None = None,
    image: NDArray[Any] | None = None,
) -> tuple[Path, str]:
    """Export a trained model; what the files take and give is said in :mod:`biocnn.export.whole_model`.

    Args:
        checkpoint: that biocnn wrote; read without running code from it.
        format: one of :data:`FORMATS`: ``"onnx"``; ``"torch"`` for `torch.export`; ``"safetensors"`` for weights that
            :func:`biocnn.load` reads; ``"bioimageio"`` for a package of bioimage.io.
        out: target; beside the checkpoint and named as it by default.
        overwrite: whether a file that is there may be replaced, never the checkpoint.
        network: as for :func:`biocnn.load`, if it cannot be made by name.
        card: for ``"bioimageio"``, who made the model and its licence.
        image: for ``"bioimageio"``, (H, W, C) as stored, to test it with and for its cover.

    Returns:
        The path, and how the file was compared with the model, in words.

    Raises:
        CheckpointError: if the checkpoint cannot be read or is no local file, a package is missing, or the network
            cannot be exported in this format. Nothing is written then.
        DataError: if the format is unknown, or the target is there already or ends in another suffix.
    """
    if format not in FORMATS:
        raise DataError(f"There is no format {format!r}; choose one of {', '.join(FORMATS)}.")
    stored = read_biocnn_checkpoint(checkpoint)
    suffix = FORMATS[format]
    target = Path(checkpoint).with_suffix(suffix) if out is None else Path(out)
    if target.suffix.lower() != Path(f"model{suffix}").suffix:
        raise DataError(f"{target}: a file of the format {format} ends in {suffix}.")
    if target.resolve() == Path(checkpoint).resolve():
        raise DataError(f"{target} is the checkpoint itself. Give another name.")
    if target.exists() and not overwrite:
        raise DataError(f"{target} is there already. Choose another name, or pass --overwrite.")
    if format == "safetensors":
        write_weights(target, stored)
        return target, "weights as they are; biocnn.load reads them"
    task = load(checkpoint, network, device="cpu").task
    try:
        model, said = WholeModel(task), describe_model(task)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint}: {error}") from error
    if format == "bioimageio":
        return target, write_bioimage_package(target, model, said, card or Card(), image)
    return target, (write_onnx if format == "onnx" else write_torch)(target, model, said)
