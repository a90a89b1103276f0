import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
import torch
import zarr
from PIL import Image

from biocnn.cli import main
from biocnn.data.density import rasterise
from biocnn.data.images import read_image
from biocnn.data.ome_zarr import write_ome_zarr
from biocnn.data.points import read_points
from biocnn.errors import DataError, DatasetNotFoundError
from biocnn.inference.results import COUNT_COLUMNS, PATCH_COLUMNS, STRUCTURE_COLUMNS
from biocnn.inference.sources import Reading, find_images
from biocnn.report.predictions import Settings, predict_images
from tests.inference.test_results import CELLS, classifier, counter, segmenter
from tests.inference.test_segmentation import checkpoint

RANDOM = np.random.default_rng(0)
QUICK = Settings(graph=None)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """The file of a checkpoint whose model is already loaded: only its digest counts."""
    path = tmp_path / "best.ckpt"
    path.write_bytes(b"weights")
    return path


def blobs(rows: int = 40, columns: int = 60, seed: int = 0) -> np.ndarray:
    """Structures and specks of random shape, uint8."""
    values = torch.nn.functional.avg_pool2d(torch.from_numpy(np.random.default_rng(seed).random((1, rows, columns))), 5)
    spread = torch.nn.functional.interpolate(values[None], (rows, columns), mode="bilinear")[0, 0].numpy()
    return np.clip(127.5 + 1500 * (spread - 0.5), 0, 255).astype(np.uint8)


def save(path: Path, image: np.ndarray, size: float | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sizes = {} if size is None else {"PhysicalSizeX": size, "PhysicalSizeY": size}
    tifffile.imwrite(path, image, ome=path.name.endswith(".ome.tif"), metadata={"axes": "YX", **sizes})
    return path


def table(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as handle:
        return {Path(row["image"]).name: row for row in csv.DictReader(handle)}


def predict(
    model: Any, weights: Path, images: Path, settings: Settings = QUICK, **more: Any
) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Predict into ``out`` beside the weights; returns the table, and what was said."""
    said: list[str] = []
    predict_images(model, weights, [images], weights.parent / "out", settings, say=said.append, **more)
    return table(weights.parent / "out"), said


def test_a_folder_becomes_a_table_and_files(tmp_path: Path, weights: Path) -> None:
    save(tmp_path / "in/a 2.ome.tif", blobs(), 0.5)
    save(tmp_path / "in/a 10.ome.tif", blobs(48, 50, seed=1), 0.25)
    Image.fromarray(blobs(seed=2)).save(tmp_path / "in/b.png")
    (tmp_path / "in/notes.txt").write_text("not an image")
    model = segmenter(4, pixel_size_um=[0.5, 0.5])
    rows, said = predict(model, weights, tmp_path / "in", Settings(graph="skeleton"))
    assert list(rows) == ["a 2.ome.tif", "a 10.ome.tif", "b.png"]
    first = rows["a 2.ome.tif"]
    assert set(STRUCTURE_COLUMNS) <= set(first)
    assert [row["status"] for row in rows.values()] == ["ok"] * 3
    expected = model.predict(blobs(), pixel_size_um=(0.5, 0.5))
    measures = expected.measures(expected.graph(method="skeleton"))
    known = {name: str(value) for name, value in measures.items() if value is not None}
    assert {name: first[name] for name in known} == known
    assert (first["rows"], first["columns"], first["pixel_size_row_um"]) == ("40", "60", "0.5")
    words = "resampled from 0.25 x 0.25 to 0.5 x 0.5 um, as the training images"
    assert rows["a 10.ome.tif"]["message"] == words
    assert rows["a 10.ome.tif"]["resampled_row_um"] == "0.5"
    assert said == [f"{tmp_path}/in/a 10.ome.tif: {words}"]
    assert rows["b.png"]["flags"] == "pixel size not known (training: 0.5 x 0.5 um)"
    assert (rows["b.png"]["length_um"], first["length_px"]) == ("", "")
    folder = tmp_path / "out/images" / first["folder"]
    files = {path.name for path in folder.iterdir()}
    pictures = {"overlay.png", "thumbnail.png", "graph.png"}
    assert files == pictures | {
        *("map.ome.tif", "mask.png", "mask.geojson", "graph.graphml", "graph.geojson", "segments.csv", "result.json")
    }
    np.testing.assert_array_equal(read_image(folder / "mask.png").array > 0, expected.mask)
    record = json.loads((tmp_path / "out/predictions.json").read_text())
    assert record["model"]["task"] == "SegmentationTask"
    assert record["model"]["path"] == str(weights)
    assert record["made_by"]["settings"]["graph"] == "skeleton"


def test_what_is_finished_is_not_done_again(tmp_path: Path, weights: Path) -> None:
    for number in range(3):
        save(tmp_path / f"in/{number}.tif", blobs(seed=number))
    model = segmenter()
    before, _ = predict(model, weights, tmp_path / "in")
    files = sorted((tmp_path / "out/images").glob("*/result.json"))
    times = [path.stat().st_mtime_ns for path in files]
    save(tmp_path / "in/1.tif", blobs(30, 30, seed=9))  # another image of the same name
    save(tmp_path / "more/0.tif", blobs(seed=4))
    rows, said = predict(model, weights, tmp_path / "in")
    assert said == ["2 of 3 image(s) are finished already."]
    assert [new.stat().st_mtime_ns == old for new, old in zip(files, times, strict=True)] == [True, False, True]
    assert (rows["0.tif"], rows["2.tif"]) == (before["0.tif"], before["2.tif"])
    assert rows["1.tif"]["rows"] == "30"
    predict(model, weights, tmp_path / "more")
    with (tmp_path / "out/predictions.csv").open(encoding="utf-8") as handle:
        folders = {row["image"]: row["folder"] for row in csv.DictReader(handle)}
    assert len(folders) == 4
    assert folders[f"{tmp_path}/more/0.tif"] == "0_2"  # beside those of before


def test_other_models_and_settings_are_not_mixed(tmp_path: Path, weights: Path) -> None:
    save(tmp_path / "in/a.tif", blobs(), 0.5)
    save(tmp_path / "in/b.tif", blobs(seed=1), 0.5)
    predict(segmenter(), weights, tmp_path / "in")
    whole = (tmp_path / "out/predictions.csv").read_bytes()
    with pytest.raises(DataError, match=r"other settings \(graph: None, now skeleton\).*--overwrite"):
        predict(segmenter(), weights, tmp_path / "in", Settings())
    weights.write_bytes(b"others")
    with pytest.raises(DataError, match="results of another model"):
        predict(segmenter(), weights, tmp_path / "in")
    assert (tmp_path / "out/predictions.csv").read_bytes() == whole
    rows, _ = predict(segmenter(), weights, tmp_path / "in/a.tif", replace(QUICK, overwrite=True))
    assert list(rows) == ["a.tif"]
    assert [path.name for path in (tmp_path / "out/images").iterdir()] == ["a"]
    own = tmp_path / "run"
    own.mkdir()
    (own / "predictions.csv").write_text("id\n")
    with pytest.raises(DataError, match="a table that `biocnn predict` has not written"):
        predict_images(segmenter(), weights, [tmp_path / "in"], own)


def write_hdf5(path: Path, shape: tuple[int, ...], **options: Any) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("a", shape, np.uint8, **options)
        if "key" in path.name:
            file["b"] = np.zeros((4, 4), np.uint8)


def one_strip(path: Path, side: int) -> None:
    tifffile.imwrite(path, np.zeros((side, side), np.uint8), compression="zlib", rowsperstrip=side)


def truncated(path: Path) -> None:
    tifffile.imwrite(path, blobs())
    path.write_bytes(path.read_bytes()[:-500])


def truncated_png(path: Path) -> None:
    Image.fromarray(blobs()).save(path)
    path.write_bytes(path.read_bytes()[:-300])


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty.tif": (lambda path: path.write_bytes(b""), "cannot be read as an image"),
    "text.tif": (lambda path: path.write_text("row,column\n1,2\n"), "is none of PNG"),
    "encrypted.tif": (lambda path: path.write_bytes(RANDOM.bytes(2000)), "is none of PNG"),
    "truncated.tif": (truncated, "it is truncated"),
    "truncated.png": (truncated_png, "it is truncated"),
    "header.tif": (lambda path: path.write_bytes(b"II*\0" + RANDOM.bytes(500)), "cannot be read as an image"),
    "colours.png": (lambda path: Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(path), r"has 3 channel\(s\) (red"),
    "deep.tif": (lambda path: tifffile.imwrite(path, np.zeros((9, 9), np.uint16)), "Expected a uint8 image"),
    "floats.tif": (lambda path: tifffile.imwrite(path, np.full((9, 9), np.nan, np.float32)), "received float32"),
    "line.h5": (lambda path: write_hdf5(path, (9,)), "axes '' do not fit shape (9,)"),
    "keys.h5": (lambda path: write_hdf5(path, (9, 9)), "give one as `key`"),
    "bomb.h5": (lambda path: write_hdf5(path, (10**6, 10**6), chunks=(512, 512)), "1,000.0 GB of pixels in a file of"),
    "bomb.tif": (lambda path: one_strip(path, 1500), "takes 0.00 GB, more than the 0.00 GB of the limit"),
    "empty.zarr": (lambda path: path.mkdir(), "a folder without Zarr metadata"),
    "none.zarr": (lambda path: zarr.open_group(path, mode="w"), "holds []"),
}


@pytest.fixture(scope="module")
def bad_rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """All of them in one folder, and two that are good."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "in").mkdir()
    for name, (make, _) in BAD.items():
        make(folder / "in" / name)
    for name in ("a.tif", "z.tif"):
        save(folder / "in" / name, blobs())
    (folder / "best.ckpt").write_bytes(b"weights")
    settings = replace(QUICK, reading=Reading(max_bytes=2_000_000))
    rows, said = predict(segmenter(), folder / "best.ckpt", folder / "in", settings)
    assert len(said) == len(BAD)
    return rows


@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_is_named_and_the_others_are_predicted(name: str, bad_rows: dict[str, dict[str, str]]) -> None:
    assert bad_rows[name]["status"] == "failed"
    assert BAD[name][1].replace("\\", "") in bad_rows[name]["message"]
    assert bad_rows[name]["rows"] == bad_rows[name]["structure_px"] == ""
    assert (bad_rows["a.tif"]["status"], bad_rows["z.tif"]["status"]) == ("ok", "ok")
    assert len(bad_rows) == len(BAD) + 2


def test_planes_of_a_stack_are_images(tmp_path: Path, weights: Path) -> None:
    stack = np.stack([blobs(seed=number) for number in range(3)])
    save(tmp_path / "in.tif", blobs())
    tifffile.imwrite(tmp_path / "in.tif", stack, photometric="minisblack")
    rows, _ = predict(segmenter(), weights, tmp_path / "in.tif")
    assert [row["folder"] for row in rows.values()] == ["in_0", "in_1", "in_2"]
    found = read_image(tmp_path / "out/images/in_2/map.ome.tif").array
    np.testing.assert_array_equal(found, segmenter().tubularity(stack[2]))


def test_sources_are_files_globs_folders_and_zarr(tmp_path: Path, weights: Path) -> None:
    for name in ("in/x10.png", "in/x9.png", "in/sub/y.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(blobs()).save(tmp_path / name)
    write_ome_zarr(tmp_path / "in/z.ome.zarr", (40, 60), np.uint8, [blobs()], (0.5, 0.5))
    write_hdf5(tmp_path / "in/h.h5", (40, 60), data=blobs())
    names = [Path(path).name for path in find_images([f"{tmp_path}/in/x*.png", tmp_path / "in", "s3://a/b.zarr"])]
    assert names == ["x9.png", "x10.png", "h.h5", "z.ome.zarr", "b.zarr"]
    with pytest.raises(DatasetNotFoundError, match="No image matches"):
        find_images([tmp_path / "in", f"{tmp_path}/in/*.tif"])
    rows, _ = predict(segmenter(), weights, tmp_path / "in")
    assert {row["structure_px"] for row in rows.values()} == {rows["h.h5"]["structure_px"]}
    assert rows["z.ome.zarr"]["pixel_size_column_um"] == "0.5"


@pytest.mark.parametrize("size", [0.5, 0.27, 1.4])
def test_large_structures_are_those_of_images_in_memory(tmp_path: Path, weights: Path, size: float) -> None:
    """By strips, and all at once."""
    save(tmp_path / "in.ome.tif", blobs(90, 70), size)
    model = segmenter(3, pixel_size_um=[0.5, 0.5])
    model.task.tile_size = 32
    predict(model, weights, tmp_path / "in.ome.tif")
    whole = model.predict(blobs(90, 70), pixel_size_um=(size, size))
    settings = replace(QUICK, reading=Reading(max_pixels=1000), map_format="ome-zarr", overwrite=True)
    rows, said = predict(model, weights, tmp_path / "in.ome.tif", settings)
    assert len(said) == (size != 0.5)
    folder = tmp_path / "out/images/in"
    stored = read_image(folder / "map.ome.zarr")
    np.testing.assert_allclose(stored.array, whole.probability, atol=1e-6)
    assert stored.pixel_size_um == pytest.approx((size, size))
    mask = read_image(folder / "mask.ome.zarr").array > 0
    # Interpolated in another order, a pixel may fall on the other side of the threshold.
    assert (mask != whole.mask).sum() <= 2
    assert int(rows["in.ome.tif"]["structure_px"]) == mask.sum() > 0
    assert "no graph" in rows["in.ome.tif"]["flags"]
    assert {"overlay.png", "thumbnail.png"} <= {path.name for path in folder.iterdir()}
    assert not (tmp_path / "out/.unfinished").exists()


@pytest.mark.parametrize("size", [0.5, 0.25])
def test_large_counts_are_those_of_images_in_memory(tmp_path: Path, weights: Path, size: float) -> None:
    places = RANDOM.uniform(3, 157, (60, 2))
    image = rasterise(places, (160, 160), 1.5 * 0.5 / size)
    save(tmp_path / "in.ome.tif", image, size)
    model = counter(sigma=1.5, pixel_size_um=[0.5, 0.5])
    model.task.tile_size = 32
    whole = model.predict(image, pixel_size_um=(size, size))
    rows, _ = predict(model, weights, tmp_path / "in.ome.tif", replace(QUICK, reading=Reading(max_pixels=1000)))
    row = rows["in.ome.tif"]
    assert set(COUNT_COLUMNS) <= set(row)
    assert float(row["cells"]) == pytest.approx(whole.count.cells, abs=0.01)
    assert float(row["cells_low"]) == pytest.approx(whole.count.low, abs=0.01)
    folder = tmp_path / "out/images/in"
    density = read_image(folder / "map.ome.tif").array
    np.testing.assert_allclose(density, whole.density, atol=1e-6)
    found = read_points(folder / "points.csv", (160, 160))
    assert whole.points is not None
    np.testing.assert_allclose(np.sort(found, 0), np.sort(whole.points, 0), atol=2e-3)  # three decimals


def test_large_images_of_patches(tmp_path: Path, weights: Path) -> None:
    save(tmp_path / "in.ome.tif", blobs(90, 70), 0.5)
    model = classifier(patch_size=[16, 16])
    whole, _ = predict(model, weights, tmp_path / "in.ome.tif")
    patches = (tmp_path / "out/images/in/patches.csv").read_text()
    settings = replace(QUICK, reading=Reading(max_pixels=1000), overwrite=True)
    parts, _ = predict(model, weights, tmp_path / "in.ome.tif", settings)
    assert (tmp_path / "out/images/in/patches.csv").read_text() == patches
    assert parts == whole
    assert whole["in.ome.tif"]["patches"] == "20"
    assert set(PATCH_COLUMNS) <= set(whole["in.ome.tif"])


def test_cells_without_points(tmp_path: Path, weights: Path) -> None:
    save(tmp_path / "in/a.tif", rasterise(CELLS, (40, 60), 2.0))
    rows, _ = predict(counter(), weights, tmp_path / "in")
    assert (rows["a.tif"]["cells"], rows["a.tif"]["points"]) == ("3.0", "")
    assert not (tmp_path / "out/images/a/points.csv").exists()


def test_parquet_says_what_the_table_says(tmp_path: Path, weights: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    save(tmp_path / "in/a.tif", blobs())
    (tmp_path / "in/b.tif").write_bytes(b"")
    rows, _ = predict(segmenter(), weights, tmp_path / "in", replace(QUICK, parquet=True))
    found = parquet.read_table(tmp_path / "out/predictions.parquet").to_pylist()
    assert [{name: "" if value is None else str(value) for name, value in row.items()} for row in found] == list(
        rows.values()
    )
    assert isinstance(found[0]["structure_px"], int)


def run(*arguments: str | Path) -> int:
    return main(["predict", *map(str, arguments)])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = checkpoint(tmp_path / "best.ckpt", count=1, pixel_size_um=[0.5, 0.5])
    save(tmp_path / "in/a.ome.tif", blobs(), 0.5)
    arguments = (f"{tmp_path}/in/*.tif", "--model", best, "--out", tmp_path / "out", "--no-graph", "--device", "cpu")
    assert run(*arguments) == 0
    said = capsys.readouterr()
    assert said.out.startswith("1 image(s) predicted, 0 failed, 0 with flags\n")
    (tmp_path / "in/b.tif").write_text("no image")
    assert run(*arguments) == 1
    said = capsys.readouterr()
    assert "1 of 2 image(s) are finished already." in said.err
    assert f"failed: {tmp_path}/in/b.tif cannot be read as an image" in said.err
    assert run(*arguments, "--views", "1") == 2
    assert "other settings (views: 8, now 1)" in capsys.readouterr().err
    assert run(*arguments, "--pixel-size", "0.5", "-1") == 2
    assert "--pixel-size: expected two lengths above 0" in capsys.readouterr().err
    assert run(tmp_path / "none.tif", "--model", best, "--out", tmp_path / "o") == 2
    assert "No image matches" in capsys.readouterr().err
    assert run(tmp_path / "in", "--model", tmp_path / "in/b.tif", "--out", tmp_path / "o") == 2
    assert "cannot be read as a checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
