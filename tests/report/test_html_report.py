"""The report of real small runs, and of predictions."""

import argparse
import base64
import csv
import io
import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from PIL import Image

from biocnn.cli import report
from biocnn.data.file_names import file_names
from biocnn.data.images import read_image
from biocnn.errors import DataError
from biocnn.report.html_report import write_report
from biocnn.report.run_cards import worst_first
from tests.report.parsed_page import Page
from tests.report.real_runs import (
    HOSTILE,
    counting_run,
    drawn_results,
    patch_run,
    segmentation_run,
    write_table,
)

JOBS = ("segmentation", "counting", "classification")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, pcam_folder: Path) -> dict[str, Path]:
    """A tested run of each job, which no test changes."""
    return {
        "segmentation": segmentation_run(tmp_path_factory.mktemp("segmentation")),
        "counting": counting_run(tmp_path_factory.mktemp("counting")),
        "classification": patch_run(tmp_path_factory.mktemp("patches"), pcam_folder),
    }


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, runs: dict[str, Path]) -> dict[str, Page]:
    """The report of each of them, parsed."""
    folder = tmp_path_factory.mktemp("reports")
    return {job: Page(write_report(run, folder / f"{job}.html").path) for job, run in runs.items()}


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open(encoding="utf-8")))


def names_in_gallery(found: Page) -> list[str]:
    return [text for text, path in found.texts if path[-2:] == ("figcaption", "b")]


def decoded(uri: str | None) -> np.ndarray:
    assert uri is not None
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as picture:
        return np.asarray(picture).astype(int)


@pytest.mark.parametrize("job", JOBS)
def test_a_page_asks_for_nothing_from_elsewhere(pages: dict[str, Page], job: str) -> None:
    for name, attributes, _ in pages[job].elements:
        assert name not in ("link", "iframe", "object", "embed", "base", "form", "use", "video", "audio")
        assert not [key for key in attributes if key.startswith("on")], "no handlers in attributes"
        assert (attributes.get("src") or "data:").startswith("data:")
        assert (attributes.get("href") or "#").startswith("#")
        assert "url(" not in (attributes.get("style") or "")
    ids = {attributes["id"] for attributes in pages[job].all("section")}
    assert {f"#{name}" for name in ids} == {attributes["href"] for attributes in pages[job].all("a")}
    assert len(pages[job].all("script")) == 1


@pytest.mark.parametrize("job", JOBS)
def test_every_number_of_the_test_is_there_exactly(runs: dict[str, Path], pages: dict[str, Page], job: str) -> None:
    metrics = json.loads((runs[job] / "metrics.json").read_text())
    values = {attributes["value"] for attributes in pages[job].all("data")}
    numbers = {name: value for name, value in metrics.items() if type(value) in (int, float)}
    assert len(numbers) > 30
    assert [name for name, value in numbers.items() if repr(value) not in values] == []
    assert set(metrics) <= set(pages[job].inside("td"))


@pytest.mark.parametrize("job", JOBS)
def test_the_table_is_whole_and_the_worst_come_first(runs: dict[str, Path], pages: dict[str, Page], job: str) -> None:
    rows = rows_of(runs[job] / "predictions.csv")
    found = pages[job]
    # Of all tables the sortable one has a header with an order.
    orders = [attributes.get("aria-sort") for attributes in found.all("th") if "aria-sort" in attributes]
    filled = [name for name in rows[0] if any(row[name] for row in rows)]
    assert len(orders) == len(filled)
    assert orders.count("ascending") == (job == "segmentation")
    shown = names_in_gallery(found)
    assert sorted(shown) == sorted(row["id"] for row in rows)
    by_name = {row["id"]: row for row in rows}
    if job == "segmentation":
        badness = [-float(by_name[name]["dice"]) for name in shown]
    elif job == "counting":
        badness = [abs(float(by_name[name]["count"]) - float(by_name[name]["true"])) for name in shown]
    else:
        each = [(by_name[name]["called"] != by_name[name]["label"], by_name[name]) for name in shown]
        assert any(wrong for wrong, _ in each), "without a mistake this test would show nothing"
        badness = [10 * wrong + abs(float(row["label"]) - float(row["probability"])) for wrong, row in each]
    # Counts have two decimals in the table.
    assert all(first >= second - 0.011 for first, second in itertools.pairwise(badness))
    texts = found.inside("td")
    for row in rows:
        assert [value for value in row.values() if value and value not in texts] == []


def test_pictures_are_those_of_their_image(runs: dict[str, Path], pages: dict[str, Page]) -> None:
    run, found = runs["segmentation"], pages["segmentation"]
    ids = [row["id"] for row in rows_of(run / "predictions.csv")]
    names = dict(zip(ids, file_names(ids), strict=True))
    data = run.parents[2] / "data"
    for each in found.all("img"):
        kind, _, name = (each["alt"] or "").partition(" of ")
        if name not in names:
            continue
        picture = decoded(each["src"])
        if kind == "image":
            expected = read_image(data / name).array
        elif kind == "overlay":
            drawn = read_image(run / "figures" / "overlays" / f"{names[name]}.png").array
            assert drawn.shape[0] > 96, "the file has a legend, which the page leaves out"
            expected = drawn[:96, :80].repeat(2, axis=0).repeat(2, axis=1)
        else:
            assert kind == "prediction"
            values = read_image(run / "maps" / f"{names[name]}.tif").array
            expected = matplotlib.colormaps["inferno"](np.clip(values, 0, 1), bytes=True)[..., :3]
        assert picture.shape == expected.shape
        assert np.abs(picture - expected.astype(int)).mean() < 12, f"{kind} of {name}"


def test_the_floor_of_a_segmentation_is_that_of_a_mask_that_is_structure_everywhere(
    runs: dict[str, Path], pages: dict[str, Page]
) -> None:
    data = runs["segmentation"].parents[2] / "data" / "test"
    dice = []
    for path in sorted((data / "masks").iterdir()):
        mask, inside = read_image(path).array > 0, read_image(data / "fields" / path.name).array > 0
        dice.append(2 * (mask & inside).sum() / ((mask & inside).sum() + inside.sum()))
    values = [float(attributes["value"] or "nan") for attributes in pages["segmentation"].all("data")]
    assert min(abs(value - np.mean(dice)) for value in values) < 1e-12


def test_a_name_that_is_html_is_shown_as_text(pages: dict[str, Page]) -> None:
    found = pages["segmentation"]
    assert f"test/images/{HOSTILE}.png" in found.inside("td")
    assert f"test/images/{HOSTILE}.png" in names_in_gallery(found)
    assert [each for each in found.all("img") if each.get("src") == "x"] == []


def test_what_was_trained_on_what_is_said(runs: dict[str, Path], pages: dict[str, Page]) -> None:
    for job in JOBS:
        record = json.loads((runs[job] / "run.json").read_text())
        words = pages[job].words
        assert record["command"] in pages[job].inside("code")
        for text in (record["data"]["split_hash"], record["versions"]["torch"], str(record["network"])):
            assert text in words
        assert "Not for diagnosis" in words
        assert "learning rate" in words
    assert "train: 64 images, the manifest says 262,144" in words, "the audit of PCam"
    assert "CC0" in words, "its licence"


def test_a_run_without_a_test_and_without_its_data(tmp_path: Path, runs: dict[str, Path]) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.yaml", "run.json", "metrics.csv"):
        shutil.copy(runs["counting"] / name, folder / name)
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(re.sub(r"(root|manifest): .*", r"\1: gone/x.yaml", text))
    found = Page(write_report(folder).path)
    for words in (
        "This run has not been tested",
        "metrics.json, the numbers of a test",
        "checkpoints/best.ckpt, the model",
        "the manifest gone/x.yaml, which describes the data",
        "Left out: the manifest or the data are not at hand",
        "validation MAE",
    ):
        assert words in found.words
    assert found.all("img") == []


def test_a_test_without_its_training(tmp_path: Path, runs: dict[str, Path]) -> None:
    # What a test of a checkpoint elsewhere leaves: no configuration, so the images are not at hand.
    for name in ("metrics.json", "predictions.csv"):
        shutil.copy(runs["segmentation"] / name, tmp_path / name)
    for name in ("figures", "maps", "masks"):
        shutil.copytree(runs["segmentation"] / name, tmp_path / name)
    found = Page(write_report(tmp_path).path)
    assert "The image itself is not at hand for 3 of them." in found.words
    kinds = [(each["alt"] or "").split(" of ")[0] for each in found.all("img")]
    assert kinds.count("prediction") == kinds.count("overlay") == 3
    assert "image" not in kinds


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.json", '{"mae": NaN, "<b>": "<i>", "n_images": "<u>", "bias": 1e999, "mae_low": [1]}'),
        ("metrics.json", "[1, 2"),
        ("run.json", '{"data": 3, "versions": [], "hardware": "x", "seed": "<b>"}'),
        ("config.yaml", "data: [1\n"),
        ("predictions.csv", "id,true,count,error\n<b>,1,nan,nan\n../../secret,3,x,y\ncut"),
        ("predictions.csv", "\x00\x01\xff\n"),
        ("metrics.csv", "step,val_mae\nx,y\n1,nan\n"),
    ],
)
def test_damaged_files_of_a_run_are_no_obstacle(tmp_path: Path, runs: dict[str, Path], name: str, content: str) -> None:
    for each in ("config.yaml", "run.json", "metrics.csv", "metrics.json", "predictions.csv"):
        shutil.copy(runs["counting"] / each, tmp_path / each)
    (tmp_path / name).write_text(content, encoding="latin-1")
    found = Page(write_report(tmp_path).path)
    assert found.all("i") == found.all("u") == []
    assert "Not for diagnosis" in found.words


def test_an_id_never_leads_out_of_the_data(tmp_path: Path, runs: dict[str, Path]) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs["counting"], run)
    secret = tmp_path / "secret.png"
    Image.fromarray(np.zeros((96, 80), np.uint8)).save(secret)
    rows = rows_of(run / "predictions.csv")
    root = runs["counting"].parents[2] / "data"
    outside = ["../" * len(root.parts) + str(secret).lstrip("/"), str(secret)]
    write_table(run / "predictions.csv", [{**rows[0], "id": name} for name in outside])
    shutil.rmtree(run / "maps")
    shutil.rmtree(run / "figures")
    assert Page(write_report(run).path).all("img") == []


def test_folders_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no folder .*nowhere"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"neither a run \(config.yaml, run.json.* nor a prediction"):
        write_report(tmp_path)
    (tmp_path / "predictions.json").write_text("{}")
    with pytest.raises(DataError, match=r"predictions.csv is missing or has no rows"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_only_an_older_report_is_replaced(tmp_path: Path) -> None:
    folder = drawn_results(tmp_path / "results", 3)
    written = write_report(folder)
    assert written.path == folder / "report.html"
    assert written.size == written.path.stat().st_size
    assert write_report(folder).images == 4  # image and overlay of two
    other = tmp_path / "mine.html"
    other.write_text("<p>written by hand</p>")
    with pytest.raises(DataError, match="is there already and is no report of biocnn"):
        write_report(folder, other)
    assert other.read_text() == "<p>written by hand</p>"
    assert "<h1>Counted cells</h1>" in write_report(folder, other, overwrite=True).path.read_text()
    with pytest.raises(DataError, match="is a folder"):
        write_report(folder, tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == [
        *("images", "predictions.csv", "predictions.json", "report.html")
    ]


def test_a_prediction_shows_what_failed_and_what_is_doubtful_first(tmp_path: Path) -> None:
    found = Page(write_report(drawn_results(tmp_path, 5)).path)
    assert names_in_gallery(found) == [f"dish/{number}.png" for number in (1, 2, 0, 3, 4)]
    assert "failed: truncated & empty" in found.inside("span")
    assert "dish/1.png: truncated & empty" in found.inside("li")
    assert any("darker than the training images" in text for text in found.inside("span"))
    # Counts of the four others: 1000.5, 986.5, 979.5 and 972.5.
    assert {"4", "1", "3939.0"} <= {attributes["value"] for attributes in found.all("data")}
    assert "the run folder of the model is not at hand" in found.words
    assert "elsewhere/best.ckpt" in found.words


def test_a_prediction_tells_of_its_model_where_the_run_is_at_hand(tmp_path: Path, runs: dict[str, Path]) -> None:
    folder = drawn_results(tmp_path, 3)
    model = {"path": str(runs["counting"] / "checkpoints" / "best.ckpt")}
    (folder / "predictions.json").write_text(json.dumps({"model": model}))
    found = Page(write_report(folder).path)
    metrics = json.loads((runs["counting"] / "metrics.json").read_text())
    assert repr(metrics["mae"]) in {attributes["value"] for attributes in found.all("data")}
    assert "Intended use" in found.inside("dt")


@pytest.mark.parametrize("name", ["../secret", "..", ".", "a/../../secret", "/", "gone"])
def test_a_table_never_leads_out_of_the_prediction(tmp_path: Path, name: str) -> None:
    folder = drawn_results(tmp_path / "results", 1)
    drawn_results(tmp_path / "results" / "other", 1)
    (tmp_path / "results" / "other" / "images" / "0").rename(folder / "secret")
    (folder / "secret" / "thumbnail.png").rename(folder / "thumbnail.png")
    rows = rows_of(folder / "predictions.csv")
    write_table(folder / "predictions.csv", [{**rows[0], "folder": name}])
    assert Page(write_report(folder).path).all("img") == []


@pytest.mark.parametrize("pictures", [True, False])
def test_a_prediction_of_many_images(tmp_path: Path, pictures: bool) -> None:
    found = Page(write_report(drawn_results(tmp_path, 205 if pictures else 5003, 8, pictures)).path)
    bodies = [path for name, _, path in found.elements if name == "tr" and "tbody" in path]
    if pictures:
        assert len(names_in_gallery(found)) == 200
        assert len(bodies) == 205
        assert "200 of 205 are shown" in found.words
    else:
        assert names_in_gallery(found) == []
        assert len(bodies) == 5000
        assert "5,000 of 5,003, all of them are in predictions.csv" in found.words


def test_rows_without_an_error_come_last() -> None:
    rows = [{"dice": ""}, {"dice": "0.9"}, {"dice": "nan"}, {"dice": "0.1"}]
    assert worst_first("segmentation", rows) == [3, 1, 0, 2]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    report.add(parser.add_subparsers())
    folder = drawn_results(tmp_path / "results", 4)
    target = tmp_path / "new" / "page.html"
    arguments: Any = parser.parse_args(["report", str(folder), "--out", str(target)])
    assert arguments.run(arguments) == 0
    assert re.fullmatch(rf"wrote {re.escape(str(target))} \(0\.\d MB, 6 pictures\)\n", capsys.readouterr().out)
    assert target.is_file()
