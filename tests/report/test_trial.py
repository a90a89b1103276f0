"""What the page of `biocnn app` shows for an image; the models return what they are shown, see `test_results`."""

import csv
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from biocnn.errors import DataError
from biocnn.inference.sources import Reading
from biocnn.report.predictions import Model, Settings
from biocnn.report.trial import Trial, try_image
from tests.inference.test_results import classifier, counter, line, segmenter


def tried(model: Model, image: Path, tmp_path: Path, **reading: object) -> Trial:
    checkpoint, folder = tmp_path / "best.ckpt", tmp_path / "served"
    checkpoint.write_bytes(b"weights")
    folder.mkdir()
    return try_image(model, checkpoint, image, folder, Settings(Reading(**reading)))  # type: ignore[arg-type]


def test_structures(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "line.tif", line())
    trial = tried(segmenter(3), tmp_path / "line.tif", tmp_path, pixel_size_um=(0.5, 0.5))
    # 3 x 40 of 40 x 60 pixels, see `line`; its centre line runs through 40 pixels of half a micrometre.
    assert trial.headline.startswith("5.0 % structure, ")
    assert trial.measures["structure_um2"] == 30
    assert trial.measures["length_um"] == pytest.approx(
        20, abs=1.5
    )  # a skeleton is shorter by half a width at each end
    assert trial.notes == ()
    assert [caption for _, caption in trial.pictures] == ["image", "overlay", "mask", "graph"]
    with Image.open({caption: path for path, caption in trial.pictures}["mask"]) as mask:
        assert np.count_nonzero(np.asarray(mask)) == 120
    with open(trial.table, newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["image"], row["status"], row["structure_px"]) == ("line.tif", "ok", "120")


def test_files_are_those_of_predict_and_tell_nothing_of_the_folders(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "line.tif", line())
    trial = tried(segmenter(3), tmp_path / "line.tif", tmp_path)
    assert trial.archive.name == "line.zip"
    with zipfile.ZipFile(trial.archive) as packed:
        names = set(packed.namelist())
        assert packed.read("predictions.csv") == trial.table.read_bytes()
        for name in names - {"predictions.json"}:  # which says where the model is
            assert str(tmp_path).encode() not in packed.read(name), name
    written = [path for path in trial.table.parent.rglob("*") if path.is_file()]
    assert names == {path.relative_to(trial.table.parent).as_posix() for path in written}
    wanted = ("map.ome.tif", "mask.png", "overlay.png", "graph.png", "graph.graphml", "graph.geojson", "segments.csv")
    assert names >= {"predictions.csv", "predictions.json", *(f"images/line/{name}" for name in wanted)}


def test_cells_and_patches(tmp_path: Path) -> None:
    density = np.zeros((20, 30), np.float32)
    density[4, 5], density[12, 20] = 1, 2
    tifffile.imwrite(tmp_path / "cells.tif", density)
    trial = tried(counter(), tmp_path / "cells.tif", tmp_path)
    assert trial.measures["cells"] == 3
    assert trial.headline.startswith("3.0 cells (")
    (tmp_path / "served").rename(tmp_path / "before")
    patches = np.full((20, 30), 10, np.uint8)
    patches[:10, :20] = 250
    Image.fromarray(patches).save(tmp_path / "patches.png")
    trial = tried(classifier(patch_size=[10, 10]), tmp_path / "patches.png", tmp_path)
    assert trial.headline == "2 of 6 patches positive"
    assert [caption for _, caption in trial.pictures] == ["image", "overlay"]


def png_without_pixels(path: Path, rows: int, columns: int) -> None:
    """A PNG that ends as it should, but has no pixels behind its header."""
    header = struct.pack(">IIBBBBB", columns, rows, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    packed = [
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))


def test_what_is_too_large_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    png_without_pixels(tmp_path / "large.png", 5000, 4000)
    with pytest.raises(DataError, match=r"^large.png has 5,000 x 4,000 px, and up to 16,000,000 px are taken here"):
        tried(segmenter(), tmp_path / "large.png", tmp_path, max_pixels=16_000_000)


def test_what_becomes_too_large_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "line.tif", line())
    coarse = segmenter(pixel_size_um=[0.1, 0.1])
    message = r"40 x 60 px \(2,000 x 3,000 as the training images\), and up to 1,000,000 px"
    with pytest.raises(DataError, match=message):
        tried(coarse, tmp_path / "line.tif", tmp_path, pixel_size_um=(5.0, 5.0), max_pixels=1_000_000)


def test_a_stack_is_one_plane(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "stack.tif", np.stack([np.full_like(line(), 20), line()]))
    first = tried(segmenter(), tmp_path / "stack.tif", tmp_path)
    assert first.measures["structure_px"] == 0
    assert first.notes[0] == "plane 0 of 2, counted from 0"
    (tmp_path / "served").rename(tmp_path / "before")
    second = tried(segmenter(), tmp_path / "stack.tif", tmp_path, page=1)
    assert second.measures["structure_px"] == 122
    assert "stack.tif#1" in second.table.read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"no image", "cannot be read as an image"), (b"", "empty|cannot be read"), (None, "3 channel")],
    ids=["text", "nothing", "colours"],
)
def test_errors_name_the_file_but_not_its_folder(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.tif"
    if content is None:
        tifffile.imwrite(path, np.zeros((8, 9, 3), np.uint8), photometric="rgb")
    else:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as raised:
        tried(segmenter(), path, tmp_path)
    assert "bad.tif" in str(raised.value)
    assert str(tmp_path) not in str(raised.value)
