import hashlib
import json
import os
from pathlib import Path

import pytest

from biocnn.files import atomic_path, file_digest, write_json, write_text


def test_writes_into_a_new_folder_and_keeps_the_suffix(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "table.csv"
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent
        assert temporary.suffix == ".csv"
        assert temporary.name.startswith(".")
        assert not temporary.exists()
        temporary.write_text("a,b\n")
        assert not target.exists(), "nothing is there before the block ends"
    assert target.read_text() == "a,b\n"
    assert list(target.parent.iterdir()) == [target]


def test_a_failure_leaves_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    target = tmp_path / "metrics.json"
    target.write_text("old")
    with pytest.raises(RuntimeError, match="half way"), atomic_path(target) as temporary:  # noqa: PT012
        temporary.write_text("ne")
        raise RuntimeError("half way")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_an_interruption_leaves_the_old_file_too(tmp_path: Path) -> None:
    target = tmp_path / "metrics.json"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_path(target) as temporary:  # noqa: PT012
        temporary.write_text("ne")
        raise KeyboardInterrupt
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    target = tmp_path / "empty.txt"
    target.write_text("old")
    with pytest.raises(FileNotFoundError), atomic_path(target):
        pass
    assert target.read_text() == "old"


def test_it_is_on_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real calls are made and their order is noted."""
    calls: list[tuple[str, int]] = []
    sync, rename = os.fsync, os.replace

    def noted_sync(handle: int) -> None:
        calls.append(("fsync", os.fstat(handle).st_ino))
        sync(handle)

    def noted_rename(source: Path, target: Path) -> None:
        calls.append(("replace", source.stat().st_ino))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "replace", noted_rename)
    with atomic_path(tmp_path / "x.bin") as temporary:
        temporary.write_bytes(b"abc")
        file = temporary.stat().st_ino
    assert calls == [("fsync", file), ("replace", file)]
    assert (tmp_path / "x.bin").read_bytes() == b"abc"


def test_two_writers_at_once_do_not_meet(tmp_path: Path) -> None:
    target = tmp_path / "x.txt"
    with atomic_path(target) as first, atomic_path(target) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert target.read_text() == "first", "the outer block ends last"
    assert list(tmp_path.iterdir()) == [target]


def test_text_and_json_are_utf8(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "0.25 µm\n")
    assert (tmp_path / "a.txt").read_bytes() == "0.25 µm\n".encode()
    write_json(tmp_path / "b.json", {"b": 1, "a": [None, "µm"]})
    text = (tmp_path / "b.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"b": 1, "a": [None, "µm"]}
    assert text.index('"b"') < text.index('"a"'), "keys stay in their order"
    assert text.endswith("}\n")


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20])
@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_digests_are_those_of_hashlib(tmp_path: Path, size: int, algorithm: str) -> None:
    content = bytes(range(256)) * (size // 256 + 1)
    path = tmp_path / "x"
    path.write_bytes(content[:size])
    assert file_digest(path, algorithm) == hashlib.new(algorithm, content[:size]).hexdigest()


def test_digest_of_a_known_text(tmp_path: Path) -> None:
    (tmp_path / "abc").write_text("abc")
    # FIPS 180-2, appendix B.1.
    assert file_digest(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
