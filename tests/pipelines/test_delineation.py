"""The recipe that learns to classify paths as well, as a user runs it."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import biocnn
from biocnn.cli import main
from biocnn.data.graph_files import read_graph
from biocnn.data.graphs import total_length
from biocnn.data.images import read_image
from biocnn.delineation.candidates import candidate_paths
from biocnn.delineation.delineate import delineate
from biocnn.delineation.samples import sample_points
from biocnn.inference.paths import classifier_weights, path_probabilities
from biocnn.inference.segmentation import Segmenter
from biocnn.report.overlay import write_map
from tests.pipelines.drawn_runs import ROOT, data_arguments, picture, run, write_data

RUN = Path("tubularity") / "a"
BEST = Path("checkpoints") / "best.ckpt"
SMALL = [
    *("--run", "a", "--trainer.max_epochs", "2", "--trainer.check_val_every_n_epoch", "1"),
    *("--data.tile_size", "48", "--data.batch_size", "4", "--data.tiles_per_epoch", "8"),
    *("--trainer.log_every_n_steps", "1", "--model.tile_size", "64", "--model.network.init_args.channels", "[4, 8]"),
]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, manifest: str) -> Path:
    """A run of the recipe, no longer than a second or two."""
    runs = tmp_path_factory.mktemp("runs")
    config = ["--config", str(ROOT / "pipelines" / "delineation.yaml"), "--trainer.default_root_dir", str(runs)]
    said = run("fit", *config, *data_arguments(manifest), *SMALL)
    assert "model.network.init_args.in_channels: 3 (red, green, blue)" in said
    return runs / RUN


def test_paths_are_trained_from_the_second_half_on(trained: Path) -> None:
    rows = list(csv.DictReader((trained / "metrics.csv").open()))
    steps = [int(row["step"]) for row in rows if row["train_path_loss"]]
    assert steps == [2, 3]
    assert [0 <= float(row["val_path_auroc"]) <= 1 for row in rows if row["val_path_auroc"]] == [True]
    assert json.loads((trained / "run.json").read_text())["network"] == "DualUseUNet"


def test_the_command_line_alone_names_all_parts(tmp_path: Path, manifest: str) -> None:
    parts = ["--model.network", "biocnn.networks.DualUseUNet", "--model.network.init_args.in_channels", "3"]
    parts += ["--model.paths", "biocnn.tasks.path_training.PathTraining", "--model.paths.init_args.start", "0"]
    short = [
        "--trainer.max_epochs",
        "1",
        "--trainer.limit_val_batches",
        "0",
        "--trainer.default_root_dir",
        str(tmp_path),
    ]
    run("fit", *parts, *data_arguments(manifest), *SMALL, *short)
    rows = csv.DictReader((tmp_path / RUN / "metrics.csv").open())
    assert sum(bool(row["train_path_loss"]) for row in rows) == 2


def test_the_checkpoint_is_tested_and_classifies_candidates(trained: Path, manifest: str) -> None:
    said = run("test", "--ckpt_path", str(trained / BEST), *data_arguments(manifest))
    assert "Dice" in said
    model = biocnn.load(trained / BEST, device="cpu")
    assert isinstance(model, Segmenter)
    image, mask = picture(200)
    probability = np.where(mask, 0.9, 0.05)
    candidates = candidate_paths(probability, sample_points(probability))
    found = path_probabilities(model, image, candidates)
    assert found.shape == (len(candidates),)
    assert ((found > 0) & (found < 1)).all()


def test_the_command_weighs_paths_by_the_classifier(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, mask = picture(200)
    Image.fromarray(image).save(tmp_path / "image.png")
    write_map(tmp_path / "map.tif", np.where(mask, 0.9, 0.05).astype(np.float32), (0.5, 0.5))
    command = ["delineate", str(tmp_path / "map.tif"), "--model", str(trained / BEST)]
    assert main([*command, "--out", str(tmp_path / "none.graphml")]) == 2
    assert "give --image as well" in capsys.readouterr().err
    command += ["--image", str(tmp_path / "image.png")]
    assert main([*command, "--out", str(tmp_path / "own.graphml")]) == 0
    # What the command wrote is what the classifier's probabilities lead to, whatever so short a training made of them.
    model = biocnn.load(trained / BEST, device="cpu")
    assert isinstance(model, Segmenter)
    probability = read_image(tmp_path / "map.tif").array
    expected = delineate(probability, (0.5, 0.5), weights=classifier_weights(model, image, probability))
    assert total_length(read_graph(tmp_path / "own.graphml")) == pytest.approx(total_length(expected), rel=1e-9)
    assert main([*command, "--out", str(tmp_path / "skeleton.graphml"), "--method", "skeleton"]) == 2
    assert "Only the global method" in capsys.readouterr().err


def test_the_recipe_is_that_of_tubularity_but_for_network_and_paths() -> None:
    own, other = ((ROOT / "pipelines" / f"{name}.yaml").read_text() for name in ("delineation", "tubularity"))
    added = set(own.splitlines()) - set(other.splitlines())
    assert {line.strip() for line in added if not line.startswith("#")} == {
        "class_path: biocnn.networks.DualUseUNet",
        "paths:",
        "class_path: biocnn.tasks.path_training.PathTraining",
        "init_args: {weight: 0.1, start: 0.5, tiles: 4, per_tile: 4}",
    }
