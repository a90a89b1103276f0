"""The counting pipeline from end to end, as a user runs it."""

import contextlib
import csv
import io
import json
import logging
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import biocnn
from biocnn.checkpoints import read_biocnn_checkpoint, read_checkpoint, update_biocnn_section
from biocnn.data.images import read_image
from biocnn.data.points import read_points
from biocnn.inference.counting import Counter
from biocnn.metrics.points import match_points, point_scores
from biocnn.training.pipeline import run_pipeline
from pipelines.counting import JOB
from tests.data.drawn import save
from tests.data.drawn_cells import cells, write_cells
from tests.pipelines.drawn_runs import QUIET, data_arguments, unet

ROOT = Path(__file__).parents[2]
RUN = Path("counting") / "a"
BEST = Path("checkpoints") / "best.ckpt"
SPLITS = {"train": 4, "valid": 12, "test": 3}
CHANNELS = unet(None)


def run(*arguments: str, code: int = 0) -> str:
    """Run the pipeline in this process, on one thread; returns all that it says."""
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    logging.getLogger("pytorch_lightning").addHandler(handler)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            assert run_pipeline(JOB, arguments) == code, said.getvalue()
    finally:
        torch.set_num_threads(threads)
        logging.getLogger("pytorch_lightning").removeHandler(handler)
    return said.getvalue()


def fit_arguments(manifest: str, runs: Path, *more: str, network: str = CHANNELS) -> list[str]:
    """Command line of a training of a second or two."""
    return [
        *("fit", "--config", str(ROOT / "pipelines" / "counting.yaml"), "--data.root", str(Path(manifest).parent)),
        *("--data.manifest", manifest, "--trainer.default_root_dir", str(runs), "--run", "a"),
        *("--trainer.max_epochs", "3", "--trainer.check_val_every_n_epoch", "1", "--data.tile_size", "32"),
        *("--data.batch_size", "4", "--data.tiles_per_epoch", "64", "--model.lr", "1e-2", "--data.num_workers", "0"),
        *("--model.network", network, *QUIET, *more),
    ]


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open()))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_cells(tmp_path_factory.mktemp("data"), SPLITS)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, manifest: str) -> Path:
    """A run that no test changes."""
    runs = tmp_path_factory.mktemp("runs")
    said = run(*fit_arguments(manifest, runs))
    for text in (
        "model.network.init_args.in_channels: 1 (grey)",
        "data.sigma: ",
        "model.image_mean, model.image_std: [0.",
        "Batch norm of clean training tiles: validation MAE ",
        "Interval of 90 %: count -/+ ",
        " (12 validation images)",
        f"test --ckpt_path {runs / RUN / BEST} --data.root {Path(manifest).parent} --data.manifest {manifest}",
    ):
        assert text in said
    return runs / RUN


@pytest.fixture(scope="module")
def tested(tmp_path_factory: pytest.TempPathFactory, trained: Path, manifest: str) -> tuple[Path, str]:
    """The same run after a test, and what that said."""
    folder = tmp_path_factory.mktemp("tested") / "run"
    shutil.copytree(trained, folder)
    return folder, run("test", "--ckpt_path", str(folder / BEST), *data_arguments(manifest))


def test_a_run_writes_one_folder_and_a_checkpoint_that_knows_scale_and_interval(trained: Path) -> None:
    names = {str(path.relative_to(trained)) for path in trained.rglob("*") if path.parent.name != "tensorboard"}
    tables = {"config.yaml", "run.json", "metrics.csv", "throughput.csv"}
    assert names == tables | {"tensorboard", "checkpoints", "checkpoints/best.ckpt", "checkpoints/last.ckpt"}
    rows = rows_of(trained / "metrics.csv")
    for column in ("val_mae", "val_rmse", "val_bias", "val_game3"):
        assert sum(bool(row[column]) for row in rows) == 3
    stored = read_biocnn_checkpoint(trained / BEST)["biocnn"]
    assert stored["settings"]["density_scale"] == 100
    assert (stored["interval"]["images"], stored["interval"]["alpha"], stored["interval_views"]) == (12, 0.1, 8)
    # drawn_cells: image `number` of a split has 8 + number cells
    assert stored["floors"]["constant"] == pytest.approx(np.mean([8, 9, 10, 11]))
    assert stored["data"]["sigma"] > 0


def test_numbers_are_those_of_the_written_files(tested: tuple[Path, str], manifest: str) -> None:
    folder, said = tested
    metrics = json.loads((folder / "metrics.json").read_text())
    assert f"numbers:  {folder / 'metrics.json'}" in said
    assert not any(isinstance(value, (dict, list)) for value in metrics.values())
    rows = rows_of(folder / "predictions.csv")
    assert [row["id"] for row in rows] == [f"test/images/{number}.png" for number in range(3)]
    interval = read_biocnn_checkpoint(folder / BEST)["biocnn"]["interval"]
    counts, sums = [], np.zeros(3)
    for number, row in enumerate(rows):
        density = read_image(folder / f"maps/{number}.tif").array
        assert (density.dtype, density.shape) == (np.float32, (96, 80))
        count = density.sum(dtype=np.float64)
        counts.append(count)
        true = cells(4000 + number, 8 + number)[1]
        assert int(row["true"]) == len(true) == 8 + number
        reach = interval["quantile"] * math.sqrt(max(count, 1))
        expected = [count, max(count - reach, 0), count + reach, count - len(true)]
        # two decimals
        np.testing.assert_allclose([float(row[n]) for n in ("count", "low", "high", "error")], expected, atol=0.0051)
        points = read_points(folder / f"maps/points/{number}.csv", (96, 80), allow_empty=True)
        match = match_points(points, true, 3.0)
        sums += (match.true_positive, match.false_positive, match.false_negative)
        assert int(row["true_positive_tol3px"]) == match.true_positive
    error = np.array(counts) - [8, 9, 10]
    assert metrics["mae"] == metrics["game0"] == pytest.approx(np.abs(error).mean(), abs=1e-5)  # float32 maps
    assert metrics["rmse"] == pytest.approx(np.sqrt((error**2).mean()), abs=1e-5)
    assert metrics["bias"] == pytest.approx(error.mean(), abs=1e-5)
    assert metrics["game1"] <= metrics["game2"] <= metrics["game3"]
    assert metrics["f1"] == metrics["f1_tol3px"] == pytest.approx(point_scores(*sums)["f1"])
    inside = [float(row["low"]) <= int(row["true"]) <= float(row["high"]) for row in rows]
    assert metrics["coverage"] == pytest.approx(np.mean(inside))
    assert (metrics["views"], metrics["n_images"], metrics["n_cells"]) == (8, 3, 27)
    assert metrics["floor_constant_mae"] == pytest.approx(np.abs(9.5 - np.array([8, 9, 10])).mean())
    # The line through the training images by another library, on the test images.
    train = [cells(5000 + number, 8 + number)[0].sum() for number in range(4)]
    test = [cells(4000 + number, 8 + number)[0].sum() for number in range(3)]
    line = np.polyfit(np.array(train, float), [8, 9, 10, 11], 1)
    assert metrics["floor_linear_mae"] == pytest.approx(np.abs(np.polyval(line, test) - [8, 9, 10]).mean(), rel=1e-6)


def test_pictures_of_a_test(tested: tuple[Path, str]) -> None:
    folder, _ = tested
    names = {str(path.relative_to(folder / "figures")) for path in (folder / "figures").rglob("*.png")}
    sheets = {"counts.png", "learning_curves.png", "points.png"}
    assert names == sheets | {f"overlays/{number}.png" for number in range(3)}
    # A white cross on every point that was found, and nothing coloured where no point is near.
    points, true = read_points(folder / "maps/points/2.csv", (96, 80), allow_empty=True), cells(4002, 10)[1]
    picture = np.asarray(Image.open(folder / "figures/overlays/2.png"))[:96, :80]
    match = match_points(points, true, 3.0)
    assert match.true_positive > 0
    centres = np.rint(points[match.prediction]).astype(int)
    np.testing.assert_array_equal(picture[tuple(centres.T)], 255)
    marked = np.argwhere((np.ptp(picture.astype(int), axis=2) > 60) | (picture.min(axis=2) == 255))
    every = np.concatenate([points, true])
    assert np.abs(marked[:, None] - every).max(2).min(1).max() <= 1.5  # an arm of a pixel, and rounding


def test_a_test_may_not_change_the_scale_of_the_checkpoint(
    tested: tuple[Path, str], manifest: str, tmp_path: Path
) -> None:
    shutil.copy(tested[0] / BEST, tmp_path / "best.ckpt")
    more = ["--model.density_scale", "1"]
    with pytest.warns(UserWarning, match="density_scale is 100, with which the weights were trained: 1 is not used"):
        run("test", "--ckpt_path", str(tmp_path / "best.ckpt"), *data_arguments(manifest), *more)
    found, before = (
        json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path / "best_results", tested[0])
    )
    assert (found["mae"], found["density_scale"]) == (before["mae"], 100)


def test_a_killed_training_gets_its_interval_from_a_test(trained: Path, manifest: str, tmp_path: Path) -> None:
    shutil.copy(trained / BEST, tmp_path / "best.ckpt")
    stored = read_biocnn_checkpoint(trained / BEST)["biocnn"]
    # As an epoch leaves it, fitted in one view; which width it had does not matter.
    update_biocnn_section(tmp_path / "best.ckpt", interval_views=1, interval={**stored["interval"], "quantile": 9.0})
    run("test", "--ckpt_path", str(tmp_path / "best.ckpt"), *data_arguments(manifest))
    assert read_biocnn_checkpoint(tmp_path / "best.ckpt")["biocnn"] == stored


def test_batch_norm_is_estimated_again_only_where_that_helps(trained: Path, manifest: str, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / RUN)
    best = tmp_path / RUN / BEST
    spoiled = read_checkpoint(best)
    statistics = {name for name in spoiled["state_dict"] if "running_" in name}
    assert statistics
    for name in statistics:
        spoiled["state_dict"][name] += 3
    torch.save(spoiled, best)
    finished = [*fit_arguments(manifest, tmp_path), "--ckpt_path", "last"]  # there is no step left to train
    assert "after; kept" in run(*finished)
    found = read_checkpoint(best)
    changed = {
        name
        for name, value in found["state_dict"].items()
        if not torch.equal(value, spoiled["state_dict"][name]) and "num_batches" not in name
    }
    assert changed == statistics
    assert "after; not kept" in run(*finished)  # the same once more is no better
    again = read_checkpoint(best)
    assert all(torch.equal(value, again["state_dict"][name]) for name, value in found["state_dict"].items())
    assert again["biocnn"] == found["biocnn"]
    assert "Batch norm" not in run(*finished, "--model.reestimate_batch_norm", "false")


def write_lab_images(folder: Path) -> None:
    """Two images of other sizes; one knows its pixel size, and is much brighter."""
    save(folder / "a.png", cells(50, 9, height=70, width=91)[0])
    pixels = 255 - cells(51, 12, height=101, width=67)[0] // 4
    options: dict[str, Any] = {"imagej": True, "resolution": (2.0, 4.0), "metadata": {"unit": "um"}}
    tifffile.imwrite(folder / "b.tif", pixels, **options)


def square(name: str, low: float, high: float) -> dict[str, Any]:
    """A square region as QuPath writes it, measured from the corner of the first pixel."""
    ring = [[low, low], [high, low], [high, high], [low, high], [low, low]]
    geometry = {"type": "Polygon", "coordinates": [ring]}
    return {"type": "Feature", "geometry": geometry, "properties": {"name": name}}


def test_prediction_needs_the_checkpoint_alone(trained: Path, tmp_path: Path) -> None:
    write_lab_images(tmp_path / "lab")
    regions = {"type": "FeatureCollection", "features": [square("left", 0, 40), square("right", 30, 60)]}
    (tmp_path / "regions.geojson").write_text(json.dumps(regions))
    best = tmp_path / "elsewhere" / "mine.ckpt"
    best.parent.mkdir()
    shutil.copy(trained / BEST, best)
    arguments = ["predict", "--ckpt_path", str(best), "--data.images", str(tmp_path / "lab" / "*.*"), *QUIET]
    said = run(*arguments, "--rois", str(tmp_path / "regions.geojson"))
    assert "2 image(s) counted, 4 region(s)" in said
    folder = best.parent / "mine_results" / "predictions_lab"
    rows = rows_of(folder / "predictions.csv")
    assert [(Path(row["id"]).name, row["region"]) for row in rows] == [
        (name, region) for name in ("a.png", "b.tif") for region in ("", "left", "right")
    ]
    model = biocnn.load(best)
    assert isinstance(model, Counter)
    for start, name, shape in ((0, "a", (70, 91)), (3, "b", (101, 67))):
        image, left, right = rows[start : start + 3]
        pixels, density = read_image(image["id"]).array, read_image(folder / f"maps/{name}.tif").array
        np.testing.assert_allclose(model.density(pixels), density, atol=1e-6)
        counts = [float(image[column]) for column in ("count", "low", "high")]
        np.testing.assert_allclose(counts, model.count(pixels), atol=0.0051)  # two decimals
        assert (int(image["rows"]), int(image["columns"]), int(image["pixels"])) == (*shape, shape[0] * shape[1])
        assert float(left["count"]) == pytest.approx(density[:40, :40].sum(dtype=np.float64), abs=0.0051)
        assert float(right["count"]) == pytest.approx(density[30:60, 30:60].sum(dtype=np.float64), abs=0.0051)
        assert (int(left["pixels"]), int(right["pixels"])) == (1600, 900)
        assert "the interval is made for whole images" in left["flags"]
        written = rows_of(folder / f"points/{name}.csv")
        found = np.array([[float(row["row"]), float(row["column"])] for row in written]).reshape(-1, 2)
        np.testing.assert_allclose(found, model.points(pixels), atol=0.00051)  # three decimals
        assert int(image["points"]) == len(found)
        assert (folder / f"overlays/{name}.png").is_file()
    assert (rows[0]["area_um2"], rows[4]["area_um2"]) == ("", str(1600 * 0.25 * 0.5))
    assert "intensity unlike the training images" in rows[3]["flags"]
    assert "intensity" not in rows[0]["flags"]


def test_regions_of_a_folder_belong_to_images_by_name(trained: Path, tmp_path: Path) -> None:
    write_lab_images(tmp_path / "lab")
    (tmp_path / "rois").mkdir()
    (tmp_path / "rois" / "a.geojson").write_text(json.dumps(square("only", 0, 20)))
    shutil.copy(trained / BEST, tmp_path / "mine.ckpt")
    arguments = ["predict", "--ckpt_path", str(tmp_path / "mine.ckpt"), "--data.rois", str(tmp_path / "rois"), *QUIET]
    said = run(*arguments, "--data.images", str(tmp_path / "lab"), code=2)
    assert "one file of regions for each image" in said
    assert f"{tmp_path / 'lab' / 'b.tif'} (0)" in said
    assert not (tmp_path / "mine_results").exists()
    run(*arguments, "--data.images", str(tmp_path / "lab" / "a.png"))
    (table,) = (tmp_path / "mine_results").rglob("predictions.csv")
    assert [row["region"] for row in rows_of(table)] == ["", "only"]


def test_a_region_outside_an_image_stops_before_any_is_predicted(trained: Path, tmp_path: Path) -> None:
    write_lab_images(tmp_path / "lab")
    regions = {"type": "FeatureCollection", "features": [square("in both", 0, 40), square("in one", 72, 90)]}
    (tmp_path / "regions.geojson").write_text(json.dumps(regions))
    shutil.copy(trained / BEST, tmp_path / "mine.ckpt")
    arguments = ["predict", "--ckpt_path", str(tmp_path / "mine.ckpt"), "--data.images", str(tmp_path / "lab"), *QUIET]
    said = run(*arguments, f"--rois={tmp_path / 'regions.geojson'}", code=2)
    # a.png has 70x91 px, b.tif 101x67.
    assert f"{tmp_path / 'lab' / 'a.png'}: Region 'in one' (rows 71.5 to 89.5" in said
    assert not (tmp_path / "mine_results").exists()
    # A stack has its regions in every plane, and a file may be called like a plane.
    (tmp_path / "lab" / "a.png").unlink()
    (tmp_path / "lab" / "b.tif").unlink()
    tifffile.imwrite(tmp_path / "lab" / "c.tif", np.stack([cells(50)[0]] * 2), photometric="minisblack")
    save(tmp_path / "lab" / "d#1.png", cells(51)[0])
    (tmp_path / "rois").mkdir()
    for name in ("c", "d#1"):
        (tmp_path / "rois" / f"{name}.geojson").write_text(json.dumps(square("only", 0, 20)))
    run(*arguments, "--rois", str(tmp_path / "rois"))
    (table,) = (tmp_path / "mine_results").rglob("predictions.csv")
    names = [(Path(row["id"]).name, row["region"]) for row in rows_of(table)]
    assert names == [(name, region) for name in ("c.tif#0", "c.tif#1", "d#1.png") for region in ("", "only")]


def test_images_of_one_group_give_one_to_the_interval(tmp_path: Path) -> None:
    # 1.png, 10.png and 11.png are of one slide; an image whose path tells no slide stands for itself.
    manifest = write_cells(tmp_path / "data", SPLITS, group={"pattern": "(valid/images/1)"})
    said = run(*fit_arguments(manifest, tmp_path, "--trainer.max_epochs", "1"))
    assert "(10 validation images, one of each group)" in said
    best = tmp_path / RUN / BEST
    stored = read_biocnn_checkpoint(best)["biocnn"]
    assert (stored["interval"]["images"], stored["interval_per_group"]) == (10, True)
    # With fewer slides there is none, and it says why; the interval is fitted again as it is for another alpha.
    run("test", "--ckpt_path", str(best), *data_arguments(manifest), "--model.alpha", "0.05")
    metrics = json.loads((tmp_path / RUN / "metrics.json").read_text())
    expected = "10 validation images: an interval of 0.95 needs at least 19"
    assert metrics["interval_note"].startswith(expected)
    assert metrics["interval_note"].endswith("(of each group one image is taken)")
    rows = rows_of(tmp_path / RUN / "predictions.csv")
    assert all("(of each group one image is taken)" in row["flags"] for row in rows)


def test_too_few_validation_images_for_an_interval_are_said(manifest: str, tmp_path: Path) -> None:
    more = ["--data.training_images", "3", "--data.valid_images", "5", "--trainer.max_epochs", "1"]
    with pytest.warns(UserWarning, match="No interval of counts: 5 validation images.*needs at least 9"):
        run(*fit_arguments(manifest, tmp_path, *more))
    best = tmp_path / RUN / BEST
    run("test", "--ckpt_path", str(best), *data_arguments(manifest))
    metrics = json.loads((tmp_path / RUN / "metrics.json").read_text())
    assert (metrics["coverage"], metrics["interval_images"]) == (None, 5)
    rows = rows_of(tmp_path / RUN / "predictions.csv")
    assert {(row["low"], row["high"]) for row in rows} == {("", "")}
    assert all("no interval: 5 validation images" in row["flags"] for row in rows)
    with pytest.warns(UserWarning, match="Counts come with no interval: 5 validation images"):
        model = biocnn.load(best)
    assert isinstance(model, Counter)
    count = model.count(cells(1)[0])
    assert (count.low, count.high) == (0, math.inf)


def test_masks_instead_of_dots_stop_before_training(tmp_path: Path) -> None:
    own = write_cells(tmp_path / "data", SPLITS)
    blobs = np.zeros((96, 80), np.uint8)
    blobs[10:30, 10:30] = 255
    save(tmp_path / "data/train/points/1.png", blobs)
    said = run(*fit_arguments(own, tmp_path / "runs"), code=2)
    assert "1.png" in said
    assert "masks or dots of a brush, not dots" in said.partition("error:")[2]
    assert not (tmp_path / "runs").exists()


def test_a_network_for_other_images_stops_before_training(manifest: str, tmp_path: Path) -> None:
    said = run(*fit_arguments(manifest, tmp_path / "runs", network=unet(3)), code=2)
    assert "in_channels is 3, and the images have 1 channel(s): grey. Set it to 1, or to null" in said
    assert not (tmp_path / "runs").exists()
