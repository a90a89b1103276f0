"""A package of bioimage.io: a zip of a description, weights, a test, a page and a cover (model description 0.5).

Preprocessing and activation lie inside the weights, so the description has no processing steps but the padding that a
consumer does. Weights are TorchScript, which DeepImageJ, QuPath and ilastik run, and ONNX where its packages are
installed.
"""

import datetime
import re
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from biocnn.errors import CheckpointError, DataError
from biocnn.export.model_card import Card, manifest_of, model_page, title_of
from biocnn.export.programs import TOLERANCE, need, opset_of, write_onnx, write_torchscript
from biocnn.export.whole_model import Sizes, WholeModel
from biocnn.files import atomic_path, file_digest

FORMAT_VERSION = "0.5.4"
_TEST_SIDE = 128  # px, at most, of the image that the package is tested with
_TAGS = {"ClassificationTask": "classification", "SegmentationTask": "segmentation", "CountingTask": "counting"}


def write_bioimage_package(
    path: Path, model: WholeModel, said: Mapping[str, Any], card: Card, image: NDArray[Any] | None = None
) -> str:
    """Write a package that bioimage.io takes.

    Args:
        path: target ``.zip``.
        model: to export.
        said: of :func:`biocnn.export.whole_model.describe_model`.
        card: with at least one author, and a licence.
        image: (H, W, C) as stored, for the test and the cover; noise when None.

    Returns:
        What was compared and validated, in words.

    Raises:
        CheckpointError: if author or licence are missing, the weights cannot be written, or the package is not valid.
        DataError: if the image has other channels, or is too small.
    """
    if not card.authors or not card.licence:
        raise CheckpointError(
            "A package of bioimage.io names who made the model and under which licence it is given away: pass --author "
            "NAME, several times if need be, and --license, an identifier of SPDX such as CC-BY-4.0."
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        test = _test_input(model, said, image)
        weights, compared = _write_weights(folder, model, said)
        with torch.inference_mode():
            answer = model(torch.from_numpy(test)).numpy()
        np.save(folder / "test_input.npy", test)
        np.save(folder / "test_output.npy", answer)
        _cover(test, answer, said).save(folder / "cover.png")
        (folder / "README.md").write_text(model_page(card, said, compared), encoding="utf-8")
        entry = _description(folder, said, card, model.sizes, weights)
        entry["config"] = {"bioimageio": {"reproducibility_tolerance": [_tolerance(answer)]}, "biocnn": dict(said)}
        (folder / "rdf.yaml").write_text(yaml.safe_dump(entry, sort_keys=False, allow_unicode=True), encoding="utf-8")
        with atomic_path(path) as temporary:
            with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
                for file in sorted(folder.iterdir()):
                    archive.write(file, file.name)
            return f"{compared}; {validate(temporary)}"


def _write_weights(folder: Path, model: WholeModel, said: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Weights for the description, and what was compared."""
    write_torchscript(folder / "weights.pt", model)
    version = torch.__version__.split("+")[0]
    weights: dict[str, Any] = {"torchscript": {**_file(folder, "weights.pt"), "pytorch_version": version}}
    compared = "TorchScript compared with the model"
    try:
        need("onnx", "onnx", "onnxscript")
    except CheckpointError:
        return weights, f"{compared}; no ONNX, for which pip install 'biocnn[onnx]'"
    said_of_onnx = write_onnx(folder / "weights.onnx", model, said)
    opset = opset_of(folder / "weights.onnx")
    weights["onnx"] = {**_file(folder, "weights.onnx"), "opset_version": opset, "parent": "torchscript"}
    return weights, f"{compared}; ONNX {said_of_onnx}"


def _file(folder: Path, name: str) -> dict[str, str]:
    return {"source": name, "sha256": file_digest(folder / name)}


def _test_input(model: WholeModel, said: Mapping[str, Any], image: NDArray[Any] | None) -> NDArray[np.float32]:
    """(1, C, H, W): the centre of an image, or smooth noise in the range of the training."""
    sizes = model.sizes
    side = max(_TEST_SIDE // sizes.multiple, 1) * sizes.multiple
    sides = sizes.fixed or (side, side)
    if image is None:
        noise = np.random.default_rng(0).normal(size=(sizes.channels, *sides))
        smooth = ndimage.gaussian_filter(noise, (0, 2, 2), mode="wrap")
        low, high = said["input"]["range"]
        unit = (smooth - smooth.min()) / (smooth.max() - smooth.min())
        return (low + np.round(unit * (high - low))).astype(np.float32)[None]
    return _centre(image, sizes, sides)


def _centre(image: NDArray[Any], sizes: Sizes, sides: tuple[int, int]) -> NDArray[np.float32]:
    picture = image[..., None] if image.ndim == 2 else image
    least = sizes.fixed or (sizes.multiple, sizes.multiple)
    if picture.ndim != 3 or picture.shape[2] != sizes.channels or any(np.less(picture.shape[:2], least)):
        raise DataError(
            f"The example has the shape {image.shape}; expected rows, columns and {sizes.channels} channel(s), and at "
            f"least {least[0]}x{least[1]} px."
        )
    place = []
    for length, side in zip(picture.shape[:2], sides, strict=True):
        kept = side if sizes.fixed else min(side, length // sizes.multiple * sizes.multiple)
        place.append(slice((length - kept) // 2, (length - kept) // 2 + kept))
    return np.ascontiguousarray(np.moveaxis(picture[tuple(place)], 2, 0)[None], dtype=np.float32)


def _cover(image: NDArray[np.float32], answer: NDArray[np.float32], said: Mapping[str, Any]) -> Image.Image:
    """The test image, and beside it the map that the model makes of it; of a patch, the image only."""
    low, high = said["input"]["range"]
    shown = np.clip((image[0] - low) / (high - low), 0, 1)
    panels = [np.moveaxis(shown if len(shown) == 3 else np.repeat(shown[:1], 3, axis=0), 0, 2)]
    if answer.ndim == 4:
        white = 1.0 if said["output"]["name"] == "probability" else max(float(answer.max()), 1e-12)
        panels.append(np.repeat(np.clip(answer[0, 0] / white, 0, 1)[..., None], 3, axis=2))
    return Image.fromarray(np.round(255 * np.concatenate(panels, axis=1)).astype(np.uint8))


def _description(
    folder: Path, said: Mapping[str, Any], card: Card, sizes: Sizes, weights: Mapping[str, Any]
) -> dict[str, Any]:
    """What goes into ``rdf.yaml``, but for its config."""
    manifest = manifest_of(said)
    cites = [{"text": text, "doi": doi.removeprefix("https://doi.org/")} for text, doi in card.cites]
    if manifest is not None and manifest.homepage is not None:
        cites.append({"text": manifest.citation, "url": manifest.homepage})
    # Names there have letters, digits and a few signs only.
    title = re.sub(r"[^\w+\- ()]", "-", title_of(card, said), flags=re.ASCII)[:64]
    return {
        "format_version": FORMAT_VERSION,
        "type": "model",
        "name": title,
        "description": f"{title_of(card, said)}, trained with biocnn {said['biocnn']}.",
        "authors": [{"name": author} for author in card.authors],
        "license": card.licence,
        "cite": cites,
        "documentation": "README.md",
        "covers": ["cover.png"],
        "tags": ["biocnn", "2d", "pytorch", _TAGS[said["task"]]],
        "timestamp": datetime.datetime.now(datetime.UTC).isoformat(),
        "inputs": [_input(folder, said, sizes)],
        "outputs": [_output(folder, said, sizes)],
        "weights": dict(weights),
    }


def _tolerance(answer: NDArray[np.float32]) -> dict[str, float]:
    """By how much an answer may differ from the one of the test: what is usual there is more than most densities."""
    return {"relative_tolerance": 1e-3, "absolute_tolerance": TOLERANCE * float(np.abs(answer).max())}


def _space(said: Mapping[str, Any], sizes: Any) -> list[dict[str, Any]]:
    """Rows and columns with their pixel size, from the sizes (row, column)."""
    pixel = said["input"]["pixel_size_um"]
    units = [{}, {}] if pixel is None else [{"scale": float(one), "unit": "micrometer"} for one in pixel]
    return [
        {"type": "space", "id": name, "size": size, **unit} for name, size, unit in zip("yx", sizes, units, strict=True)
    ]


def _input(folder: Path, said: Mapping[str, Any], sizes: Sizes) -> dict[str, Any]:
    # Identifiers, as in Python.
    given = said["input"]["channels"] or [f"channel{number}" for number in range(sizes.channels)]
    names = [
        re.sub(r"\W", "_", name, flags=re.ASCII).lower() or f"channel{number}" for number, name in enumerate(given)
    ]
    least = [{"min": sizes.multiple, "step": sizes.multiple} for _ in range(2)]
    low, high = said["input"]["range"]
    return {
        "id": "image",
        "description": f"Values as stored, {low:g} to {high:g}; the weights hold scaling and normalisation.",
        "axes": [
            {"type": "batch"},
            {"type": "channel", "channel_names": names},
            *_space(said, sizes.fixed or least),
        ],
        # Of other types values may lie beyond the range of the training.
        "data": {"type": "float32", **({"range": [low, high]} if said["input"]["stored_as"] == "uint8" else {})},
        "test_tensor": _file(folder, "test_input.npy"),
    }


def _output(folder: Path, said: Mapping[str, Any], sizes: Sizes) -> dict[str, Any]:
    name = said["output"]["name"]
    followed = [{"tensor_id": "image", "axis_id": axis} for axis in "yx"]
    upper = {"range": [0.0, 1.0]} if name == "probability" else {}
    return {
        "id": name,
        "description": said["output"]["is"],
        "axes": [
            {"type": "batch"},
            {"type": "channel", "channel_names": [name]},
            *(_space(said, followed) if sizes.fixed is None else []),
        ],
        "data": {"type": "float32", **upper},
        "test_tensor": _file(folder, "test_output.npy"),
    }


def validate(path: Path) -> str:
    """Have a package validated by bioimageio.spec, where that is installed; nothing is fetched.

    Returns:
        What came out, in words.

    Raises:
        CheckpointError: if the package is not valid, with what is wrong.
    """
    try:
        from bioimageio import spec
    except ImportError:
        return "not validated: pip install 'biocnn[bioimageio]'"
    with spec.ValidationContext(perform_io_checks=False, log_warnings=False):
        found = spec.load_description(path, perform_io_checks=False)
    summary = found.validation_summary
    if summary.status == "failed":
        errors = [f"{'.'.join(map(str, error.loc))}: {error.msg}" for part in summary.details for error in part.errors]
        raise CheckpointError(f"The package is not valid, nothing was written: {'; '.join(errors)}")
    return f"validated by bioimageio.spec {spec.__version__}: {summary.status}"
