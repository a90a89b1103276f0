"""The parts of a page."""

import base64
import hashlib
import io
import math
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from biocnn.report.page import Card, Html, Picture, element, gallery, number, page, rounded, table
from biocnn.report.page_curves import HEIGHT, WIDTH, best_of, curves_html, read_curves
from biocnn.report.page_pictures import as_colours, as_map, crop_to, encoded
from tests.report.parsed_page import Page


def parsed(tmp_path: Path, *parts: object) -> Page:
    path = tmp_path / "page.html"
    path.write_text(page("Title", "words", {"One": parts}, "end", "biocnn 0"), encoding="utf-8")
    return Page(path)


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "a & b",
        "\" onerror='x'",
        "</style>",
        "bad \udcff name",
        "nul \x00 and \x1b[0m",
        "]]>",
    ],
)
def test_any_text_is_shown_and_is_no_element(tmp_path: Path, text: str) -> None:
    shown = re.sub("[\x00\x1b]", "\N{REPLACEMENT CHARACTER}", text.replace("\udcff", "?"))
    found = parsed(
        tmp_path, element("p", text, title=text), table([text], [[text]], text), gallery([Card(text, text, ())])
    )
    assert {name for name, _, path in found.elements if "section" in path} == {
        *("h2", "p", "div", "table", "caption", "span", "thead", "tbody", "tr", "th", "td", "figure", "figcaption", "b")
    }
    assert found.inside("p").count(shown) == found.inside("td").count(shown) == found.inside("b").count(shown) == 1
    assert found.all("p")[1]["title"] == shown


def test_the_content_policy_names_the_script_and_nothing_from_elsewhere(tmp_path: Path) -> None:
    found = parsed(tmp_path)
    policy = next(each["content"] for each in found.all("meta") if each.get("http-equiv"))
    assert policy is not None
    [script] = found.inside("script")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.split("; ")[:4] == [
        "default-src 'none'",
        "img-src data:",
        "style-src 'unsafe-inline'",
        f"script-src 'sha256-{digest}'",
    ]
    assert not re.search(r"url\(|@import|https?:", "".join(found.inside("style")) + script)


@pytest.mark.parametrize("value", [0.1 + 0.2, -1e-9, 123456.789, 5, 2**60 + 1, 1e300, math.pi])
def test_a_number_carries_its_exact_value(value: float) -> None:
    found = re.fullmatch(r'<data value="([^"]*)">([^<]*)</data>', number(value))
    assert found is not None
    assert type(value)(found[1]) == value
    # Three digits that count: within half a unit of the third.
    assert float(found[2].replace(",", "")) == pytest.approx(value, rel=5e-3, abs=1e-9)


def test_numbers_that_are_none() -> None:
    assert number(None) == rounded(math.nan) == "not known"
    assert number("<b>") == "&lt;b&gt;"
    assert rounded(-math.inf) == "-infinite"
    assert number(True) == "True"


def test_columns_of_numbers_are_told_from_texts(tmp_path: Path) -> None:
    columns = {
        "whole": ["1", "-2", ""],
        "decimal": ["1.5", "1e-3", "1,234"],
        "html": [number(1.5), number(2), Html("")],
        "name": ["1", "02_b", "3"],
        "none": ["", "", ""],
        "place": ["1-2", "3", "4"],
    }
    found = parsed(tmp_path, table(list(columns), list(zip(*columns.values(), strict=True)), "words"))
    kinds = [each.get("class") for each in found.all("th")]
    assert kinds == ["num", "num", "num", None, None, None]
    assert {each["aria-sort"] for each in found.all("th")} == {"none"}


def test_a_gallery_has_a_slider_only_where_there_is_something_to_wipe(tmp_path: Path) -> None:
    image, overlay = Picture("image", "data:,", 3, 2), Picture("overlay", "data:,", 3, 2)
    found = parsed(tmp_path, gallery([Card("a", "", (image, overlay)), Card("b", "", (image,)), Card("c", "", ())]))
    [slider] = [each for each in found.all("input") if each["type"] == "range"]
    assert slider["aria-label"] == "Wipe between image and overlay of a"
    assert [each["alt"] for each in found.all("img")] == ["image of a", "overlay of a", "image of b"]
    assert all(each["loading"] == "lazy" and each["decoding"] == "async" for each in found.all("img"))


def test_curves_keep_the_shape_of_their_data(tmp_path: Path) -> None:
    lines = ["epoch,step,train_loss,val_nll,val_auroc", *(f"0,{step},{3 - 0.02 * step},," for step in range(100))]
    lines += ["0,0,,0.9,0.5", "0,50,,0.2,nan", "1,99,,0.4,0.8", "1,100,,0."]  # the last line is torn
    (tmp_path / "metrics.csv").write_text("\n".join(lines))
    columns = read_curves(tmp_path / "metrics.csv")
    assert {name: len(points) for name, points in columns.items()} == {"train_loss": 100, "val_nll": 4, "val_auroc": 2}
    assert best_of("val_auroc", columns["val_auroc"]) == (99, 0.8)
    drawn = curves_html(columns, "classification", "val_auroc")
    assert drawn is not None
    points = np.array([pair.split(",") for pair in re.findall(r'points="([^"]*)"', drawn)[0].split()], dtype=float)
    assert len(points) == 100
    # A straight line stays one, to the tenth of a pixel that coordinates are written with; down is larger.
    assert np.abs(np.diff(points, 2, axis=0)).max() < 0.31
    assert (np.diff(points[:, 1]) > 0).all()
    assert points.min() >= 0
    assert points[:, 0].max() <= WIDTH
    assert points[:, 1].max() <= HEIGHT


def test_long_curves_are_means_of_neighbours() -> None:
    value = np.arange(10_000.0)
    drawn = curves_html({"train_loss": np.column_stack([value, np.sin(value)])}, "counting", None)
    assert drawn is not None
    assert len(re.findall(r'points="([^"]*)"', drawn)[0].split()) <= 300
    assert "mean of 34 records" in drawn


def test_curves_of_nothing_and_of_one_point() -> None:
    assert curves_html({}, "counting", None) is None
    assert "<circle" in str(curves_html({"val_mae": np.array([[3.0, 5.0]])}, "counting", "val_mae"))


def test_pictures_keep_grey_colour_and_shape() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (40, 20, 3), dtype=np.uint8)
    assert np.array_equal(as_colours(colours), colours)
    assert as_colours(np.zeros((2000, 1000), np.uint8)).shape == (512, 256)
    deep = as_colours(np.linspace(1000, 3000, 600).reshape(20, 30).astype(np.uint16))
    assert (deep.min(), deep.max()) == (0, 255)
    assert (np.diff(deep.ravel().astype(int)) >= 0).all()
    assert as_colours(np.full((4, 4, 5), np.nan, np.float32)).tolist() == [[0] * 4] * 4
    shades = as_map(np.array([[0.0, 0.25, 1.0]]), 1.0).sum(axis=-1)
    assert shades[0, 0] < shades[0, 1] < shades[0, 2]
    assert crop_to(np.zeros((130, 90, 3)), 100, 80).shape == (100, 80, 3)
    assert crop_to(np.zeros((65, 40, 3)), 100, 80).shape == (50, 40, 3)


@pytest.mark.skipif(not features.check("webp"), reason="Pillow was built without WebP")
def test_a_picture_is_in_the_page() -> None:
    rows, columns = np.mgrid[:60, :80]
    smooth = np.stack([2 * rows, 2 * columns, rows + columns], axis=-1).astype(np.uint8)
    found = encoded("image", smooth)
    assert (found.width, found.height) == (80, 60)
    kind, _, content = found.uri.partition(",")
    assert kind == "data:image/webp;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as again:
        assert np.abs(np.asarray(again).astype(int) - smooth).mean() < 3
