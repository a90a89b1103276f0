from itertools import combinations

import numpy as np
import pytest
import tifffile
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab

from biocnn.data.images import read_image, read_mask
from biocnn.errors import DataError
from biocnn.report import overlay as module
from biocnn.report.overlay import (
    CALLED,
    DIMMED,
    FALSE,
    FOUND,
    MISSED,
    OPACITY,
    overlay,
    overlay_legend,
    write_map,
    write_mask,
    write_overlay,
)


def digits(*rows):
    return np.array([[int(cell) for cell in row] for row in rows])


# Dark and bright pixels, in equal numbers nearly, so that the percentiles are 0 and 200.
IMAGE = 200 * digits("0101010", "1010101", "0101010", "1010101", "0101010")
MASK = digits("0000000", "0111110", "0000010", "0000010", "0000000").astype(bool)
CALL = digits("0000000", "1111000", "0000000", "0010010", "0010000").astype(bool)
VALID = digits("1111111", "1111111", "1111111", "1111111", "0000000").astype(bool)

# f found, m missed, x false, . background, # outside.
STATE = ["." * 7, "xfffmm.", ".....m.", "..x..f.", "#" * 7]
# By hand: a bright pixel is 0.6 * 255 = 153 grey; of colours 0.85 counts, of the grey below 0.15.
COLOURS = {
    (".", 0): (0, 0, 0),
    (".", 1): (153, 153, 153),
    ("#", 0): (0, 0, 0),
    ("#", 1): (38, 38, 38),  # 0.15 * 255
    ("f", 0): (217, 217, 217),
    ("f", 1): (240, 240, 240),
    ("m", 0): (73, 153, 198),
    ("m", 1): (96, 176, 221),
    ("x", 0): (181, 80, 0),
    ("x", 1): (204, 103, 23),
}
EXPECTED = np.array(
    [
        [COLOURS[state, int(grey > 0)] for state, grey in zip(*rows, strict=True)]
        for rows in zip(STATE, IMAGE, strict=True)
    ]
)


def test_overlay_has_the_colours_written_by_hand():
    picture = overlay(IMAGE.astype(np.uint8), CALL, MASK, VALID)
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, EXPECTED)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float64])
def test_overlay_does_not_depend_on_the_range_or_the_channels(dtype):
    image = (IMAGE * 2 + 5).astype(dtype)
    for channels in (image, image[..., None], np.stack([image] * 3, -1), np.stack([image, 9 * image], -1)):
        np.testing.assert_array_equal(overlay(channels, CALL, MASK, VALID), EXPECTED)


def test_three_channels_are_luminance_and_others_are_stretched_one_by_one():
    colours = np.zeros((1, 4, 3), np.uint8)
    colours[0, 1:] = [[100, 0, 0], [0, 100, 0], [100, 100, 100]]
    nothing = np.zeros((1, 4), bool)
    grey = overlay(colours, nothing)[0, :, 0]
    # Luminance 0, 0.2126, 0.7152 and 1; the percentiles, of four values, lie 3 % of a gap further in.
    np.testing.assert_allclose(grey / (255 * DIMMED), [0, 0.2126, 0.7152, 1], atol=0.02)
    faint = np.stack([[[0, 1000, 0, 1000]], [[0, 0, 3, 3]]], -1).astype(np.uint16)
    assert overlay(faint, nothing)[0, :, 0].tolist() == [0, 76, 76, 153]  # 0.5 * 153, rounded to even


def test_without_a_mask_there_is_one_colour():
    picture = overlay(np.zeros((5, 7)), CALL, None, VALID)
    inside = CALL & VALID
    np.testing.assert_array_equal(picture[inside], np.tile(np.rint(OPACITY * np.array(CALLED)), (6, 1)))
    assert not picture[~inside].any()


def test_a_blank_image_is_black_and_few_bright_pixels_are_seen():
    assert not overlay(np.full((5, 7), 9), np.zeros((5, 7), bool)).any()
    sparse = np.zeros((40, 40))
    sparse[3, 4] = 0.2
    picture = overlay(sparse, np.zeros((40, 40), bool))
    assert picture[3, 4].tolist() == [153, 153, 153]
    assert picture.sum() == 3 * 153


def test_outside_valid_anything_may_be():
    image = IMAGE.astype(float)
    image[~VALID] = np.nan
    called, mask = np.where(VALID, CALL, 255), np.where(VALID, MASK, np.nan)
    picture = overlay(image, called, mask, VALID)
    np.testing.assert_array_equal(picture[VALID], EXPECTED[VALID])
    assert picture[~VALID].max() <= 38


def test_colours_differ_for_colour_blind_readers():
    # Machado, Oliveira & Fernandes (2009), severity 1, on linear sRGB: protanopia, deuteranopia, tritanopia.
    matrices = [
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    ]
    colours = np.array([FOUND, MISSED, FALSE]) / 255 * OPACITY
    greys = np.linspace(0, DIMMED, 7)[:, None].repeat(3, 1)
    every = np.concatenate([colours, greys])
    linear = np.where(every <= 0.04045, every / 12.92, ((every + 0.055) / 1.055) ** 2.4)
    for matrix in (np.eye(3), *matrices):
        seen = np.clip(linear @ np.array(matrix).T, 0, 1)
        srgb = np.where(seen <= 0.0031308, seen * 12.92, 1.055 * seen ** (1 / 2.4) - 0.055)
        lab = rgb2lab(srgb)
        for one, other in combinations(range(3), 2):
            assert deltaE_ciede2000(lab[one], lab[other]) > 20  # 2 is just seen side by side, 10 at a glance
        assert all(deltaE_ciede2000(lab[one], grey) > 12 for one in range(3) for grey in lab[3:])


def test_legend_counts_what_is_drawn():
    # Of the state map: 4 found, 3 missed, 2 false; the pixel called outside is not counted.
    assert overlay_legend(CALL, MASK, VALID) == [
        ("found: 4 px, 57.1 % of the structure", FOUND),
        ("missed: 3 px, 42.9 % of the structure", MISSED),
        ("false: 2 px, 33.3 % of what was called", FALSE),
    ]
    assert overlay_legend(CALL, None, VALID) == [("called: 6 px, 21.4 % of the image", CALLED)]
    nothing = np.zeros((5, 7), bool)
    assert [words for words, _ in overlay_legend(nothing, nothing)] == ["found: 0 px", "missed: 0 px", "false: 0 px"]


@pytest.mark.parametrize("size", [(5, 7), (300, 500), (40, 1600)])
def test_the_legend_lies_below_and_leaves_the_picture_as_it_is(tmp_path, size):
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    write_overlay(tmp_path / "new" / "a.png", picture, overlay_legend(CALL, MASK, VALID))
    written = np.asarray(Image.open(tmp_path / "new" / "a.png"))
    np.testing.assert_array_equal(written[: size[0], : size[1]], picture)
    strip = written[size[0] :]
    assert len(strip) >= 20
    for colour in (FOUND, MISSED, FALSE):
        assert (strip == colour).all(-1).sum() >= 100  # the square before the words
    # The words end before the edge.
    assert not strip[:, -3:].any()
    assert not written[: size[0], size[1] :].any()
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["a.png"]


def test_a_picture_without_legend_is_the_file(tmp_path):
    picture = overlay(IMAGE, CALL, MASK, VALID)
    write_overlay(tmp_path / "a.png", picture)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").array, picture)


@pytest.mark.parametrize("limit", [module._IMAGEJ_BYTES, 0], ids=["ImageJ", "BigTIFF"])
@pytest.mark.parametrize("size", [(0.65, 0.65), (0.1137, 2.5), (1e-3, 40.0), None])
def test_a_map_comes_back_with_its_pixel_size(tmp_path, monkeypatch, limit, size):
    monkeypatch.setattr(module, "_IMAGEJ_BYTES", limit)
    values = np.random.default_rng(0).random((11, 13))
    write_map(tmp_path / "map.tif", values, size)
    image = read_image(tmp_path / "map.tif")
    assert (image.axes, image.array.dtype) == ("YX", np.float32)
    np.testing.assert_array_equal(image.array, values.astype(np.float32))
    # TIFF keeps fractions of 32-bit numbers.
    assert image.pixel_size_um == (None if size is None else pytest.approx(size, rel=1e-6))


def test_a_map_is_what_imagej_writes(tmp_path):
    write_map(tmp_path / "map.tif", np.zeros((2, 3)), (0.5, 0.25), limits=(0.0, 0.02))
    with tifffile.TiffFile(tmp_path / "map.tif") as tiff:
        assert tiff.is_imagej
        assert tiff.imagej_metadata["unit"] == "um"
        assert (tiff.imagej_metadata["min"], tiff.imagej_metadata["max"]) == (0.0, 0.02)
        tags = tiff.pages[0].tags
        # ImageJ: pixels per unit, of columns then of rows.
        assert [np.divide(*tags[name].value) for name in ("XResolution", "YResolution")] == [4.0, 2.0]


def test_a_map_of_planes_keeps_the_distance_between_them(tmp_path):
    values = np.random.default_rng(0).random((4, 5, 6), dtype=np.float32)
    write_map(tmp_path / "map.tif", values, (2.0, 0.5, 0.5))
    image = read_image(tmp_path / "map.tif")
    assert image.axes == "ZYX"
    assert image.pixel_size_um == pytest.approx((2.0, 0.5, 0.5))
    np.testing.assert_array_equal(image.array, values)


def test_a_mask_comes_back(tmp_path):
    write_mask(tmp_path / "mask.png", MASK)
    read = read_mask(tmp_path / "mask.png", values={0, 255})
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read == 255, MASK)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((IMAGE, CALL[:4], MASK), r"mask: expected shape \(4, 7\) as called, received \(5, 7\)"),
        ((IMAGE[:4], CALL, MASK), r"image: expected \(5, 7\) or \(5, 7, 'C'\) .*, received \(4, 7\)"),
        ((IMAGE, CALL, MASK, VALID[:, :3]), r"valid: expected shape \(5, 7\) as the others, received \(5, 3\)"),
        ((IMAGE, CALL, MASK, ~VALID & VALID), "at least one pixel that counts, received none of 35"),
        ((IMAGE, CALL[None], MASK), r"called: expected a mask of one image, \(H, W\), received shape \(1, 5, 7\)"),
        ((IMAGE, CALL, MASK * 255), r"mask: expected bool, or 0 and 1, received \[0, 255\]"),
        ((np.where(MASK, np.inf, 0), CALL, MASK), "image: expected finite values inside valid"),
        ((IMAGE[..., None][..., :0], CALL, MASK), r"received \(5, 7, 0\)"),
    ],
)
def test_overlay_errors_say_what_came(arguments, message):
    with pytest.raises(DataError, match=message):
        overlay(*arguments)


def test_writers_refuse_other_shapes_and_suffixes(tmp_path):
    with pytest.raises(DataError, match=r"picture: expected uint8 \(H, W, 3\), received float64 \(5, 7, 3\)"):
        write_overlay(tmp_path / "a.png", np.zeros((5, 7, 3)))
    with pytest.raises(DataError, match=r"values: expected a map .* received shape \(7,\)"):
        write_map(tmp_path / "a.tif", np.zeros(7))
    for size in ((0.5,), (0.5, 0.0), (1, 2, 3), (0.5, np.nan)):
        with pytest.raises(DataError, match=r"pixel_size_um: expected positive micrometres"):
            write_map(tmp_path / "a.tif", np.zeros((5, 7)), size)
    with pytest.raises(DataError, match=r"mask: expected \(H, W\), as a PNG holds one plane"):
        write_mask(tmp_path / "a.png", np.zeros((2, 5, 7), bool))
    with pytest.raises(ValueError, match=r"path: expected a file \.png, received .*a\.jpg"):
        write_mask(tmp_path / "a.jpg", MASK)
    with pytest.raises(ValueError, match=r"path: expected a file \.tif or \.tiff"):
        write_map(tmp_path / "a.png", np.zeros((5, 7)))
    assert not list(tmp_path.iterdir())
