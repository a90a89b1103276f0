import pickle
import random
import subprocess
import sys
from pathlib import Path

import albumentations as A
import numpy as np
import pytest
from skimage.color import hed2rgb, rgb2hed
from skimage.data import immunohistochemistry

from biocnn.data.augmentation import (
    Augmentation,
    HEDJitter,
    PatchAugmentation,
    RandomShift,
    TileAugmentation,
    ToneJitter,
    strict,
)
from biocnn.errors import DataError

IMAGE = immunohistochemistry()[100:196, 200:296]


def test_depends_on_seed_epoch_and_index_only() -> None:
    augmentation = PatchAugmentation()
    reference = augmentation({"image": IMAGE}, seed=1, epoch=2, index=3)["image"]
    augmentation({"image": IMAGE}, 1, 0, 0)
    random.seed(0)
    np.random.default_rng(0)
    np.testing.assert_array_equal(augmentation({"image": IMAGE}, 1, 2, 3)["image"], reference)
    np.testing.assert_array_equal(PatchAugmentation()({"image": IMAGE}, 1, 2, 3)["image"], reference)
    copy = pickle.loads(pickle.dumps(augmentation))
    np.testing.assert_array_equal(copy({"image": IMAGE}, 1, 2, 3)["image"], reference)


def test_no_augmentation_comes_twice() -> None:
    augmentation = PatchAugmentation(hed_probability=1.0)
    seen = {
        augmentation({"image": IMAGE}, seed, epoch, index)["image"].tobytes()
        for seed in range(2)
        for epoch in range(4)
        for index in range(50)
    }
    assert len(seen) == 400


def test_reaches_nested_transforms() -> None:
    def nested() -> A.OneOf:
        return A.OneOf([A.SomeOf([A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)], n=1), A.D4(p=0.5)], p=1.0)

    first, second = Augmentation([nested()]), Augmentation([nested()])
    for index in range(20):
        a = first({"image": IMAGE}, 0, 0, index)["image"]
        np.testing.assert_array_equal(second({"image": IMAGE}, 0, 0, index)["image"], a)


def test_shift_of_more_than_four_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"max_shift must be in 0\.\.4 px, received 5.*centre"):
        PatchAugmentation(max_shift=5)


def test_shift_moves_content_by_whole_pixels_within_the_limit() -> None:
    image = np.zeros((32, 32, 3), np.uint8)
    image[16, 16] = 255
    augmentation = Augmentation([RandomShift(4)])
    places = set()
    for index in range(400):
        moved = augmentation({"image": image}, 0, 0, index)["image"]
        assert moved.sum() == 3 * 255  # nothing is interpolated
        row, column = np.argwhere(moved[..., 0])[0] - 16
        places.add((int(row), int(column)))
    assert places <= {(row, column) for row in range(-4, 5) for column in range(-4, 5)}
    assert len(places) > 75  # 81 places in 400 draws leave about 0.6 out


def test_geometry_moves_mask_and_valid_with_the_image() -> None:
    labels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    image = np.repeat(labels[..., None], 3, 2)
    augmentation = PatchAugmentation(hed_sigma=0.0, brightness=0.0)
    for index in range(20):
        moved = augmentation({"image": image, "mask": labels.copy(), "valid": labels.copy()}, 0, 0, index)
        np.testing.assert_array_equal(moved["mask"], moved["image"][..., 0])
        np.testing.assert_array_equal(moved["valid"], moved["mask"])


def test_stain_jitter_equals_the_jitter_written_out() -> None:
    jitter = HEDJitter(sigma=0.1, p=1.0)
    jitter.set_random_state(np.random.default_rng(5), random.Random(5))
    matrix = jitter.get_params()["matrix"]
    rng = np.random.default_rng(5)
    alpha, beta = rng.uniform(0.9, 1.1, 3), rng.uniform(-0.1, 0.1, 3)
    # scikit-image cuts negative stains off, which a jitter must not do: compare where all stains are positive.
    stains = rng.uniform(0.02, 0.08, (64, 64, 3))
    image = (hed2rgb(stains) * 255).round().astype(np.uint8)
    stains = rgb2hed(image)
    assert (stains > 0).mean() > 0.95
    unit = -np.log(1e-6)  # of density in scikit-image
    expected = hed2rgb(stains * alpha + beta / unit) * 255
    difference = np.abs(jitter.apply(image, matrix).astype(float) - expected)[(stains > 0).all(2)]
    assert difference.max() <= 0.51  # rounding to whole grey values


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_tone_jitter_equals_its_formula(channels: int) -> None:
    jitter = ToneJitter(0.2, 1.5, 1.5, 0.1, p=1.0)
    image = np.random.default_rng(0).integers(0, 256, (20, 30, channels), np.uint8)
    for seed in range(5):
        jitter.set_random_state(np.random.default_rng(seed), random.Random(seed))
        drawn = jitter.get_params_dependent_on_data({}, {"image": image})
        assert abs(drawn["shift"]) <= 0.2
        assert 1 / 1.5 <= drawn["contrast"] <= 1.5
        assert 1 / 1.5 <= drawn["exponent"] <= 1.5
        assert np.abs(drawn["gain"] - 1).max() <= 0.1
        values = image / 255.0
        mean = values.mean() ** drawn["exponent"]
        expected = (values ** drawn["exponent"] - mean) * drawn["contrast"] + mean + drawn["shift"]
        expected = np.clip(expected * drawn["gain"], 0, 1)
        assert np.abs(jitter.apply(image, **drawn) - 255 * expected).max() <= 0.501  # rounded to whole grey values
        found = jitter.apply(values.astype(np.float32), **drawn)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-5)  # powers in float32


def test_tone_jitter_without_strength_changes_nothing() -> None:
    jitter = ToneJitter(0, 1, 1, 0, p=1.0)
    drawn = jitter.get_params_dependent_on_data({}, {"image": IMAGE})
    np.testing.assert_array_equal(jitter.apply(IMAGE, **drawn), IMAGE)


def test_tiles_are_turned_and_scaled_within_the_limits() -> None:
    rng = np.random.default_rng(0)
    matrices = [TileAugmentation(scale=(0.5, 2.0)).matrix(rng) for _ in range(2000)]
    scales = np.array([1 / np.sqrt(abs(np.linalg.det(matrix))) for matrix in matrices])
    for matrix, scale in zip(matrices, scales, strict=True):
        np.testing.assert_allclose(matrix @ matrix.T * scale**2, np.eye(2), atol=1e-12)  # nothing is sheared
    assert 0.5 <= scales.min() < 0.55
    assert 1.8 < scales.max() <= 2.0
    turned = scales != 1
    assert abs(turned.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 2000)
    assert abs((scales[turned] > 1).mean() - 0.5) < 4 * np.sqrt(0.25 / turned.sum())  # as often larger as smaller
    assert len({matrix.tobytes() for matrix in np.array(matrices)[~turned] + 0.0}) == 8
    upright = TileAugmentation(rotation=0, affine_probability=1)
    assert (np.isclose(upright.matrix(rng), 0).sum((0, 1)) == 2).all()


def test_the_largest_scale_is_that_of_the_matrices() -> None:
    assert Augmentation([]).largest_scale == 1
    assert PatchAugmentation().largest_scale == 1
    assert TileAugmentation().largest_scale == 1.25
    for arguments, largest in (
        ({"scale": (0.5, 2.0)}, 2.0),
        ({"scale": (0.5, 2.0), "affine_probability": 0.0}, 1.0),
        ({"scale": (0.5, 0.8)}, 1.0),  # of the tiles that are not scaled
        ({"scale": (0.5, 0.8), "affine_probability": 1.0}, 0.8),
    ):
        rng, augmentation = np.random.default_rng(0), TileAugmentation(**arguments)  # type: ignore[arg-type]
        assert augmentation.largest_scale == largest
        found = max(1 / np.sqrt(abs(np.linalg.det(augmentation.matrix(rng)))) for _ in range(1000))
        assert 0.95 * largest < found <= largest + 1e-12


@pytest.mark.parametrize("value", [0, 255])
def test_blank_patches_survive(value: int) -> None:
    blank = np.full((96, 96, 3), value, np.uint8)
    augmentation = PatchAugmentation(hed_sigma=0.2, hed_probability=1.0)
    for index in range(50):
        result = augmentation({"image": blank}, 0, 0, index)["image"]
        assert result.dtype == np.uint8
        assert result.std((0, 1)).max() == 0  # blank stays blank


def test_stain_jitter_without_strength_changes_nothing() -> None:
    jitter = HEDJitter(sigma=0.0, p=1.0)
    result = jitter.apply(IMAGE, jitter.get_params()["matrix"])
    assert np.abs(result.astype(int) - IMAGE).max() <= 1  # a logarithm and back in float32


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (IMAGE.astype(np.float32), r"float images in 0..1; received values from .* to 2"),
        (np.full((8, 8, 3), np.nan, np.float32), "received values from nan"),
        (IMAGE.astype(np.uint16), "received uint16"),
        (IMAGE.astype(np.int64), "received int64"),
    ],
)
def test_images_that_would_be_clipped_are_refused(image: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        PatchAugmentation()({"image": image}, 0, 0, 0)


def test_unknown_arguments_are_errors() -> None:
    with pytest.raises(ValueError, match=r"GaussNoise: Argument.*var_limit"):
        strict(A.GaussNoise, var_limit=3)
    with pytest.raises(ValueError, match=r"sigma must be in 0\.\.1"):
        HEDJitter(sigma=1.5)


def test_only_one_module_imports_albumentations() -> None:
    package = Path(__file__).parents[2] / "biocnn"
    importers = [path.name for path in package.rglob("*.py") if "import albumentations" in path.read_text()]
    assert importers == ["augmentation.py"]


def test_import_is_silent_and_asks_no_network() -> None:
    # With warnings as errors the offline start-up check of albumentations would fail the import.
    code = "import socket; socket.create_connection = None\nimport biocnn.data.augmentation"
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
