"""Parts of images have the values of the whole, cost no more than they should, and are refused when they would."""

import importlib.util
import struct
import threading
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image as Pillow

from biocnn.data.images import read_image
from biocnn.data.lazy_images import LazyImage, from_array, open_lazy
from biocnn.errors import DataError, DatasetNotFoundError
from tests.data.pictures import noise, opencv, palette_picture, png_bytes
from tests.data.test_images import EXACT

U8, U16, F32 = np.uint8, np.uint16, np.float32
GREY: dict[str, Any] = {"photometric": "minisblack"}
TILED: dict[str, Any] = {"tile": (16, 32), "compression": "zlib"}


def windows(image: LazyImage, count: int = 8) -> Iterator[tuple[slice, slice]]:
    """Everything, a pixel in each corner, and parts at random, some of them empty."""
    rng = np.random.default_rng(5)
    yield slice(None), slice(None)
    yield slice(0, 1), slice(-1, None)
    yield slice(-1, None), slice(0, 1)
    for _ in range(count):
        top, bottom = sorted(rng.integers(0, image.shape[0] + 1, 2).tolist())
        left, right = sorted(rng.integers(0, image.shape[1] + 1, 2).tolist())
        yield slice(top, bottom), slice(left, right)


def check_against_whole(path: Path, by_tile: bool | None = None, **options: Any) -> None:
    """Every part of the lazy image is that part of what `read_image` returns, with a channel axis."""
    whole = read_image(path, **options)
    array = whole.array if whole.axes.endswith("C") else whole.array[..., None]
    with open_lazy(path, **options) as image:
        assert (image.shape, image.dtype) == (array.shape, array.dtype)
        assert image.pixel_size_um == whole.pixel_size_um
        assert len(image.channel_names) == image.shape[2]
        assert by_tile in (None, image.by_tile)
        for rows, columns in windows(image):
            part = image.read(rows, columns)
            assert part.dtype == array.dtype
            np.testing.assert_array_equal(part, array[rows, columns])


@pytest.mark.parametrize(("name", "written", "write", "axes"), EXACT, ids=[case[0] for case in EXACT])
def test_every_kind_of_file(
    tmp_path: Path, name: str, written: np.ndarray, write: Callable[[Path, np.ndarray], None], axes: str
) -> None:
    write(tmp_path / name, written)
    if axes[0] == "Y":
        check_against_whole(tmp_path / name)
        return
    for page in (0, len(written) - 1):
        check_against_whole(tmp_path / name, page=page)
    with (
        pytest.raises(DataError, match=rf"has {len(written)} planes .*Choose one by `page`, 0 to"),
        open_lazy(tmp_path / name),
    ):
        pass


LAYOUTS: list[tuple[str, np.ndarray, dict[str, Any]]] = [
    ("strips", noise(70, 50), {"rowsperstrip": 8, "compression": "zlib"}),
    ("one_strip", noise(70, 50, dtype=U16), {"rowsperstrip": 2**20, "compression": "zlib"}),
    ("strips_stored", noise(70, 50, dtype=U16), {"rowsperstrip": 8}),
    ("tiles", noise(70, 50, dtype=U16), TILED),
    ("tiles_stored", noise(70, 50, dtype=F32), {"tile": (16, 32)}),
    ("tiles_big_endian", noise(70, 50, dtype=U16), {**TILED, "byteorder": ">"}),
    ("tiles_predictor", noise(70, 50, dtype=U16), {**TILED, "predictor": 2}),
    ("colour", noise(70, 50, 3), {**TILED, "photometric": "rgb"}),
    ("alpha", noise(70, 50, 4), {**TILED, "photometric": "rgb", "extrasamples": ["unassalpha"]}),
    ("planar", noise(3, 70, 50), {**TILED, "photometric": "rgb", "planarconfig": "separate"}),
    ("planar_stored", noise(3, 70, 50), {"photometric": "rgb", "planarconfig": "separate"}),
    ("planar_strips", noise(3, 70, 50), {"rowsperstrip": 9, "photometric": "rgb", "planarconfig": "separate"}),
    ("five", noise(70, 50, 5), {**TILED, **GREY, "planarconfig": "contig"}),
    ("tall_tile", noise(7, 50), TILED),
    ("bilevel", noise(70, 50) > 99, {"rowsperstrip": 8, "compression": "zlib"}),
    ("inverted", noise(70, 50), {**TILED, "photometric": "miniswhite"}),
    ("channels.ome", noise(4, 70, 50, dtype=U16), {**TILED, **GREY, "metadata": {"axes": "CYX"}}),
    ("samples.ome", noise(2, 70, 50, 3), {**TILED, "photometric": "rgb", "metadata": {"axes": "CYXS"}}),
]


@pytest.mark.parametrize(("name", "written", "options"), LAYOUTS, ids=[case[0] for case in LAYOUTS])
def test_layouts_of_tiff(tmp_path: Path, name: str, written: np.ndarray, options: dict[str, Any]) -> None:
    path = tmp_path / f"{name}.tif"
    tifffile.imwrite(path, written, **options)
    check_against_whole(path, by_tile=name not in ("one_strip", "tall_tile"))  # in these one piece holds it all


def test_planes_of_tiff_are_read_alone(tmp_path: Path) -> None:
    stack = noise(2, 3, 4, 40, 30, dtype=U16)
    for name, options in (("tiles", TILED), ("stored", {}), ("imagej", {"imagej": True})):
        axes = "TZCYX"
        tifffile.imwrite(tmp_path / f"{name}.ome.tif", stack, metadata={"axes": axes}, **GREY, **options)
        check_against_whole(tmp_path / f"{name}.ome.tif", by_tile=True, page=4)
        check_against_whole(tmp_path / f"{name}.ome.tif", page=5, channels=[3, 0])
    pages = stack[0, 0]
    tifffile.imwrite(tmp_path / "pages.tif", pages, **GREY, **TILED)
    check_against_whole(tmp_path / "pages.tif", page=3)
    check_against_whole(tmp_path / "pages.tif", axes="CYX")
    tifffile.imwrite(tmp_path / "turned.tif", pages[0], **TILED)
    check_against_whole(tmp_path / "turned.tif", by_tile=False, axes="XY")
    with tifffile.TiffWriter(tmp_path / "two.tif") as writer:
        writer.write(pages[0], metadata=None, **TILED)
        writer.write(pages[1, :20], metadata=None, **TILED)
    check_against_whole(tmp_path / "two.tif", page=1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_rotation_of_the_camera_is_applied(tmp_path: Path, orientation: int) -> None:
    tag = [(0x0112, "H", 1, orientation, True)]
    tifffile.imwrite(tmp_path / "a.tif", noise(40, 50, 3), photometric="rgb", extratags=tag, **TILED)
    check_against_whole(tmp_path / "a.tif", by_tile=True)
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    Pillow.fromarray(noise(8, 24, 3)).save(tmp_path / "a.jpg", exif=exif)
    check_against_whole(tmp_path / "a.jpg", by_tile=False)


def test_palettes_alpha_and_compressions_without_a_decoder(tmp_path: Path) -> None:
    indices = noise(40, 50) % 4
    table = [(200, 30, 0), (0, 0, 130), (1, 2, 3), (9, 8, 7)]
    for suffix, options in ((".png", {}), (".gif", {}), (".bmp", {}), (".tif", {"compression": "tiff_adobe_deflate"})):
        palette_picture(indices, table).save(tmp_path / f"palette{suffix}", **options)
        check_against_whole(tmp_path / f"palette{suffix}", by_tile=suffix == ".tif")
    opencv(tmp_path / "alpha.png", noise(40, 50, 4, dtype=U16))
    check_against_whole(tmp_path / "alpha.png", by_tile=False)
    assert cv2.imwrite(str(tmp_path / "lzw.tif"), noise(70, 50), [cv2.IMWRITE_TIFF_COMPRESSION, 5])
    check_against_whole(tmp_path / "lzw.tif")


def test_chunks_of_hdf5_and_zarr(tmp_path: Path) -> None:
    stack = noise(3, 70, 50, dtype=U16)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("raw", data=stack, chunks=(1, 16, 16), compression="gzip")
        file["stored"] = stack[0]
        file["raw"].attrs["element_size_um"] = [3.0, 0.5, 0.25]
    with open_lazy(tmp_path / "a.h5", key="raw", page=2) as image:
        assert (image.by_tile, image.pixel_size_um) == (True, (0.5, 0.25))
        np.testing.assert_array_equal(image.read(slice(3, 40), slice(5, 50))[..., 0], stack[2, 3:40, 5:50])
    check_against_whole(tmp_path / "a.h5", by_tile=True, key="raw", axes="CYX")
    check_against_whole(tmp_path / "a.h5", by_tile=True, key="stored")
    zarr.create_array(tmp_path / "2.zarr", data=stack[0], chunks=(16, 16), zarr_format=2)
    zarr.create_array(tmp_path / "3.zarr", data=stack[0], chunks=(16, 16), shards=(32, 32))
    check_against_whole(tmp_path / "2.zarr", by_tile=True)
    check_against_whole(tmp_path / "3.zarr", by_tile=True)


def write_ngff(path: Path, array: np.ndarray, version: int) -> None:
    group = zarr.open_group(path, mode="w", zarr_format=version)  # type: ignore[arg-type]
    axes = [{"name": "c", "type": "channel"}]
    axes += [{"name": name, "type": "space", "unit": "micrometer"} for name in "yx"]
    group.create_array("0", data=array, chunks=(1, 16, 16))
    scale = [{"type": "scale", "scale": [1.0, 0.5, 0.25]}]
    facts: dict[str, Any] = {
        "multiscales": [{"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}]
    }
    facts["omero"] = {"channels": [{"label": label} for label in ("DAPI", "Actin", "Tubulin", "3")]}
    group.attrs.update(facts if version == 2 else {"ome": facts})


@pytest.mark.parametrize("version", [2, 3])
def test_channels_by_name_and_number(tmp_path: Path, version: int) -> None:
    stack = noise(4, 40, 30, dtype=U16)
    write_ngff(tmp_path / "a.zarr", stack, version)
    metadata = {"axes": "CYX", "Channel": {"Name": ["DAPI", "Actin", "Tubulin", "3"]}}
    tifffile.imwrite(tmp_path / "a.ome.tif", stack, metadata=metadata, **GREY, **TILED)
    rows, columns = slice(5, 21), slice(3, 30)
    for path in (tmp_path / "a.zarr", tmp_path / "a.ome.tif"):
        wanted: list[tuple[Any, list[int]]] = [
            (None, [0, 1, 2, 3]),
            ("Actin", [1]),
            (["tubulin", "DAPI"], [2, 0]),
            ([2, "Actin", 2], [2, 1, 2]),
            ("3", [3]),
            (["2"], [2]),
            (3, [3]),
        ]
        for channels, numbers in wanted:
            with open_lazy(path, channels=channels) as image:
                assert image.channel_names == tuple(("DAPI", "Actin", "Tubulin", "3")[number] for number in numbers)
                np.testing.assert_array_equal(
                    image.read(rows, columns), stack[numbers, rows, columns].transpose(1, 2, 0)
                )
        for wrong in ("GFP", 4, -1, []):
            with (
                pytest.raises(DataError, match=r"channels DAPI, Actin, Tubulin, 3 \(0 to 3\), received"),
                open_lazy(path, channels=wrong),
            ):
                pass
    Pillow.fromarray(noise(7, 9, 3)).save(tmp_path / "a.png")
    with open_lazy(tmp_path / "a.png", channels=["blue", 0]) as image:
        np.testing.assert_array_equal(
            image.read(slice(None), slice(None)), read_image(tmp_path / "a.png").array[..., [2, 0]]
        )


def test_a_part_costs_what_it_touches(tmp_path: Path) -> None:
    whole = noise(100, 100).repeat(30, 0).repeat(30, 1)  # 9 MB
    tifffile.imwrite(tmp_path / "tiles.tif", whole, tile=(256, 256), compression="zlib")
    tifffile.imwrite(tmp_path / "stored.tif", whole)
    zarr.create_array(tmp_path / "a.zarr", data=whole, chunks=(256, 256))
    for name in ("tiles.tif", "stored.tif", "a.zarr"):
        with open_lazy(tmp_path / name) as image:
            image.read(slice(0, 1), slice(0, 1))
            tracemalloc.start()
            part = image.read(slice(1000, 1200), slice(1000, 1200))
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            np.testing.assert_array_equal(part[..., 0], whole[1000:1200, 1000:1200])
        # Up to four tiles of 64 KiB, decoded and encoded, and the part of 40 kB in a few copies.
        assert peak < 1_200_000, name


def test_errors_of_the_caller_pass_through(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", noise(8, 8))
    with pytest.raises(RuntimeError, match="of the caller"), open_lazy(tmp_path / "a.tif"):
        raise RuntimeError("of the caller")
    with open_lazy(tmp_path / "a.tif") as image, pytest.raises(ValueError, match="without gaps"):
        image.read(slice(0, 8, 2), slice(None))


def test_bombs_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    # 400 million pixels in a few kilobytes; the pixels are never written, so decoding would fail another way.
    empty = png_bytes(np.zeros((0, 20000, 3), U8), 2)
    header = b"IHDR" + struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)
    (tmp_path / "bomb.png").write_bytes(empty[:12] + header + struct.pack(">I", zlib.crc32(header)) + empty[33:])
    zeros = np.zeros((4000, 4000), U8)
    tifffile.imwrite(tmp_path / "strip.tif", zeros, compression="zlib", rowsperstrip=4000)
    with h5py.File(tmp_path / "chunk.h5", "w") as file:
        file.create_dataset("a", (60000, 60000), U8, chunks=(60000, 40000), compression="gzip")
    zarr.create_array(tmp_path / "chunk.zarr", shape=(60000, 60000), dtype="uint8", chunks=(60000, 40000))
    for name, limit in (("bomb.png", 10**9), ("strip.tif", 10**7), ("chunk.h5", 10**9), ("chunk.zarr", 10**9)):
        with (
            pytest.raises(DataError, match=rf"{name}, .* takes .* GB, more than the .* Save it as a tiled"),
            open_lazy(tmp_path / name, max_bytes=limit),
        ):
            pass
    # The image as a whole may be larger than the limit.
    tifffile.imwrite(tmp_path / "tiles.tif", zeros, compression="zlib", tile=(256, 256))
    with open_lazy(tmp_path / "tiles.tif", max_bytes=10**6) as image:
        assert not image.read(slice(3000, 3100), slice(0, 4000)).any()


@pytest.mark.parametrize("side", [64, 1024])
def test_a_tile_that_unpacks_to_more_than_a_tile_is_refused(tmp_path: Path, side: int) -> None:
    random = np.random.default_rng(0).bytes(1_100_000)
    bomb = zlib.compress(random + bytes(20_000_000), 1)
    tifffile.imwrite(
        tmp_path / "a.tif", iter([bomb]), shape=(side, side), dtype=U8, tile=(side, side), compression="zlib"
    )
    with open_lazy(tmp_path / "a.tif") as image:
        tracemalloc.start()
        with pytest.raises(DataError, match=r"a\.tif cannot be read as an image: a tile .* it is damaged"):
            image.read(slice(0, 9), slice(0, 9))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 10_000_000


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.7, 0.97])
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "stored.tif", "tiles.tif", "stack.tif", "strips.tif"])
def test_truncated_files_are_named(tmp_path: Path, name: str, share: float) -> None:
    path, stack = tmp_path / name, noise(4, 60, 50, 3)
    if name == "stack.tif":
        tifffile.imwrite(path, stack, photometric="rgb", **TILED)
    elif name.endswith("tif"):
        options = {"stored.tif": {}, "tiles.tif": TILED, "strips.tif": {"rowsperstrip": 8, "compression": "zlib"}}[name]
        tifffile.imwrite(path, stack[0], photometric="rgb", **options)
    else:
        opencv(path, stack[0])
    page = 3 if name == "stack.tif" else None
    check_against_whole(path, page=page)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DataError, match=f"{name} cannot be read as an image"), open_lazy(path, page=page) as image:
        image.read(slice(0, 10), slice(0, 10))


def test_foreign_and_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.tif").touch()
    (tmp_path / "text.tif").write_text("no image")
    with zipfile.ZipFile(tmp_path / "zip.tif", "w") as archive:
        archive.writestr("image.tif", "no image")
    (tmp_path / "folder.zarr").mkdir()
    for name in ("empty.tif", "text.tif", "zip.tif", "folder.zarr"):
        with pytest.raises(DataError, match=f"{name} cannot be read as an image"), open_lazy(tmp_path / name):
            pass
    with pytest.raises(DatasetNotFoundError, match=r"There is no image .*gone\.tif"), open_lazy(tmp_path / "gone.tif"):
        pass


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(tmp_path))) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield http
        http.shutdown()
        thread.join()


@pytest.mark.skipif(importlib.util.find_spec("aiohttp") is None, reason="images at a URL need fsspec[http]")
def test_ome_zarr_at_a_url(tmp_path: Path, server: ThreadingHTTPServer) -> None:
    url = f"http://127.0.0.1:{server.server_port}"
    stack = noise(4, 40, 30, dtype=U16)
    for version in (2, 3):
        write_ngff(tmp_path / f"{version}.zarr", stack, version)
        with open_lazy(f"{url}/{version}.zarr", channels=["Tubulin"]) as image:
            assert (image.shape, image.pixel_size_um) == ((40, 30, 1), (0.5, 0.25))
            assert image.path == f"{url}/{version}.zarr"
            np.testing.assert_array_equal(image.read(slice(7, 33), slice(1, 30))[..., 0], stack[2, 7:33, 1:])
    with (
        pytest.raises(DatasetNotFoundError, match=r"There is no Zarr at http://.*/gone\.zarr"),
        open_lazy(f"{url}/gone.zarr"),
    ):
        pass
    chunk = next(path for path in (tmp_path / "3.zarr" / "0" / "c").rglob("*") if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-100])
    with open_lazy(f"{url}/3.zarr") as image, pytest.raises(DataError, match=r"http://.*/3\.zarr cannot be read"):
        image.read(slice(None), slice(None))
    with open_lazy(f"{url}/2.zarr") as image:
        server.shutdown()
        server.server_close()
        # A server that is gone is an error; a chunk that it does not have would be zeros.
        with pytest.raises(DataError, match=r"http://.*/2\.zarr cannot be read"):
            image.read(slice(None), slice(None))


@pytest.mark.skipif(importlib.util.find_spec("s3fs") is not None, reason="s3fs is installed")
def test_a_url_of_a_kind_without_its_package() -> None:
    with (
        pytest.raises(DataError, match=r"s3://bucket/a\.zarr cannot be opened.*s3fs.*biocnn\[remote\]"),
        open_lazy("s3://bucket/a.zarr"),
    ):
        pass


def test_an_array_is_an_image_too() -> None:
    array = noise(5, 6)
    image = from_array(array, (0.5, 0.5))
    part = image.read(slice(1, 3), slice(2, 4))
    np.testing.assert_array_equal(part[..., 0], array[1:3, 2:4])
    part[:] = 0
    assert image.read(slice(1, 3), slice(2, 4)).any()
    with pytest.raises(DataError, match=r"shape \(2, 3, 4, 5\), expected"):
        from_array(np.zeros((2, 3, 4, 5)))
