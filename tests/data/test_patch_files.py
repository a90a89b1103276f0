from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from biocnn.data.manifest import load_manifest
from biocnn.data.patch_files import open_patch_images
from biocnn.errors import DataError, DatasetNotFoundError
from tests.conftest import draw_patches, write_split

PCAM = load_manifest("pcam")


def test_folder_glob_and_hdf5_give_the_same_patches(tmp_path: Path) -> None:
    images, labels = draw_patches(4, seed=0)
    write_split(tmp_path, "test", images, labels, ["a"] * 4)
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"patch_{number}.png")
    rows = np.array([3, 1])
    for pattern in (tmp_path, tmp_path / "*.png", tmp_path / "camelyonpatch_level_2_split_test_x.h5"):
        source = open_patch_images(str(pattern), PCAM)
        assert len(source) == 4
        np.testing.assert_array_equal(source.read(rows)["image"], images[rows])


def test_alpha_is_left_out(tmp_path: Path) -> None:
    rgba = np.dstack([draw_patches(1, 0)[0][0], np.full((96, 96), 128, np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "a.png")
    read = open_patch_images(str(tmp_path), PCAM).read(np.array([0]))["image"]
    np.testing.assert_array_equal(read[0], rgba[..., :3])


def test_unfit_images_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match="No image matches"):
        open_patch_images(str(tmp_path / "*.png"), PCAM)
    Image.fromarray(np.zeros((96, 96, 3), np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((64, 96, 3), np.uint8)).save(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"one size; found a\.png 96x96, b\.png 64x96"):
        open_patch_images(str(tmp_path), PCAM)
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"b\.png cannot be read"):
        open_patch_images(str(tmp_path), PCAM)
    Image.fromarray(np.zeros((96, 96), np.uint16)).save(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"b\.png is an image of mode 'I;16', expected RGB with 8 bits"):
        open_patch_images(str(tmp_path), PCAM)
