import json
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from biocnn.data.points import read_points
from biocnn.errors import BiocnnError, DataError, DatasetNotFoundError
from tests.conftest import SHARED_DATA

SHAPE = (40, 60)
PLACES = [[0, 0], [0, 1], [1, 0], [12, 59], [20, 30], [39, 59]]  # three touch in a corner


def dots(places: list[list[int]] = PLACES, shape: tuple[int, int] = SHAPE) -> NDArray[np.uint8]:
    image = np.zeros(shape, np.uint8)
    image[tuple(np.array(places).T)] = 255
    return image


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def geojson(path: Path, *geometries: dict[str, object]) -> Path:
    features = [{"type": "Feature", "properties": {}, "geometry": geometry} for geometry in geometries]
    return write(path, json.dumps({"type": "FeatureCollection", "features": features}))


@pytest.mark.skipif(not (SHARED_DATA / "vgg_cells").is_dir(), reason="needs ../shared/data/vgg_cells")
def test_dots_of_vgg_cells_are_counted_by_pixel() -> None:
    counts = [len(read_points(path, (256, 256))) for path in sorted((SHARED_DATA / "vgg_cells").glob("*dots.png"))]
    assert len(counts) == 200
    assert sum(counts) == 35_192
    assert (min(counts), max(counts)) == (74, 317)


def test_dot_images_of_all_kinds(tmp_path: Path, save_image: Callable[..., None]) -> None:
    red = np.zeros((*SHAPE, 3), np.uint8)
    red[..., 0] = dots()
    for name, pixels in {"red": red, "bool": dots() > 0, "one": dots() // 255, "grey": dots()}.items():
        save_image(tmp_path / f"{name}.png", pixels)
        found = read_points(tmp_path / f"{name}.png", SHAPE)
        assert found.dtype == np.float64
        assert found.tolist() == PLACES, name
    tifffile.imwrite(tmp_path / "deep.tif", dots().astype(np.uint16) * 257)
    assert read_points(tmp_path / "deep.tif", SHAPE).tolist() == PLACES


def test_channel_of_the_dots_can_be_chosen(tmp_path: Path, save_image: Callable[..., None]) -> None:
    two = np.zeros((*SHAPE, 3), np.uint8)
    two[..., 0], two[5, 5, 1] = dots(), 255
    save_image(tmp_path / "two.png", two)
    assert len(read_points(tmp_path / "two.png", SHAPE)) == 7
    assert read_points(tmp_path / "two.png", SHAPE, channel=1).tolist() == [[5, 5]]
    with pytest.raises(DataError, match=r"channels 0 to 2, received channels=3"):
        read_points(tmp_path / "two.png", SHAPE, channel=3)


@pytest.mark.parametrize("quality", [75, 90, 95])
def test_jpeg_dots_leave_traces_that_are_not_counted(tmp_path: Path, quality: int) -> None:
    # As dense as the adipocyte cells, of which a threshold of 0 finds seven times as many.
    rng = np.random.default_rng(0)
    places = np.unravel_index(rng.choice(150 * 150, 155, replace=False), (150, 150))
    image = np.zeros((150, 150), np.uint8)
    image[places] = 255
    path = tmp_path / "dots.jpeg"
    assert cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert (cv2.imread(str(path), cv2.IMREAD_UNCHANGED) > 0).sum() > 7 * 155
    np.testing.assert_array_equal(read_points(path, (150, 150)), np.argwhere(image))
    assert len(read_points(path, (150, 150), threshold=40)) == 155


def test_jpeg_without_dots_has_none(tmp_path: Path, save_image: Callable[..., None]) -> None:
    faint = np.random.default_rng(1).integers(0, 6, SHAPE, np.uint8)
    save_image(tmp_path / "dots.jpg", faint, quality=90)
    with pytest.raises(DataError, match=r"dots.jpg holds no point. If there is no cell"):
        read_points(tmp_path / "dots.jpg", SHAPE)
    assert read_points(tmp_path / "dots.jpg", SHAPE, allow_empty=True).shape == (0, 2)


def test_masks_are_refused_and_described(tmp_path: Path, save_image: Callable[..., None]) -> None:
    shape = (200, 300)
    mask = np.zeros(shape, np.uint8)
    for number in range(14):
        cv2.circle(mask, (20 + 40 * (number % 7), 50 + 80 * (number // 7)), 6, 255, -1)
    area = int(mask.astype(bool).sum()) // 14
    save_image(tmp_path / "mask.png", mask)
    with pytest.raises(
        DataError, match=rf"mask.png: the annotation has 14 blob\(s\) of median {area} px .* these are masks"
    ):
        read_points(tmp_path / "mask.png", shape)
    # One mask among many dots, and dots of a brush of four pixels.
    mixed = dots([[10 * row, 10 * column] for row in range(20) for column in range(20)], shape)
    mixed[102:109, 102:109] = 255
    save_image(tmp_path / "mixed.png", mixed)
    with pytest.raises(DataError, match=r"has 1 blob\(s\) of median 49 px"):
        read_points(tmp_path / "mixed.png", shape)
    brush = cv2.dilate(dots([[5, 5], [20, 20], [30, 50]]), np.ones((2, 2), np.uint8))
    save_image(tmp_path / "brush.png", brush)
    with pytest.raises(DataError, match=r"has 3 blob\(s\) of median 4 px"):
        read_points(tmp_path / "brush.png", SHAPE)


def test_dots_of_a_brush_of_two_pixels_are_refused_and_touching_dots_are_not(
    tmp_path: Path, save_image: Callable[..., None]
) -> None:
    pairs = [[4 * row, 6 * column + shift] for row in range(5) for column in range(5) for shift in (0, 1)]
    save_image(tmp_path / "brush.png", dots(pairs))
    with pytest.raises(DataError, match=r"has 25 blob\(s\) of median 2 px \(largest 2 px\)"):
        read_points(tmp_path / "brush.png", SHAPE)
    save_image(tmp_path / "few.png", dots(pairs[:8]))  # four pairs may be eight cells
    assert len(read_points(tmp_path / "few.png", SHAPE)) == 8
    less = [*pairs[:24], *[[20 + 2 * number, 40] for number in range(10)], [38, 59], [30, 50], [30, 55]]
    save_image(tmp_path / "half.png", dots(less))  # 12 pairs and 13 alone
    assert len(read_points(tmp_path / "half.png", SHAPE)) == 37


def test_pictures_that_are_no_dots_are_refused(tmp_path: Path, save_image: Callable[..., None]) -> None:
    save_image(tmp_path / "inverted.png", 255 - dots())
    with pytest.raises(DataError, match=r"100% of the pixels are dots. If these are dark dots"):
        read_points(tmp_path / "inverted.png", SHAPE)
    resized = dots([[5, 5], [20, 20]])
    resized[5, 6], resized[20, 21] = 100, 160
    save_image(tmp_path / "resized.png", resized)
    with pytest.raises(DataError, match=r"depends on the threshold: 4 above 63.75, 3 above 127.5, 2 above 191.25"):
        read_points(tmp_path / "resized.png", SHAPE)
    assert len(read_points(tmp_path / "resized.png", SHAPE, threshold=200)) == 2
    save_image(tmp_path / "black.png", 0 * dots())
    with pytest.raises(DataError, match="holds no point"):
        read_points(tmp_path / "black.png", SHAPE)
    save_image(tmp_path / "dots.png", dots())
    with pytest.raises(DataError, match=r"has 40x60 px \(rows x columns\), its image 60x40"):
        read_points(tmp_path / "dots.png", (60, 40))
    tifffile.imwrite(tmp_path / "stack.tif", np.stack([dots()] * 3), photometric="minisblack")
    with pytest.raises(DataError, match="a stack, expected one dot image"):
        read_points(tmp_path / "stack.tif", SHAPE)
    tifffile.imwrite(tmp_path / "nan.tif", np.where(dots() > 0, np.nan, 0).astype(np.float32))
    with pytest.raises(DataError, match="NaN or infinite"):
        read_points(tmp_path / "nan.tif", SHAPE)


def test_transparency_palettes_and_capital_suffixes_change_nothing(tmp_path: Path) -> None:
    opaque = np.dstack([dots(), 0 * dots(), 0 * dots(), np.full(SHAPE, 255, np.uint8)])
    pictures = {"opaque.png": Image.fromarray(opaque), "clear.png": Image.fromarray(np.dstack([dots()] * 4))}
    pictures["palette.png"] = Image.fromarray(dots() // 255).convert("P")
    pictures["palette.png"].putpalette([0, 0, 0, 200, 0, 0])
    pictures["CAPITAL.JPG"] = Image.fromarray(dots([[5, 5], [20, 30]]))
    for name, picture in pictures.items():
        picture.save(tmp_path / name)
        expected = [[5, 5], [20, 30]] if name == "CAPITAL.JPG" else PLACES
        assert read_points(tmp_path / name, SHAPE).tolist() == expected, name


def test_jpeg_dots_in_colours_are_counted_or_refused(tmp_path: Path) -> None:
    places = [[row, column] for row in range(4, 40, 9) for column in range(4, 60, 9)]
    white, red = np.dstack([dots(places)] * 3), np.dstack([dots(places), *[np.zeros(SHAPE, np.uint8)] * 2])
    for quality in (75, 95):
        Image.fromarray(white).save(tmp_path / "white.jpg", quality=quality)
        assert read_points(tmp_path / "white.jpg", SHAPE).tolist() == places
        # Colours of a JPEG have half of the resolution, so that red dots fade.
        Image.fromarray(red).save(tmp_path / "red.jpg", quality=quality)
        with pytest.raises(DataError, match=r"red.jpg: the number of dots depends on the threshold.*coloured JPEG"):
            read_points(tmp_path / "red.jpg", SHAPE)
    disc = cv2.circle(np.zeros(SHAPE, np.uint8), (20, 20), 6, 255, -1)
    Image.fromarray(disc).save(tmp_path / "mask.jpg", quality=90)
    with pytest.raises(DataError, match=r"mask.jpg: the annotation has 1 blob\(s\) of median 113 px"):
        read_points(tmp_path / "mask.jpg", SHAPE)


def test_numbered_masks_are_refused(tmp_path: Path, save_image: Callable[..., None]) -> None:
    labels = np.zeros(SHAPE, np.uint8)
    for number in range(1, 6):
        cv2.circle(labels, (11 * number - 4, 20), 4, number, -1)
    save_image(tmp_path / "labels.png", labels)
    with pytest.raises(DataError, match=r"has 3 blob\(s\) of median 49 px.*these are masks"):  # 3 to 5, above half of 5
        read_points(tmp_path / "labels.png", SHAPE)


@pytest.mark.parametrize(
    "text",
    [
        "row,column\n1.5,2\n3,4\n",
        "row,col\n1.5,2\n\n3,4\n",
        "x,y\n2,1.5\n4,3\n",
        " ,Area,X,Y,BX\n1,0,2,1.5,9\n2,0,4,3,9\n",  # results of ImageJ
        "index,axis-0,axis-1\n0,1.5,2.0\n1,3.0,4.0\n",  # napari
        "\ufeffY;X\r\n1.5;2\r\n3;4\r\n",  # a spreadsheet
        "y\tx\tslice\n1.5\t2\t1\n3\t4\t1\n",
    ],
)
def test_tables(tmp_path: Path, text: str) -> None:
    assert read_points(write(tmp_path / "a.csv", text), SHAPE).tolist() == [[1.5, 2], [3, 4]]


def test_table_in_micrometres(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "x,y\n10,5\n")
    assert read_points(path, SHAPE, pixel_size_um=(0.25, 0.5)).tolist() == [[20, 20]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", r"has the columns \['a', 'b'\]; expected `row` and `column`"),
        ("1,2\n3,4\n", r"has the columns \['1', '2'\]; expected"),
        ("", r"has the columns \[\]; expected"),
        ("row,column,y,x\n1,2,1,2\n", r"\['row', 'column', 'y', 'x'\]: more than one pair"),
        ("X,Y,x\n1,2,3\n", "more than one pair"),
        ("index,axis-0,axis-1,axis-2\n0,1,2,3\n", "points in a stack, with three axes"),
        ("index,shape-type,vertex-index,axis-0,axis-1\n0,ellipse,0,1,2\n0,ellipse,1,1,4\n", "shapes of napari"),
        ("row,column,slice\n1,2,1\n3,4,2\n", r"marks in 2 planes of a stack \(1, 2\)"),
        ("row,column\n1,left\n", "line 2 holds no point"),
        ("row,column\n1,2\n3\n", "line 3 holds no point"),
        ("row;column\n1,5;2\n", "line 2 holds no point"),
        ("row,column\n1,2\nnan,4\n", "1 of 2 points are NaN or infinite"),
        ("row,column\n", "holds no point. If there is no cell"),
        ("row,column\n1,2\n40,3\n", r"1 of 2 points lie outside the frame of 40x60 px .* row 40, column 3"),
        ("row,column\n50,2\n40,3\n", "With row and column swapped all would lie inside"),
        ("row,column\n-0.6,2\n", "lie outside the frame"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_points(write(tmp_path / "a.csv", text), SHAPE)
    assert str(tmp_path / "a.csv") in str(caught.value)


def test_border_of_the_frame_belongs_to_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "row,column\n-0.5,59.5\n39.5,-0.5\n")
    assert read_points(path, SHAPE).tolist() == [[-0.5, 59.5], [39.5, -0.5]]


def test_duplicates_are_refused_kept_or_dropped(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "row,column\n3,4\n1,2\n3,4\n5,6\n1,2\n3,4\n")
    with pytest.raises(DataError, match=r"a.csv: 3 of 6 points are exactly where .* first at row 3, column 4"):
        read_points(path, SHAPE)
    assert len(read_points(path, SHAPE, duplicates="keep")) == 6
    assert read_points(path, SHAPE, duplicates="drop").tolist() == [[3, 4], [1, 2], [5, 6]]


def test_geojson_points_are_shifted_by_half_a_pixel(tmp_path: Path) -> None:
    single = {"type": "Point", "coordinates": [10.5, 3.5]}
    several = {"type": "MultiPoint", "coordinates": [[1, 2], [60, 40]], "plane": {"c": -1, "z": 0, "t": 0}}
    area = {"type": "Polygon", "coordinates": [[[0, 0], [5, 0], [5, 5], [0, 0]]]}
    expected = [[3, 10], [1.5, 0.5], [39.5, 59.5]]
    assert read_points(geojson(tmp_path / "a.geojson", single, area, several), SHAPE).tolist() == expected
    collection = {"type": "GeometryCollection", "geometries": [single, several]}
    assert read_points(write(tmp_path / "b.json", json.dumps(collection)), SHAPE).tolist() == expected
    features = [{"type": "Feature", "geometry": geometry} for geometry in (single, several)]
    assert read_points(write(tmp_path / "c.json", json.dumps(features)), SHAPE).tolist() == expected


def test_geojson_that_cannot_be_used(tmp_path: Path) -> None:
    area = {"type": "Polygon", "coordinates": [[[0, 0], [5, 0], [5, 5], [0, 0]]]}
    with pytest.raises(DataError, match=r"a.geojson holds 2 area\(s\) and no points"):
        read_points(geojson(tmp_path / "a.geojson", area, area), SHAPE)
    with pytest.raises(DataError, match="holds no point"):
        read_points(geojson(tmp_path / "a.geojson"), SHAPE)
    planes = [{"type": "Point", "coordinates": [3, 3], "plane": {"z": z, "t": 0}} for z in (0, 4)]
    with pytest.raises(DataError, match="marks in 2 planes of a stack"):
        read_points(geojson(tmp_path / "a.geojson", *planes), SHAPE)
    for text in ("{", '{"type": "Point"}', "3", '{"type": "Point", "coordinates": ["a", "b"]}', "null"):
        with pytest.raises(DataError, match="is not GeoJSON with features"):
            read_points(write(tmp_path / "b.json", text), SHAPE)


def test_points_of_imagej_are_centres_of_pixels(tmp_path: Path) -> None:
    roifile = pytest.importorskip("roifile", reason="needs the package roifile")
    whole = roifile.ImagejRoi.frompoints(np.array([[7, 3], [59, 39]]))
    between = roifile.ImagejRoi.frompoints(np.array([[1.25, 2.5]], np.float32))
    for roi in (whole, between):
        roi.roitype = roifile.ROI_TYPE.POINT
    outline = roifile.ImagejRoi.frompoints(np.array([[1, 1], [9, 1], [9, 9]]))
    whole.tofile(tmp_path / "a.roi")
    assert read_points(tmp_path / "a.roi", SHAPE).tolist() == [[3, 7], [39, 59]]
    roifile.roiwrite(tmp_path / "b.zip", [whole, outline, between])
    assert read_points(tmp_path / "b.zip", SHAPE).tolist() == [[3, 7], [39, 59], [2.5, 1.25]]
    outline.tofile(tmp_path / "c.roi")
    with pytest.raises(DataError, match=r"c.roi holds 1 area\(s\) and no points"):
        read_points(tmp_path / "c.roi", SHAPE)
    (tmp_path / "d.roi").write_bytes(b"nothing of ImageJ")
    (tmp_path / "d.zip").write_bytes(b"nothing of ImageJ")
    for name in ("d.roi", "d.zip"):
        with pytest.raises(DataError, match=f"{name} cannot be read as ROIs of ImageJ"):
            read_points(tmp_path / name, SHAPE)


def test_points_of_imagej_in_several_slices_are_refused(tmp_path: Path) -> None:
    roifile = pytest.importorskip("roifile", reason="needs the package roifile")
    roi = roifile.ImagejRoi.frompoints(np.array([[7, 3], [5, 5]]))
    roi.roitype = roifile.ROI_TYPE.POINT
    roi.counters, roi.counter_positions = np.zeros(2, np.uint8), np.array([1, 4], np.uint32)
    roi.tofile(tmp_path / "a.roi")
    with pytest.raises(DataError, match=r"marks in 2 planes of a stack \(1, 4\)"):
        read_points(tmp_path / "a.roi", SHAPE)


@pytest.mark.parametrize(
    ("positions", "planes"),
    [
        ([{"position": 1}, {"position": 4}], "1, 4"),
        ([{"z_position": 2, "t_position": 1}, {"z_position": 2, "t_position": 3}], "2, frame 1, 2, frame 3"),
        ([{"position": 0}, {"position": 4}], None),  # 0 is for all slices
        ([{"position": 3}, {"z_position": 3, "position": 3}], None),  # as older and newer versions write it
        ([{"c_position": 1, "z_position": 1}, {"c_position": 2, "z_position": 1}], None),  # channels of one plane
    ],
)
def test_single_points_of_imagej_in_several_slices_are_refused(
    tmp_path: Path, positions: list[dict[str, int]], planes: str | None
) -> None:
    roifile = pytest.importorskip("roifile", reason="needs the package roifile")
    rois = []
    for number, position in enumerate(positions):
        roi = roifile.ImagejRoi.frompoints(np.array([[7 + number, 3]]))
        roi.roitype, roi.name = roifile.ROI_TYPE.POINT, f"cell {number}"
        for name, value in position.items():
            setattr(roi, name, value)
        rois.append(roi)
    roifile.roiwrite(tmp_path / "a.zip", rois)
    if planes is None:
        assert read_points(tmp_path / "a.zip", SHAPE).tolist() == [[3, 7], [3, 8]]
        return
    with pytest.raises(DataError, match=rf"a.zip has marks in 2 planes of a stack \({planes}\)"):
        read_points(tmp_path / "a.zip", SHAPE)


def test_imagej_without_its_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "roifile", None)
    (tmp_path / "a.roi").write_bytes(b"Iout")
    with pytest.raises(BiocnnError, match="needs the package roifile: pip install"):
        read_points(tmp_path / "a.roi", SHAPE)


@pytest.mark.parametrize("name", ["a.csv", "a.geojson", "a.roi", "a.png"])
def test_missing_files(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetNotFoundError, match=name):
        read_points(tmp_path / name, SHAPE)
