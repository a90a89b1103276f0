from pathlib import Path

import h5py
import numpy as np
import pytest

from biocnn.data.manifest import Manifest, load_manifest
from biocnn.data.patches import first_occurrences, open_patch_source, read_meta_column
from biocnn.errors import DataError, DatasetNotFoundError, ManifestError
from tests.conftest import SHARED_DATA, draw_patches, write_split

PCAM = load_manifest("pcam")


def test_reads_what_was_written(pcam_folder: Path) -> None:
    source = open_patch_source(PCAM, pcam_folder, "valid")
    images, labels = draw_patches(32, seed=1)
    rows = np.array([31, 0, 7])
    batch = source.read(rows)
    np.testing.assert_array_equal(batch["image"], images[rows])
    np.testing.assert_array_equal(batch["label"], labels[rows])
    assert batch["label"].dtype == np.int64
    assert batch["id"] == ["valid:31", "valid:0", "valid:7"]
    assert batch["group"] == ["valid_slide_3", "valid_slide_0", "valid_slide_3"]
    np.testing.assert_array_equal(np.concatenate(list(source.blocks(5))), images)


def test_hashes_tell_equal_patches(tmp_path: Path) -> None:
    images, labels = draw_patches(8, seed=3)
    images[5], images[7] = images[2], images[2]
    write_split(tmp_path, "train", images, labels, ["a"] * 8)
    hashes = open_patch_source(PCAM, tmp_path, "train").content_hashes()
    same = hashes[:, None] == hashes[None, :]
    brute_force = (images[:, None] == images[None, :]).all((2, 3, 4))
    np.testing.assert_array_equal(same, brute_force)
    assert first_occurrences(hashes).tolist() == [0, 1, 2, 3, 4, 6]


def test_missing_files_are_listed_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match=r"(?s)train_x\.h5.*train_y\.h5.*biocnn data fetch pcam"):
        open_patch_source(PCAM, tmp_path, "train")


def _write(root: Path, images: np.ndarray, labels: np.ndarray, groups: int | None = None) -> None:
    write_split(root, "train", images, labels[: len(images)], ["a"] * len(images))
    if len(labels) != len(images):
        with h5py.File(root / "camelyonpatch_level_2_split_train_y.h5", "w") as file:
            file.create_dataset("y", data=labels.reshape(-1, 1, 1, 1))


def test_wrong_shapes_dtypes_and_counts_are_named(tmp_path: Path) -> None:
    images, labels = draw_patches(6, seed=0)
    labels = labels.astype(np.uint8)
    cases: list[tuple[np.ndarray, np.ndarray, str]] = [
        (images[:, :64, :64], labels, r"train_x\.h5: 'x' has shape \(6, 64, 64, 3\), expected \(N, 96, 96, 3\)"),
        (images.transpose(0, 3, 1, 2), labels, r"expected \(N, 96, 96, 3\)"),
        (images.astype(np.float32) / 255, labels, "is float32, expected uint8"),
        (images, np.append(labels, 1), r"7 labels for 6 patches"),
        (images, labels + 1, r"has labels \[1, 2\], expected 0 to 1 \(normal, tumour\)"),
    ]
    for number, (x, y, message) in enumerate(cases):
        root = tmp_path / str(number)
        root.mkdir()
        _write(root, x, y)
        with pytest.raises(DataError, match=message):
            open_patch_source(PCAM, root, "train")


def test_meta_of_another_length_or_without_the_column(tmp_path: Path) -> None:
    images, labels = draw_patches(6, seed=0)
    write_split(tmp_path, "train", images, labels, ["a"] * 6)
    meta = tmp_path / "camelyonpatch_level_2_split_train_meta.csv"
    lines = meta.read_text().splitlines()
    meta.write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(DataError, match=r"train_meta\.csv has 5 rows for 6 patches"):
        open_patch_source(PCAM, tmp_path, "train")
    with pytest.raises(DataError, match="no column 'slide'; it has"):
        read_meta_column(meta, "slide")
    meta.write_text("\n".join([lines[0], "0,1"]) + "\n")
    with pytest.raises(DataError, match="line 2 has no value for 'wsi'"):
        read_meta_column(meta, "wsi")


def test_kind_and_split_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="has no split 'dev'; it has"):
        open_patch_source(PCAM, tmp_path, "dev")
    values = PCAM.model_dump() | {"kind": "image-points"}
    values["splits"]["train"] = {"images": "*.png", "points": "*.csv", "meta": "m.csv"}
    values["splits"] = {"train": values["splits"]["train"]}
    with pytest.raises(ManifestError, match="of kind 'image-points', expected 'patches-hdf5'"):
        open_patch_source(Manifest.model_validate(values), tmp_path, "train")


@pytest.mark.skipif(not (SHARED_DATA / "marrow_patches").is_dir(), reason="real marrow patches are not at hand")
def test_real_patches() -> None:
    for split, count in {"train": 1280, "valid": 448, "test": 640}.items():
        source = open_patch_source(PCAM, SHARED_DATA / "marrow_patches", split)
        assert len(source) == count
        assert source.labels is not None
        assert source.labels.mean() == 0.5
        assert source.groups is not None
