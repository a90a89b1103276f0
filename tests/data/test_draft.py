import numpy as np
import pytest
import tifffile
from PIL import Image

from biocnn.data.audit import full_audit
from biocnn.data.draft import draft_manifest
from biocnn.data.manifest import load_manifest
from biocnn.errors import DatasetNotFoundError, ManifestError

RNG = np.random.default_rng(2)


def draw(root, *names, size=(8, 6)):
    """Images of noise; names with mask, manual, label or dots become 0 and 255."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = RNG.integers(0, 256, size, np.uint8)
        if any(word in name for word in ("mask", "manual", "label", "dots")):
            pixels = np.where(pixels > 127, 255, 0).astype(np.uint8)
        Image.fromarray(pixels).save(path)


def patterns(draft, split="train"):
    parts = draft.manifest.splits[split]
    return parts.images, parts.masks or parts.points


def test_sister_folders_with_split_folders(tmp_path):
    for split, numbers in (("training", (1, 2, 10)), ("val", (3,)), ("test", (4,))):
        draw(tmp_path, *(f"{split}/images/{n}_{split}.png" for n in numbers))
        draw(tmp_path, *(f"{split}/1st_manual/{n}_manual1.png" for n in numbers))
        draw(tmp_path, *(f"{split}/mask/{n}_mask.png" for n in numbers))
    draft = draft_manifest(tmp_path)
    assert draft.manifest.kind == "image-mask"
    assert list(draft.manifest.splits) == ["train", "valid", "test"]
    assert {split: parts.count for split, parts in draft.manifest.splits.items()} == {"train": 3, "valid": 1, "test": 1}
    assert draft.manifest.mask_values == {0: "background", 255: "value_255"}
    assert (draft.manifest.image.height, draft.manifest.image.width) == (8, 6)
    assert load_manifest(draft.path) == draft.manifest
    assert not full_audit(draft.manifest, tmp_path).has_errors
    assert all("valid split" not in point for point in draft.open_points)


def test_without_split_folders_all_is_train_and_it_says_so(tmp_path):
    draw(tmp_path, *(f"Images/a_{i}.png" for i in range(3)), *(f"Labels/a_{i}.png" for i in range(3)))
    draft = draft_manifest(tmp_path)
    assert patterns(draft) == ("Images/*.png", "Labels/*.png")
    assert list(draft.manifest.splits) == ["train"]
    assert any("There is no valid and no test split" in point for point in draft.open_points)
    assert draft.path.read_text().startswith("# CHECK: ")


def test_mixed_extensions(tmp_path):
    draw(tmp_path, "images/a.png", "images/b.tif", "masks/a.png", "masks/b.png")
    draft = draft_manifest(tmp_path)
    assert patterns(draft) == ("images/*.*", "masks/*.png")
    assert not full_audit(draft.manifest, tmp_path).has_errors


def test_masks_beside_the_images(tmp_path):
    draw(tmp_path, *(f"cell_{i:02}.png" for i in range(12)), *(f"cell_{i:02}_mask.png" for i in range(12)))
    draft = draft_manifest(tmp_path)
    assert draft.manifest.kind == "image-mask"
    assert draft.manifest.splits["train"].count == 12
    assert not full_audit(draft.manifest, tmp_path).has_errors


def test_dot_images(tmp_path):
    draw(tmp_path, *(f"{i:03}cell.png" for i in (1, 2, 3)), *(f"{i:03}dots.png" for i in (1, 2, 3)))
    draft = draft_manifest(tmp_path)
    assert draft.manifest.kind == "image-points"
    assert patterns(draft) == ("*cell.png", "*dots.png")


def test_tables_of_points(tmp_path):
    draw(tmp_path, "f1.png", "f2.png")
    for name in ("f1", "f2"):
        (tmp_path / f"{name}_points.csv").write_text("row,column\n1,2\n")
    draft = draft_manifest(tmp_path)
    assert draft.manifest.kind == "image-points"
    assert draft.manifest.splits["train"].points.endswith("_points.csv")
    assert not full_audit(draft.manifest, tmp_path).has_errors


@pytest.mark.parametrize("suffix", [".tsv", ".txt", ".geojson", ".json", ".roi", ".ZIP"])
def test_points_of_other_programs(tmp_path, suffix):
    """The layout is told by names alone; what is in the files is looked at by the audit."""
    for number in (1, 2):
        draw(tmp_path, f"folders/images/f{number}.png", f"endings/f{number}.png")
        for name in (f"folders/points/f{number}{suffix}", f"endings/f{number}_points{suffix}"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
    assert patterns(draft_manifest(tmp_path / "folders")) == ("images/*.png", f"points/*{suffix}")
    draft = draft_manifest(tmp_path / "endings")
    assert draft.manifest.kind == "image-points"
    assert patterns(draft)[1].endswith(f"_points{suffix}")
    assert any("2 images" in reason and "2 in pairs" in reason for reason in draft.reasons)


def test_one_image_is_enough(tmp_path):
    draw(tmp_path, "images/slide.png", "masks/slide.png")
    assert draft_manifest(tmp_path).manifest.splits["train"].count == 1


def test_groups_pixel_size_and_depth_are_guessed(tmp_path):
    for patient in ("anna", "bob"):
        for index in range(2):
            for folder in ("images", "masks"):
                path = tmp_path / folder / f"{patient}_{index}.tif"
                path.parent.mkdir(exist_ok=True)
                pixels = np.full((4, 4), 255 if folder == "masks" else 1000 + index, np.uint16)
                tifffile.imwrite(path, pixels, resolution=(20000, 20000), resolutionunit="CENTIMETER")
    draft = draft_manifest(tmp_path)
    assert draft.manifest.pixel_size_um == (0.5, 0.5)
    assert draft.manifest.image.dtype == "uint16"
    assert [row.groups for row in full_audit(draft.manifest, tmp_path).rows] == [2]
    assert any("2 groups such as 'anna'. This is a guess." in reason for reason in draft.reasons)


def test_patches_in_the_pcam_layout(tmp_path, draw_patches):
    for split in ("train", "test"):
        draw_patches(tmp_path, split)
    draft = draft_manifest(tmp_path)
    assert draft.manifest.kind == "patches-hdf5"
    assert draft.manifest.group.column == "wsi"
    assert draft.manifest.label_column == "center_tumor_patch"
    assert draft.manifest.splits["test"].count == 6
    assert not full_audit(draft.manifest, tmp_path).has_errors


def test_a_draft_is_never_overwritten(tmp_path):
    draw(tmp_path, "images/a.png", "masks/a.png")
    draft = draft_manifest(tmp_path)
    draft.path.write_text("mine")
    with pytest.raises(ManifestError, match=r"is there already and is left as it is"):
        draft_manifest(tmp_path)
    assert draft.path.read_text() == "mine"


def test_instance_masks_are_pointed_out(tmp_path):
    draw(tmp_path, "images/a.png", "masks/a.png", size=(20, 20))
    Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20) % 50).save(tmp_path / "masks/a.png")
    draft = draft_manifest(tmp_path)
    assert draft.manifest.mask_values is None
    assert any("50 different values" in point for point in draft.open_points)


def test_names_that_are_no_identifiers(tmp_path):
    root = tmp_path / "Anna's Data (2024)"
    draw(root, "images/a.png", "masks/a.png")
    draft = draft_manifest(root)
    assert draft.path.name == "anna_s_data_2024.yaml"
    assert draft.manifest.title == "Anna's Data (2024)"


def test_unknown_layout_says_what_was_seen_and_expected(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DatasetNotFoundError, match=r"types \.txt\. Expected \*_x\.h5"):
        draft_manifest(tmp_path)
    with pytest.raises(DatasetNotFoundError, match=r"There is no folder .*nowhere"):
        draft_manifest(tmp_path / "nowhere")
