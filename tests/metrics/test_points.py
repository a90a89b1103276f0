import itertools
import math
import time

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from biocnn.errors import DataError
from biocnn.metrics.points import PointMatch, match_points, point_scores, pooled_point_scores


def best_by_force(prediction, truth, tolerance):
    """The most pairs within the tolerance, and their least total distance, over all assignments."""
    distance = np.hypot(*(prediction[:, None] - truth[None]).transpose(2, 0, 1))
    if len(prediction) > len(truth):
        distance = distance.T
    best = (0, 0.0)
    for columns in itertools.permutations(range(distance.shape[1]), distance.shape[0]):
        ways = distance[np.arange(len(columns)), columns]
        ways = ways[ways <= tolerance]
        best = max(best, (len(ways), -ways.sum()))
    return best[0], -best[1]


@pytest.mark.parametrize("seed", range(12))
def test_most_pairs_then_least_distance(seed):
    rng = np.random.default_rng(seed)
    prediction, truth = rng.uniform(0, 8, (rng.integers(0, 7), 2)), rng.uniform(0, 8, (rng.integers(0, 7), 2))
    for tolerance in (0.5, 2.0, 4.0, 20.0):
        match = match_points(prediction, truth, tolerance)
        number, total = best_by_force(prediction, truth, tolerance)
        assert match.true_positive == number
        assert match.distance.sum() == pytest.approx(total, abs=1e-9)
        assert match.false_positive == len(prediction) - number
        assert match.false_negative == len(truth) - number
        assert len(set(match.truth)) == len(set(match.prediction)) == number
        assert (np.diff(match.prediction) > 0).all()
        ways = np.hypot(*(prediction[match.prediction] - truth[match.truth]).T)
        np.testing.assert_array_equal(match.distance, ways)
        assert (ways <= tolerance).all()


def test_two_predictions_on_one_cell_are_one_false_positive():
    match = match_points([[5, 5], [5, 6]], [[5, 5.4]], 3)
    assert (match.true_positive, match.false_positive, match.false_negative) == (1, 1, 0)
    assert match.prediction.tolist() == [0]
    assert match.scores() == {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3)}
    # A greedy choice of the nearest pair would leave the outer two alone.
    match = match_points([[0, 0], [0, 3]], [[0, 2], [0, 5.5]], 2.5)
    assert match.truth.tolist() == [0, 1]


def test_a_thousand_points_are_exact_and_fast():
    rng = np.random.default_rng(0)
    truth = rng.uniform(0, 512, (1000, 2))
    prediction = np.concatenate([truth[:900] + rng.normal(0, 2, (900, 2)), rng.uniform(0, 512, (100, 2))])
    start = time.perf_counter()
    match = match_points(prediction, truth, 5)
    assert time.perf_counter() - start < 1
    # The dense problem, in which pairs beyond the tolerance are worth nothing.
    distance = np.hypot(*(prediction[:, None] - truth[None]).transpose(2, 0, 1))
    rows, columns = linear_sum_assignment(np.where(distance <= 5, distance - 1e4, 0))
    ways = distance[rows, columns]
    assert match.true_positive == (ways <= 5).sum()
    assert match.distance.sum() == pytest.approx(ways[ways <= 5].sum(), rel=1e-9)
    # All in one group.
    assert match_points(prediction / 20, truth / 20, 5).true_positive == 1000


def test_the_tolerance_is_inclusive_and_may_be_zero():
    assert match_points([[0, 3]], [[4, 0]], 5).true_positive == 1
    assert match_points([[0, 3]], [[4, 0]], 4.999).true_positive == 0
    same = [[1, 1], [2, 2], [2, 2]]
    assert match_points(same, same, 0).true_positive == 3


def test_without_points():
    none = np.zeros((0, 2))
    assert match_points(none, none, 5).scores()["f1"] is not None
    assert all(math.isnan(value) for value in match_points([], none, 5).scores().values())
    only_false = match_points([[1, 1]], none, 5).scores()
    assert (only_false["precision"], only_false["f1"]) == (0, 0)
    assert math.isnan(only_false["recall"])
    missed = match_points(none, [[1, 1]], 5).scores()
    assert (missed["recall"], missed["f1"]) == (0, 0)
    assert math.isnan(missed["precision"])


def test_pooled_scores_are_of_all_points():
    matches = [match_points([[0, 0], [9, 9]], [[0, 0]], 1), match_points([], [[1, 1], [2, 2]], 1)]
    assert all(isinstance(match, PointMatch) for match in matches)
    assert pooled_point_scores(matches) == point_scores(1, 1, 2)
    assert point_scores(1, 1, 2) == {"precision": 0.5, "recall": 1 / 3, "f1": 0.4}
    assert math.isnan(pooled_point_scores([])["f1"])


def test_errors_say_what_came():
    with pytest.raises(DataError, match=r"prediction: expected points of shape \(N, 2\).* received \(1, 3\)"):
        match_points([[1, 2, 3]], [[1, 2]], 1)
    with pytest.raises(DataError, match="truth: expected finite points, received 1 others"):
        match_points([[1, 2]], [[1, math.nan]], 1)
    for tolerance in (-1, math.inf, math.nan):
        with pytest.raises(ValueError, match="tolerance: expected a finite number"):
            match_points([[1, 2]], [[1, 2]], tolerance)
