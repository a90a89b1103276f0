"""Predictions that are killed, interrupted, or cannot be written leave what is finished whole, and go on."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from biocnn.errors import DataError
from biocnn.inference.sources import Reading
from biocnn.report.predictions import predict_images
from tests.inference.test_predict_folder import QUICK, RANDOM, blobs, predict, save, table
from tests.inference.test_results import segmenter


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """The file of a checkpoint whose model is already loaded: only its digest counts."""
    path = tmp_path / "best.ckpt"
    path.write_bytes(b"weights")
    return path


SCRIPT = """
import os, signal, sys
from pathlib import Path
from biocnn.report.predictions import Settings, predict_images
from tests.inference.test_results import segmenter
def kill(name, done, total):
    if done == 2: os.kill(os.getpid(), signal.SIGKILL)
folder = Path(sys.argv[1])
predict_images(segmenter(), folder / "best.ckpt", [folder / "in"], folder / "out", Settings(graph=None), kill)
"""


def test_finished_results_outlive_a_kill(tmp_path: Path, weights: Path) -> None:
    for number in range(4):
        save(tmp_path / f"in/{number}.tif", blobs(seed=number))
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    found = sorted(path.parent.name for path in (tmp_path / "out/images").glob("*/result.json"))
    assert found == ["0", "1"]
    assert set(table(tmp_path / "out")) <= {"0.tif", "1.tif"}
    rows, said = predict(segmenter(), weights, tmp_path / "in")
    assert said == ["2 of 4 image(s) are finished already."]
    assert [row["status"] for row in rows.values()] == ["ok"] * 4


def test_an_interrupted_large_image_goes_on(tmp_path: Path, weights: Path) -> None:
    save(tmp_path / "in.tif", blobs(90, 70))
    model = segmenter()
    model.task.tile_size = 32
    settings = replace(QUICK, reading=Reading(max_pixels=1000))
    totals = []

    def stop(name: str, done: int, total: int | None) -> None:
        if name.startswith("tiles") and done == 5:
            raise KeyboardInterrupt

    def note(name: str, done: int, total: int | None) -> None:
        totals.append((name, total))

    with pytest.raises(KeyboardInterrupt):
        predict(model, weights, tmp_path / "in.tif", settings, progress=stop)
    assert not list((tmp_path / "out/images").iterdir())
    predict(model, weights, tmp_path / "in.tif", settings, progress=note)
    # Of three rows of three tiles one was finished.
    assert dict(totals) == {"images": 1, "tiles of in.tif": 6}
    assert not (tmp_path / "out/.unfinished").exists()


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file can grow beyond a size, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


@pytest.mark.parametrize("pixels", [10**6, 1000])
def test_a_full_disk_stops_and_keeps_what_is_finished(tmp_path: Path, weights: Path, pixels: int) -> None:
    save(tmp_path / "in/a.tif", blobs())
    save(tmp_path / "in/b.tif", RANDOM.integers(0, 256, (300, 400), dtype=np.uint8))
    save(tmp_path / "in/c.tif", blobs())
    settings = replace(QUICK, reading=Reading(max_pixels=pixels))
    with largest_file(60_000), pytest.raises(DataError, match=r"cannot be written: .*make room"):
        predict(segmenter(), weights, tmp_path / "in", settings)
    rows = table(tmp_path / "out")
    assert {name: row["status"] for name, row in rows.items()} == {"a.tif": "ok"}
    assert [path.name for path in (tmp_path / "out/images").iterdir()] == ["a"]
    rows, _ = predict(segmenter(), weights, tmp_path / "in", settings)
    assert [row["status"] for row in rows.values()] == ["ok"] * 3


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, weights: Path) -> None:
    save(tmp_path / "in.tif", blobs())
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written: Not a directory"):
        predict_images(segmenter(), weights, [tmp_path / "in.tif"], tmp_path / "file/out")


@pytest.mark.skipif(os.geteuid() == 0, reason="everything is allowed")
def test_a_folder_without_permission_is_named(tmp_path: Path, weights: Path) -> None:
    save(tmp_path / "in.tif", blobs())
    (tmp_path / "shut").mkdir(0o555)
    with pytest.raises(DataError, match="cannot be written: Permission denied"):
        predict_images(segmenter(), weights, [tmp_path / "in.tif"], tmp_path / "shut/out")
