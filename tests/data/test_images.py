"""What was written is what is read: values, dtype, axes, colours, rotation; and masks."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image as Pillow
from PIL import ImageOps

from biocnn.data.image_headers import read_header
from biocnn.data.images import check_finite, read_image, read_mask
from biocnn.errors import DataError
from tests.conftest import SHARED_DATA
from tests.data.pictures import hdf5, noise, opencv, palette_picture, png_bytes


def tiff(**arguments: Any) -> Callable[[Path, np.ndarray], None]:
    return lambda path, array: tifffile.imwrite(path, array, **arguments)


def pillow(**arguments: Any) -> Callable[[Path, np.ndarray], None]:
    return lambda path, array: Pillow.fromarray(array).save(path, **arguments)


def zarr_array(path: Path, array: np.ndarray) -> None:
    zarr.save_array(path, array)


U8, U16, I16, U32, I32 = np.uint8, np.uint16, np.int16, np.uint32, np.int32
F32, F64 = np.float32, np.float64
PLAIN = {"photometric": "minisblack"}
# name, what is written, how, and the axes that are read; what is read must be what was written.
EXACT: list[tuple[str, np.ndarray, Callable[[Path, np.ndarray], None], str]] = [
    ("grey8.png", noise(7, 9), pillow(), "YX"),
    ("colour8.png", noise(7, 9, 3), pillow(), "YXC"),
    ("grey16.png", noise(7, 9, dtype=U16), pillow(), "YX"),
    ("dark16.png", noise(7, 9, dtype=U16) % 4096, opencv, "YX"),  # 12 bits in 16: some readers make it 0 to 15
    ("colour16.png", noise(7, 9, 3, dtype=U16), opencv, "YXC"),
    ("grey8.bmp", noise(7, 9), pillow(), "YX"),
    ("colour8.bmp", noise(7, 9, 3), pillow(), "YXC"),
    ("grey.gif", noise(7, 9), pillow(), "YX"),
    ("row.png", noise(1, 9), pillow(), "YX"),
    ("grey8.tif", noise(7, 9), tiff(), "YX"),
    ("grey16.tif", noise(7, 9, dtype=U16), tiff(), "YX"),
    ("signed16.tif", noise(7, 9, dtype=I16), tiff(), "YX"),
    ("grey32.tif", noise(7, 9, dtype=U32), tiff(), "YX"),
    ("float32.tif", noise(7, 9, dtype=F32), tiff(), "YX"),
    ("float64.tif", noise(7, 9, dtype=F64), tiff(), "YX"),
    ("big_endian.tif", noise(7, 9, dtype=U16), tiff(byteorder=">"), "YX"),
    ("big.tif", noise(7, 9, dtype=U16), tiff(bigtiff=True), "YX"),
    ("inverted.tif", noise(7, 9, dtype=U16), tiff(photometric="miniswhite"), "YX"),
    ("colour16.tif", noise(7, 9, 3, dtype=U16), tiff(photometric="rgb"), "YXC"),
    ("tiled.tif", noise(40, 50, 3), tiff(photometric="rgb", tile=(16, 16), compression="zlib"), "YXC"),
    ("five.tif", noise(7, 9, 5, dtype=U16), tiff(planarconfig="contig", **PLAIN), "YXC"),
    ("four.tif", noise(7, 9, 4, dtype=U16), tiff(planarconfig="contig", **PLAIN), "YXC"),
    ("stack.tif", noise(6, 7, 9, dtype=U16), tiff(**PLAIN), "IYX"),
    ("two_pages.tif", noise(2, 7, 9), tiff(metadata=None, **PLAIN), "IYX"),
    ("colour_stack.tif", noise(6, 7, 9, 3), tiff(photometric="rgb"), "IYXC"),
    ("depth.tif", noise(6, 7, 9, dtype=U16), tiff(imagej=True, metadata={"axes": "ZYX"}), "ZYX"),
    ("time.ome.tif", noise(6, 7, 9, dtype=U16), tiff(metadata={"axes": "TYX"}, **PLAIN), "TYX"),
    ("grey.h5", noise(7, 9, dtype=F32), hdf5, "YX"),
    ("big_endian.h5", noise(7, 9, dtype=U16).astype(">u2"), hdf5, "YX"),
    ("volume.h5", noise(6, 7, 9, dtype=U16), hdf5, "ZYX"),
    ("colours.h5", noise(7, 9, 3), hdf5, "YXC"),
    ("colour_volume.h5", noise(6, 7, 9, 2, dtype=I32), hdf5, "ZYXC"),
    ("bool.h5", noise(7, 9) > 99, hdf5, "YX"),
    ("grey.zarr", noise(7, 9, dtype=U16), zarr_array, "YX"),
    ("volume.zarr", noise(6, 7, 9, dtype=F32), zarr_array, "ZYX"),
]


@pytest.mark.parametrize(("name", "written", "write", "axes"), EXACT, ids=[case[0] for case in EXACT])
def test_what_is_written_is_read(
    tmp_path: Path, name: str, written: np.ndarray, write: Callable[[Path, np.ndarray], None], axes: str
) -> None:
    write(tmp_path / name, written)
    image = read_image(tmp_path / name)
    assert image.axes == axes
    assert image.array.dtype == written.dtype.newbyteorder("=")
    assert image.array.shape == written.shape
    assert image.array.max() == written.max()
    np.testing.assert_array_equal(image.array, written)
    assert image.array.flags.c_contiguous
    assert image.source == tmp_path / name
    header = read_header(tmp_path / name)
    sizes = dict(zip(axes, written.shape, strict=True))
    expected = (sizes["Y"], sizes["X"], sizes.get("C", 1), image.array.dtype.name)
    assert (header.height, header.width, header.channels, header.dtype) == expected
    assert header.planes == (1 if axes[0] == "Y" else written.shape[0])


@pytest.mark.parametrize(("dtype", "suffix"), [(U8, ".png"), (U16, ".png"), (U8, ".tif"), (U16, ".tif")])
def test_alpha_is_left_out_and_not_blended(tmp_path: Path, dtype: Any, suffix: str) -> None:
    path, colours = tmp_path / f"alpha{suffix}", noise(7, 9, 4, dtype=dtype)
    colours[:3, :, 3] = 0  # see-through
    if suffix == ".tif":
        tifffile.imwrite(path, colours, photometric="rgb")
    else:
        opencv(path, colours)
    image = read_image(path)
    np.testing.assert_array_equal(image.array, colours[..., :3])
    assert (image.axes, image.array.dtype, read_header(path).channels) == ("YXC", dtype, 3)


def test_grey_with_alpha(tmp_path: Path) -> None:
    grey = noise(7, 9, 2)
    Pillow.fromarray(grey, "LA").save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png").array, grey[..., 0])
    tifffile.imwrite(tmp_path / "grey.tif", grey, photometric="minisblack", extrasamples=["unassalpha"])
    image = read_image(tmp_path / "grey.tif")
    np.testing.assert_array_equal(image.array, grey[..., 0])
    assert image.axes == "YX"


@pytest.mark.parametrize("dtype", ["u1", ">u2"])
def test_rare_kinds_of_png(tmp_path: Path, dtype: str) -> None:
    pixels = noise(7, 9, 4, dtype=np.dtype(dtype).newbyteorder("=")).astype(dtype)
    grey, colours = np.ascontiguousarray(pixels[..., 0]), np.ascontiguousarray(pixels[..., :3])
    see_through = b"tRNS" + pixels[0, 0, 0].astype(">u2").tobytes()  # one grey value that counts as transparent
    cases = [
        (png_bytes(pixels[..., :2], 4), grey),
        (png_bytes(grey, 0, see_through), grey),
        (png_bytes(colours, 2, b"tRNS" + pixels[0, 0, :3].astype(">u2").tobytes()), colours),
        (png_bytes(grey, 0, b"gAMA" + struct.pack(">I", 100_000), b"sBIT\x06"), grey),
    ]
    for number, (content, expected) in enumerate(cases):
        (tmp_path / f"{number}.png").write_bytes(content)
        image = read_image(tmp_path / f"{number}.png")
        np.testing.assert_array_equal(image.array, expected)
        assert image.array.dtype == pixels.dtype.newbyteorder("=")


def test_content_and_not_the_name_tells_the_kind(tmp_path: Path) -> None:
    pixels = noise(5, 6, dtype=U16)
    tifffile.imwrite(tmp_path / "really_a_tiff.tif", pixels)
    (tmp_path / "really_a_tiff.tif").rename(tmp_path / "renamed.png")
    np.testing.assert_array_equal(read_image(tmp_path / "renamed.png").array, pixels)


def test_jpeg_is_what_pillow_decodes(tmp_path: Path) -> None:
    for name, mode in (("grey", "L"), ("colour", "RGB"), ("ink", "CMYK")):
        picture = Pillow.fromarray(noise(16, 24, 3)).convert(mode)
        picture.save(tmp_path / f"{name}.jpg")
        with Pillow.open(tmp_path / f"{name}.jpg") as opened:
            expected = np.asarray(opened.convert("RGB") if mode == "CMYK" else opened)
        np.testing.assert_array_equal(read_image(tmp_path / f"{name}.jpg").array, expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_camera_rotation_is_undone(tmp_path: Path, orientation: int) -> None:
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    pixels = noise(16, 24, 3)
    picture = Pillow.fromarray(pixels)
    picture.save(tmp_path / "turned.jpg", exif=exif)
    picture.save(tmp_path / "turned.png", exif=exif)
    for name in ("turned.jpg", "turned.png"):
        with Pillow.open(tmp_path / name) as opened:
            expected = np.asarray(ImageOps.exif_transpose(opened))
        np.testing.assert_array_equal(read_image(tmp_path / name).array, expected)
        header = read_header(tmp_path / name)
        assert (header.height, header.width) == expected.shape[:2]
    if orientation == 6:  # the camera was turned: its first row is the right side
        np.testing.assert_array_equal(read_image(tmp_path / "turned.png").array, np.rot90(pixels, -1))
    stack = noise(3, 5, 8, dtype=U16)
    metadata = {"axes": "YX", "PhysicalSizeY": 2.0, "PhysicalSizeX": 3.0}
    for name, array in (("turned.tif", stack[0]), ("stack.tif", stack)):
        tags = [(0x0112, 3, 1, orientation, False)]
        tifffile.imwrite(tmp_path / name, array, extratags=tags, photometric="minisblack", metadata=None)
    tifffile.imwrite(tmp_path / "a.ome.tif", stack[0], extratags=tags, metadata=metadata, photometric="minisblack")
    for plane in range(3):
        picture = Pillow.fromarray(stack[plane])
        picture.getexif()[0x0112] = orientation
        expected = np.asarray(ImageOps.exif_transpose(picture))
        np.testing.assert_array_equal(read_image(tmp_path / "stack.tif").array[plane], expected)
        np.testing.assert_array_equal(read_image(tmp_path / "stack.tif", page=plane).array, expected)
    assert read_image(tmp_path / "turned.tif").array.shape == (stack.shape[1:] if orientation < 5 else (8, 5))
    assert read_image(tmp_path / "a.ome.tif").pixel_size_um == ((2.0, 3.0) if orientation < 5 else (3.0, 2.0))


@pytest.mark.parametrize("suffix", [".gif", ".png", ".bmp"])
def test_palettes_give_colours_and_never_indices(tmp_path: Path, suffix: str) -> None:
    indices = np.array([[0, 1, 2], [2, 1, 0]])
    grey = palette_picture(indices, [(10, 10, 10), (0, 0, 0), (255, 255, 255)])
    grey.save(tmp_path / f"grey{suffix}")
    image = read_image(tmp_path / f"grey{suffix}")
    assert (image.axes, image.array.tolist()) == ("YX", [[10, 0, 255], [255, 0, 10]])
    colours = [(200, 30, 0), (0, 0, 130), (9, 9, 9)]
    palette_picture(indices, colours).save(tmp_path / f"colour{suffix}")
    image = read_image(tmp_path / f"colour{suffix}")
    np.testing.assert_array_equal(image.array, np.array(colours)[indices])
    assert (image.axes, read_header(tmp_path / f"colour{suffix}").channels) == ("YXC", 3)


def test_tiff_palettes_are_colours_but_those_of_imagej_are_for_display(tmp_path: Path) -> None:
    indices = np.array([[0, 1, 2], [2, 1, 0]], U8)
    table = np.zeros((3, 256), U16)
    table[:, :3] = np.array([(200, 30, 0), (0, 0, 130), (9, 9, 9)]).T * 257
    tifffile.imwrite(tmp_path / "palette.tif", indices, colormap=table)
    np.testing.assert_array_equal(
        read_image(tmp_path / "palette.tif").array, (table[:, indices] // 257).transpose(1, 2, 0)
    )
    tifffile.imwrite(tmp_path / "fire.tif", indices, colormap=table, imagej=True)
    np.testing.assert_array_equal(read_image(tmp_path / "fire.tif").array, indices)


def test_one_bit_is_black_and_white(tmp_path: Path) -> None:
    bits = noise(5, 9) > 127
    Pillow.fromarray(bits).save(tmp_path / "bits.png")
    Pillow.fromarray(bits).save(tmp_path / "bits.bmp")
    tifffile.imwrite(tmp_path / "bits.tif", bits)
    for name in ("bits.png", "bits.bmp", "bits.tif"):
        np.testing.assert_array_equal(read_image(tmp_path / name).array, bits * U8(255), err_msg=name)


def test_animations_are_stacks(tmp_path: Path) -> None:
    frames = [np.full((5, 6, 3), colour, U8) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    first, *others = [Pillow.fromarray(frame) for frame in frames]
    for name in ("a.gif", "a.png"):
        first.save(tmp_path / name, save_all=True, append_images=others)
        image = read_image(tmp_path / name)
        assert image.axes == "IYXC"
        np.testing.assert_array_equal(image.array, np.stack(frames))
        np.testing.assert_array_equal(read_image(tmp_path / name, page=1).array, frames[1])


def test_masks_and_their_values(tmp_path: Path) -> None:
    labels = np.where(noise(8, 9) > 99, 255, 0).astype(U8)
    tifffile.imwrite(tmp_path / "mask.tif", labels)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.tif", {0: "background", 255: "vessel"}), labels)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.tif"), labels)
    tifffile.imwrite(tmp_path / "small.tif", labels // 255)
    with pytest.raises(
        DataError, match=r"small\.tif has mask values 1 that are not among \[0, 255\].*should be \[0, 1\]"
    ):
        read_mask(tmp_path / "small.tif", (0, 255))
    tifffile.imwrite(tmp_path / "many.tif", np.arange(20, dtype=U16).reshape(4, 5))
    with pytest.raises(
        DataError, match=r"mask values 3, 4, 5, 6, 7, 8, 9, 10 and 9 more that are not .*\[0, 1, 2\].*Add"
    ):
        read_mask(tmp_path / "many.tif", (0, 1, 2))
    Pillow.fromarray(labels).save(tmp_path / "mask.jpg", quality=50)
    with pytest.raises(DataError, match="JPEG changes values"):
        read_mask(tmp_path / "mask.jpg", (0, 255))
    Pillow.fromarray(labels > 0).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "bits.png", (0, 255)), labels)
    tifffile.imwrite(tmp_path / "volume.tif", np.stack([labels] * 3), photometric="minisblack")
    assert read_mask(tmp_path / "volume.tif", (0, 255)).shape == (3, 8, 9)
    np.testing.assert_array_equal(read_mask(tmp_path / "volume.tif", (0, 255), page=1), labels)


def test_colours_of_masks(tmp_path: Path) -> None:
    labels = np.where(noise(8, 9) > 99, 255, 0).astype(U8)
    zeros = np.zeros_like(labels)
    for name, channels in (("white", (labels, labels, labels)), ("red", (labels, zeros, zeros))):
        Pillow.fromarray(np.stack(channels, 2)).save(tmp_path / f"{name}.png")
        np.testing.assert_array_equal(read_mask(tmp_path / f"{name}.png", (0, 255)), labels)
    Pillow.fromarray(np.stack((labels, zeros, 255 - labels), 2)).save(tmp_path / "both.png")
    with pytest.raises(DataError, match=r"both\.png has colours that cannot be told .*\[0, 0, 255\] and \[255, 0, 0\]"):
        read_mask(tmp_path / "both.png")
    # Labels as indices of a colour table, as in PASCAL VOC.
    table = [(0, 0, 0), (128, 0, 0), (0, 128, 0)]
    palette_picture(np.array([[0, 1], [2, 0]]), table).save(tmp_path / "index.png")
    with pytest.raises(DataError, match="its indices may be the labels: save them as grey values"):
        read_mask(tmp_path / "index.png", (0, 1, 2))
    palette_picture(np.array([[0, 1], [1, 0]]), [(255, 255, 255), (0, 0, 0)]).save(tmp_path / "mask.gif")
    assert read_mask(tmp_path / "mask.gif", (0, 255)).tolist() == [[255, 0], [0, 255]]


def test_values_that_are_no_numbers_are_found(tmp_path: Path) -> None:
    pixels = noise(5, 6, dtype=F32)
    tifffile.imwrite(tmp_path / "fine.tif", pixels)
    check_finite(read_image(tmp_path / "fine.tif"))
    pixels[3, 1], pixels[4, 4] = np.nan, np.inf
    tifffile.imwrite(tmp_path / "holes.tif", pixels)
    with pytest.raises(DataError, match=r"holes\.tif has 2 of 30 values that are NaN or infinite, .*YX = \(3, 1\)"):
        check_finite(read_image(tmp_path / "holes.tif"))


@pytest.mark.skipif(not (SHARED_DATA / "drive").is_dir(), reason="real data is not at ../shared/data")
def test_real_retina() -> None:
    training = SHARED_DATA / "drive" / "training"
    image = read_image(training / "images" / "21_training.tif")
    assert (image.axes, image.array.shape, image.array.dtype) == ("YXC", (584, 565, 3), np.uint8)
    with Pillow.open(image.source) as picture:
        np.testing.assert_array_equal(image.array, np.asarray(picture))
    for folder, name in (("1st_manual", "21_manual1.gif"), ("mask", "21_training_mask.gif")):
        mask = read_mask(training / folder / name, (0, 255))
        assert mask.shape == (584, 565)
        assert np.unique(mask).tolist() == [0, 255]
