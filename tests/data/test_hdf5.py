import multiprocessing
import os
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest

from biocnn.data.hdf5 import MappedArray, array_header, map_array, read_array
from biocnn.errors import DataError, DatasetNotFoundError

VALUES = np.random.default_rng(0).integers(0, 255, (37, 6, 5, 3), dtype=np.uint8)


def write(path: Path, **storage: object) -> Path:
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=VALUES, **storage)
    return path


@pytest.mark.parametrize(
    "storage",
    [
        {},
        {"chunks": (1, 6, 5, 3), "compression": "gzip"},
        {"chunks": (8, 3, 5, 1), "compression": "lzf", "shuffle": True},
        {"chunks": (4, 6, 5, 3), "fletcher32": True},
    ],
)
def test_rows_equal_h5py_in_any_order(tmp_path: Path, storage: dict[str, object]) -> None:
    mapped = map_array(write(tmp_path / "a.h5", **storage), "x")
    rows = np.array([36, 0, 5, 5, 17])
    np.testing.assert_array_equal(mapped.take(rows), VALUES[rows])
    assert mapped.shape == VALUES.shape
    assert array_header(tmp_path / "a.h5", "x") == (VALUES.shape, VALUES.dtype)


def test_contiguous_files_are_not_copied(tmp_path: Path) -> None:
    map_array(write(tmp_path / "a.h5"), "x")
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]


def test_compressed_file_is_decoded_once_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.h5", chunks=(1, 6, 5, 3), compression="gzip")
    first = map_array(path, "x")
    assert "decoding it once" in capsys.readouterr().out
    written = first.path.stat().st_mtime_ns
    second = map_array(path, "x")
    assert capsys.readouterr().out == ""
    assert second.path == first.path
    assert second.path.stat().st_mtime_ns == written
    assert not list(tmp_path.glob("*.part*"))


def test_changed_source_is_decoded_again(tmp_path: Path) -> None:
    storage = {"chunks": (1, 6, 5, 3), "compression": "gzip"}
    path = write(tmp_path / "a.h5", **storage)
    old = map_array(path, "x")
    with h5py.File(path, "r+") as file:
        file["x"][0] = 7
    os.utime(path, ns=(1, 1))
    new = map_array(path, "x")
    assert new.path != old.path
    assert (new.take(np.array([0])) == 7).all()


def test_decoded_copy_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", chunks=(1, 6, 5, 3), compression="gzip")
    copy = map_array(path, "x").path
    np.save(copy, VALUES[:3])
    with pytest.raises(DataError, match="Delete it"):
        map_array(path, "x")


def test_read_only_folder_decodes_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    path = write(folder / "a.h5", chunks=(1, 6, 5, 3), compression="gzip")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # Root may write anywhere, so the permission itself cannot be taken away in a test that root runs.
    monkeypatch.setattr(os, "access", lambda *_: False)
    mapped = map_array(path, "x")
    assert mapped.path.parent == tmp_path / "cache" / "biocnn"
    np.testing.assert_array_equal(mapped.take(np.arange(37)), VALUES)


def test_missing_truncated_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match=r"no file .*missing\.h5"):
        map_array(tmp_path / "missing.h5", "x")
    (tmp_path / "text.h5").write_text("not HDF5")
    with pytest.raises(DataError, match=r"text\.h5 cannot be opened"):
        map_array(tmp_path / "text.h5", "x")
    path = write(tmp_path / "cut.h5")
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DataError, match=r"cut\.h5"):
        map_array(path, "x")
    write(tmp_path / "whole.h5")
    with pytest.raises(DataError, match=r"no data set 'z'; it holds \['x'\]"):
        read_array(tmp_path / "whole.h5", "z")


def test_damaged_chunk_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", chunks=(1, 6, 5, 3), compression="gzip")
    with h5py.File(path) as file:
        info = file["x"].id.get_chunk_info(20)
    content = bytearray(path.read_bytes())
    content[info.byte_offset : info.byte_offset + info.size] = bytes(info.size)
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"a\.h5: 'x' cannot be decoded"):
        map_array(path, "x")
    assert not list(tmp_path.glob("*.npy"))


def test_declared_size_larger_than_file() -> None:
    with pytest.raises(DataError, match="is truncated"):
        MappedArray(Path(__file__), 0, (10**9, 10), np.dtype(np.uint8))


def _sum_in_child(mapped: MappedArray, queue: "multiprocessing.Queue[int]") -> None:
    queue.put(int(mapped.take(np.arange(37)).sum()))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_crosses_into_processes_after_being_read(tmp_path: Path, method: str) -> None:
    mapped = map_array(write(tmp_path / "a.h5"), "x")
    mapped.take(np.array([0]))  # the map is open in the parent
    context = multiprocessing.get_context(method)
    queue: multiprocessing.Queue[int] = context.Queue()
    child = context.Process(target=_sum_in_child, args=(mapped, queue))
    child.start()
    assert queue.get(timeout=60) == int(VALUES.sum())
    child.join(60)


def test_pickle_holds_no_data(tmp_path: Path) -> None:
    mapped = map_array(write(tmp_path / "a.h5"), "x")
    mapped.take(np.arange(37))
    assert len(pickle.dumps(mapped)) < 1000
