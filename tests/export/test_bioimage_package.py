import argparse
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import biocnn
from biocnn.cli import export as verb
from biocnn.cli.console import OK
from biocnn.errors import CheckpointError, DataError
from biocnn.export.bioimage_package import validate
from biocnn.export.formats import export
from biocnn.export.model_card import Card
from biocnn.files import file_digest
from tests.export.saved import COLOURS, GREY, JOBS, answer, classification, save, segmentation

CARD = Card(
    authors=("Ada L.",), licence="CC-BY-4.0", cites=(("A method", "https://doi.org/10.1038/s41592-018-0261-2"),)
)


def unpack(path: Path, folder: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    return yaml.safe_load((folder / "rdf.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint, package and what is in it, of a segmentation."""
    folder = tmp_path_factory.mktemp("package")
    path, compared = export(segmentation(folder / "best.ckpt"), "bioimageio", card=CARD, image=GREY[..., 0])
    assert path == folder / "best.bioimageio.zip"
    if find_spec("bioimageio") is not None:
        assert "validated by bioimageio.spec" in compared
    unpack(path, folder / "unpacked")
    return folder


def check_valid(path: Path) -> None:
    spec = pytest.importorskip("bioimageio.spec", reason="bioimageio.spec is not installed")
    found = spec.load_description(path, perform_io_checks=True)  # opens files, and fetches nothing: there is no URL
    summary = found.validation_summary
    assert summary.status in ("passed", "valid-format"), summary.format()
    warned = {warning.loc[-1] for part in summary.details for warning in part.warnings}
    assert warned <= {"sample_tensor"}, "the test tensors are the samples"
    assert found.weights.torchscript is not None


def test_the_validator_of_bioimage_io_accepts_a_segmentation(package: Path) -> None:
    check_valid(package / "best.bioimageio.zip")


@pytest.mark.parametrize("job", ["counting", pytest.param("classification", marks=pytest.mark.slow)])
def test_the_validator_of_bioimage_io_accepts_other_jobs(tmp_path: Path, job: str) -> None:
    task = biocnn.load(JOBS[job](tmp_path / "a.ckpt"), device="cpu").task
    task.data_description["manifest"] = None  # whose address would be fetched
    checkpoint = save(tmp_path / "b.ckpt", task, **task.data_description)
    check_valid(export(checkpoint, "bioimageio", card=CARD)[0])


def test_weights_test_and_description_belong_together(package: Path) -> None:
    folder = package / "unpacked"
    entry = yaml.safe_load((folder / "rdf.yaml").read_text(encoding="utf-8"))
    given, expected = np.load(folder / "test_input.npy"), np.load(folder / "test_output.npy")
    np.testing.assert_array_equal(given[0, 0], GREY[..., 0])
    model = biocnn.load(package / "best.ckpt", device="cpu")
    np.testing.assert_allclose(expected, answer("segmentation", model), atol=1e-6)
    script = torch.jit.load(folder / "weights.pt")
    np.testing.assert_allclose(script(torch.from_numpy(given)).numpy(), expected, atol=1e-6)
    weights = entry["weights"]["torchscript"]
    assert weights["sha256"] == file_digest(folder / weights["source"])
    spaces = [axis for axis in entry["inputs"][0]["axes"] if axis["type"] == "space"]
    assert spaces == [
        {"type": "space", "id": "y", "size": {"min": 2, "step": 2}, "scale": 0.5, "unit": "micrometer"},
        {"type": "space", "id": "x", "size": {"min": 2, "step": 2}, "scale": 0.25, "unit": "micrometer"},
    ]
    assert entry["inputs"][0]["axes"][1]["channel_names"] == ["grey"]
    assert entry["config"]["biocnn"]["threshold"] == 0.4
    page = (folder / "README.md").read_text(encoding="utf-8")
    for text in ("0.5 x 0.25 um", "multiples of 2 px", "400 to 3000", "## Validation", "no medical device"):
        assert text in page
    with Image.open(folder / "cover.png") as cover:
        assert cover.size == (2 * 72, 48)


def test_what_is_missing_is_asked_for(tmp_path: Path) -> None:
    checkpoint = segmentation(tmp_path / "best.ckpt")
    for card in (None, Card(authors=("A",)), Card(licence="MIT")):
        with pytest.raises(CheckpointError, match=r"pass --author NAME.* and --license"):
            export(checkpoint, "bioimageio", card=card)
    for image in (COLOURS, GREY[:1]):
        with pytest.raises(DataError, match=r"expected rows, columns and 1 channel\(s\), and at least 2x2 px"):
            export(checkpoint, "bioimageio", card=CARD, image=image)
    assert [one.name for one in tmp_path.iterdir()] == ["best.ckpt"]


def test_a_package_that_is_not_valid_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("bioimageio.spec", reason="bioimageio.spec is not installed")
    path, entry = tmp_path / "a.zip", {"type": "model", "format_version": "0.5.4", "name": "Without anything"}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("rdf.yaml", yaml.safe_dump(entry))
    with pytest.raises(CheckpointError, match=r"not valid.*weights"):
        validate(path)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    verb.add(parser.add_subparsers())
    picture = tmp_path / "picture.png"
    Image.fromarray(COLOURS).save(picture)
    given = ["export", str(classification(tmp_path / "best.ckpt")), "--format"]
    for rest in (["safetensors"], ["bioimageio", "--author", "A", "--author", "B", "--license", "MIT"]):
        arguments = parser.parse_args([*given, *rest, "--example", str(picture), "--cite", "A method", "10.1000/1"])
        assert arguments.run(arguments) == OK
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"wrote {tmp_path / 'best.safetensors'} (weights")
    assert said[1].startswith(f"wrote {tmp_path / 'best.bioimageio.zip'} (TorchScript compared")
    entry = unpack(tmp_path / "best.bioimageio.zip", tmp_path / "unpacked")
    assert [author["name"] for author in entry["authors"]] == ["A", "B"]
    # The manifest of this data set is one of those that come with biocnn.
    assert entry["cite"][0] == {"text": "A method", "doi": "10.1000/1"}
    assert "Veeling" in entry["cite"][1]["text"]
    assert [axis["type"] for axis in entry["outputs"][0]["axes"]] == ["batch", "channel"]
    assert "Licence of the data" in (tmp_path / "unpacked" / "README.md").read_text(encoding="utf-8")
    np.testing.assert_array_equal(
        np.load(tmp_path / "unpacked" / "test_input.npy")[0], np.moveaxis(COLOURS[8:40, 20:52], 2, 0)
    )
