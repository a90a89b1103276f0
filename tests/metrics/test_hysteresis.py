import numpy as np
import pytest
import torch
from scipy import ndimage

from biocnn.errors import DataError
from biocnn.metrics.hysteresis import (
    SLACK,
    HysteresisSearch,
    choose_pair,
    count_pairs,
    hysteresis,
    thresholds_around,
)
from biocnn.metrics.overlap import confusion
from biocnn.metrics.topology import betti_errors


def draw(seed: int, size: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A smooth random map, a truth that is like it, and a disc as field of view."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=(size, size)), 1.2)
    other = smooth + 0.3 * ndimage.gaussian_filter(rng.normal(size=(size, size)), 1.2)
    probability = (1 / (1 + np.exp(-8 * smooth))).astype(np.float32)
    rows, columns = np.mgrid[:size, :size]
    return probability, other > 0.1, (rows - size / 2) ** 2 + (columns - size / 2) ** 2 < (size / 2) ** 2


@pytest.mark.parametrize("seed", range(5))
def test_it_is_what_grows_from_strong_pixels_within_faint_ones(seed: int) -> None:
    probability, _, valid = draw(seed)
    faint, strong = (probability >= 0.45) & valid, (probability >= 0.8) & valid
    grown = ndimage.binary_propagation(strong, np.ones((3, 3)), mask=faint)
    np.testing.assert_array_equal(hysteresis(probability, 0.45, 0.8, valid), grown)
    assert strong.sum() < grown.sum() < faint.sum()


def test_components_join_at_corners_and_not_outside_valid() -> None:
    probability = np.array([[0.9, 0.0, 0.0], [0.0, 0.5, 0.5], [0.0, 0.0, 0.5]])
    assert hysteresis(probability, 0.4, 0.8).sum() == 4
    valid = np.ones((3, 3), bool)
    valid[1, 1] = False
    assert hysteresis(probability, 0.4, 0.8, valid).sum() == 1
    np.testing.assert_array_equal(hysteresis(probability, 0.4, 0.4), probability >= 0.4)
    with pytest.raises(ValueError, match="low <= high"):
        hysteresis(probability, 0.4, 0.3)


def test_it_joins_in_three_dimensions() -> None:
    volume = np.zeros((2, 3, 3))
    volume[0, 0, 0], volume[1, 1, 1] = 0.9, 0.5
    assert hysteresis(volume, 0.4, 0.8).sum() == 2


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("min_size", [0, 4])
def test_counts_are_those_of_every_pair_by_itself(seed: int, min_size: int) -> None:
    probability, mask, valid = draw(seed)
    inside = None if seed % 2 else valid
    lows, highs = np.array([0.2, 0.45, 0.6]), np.array([0.45, 0.7, 0.9, 0.999])
    table = count_pairs(probability, mask, inside, lows, highs, min_size)
    for row, low in enumerate(lows):
        for column, high in enumerate(highs):
            called = hysteresis(probability, low, max(low, high), inside)
            counts = confusion(called, mask, np.ones_like(mask) if inside is None else inside)
            betti = betti_errors(called, mask, inside, min_size=min_size)
            errors = [value for name, value in betti.items() if "_error_" in name]
            expected = [counts.true_positive, counts.true_positive + counts.false_positive, *errors]
            assert table[row, column].tolist() == expected


def test_the_pair_with_the_fewest_errors_of_those_with_a_good_dice_is_chosen() -> None:
    lows, highs = np.array([0.3, 0.5]), np.array([0.3, 0.5, 0.8])
    # Dice with 100 true pixels: 2 hit / (called + 100).
    table = np.zeros((2, 3, 4))
    table[0, 0] = 80, 100, 9, 9  # 0.8
    table[0, 1] = 79.9, 100, 3, 4  # 0.799: within the slack
    table[0, 2] = 79, 100, 0, 0  # 0.79: fewest errors, but not good enough
    table[1, 0] = 100, 100, 0, 0  # no pair: high below low
    table[1, 1] = 79.85, 100, 3, 4  # as few, with less Dice
    table[1, 2] = 80, 100, 8, 0
    assert SLACK == 0.002
    assert choose_pair(table, 100, lows, highs) == (0.3, 0.5)
    with pytest.raises(DataError, match="show no structure"):
        choose_pair(table, 0, lows, highs)


def test_thresholds_are_steps_of_the_logit_and_hold_the_centre() -> None:
    lows, highs = thresholds_around(0.8)
    assert np.abs(lows - 0.8).min() < 1e-6  # float32
    np.testing.assert_allclose(np.diff(np.log(highs / (1 - highs))), 0.25, atol=1e-3)
    assert set(lows) <= set(highs)
    assert np.isfinite(thresholds_around(1.0)[1]).all()


def test_the_search_over_images_is_that_over_their_sum() -> None:
    search = HysteresisSearch(min_size=3)
    search.centre = 0.6
    lows, highs = thresholds_around(0.6)
    total, truth = np.zeros((len(lows), len(highs), 4)), 0
    for seed in range(3):
        probability, mask, valid = draw(seed)
        search.update(*(torch.from_numpy(array)[None, None] for array in (probability, mask, valid)))
        total += count_pairs(probability, mask, valid, lows, highs, 3)
        truth += (mask & valid).sum()
    assert search.compute() == choose_pair(total, truth, lows, highs)
    low, high = search.compute()
    assert low <= high
