"""Image files of many pages, arrays, compressions and sizes; and those that are truncated, damaged or too large."""

import importlib.util
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image as Pillow

from biocnn.data.images import read_image, read_mask
from biocnn.errors import DataError, DatasetNotFoundError
from tests.data.pictures import hdf5, noise, opencv, palette_picture, png_bytes, swap

U8, U16, F32 = np.uint8, np.uint16, np.float32


@pytest.mark.parametrize("dtype", [U8, U16, F32])
@pytest.mark.parametrize("shape", [(17, 23), (17, 23, 3), (17, 23, 4)], ids=["grey", "colour", "four"])
def test_lzw_needs_no_further_package(tmp_path: Path, shape: tuple[int, ...], dtype: Any) -> None:
    pixels = noise(*shape, dtype=dtype)
    pages = [pixels, 255 - pixels]
    flags = [cv2.IMWRITE_TIFF_COMPRESSION, 5]
    assert cv2.imwritemulti(str(tmp_path / "a.tif"), [swap(page) for page in pages], flags)
    image = read_image(tmp_path / "a.tif")
    assert image.array.dtype == dtype
    np.testing.assert_array_equal(image.array, np.stack(pages))
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", page=1).array, pages[1])


def test_lzw_with_palette_or_alpha_and_what_cannot_be_read(tmp_path: Path) -> None:
    colours = noise(7, 9, 4)
    Pillow.fromarray(colours).save(tmp_path / "alpha.tif", compression="tiff_lzw")
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.tif").array, colours[..., :3])
    table = [(200, 30, 0), (0, 0, 130)]
    palette_picture(np.array([[0, 1], [1, 1]]), table).save(tmp_path / "palette.tif", compression="tiff_lzw")
    np.testing.assert_array_equal(read_image(tmp_path / "palette.tif").array, np.array(table)[[[0, 1], [1, 1]]])
    Pillow.fromarray(noise(7, 9) > 99).save(tmp_path / "fax.tif", compression="group4")
    if importlib.util.find_spec("imagecodecs") is None:
        with pytest.raises(DataError, match=r"fax\.tif cannot be read .*CCITTFAX4 with bool .*the package imagecodecs"):
            read_image(tmp_path / "fax.tif")


def test_pages_and_channels(tmp_path: Path) -> None:
    stack = noise(2, 4, 3, 5, 6, dtype=U16)  # time, depth, channel
    tifffile.imwrite(tmp_path / "a.ome.tif", stack, metadata={"axes": "TZCYX"}, photometric="minisblack")
    with pytest.raises(DataError, match=r"TZCYX 2x4x3x5x6 uint16: planes along more than one axis.*`page`, 0 to 7"):
        read_image(tmp_path / "a.ome.tif")
    image = read_image(tmp_path / "a.ome.tif", page=6)
    np.testing.assert_array_equal(image.array, stack[1, 2].transpose(1, 2, 0))
    assert image.axes == "YXC"
    image = read_image(tmp_path / "a.ome.tif", page=6, channels=[2, 0])
    np.testing.assert_array_equal(image.array, stack[1, 2, [2, 0]].transpose(1, 2, 0))
    image = read_image(tmp_path / "a.ome.tif", page=6, channels=1)
    np.testing.assert_array_equal(image.array, stack[1, 2, 1])
    assert image.axes == "YX"
    with pytest.raises(DataError, match=r"has the pages 0 to 7, received page=8"):
        read_image(tmp_path / "a.ome.tif", page=8)
    with pytest.raises(DataError, match=r"has the channels 0 to 2, received channels=3"):
        read_image(tmp_path / "a.ome.tif", page=0, channels=3)
    tifffile.imwrite(tmp_path / "pages.tif", stack[0, :, 0], photometric="minisblack")
    np.testing.assert_array_equal(read_image(tmp_path / "pages.tif", page=2).array, stack[0, 2, 0])
    image = read_image(tmp_path / "pages.tif", axes="CYX")  # pages that are channels
    np.testing.assert_array_equal(image.array, stack[0, :, 0].transpose(1, 2, 0))
    assert read_image(tmp_path / "pages.tif", page=0, channels=[0]).array.shape == (5, 6, 1)
    tifffile.imwrite(tmp_path / "planar.tif", stack[0, 0], photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(read_image(tmp_path / "planar.tif").array, stack[0, 0].transpose(1, 2, 0))


def test_pages_of_different_shapes_are_chosen(tmp_path: Path) -> None:
    pages = [noise(5, 6), noise(7, 6, dtype=U16), noise(4, 4)]
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for page in pages:
            writer.write(page, metadata=None)
    with pytest.raises(
        DataError, match=r"3 images of different kinds \(YX 5x6 uint8, YX 7x6 uint16.*Choose one by `page`"
    ):
        read_image(tmp_path / "a.tif")
    for number, page in enumerate(pages):
        np.testing.assert_array_equal(read_image(tmp_path / "a.tif", page=number).array, page)
    with tifffile.TiffWriter(tmp_path / "thumbnail.tif") as writer:
        writer.write(pages[1], metadata=None)
        writer.write(pages[2], metadata=None, subfiletype=1)
    np.testing.assert_array_equal(read_image(tmp_path / "thumbnail.tif").array, pages[1])


def test_pixel_sizes(tmp_path: Path) -> None:
    stack = noise(4, 5, 6, dtype=U16)
    sizes = {"PhysicalSizeX": 0.25, "PhysicalSizeY": 500, "PhysicalSizeYUnit": "nm", "PhysicalSizeZ": 2}
    tifffile.imwrite(tmp_path / "a.ome.tif", stack, metadata={"axes": "ZYX", **sizes}, photometric="minisblack")
    assert read_image(tmp_path / "a.ome.tif").pixel_size_um == (2.0, 0.5, 0.25)
    assert read_image(tmp_path / "a.ome.tif", page=0).pixel_size_um == (0.5, 0.25)
    metadata = {"axes": "ZYX", "unit": "um", "spacing": 3.0}
    tifffile.imwrite(tmp_path / "ij.tif", stack, imagej=True, resolution=(4, 2), metadata=metadata)
    assert read_image(tmp_path / "ij.tif").pixel_size_um == (3.0, 0.5, 0.25)
    tifffile.imwrite(tmp_path / "cm.tif", stack[0], resolution=(20000, 10000), resolutionunit="CENTIMETER")
    assert read_image(tmp_path / "cm.tif").pixel_size_um == (1.0, 0.5)
    tifffile.imwrite(tmp_path / "dpi.tif", stack[0], resolution=(72, 72), resolutionunit="INCH")
    assert read_image(tmp_path / "dpi.tif").pixel_size_um is None
    assert repr(read_image(tmp_path / "cm.tif")).startswith("Image(YX (5, 6) uint16, pixel size (1.0, 0.5) um, ")


def test_hdf5_keys_names_and_sizes(tmp_path: Path) -> None:
    path, stack = tmp_path / "a.h5", noise(3, 20, 30, dtype=U16)
    with h5py.File(path, "w") as file:
        file["group/raw"] = stack
        file["group/raw"].attrs["element_size_um"] = [3.0, 0.5, 0.25]
        file["label"] = stack[0]
        file["names"] = np.array([[b"a"]])
    with pytest.raises(
        DataError, match=r"several arrays; give one as `key`: it holds \['group/raw', 'label', 'names'\]"
    ):
        read_image(path)
    with pytest.raises(DataError, match=r"no array 'raw': it holds"):
        read_image(path, key="raw")
    image = read_image(path, key="group/raw")
    assert (image.axes, image.pixel_size_um) == ("ZYX", (3.0, 0.5, 0.25))
    np.testing.assert_array_equal(read_image(path, key="/group/raw", page=2).array, stack[2])
    image = read_image(path, key="group/raw", axes="CYX")
    np.testing.assert_array_equal(image.array, stack.transpose(1, 2, 0))
    with h5py.File(path, "a") as file:
        for dimension, name in zip(file["group/raw"].dims, "cyx", strict=True):
            dimension.label = name
    assert read_image(path, key="group/raw").axes == "YXC"
    with pytest.raises(DataError, match="axes 'YX' do not fit shape"):
        read_image(path, key="group/raw", axes="YX")
    with pytest.raises(DataError, match="expected integers, floats or bool"):
        read_image(path, key="names")


@pytest.mark.parametrize("version", [2, 3])
def test_ome_zarr(tmp_path: Path, version: int) -> None:
    stack = noise(2, 3, 8, 10, dtype=U16)
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=version)  # type: ignore[arg-type]
    axes = [{"name": "c", "type": "channel"}]
    axes += [{"name": name, "type": "space", "unit": "nanometer"} for name in "zyx"]
    datasets = []
    for level, array in enumerate((stack, stack[..., ::2, ::2])):
        group.create_array(str(level), data=array)
        scale = [1.0, 2000.0, 500.0 * 2**level, 250.0 * 2**level]
        datasets.append({"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    scales = {"multiscales": [{"axes": axes, "datasets": datasets}]}
    group.attrs.update(scales if version == 2 else {"ome": scales})
    image = read_image(tmp_path / "a.zarr")
    assert (image.axes, image.pixel_size_um) == ("ZYXC", (2.0, 0.5, 0.25))
    np.testing.assert_array_equal(image.array, stack.transpose(1, 2, 3, 0))
    np.testing.assert_array_equal(
        read_image(tmp_path / "a.zarr", key="1", axes="CZYX", page=1).array, stack[:, 1, ::2, ::2].transpose(1, 2, 0)
    )
    with pytest.raises(DataError, match=r"no array '7': it holds \['0', '1'\]"):
        read_image(tmp_path / "a.zarr", key="7")


def test_limit_is_checked_before_decoding(tmp_path: Path) -> None:
    # 400 million pixels in a few kilobytes; the pixels are never written, so decoding would fail another way.
    empty = png_bytes(np.zeros((0, 20000, 3), U8), 2)
    header = b"IHDR" + struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)
    (tmp_path / "bomb.png").write_bytes(empty[:12] + header + struct.pack(">I", zlib.crc32(header)) + empty[33:])
    with h5py.File(tmp_path / "bomb.h5", "w") as file:
        file.create_dataset("a", (50, 20000, 20000), np.uint8, chunks=(1, 100, 100))
    zarr.create_array(tmp_path / "bomb.zarr", shape=(50, 20000, 20000), dtype="uint8", chunks=(1, 100, 100))
    tifffile.imwrite(tmp_path / "bomb.tif", np.zeros((4000, 4000), U8), compression="zlib")
    for name, limit in (("bomb.png", 10**9), ("bomb.h5", 10**9), ("bomb.zarr", 10**9), ("bomb.tif", 10**7)):
        assert (tmp_path / name).is_dir() or (tmp_path / name).stat().st_size < 100_000
        with pytest.raises(DataError, match=rf"{name} is .* GB in memory, more than the .* GB of the limit"):
            read_image(tmp_path / name, max_bytes=limit)
    with pytest.raises(DataError, match=r"takes 20\.00 GB in memory, more than the 4\.00 GB"):
        read_image(tmp_path / "bomb.h5")
    assert not read_image(tmp_path / "bomb.h5", page=3).array.any()  # 0.4 GB
    with pytest.raises(DataError, match=r"bomb\.tif is .* more than the"):
        read_mask(tmp_path / "bomb.tif", max_bytes=1)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.7, 0.97])
@pytest.mark.parametrize(
    "name", ["a8.png", "a16.png", "a.jpg", "a.tif", "zlib.tif", "lzw.tif", "stack.tif", "ij.tif", "a.bmp", "a.gif"]
)
def test_truncated_files_are_named(tmp_path: Path, name: str, share: float) -> None:
    stack = noise(4, 40, 50, 3, dtype=U16 if name == "a16.png" else U8)
    path = tmp_path / name
    if name == "lzw.tif":
        cv2.imwrite(str(path), stack[0], [cv2.IMWRITE_TIFF_COMPRESSION, 5])
    elif name == "ij.tif":
        tifffile.imwrite(path, stack[..., 0], imagej=True)
    elif name == "stack.tif":
        tifffile.imwrite(path, stack, photometric="rgb")
    elif name.endswith("tif"):
        tifffile.imwrite(path, stack[0], photometric="rgb", compression="zlib" if name == "zlib.tif" else None)
    else:
        Pillow.fromarray(stack[0, ..., 0]).save(path) if name == "a.gif" else opencv(path, stack[0])
    read_image(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DataError, match=f"{name} cannot be read as an image"):
        read_image(path)


def test_damaged_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match=r"There is no image .*gone\.png"):
        read_image(tmp_path / "gone.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(DataError, match=r"text\.png cannot be read .*none of PNG, JPEG, GIF, BMP, TIFF, HDF5 and Zarr"):
        read_image(tmp_path / "text.png")
    with pytest.raises(DataError, match="a folder without Zarr metadata"):
        read_image(tmp_path)
    tifffile.imwrite(tmp_path / "a.tif", noise(4, 5))
    with pytest.raises(DataError, match=r"a\.tif .*neither HDF5 nor Zarr, received key='x'"):
        read_image(tmp_path / "a.tif", key="x")
    hdf5(tmp_path / "none.h5", np.zeros((0, 5)))
    with pytest.raises(DataError, match=r"none\.h5 .*it is empty: its shape is \(0, 5\)"):
        read_image(tmp_path / "none.h5")
    for dtype in (U8, U16):
        opencv(tmp_path / "flipped.png", noise(30, 40, 3, dtype=dtype))
        content = bytearray((tmp_path / "flipped.png").read_bytes())
        content[len(content) // 2] ^= 255
        (tmp_path / "flipped.png").write_bytes(content)
        with pytest.raises(DataError, match=r"flipped\.png cannot be read"):
            read_image(tmp_path / "flipped.png")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("a", data=noise(64, 64), compression="gzip")
    content = (tmp_path / "a.h5").read_bytes()
    (tmp_path / "a.h5").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"a\.h5 cannot be read .*truncated"):
        read_image(tmp_path / "a.h5")
    zarr.save_array(tmp_path / "a.zarr", noise(64, 64))
    chunk = next(path for path in (tmp_path / "a.zarr" / "c").rglob("*") if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"a\.zarr cannot be read"):
        read_image(tmp_path / "a.zarr")
