from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import tifffile
from PIL import Image

from biocnn.data.audit import full_audit, quick_audit
from biocnn.data.image_headers import pixel_size_um, read_header, read_mask
from biocnn.data.manifest import load_manifest
from biocnn.errors import DatasetNotFoundError

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
RNG = np.random.default_rng(1)


def texts(audit, level):
    return "\n".join(finding.text for finding in audit.findings if finding.level == level)


def noise(*shape):
    return RNG.integers(1, 256, shape, np.uint8)


@pytest.fixture
def patches(tmp_path, draw_patches):
    for split in ("train", "valid", "test"):
        draw_patches(tmp_path, split)
    return tmp_path


def test_clean_patches(patches, patch_manifest):
    for audit in (quick_audit(patch_manifest, patches), full_audit(patch_manifest, patches)):
        assert audit.findings == ()
        assert not audit.has_errors
    train = full_audit(patch_manifest, patches).rows[0]
    assert (train.split, train.images, train.groups, train.duplicates) == ("train", 6, 2, 0)
    assert train.shape == "8x8x3 uint8"
    assert train.content == "normal 50.0 %, tumour 50.0 %"
    assert quick_audit(patch_manifest, patches).rows[0].duplicates is None


def test_duplicates_within_a_split_are_a_warning_that_names_the_cure(patches, patch_manifest, draw_patches):
    images = noise(6, 8, 8, 3)
    images[3] = images[5] = images[1]
    draw_patches(patches, "train", images)
    audit = full_audit(patch_manifest, patches)
    assert not audit.has_errors
    assert "train: 2 of 6 patches repeat an earlier one exactly, such as train:3. Set `unique_only`" in texts(
        audit, "warning"
    )
    assert audit.rows[0].duplicates == 2


def test_identical_patches_with_two_labels_are_named(patches, patch_manifest, draw_patches):
    images = noise(6, 8, 8, 3)
    images[2] = images[1]  # labels 0 and 1
    draw_patches(patches, "train", images)
    warning = texts(full_audit(patch_manifest, patches), "warning")
    assert "2 patches are identical to another one with a different label: train:1, train:2" in warning


def test_a_patch_in_two_splits_is_an_error(patches, patch_manifest, draw_patches):
    train, test = noise(6, 8, 8, 3), noise(6, 8, 8, 3)
    test[4] = train[0]
    draw_patches(patches, "train", train)
    draw_patches(patches, "test", test)
    audit = full_audit(patch_manifest, patches)
    assert audit.has_errors
    assert "1 patches of test are in train as well, pixel by pixel: test:4" in texts(audit, "error")
    assert not quick_audit(patch_manifest, patches).has_errors


def test_a_single_changed_pixel_is_no_duplicate(patches, patch_manifest, draw_patches):
    train = noise(6, 8, 8, 3)
    train[4] = train[0]
    train[4, 7, 7, 2] ^= 1
    draw_patches(patches, "train", train)
    assert full_audit(patch_manifest, patches).findings == ()


def test_blank_patches_are_a_warning_and_no_leak(patches, patch_manifest, draw_patches):
    for split in ("train", "test"):
        images = noise(6, 8, 8, 3)
        images[2] = (240, 230, 235)
        draw_patches(patches, split, images)
    audit = full_audit(patch_manifest, patches)
    assert not audit.has_errors
    assert "train: 1 patches are blank, all pixels equal: train:2." in texts(audit, "warning")


def test_a_slide_in_two_splits_is_an_error(patches, patch_manifest, draw_patches):
    draw_patches(patches, "valid", slides=["v", "v", "v", "train_1", "train_1", "v"])
    audit = quick_audit(patch_manifest, patches)
    assert "1 groups are in train and in valid (train_1)" in texts(audit, "error")


def test_labels_that_differ_from_the_meta_file(patches, patch_manifest, draw_patches):
    draw_patches(patches, "train", column=[False, True, False, True, True, False])
    error = texts(quick_audit(patch_manifest, patches), "error")
    assert "train: 2 of 6 labels differ from column 'center_tumor_patch'" in error
    assert "first in rows 4, 5" in error


def test_labels_outside_the_classes(patches, patch_manifest, draw_patches):
    draw_patches(patches, "train", labels=np.array([0, 1, 2, 0, 1, 9]), column=[0, 1, 2, 0, 1, 9])
    audit = full_audit(patch_manifest, patches)
    assert "labels 2, 9 outside the classes 0 to 1 (normal, tumour)" in texts(audit, "error")


def test_a_split_of_one_class(patches, patch_manifest, draw_patches):
    draw_patches(patches, "test", labels=np.zeros(6, int))
    assert "test: all 6 patches have label 0; no AUC" in texts(quick_audit(patch_manifest, patches), "warning")


def test_counts_that_differ_from_the_manifest_are_a_warning(patches, patch_manifest):
    splits = {name: split.model_copy(update={"count": 7}) for name, split in patch_manifest.splits.items()}
    audit = quick_audit(patch_manifest.model_copy(update={"splits": splits}), patches)
    assert not audit.has_errors
    assert "train: 6 images, the manifest says 7" in texts(audit, "warning")


def test_parts_that_do_not_fit_each_other(patches, patch_manifest):
    with h5py.File(patches / "train_y.h5", "w") as file:
        file["y"] = np.zeros((5, 1, 1, 1), np.uint8)
    (patches / "valid_meta.csv").write_text(",center_tumor_patch,wsi\n0,True,a\n")
    (patches / "test_x.h5").write_bytes(b"not HDF5")
    error = texts(full_audit(patch_manifest, patches), "error")
    assert "train_y.h5 has 5 labels for 6 patches" in error
    assert "valid_meta.csv has 1 rows for 6 patches" in error
    assert "test_x.h5 cannot be opened as HDF5" in error


def test_missing_and_misshapen_files(patches, patch_manifest):
    (patches / "valid_x.h5").unlink()
    with h5py.File(patches / "train_x.h5", "w") as file:
        file["x"] = np.zeros((6, 3, 8, 8), np.float32)
    audit = quick_audit(patch_manifest, patches)
    error = texts(audit, "error")
    assert "There is no file" in error
    assert "valid_x.h5" in error
    assert "'x' has shape (6, 3, 8, 8), expected (N, 8, 8, 3)" in error
    assert "'x' is float32, expected uint8" in error
    assert audit.rows[1].images == 0


def test_missing_splits_are_said(patches, patch_manifest):
    train = {"train": patch_manifest.splits["train"]}
    warning = texts(quick_audit(patch_manifest.model_copy(update={"splits": train}), patches), "warning")
    assert "There is no valid split" in warning
    assert "There is no test split" in warning


def test_root_must_be_a_folder(tmp_path, patch_manifest):
    with pytest.raises(DatasetNotFoundError, match=r"There is no folder .*nowhere"):
        quick_audit(patch_manifest, tmp_path / "nowhere")


SPLITS = {
    split: {"images": f"{split}/images/*.png", "masks": f"{split}/masks/*.png"} for split in ("train", "valid", "test")
}


@pytest.fixture
def masks_manifest(make_manifest):
    return make_manifest(
        splits=SPLITS,
        image={"dtype": "uint8", "height": 8, "width": 6},
        mask_values={0: "background", 255: "vessel"},
        group={"pattern": r"/p(\d+)_"},
    )


@pytest.fixture
def masks(tmp_path, save_image):
    """Three images and masks per split, each of its own patient; the lower half of a mask is foreground."""
    mask = np.zeros((8, 6), np.uint8)
    mask[4:] = 255
    for number, split in enumerate(SPLITS):
        for index in range(3):
            name = f"p{3 * number + index}_a.png"
            save_image(tmp_path / split / "images" / name, noise(8, 6))
            save_image(tmp_path / split / "masks" / name, mask)
    return tmp_path


def test_clean_masks(masks, masks_manifest):
    audit = full_audit(masks_manifest, masks)
    assert audit.findings == ()
    row = audit.rows[0]
    assert (row.images, row.shape, row.content, row.groups) == (3, "8x6x1 uint8", "foreground 50.0 %", 3)


def test_foreground_may_be_the_value_zero(masks, masks_manifest):
    manifest = masks_manifest.model_copy(update={"foreground": (0,)})
    assert full_audit(manifest, masks).rows[0].content == "foreground 50.0 %"


def test_orphans_are_listed_both_ways(masks, masks_manifest):
    (masks / "train/masks/p0_a.png").rename(masks / "train/masks/p0_b.png")
    audit = quick_audit(masks_manifest, masks)
    assert "1 images have no mask that matches 'train/masks/*.png': train/images/p0_a.png" in texts(audit, "error")
    assert "1 files match 'train/masks/*.png' and have no image: train/masks/p0_b.png" in texts(audit, "warning")


def test_a_transposed_mask(masks, masks_manifest, save_image):
    save_image(masks / "valid/masks/p3_a.png", np.full((6, 8), 255, np.uint8))
    error = texts(quick_audit(masks_manifest, masks), "error")
    assert "valid: 1 files of `mask` differ in size from their image: valid/masks/p3_a.png" in error


def test_unknown_mask_values_and_empty_masks(masks, masks_manifest, save_image):
    save_image(masks / "train/masks/p0_a.png", np.full((8, 6), 1, np.uint8))
    save_image(masks / "train/masks/p1_a.png", np.zeros((8, 6), np.uint8))
    audit = full_audit(masks_manifest, masks)
    assert "1 masks have values 1 that are not among mask_values [0, 255]" in texts(audit, "error")
    assert "no foreground or tables no point: train/masks/p1_a.png" in texts(audit, "warning")


def test_a_patient_and_a_file_in_two_splits(masks, masks_manifest, save_image):
    save_image(masks / "test/images/p0_z.png", noise(8, 6))
    save_image(masks / "test/masks/p0_z.png", np.full((8, 6), 255, np.uint8))
    audit = quick_audit(masks_manifest, masks)
    assert "1 groups are in train and in test (0)" in texts(audit, "error")
    splits = masks_manifest.splits | {"valid": masks_manifest.splits["train"]}
    error = texts(quick_audit(masks_manifest.model_copy(update={"splits": splits}), masks), "error")
    assert "3 files are in more than one split: " in error


def test_the_same_pixels_in_another_file_format(masks, masks_manifest):
    """Hashes are of decoded pixels: a bitmap of the same image is a duplicate, a flipped one is not."""
    pixels = np.asarray(Image.open(masks / "train/images/p0_a.png"))
    Image.fromarray(pixels).save(masks / "test/images/p6_a.png", compress_level=1)
    Image.fromarray(pixels[::-1]).save(masks / "test/images/p7_a.png")
    assert (masks / "test/images/p6_a.png").read_bytes() != (masks / "train/images/p0_a.png").read_bytes()
    error = texts(full_audit(masks_manifest, masks), "error")
    assert "1 images of test are in train as well, pixel by pixel: test/images/p6_a.png" in error


def test_equal_bytes_of_another_shape_are_no_duplicate(masks, masks_manifest, save_image):
    pixels = noise(8, 6)
    save_image(masks / "train/images/p0_a.png", pixels)
    save_image(masks / "test/images/p6_a.png", pixels.reshape(6, 8))
    assert "pixel by pixel" not in texts(full_audit(masks_manifest, masks), "error")


def test_wrong_type_channels_size_and_damage(masks, masks_manifest, save_image):
    save_image(masks / "train/images/p0_a.png", RNG.integers(0, 4096, (8, 6)).astype(np.uint16))
    save_image(masks / "train/images/p1_a.png", noise(8, 6, 4))
    save_image(masks / "train/images/p2_a.png", noise(9, 6))
    (masks / "valid/images/p3_a.png").write_bytes(b"no image")
    audit = full_audit(masks_manifest, masks)
    error = texts(audit, "error")
    assert "1 images are not uint8, as the manifest says: train/images/p0_a.png" in error
    assert "1 images have not the 1 channels of the manifest: train/images/p1_a.png" in error
    assert "1 images are not 8x6 px (rows x columns): train/images/p2_a.png" in texts(audit, "warning")
    assert "1 files cannot be read as images: valid/images/p3_a.png" in error
    assert "valid: 1 files cannot be decoded" in error


def test_nan_in_an_image(tmp_path, make_manifest):
    manifest = make_manifest(
        image={"dtype": "float32"}, splits={"train": {"images": "images/*.tif", "masks": "masks/*.tif"}}
    )
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    pixels = np.ones((4, 4), np.float32)
    pixels[0, 0] = np.nan
    tifffile.imwrite(tmp_path / "images/a.tif", pixels)
    tifffile.imwrite(tmp_path / "masks/a.tif", np.ones((4, 4), np.uint8))
    assert "1 images hold NaN or infinity: images/a.tif" in texts(full_audit(manifest, tmp_path), "error")


def test_no_image_at_all(tmp_path, masks_manifest):
    assert "train: no image matches 'train/images/*.png'" in texts(quick_audit(masks_manifest, tmp_path), "error")


def test_points_are_counted_from_dot_images_and_tables(tmp_path, make_manifest, save_image):
    dots = np.zeros((8, 6, 3), np.uint8)
    dots[[0, 0, 7], [0, 1, 5], 0] = 255  # two touching dots, one in the last corner
    for name in "ab":
        save_image(tmp_path / f"{name}cell.png", noise(8, 6))
    save_image(tmp_path / "adots.png", dots)
    (tmp_path / "bdots.png").write_bytes((tmp_path / "adots.png").read_bytes())
    manifest = make_manifest(kind="image-points", splits={"train": {"images": "*cell.png", "points": "*dots.png"}})
    assert full_audit(manifest, tmp_path).rows[0].content == "3.0 ± 0.0 points per image (3 to 3), 6 in all"
    (tmp_path / "a.csv").write_text("x,y\n5,7\n")
    (tmp_path / "b.csv").write_text("row,column\n5,7\n")
    tables = make_manifest(kind="image-points", splits={"train": {"images": "*cell.png", "points": "*.csv"}})
    audit = full_audit(tables, tmp_path)
    assert audit.rows[0].content.startswith("1.0 ± 0.0 points per image")
    error = texts(audit, "error")
    assert "train: 1 files of points cannot be used: " in error
    assert "b.csv: 1 of 1 points lie outside the frame of 8x6 px" in error
    assert "With row and column swapped all would lie inside" in error


def test_points_are_read_as_a_training_reads_them(tmp_path, make_manifest, save_image):
    texts_of_points = {"a": "y;x\n1;2\n3;4\n", "b": "row,column\n1,2\n1,2\n", "c": "a,b\n1,2\n", "d": "row,column\n"}
    for name, text in texts_of_points.items():
        save_image(tmp_path / f"{name}.png", noise(8, 6))
        (tmp_path / f"{name}.csv").write_text(text)
    splits = {"train": {"images": "*.png", "points": "*.csv"}}
    audit = full_audit(make_manifest(kind="image-points", splits=splits), tmp_path)
    error = texts(audit, "error")
    assert "train: 2 files of points cannot be used: " in error
    assert "b.csv: 1 of 2 points are exactly where an earlier one is" in error
    assert "c.csv has the columns ['a', 'b']" in error
    assert "no foreground or tables no point: d.csv" in texts(audit, "warning")
    assert audit.rows[0].content == "1.0 ± 1.0 points per image (0 to 2), 2 in all"
    # What the messages advise helps.
    form = {"duplicates": "drop", "unit": "um"}
    again = full_audit(make_manifest(kind="image-points", splits=splits, points=form, pixel_size_um=(1, 2)), tmp_path)
    assert "train: 1 files of points cannot be used: " in texts(again, "error")
    assert again.rows[0].content == "1.0 ± 0.8 points per image (0 to 2), 3 in all"


def test_headers_and_masks_of_odd_files(tmp_path):
    cv2.imwrite(str(tmp_path / "deep.png"), RNG.integers(0, 65536, (5, 4, 3)).astype(np.uint16))
    assert str(read_header(tmp_path / "deep.png")) == "5x4x3 uint16"
    tifffile.imwrite(tmp_path / "stack.tif", np.zeros((7, 5, 6), np.uint16), photometric="minisblack")
    assert str(read_header(tmp_path / "stack.tif")) == "7 planes of 5x6x1 uint16"
    turned = Image.fromarray(noise(5, 4, 3))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert str(read_header(tmp_path / "turned.jpg")) == "4x5x3 uint8"
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "L").convert("P")
    palette.putpalette([0, 0, 0, 255, 255, 255])
    palette.putdata([0, 1])
    palette.save(tmp_path / "palette.gif")
    assert read_mask(tmp_path / "palette.gif").tolist() == [[0, 255]]
    Image.fromarray(np.array([[False, True]])).save(tmp_path / "bit.png")
    assert read_mask(tmp_path / "bit.png").tolist() == [[0, 255]]


def test_pixel_size_from_tags(tmp_path):
    pixels = np.zeros((4, 5), np.uint8)
    tifffile.imwrite(
        tmp_path / "ome.ome.tif",
        pixels,
        metadata={"axes": "YX", "PhysicalSizeX": 0.25, "PhysicalSizeY": 500, "PhysicalSizeYUnit": "nm"},
    )
    assert pixel_size_um(tmp_path / "ome.ome.tif") == (0.5, 0.25)
    tifffile.imwrite(tmp_path / "ij.tif", pixels, imagej=True, resolution=(4, 2), metadata={"unit": "um"})
    assert pixel_size_um(tmp_path / "ij.tif") == (0.5, 0.25)
    tifffile.imwrite(tmp_path / "cm.tif", pixels, resolution=(20000, 10000), resolutionunit="CENTIMETER")
    assert pixel_size_um(tmp_path / "cm.tif") == (1.0, 0.5)
    tifffile.imwrite(tmp_path / "dpi.tif", pixels, resolution=(72, 72), resolutionunit="INCH")
    assert pixel_size_um(tmp_path / "dpi.tif") is None


@pytest.mark.skipif(not SHARED.is_dir(), reason="real data is not at ../shared/data")
def test_real_folders():
    vgg = full_audit(load_manifest("vgg_cells"), SHARED / "vgg_cells")
    assert vgg.findings == ()
    total = sum(int(row.content.split()[-3].replace(",", "")) for row in vgg.rows)
    assert total == 35_192  # dots counted independently of this package
    drive = full_audit(load_manifest("drive"), SHARED / "drive")
    assert drive.findings == ()
    marrow = full_audit(load_manifest("pcam"), SHARED / "marrow_patches")
    assert not marrow.has_errors
    assert [row.images for row in marrow.rows] == [1280, 448, 640]
    assert len(marrow.findings) == 3  # the counts are not those of PCam
