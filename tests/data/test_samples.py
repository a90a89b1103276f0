import csv
from pathlib import Path

import numpy as np
import pytest
from skimage.data import immunohistochemistry
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from biocnn.data.audit import full_audit
from biocnn.data.hdf5 import read_array
from biocnn.data.manifest import load_manifest
from biocnn.data.samples import (
    SamplePatches,
    match_colours,
    nuclei_mask,
    sample_patches,
    window_means,
    write_sample_patches,
)

SPLITS = ("train", "valid", "test")


@pytest.fixture(scope="module")
def samples() -> dict[str, SamplePatches]:
    return {split: sample_patches(split) for split in SPLITS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample_patches(tmp_path_factory.mktemp("sample")).parent


def test_patches_are_cut_from_the_picture(samples: dict[str, SamplePatches]) -> None:
    picture = immunohistochemistry()
    for patches in samples.values():
        for image, (row, column) in zip(patches.images, patches.corners, strict=True):
            assert np.array_equal(image, picture[row : row + 96, column : column + 96])


def test_labels_follow_the_rule(samples: dict[str, SamplePatches]) -> None:
    mask = nuclei_mask(immunohistochemistry())
    for patches in samples.values():
        for share, label, (row, column) in zip(patches.nuclei, patches.labels, patches.corners, strict=True):
            assert share == pytest.approx(mask[row + 32 : row + 64, column + 32 : column + 64].mean())
            assert share >= 0.25 if label else share <= 0.10
        assert patches.labels.mean() == 0.5


def test_splits_share_no_pixel_and_blocks_no_centre(samples: dict[str, SamplePatches]) -> None:
    used = np.zeros((3, 512, 512), bool)
    for number, patches in enumerate(samples.values()):
        assert len(patches.labels) >= 100
        assert len(set(patches.blocks)) >= 4
        centres = {block: np.zeros((512, 512), bool) for block in patches.blocks}
        for block, (row, column) in zip(patches.blocks, patches.corners, strict=True):
            used[number, row : row + 96, column : column + 96] = True
            centres[block][row + 32 : row + 64, column + 32 : column + 64] = True
        assert sum(centre.astype(int) for centre in centres.values()).max() == 1
    assert used.sum(0).max() == 1
    assert not set(samples["train"].blocks) & set(samples["valid"].blocks)


def test_mean_colour_of_the_whole_patch_tells_little(samples: dict[str, SamplePatches]) -> None:
    mean = {split: samples[split].images.mean((1, 2)) for split in SPLITS}
    labels = {split: samples[split].labels for split in SPLITS}
    model = LogisticRegression(C=1e3, max_iter=1000).fit(mean["train"] / 255, labels["train"])
    for split in ("valid", "test"):
        area = roc_auc_score(labels[split], model.decision_function(mean[split] / 255))
        assert 0.25 < area < 0.75
    for split in SPLITS:
        classes = [mean[split][labels[split] == label].mean(0) for label in (0, 1)]
        np.testing.assert_allclose(*classes, atol=3)  # pairs differ by at most 3 grey levels, so the means do


def test_pairs_by_hand() -> None:
    positive = np.array([[10.0, 10, 10], [50, 50, 50], [90, 90, 90]])
    negative = np.array([[12.0, 10, 9], [11, 10, 10], [200, 90, 90], [52, 51, 50]])
    first, second = match_colours(positive, negative, 2.0)
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == [(0, 1), (1, 3)]
    # The nearest pair would leave two without a partner; as many pairs as there are, are made.
    chain = np.array([[0.0, 0, 0], [2, 0, 0]]), np.array([[1.0, 0, 0], [-2, 0, 0]])
    first, second = match_colours(*chain, 2.0)
    assert sorted(zip(first.tolist(), second.tolist(), strict=True)) == [(0, 1), (1, 0)]


def test_no_pair_of_nothing() -> None:
    first, second = match_colours(np.zeros((0, 3)), np.zeros((4, 3)), 2.0)
    assert first.size == second.size == 0
    first, second = match_colours(np.zeros((2, 3)), np.full((2, 3), 9.0), 2.0)
    assert first.size == second.size == 0


def test_window_means_against_slices() -> None:
    values = np.random.default_rng(0).random((9, 11, 2))
    corners = np.array([[0, 0], [5, 7], [2, 3]])
    expected = [values[row : row + 4, column : column + 4].mean((0, 1)) for row, column in corners]
    np.testing.assert_allclose(window_means(values, corners, 4), expected)


def test_files_are_a_data_set_without_objections(folder: Path, samples: dict[str, SamplePatches]) -> None:
    manifest = load_manifest(folder / "sample.yaml")
    audit = full_audit(manifest, folder)
    assert audit.findings == ()
    assert [row.images for row in audit.rows] == [len(samples[split].labels) for split in SPLITS]
    for split in SPLITS:
        assert np.array_equal(read_array(folder / f"{split}_x.h5", "x"), samples[split].images)
        assert np.array_equal(read_array(folder / f"{split}_y.h5", "y").ravel(), samples[split].labels)
        with open(folder / f"{split}_meta.csv", newline="") as handle:
            rows = list(csv.DictReader(handle))
        assert [row["block"] for row in rows] == samples[split].blocks
        assert [[int(row["coord_y"]), int(row["coord_x"])] for row in rows] == samples[split].corners.tolist()


def test_the_same_bytes_every_time(folder: Path, tmp_path: Path) -> None:
    write_sample_patches(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in folder.iterdir())
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (folder / path.name).read_bytes(), path.name


def test_a_complete_folder_is_left_alone_and_an_incomplete_one_is_finished(tmp_path: Path) -> None:
    manifest = write_sample_patches(tmp_path)
    (tmp_path / "train_x.h5").write_bytes(b"mine")
    assert write_sample_patches(tmp_path) == manifest
    assert (tmp_path / "train_x.h5").read_bytes() == b"mine"
    manifest.unlink()
    write_sample_patches(tmp_path)
    assert read_array(tmp_path / "train_x.h5", "x").shape[1:] == (96, 96, 3)
