from pathlib import Path
from typing import Any

import numpy as np
import pytest

from biocnn.data.manifest import load_manifest
from biocnn.data.point_images import PointImages, check_content, pixels_of, read_split
from biocnn.errors import DataError, DatasetNotFoundError
from tests.conftest import SHARED_DATA
from tests.data.drawn import save
from tests.data.drawn_cells import cells, dots, drawn_cells, point_set, write_cells, write_point_manifest

IMAGE, POINTS = cells(0)
DOTS = dots(POINTS)


def read(root: Path, manifest: str, **arguments: Any) -> PointImages:
    return read_split(load_manifest(manifest), root, "train", **arguments)


def write(root: Path, pixels: np.ndarray, points: np.ndarray | str, **fields: Any) -> str:
    """A folder with `pixels` and their points: a dot image, or the text of a table."""
    save(root / "train/images/1.tif", pixels)
    if isinstance(points, str):
        (root / "train/points").mkdir(parents=True)
        (root / "train/points/1.csv").write_text(points)
    else:
        save(root / "train/points/1.tif", points)
    return write_point_manifest(root, ["train"], **fields)


def test_images_and_points_come_as_they_were_drawn(tmp_path: Path) -> None:
    found = read(tmp_path, write_cells(tmp_path, {"train": 11}))
    assert found.ids == found.files == tuple(f"train/images/{number}.png" for number in range(11))  # 2 before 10
    assert found.counts.tolist() == list(range(8, 19))
    for row in range(11):
        image, points = cells(5000 + row, number=8 + row)
        np.testing.assert_array_equal(found.images[row], image[..., None])
        np.testing.assert_array_equal(found.points[row], points)
        assert found.points[row].dtype == np.float64


def test_tables_are_points_too(tmp_path: Path) -> None:
    text = "row,column\n" + "".join(f"{row + 0.25},{column - 0.25}\n" for row, column in POINTS)
    found = read(tmp_path, write(tmp_path, IMAGE, text))
    np.testing.assert_array_equal(found.points[0], POINTS + np.array([0.25, -0.25]))


def test_the_manifest_says_how_points_are_to_be_read(tmp_path: Path) -> None:
    table = "row,column\n5,6\n5,6\n10,15\n"
    form = {"unit": "um", "duplicates": "drop"}
    write(tmp_path / "a", IMAGE, table)
    manifest = write_point_manifest(tmp_path / "a", ["train"], points=form, pixel_size_um=[0.5, 0.25])
    assert read(tmp_path / "a", manifest).points[0].tolist() == [[10, 24], [20, 60]]
    manifest = write_point_manifest(tmp_path / "a", ["train"], points=form)
    with pytest.raises(DataError, match=r"1\.csv is in micrometres.*has no pixel size. Write pixel_size_um"):
        read(tmp_path / "a", manifest)
    soft = DOTS // 3 * 2
    soft[tuple(POINTS[0].astype(int))] = 60
    manifest = write(tmp_path / "c", IMAGE, soft)
    with pytest.raises(DataError, match=r"depends on the threshold.*`points: \{threshold: \.\.\.\}`"):
        read(tmp_path / "c", manifest)
    manifest = write_point_manifest(tmp_path / "c", ["train"], points={"threshold": 30})
    np.testing.assert_array_equal(read(tmp_path / "c", manifest).points[0], POINTS)


def test_digests_tell_points_apart(tmp_path: Path) -> None:
    manifest = write_cells(tmp_path, {"train": 3})
    before = read(tmp_path, manifest).digests
    assert len(set(before.tolist())) == 3
    _, points = cells(5001, number=9)
    points[4] += [0, 1] if points[4, 1] < 79 else [0, -1]
    save(tmp_path / "train/points/1.png", dots(points))
    assert (read(tmp_path, manifest).digests == before).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("image", "points", "message"),
    [
        (IMAGE, DOTS[:50], r"1\.tif has 50x80 px .*its image\s+96x80"),
        (IMAGE, (IMAGE > 100).astype(np.uint8) * 255, "these are masks or dots of a brush, not dots"),
        (IMAGE, "row,column\n5,6\n96,3\n", r"1 of 2 points lie outside the frame of 96x80 px"),
        (IMAGE, "row,column\n5,6\n5,6\n", "1 of 2 points are exactly where an earlier one is"),
        (IMAGE, "row,column\n5,6\nnan,6\n", "1 of 2 points are NaN"),
        (IMAGE.astype(np.uint16) * 9, DOTS, r"1\.tif holds uint16 values, the manifest 'drawn' says uint8"),
        (np.dstack([IMAGE] * 3), DOTS, r"1\.tif has 3 channel.*names 1: grey"),
        (np.stack([IMAGE] * 2), DOTS, r"1\.tif is a stack of 2 planes, and points have no plane"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, image: np.ndarray, points: np.ndarray | str, message: str) -> None:
    with pytest.raises(DataError, match=f"(?s){message}"):
        read(tmp_path, write(tmp_path, image, points))


def test_values_that_are_no_numbers(tmp_path: Path) -> None:
    image = IMAGE.astype(np.float32)
    image[3, 4] = np.inf
    manifest = write(tmp_path, image, DOTS, image={"dtype": "float32"})
    with pytest.raises(DataError, match=r"1 of 7,680 values that are NaN or infinite, the first at YX = \(3, 4\)"):
        read(tmp_path, manifest)


def test_missing_points_are_named(tmp_path: Path) -> None:
    manifest = write_cells(tmp_path, {"train": 2})
    (tmp_path / "train/points/1.png").unlink()
    with pytest.raises(DatasetNotFoundError, match=r"images/1\.png has no points that matches 'train/points/\*'"):
        read(tmp_path, manifest)


def test_points_outside_the_field_of_view_are_left_out_and_counted(tmp_path: Path) -> None:
    write_cells(tmp_path, {"train": 2})
    field = np.zeros((96, 80), np.uint8)
    field[:, :40] = 255
    for number in range(2):
        save(tmp_path / f"train/fov/{number}.png", field)
    split = {"images": "train/images/*", "points": "train/points/*", "valid": "train/fov/*"}
    manifest = write_point_manifest(tmp_path, ["train"], splits={"train": split})
    drawn = [cells(5000 + number, number=8 + number)[1] for number in range(2)]
    outside = [int((points[:, 1] >= 40).sum()) for points in drawn]
    assert min(outside) > 0
    message = rf"{sum(outside)} points of 'train' lie outside.*{outside[0]} of train/images/0\.png"
    with pytest.warns(UserWarning, match=message):
        found = read(tmp_path, manifest)
    for points, expected in zip(found.points, drawn, strict=True):
        np.testing.assert_array_equal(points, expected[expected[:, 1] < 40])


def test_points_on_the_border_are_kept_within(tmp_path: Path) -> None:
    found = read(tmp_path, write(tmp_path, IMAGE, "row,column\n-0.5,79.5\n95.5,-0.5\n40,41\n")).points[0]
    np.testing.assert_allclose(found, [[-0.5, 79.5], [95.5, -0.5], [40, 41]], atol=0.0011)
    assert pixels_of(found).tolist() == [[0, 79], [95, 0], [40, 41]]


def test_memory_has_a_stated_limit(tmp_path: Path) -> None:
    manifest = write_cells(tmp_path, {"train": 3})
    needed = 3 * IMAGE.size + 16 * (8 + 9 + 10)  # pixels, and two float64 for each point
    assert len(read(tmp_path, manifest, max_bytes=needed)) == 3
    with pytest.raises(DataError, match=r"passed at .*2\.png, image 3 of about 3.*data\.max_bytes"):
        read(tmp_path, manifest, max_bytes=needed - 1)


def test_images_that_teach_nothing() -> None:
    sound = drawn_cells(3)
    check_content(sound, "train")
    none = np.zeros((0, 2))
    some = point_set(sound.images, [sound.points[0], none, sound.points[2]])
    with pytest.warns(UserWarning, match="1 of 3 images of 'train' have no point: image1"):
        check_content(some, "train")
    for split in ("train", "valid"):
        with pytest.raises(DataError, match=rf"No image of '{split}' has a point.*image0"):
            check_content(point_set(sound.images, [none] * 3), split)
    blank = point_set([np.full((96, 80, 1), 7, np.uint8), *sound.images[1:]], sound.points)
    with pytest.raises(DataError, match=r"1 image\(s\) of 'train' have one value in all pixels that count: image0"):
        check_content(blank, "train")


@pytest.mark.skipif(not (SHARED_DATA / "vgg_cells").is_dir(), reason="VGG cells are not in ../shared/data")
def test_vgg_cells() -> None:
    manifest = load_manifest("vgg_cells")
    read = {split: read_split(manifest, SHARED_DATA / "vgg_cells", split) for split in ("train", "valid", "test")}
    assert {split: len(images) for split, images in read.items()} == {"train": 64, "valid": 36, "test": 100}
    counts = np.concatenate([images.counts for images in read.values()])
    # Lempitsky and Zisserman say 174 +- 64; every dot pixel counted it is this.
    assert (counts.sum(), counts.min(), counts.max()) == (35_192, 74, 317)
    for images in read.values():
        for row in range(0, len(images), 10):
            blue = images.images[row][..., 2]
            at_points = blue[tuple(images.points[row].astype(int).T)]
            assert at_points.mean() > blue.mean() + 20  # the cells are bright in the blue channel
