import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.morphology import remove_small_objects

from biocnn.errors import DataError
from biocnn.metrics.calling import (
    LOGITS,
    SIZES,
    SLACK,
    SizeSearch,
    call_structure,
    choose_size,
    count_sizes,
    robust_threshold,
)
from biocnn.metrics.overlap import confusion
from biocnn.metrics.topology import betti_errors


def draw(seed: int, size: int = 48) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A smooth random map, a truth that is like it, and a disc as field of view."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=(size, size)), 1.2)
    other = smooth + 0.3 * ndimage.gaussian_filter(rng.normal(size=(size, size)), 1.2)
    probability = (1 / (1 + np.exp(-8 * smooth))).astype(np.float32)
    rows, columns = np.mgrid[:size, :size]
    return probability, other > 0.1, (rows - size / 2) ** 2 + (columns - size / 2) ** 2 < (size / 2) ** 2


@pytest.mark.parametrize("seed", range(4))
def test_small_components_are_not_called(seed: int) -> None:
    probability, _, valid = draw(seed)
    expected = remove_small_objects((probability >= 0.6) & valid, max_size=11, connectivity=2)
    np.testing.assert_array_equal(call_structure(probability, 0.6, 12, valid), expected)
    assert 0 < expected.sum() < ((probability >= 0.6) & valid).sum()


def test_components_join_at_corners_and_not_outside_valid() -> None:
    probability = np.array([[0.9, 0.0, 0.0], [0.0, 0.5, 0.5], [0.0, 0.0, 0.5]])
    assert call_structure(probability, 0.4, 4).sum() == 4
    valid = np.ones((3, 3), bool)
    valid[1, 1] = False
    assert call_structure(probability, 0.4, 2, valid).sum() == 2
    volume = np.zeros((2, 3, 3))
    volume[0, 0, 0] = volume[1, 1, 1] = 0.9
    assert call_structure(volume, 0.4, 2).sum() == 2


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("min_size", [0, 8])
def test_counts_are_those_of_every_pair_by_itself(seed: int, min_size: int) -> None:
    probability, mask, valid = draw(seed)
    inside = None if seed % 2 else valid
    table = count_sizes(probability, mask, inside, min_size)
    for row in (0, 7, 8, 10):
        for column, size in enumerate(SIZES):
            called = call_structure(probability, 1 / (1 + np.exp(-LOGITS[row])), size, inside)
            counts = confusion(called, mask, np.ones_like(mask) if inside is None else inside)
            betti = betti_errors(called, mask, inside, min_size=min_size)
            errors = [value for name, value in betti.items() if "_error_" in name]
            assert table[row, column].tolist() == [
                counts.true_positive,
                counts.true_positive + counts.false_positive,
                *errors,
            ]


def test_the_size_with_the_fewest_errors_of_those_with_a_good_dice_is_chosen() -> None:
    table = np.zeros((len(LOGITS), len(SIZES), 4), np.int64)
    row = int(np.flatnonzero(LOGITS == 1.0)[0])
    # Dice with 10,000 true pixels and as many called: hits in ten thousandths.
    for column, (hits, b0, b1) in enumerate(
        [(8000, 50, 9), (8000, 30, 9), (7995, 9, 5), (7992, 5, 9), (7980, 0, 0), *[(7000, 0, 0)] * 3]
    ):
        table[row, column] = hits, 10_000, b0, b1
    assert SLACK == 0.001
    assert choose_size(table, 10_000, 0.73) == 10  # 14 errors as with 20 px, which is larger; 30 px cost too much
    with pytest.raises(DataError, match="show no structure"):
        choose_size(table, 0, 0.73)


def test_the_threshold_nearest_to_one_half_within_one_standard_error_is_chosen() -> None:
    thresholds = np.array([0.3, 0.5, 0.6, 0.7, 0.9])
    dice = np.array([[0.70, 0.74, 0.76, 0.78, 0.5], [0.72, 0.77, 0.79, 0.82, 0.6]])
    # Best 0.80 at 0.7; the standard error of 0.78 and 0.82 is 0.02, so 0.775 at 0.6 is too little by 0.005 ...
    assert robust_threshold(dice, thresholds) == 0.7
    # ... and with more spread between images it is not.
    assert robust_threshold(dice + np.array([[-0.02], [0.02]]), thresholds) == 0.6
    # One image tells nothing of others.
    assert robust_threshold(dice[:1], thresholds) == 0.7
    # Many images leave no doubt.
    assert robust_threshold(np.repeat(dice, 50, 0), thresholds) == 0.7
    # On either side of 0.5, distance is that of logits.
    assert robust_threshold(np.ones((2, 2)), np.array([0.2, 0.7])) == 0.7


def test_the_search_over_images_is_that_over_their_sum() -> None:
    search = SizeSearch(min_size=3)
    total, truth = np.zeros((len(LOGITS), len(SIZES), 4), np.int64), 0
    for seed in range(3):
        probability, mask, valid = draw(seed)
        search.update(*(torch.from_numpy(array)[None, None] for array in (probability, mask, valid)))
        total += count_sizes(probability, mask, valid, 3)
        truth += int((mask & valid).sum())
    table, pixels = search.compute()
    np.testing.assert_array_equal(table, total)
    assert pixels == truth
    assert choose_size(table, pixels, 0.5) in SIZES
