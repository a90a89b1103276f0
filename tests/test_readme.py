"""Every command of the README is run: on drawn data, in a folder of its own, with a small network and one epoch."""

import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from biocnn.cli.main import command_parser, main
from biocnn.data.manifest import load_manifest
from biocnn.networks import DualUseUNet
from tests.data.drawn import save, vessels
from tests.data.drawn_cells import cells, dots
from tests.inference.test_paths import segmenter

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# What makes a training short enough for a test; the network of a test or a prediction comes from the checkpoint.
SHORT_FIT = {
    "pipelines/pcam.py": [
        *("--trainer.max_epochs", "1", "--data.batch_size", "8"),
        "--model.network",
        '{"class_path": "biocnn.networks.SmallDenseNet", "init_args": {"layers": [0, 1], "growth_rate": 4}}',
    ],
    "pipelines/counting.py": [
        *("--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1", "--data.tiles_per_epoch", "10"),
        *("--data.batch_size", "2", "--model.network.init_args.channels", "[4, 8]"),
    ],
    "pipelines/tubularity.py": [
        *("--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1", "--data.tiles_per_epoch", "10"),
        *("--data.batch_size", "2", "--model.network.init_args.channels", "[4, 8]"),
    ],
}
JOBS = ("pcam", "tubularity", "counting")
SHORT = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]


def blocks(language: str, text: str = README) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [content for name, content in fenced if name == language]


def commands(text: str = README) -> list[str]:
    return [line for block in blocks("bash", text) for line in block.replace("\\\n", " ").splitlines() if line]


def test_the_readme_has_the_commands_that_are_run_here() -> None:
    first_words = [" ".join(shlex.split(command)[:2]) for command in commands()]
    assert set(first_words) == {
        *("make quickstart", "make test"),
        *(f"biocnn {verb}" for verb in ("data", "predict", "delineate", "report", "export")),
        *(f"python pipelines/{name}.py" for name in ("pcam", "tubularity", "ridge_filters", "counting")),
    }
    verbs = {
        shlex.split(command)[2]
        for command in commands()
        if command.startswith("biocnn data") or (command.startswith("python") and "ridge" not in command)
    }
    assert verbs == {"fetch", "verify", "audit", "init", "fit", "test", "predict"}


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_make_knows_its_targets(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    targets = {command for command in commands(text) if command.startswith("make ")}
    targets |= {f"make {target}" for target in re.findall(r"`make ([a-z-]+)", text)}
    assert "make test" in targets
    for target in sorted(targets):
        done = subprocess.run([*target.split(), "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_pcam: Callable[..., Path]) -> Path:
    """A folder that looks like the checkout to a user, with drawn data in DIR and mydata, and patches to predict."""
    make_pcam("DIR", train=32, valid=16, test=16)
    shutil.copytree(tmp_path / "DIR", tmp_path / "mydata")
    for path in (tmp_path / "mydata").iterdir():
        path.rename(path.with_name(path.name.replace("camelyonpatch_level_2_split", "mine")))
    (tmp_path / "patches").mkdir()
    for number, patch in enumerate(np.random.default_rng(0).integers(0, 255, (3, 96, 96, 3), dtype=np.uint8)):
        Image.fromarray(patch).save(tmp_path / "patches" / f"{number}.png")
    for number, split in enumerate(["train"] * 3 + ["valid"] * 2 + ["test"] * 2):
        image, mask = vessels(number, 160, 140)
        save(tmp_path / "vessels" / split / "images" / f"{number}.png", np.repeat(image[..., None], 3, 2))
        save(tmp_path / "vessels" / split / "masks" / f"{number}.png", mask.astype(np.uint8) * 255)
    save(tmp_path / "lab" / "new.tif", np.repeat(vessels(77, 150, 170)[0][..., None], 3, 2))
    for number, split in enumerate(["train"] * 3 + ["valid"] * 2 + ["test"] * 2):
        image, points = cells(number, 12, 96, 112)
        save(tmp_path / "cells" / split / "images" / f"{number}.png", image)
        save(tmp_path / "cells" / split / "points" / f"{number}.png", dots(points, 96, 112))
    save(tmp_path / "dish" / "new.tif", cells(77, 9, 120, 100)[0])
    square = {"type": "Polygon", "coordinates": [[[10, 10], [60, 10], [60, 60], [10, 60], [10, 10]]]}
    (tmp_path / "regions.geojson").write_text(json.dumps({"type": "Feature", "geometry": square}))
    (tmp_path / "pipelines").symlink_to(ROOT / "pipelines")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_script(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Run a script as `python SCRIPT ...` does, in this process: importing torch again for each would take longer."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(arguments[0], run_name="__main__")
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def newest_run(workplace: Path, job: str) -> str:
    runs = sorted((workplace / "runs" / job).iterdir(), key=lambda path: path.stat().st_mtime_ns)
    return runs[-1].name


def test_every_command_works_in_the_order_of_the_readme(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in commands():
        if command.startswith("make"):
            continue
        program, *arguments = shlex.split(command)
        if program == "biocnn":
            run = newest_run(workplace, "tubularity") if "RUN" in command else ""
            arguments = [word.replace("RUN", run) for word in arguments]
        if program == "python":
            job = Path(arguments[0]).stem
            arguments = [
                word.replace("RUN", newest_run(workplace, job)) if "RUN" in word else word for word in arguments
            ]
            more = [*SHORT, *(SHORT_FIT[arguments[0]] if arguments[1] == "fit" else [])] if job in JOBS else []
            assert run_script([*arguments, *more], monkeypatch) == 0, command
        elif arguments[1:2] == ["fetch"]:
            parsed = command_parser().parse_args(arguments)  # there is no network in a test
            assert load_manifest(parsed.manifest).files
        elif arguments[0] == "delineate":
            run = workplace / "runs" / "tubularity" / newest_run(workplace, "tubularity")
            found = str(sorted((run / "maps").iterdir())[0])
            assert main([word.replace("MAP.tif", found) for word in arguments]) == 0, command
        else:
            # Drawn files are not the published ones, which is what `verify` is for.
            expected = 1 if arguments[1] == "verify" else 0
            assert main(arguments) == expected, capsys.readouterr()
        if arguments[1] == "test":
            notebook_predicts(workplace, job)
    made = {"DIR", "cells", "dish", "lab", "mydata", "patches", "pipelines", "regions.geojson", "runs", "vessels"}
    made |= {"graph.geojson", "graph.graphml", "graph.png", "graph.swc", "segments.csv", "results"}
    assert {path.name for path in workplace.iterdir()} == made
    assert_run_folder_is_as_described(workplace)

    (code,) = [block for block in blocks("python") if "lab/new.tif" in block]
    names: dict[str, Any] = {}
    exec(code.replace("RUN", newest_run(workplace, "tubularity")), names)
    assert names["result"].mask.shape == (150, 170)


def notebook_predicts(workplace: Path, job: str) -> None:
    (code,) = [block for block in blocks("python") if f"runs/{job}/" in block and "lab/new.tif" not in block]
    random = np.random.default_rng(0)
    names = {
        "patches": random.integers(0, 255, (4, 96, 96, 3), dtype=np.uint8),
        "image": random.integers(0, 255, (70, 90, 1 if job == "counting" else 3), dtype=np.uint8),
    }
    exec(code.replace("RUN", newest_run(workplace, job)), names)
    if job == "pcam":
        assert names["probability"].shape == (4,)
        assert names["called"].dtype == bool
    elif job == "counting":
        assert names["count"].low <= max(names["count"].cells, 0)
        assert names["density"].shape == (70, 90)
        assert names["points"].shape[1] == 2
    else:
        assert names["tubularity"].shape == names["mask"].shape == (70, 90)
        assert names["mask"].dtype == bool


def test_the_losses_work_as_the_readme_shows_them() -> None:
    (code,) = [block for block in blocks("python") if "biocnn.losses" in block]
    logits = torch.randn(2, 1, 32, 32, requires_grad=True)
    names: dict[str, object] = {"logits": logits, "target": torch.ones(2, 1, 32, 32).tril(), "valid": None}
    exec(code, names)
    assert isinstance(names["value"], torch.Tensor)
    names["value"].backward()
    assert logits.grad is not None


def test_the_graph_works_as_the_readme_shows_it() -> None:
    (code,) = [block for block in blocks("python") if "score_graph" in block]
    mask = vessels(0, 120, 100)[1]
    names: dict[str, Any] = {"tubularity": mask * 0.9, "truth": mask}
    exec(code, names)
    assert names["scores"]["quality_2um"] > 0.8
    (code,) = [block for block in blocks("python") if "classifier_weights" in block]
    torch.manual_seed(0)
    names |= {"segmenter": segmenter(DualUseUNet(1, channels=(4, 8))), "image": vessels(0, 120, 100)[0]}
    exec(code, names)
    assert names["graph"].graph["optimality_gap"] >= 0


def assert_run_folder_is_as_described(workplace: Path) -> None:
    described = set(re.findall(r"^\| `([\w./]+)` \| (?!what)", README.split("### What a run leaves")[1], re.MULTILINE))
    tested = [run for run in (workplace / "runs" / "pcam").iterdir() if (run / "metrics.json").is_file()]
    assert len(tested) == 1
    (run,) = tested
    assert {name for name in described if not (run / name).exists()} == set()
    top = {path.name for path in run.iterdir()} - {"predictions_images.csv"}
    assert {name.split("/")[0] for name in described} == {name for name in top if not name.startswith("predictions_")}
    assert json.loads((run / "metrics.json").read_text())["n"] == 16


def test_files_that_the_readme_names_are_there() -> None:
    (tree,) = [block for block in blocks("") if "biocnn/ " in block]
    inside = ""
    for line in tree.splitlines():
        name = line.split()[0]
        inside = name if not line.startswith(" ") else inside
        path = ROOT / name if not line.startswith(" ") else ROOT / inside / name
        assert path.exists(), f"the file tree names {path}"
    parts = {f"{path.name}/" for path in (ROOT / "biocnn").iterdir() if (path / "__init__.py").is_file()}
    assert parts <= {line.split()[0] for line in tree.splitlines()}, "every part of the package has its line"


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_somewhere(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    local = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    headings = {f"#{title.lower().replace(' ', '-')}" for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}
    assert [link for link in local if link not in headings and not (ROOT / link).exists()] == []
