"""`biocnn app`: its page, asked by gradio's client and by a browser; without gradio, what it says."""

import argparse
import csv
import os
import socket
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from biocnn.cli import app
from biocnn.cli.app_page import Limits, served
from biocnn.errors import BiocnnError
from tests.inference.test_results import line, segmenter
from tests.report.chromium import CHROMIUM, Tab, browser

LIMITS = Limits(pixels=100_000, upload_bytes=200_000)


@pytest.fixture(scope="module")
def gradio_client() -> Any:
    pytest.importorskip("gradio", reason="gradio is not installed: pip install 'biocnn[app]'")
    return pytest.importorskip("gradio_client")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "best.ckpt"
    path.write_bytes(b"weights")
    return path


@pytest.fixture(scope="module")
def address(gradio_client: Any, checkpoint: Path) -> Iterator[str]:
    with served(segmenter(3, channels=["grey"]), checkpoint, LIMITS) as found:
        yield found


@pytest.fixture(scope="module")
def client(gradio_client: Any, address: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return gradio_client.Client(address, verbose=False, download_files=str(tmp_path_factory.mktemp("downloads")))


def ask(gradio_client: Any, client: Any, image: Path, *how: Any) -> Any:
    channels, plane, size, graph = how or ("", None, None, "skeleton")
    return client.predict(gradio_client.handle_file(image), channels, plane, size, graph, api_name="/predict")


def test_an_image_gives_pictures_a_table_and_files(gradio_client: Any, client: Any, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "line.tif", line())
    headline, pictures, measures, table, archive = ask(gradio_client, client, tmp_path / "line.tif")
    assert headline.startswith("## 5.0 % structure")
    assert [picture["caption"] for picture in pictures] == ["image", "overlay", "mask", "graph"]
    with Image.open(pictures[2]["image"]) as mask:
        assert np.count_nonzero(np.asarray(mask)) == 120  # 3 x 40 pixels of `line`
    assert ["structure_px", "120"] in measures["data"]
    with open(table["value"], newline="") as file:
        assert [row["image"] for row in csv.DictReader(file)] == ["line.tif"]
    assert Path(archive["value"]).suffix == ".zip"


def test_the_pixel_size_can_be_said(gradio_client: Any, client: Any, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "line.tif", line())
    measures = ask(gradio_client, client, tmp_path / "line.tif", "0", None, 0.5, "none")[2]
    assert ["structure_um2", "30"] in measures["data"]
    assert "length_um" not in dict(measures["data"])


@pytest.mark.parametrize(
    ("shape", "how", "message"),
    [
        ((400, 300), ("", None, None, "skeleton"), r"400 x 300 px, and up to 100,000 px are taken here"),
        ((40, 60), ("red", None, None, "skeleton"), "red"),
        ((40, 60), ("", 0.5, None, "skeleton"), "expected a whole number from 0"),
        ((40, 60), ("", None, -1, "skeleton"), "expected micrometres above 0"),
    ],
    ids=["pixels", "channel", "plane", "size"],
)
def test_errors_are_said_in_the_page(
    gradio_client: Any, client: Any, shape: tuple[int, int], how: Any, message: str, tmp_path: Path
) -> None:
    tifffile.imwrite(tmp_path / "image.tif", np.zeros(shape, np.uint8), compression="zlib")
    with pytest.raises(gradio_client.exceptions.AppError, match=message):
        ask(gradio_client, client, tmp_path / "image.tif", *how)


def test_a_file_that_is_too_large_is_not_taken(gradio_client: Any, client: Any, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "large.tif", np.zeros((500, 500), np.uint8))
    with pytest.raises(Exception, match=r"413|exceed"):
        ask(gradio_client, client, tmp_path / "large.tif")


def test_nothing_is_loaded_from_elsewhere_and_nobody_else_is_listened_to(address: str) -> None:
    assert address.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(address) as answer:
        assert answer.headers["content-security-policy"].startswith("default-src 'self'")


def waited_for(tab: Tab, script: str) -> bool:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if tab.run(script):
            return True
    return False


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_in_a_browser(address: str, tmp_path: Path) -> None:
    Image.fromarray(line()).save(tmp_path / "line.png")
    with browser(tmp_path / "profile") as tab:
        tab.show(1280, 900)
        tab.call("Page.navigate", url=address)
        assert waited_for(tab, "!!document.querySelector('input[type=file]')")
        field = tab.call("Runtime.evaluate", expression="document.querySelector('input[type=file]')")["result"]
        tab.call("DOM.setFileInputFiles", files=[str(tmp_path / "line.png")], objectId=field["objectId"])
        shown = "[...document.querySelectorAll('.grid-wrap img')].filter(e => e.complete && e.naturalWidth).length"
        assert waited_for(tab, f"{shown} == 4")
        assert tab.run("document.querySelector('h2').innerText").startswith("5.0 % structure")
        assert tab.run("document.documentElement.scrollWidth") <= 1280
        assert [url for url in tab.requests if not url.startswith((address, "blob:"))] == []
        assert not any("Content Security Policy" in complaint for complaint in tab.complaints)


# Those below serve pages of their own, after which gradio keeps files elsewhere than `address` expects.
def test_nothing_is_left_when_it_ends(gradio_client: Any, checkpoint: Path, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "line.tif", line())
    with served(segmenter(), checkpoint, LIMITS) as found:
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        other = gradio_client.Client(found, verbose=False, download_files=str(tmp_path / "downloads"))
        ask(gradio_client, other, tmp_path / "line.tif")
        assert any(folder.rglob("*.png"))
        assert list((folder.parent / "work").iterdir()) == []
    assert not folder.parent.exists()


def test_a_port_that_is_taken(gradio_client: Any, checkpoint: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BiocnnError, match="--port"), served(segmenter(), checkpoint, port=port):
            pass


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    app.add(parser.add_subparsers())
    return parser.parse_args(["app", *arguments])


def test_without_gradio_it_says_what_to_install(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)  # importing it then fails as if it were not there
    with pytest.raises(BiocnnError, match=r"pip install 'biocnn\[app\]'"), served(segmenter(), checkpoint):
        pass


def test_limits_are_numbers_above_0(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = parsed("--model", "best.ckpt", "--max-mpx", "0")
    assert arguments.run(arguments) == 2
    assert "--max-mpx: expected a number above 0, received 0" in capsys.readouterr().err
    assert parsed("--model", "best.ckpt").host == "127.0.0.1"
