import numpy as np
import pytest

from biocnn.errors import DataError
from biocnn.metrics.binary import auroc, average_precision, rank_scores
from biocnn.metrics.bootstrap import FEW_GROUPS, cluster_bootstrap


def _mean(values):
    return lambda weight: {"mean": float(weight @ values / weight.sum())}


def test_interval_of_a_mean_agrees_with_the_normal_approximation():
    # 200 groups of 5 equal values: the mean of 200 independent numbers.
    values = np.random.default_rng(0).normal(size=200)
    group = np.repeat(np.arange(200), 5)
    result = cluster_bootstrap(_mean(np.repeat(values, 5)), group, repeats=4000, seed=1)
    error = values.std() / np.sqrt(200)
    # The ends of 4,000 replicates scatter by about 4 % of the standard error.
    assert result.low["mean"] == pytest.approx(values.mean() - 1.96 * error, abs=0.2 * error)
    assert result.high["mean"] == pytest.approx(values.mean() + 1.96 * error, abs=0.2 * error)
    assert (result.groups, result.repeats, result.note, result.dropped) == (200, 4000, "", {"mean": 0})


def test_interval_covers_the_truth_as_often_as_promised():
    rng = np.random.default_rng(2)
    group = np.repeat(np.arange(40), 10)
    covered = 0
    for trial in range(200):
        values = np.repeat(rng.normal(size=40), 10) + rng.normal(size=400)
        result = cluster_bootstrap(_mean(values), group, repeats=300, seed=trial, level=0.9)
        covered += result.low["mean"] <= 0 <= result.high["mean"]
    # 0.9 nominal; 40 groups cost about 0.01 and 200 trials scatter by 0.021.
    assert 0.83 <= covered / 200 <= 0.96


def test_clustered_data_give_wider_intervals_than_a_bootstrap_of_samples():
    rng = np.random.default_rng(3)
    group = np.repeat(np.arange(30), 50)
    values = np.repeat(rng.normal(size=30), 50) + rng.normal(size=1500)
    slides = cluster_bootstrap(_mean(values), group, repeats=500)
    samples = cluster_bootstrap(_mean(values), np.arange(1500), repeats=500)
    width = slides.high["mean"] - slides.low["mean"]
    # Variance of the mean: 1/30 + 1/1500 against 2/1500, so about five times as wide.
    assert 3.5 < width / (samples.high["mean"] - samples.low["mean"]) < 7


def test_a_weight_is_a_row_repeated():
    rng = np.random.default_rng(4)
    label, score = rng.integers(0, 2, 300), np.round(rng.random(300), 2)
    ranking = rank_scores(label, score)
    seen = []

    def statistic(weight):
        seen.append(weight)
        area, precision = ranking.areas(weight)
        return {"auroc": area, "average_precision": precision}

    group = rng.integers(0, 12, 300)
    result = cluster_bootstrap(statistic, group, repeats=20)
    expected = []
    for weight in seen:
        rows = np.repeat(np.arange(300), weight.astype(int))
        expected.append([auroc(label[rows], score[rows]), average_precision(label[rows], score[rows])])
    low, high = np.quantile(expected, [0.025, 0.975], axis=0)
    for column, name in enumerate(("auroc", "average_precision")):
        assert result.low[name] == pytest.approx(low[column], abs=1e-12)
        assert result.high[name] == pytest.approx(high[column], abs=1e-12)


def test_groups_are_drawn_whole_and_as_many_as_there_are():
    group = np.array(["a", "b", "b", "c", "c", "c"])
    seen = []

    def statistic(weight):
        seen.append(weight)
        return {"n": weight.sum()}

    cluster_bootstrap(statistic, group, repeats=50)
    weights = np.array(seen)
    assert weights.dtype == np.float64
    assert (weights[:, 1] == weights[:, 2]).all()
    assert (weights[:, 3:] == weights[:, 3:4]).all()
    assert (weights[:, 0] + weights[:, 1] + weights[:, 3] == 3).all()


def test_the_seed_decides():
    values, group = np.arange(50.0), np.arange(50) % 25
    first = cluster_bootstrap(_mean(values), group, repeats=100, seed=5)
    assert cluster_bootstrap(_mean(values), group, repeats=100, seed=5) == first
    assert cluster_bootstrap(_mean(values), group, repeats=100, seed=6) != first


def test_undefined_replicates_are_dropped_and_counted():
    # One slide of twelve holds the positives: a replicate misses it with probability (11/12)^12 = 0.352.
    label = (np.arange(120) < 10).astype(int)
    score = np.random.default_rng(6).random(120)
    result = cluster_bootstrap(
        lambda weight: {"auroc": auroc(label, score, weight)}, np.arange(120) // 10, repeats=1000
    )
    # Standard deviation of the count: 15.
    assert result.dropped["auroc"] == pytest.approx(352, abs=60)
    assert result.low["auroc"] < auroc(label, score) < result.high["auroc"]


def test_all_replicates_undefined_give_nan():
    result = cluster_bootstrap(lambda weight: {"auroc": float("nan")}, np.arange(20), repeats=10)
    assert result.dropped == {"auroc": 10}
    assert np.isnan([result.low["auroc"], result.high["auroc"]]).all()


def test_one_group_has_no_interval_and_says_so():
    result = cluster_bootstrap(_mean(np.arange(5.0)), ["s"] * 5, repeats=100)
    assert np.isnan([result.low["mean"], result.high["mean"]]).all()
    assert "need at least 2 groups" in result.note


def test_few_groups_are_flagged():
    values = np.arange(30.0)
    few = cluster_bootstrap(_mean(values), np.arange(30) % (FEW_GROUPS - 1), repeats=10)
    assert few.note == "9 groups: intervals from fewer than 10 groups are too narrow"
    assert np.isfinite(few.low["mean"])
    assert cluster_bootstrap(_mean(values), np.arange(30) % FEW_GROUPS, repeats=10).note == ""


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="repeats: expected at least 1, received 0"):
        cluster_bootstrap(_mean(np.ones(2)), [0, 1], repeats=0)
    with pytest.raises(ValueError, match=r"level: .* such as 0\.95, received 95"):
        cluster_bootstrap(_mean(np.ones(2)), [0, 1], level=95)
    with pytest.raises(DataError, match=r"group: expected a non-empty array of shape \(N,\), received shape \(0,\)"):
        cluster_bootstrap(_mean(np.ones(2)), [])
