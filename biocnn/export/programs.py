"""The computation of a model as a file: ONNX, `torch.export` and TorchScript, each compared with the model it is of."""

import json
import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from biocnn.errors import CheckpointError
from biocnn.export.whole_model import WholeModel
from biocnn.files import atomic_path

Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]

TOLERANCE = 1e-4
"""Largest difference to the model, relative to its largest value: runtimes sum float32 in other orders."""
_KEY = "biocnn"


def need(extra: str, *packages: str) -> None:
    """Raise CheckpointError that says what to install, if a package is missing."""
    if missing := [name for name in packages if find_spec(name.split(".")[0]) is None or find_spec(name) is None]:
        raise CheckpointError(f"This format needs {' and '.join(missing)}: pip install 'biocnn[{extra}]'.")


def example(shape: tuple[int, ...], low: float = 0.0, high: float = 1.0, seed: int = 0) -> NDArray[np.float32]:
    """Random values in a range, float32; what a model is traced and compared with."""
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


def difference(model: WholeModel, run: Run) -> float:
    """Largest difference between a file and its model, relative to the model's largest value, over two sizes.

    Raises:
        CheckpointError: if it is more than :data:`TOLERANCE`, or of another shape.
    """
    worst = 0.0
    low, high = model.range
    for number, shape in enumerate(model.sizes.examples):
        image = example(shape, low, high, seed=number)
        with torch.inference_mode():
            expected = model(torch.from_numpy(image)).numpy()
        found = run(image)
        if found.shape != expected.shape:
            raise CheckpointError(f"The exported file gives {found.shape} for {shape}, the model {expected.shape}.")
        worst = max(worst, float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-12)))
    if not worst <= TOLERANCE:
        raise CheckpointError(
            f"The exported file differs from the model by {worst:.1e} of its largest value, more than {TOLERANCE:.0e}: "
            "nothing was written. Choose another format, and report the network."
        )
    return worst


def trace(model: WholeModel) -> torch.export.ExportedProgram:
    """The model as a graph, for any number of images, and for any size that is a multiple of the model's.

    Raises:
        CheckpointError: if the network does what cannot be traced.
    """
    sizes = model.sizes
    dynamic: dict[int, Any] = {0: torch.export.Dim("batch")}
    if sizes.fixed is None:
        cells = {2: torch.export.Dim("row_cells", min=1), 3: torch.export.Dim("column_cells", min=1)}
        dynamic |= {axis: sizes.multiple * cell if sizes.multiple > 1 else cell for axis, cell in cells.items()}
    image = torch.from_numpy(example(sizes.examples[0]))
    try:
        return torch.export.export(model, (image,), dynamic_shapes={"image": dynamic})
    except Exception as error:  # of a dozen types, some of them private to torch
        name, first_line = type(model.network).__name__, (str(error).strip().splitlines() or [""])[0]
        raise CheckpointError(
            f"{name} cannot be exported: it does what torch.export does not follow ({type(error).__name__}: "
            f"{first_line}). Export its weights: --format safetensors."
        ) from error


def write_torch(path: Path, model: WholeModel, said: Mapping[str, Any]) -> str:
    """Write a program of `torch.export` (``.pt2``); `torch.export.load` gives it back without biocnn.

    The description lies in the file as ``biocnn.json``: ``torch.export.load(path, extra_files={"biocnn.json": ""})``.

    Returns:
        What was compared, in words.

    Raises:
        CheckpointError: as :func:`trace` and :func:`difference`.
    """
    program = trace(model)
    with atomic_path(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about layouts of weights that share no memory
        torch.export.save(program, temporary, extra_files={f"{_KEY}.json": json.dumps(said)})
        loaded = torch.export.load(temporary).module()
        worst = difference(model, lambda image: loaded(torch.from_numpy(image)).detach().numpy())
    return f"compared with the model after loading: differs by {worst:.1e} of the largest value"


def write_onnx(path: Path, model: WholeModel, said: Mapping[str, Any]) -> str:
    """Write ONNX; the description lies in its metadata under ``biocnn``.

    Returns:
        What was compared, in words: with onnxruntime, where that is installed.

    Raises:
        CheckpointError: if onnx or onnxscript is missing, an operation has no counterpart in ONNX, or as :func:`trace`
            and :func:`difference`.
    """
    need("onnx", "onnx", "onnxscript")
    program = trace(model)
    try:
        converted = torch.onnx.export(
            program,
            dynamo=True,
            input_names=["image"],
            output_names=[said["output"]["name"]],
            external_data=False,
            verbose=False,
        )
    except Exception as error:  # of private types of torch and onnxscript
        first_line = (str(error).strip().splitlines() or [""])[0]
        raise CheckpointError(
            f"{type(model.network).__name__} cannot be written as ONNX ({type(error).__name__}: {first_line}). Take "
            "--format torch."
        ) from error
    assert converted is not None  # it is None without dynamo only
    converted.model.metadata_props[_KEY] = json.dumps(said)
    with atomic_path(path) as temporary:
        converted.save(temporary, external_data=False)
        run = _onnxruntime(temporary)
        if run is None:
            return "not compared with the model: pip install 'biocnn[onnx]' brings onnxruntime"
        worst = difference(model, run)
    return f"compared with the model by onnxruntime: differs by {worst:.1e} of the largest value"


def _onnxruntime(path: Path) -> Run | None:
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])

    def run(image: NDArray[np.float32]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = session.run(None, {"image": image})[0]
        return found

    return run


def opset_of(path: Path) -> int:
    """Version of the operators of an ONNX file."""
    from onnx import load

    return int(next(entry.version for entry in load(path, load_external_data=False).opset_import if not entry.domain))


def write_torchscript(path: Path, model: WholeModel) -> None:
    """Write TorchScript, which programs in Java and C++ run by libtorch; compared with the model after loading.

    torch calls it deprecated and still writes and reads it; DeepImageJ and QuPath run no newer format of torch.

    Raises:
        CheckpointError: if the network does what cannot be traced, or as :func:`difference`.
    """
    image = torch.from_numpy(example(model.sizes.examples[0]))
    # With one size, the graph of torch.export: tracing has no numbers for Python's own arithmetic with sizes.
    source = model if model.sizes.fixed is None else trace(model).module()
    with warnings.catch_warnings():
        # Of the deprecation; and of checks of shapes, which hold for all sizes that are multiples.
        warnings.simplefilter("ignore")
        try:
            traced = torch.jit.trace(source, image, check_trace=False)
        except Exception as error:  # of any type that Python raises when it is given a tensor for a number
            raise CheckpointError(
                f"{type(model.network).__name__} cannot be written as TorchScript ({type(error).__name__}: {error})."
            ) from error
        with atomic_path(path) as temporary:
            traced.save(str(temporary))
            loaded = torch.jit.load(str(temporary))
            difference(model, lambda values: loaded(torch.from_numpy(values)).detach().numpy())
