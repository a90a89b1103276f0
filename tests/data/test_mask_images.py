from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage.io import imread

from biocnn.data.image_sets import join
from biocnn.data.manifest import load_manifest
from biocnn.data.mask_images import MaskImages, check_content, read_split
from biocnn.errors import DataError, DatasetNotFoundError, ManifestError
from tests.conftest import SHARED_DATA
from tests.data.drawn import in_memory, save, vessels, write_folder, write_manifest

IMAGE, MASK = vessels(0)
LABELS = MASK.astype(np.uint8) * 255


def read(root: Path, manifest: str, **arguments: Any) -> MaskImages:
    return read_split(load_manifest(manifest), root, "train", **arguments)


def write(root: Path, image: np.ndarray, mask: np.ndarray = LABELS, suffix: str = ".png", **fields: Any) -> str:
    """A folder with one sound image, `0.png`, and `image` and `mask` beside it."""
    save(root / "train/images/0.png", IMAGE)
    save(root / "train/masks/0.png", LABELS)
    save(root / f"train/images/1{suffix}", image)
    save(root / f"train/masks/1{suffix}", mask)
    return write_manifest(root, ["train"], **fields)


def test_images_come_as_they_are_in_the_files(tmp_path: Path) -> None:
    found = read(tmp_path, write_folder(tmp_path, {"train": 11}))
    assert found.ids == found.files == tuple(f"train/images/{number}.png" for number in range(11))  # 2 before 10
    assert found.groups is None
    for row, name in enumerate(found.ids):
        np.testing.assert_array_equal(found.images[row], np.asarray(Image.open(tmp_path / name))[..., None])
        mask = np.asarray(Image.open(tmp_path / name.replace("images", "masks")))
        np.testing.assert_array_equal(found.masks[row], mask == 255)
        assert found.valid[row] is None
    assert found.masks[0].dtype == bool
    assert found.pixel_sizes == (None,) * 11


def test_foreground_is_what_the_manifest_says(tmp_path: Path) -> None:
    values = {0: "outside", 100: "vein", 200: "artery"}
    labels = np.where(MASK, 200, 0).astype(np.uint8)
    labels[:10, :10] = 100
    for number, (foreground, wanted) in enumerate({(): labels > 0, (200,): labels == 200, (0,): labels == 0}.items()):
        root = tmp_path / str(number)
        save(root / "train/images/0.png", IMAGE)
        save(root / "train/masks/0.png", labels)
        manifest = write_manifest(root, ["train"], mask_values=values, foreground=list(foreground))
        np.testing.assert_array_equal(read(root, manifest).masks[0], wanted)


def test_digests_tell_contents_apart(tmp_path: Path) -> None:
    manifest = write_folder(tmp_path, {"train": 3})
    before = read(tmp_path, manifest).digests
    assert len(set(before.tolist())) == 3
    np.testing.assert_array_equal(read(tmp_path, manifest).digests, before)
    labels = np.asarray(Image.open(tmp_path / "train/masks/1.png")).copy()
    labels[0, 0] = 255 - labels[0, 0]
    save(tmp_path / "train/masks/1.png", labels)
    assert (read(tmp_path, manifest).digests == before).tolist() == [True, False, True]


def test_a_stack_is_its_planes(tmp_path: Path) -> None:
    drawn = [vessels(seed) for seed in range(4)]
    save(tmp_path / "train/images/a.tif", np.stack([image for image, _ in drawn]))
    save(tmp_path / "train/masks/a.tif", np.stack([mask.astype(np.uint8) * 255 for _, mask in drawn]))
    found = read(tmp_path, write_manifest(tmp_path, ["train"]))
    assert found.ids == tuple(f"train/images/a.tif#{number}" for number in range(4))
    assert set(found.files) == {"train/images/a.tif"}
    for row, (image, mask) in enumerate(drawn):
        np.testing.assert_array_equal(found.images[row], image[..., None])
        np.testing.assert_array_equal(found.masks[row], mask)
    save(tmp_path / "train/masks/a.tif", np.stack([drawn[0][1].astype(np.uint8) * 255] * 3))
    with pytest.raises(DataError, match=r"a\.tif has 3 planes of 96x80 px .*its image .* 4 planes of 96x80 px"):
        read(tmp_path, write_manifest(tmp_path, ["train"]))


def test_colours_groups_fields_of_view_and_pixel_size(tmp_path: Path) -> None:
    disc = np.zeros_like(LABELS)
    disc[20:60, 20:60] = 255
    for name in ("eye1_a", "eye1_b", "nobody"):
        save(tmp_path / f"train/images/{name}.png", np.dstack([IMAGE] * 3))
        save(tmp_path / f"train/masks/{name}.png", LABELS)
        save(tmp_path / f"train/fov/{name}.png", disc)
    split = {"images": "train/images/*", "masks": "train/masks/*", "valid": "train/fov/*"}
    fields = {"channels": ["r", "g", "b"], "group": {"pattern": r"(eye\d)"}, "pixel_size_um": [2.0, 3.0]}
    found = read(tmp_path, write_manifest(tmp_path, ["train"], splits={"train": split}, **fields))
    assert found.images[0].shape == (96, 80, 3)
    assert found.groups == ("eye1", "eye1", "train/images/nobody.png")
    assert found.pixel_sizes == ((2.0, 3.0),) * 3
    np.testing.assert_array_equal(found.foreground(0), MASK & (disc == 255))
    np.testing.assert_array_equal(found.pixels_inside(0), np.dstack([IMAGE] * 3)[disc == 255])
    save(tmp_path / "train/fov/nobody.png", disc * 0)
    with pytest.raises(DataError, match=r"nobody\.png marks no pixel as valid.*Leave it out"):
        read(tmp_path, write_manifest(tmp_path, ["train"], splits={"train": split}, **fields))
    (tmp_path / "train/fov/nobody.png").unlink()
    with pytest.raises(DatasetNotFoundError, match=r"nobody\.png has no field-of-view mask that matches 'train/fov"):
        read(tmp_path, write_manifest(tmp_path, ["train"], splits={"train": split}, **fields))


def test_parts_are_taken_and_joined() -> None:
    images = in_memory(4, valid=True)
    again = join([images.take([2, 0]), images.take([3])])
    assert again.ids == ("image2", "image0", "image3")
    assert again.images[0] is images.images[2]
    assert again.digests.tolist() == [2, 0, 3]
    assert again.groups is None


@pytest.mark.parametrize(
    ("image", "mask", "suffix", "message"),
    [
        (IMAGE[:90], LABELS, ".png", r"masks/1\.png has 96x80 px .*images/1\.png 90x80 px.*same size"),
        (IMAGE, LABELS.T.copy(), ".png", r"masks/1\.png has 80x96 px"),
        (IMAGE, LABELS // 2, ".png", r"masks/1\.png has mask values 127 that are not among \[0, 255\]"),
        (IMAGE.astype(np.uint16) * 9, LABELS, ".tif", r"1\.tif holds uint16 values, the manifest 'drawn' says uint8"),
        (IMAGE.astype(np.float32), LABELS, ".tif", r"holds float32 values.*dtype: float32"),
        (np.dstack([IMAGE] * 3), LABELS, ".png", r"1\.png has 3 channel.*names 1: grey"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, image: np.ndarray, mask: np.ndarray, suffix: str, message: str
) -> None:
    manifest = write(tmp_path, image, mask, suffix)
    with pytest.raises(DataError, match=message):
        read(tmp_path, manifest)


def test_missing_files_are_named(tmp_path: Path) -> None:
    manifest = write(tmp_path, IMAGE)
    (tmp_path / "train/masks/1.png").unlink()
    with pytest.raises(DatasetNotFoundError, match=r"images/1\.png has no mask that matches 'train/masks/\*'"):
        read(tmp_path, manifest)
    with pytest.raises(DatasetNotFoundError, match=r"'drawn', split 'train': no image matches 'train/images/\*'"):
        read(tmp_path / "train", manifest)
    with pytest.raises(ManifestError, match=r"no split 'test'"):
        read_split(load_manifest(manifest), tmp_path, "test")
    (tmp_path / "train/images/1.png").write_bytes(b"no image")
    save(tmp_path / "train/masks/1.png", LABELS)
    with pytest.raises(DataError, match=r"images/1\.png"):
        read(tmp_path, manifest)


def test_a_grey_image_for_a_manifest_of_colours(tmp_path: Path) -> None:
    manifest = write(tmp_path, IMAGE, channels=["red", "green", "blue"])
    with pytest.raises(DataError, match=r"0\.png has 1 channel.*names 3: red, green, blue"):
        read(tmp_path, manifest)


def test_values_that_are_no_numbers(tmp_path: Path) -> None:
    image = IMAGE.astype(np.float32)
    image[3, 4] = np.nan
    fov = np.full_like(LABELS, 255)
    save(tmp_path / "train/images/1.tif", image)
    save(tmp_path / "train/masks/1.tif", LABELS)
    save(tmp_path / "train/fov/1.tif", fov)
    split = {"images": "train/images/*", "masks": "train/masks/*"}
    fields: dict[str, Any] = {"image": {"dtype": "float32"}}
    bare = write_manifest(tmp_path, ["train"], splits={"train": split}, **fields)
    with pytest.raises(DataError, match=r"1 of 7,680 values that are NaN or infinite, the first at YX = \(3, 4\)"):
        read(tmp_path, bare)
    with_fov = write_manifest(tmp_path, ["train"], splits={"train": split | {"valid": "train/fov/*"}}, **fields)
    with pytest.raises(DataError, match="NaN or infinite"):
        read(tmp_path, with_fov)
    fov[3, 4] = 0
    save(tmp_path / "train/fov/1.tif", fov)
    found = read(tmp_path, with_fov).images[0][..., 0]
    assert found[3, 4] == IMAGE.min()
    found[3, 4] = IMAGE[3, 4]
    np.testing.assert_array_equal(found, IMAGE)


def test_memory_has_a_stated_limit(tmp_path: Path) -> None:
    manifest = write_folder(tmp_path, {"train": 3})
    each = 2 * IMAGE.size  # image and mask
    assert len(read(tmp_path, manifest, max_bytes=3 * each)) == 3
    with pytest.raises(DataError, match=r"more than 0\.00 GB.*passed at .*2\.png, image 3 of about 3.*data\.max_bytes"):
        read(tmp_path, manifest, max_bytes=3 * each - 1)


def test_images_that_teach_nothing() -> None:
    sound = in_memory(3, valid=True)
    check_content(sound, "train")
    blank = sound.take([0, 1, 2])
    assert blank.valid[1] is not None
    blank.images[1][blank.valid[1]] = 7  # outside the field of view it has other values
    with pytest.raises(DataError, match=r"1 image\(s\) of 'train' have one value in all pixels that count: image1"):
        check_content(blank, "train")
    with pytest.warns(UserWarning, match="of 'valid' have one value"):
        check_content(blank, "valid")


def test_empty_masks() -> None:
    images = in_memory(3)
    images.masks[2][:] = False
    with pytest.warns(UserWarning, match=r"1 of 3 masks of 'train' are empty: image2"):
        check_content(images, "train")
    for mask in images.masks:
        mask[:] = False
    for split in ("train", "valid"):
        with pytest.raises(DataError, match=rf"No mask of '{split}' holds any foreground.*image0.*`foreground`"):
            check_content(images, split)


@pytest.mark.skipif(not (SHARED_DATA / "drive").is_dir(), reason="DRIVE is not in ../shared/data")
def test_drive() -> None:
    sizes = {"train": 16, "valid": 4, "test": 20}
    for split, count in sizes.items():
        found = read_split(load_manifest("drive"), SHARED_DATA / "drive", split)
        assert len(found) == count
        assert {image.shape for image in found.images} == {(584, 565, 3)}
        for row in range(count):
            share = found.foreground(row).sum() / found.valid[row].sum()  # type: ignore[union-attr]
            assert 0.08 < share < 0.18  # vessels fill about an eighth of a retina; swapped it would be 0.87
    # Another reader, and the same vessels: white in the GIF.
    first = read_split(load_manifest("drive"), SHARED_DATA / "drive", "test")
    gif = imread(SHARED_DATA / "drive" / "test" / "1st_manual" / "01_manual1.gif").squeeze()
    np.testing.assert_array_equal(first.masks[0], gif == 255)


@pytest.mark.skipif(not (SHARED_DATA / "isbi2012").is_dir(), reason="ISBI 2012 is not in ../shared/data")
def test_membranes_of_isbi_are_the_dark_lines() -> None:
    found = read_split(load_manifest("isbi2012"), SHARED_DATA / "isbi2012", "valid")
    assert found.ids == tuple(f"train/image/{number}.png" for number in range(20, 25))
    assert found.pixel_sizes[0] == (0.004, 0.004)
    for row in range(5):
        label = np.asarray(Image.open(SHARED_DATA / "isbi2012" / "train" / "label" / f"{20 + row}.png"))
        np.testing.assert_array_equal(found.masks[row], label == 0)
        assert 0.15 < found.masks[row].mean() < 0.3
        image = found.images[row][..., 0]
        assert image[found.masks[row]].mean() < image[~found.masks[row]].mean() - 20  # stained dark
