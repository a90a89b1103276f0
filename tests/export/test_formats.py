import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import biocnn
from biocnn.checkpoints import read_biocnn_checkpoint, update_biocnn_section
from biocnn.errors import CheckpointError, DataError
from biocnn.export.formats import export
from biocnn.export.programs import difference, need, write_onnx, write_torch, write_torchscript
from biocnn.export.whole_model import WholeModel, describe_model
from biocnn.networks import FCRNA, CSRNet, DualUseUNet, LeNet5, SmallDenseNet, UNet
from biocnn.tasks.classification import ClassificationTask
from biocnn.tasks.counting import CountingTask
from biocnn.tasks.segmentation import SegmentationTask
from tests.export.saved import JOBS, MEAN, STD, answer, classification, save, segmentation, stored

jobs = pytest.mark.parametrize("job", JOBS)
# Of the two formats that are traced in the same way, the quick tests write each job in one at least.
slow = pytest.mark.slow
of_onnx = pytest.mark.parametrize("job", ["segmentation", "classification", pytest.param("counting", marks=slow)])
of_torch = pytest.mark.parametrize(
    "job", ["counting", *(pytest.param(job, marks=slow) for job in ("segmentation", "classification"))]
)


@jobs
def test_the_module_gives_what_load_gives(tmp_path: Path, job: str) -> None:
    model = biocnn.load(JOBS[job](tmp_path / "best.ckpt"), device="cpu")
    whole = WholeModel(model.task)
    with torch.inference_mode():
        found = whole(torch.from_numpy(stored(job))).numpy()
    expected = answer(job, model)
    # float32 sums in another order: 1e-6 of the largest value is some last digits
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert expected.std() > 1e-3 * np.abs(expected).max(), "answers differ, or nothing would be compared"


def test_counts_of_cells_of_pixels_are_spread() -> None:
    torch.manual_seed(0)
    task = CountingTask(CSRNet(1), density_scale=20.0, image_mean=MEAN[:1], image_std=STD[:1]).eval()
    task.count_factor = 1.1
    image = torch.randint(0, 256, (1, 1, 24, 40)).float()
    with torch.inference_mode():
        found, expected = WholeModel(task)(image), task(image / 255)
    assert found.shape == (1, 1, 24, 40)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@of_onnx
def test_onnx(tmp_path: Path, job: str) -> None:
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    checkpoint = JOBS[job](tmp_path / "best.ckpt")
    path, compared = export(checkpoint, "onnx")
    assert path == tmp_path / "best.onnx"
    assert compared.startswith("compared with the model by onnxruntime: differs by ")
    session = onnxruntime.InferenceSession(path)
    (found,) = session.run(None, {"image": stored(job)})
    model = biocnn.load(checkpoint, device="cpu")
    expected = answer(job, model)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert json.loads(session.get_modelmeta().custom_metadata_map["biocnn"]) == describe_model(model.task)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["best.ckpt", "best.onnx"]


@of_torch
def test_torch_export(tmp_path: Path, job: str) -> None:
    checkpoint = JOBS[job](tmp_path / "best.ckpt")
    path, _ = export(checkpoint, "torch", tmp_path / "model.pt2")
    said = {"biocnn.json": ""}
    program = torch.export.load(path, extra_files=said)
    model = biocnn.load(checkpoint, device="cpu")
    expected = answer(job, model)
    found = program.module()(torch.from_numpy(stored(job))).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert json.loads(said["biocnn.json"]) == describe_model(model.task)


@jobs
def test_weights_are_loaded_as_the_checkpoint_is(tmp_path: Path, job: str) -> None:
    checkpoint = JOBS[job](tmp_path / "best.ckpt")
    path, _ = export(checkpoint, "safetensors")
    first, second = read_biocnn_checkpoint(checkpoint), read_biocnn_checkpoint(path)
    assert second["biocnn"] == json.loads(json.dumps(first["biocnn"]))
    assert second["state_dict"].keys() == first["state_dict"].keys()
    assert all(torch.equal(tensor, first["state_dict"][name]) for name, tensor in second["state_dict"].items())
    models = [biocnn.load(one, device="cpu") for one in (checkpoint, path)]
    assert models[0].pixel_size_um == models[1].pixel_size_um
    np.testing.assert_array_equal(*(answer(job, model) for model in models))


def test_what_a_file_says_of_itself(tmp_path: Path) -> None:
    said = describe_model(biocnn.load(segmentation(tmp_path / "a.ckpt"), device="cpu").task)
    assert said["input"] == {
        "axes": "batch, channel, row, column",
        "dtype": "float32",
        "channels": ["grey"],
        "range": [400.0, 3000.0],
        "stored_as": "uint16",
        "pixel_size_um": [0.5, 0.25],
        "multiple_of": 2,
        "size": None,
    }
    assert (said["threshold"], said["min_component"], said["halo"]) == (0.4, 6, None)
    said = describe_model(biocnn.load(classification(tmp_path / "b.ckpt"), device="cpu").task)
    assert said["output"] == {"name": "probability", "is": "probability of tumour"}
    assert (said["input"]["size"], said["threshold"], said["classes"]) == ([32, 32], 0.3, ["normal", "tumour"])


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    checkpoint = classification(tmp_path / "best.ckpt")
    target = tmp_path / "best.safetensors"
    target.write_text("mine")
    with pytest.raises(DataError, match=r"is there already\. Choose another name, or pass --overwrite"):
        export(checkpoint, "safetensors")
    assert target.read_text() == "mine"
    export(checkpoint, "safetensors", overwrite=True)
    with pytest.raises(DataError, match="is the checkpoint itself"):
        export(target, "safetensors", overwrite=True)
    with pytest.raises(DataError, match=r"format torch ends in \.pt2"):
        export(checkpoint, "torch", tmp_path / "model.onnx")
    with pytest.raises(DataError, match="no format 'keras'; choose one of onnx, torch, safetensors, bioimageio"):
        export(checkpoint, "keras")


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "biocnn": _Evil()}, "evil.ckpt")
    with pytest.raises(CheckpointError, match="never loaded"):
        export("evil.ckpt", "safetensors")
    torch.save(_Evil(), "evil.safetensors")
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        biocnn.load("evil.safetensors")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["evil.ckpt", "evil.safetensors"]


def test_torn_and_foreign_weights_are_named(tmp_path: Path) -> None:
    path, _ = export(classification(tmp_path / "best.ckpt"), "safetensors")
    whole = path.read_bytes()
    for size in (0, 4, 300, len(whole) - 100):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
            biocnn.load(path)
    path.write_bytes(whole)
    update_biocnn_section(path, format=99)
    with pytest.raises(CheckpointError, match="has format 99"):
        biocnn.load(path)
    from_elsewhere = pytest.importorskip("safetensors.torch")
    from_elsewhere.save_file({"w": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="not written by biocnn"):
        biocnn.load(path)


def test_an_extra_that_is_missing_is_named() -> None:
    assert importlib.util.find_spec("no_such_package") is None
    with pytest.raises(CheckpointError, match=r"needs no_such_package: pip install 'biocnn\[onnx\]'"):
        need("onnx", "json", "no_such_package")


class ByValue(nn.Module):
    """What it does depends on the values of the image, which no graph can say."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image[:, :1] if image.sum() > 0 else -image[:, :1]


def test_a_network_that_cannot_be_exported_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "own.ckpt", SegmentationTask(ByValue(), image_mean=MEAN, image_std=STD))
    with pytest.raises(CheckpointError, match=r"ByValue cannot be exported.*--format safetensors"):
        export(path, "torch", network=ByValue())
    assert [one.name for one in tmp_path.iterdir()] == ["own.ckpt"]
    path = save(tmp_path / "dense.ckpt", ClassificationTask(SmallDenseNet(layers=(1, 1))))
    with pytest.raises(CheckpointError, match=r"dense\.ckpt: The checkpoint does not say how large its patches are"):
        export(path, "torch")


def test_another_answer_is_not_written() -> None:
    model = WholeModel(ClassificationTask(LeNet5(input_size=16)))

    def wrong(image: np.ndarray) -> np.ndarray:
        return model(torch.from_numpy(image)).detach().numpy() * np.float32(1.001)

    with pytest.raises(CheckpointError, match=r"differs from the model by 1\.0e-03 of its largest value"):
        difference(model, wrong)


def unets() -> dict[str, Callable[[], nn.Module]]:
    return {
        f"UNet {norm} {upsampling} {block}": lambda norm=norm, upsampling=upsampling, block=block: UNet(
            3, channels=(4, 8, 16), norm=norm, upsampling=upsampling, block=block, deep_supervision=block == "plain"
        )
        for norm in ("batch", "instance", "group")
        for upsampling, block in (("transposed", "plain"), ("bilinear", "residual"), ("nearest", "plain"))
    }


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    **unets(),
    "UNet of one level": lambda: UNet(3, channels=(4,)),
    "DualUseUNet": lambda: DualUseUNet(3, channels=(4, 8)),
    "FCRNA": lambda: FCRNA(3),
    "CSRNet": lambda: CSRNet(3),
    "SmallDenseNet": lambda: SmallDenseNet(3),
    "LeNet5": lambda: LeNet5(3, input_size=96),
}


@slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_in_every_format(tmp_path: Path, name: str) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    torch.manual_seed(0)
    network = NETWORKS[name]()
    of_patches, of_counts = isinstance(network, (SmallDenseNet, LeNet5)), isinstance(network, (FCRNA, CSRNet))
    kind = ClassificationTask if of_patches else CountingTask if of_counts else SegmentationTask
    task = kind(network, image_mean=MEAN, image_std=STD)
    task.data_description = {"patch_size": [96, 96]} if of_patches else {}
    model, said = WholeModel(task), describe_model(task)
    # Each compares itself with the model, on two sizes.
    write_torch(tmp_path / "a.pt2", model, said)
    assert "differs by" in write_onnx(tmp_path / "a.onnx", model, said)
    write_torchscript(tmp_path / "a.pt", model)
    assert len(list(tmp_path.iterdir())) == 3
