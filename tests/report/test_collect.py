"""Metrics of many runs as one table."""

import argparse
import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from biocnn.cli import collect as verb
from biocnn.errors import DataError
from biocnn.report.collect import collect_runs, spreads, write_table

METRICS = {"n_images": 4, "rule_threshold": 0.4, "version_torch": "2.15", "manifest": "a, b", "per_image": [1, 2]}


def make_run(folder: Path, metrics: dict[str, Any] | None, seed: int = 0, fold: int | None = None) -> Path:
    folder.mkdir(parents=True)
    data = {"folds": None, "fold": 0} if fold is None else {"folds": 3, "fold": fold}
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed_everything": seed, "data": data}))
    if metrics is not None:
        (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Three tested runs of one job, one of which has a metric that is not a number."""
    dice = [0.5, 0.7, 0.9]
    return [
        make_run(
            tmp_path / "tubularity" / f"fold{fold}",
            METRICS | {"dice": value, "dice_low": value - 0.1, "auroc": math.nan if fold == 1 else value},
            seed=7,
            fold=fold,
        )
        for fold, value in enumerate(dice)
    ]


def call(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    verb.add(parser.add_subparsers())
    parsed = parser.parse_args(["collect", *arguments])
    return int(parsed.run(parsed))


def test_one_row_for_each_run(runs: list[Path], tmp_path: Path) -> None:
    write_table(collect_runs(runs), tmp_path / "table.csv")
    with open(tmp_path / "table.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert list(rows[0])[:5] == ["run", "job", "seed", "folds", "fold"]
    assert [(row["run"], row["job"], row["seed"], row["folds"], row["fold"]) for row in rows] == [
        (f"fold{fold}", "tubularity", "7", "3", str(fold)) for fold in range(3)
    ]
    assert [float(row["dice"]) for row in rows] == [0.5, 0.7, 0.9]
    assert rows[0]["manifest"] == "a, b"
    assert "per_image" not in rows[0]


def test_mean_and_deviation_are_those_of_numpy(runs: list[Path]) -> None:
    found = {name: numbers for name, *numbers in spreads(collect_runs(runs))["tubularity"]}
    assert set(found) == {"dice", "auroc", "n_images"}, "settings and ends of intervals have no spread"
    values = np.array([0.5, 0.7, 0.9])
    np.testing.assert_allclose(found["dice"], (values.mean(), values.std(ddof=1), 3), rtol=1e-12)
    np.testing.assert_allclose(found["auroc"], (0.7, values[[0, 2]].std(ddof=1), 2), rtol=1e-12)


def test_jobs_are_not_mixed(runs: list[Path], tmp_path: Path) -> None:
    other = make_run(tmp_path / "counting" / "a", {"mae": 3.0, "dice": 0.0})
    found = spreads(collect_runs([other, *runs]))
    assert [name for name, *_ in found["counting"]] == ["mae", "dice"]
    assert math.isnan(found["counting"][0][2]), "one run has no deviation"
    (dice,) = [mean for name, mean, *_ in found["tubularity"] if name == "dice"]
    assert dice == pytest.approx(0.7)


def test_runs_without_numbers_are_named_with_the_reason(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = make_run(tmp_path / "tubularity" / "begun", None)
    stopped = make_run(tmp_path / "tubularity" / "stopped", None)
    (stopped / "requeue").write_text("SIGTERM at step 3\n")
    trained = make_run(tmp_path / "tubularity" / "trained", None)
    (trained / "checkpoints").mkdir()
    (trained / "checkpoints" / "best.ckpt").touch()
    torn = make_run(tmp_path / "tubularity" / "torn", None)
    (torn / "metrics.json").write_text('{"dice": 0.')
    folders = [*runs, begun, stopped, trained, torn, tmp_path / "none"]
    out = tmp_path / "table.csv"
    assert call(*map(str, folders), "--out", str(out)) == 1
    said = capsys.readouterr()
    for folder, reason in {
        begun: "no finished training", stopped: "to be continued", trained: "Test it", torn: "damaged",
        tmp_path / "none": "no such folder",
    }.items():  # fmt: skip
        (line,) = [line for line in said.err.splitlines() if f"{folder} " in line]
        assert reason in line
    assert "3 of 8 runs" in said.out
    assert len(out.read_text().splitlines()) == 4


def test_the_command_writes_and_tells_the_spread(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "table.csv"
    assert call(*map(str, runs), "--out", str(out)) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if " dice " in line]
    assert line.replace("│", " ").split() == ["dice", "0.7", "0.2", "3"]
    before = out.read_bytes()
    with pytest.raises(DataError, match="--overwrite"):
        call(str(runs[0]), "--out", str(out))
    assert out.read_bytes() == before
    assert call(str(runs[0]), "--out", str(out), "--overwrite") == 0
    assert len(out.read_text().splitlines()) == 2


def test_a_run_is_counted_once(runs: list[Path]) -> None:
    with pytest.raises(DataError, match="given twice"):
        collect_runs([runs[0], f"{runs[0]}/../{runs[0].name}/"])
