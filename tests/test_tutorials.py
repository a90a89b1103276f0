"""The tutorials are run from top to bottom: commands and code, on drawn data, with a small network and one epoch."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from biocnn.cli.main import main
from tests.conftest import draw_patches
from tests.data.drawn import save, vessels
from tests.data.drawn_cells import cells, dots
from tests.test_readme import SHORT, SHORT_FIT, newest_run, run_script

ROOT = Path(__file__).parents[1]
TUTORIALS = ROOT / "docs" / "tutorials"
JOBS = {"vessels": "tubularity", "cells": "counting", "patches": "pcam"}
SPLITS = ["train"] * 3 + ["valid"] * 2 + ["test"] * 2


def steps(text: str) -> list[tuple[str, str]]:
    """Commands, and blocks of Python, in the order in which they stand."""
    fenced = re.findall(r"^```(bash|python)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [
        (language, step)
        for language, content in fenced
        for step in (content.replace("\\\n", " ").splitlines() if language == "bash" else [content])
    ]


def write_tiff(path: Path, image: np.ndarray) -> None:
    """An image of half a micrometre per pixel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, image, resolution=(20000, 20000), resolutionunit="CENTIMETER", photometric="minisblack")


def draw_vessels(root: Path) -> None:
    for number, split in enumerate(SPLITS):
        image, mask = vessels(number, 100, 90)
        write_tiff(root / "vessels" / split / "images" / f"{number}.tif", image)
        save(root / "vessels" / split / "masks" / f"{number}.png", mask.astype(np.uint8) * 255)
    write_tiff(root / "lab" / "new.tif", vessels(77, 96, 110)[0])


def draw_cells(root: Path) -> None:
    # Nine validation images are what an interval needs.
    for number, split in enumerate(["train"] * 3 + ["valid"] * 9 + ["test"] * 2):
        image, points = cells(number, 8 + number % 5)
        write_tiff(root / "cells" / split / "images" / f"{number}.tif", image)
        save(root / "cells" / split / "points" / f"{number}.png", dots(points))
    for number, name in enumerate(("dish1_a", "dish1_b", "dish2_a")):
        write_tiff(root / "dish" / f"{name}.tif", cells(70 + number, 9)[0])
    square = {"type": "Polygon", "coordinates": [[[10, 10], [60, 10], [60, 60], [10, 60], [10, 10]]]}
    (root / "regions.geojson").write_text(json.dumps({"type": "Feature", "geometry": square}))


def draw_tissue(root: Path) -> None:
    images, labels = draw_patches(40, 0)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        slide = root / "tissue" / f"slide{number // 4:02}" / ("tumour" if label else "normal")
        save(slide / f"{number}.png", image)
    save(root / "slides" / "new.tif", np.tile(images[0], (2, 3, 1)))


DRAW: dict[str, Callable[[Path], None]] = {"vessels": draw_vessels, "cells": draw_cells, "patches": draw_tissue}


def run(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run a tutorial in a folder; returns the names that its code has made."""
    names: dict[str, Any] = {}
    for language, step in steps((TUTORIALS / f"{name}.md").read_text(encoding="utf-8")):
        ready = step.replace("RUN", newest_run(folder, JOBS[name])) if "RUN" in step else step
        if language == "python":
            exec(ready, names)
            continue
        program, *arguments = shlex.split(ready)
        if program == "biocnn":
            assert main(arguments) == 0, step
        else:
            more = SHORT if "ridge" not in arguments[0] else []
            more = [*more, *(SHORT_FIT[arguments[0]] if arguments[1] == "fit" else [])]
            assert run_script([*arguments, *more], monkeypatch) == 0, step
    return names


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that looks like the checkout to a user."""
    (tmp_path / "pipelines").symlink_to(ROOT / "pipelines")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_is_a_tutorial_for_each_job_and_its_data() -> None:
    assert {path.stem for path in TUTORIALS.glob("*.md")} == set(JOBS) == set(DRAW)


def test_vessels(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_vessels(folder)
    names = run("vessels", folder, monkeypatch)
    (row,) = names["rows"]
    # 96 x 110 pixels of half a micrometre.
    expected = float(row["length_um"]) / 1e3 / (96 * 110 * 0.25 / 1e6)
    assert names["densities"] == {"new.tif": pytest.approx(expected, rel=1e-12)}
    assert names["result"].mask.shape == (96, 110)
    assert (folder / "results" / "report.html").is_file()
    with Image.open("new.png") as picture:
        assert min(picture.size) > 100


def test_cells(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_cells(folder)
    names = run("cells", folder, monkeypatch)
    assert {dish: len(counts) for dish, counts in names["dishes"].items()} == {"dish1": 2, "dish2": 1}
    # The table rounds to a hundredth of a cell.
    assert names["dishes"]["dish1"][0] == pytest.approx(names["result"].count.cells, abs=0.01)
    (tested,) = (folder / "runs" / "counting").glob("*/metrics.json")
    assert json.loads(tested.read_text())["interval_note"] == ""  # nothing is said against the interval
    assert (folder / "counts" / "report.html").is_file()
    assert (folder / "dish1_a.png").is_file()


def test_patches(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    draw_tissue(folder)
    names = run("patches", folder, monkeypatch)
    said = capsys.readouterr().out
    # Ten slides of four patches: 0 and 5 are the test, 1 and 6 the validation.
    assert "train: 6 slides, 24 patches, 50% of them positive" in said
    assert "test: 2 slides, 8 patches, 50% of them positive" in said
    assert "slides/new.tif" in said.splitlines()[-2]
    assert names["result"].probability.shape == (2, 3)
    assert (folder / "tissue_results" / "report.html").is_file()


@pytest.mark.parametrize("name", sorted(JOBS))
def test_lines_fit_and_links_lead_somewhere(name: str) -> None:
    text = (TUTORIALS / f"{name}.md").read_text(encoding="utf-8")
    for line in text.splitlines():
        assert len(line) <= 120 or line.startswith("|"), line
    local = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert [link for link in local if not (TUTORIALS / link).exists()] == []
