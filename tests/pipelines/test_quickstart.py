"""The quickstart as a user runs it, shortened; in whole, it is a slow test."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from biocnn.data.samples import sample_patches, write_sample_patches

ROOT = Path(__file__).parents[2]
SHORT = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.enable_progress_bar", "false"]
SHORT += ["--model.network.init_args.layers", "[0, 1]", "--model.test_time_augmentation", "false"]


def quickstart(runs: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "pipelines" / "quickstart.py"), "--runs", str(runs), *arguments],
        cwd=runs,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "pipelines"))
    return importlib.import_module("quickstart")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_runs_twice_and_overwrites_nothing(tmp_path: Path) -> None:
    said = quickstart(tmp_path, *SHORT)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["quickstart", "quickstart-data"]
    (run,) = (tmp_path / "quickstart").iterdir()
    pictures = ["learning_curves.png", "mistakes.png", "reliability.png", "roc.png"]
    assert sorted(path.name for path in (run / "figures").iterdir()) == pictures
    assert said.rstrip().splitlines()[-5:] == [
        f"Pictures to look at, in {run / 'figures'}:",
        *(f"  {name}" for name in pictures),
    ]
    assert "mean colour of the whole patch gives an AUC of 0.5" in said
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["manifest"] == "sample"
    assert f"AUC {metrics['auroc']:.4f}" in said
    before = contents(tmp_path)
    quickstart(tmp_path, *SHORT)
    assert len(list((tmp_path / "quickstart").iterdir())) == 2
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before


def test_mean_colour_against_sklearn(script: ModuleType, tmp_path: Path) -> None:
    train, test = sample_patches("train"), sample_patches("test")
    mean = [patches.images.mean((1, 2)) for patches in (train, test)]
    scaled = [(values - mean[0].mean(0)) / mean[0].std(0) for values in mean]
    model = LogisticRegression(C=1e3, tol=1e-8, max_iter=1000).fit(scaled[0], train.labels)
    expected = model.decision_function(scaled[1])
    np.testing.assert_allclose(script._logits(mean[0], train.labels, mean[1]), expected, rtol=1e-3, atol=1e-3)
    area = script.mean_colour_auc(write_sample_patches(tmp_path))
    assert area == pytest.approx(roc_auc_score(test.labels, expected), abs=1e-3)


def test_an_error_in_an_option_stops_before_the_test(script: ModuleType, tmp_path: Path) -> None:
    assert script.main(["--runs", str(tmp_path), *SHORT, "--data.manifest", "pcan"]) == 2
    assert not list(tmp_path.glob("quickstart/*/metrics.json"))


@pytest.mark.slow
def test_the_whole_of_it_learns_to_look_at_the_centre(tmp_path: Path) -> None:
    quickstart(tmp_path)
    (run,) = (tmp_path / "quickstart").iterdir()
    # 0.995 was measured, and 0.52 for the mean colour.
    assert json.loads((run / "metrics.json").read_text())["auroc"] > 0.95
