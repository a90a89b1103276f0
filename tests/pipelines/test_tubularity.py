"""The tubularity pipeline from end to end, as a user runs it."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from skimage import measure, morphology

import biocnn
from biocnn.checkpoints import read_biocnn_checkpoint, update_biocnn_section
from biocnn.data.images import read_image, read_mask
from biocnn.metrics.calling import SIZES
from biocnn.metrics.segmentation import score_image
from tests.data.drawn import save
from tests.pipelines.drawn_runs import (
    QUIET,
    SPLITS,
    data_arguments,
    disc,
    fit_arguments,
    picture,
    run,
    spoil,
    unet,
    write_data,
)

RUN = Path("tubularity") / "a"
BEST = Path("checkpoints") / "best.ckpt"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, manifest: str) -> Path:
    """A run that was left to choose what it can; no test changes it."""
    runs = tmp_path_factory.mktemp("runs")
    chosen = ["--data.tile_size", "null", "--data.batch_size", "null", "--data.tiles_per_epoch", "null"]
    said = run(*fit_arguments(manifest, runs, *chosen, network=unet(None)))
    for text in (
        "data audit: train: 4 images of 96x80x3 uint8",
        "model.network.init_args.in_channels: 3 (red, green, blue)",
        "fingerprint: 4 training images of 96x80 px (rows x columns), pixel size unknown",
        "data.tile_size: 64 (128, or 8 times the widest radius",
        "data.batch_size: 16 (2^17 pixels",
        "data.tiles_per_epoch: 128 (as many from every image",
        "model.image_mean, model.image_std: [0.3",
        "SoftClDice.iterations: ",
        "Chosen on validation: threshold",
        f"test --ckpt_path {runs / RUN / BEST} --data.root {Path(manifest).parent} --data.manifest {manifest}",
    ):
        assert text in said
    return runs / RUN


@pytest.fixture(scope="module")
def tested(tmp_path_factory: pytest.TempPathFactory, trained: Path, manifest: str) -> Path:
    """The same run after a test."""
    folder = tmp_path_factory.mktemp("tested") / "run"
    shutil.copytree(trained, folder)
    said = run("test", "--ckpt_path", str(folder / BEST), *data_arguments(manifest))
    assert f"pictures: {folder / 'figures'}" in said
    return folder


@pytest.fixture(scope="module")
def trained_on_16_bits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on grey images of 16 bits, whose data are gone."""
    folder = tmp_path_factory.mktemp("grey")
    run(*fit_arguments(write_data(folder / "data", bits=16), folder, network=unet(1)))
    shutil.rmtree(folder / "data")
    return folder / RUN


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open()))


def test_a_run_writes_one_folder(trained: Path) -> None:
    assert [path.name for path in trained.parent.parent.iterdir()] == ["tubularity"]
    names = {str(path.relative_to(trained)) for path in trained.rglob("*") if path.parent.name != "tensorboard"}
    tables = {"config.yaml", "run.json", "metrics.csv", "throughput.csv"}
    assert names == tables | {"tensorboard", "checkpoints", "checkpoints/best.ckpt", "checkpoints/last.ckpt"}
    record = json.loads((trained / "run.json").read_text())
    # 3x3 convolutions with batch norm, two a level, the transposed one between levels, and the last 1x1.
    weights = 9 * (3 * 4 + 4 * 4) + 9 * (4 * 8 + 8 * 8) + (4 * 8 * 4 + 4) + 9 * (8 * 4 + 4 * 4) + (4 + 1)
    assert record["parameters"] == weights + 2 * (4 + 4 + 8 + 8 + 4 + 4)
    assert (record["seed"], record["network"]) == (0, "UNet")
    assert record["data"]["sizes"] == {"train": 4, "valid": 2}
    assert record["data"]["fingerprint"]["n_images"] == 4
    assert (record["data"]["tile_size"], record["data"]["batch_size"]) == (64, 16)
    rows = rows_of(trained / "metrics.csv")
    columns = ["val_dice", "val_cldice", "val_betti0_error", "val_betti1_error", "val_auroc", "val_bce"]
    for column in (*columns, "val_threshold"):
        assert sum(bool(row[column]) for row in rows) == 2
    assert sum(bool(row["train_loss"]) for row in rows) == 2 * 8
    stored = read_biocnn_checkpoint(trained / BEST)["biocnn"]
    assert (stored["threshold_views"], stored["threshold_steps"], stored["sizes_searched"]) == (8, 1, True)
    assert 0 < stored["threshold"] < 1
    assert stored["min_component"] in SIZES
    assert stored["data"]["fingerprint"] == record["data"]["fingerprint"]
    assert stored["settings"]["image_mean"] == record["data"]["fingerprint"]["mean"]


def test_config_repeats_the_run(trained: Path, tmp_path: Path) -> None:
    run("fit", "--config", str(trained / "config.yaml"), "--trainer.default_root_dir", str(tmp_path))
    assert (tmp_path / RUN / "metrics.csv").read_text() == (trained / "metrics.csv").read_text()


def test_numbers_are_those_of_the_written_files(tested: Path, manifest: str) -> None:
    metrics = json.loads((tested / "metrics.json").read_text())
    threshold, smallest = metrics["rule_threshold"], metrics["rule_min_component_px"]
    rows = rows_of(tested / "predictions.csv")
    assert [row["id"] for row in rows] == [f"test/images/{number}.png" for number in range(3)]
    inside = disc(96, 80)
    dice, betti = [], []
    for number, row in enumerate(rows):
        truth = picture(200 + number)[1]
        probability = read_image(tested / f"maps/{number}.tif").array
        assert (probability.dtype, probability.shape) == (np.float32, (96, 80))
        scores = score_image(probability, truth, inside, threshold=threshold, min_component=smallest)[0]
        for name, value in scores.items():
            assert float(row[name] or "nan") == pytest.approx(value, abs=1e-6, nan_ok=True), name  # six digits
        called = read_mask(tested / f"masks/{number}.png") > 0
        above = (probability >= threshold) & inside
        expected = morphology.remove_small_objects(above, max_size=max(smallest, 1) - 1, connectivity=2)
        np.testing.assert_array_equal(called, expected)
        here = truth & inside
        dice.append(2 * (called & here).sum() / (called.sum() + here.sum()))
        counts = [measure.label(mask, connectivity=2).max() for mask in (called, here)]
        betti.append(abs(counts[0] - counts[1]))
    assert metrics["dice"] == pytest.approx(np.mean(dice))
    assert metrics["betti0_error"] == pytest.approx(np.mean(betti))
    for name in ("dice", "cldice", "betti0_error", "betti1_error"):
        assert metrics[f"{name}_low"] <= metrics[name] <= metrics[f"{name}_high"]
    assert not any(isinstance(value, (dict, list)) for value in metrics.values())
    assert (metrics["views"], metrics["steps"], metrics["n_images"], metrics["seed"]) == (8, 1, 3, 0)
    assert metrics["rule_foreground_connectivity"] == 8
    stored = read_biocnn_checkpoint(tested / BEST)["biocnn"]
    assert (threshold, smallest) == (stored["threshold"], stored["min_component"])


def test_pictures_of_a_test(tested: Path) -> None:
    names = {str(path.relative_to(tested / "figures")) for path in (tested / "figures").rglob("*.png")}
    sheets = {"images.png", "roc.png", "overlays.png", "learning_curves.png"}
    assert names == sheets | {f"overlays/{number}.png" for number in range(3)}
    # Exact mistakes in their colours: outside the field of view there are none.
    picture_of = np.asarray(Image.open(tested / "figures/overlays/0.png"))[:96, :80].astype(int)
    called, truth = read_mask(tested / "masks/0.png") > 0, picture(200)[1]
    coloured = np.ptp(picture_of, axis=2) > 60  # sky blue or vermilion; the rest is grey or nearly white
    np.testing.assert_array_equal(coloured, (called != truth) & disc(96, 80))


def test_results_are_replaced_or_moved_aside(tested: Path, manifest: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(tested, folder)
    before = (folder / "metrics.json").read_text()
    same = ["test", "--ckpt_path", str(folder / BEST), *data_arguments(manifest)]
    run(*same)
    assert (folder / "metrics.json").read_text() == before
    said = run(*same, "--model.test_time_augmentation", "false", "--model.drop_specks", "false")
    assert "Chosen on validation: threshold 0." in said
    other = json.loads((folder / "metrics.json").read_text())
    assert (other["views"], other["rule_min_component_px"]) == (1, 0)
    assert not (folder / "previous").exists()  # the same checkpoint and the same test images
    said = run("test", "--ckpt_path", str(folder / "checkpoints/last.ckpt"), *data_arguments(manifest))
    (aside,) = (folder / "previous").iterdir()
    assert f"was moved to {aside}" in said
    assert json.loads((aside / "metrics.json").read_text()) == other
    assert len(list((aside / "maps").iterdir())) == len(list((folder / "maps").iterdir())) == SPLITS["test"]


def write_lab_images(folder: Path) -> None:
    """Images as they come from another microscope, of other sizes; one knows its pixel size."""
    save(folder / "a.png", picture(50, height=70, width=91)[0])
    pixels = picture(51, height=101, width=67)[0]
    options: dict[str, Any] = {"imagej": True, "resolution": (2.0, 4.0), "metadata": {"unit": "um"}}
    tifffile.imwrite(folder / "b.tif", pixels, photometric="rgb", **options)


def test_prediction_needs_the_checkpoint_alone(trained: Path, tmp_path: Path) -> None:
    write_lab_images(tmp_path / "lab")
    best = tmp_path / "elsewhere" / "mine.ckpt"
    best.parent.mkdir()
    shutil.copy(trained / BEST, best)
    arguments = ["predict", "--ckpt_path", str(best), "--data.images", str(tmp_path / "lab" / "*.*"), *QUIET]
    assert "2 image(s) predicted, threshold" in run(*arguments)
    folder = best.parent / "mine_results" / "predictions_lab"
    rows = rows_of(folder / "predictions.csv")
    assert [Path(row["id"]).name for row in rows] == ["a.png", "b.tif"]
    model = biocnn.load(best)
    for row, name, shape in zip(rows, "ab", [(70, 91), (101, 67)], strict=True):
        pixels = read_image(row["id"]).array
        written, mask = read_image(folder / f"maps/{name}.tif"), read_mask(folder / f"masks/{name}.png") > 0
        np.testing.assert_allclose(model.tubularity(pixels), written.array, atol=1e-6)
        np.testing.assert_array_equal(model.segment(pixels), mask)
        assert (int(row["rows"]), int(row["columns"])) == mask.shape == shape
        assert int(row["structure_px"]) == mask.sum() > 0
        assert (folder / f"overlays/{name}.png").is_file()
    assert [row["structure_um2"] for row in rows] == ["", str(0.25 * 0.5 * int(rows[1]["structure_px"]))]
    assert read_image(folder / "maps/b.tif").pixel_size_um == pytest.approx((0.25, 0.5))
    run(*arguments)  # nothing is replaced
    again = best.parent / "mine_results" / "predictions_lab_2"
    assert (again / "predictions.csv").read_text() == (folder / "predictions.csv").read_text()


def test_prediction_takes_what_the_training_images_were(trained_on_16_bits: Path, tmp_path: Path) -> None:
    pixels = picture(60, bits=16, height=75, width=83)[0]
    save(tmp_path / "lab/grey.tif", pixels)
    best = trained_on_16_bits / BEST
    run("predict", "--ckpt_path", str(best), "--data.images", str(tmp_path / "lab"), *QUIET)
    folder = trained_on_16_bits / f"predictions_{tmp_path.name}_lab"
    model = biocnn.load(best)
    np.testing.assert_allclose(model.tubularity(pixels), read_image(folder / "maps/grey.tif").array, atol=1e-6)
    np.testing.assert_array_equal(model.segment(pixels), read_mask(folder / "masks/grey.png") > 0)
    assert model.channels == ("grey",)


@pytest.mark.parametrize(
    ("bits", "message"), [(8, "expected 1 channel(s) (grey) of uint16"), (16, "(red, green, blue) of uint8")]
)
def test_images_of_another_kind_are_named(
    trained: Path, trained_on_16_bits: Path, tmp_path: Path, bits: int, message: str
) -> None:
    save(tmp_path / "odd.tif", picture(70, bits)[0])
    folder = trained_on_16_bits if bits == 8 else trained
    before = sorted(folder.rglob("*"))
    arguments = ["predict", "--ckpt_path", str(folder / BEST), "--data.images", str(tmp_path / "odd.tif"), *QUIET]
    said = run(*arguments, code=2)
    assert f"error: {tmp_path / 'odd.tif'} is 96x80x" in said
    assert message in said
    assert sorted(folder.rglob("*")) == before


def test_a_test_on_images_of_another_kind_is_refused(trained_on_16_bits: Path, manifest: str) -> None:
    said = run("test", "--ckpt_path", str(trained_on_16_bits / BEST), *data_arguments(manifest), code=2)
    assert "was trained on images with 1 channel(s) (grey) of uint16; those of 'drawn8' have 3" in said


def test_refinement_and_membranes(manifest: str, tmp_path: Path) -> None:
    more = ["--model.refinement_steps", "3", "--model.membranes", "true", "--trainer.max_epochs", "1"]
    run(*fit_arguments(manifest, tmp_path, *more, network=unet(4)))
    best = tmp_path / RUN / BEST
    run("test", "--ckpt_path", str(best), *data_arguments(manifest))
    metrics = json.loads((tmp_path / RUN / "metrics.json").read_text())
    assert metrics["steps"] == 3
    cells = {name for name in metrics if name.endswith("_cell4")}
    assert {"adapted_rand_error_cell4", "v_rand_thinned_cell4", "v_info_thinned_cell4"} <= cells
    content = best.read_bytes()
    said = run("test", "--ckpt_path", str(best), *data_arguments(manifest), "--model.prediction_steps", "1")
    assert "Chosen on validation" in said
    assert best.read_bytes() == content  # the stored threshold is that of three steps
    one = json.loads((tmp_path / RUN / "metrics.json").read_text())
    assert one["steps"] == 1
    assert one["auroc"] != metrics["auroc"]


NETWORKS = {
    "deep": unet(channels=[4, 4, 8], deep_supervision=True),
    "monai": {
        "class_path": "monai.networks.nets.BasicUNet",
        "init_args": {"spatial_dims": 2, "in_channels": 3, "out_channels": 1, "features": [4, 4, 8, 8, 8, 4]},
    },
    "smp": {
        "class_path": "segmentation_models_pytorch.Unet",
        "init_args": {"encoder_name": "mobilenet_v2", "encoder_weights": None, "decoder_channels": [16, 8, 8, 8, 8]},
    },
}


@pytest.mark.parametrize(
    ("kind", "package"), [("deep", "biocnn"), ("monai", "monai"), ("smp", "segmentation_models_pytorch")]
)
def test_networks_by_class_path(manifest: str, tmp_path: Path, kind: str, package: str) -> None:
    pytest.importorskip(package)
    network = NETWORKS[kind]
    network = network if isinstance(network, str) else json.dumps(network)
    quick = ["--trainer.max_epochs", "1", "--model.test_time_augmentation", "false"]
    run(*fit_arguments(manifest, tmp_path, *quick, network=network))
    best = tmp_path / RUN / BEST
    pixels = picture(80)[0]
    save(tmp_path / "lab.png", pixels)
    run("predict", "--ckpt_path", str(best), "--data.images", str(tmp_path / "lab.png"), *QUIET)
    model = biocnn.load(best)  # made by name
    assert type(model.task.network).__module__.split(".")[0] == package
    (written,) = (tmp_path / RUN).glob("predictions_*/maps/lab.tif")
    np.testing.assert_allclose(model.tubularity(pixels), read_image(written).array, atol=1e-6)


def test_a_killed_training_gets_its_threshold_from_a_test(trained: Path, manifest: str, tmp_path: Path) -> None:
    shutil.copy(trained / BEST, tmp_path / "best.ckpt")
    stored = read_biocnn_checkpoint(trained / BEST)["biocnn"]
    # As an epoch leaves it, chosen by one view; which values it had does not matter.
    update_biocnn_section(tmp_path / "best.ckpt", threshold=0.1, min_component=7, threshold_views=1)
    run("test", "--ckpt_path", str(tmp_path / "best.ckpt"), *data_arguments(manifest))
    found = read_biocnn_checkpoint(tmp_path / "best.ckpt")["biocnn"]
    assert found == stored


@pytest.mark.parametrize(
    ("what", "manifest_fields", "messages"),
    [
        ("size", {}, ["train/masks/1.png", "differ in size"]),
        ("values", {}, ["valid/masks/1.png", "85"]),
        ("empty", {}, ["No mask of 'train' holds any foreground", "train/images/0.png"]),
        ("tile", {}, ["train/images/0.png has 96x80 px", "--data.tile_size to at most 80"]),
        ("nan", {"image": {"dtype": "float32"}, "channels": ["grey"]}, ["train/images/2.tif", "NaN"]),
        ("constant", {}, ["train/images/3.png", "one value"]),
        ("16 bits", {}, ["train/images/2.tif", "uint8"]),
        ("nothing", {"channels": ["grey"]}, ["train/images/0.png", "channel"]),
    ],
)
def test_bad_input_stops_before_training(
    tmp_path: Path, what: str, manifest_fields: dict[str, Any], messages: list[str]
) -> None:
    root = tmp_path / "data"
    splits = {
        split: {"images": f"{split}/images/*", "masks": f"{split}/masks/*.png", "valid": f"{split}/fields/*.png"}
        for split in SPLITS
    }
    own = write_data(root, splits=splits, **manifest_fields)
    more = spoil(root, what)
    said = run(*fit_arguments(own, tmp_path / "runs", *more, network=unet(None)), code=2)
    assert said.count("error:") == 1
    assert "Traceback" not in said
    for message in messages:
        assert message in said.partition("error:")[2]
    assert not (tmp_path / "runs").exists()


def test_a_network_for_other_images_stops_before_training(manifest: str, tmp_path: Path) -> None:
    said = run(*fit_arguments(manifest, tmp_path / "runs", network=unet(1)), code=2)
    assert "in_channels is 1, and the network will be given 3 channel(s): red, green, blue. Set it to 3" in said
    refined = fit_arguments(manifest, tmp_path / "runs", "--model.refinement_steps", "2", network=unet(3))
    assert "4 channel(s): red, green, blue, the previous map. Set it to 4" in run(*refined, code=2)
    assert not (tmp_path / "runs").exists()


def test_a_training_without_validation_says_what_to_do(manifest: str, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="no best.ckpt and no threshold.*--trainer.check_val_every_n_epoch 1"):
        run(*fit_arguments(manifest, tmp_path, "--trainer.check_val_every_n_epoch", "5"))
    names = [path.name for path in (tmp_path / RUN / "checkpoints").iterdir()]
    assert names == ["last.ckpt"]


def test_a_finished_run_keeps_its_thresholds_when_it_is_continued(manifest: str, tmp_path: Path) -> None:
    arguments = fit_arguments(manifest, tmp_path, "--trainer.max_epochs", "1")
    run(*arguments)
    before = read_biocnn_checkpoint(tmp_path / RUN / BEST)["biocnn"]
    run(*arguments, "--ckpt_path", "last")
    assert read_biocnn_checkpoint(tmp_path / RUN / BEST)["biocnn"] == before
