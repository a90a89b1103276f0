"""Images written band by band: what other readers find in them, in how much memory, and what is left after an error."""

import json
import resource
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import tifffile
import zarr

from biocnn.data.images import read_image
from biocnn.data.lazy_images import open_lazy
from biocnn.data.ome_tiff import write_ome_tiff
from biocnn.data.ome_zarr import write_ome_zarr
from biocnn.errors import BiocnnError, DataError
from tests.data.pictures import noise

Writer = Callable[..., None]
WRITERS = [(write_ome_tiff, "a.ome.tif"), (write_ome_zarr, "a.ome.zarr")]
U8, U16, F32 = np.uint8, np.uint16, np.float32


def bands(array: np.ndarray, *heights: int) -> Iterator[np.ndarray]:
    """Rows in bands of these heights, over and over."""
    top = 0
    while top < len(array):
        for height in heights:
            yield array[top : top + height]
            top += height


def half(array: np.ndarray, kind: str) -> np.ndarray:
    """Mean or largest of every 2 x 2 pixels, the border repeated; float64."""
    rows, columns = ((np.arange((length + 1) // 2) * 2) for length in array.shape[:2])
    last = array.shape[0] - 1, array.shape[1] - 1
    four = [
        array[np.minimum(rows + i, last[0])][:, np.minimum(columns + j, last[1])].astype(float)
        for i in (0, 1)
        for j in (0, 1)
    ]
    return np.mean(four, axis=0) if kind == "map" else np.max(four, axis=0)


def check_copies(copies: list[np.ndarray], array: np.ndarray, kind: str) -> None:
    """Each copy is half of the one before, down to 512."""
    np.testing.assert_array_equal(copies[0], array)
    for above, below in pairwise(copies):
        assert max(above.shape[:2]) > 512
        expected = half(above, kind)
        whole = below.dtype.kind in "ui"
        # The sum of four numbers is rounded three times.
        tolerance = 0 if whole else 3 * np.finfo(F32).eps * np.abs(above).max()
        np.testing.assert_allclose(below, np.rint(expected) if whole else expected, rtol=0, atol=tolerance)
    assert max(copies[-1].shape[:2]) <= 512


CASES: list[tuple[str, np.ndarray, dict[str, Any]]] = [
    ("map", noise(1100, 700, dtype=F32), {}),
    ("mask", (noise(1030, 517) > 250).astype(U8), {"kind": "mask"}),
    ("grey16", noise(513, 40, dtype=U16), {}),
    ("small", noise(7, 9), {}),
    ("colours", noise(600, 520, 3), {}),
    ("channels", noise(600, 530, 2, dtype=U16), {"channel_names": ["DAPI", "Actin"]}),
    ("named colours", noise(520, 60, 3), {"channel_names": ["a", "b", "c"]}),
]


@pytest.mark.parametrize(("array", "options"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_ome_tiff_as_tifffile_reads_it(tmp_path: Path, array: np.ndarray, options: dict[str, Any]) -> None:
    path = tmp_path / "a.ome.tif"
    write_ome_tiff(path, array.shape, array.dtype, bands(array, 100, 512, 1), (0.5, 0.25), **options)
    with tifffile.TiffFile(path) as tiff:
        assert tiff.is_ome
        assert len(tiff.series) == 1
        series = tiff.series[0]
        copies = [level.asarray() for level in series.levels]
        if series.axes == "CYX":
            copies = [copy.transpose(1, 2, 0) for copy in copies]
        check_copies(copies, array, options.get("kind", "map"))
        assert all(level.keyframe.is_tiled and level.keyframe.compression == 8 for level in series.levels)
        assert series.pages[0].tags["XResolution"].value == (40000, 1)
        assert tiff.ome_metadata is not None
        facts = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"]["Pixels"]
    assert (facts["PhysicalSizeY"], facts["PhysicalSizeX"]) == (0.5, 0.25)
    assert (facts["PhysicalSizeYUnit"], facts["PhysicalSizeXUnit"]) == ("µm", "µm")
    if "channel_names" in options:
        assert [channel["Name"] for channel in facts["Channel"]] == options["channel_names"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.ome.tif"]


@pytest.mark.parametrize(("array", "options"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_ome_zarr_as_zarr_reads_it(tmp_path: Path, array: np.ndarray, options: dict[str, Any]) -> None:
    path = tmp_path / "a.ome.zarr"
    write_ome_zarr(path, array.shape, array.dtype, bands(array, 100, 512, 1), (0.5, 0.25), **options)
    facts = json.loads((path / "zarr.json").read_text())["attributes"]["ome"]
    scales = facts["multiscales"][0]
    spatial = [{"name": name, "type": "space", "unit": "micrometer"} for name in "yx"]
    assert facts["version"] == "0.5"
    assert scales["axes"] == [{"name": "c", "type": "channel"}, *spatial][-array.ndim :]
    copies = [np.asarray(zarr.open_array(path / level["path"], mode="r")) for level in scales["datasets"]]
    if array.ndim == 3:
        copies = [copy.transpose(1, 2, 0) for copy in copies]
    check_copies(copies, array, options.get("kind", "map"))
    for number, level in enumerate(scales["datasets"]):
        step, shift = level["coordinateTransformations"]
        assert (step["type"], shift["type"]) == ("scale", "translation")
        assert step["scale"][-2:] == [0.5 * 2**number, 0.25 * 2**number]
        # The centres of the first pixels of the image that the first pixel of the copy stands for, on average.
        assert shift["translation"][-2:] == [0.5 * np.arange(2**number).mean(), 0.25 * np.arange(2**number).mean()]
    if "channel_names" in options:
        assert [channel["label"] for channel in facts["omero"]["channels"]] == options["channel_names"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.ome.zarr"]


@pytest.mark.parametrize(("write", "name"), WRITERS)
@pytest.mark.parametrize(("array", "options"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_what_is_written_is_read(
    tmp_path: Path, write: Writer, name: str, array: np.ndarray, options: dict[str, Any]
) -> None:
    write(tmp_path / name, array.shape, array.dtype, bands(array, 300), (0.5, 0.25), **options)
    image = read_image(tmp_path / name)
    np.testing.assert_array_equal(image.array, array)
    assert (image.array.dtype, image.pixel_size_um) == (array.dtype, (0.5, 0.25))
    with open_lazy(tmp_path / name) as lazy:
        if "channel_names" in options:
            assert lazy.channel_names == tuple(options["channel_names"])
        np.testing.assert_array_equal(lazy.read(slice(3, 6), slice(2, 9)).squeeze(), array[3:6, 2:9])


@pytest.mark.parametrize(("write", "name"), WRITERS)
def test_masks_and_unknown_pixel_sizes(tmp_path: Path, write: Writer, name: str) -> None:
    mask = noise(600, 30) > 128
    write(tmp_path / name, mask.shape, bool, bands(mask, 7), None, kind="mask")
    image = read_image(tmp_path / name)
    np.testing.assert_array_equal(image.array, mask * U8(255))
    assert image.pixel_size_um is None


@pytest.mark.parametrize(("write", "name"), WRITERS)
def test_memory_does_not_grow_with_the_height(tmp_path: Path, write: Writer, name: str) -> None:
    def rows(height: int) -> Iterator[np.ndarray]:
        for top in range(0, height, 500):
            yield np.full((500, 600), top % 251, U8)

    peaks = []
    for height in (1_000, 1_000, 15_000):  # the first one pays for what is set up once
        tracemalloc.start()
        write(tmp_path / name, (height, 600), U8, rows(height), (1.0, 1.0))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # 8 MB of pixels more; a list of tiles is a few kilobytes, and garbage is not collected at the same moments.
    assert peaks[2] < peaks[1] + 600_000


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Writing beyond `size` bytes fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("write", "name"), WRITERS)
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, write: Writer, name: str) -> None:
    old, new = noise(30, 40), noise(2000, 1000)
    write(tmp_path / name, old.shape, U8, bands(old, 30), (1.0, 1.0))
    with largest_file(100_000), pytest.raises(DataError, match=rf"{name} cannot be written: .*Make room and run it"):
        write(tmp_path / name, new.shape, U8, bands(new, 100), (1.0, 1.0))
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    np.testing.assert_array_equal(read_image(tmp_path / name).array, old)
    write(tmp_path / name, new.shape, U8, bands(new, 100), (1.0, 1.0))
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    np.testing.assert_array_equal(read_image(tmp_path / name).array, new)


@pytest.mark.parametrize(("write", "name"), WRITERS)
def test_an_error_of_the_bands_leaves_what_was_there(tmp_path: Path, write: Writer, name: str) -> None:
    array = noise(1200, 600)

    def broken() -> Iterator[np.ndarray]:
        yield array[:800]
        raise BiocnnError("the image is damaged")

    write(tmp_path / name, array.shape, U8, bands(array, 1200), (1.0, 1.0))
    with pytest.raises(BiocnnError, match="the image is damaged"):
        write(tmp_path / name, array.shape, U8, broken(), (1.0, 1.0))
    wrong: list[tuple[Iterator[np.ndarray], str]] = [
        (bands(array[:1199], 100), "expected 1200 rows, received 1199"),
        (bands(np.concatenate([array, array[:1]]), 100), "expected 0 more rows"),
        (bands(array[:, 1:], 100), r"expected 1200 more rows of \(600, 1\) uint8, received \(100, 599, 1\) uint8"),
        (bands(array.astype(U16), 100), "received .* uint16"),
    ]
    for iterator, message in wrong:
        with pytest.raises(ValueError, match=message):
            write(tmp_path / name, array.shape, U8, iterator, (1.0, 1.0))
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    np.testing.assert_array_equal(read_image(tmp_path / name).array, array)


@pytest.mark.parametrize(("write", "name"), WRITERS)
def test_where_nothing_can_be_written(tmp_path: Path, write: Writer, name: str) -> None:
    asked: list[Literal["asked"]] = []

    def rows() -> Iterator[np.ndarray]:
        asked.append("asked")
        yield noise(5, 6)

    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DataError, match=rf"{name} cannot be written: .*the folder is there and writable"):
        write(tmp_path / "file" / name, (5, 6), U8, rows(), (1.0, 1.0))
    assert asked == []  # hours of prediction are not begun
    folder = tmp_path / name
    folder.mkdir()
    (folder / "notes.txt").write_text("of the user")
    with pytest.raises(DataError):
        write(folder, (5, 6), U8, rows(), (1.0, 1.0))
    assert (folder / "notes.txt").read_text() == "of the user"


def test_what_ome_tiff_has_no_place_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="OME-TIFF has no int64; it has uint8, uint16"):
        write_ome_tiff(tmp_path / "a.ome.tif", (5, 6), np.int64, iter([]), None)
    for write in (write_ome_tiff, write_ome_zarr):
        with pytest.raises(ValueError, match="received 1 names for 2 channels"):
            write(tmp_path / "a", (5, 6, 2), U8, iter([]), None, channel_names=["a"])
