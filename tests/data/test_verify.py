import hashlib
import json

import numpy as np
import pytest

from biocnn.data.verify import verify
from biocnn.errors import DataError, DatasetNotFoundError

CONTENT = b"patches"


@pytest.fixture
def known(make_manifest, tmp_path):
    """Root with one file that has a published md5, and its manifest."""
    (tmp_path / "x.bin").write_bytes(CONTENT)
    return make_manifest(
        splits={"train": {"images": "images/*.png", "masks": "masks/*.png"}},
        files=({"name": "x.bin", "url": "https://host/x.bin", "md5": hashlib.md5(CONTENT).hexdigest()},),
    )


def draw(root, save_image, count=2):
    for index in range(count):
        for folder in ("images", "masks"):
            save_image(root / folder / f"{index}.png", np.full((4, 4), index, np.uint8))


def statuses(result):
    return {file.name: file.status for file in result.files}


def test_published_checksums_are_compared_and_others_recorded(tmp_path, known, save_image):
    draw(tmp_path, save_image)
    first = verify(known, tmp_path)
    assert statuses(first) == {
        "x.bin": "ok",
        **dict.fromkeys(["images/0.png", "images/1.png", "masks/0.png", "masks/1.png"], "recorded"),
    }
    assert first.ok
    record = json.loads((tmp_path / "drawn.checksums.json").read_text())["files"]
    image = (tmp_path / "images/1.png").read_bytes()
    assert record["images/1.png"] == {"bytes": len(image), "sha256": hashlib.sha256(image).hexdigest()}
    assert set(statuses(verify(known, tmp_path)).values()) == {"ok"}


def test_changed_and_lost_and_new_files_are_told_apart(tmp_path, known, save_image):
    draw(tmp_path, save_image)
    verify(known, tmp_path)
    save_image(tmp_path / "images/1.png", np.full((4, 4), 77, np.uint8))
    (tmp_path / "masks/0.png").unlink()
    save_image(tmp_path / "images/2.png", np.zeros((4, 4), np.uint8))
    (tmp_path / "x.bin").write_bytes(b"patchez")
    result = verify(known, tmp_path)
    found = statuses(result)
    assert not result.ok
    assert found["x.bin"] == "differs"
    assert found["images/1.png"] == "differs"
    assert found["masks/0.png"] == "missing"
    assert found["images/2.png"] == "recorded"
    assert found["images/0.png"] == "ok"


def test_missing_files_and_too_few_images_are_reported(tmp_path, make_manifest, save_image):
    draw(tmp_path, save_image)
    manifest = make_manifest(
        splits={"train": {"images": "images/*.png", "masks": "masks/*.png", "count": 5}},
        files=({"name": "x.bin", "url": "https://host/x.bin"},),
    )
    result = verify(manifest, tmp_path)
    missing = {file.name: file.detail for file in result.files if file.status == "missing"}
    assert missing == {
        "x.bin": "not found",
        "images/*.png": "split train: 2 found, 5 expected",
        "masks/*.png": "split train: 2 found, 5 expected",
    }


def test_size_alone_is_compared_before_any_sum(tmp_path, make_manifest):
    (tmp_path / "x.bin").write_bytes(CONTENT)
    manifest = make_manifest(files=({"name": "x.bin", "url": "https://host/x.bin", "bytes": 8, "sha256": "0" * 64},))
    (wrong,) = [file for file in verify(manifest, tmp_path).files if file.name == "x.bin"]
    assert (wrong.status, wrong.detail) == ("differs", "has 7 bytes, expected 8")


def test_record_goes_to_the_cache_when_the_folder_cannot_be_written(tmp_path, known, save_image, monkeypatch):
    root = tmp_path / "root"
    draw(root, save_image)
    (root / "x.bin").write_bytes(CONTENT)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # A folder of this name keeps the record from being written, for an administrator as well.
    (root / "drawn.checksums.json" / "occupied").mkdir(parents=True)
    first = verify(known, root)
    assert "cannot be written to: recorded 4 checksums in" in first.note
    assert first.record is not None
    assert first.record.is_relative_to(tmp_path / "cache")
    second = verify(known, root)
    assert set(statuses(second).values()) == {"ok"}
    assert second.record == first.record


def test_nothing_can_be_recorded(tmp_path, known, save_image, monkeypatch):
    draw(tmp_path, save_image)
    (tmp_path / "drawn.checksums.json" / "occupied").mkdir(parents=True)
    (tmp_path / "cache").write_text("a file, not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    result = verify(known, tmp_path)
    assert result.record is None
    assert "nothing was recorded" in result.note


def test_damaged_record_is_named(tmp_path, known, save_image):
    draw(tmp_path, save_image)
    (tmp_path / "drawn.checksums.json").write_text('{"files": 3}')
    with pytest.raises(DataError, match=r"drawn.checksums.json is not a record of checksums .* Move it away"):
        verify(known, tmp_path)


def test_root_must_be_a_folder(tmp_path, known):
    with pytest.raises(DatasetNotFoundError, match=r"There is no folder .*nowhere. Give the folder of the data"):
        verify(known, tmp_path / "nowhere")
