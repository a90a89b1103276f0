import numpy as np
import pytest
from sklearn import metrics as sk

from biocnn.errors import DataError
from biocnn.metrics.binary import (
    accuracy,
    auroc,
    average_precision,
    brier,
    negative_log_likelihood,
    rank_scores,
    roc_curve,
    sensitivity,
    specificity,
)

# Both sides sum the same float64 numbers, in another order.
EXACT = 1e-12


def _case(seed: int, size: int, levels: int | None = None):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, size)
    label[:2] = 0, 1
    score = np.clip(0.5 + 0.2 * (2 * label - 1) + 0.3 * rng.normal(size=size), 0, 1)
    if levels is not None:
        score = np.round(score * levels) / levels
    return label, score


def _pair_counting(label, score, weight):
    wins = total = 0.0
    for i in np.flatnonzero(label == 1):
        for j in np.flatnonzero(label == 0):
            pair = weight[i] * weight[j]
            total += pair
            wins += pair * (1.0 if score[i] > score[j] else 0.5 if score[i] == score[j] else 0.0)
    return wins / total


@pytest.mark.parametrize("levels", [None, 1, 3, 20])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_auroc_counts_pairs_with_ties_as_half(seed, levels):
    label, score = _case(seed, 60, levels)
    weight = np.random.default_rng(seed + 10).integers(0, 4, 60).astype(float)
    weight[:2] = 1
    assert auroc(label, score) == pytest.approx(_pair_counting(label, score, np.ones(60)), abs=EXACT)
    assert auroc(label, score, weight) == pytest.approx(_pair_counting(label, score, weight), abs=EXACT)


@pytest.mark.parametrize("levels", [None, 2, 50])
@pytest.mark.parametrize("weighted", [False, True])
def test_rank_metrics_agree_with_sklearn(levels, weighted):
    label, score = _case(3, 3000, levels)
    weight = np.random.default_rng(4).random(3000) if weighted else None
    area = sk.roc_auc_score(label, score, sample_weight=weight)
    precision = sk.average_precision_score(label, score, sample_weight=weight)
    assert auroc(label, score, weight) == pytest.approx(area, abs=EXACT)
    assert average_precision(label, score, weight) == pytest.approx(precision, abs=EXACT)


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_threshold_metrics_agree_with_sklearn(threshold, weighted):
    label, score = _case(5, 500, 10)
    weight = np.random.default_rng(6).random(500) if weighted else None
    called = (score >= threshold).astype(int)
    expected = sk.accuracy_score(label, called, sample_weight=weight)
    assert accuracy(label, score, threshold, weight) == pytest.approx(expected, abs=EXACT)
    for function, positive in ((sensitivity, 1), (specificity, 0)):
        expected = sk.recall_score(label, called, pos_label=positive, sample_weight=weight)
        assert function(label, score, threshold, weight) == pytest.approx(expected, abs=EXACT)


def test_a_probability_on_the_threshold_is_positive():
    assert sensitivity([0, 1], [0.3, 0.5], 0.5) == 1.0
    assert specificity([0, 1], [0.5, 0.5], 0.5) == 0.0


def test_losses_agree_with_sklearn():
    label, score = _case(7, 400)
    probability = np.clip(score, 0.01, 0.99)
    logit = np.log(probability / (1 - probability))
    weight = np.random.default_rng(8).random(400)
    for weights in (None, weight):
        expected = sk.log_loss(label, probability, sample_weight=weights)
        assert negative_log_likelihood(label, logit, weights) == pytest.approx(expected, rel=1e-10)
        expected = sk.brier_score_loss(label, probability, sample_weight=weights)
        assert brier(label, probability, weights) == pytest.approx(expected, abs=EXACT)


def test_likelihood_is_exact_where_a_probability_would_round():
    # softplus(-40) = log1p(exp(-40)), of which 1 - sigmoid(40) keeps no digit.
    assert negative_log_likelihood([1], [40.0]) == pytest.approx(np.log1p(np.exp(-40.0)), rel=1e-14)
    assert negative_log_likelihood([0], [1e6]) == 1e6
    assert negative_log_likelihood([0, 1], [0.0, 0.0]) == pytest.approx(np.log(2), rel=1e-15)


def test_float16_and_bool_inputs_are_computed_in_float64():
    label, score = _case(9, 300)
    half = score.astype(np.float16)
    assert auroc(label.astype(bool), half) == auroc(label, half.astype(np.float64))
    assert brier(label.astype(bool), half) == brier(label, half.astype(np.float64))


def test_roc_curve_starts_and_ends_in_the_corners_and_has_the_area():
    label, score = _case(10, 500, 30)
    false_rate, true_rate = roc_curve(label, score)
    assert (false_rate[0], true_rate[0], false_rate[-1], true_rate[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(true_rate, false_rate) == pytest.approx(auroc(label, score), abs=EXACT)
    assert false_rate.size == np.unique(score).size + 1


@pytest.mark.parametrize("present", [0, 1])
def test_one_class_leaves_what_is_undefined_undefined(present):
    label, score = np.full(4, present), [0.1, 0.2, 0.6, 0.9]
    assert np.isnan(auroc(label, score))
    assert np.isnan(specificity(label, score) if present else sensitivity(label, score))
    assert accuracy(label, score) == 0.5
    assert average_precision(label, score) == 1.0 if present else np.isnan(average_precision(label, score))


def test_zero_weight_is_absence():
    label, score = _case(11, 200, 15)
    weight = (np.arange(200) % 3 > 0).astype(float)
    kept = weight > 0
    assert auroc(label, score, weight) == pytest.approx(auroc(label[kept], score[kept]), abs=EXACT)
    assert average_precision(label, score, weight) == pytest.approx(
        average_precision(label[kept], score[kept]), abs=EXACT
    )
    for function in (auroc, average_precision, accuracy, brier):
        assert np.isnan(function(label, score, weight=np.zeros(200)))


def test_ranking_needs_one_sort_for_any_weight():
    label, score = _case(12, 200, 15)
    ranking = rank_scores(label, score)
    assert ranking.last[-1] == 199
    assert (np.diff(score[ranking.order]) <= 0).all()
    assert (np.diff(score[ranking.order][ranking.last]) < 0).all()


@pytest.mark.parametrize(
    ("label", "score", "message"),
    [
        ([], [], r"label: expected a non-empty array of shape \(N,\), received shape \(0,\)"),
        ([[0, 1]], [0.1, 0.2], r"label: .* received shape \(1, 2\)"),
        ([0, 2], [0.1, 0.2], r"label: expected 0 .* received also \[2\.0\]"),
        ([0, np.nan], [0.1, 0.2], r"label: expected numbers, received 1 nan of 2"),
        ([0, 1], [0.1], r"probability: expected shape \(2,\) to go with the labels, received \(1,\)"),
        ([0, 1], [0.1, np.nan], r"probability: expected numbers, received 1 nan of 2"),
        ([0, 1], [0.1, 1.5], r"received \[0\.1, 1\.5\]; pass logits through a sigmoid"),
    ],
)
def test_bad_input_is_named(label, score, message):
    with pytest.raises(DataError, match=message):
        accuracy(label, score)


def test_bad_logits_scores_and_weights_are_named():
    with pytest.raises(DataError, match="logit: expected finite values, received 1 of 2 infinite"):
        negative_log_likelihood([0, 1], [0.0, np.inf])
    with pytest.raises(DataError, match="score: expected numbers, received 1 nan"):
        auroc([0, 1], [0.0, np.nan])
    with pytest.raises(DataError, match=r"weight: expected finite values of 0 or more, received -1\.0 to 1\.0"):
        auroc([0, 1], [0.0, 1.0], [1, -1])
    with pytest.raises(DataError, match=r"weight: expected shape \(2,\)"):
        auroc([0, 1], [0.0, 1.0], [1])
