"""The baseline script on a drawn data set."""

import csv
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml
from PIL import Image
from sklearn.metrics import f1_score, roc_auc_score

from biocnn.inference.ridge import RidgeFilter

ROOT = Path(__file__).parents[2]
COUNTS = {"train": 3, "valid": 1, "test": 2}


def draw(folder: Path, count: int, seed: int) -> None:
    """Red images with dark crosses, grey values 0 and 255 of masks and fields of view, in folders by kind."""
    rng = np.random.default_rng(seed)
    for kind in ("images", "masks", "fields"):
        (folder / kind).mkdir(parents=True)
    rows, columns = np.mgrid[:80, :80]
    for number in range(count):
        row, column = rng.integers(25, 55, 2)
        mask = (abs(rows - row) <= 1) | (abs(columns - column) <= 2)
        field = np.hypot(rows - 39.5, columns - 39.5) < 37
        image = rng.normal(100 + columns - 40 * mask, 5) * field
        pixels = np.stack([image, rng.normal(99, 5, mask.shape), rng.normal(99, 5, mask.shape)], axis=2)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{number}.png")
        Image.fromarray((mask * 255).astype(np.uint8)).save(folder / "masks" / f"{number}.png")
        Image.fromarray((field * 255).astype(np.uint8)).save(folder / "fields" / f"{number}.png")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Root and manifest."""
    root = tmp_path_factory.mktemp("crosses")
    splits = {}
    for seed, (split, count) in enumerate(COUNTS.items()):
        draw(root / split, count, seed)
        kinds = {"images": "images", "masks": "masks", "valid": "fields"}
        splits[split] = {part: f"{split}/{kind}/*.png" for part, kind in kinds.items()}
    manifest = root / "crosses.yaml"
    described = {
        "name": "crosses",
        "title": "Crosses",
        "description": "Drawn.",
        "licence": "none",
        "citation": "none",
        "kind": "image-mask",
        "channels": ["red", "green", "blue"],
        "mask_values": {0: "background", 255: "line"},
        "foreground": [255],
        "splits": splits,
    }
    manifest.write_text(yaml.safe_dump(described))
    return root, manifest


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "pipelines"))
    return importlib.import_module("ridge_filters")


def arguments(data: tuple[Path, Path], out: Path, *more: str) -> list[str]:
    return ["--data.root", str(data[0]), "--data.manifest", str(data[1]), "--out", str(out / "baseline"), *more]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_scores_what_sklearn_scores_and_overwrites_nothing(
    script: ModuleType, data: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(arguments(data, tmp_path)) == 0
    (run,) = (tmp_path / "baseline").iterdir()
    said = capsys.readouterr().out
    assert f"Run folder: {run}" in said
    assert sorted(path.name for path in run.iterdir()) == ["filter.json", "metrics.json", "predictions.csv", "run.json"]

    ridge = RidgeFilter.from_dict(json.loads((run / "filter.json").read_text()))
    assert (ridge.channel, ridge.dark) == (0, True)
    with open(run / "predictions.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["id"] for row in rows] == ["test/images/0.png", "test/images/1.png"]
    for number, row in enumerate(rows):
        image, mask, field = (
            np.asarray(Image.open(data[0] / "test" / kind / f"{number}.png")) for kind in ("images", "masks", "fields")
        )
        response, truth = ridge.response(image, field > 0)[field > 0], mask[field > 0] > 0
        # predictions.csv has six digits
        assert float(row["dice"]) == pytest.approx(f1_score(truth, response >= ridge.threshold), rel=1e-5)
        assert float(row["auroc"]) == pytest.approx(roc_auc_score(truth, response), rel=1e-5)
        assert float(row["dice"]) > 0.7

    metrics = json.loads((run / "metrics.json").read_text())
    for name in ("dice", "cldice", "betti0_error_fg8", "betti1_error_fg8"):
        assert metrics[name] == pytest.approx(np.mean([float(row[name]) for row in rows]), rel=1e-5)
        assert f"valid_{name}" in metrics
    assert (metrics["n_images"], metrics["valid_n_images"]) == (2, 1)
    assert (metrics["manifest"], metrics["threshold"]) == ("crosses", ridge.threshold)
    assert json.loads((run / "run.json").read_text())["data"] == {"manifest": "crosses", "sizes": COUNTS}
    assert f"{metrics['dice']:.6g}" in said

    before = contents(tmp_path)
    assert script.main(arguments(data, tmp_path, "--membranes")) == 0
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before
    (second,) = set((tmp_path / "baseline").iterdir()) - {run}
    again = json.loads((second / "metrics.json").read_text())
    assert again["dice"] == metrics["dice"]
    assert {name for name in again if "v_rand" in name or "v_info" in name}


def test_errors_in_the_input_are_printed_without_a_traceback(data: tuple[Path, Path], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "pipelines" / "ridge_filters.py"), *arguments((tmp_path, data[1]), tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: Data set 'crosses', split 'train': no image matches")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("split", ["valid", "test"])
def test_a_missing_split_is_no_other_split(
    script: ModuleType, data: tuple[Path, Path], tmp_path: Path, split: str, capsys: pytest.CaptureFixture[str]
) -> None:
    described = yaml.safe_load(data[1].read_text())
    del described["splits"][split]
    manifest = tmp_path / "less.yaml"
    manifest.write_text(yaml.safe_dump(described))
    assert script.main(arguments((data[0], manifest), tmp_path)) == 2
    assert f"error: Manifest 'crosses' has no split '{split}'" in capsys.readouterr().err
    assert not (tmp_path / "baseline").exists()
