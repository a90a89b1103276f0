"""A report in a browser: nothing is complained about or asked for, the slider moves, tables sort, and it fits."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from biocnn.report.html_report import write_report
from tests.report.chromium import CHROMIUM, Tab, browser
from tests.report.real_runs import drawn_results, segmentation_run, write_table

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium or Chrome on the PATH (Debian: apt-get install chromium)"
)
LAPTOP, PHONE = (1280, 800), (390, 844)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a real run, one of whose images has a name that is HTML."""
    return write_report(segmentation_run(tmp_path_factory.mktemp("segmentation"))).path


@pytest.fixture
def tab(tmp_path: Path) -> Iterator[Tab]:
    with browser(tmp_path / "profile") as opened:
        opened.show(*LAPTOP)
        yield opened


def column(tab: Tab, place: int) -> list[str]:
    cells: list[str] = tab.run(
        f"[...document.querySelector('table.sortable').tBodies[0].rows].map((row) => row.cells[{place}].textContent)"
    )
    return cells


def orders(tab: Tab) -> list[str]:
    found: list[str] = tab.run(
        "[...document.querySelectorAll('table.sortable th')].map((head) => head.getAttribute('aria-sort'))"
    )
    return found


def head(place: int) -> str:
    return f"document.querySelectorAll('table.sortable th button')[{place}]"


def test_nothing_is_complained_about_or_asked_for(tab: Tab, report: Path) -> None:
    tab.open(report)
    tab.run("Promise.all([...document.images].map((image) => { image.loading = 'eager'; return image.decode(); }))")
    assert tab.complaints == []
    assert tab.requests == [report.resolve().as_uri()]
    assert tab.run("document.images.length") == 11  # three of each image, and two figures
    assert tab.run("window.hacked === undefined")


def test_a_script_that_got_in_would_not_run(tab: Tab, report: Path) -> None:
    tab.open(report)
    # The policy of the page, not our escaping: as if a name had become an element.
    tab.run("document.body.insertAdjacentHTML('beforeend', '<img src=\"x\" onerror=\"window.hacked = 1\">')")
    tab.run("document.body.append(Object.assign(document.createElement('script'), {textContent: 'hacked = 1'}))")
    tab.run("new Promise((done) => setTimeout(done, 100))")
    assert tab.run("window.hacked === undefined")
    assert len(tab.complaints) == 3  # the picture, its handler and the script


def test_the_slider_wipes(tab: Tab, report: Path) -> None:
    tab.open(report)
    card = "document.querySelector('.wipe')"
    edge = f"getComputedStyle({card}.querySelector('.over:not(.hidden)')).clipPath"
    assert tab.run(edge) == "inset(0px 0px 0px 50%)"
    tab.run(f"{card}.querySelector('input').focus()")
    tab.press("ArrowRight")
    assert tab.run(edge) == "inset(0px 0px 0px 51%)"
    tab.press("End")
    assert tab.run(edge) == "inset(0px 0px 0px 100%)"
    x, y = tab.place_of(f"{card}.querySelector('.stage')")
    width = tab.run(f"{card}.querySelector('.stage').clientWidth")
    tab.click(x - width / 4, y)
    assert tab.run(edge) == "inset(0px 0px 0px 25%)"
    assert tab.run(f"{card}.querySelector('input').value") == "25"


def test_what_is_wiped_over_the_image_can_be_chosen(tab: Tab, report: Path) -> None:
    tab.open(report)
    top = "[...document.querySelectorAll('.over:not(.hidden)')].map((layer) => layer.dataset.kind)"
    assert tab.run(top) == ["overlay"] * 3
    tab.click(*tab.place_of("document.querySelector('.choice input[value=prediction]')"))
    assert tab.run(top) == ["prediction"] * 3


def test_the_table_sorts_by_mouse_and_by_keyboard(tab: Tab, report: Path) -> None:
    tab.open(report)
    heads = tab.run("[...document.querySelectorAll('table.sortable th')].map((head) => head.textContent)")
    dice, name, rate = heads.index("dice"), heads.index("id"), heads.index("sensitivity")
    assert [heads[place] for place, order in enumerate(orders(tab)) if order == "ascending"] == ["dice"]
    assert column(tab, dice) == sorted(column(tab, dice), key=float)
    tab.click(*tab.place_of(head(rate)))
    assert column(tab, rate) == sorted(column(tab, rate), key=float, reverse=True)
    assert orders(tab)[rate] == "descending"
    assert orders(tab).count("none") == len(heads) - 1
    tab.press("Enter")  # the header that was clicked has the focus
    assert column(tab, rate) == sorted(column(tab, rate), key=float)
    tab.run(f"{head(name)}.focus()")
    tab.press("Enter")
    assert orders(tab)[name] == "ascending"
    assert set(column(tab, name)[1:]) == {"test/images/1.png", "test/images/2.png"}, "signs before digits"


def test_numbers_are_sorted_as_numbers_and_empty_cells_come_last(tab: Tab, tmp_path: Path) -> None:
    values = ["10", "9.5", "", "-3", "1e3", "", "0", "200", "1e-3"]
    rows: list[dict[str, Any]] = [
        {"image": f"{number}.png", "status": "ok", "cells": value} for number, value in enumerate(values)
    ]
    (tmp_path / "results").mkdir()
    write_table(tmp_path / "results" / "predictions.csv", rows)
    tab.open(write_report(tmp_path / "results").path)
    known = sorted(filter(None, values), key=float)
    tab.click(*tab.place_of(head(2)))
    assert column(tab, 2) == [*known[::-1], "", ""]
    tab.click(*tab.place_of(head(2)))
    assert column(tab, 2) == [*known, "", ""]
    tab.click(*tab.place_of(head(0)))
    assert column(tab, 0) == [f"{number}.png" for number in range(9)]


@pytest.mark.parametrize("size", [LAPTOP, PHONE])
def test_the_page_fits_its_window_in_both_schemes(tab: Tab, report: Path, size: tuple[int, int]) -> None:
    brightness = []
    for dark in (False, True):
        tab.show(*size, dark=dark)
        tab.open(report)
        assert tab.run("document.documentElement.scrollWidth <= innerWidth"), "nothing to scroll sideways"
        cut = tab.run(
            "[...document.querySelectorAll('h1, h2, p, dd, li, .tile, .card, svg')].filter((element) => "
            "element.getBoundingClientRect().right > innerWidth + 1 && !element.closest('.scroll')).length"
        )
        assert cut == 0
        with Image.open(io.BytesIO(tab.picture())) as picture:
            grey = np.asarray(picture.convert("L"))
        brightness.append(np.percentile(grey, [1, 50, 99]))
    # Most of the window is paper; ink is at its other end.
    assert brightness[0][1] > 230
    assert brightness[0][0] < 100
    assert brightness[1][1] < 40
    assert brightness[1][2] > 150


def test_without_javascript_everything_is_there(tab: Tab, report: Path) -> None:
    tab.show(*LAPTOP, scripts=False)
    tab.open(report)
    tab.call("Emulation.setScriptExecutionDisabled", value=False)  # to ask; the page has been made without
    assert not tab.run("document.documentElement.classList.contains('js')")
    assert tab.run("[...document.querySelectorAll('.card img')].every((image) => image.clientWidth > 60)")
    assert tab.run("getComputedStyle(document.querySelector('.card input')).display") == "none"
    assert len(column(tab, 0)) == 3
    # Side by side: none of the three hides another.
    places = tab.run("[...document.querySelector('.stage').children].map((layer) => layer.getBoundingClientRect().x)")
    assert len(places) == 3
    assert np.diff(places).min() > 60


@pytest.mark.slow
def test_two_hundred_images_open_within_two_seconds(tab: Tab, tmp_path: Path) -> None:
    written = write_report(drawn_results(tmp_path / "results", 200, 300))
    assert written.images == 2 * 199
    assert written.size > 20e6, "noise cannot be made smaller: no real images are more"
    assert min(tab.open(written.path) for _ in range(3)) < 2
