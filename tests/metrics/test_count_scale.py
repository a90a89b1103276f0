import numpy as np
import pytest

from biocnn.errors import DataError
from biocnn.metrics.count_scale import count_factor, scaled_mae


def test_a_common_factor_is_taken_back() -> None:
    true = np.array([74.0, 120.0, 175.0, 317.0])
    assert count_factor(true / 1.02, true) == pytest.approx(1.02)
    assert scaled_mae(true / 1.02, true) == pytest.approx(0, abs=1e-9)


def test_what_chance_explains_is_left_alone() -> None:
    # Errors 3, -2, 2, -1: sum 2, standard deviation sqrt(17 / 3), of the sum 2 sqrt(17 / 3) = 4.8
    true = np.array([100.0, 110.0, 120.0, 130.0])
    found = true + np.array([3, -2, 2, -1])
    assert count_factor(found, true) == 1
    assert scaled_mae(found, true) == 2
    # Three more in each: sum 14
    assert count_factor(found + 3, true) == pytest.approx(460 / 474)


def test_it_is_used_as_often_as_one_standard_error_says() -> None:
    random = np.random.default_rng(0)
    true = np.full(50, 100.0)
    used = [count_factor(true + random.normal(0, 5, 50), true) != 1 for _ in range(2000)]
    # A normal number is beyond its standard deviation in 31.7 % of draws; 2,000 draws have a standard error of 1 %.
    assert np.mean(used) == pytest.approx(0.317, abs=0.04)


@pytest.mark.parametrize(
    ("found", "true"),
    [
        ([10.0, 20.0], [11.0, 22.0]),
        ([10.0, 20.0, 30.0], [13.0, 26.0, 39.0]),
        ([13.0, 26.0, 39.0], [10.0, 20.0, 30.0]),
        ([0.0, 0.0, 0.0], [5.0, 6.0, 7.0]),
        ([5.0, 6.0, 7.0], [0.0, 0.0, 0.0]),
    ],
)
def test_no_factor_from_too_little_or_for_a_network_that_has_not_learned(found: list[float], true: list[float]) -> None:
    assert count_factor(found, true) == 1


def test_nonsense_is_refused() -> None:
    with pytest.raises(DataError, match="finite"):
        count_factor([1.0, np.nan], [1.0, 2.0])
