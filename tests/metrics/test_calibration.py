import json

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import expit
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_curve as sklearn_roc_curve

from biocnn.errors import DataError
from biocnn.metrics.binary import negative_log_likelihood
from biocnn.metrics.calibration import (
    TEMPERATURE_RANGE,
    Calibration,
    calibrate,
    choose_threshold,
    expected_calibration_error,
    fit_temperature,
    reliability_curve,
)


def _overconfident(seed: int, size: int, temperature: float):
    """Labels drawn with probability sigmoid(z), and logits z * temperature: `temperature` is the answer."""
    rng = np.random.default_rng(seed)
    logit = rng.normal(size=size) * 2
    label = (rng.random(size) < expit(logit)).astype(int)
    return label, logit * temperature


def _slow_error(label, probability, bins, kind):
    """The definition, one sample at a time."""
    members = [[] for _ in range(bins)]
    for truth, p in zip(label, probability, strict=True):
        called = int(p >= 0.5)
        confidence, outcome = (p, truth) if kind == "positive" else (max(p, 1 - p), int(called == truth))
        members[min(int(np.floor(confidence * bins)), bins - 1)].append((confidence, outcome))
    total = 0.0
    for bin_members in members:
        if bin_members:
            confidence, outcome = np.mean(bin_members, axis=0)
            total += len(bin_members) / len(label) * abs(confidence - outcome)
    return total


@pytest.mark.parametrize("kind", ["top-label", "positive"])
@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_is_the_definition(kind, bins):
    label, logit = _overconfident(0, 1500, 2.0)
    probability = expit(logit)
    expected = _slow_error(label, probability, bins, kind)
    assert expected_calibration_error(label, probability, bins, kind) == pytest.approx(expected, abs=1e-12)


def test_calibration_error_by_hand_counts_confidence_one_in_the_last_bin():
    # Two bins. [0, 0.5): 0.2 (negative), 0.4 (positive): mean 0.3, fraction 0.5, gap 0.2.
    # [0.5, 1]: 0.8 (positive), 1.0 (positive), 1.0 (negative): mean 14/15, fraction 2/3, gap 4/15. An extra
    # bin for confidence 1 would see gaps 0.2 and 0.5 there instead.
    label, probability = [0, 1, 1, 1, 0], [0.2, 0.4, 0.8, 1.0, 1.0]
    expected = 2 / 5 * 0.2 + 3 / 5 * (4 / 15)
    assert expected_calibration_error(label, probability, 2, "positive") == pytest.approx(expected, abs=1e-15)
    with_extra_bin = 2 / 5 * 0.2 + 1 / 5 * 0.2 + 2 / 5 * 0.5
    assert abs(expected - with_extra_bin) > 0.05
    curve = reliability_curve(label, probability, 2)
    assert curve.count.tolist() == [2, 3]
    np.testing.assert_allclose(curve.confidence, [0.3, 14 / 15], rtol=1e-15)
    np.testing.assert_allclose(curve.fraction, [0.5, 2 / 3], rtol=1e-15)
    np.testing.assert_array_equal(curve.edge, [0, 0.5, 1])


def test_the_two_kinds_differ():
    # Called class: confidence 0.9 on both and one right, gap 0.4. Positive class: 0.1 and 0.9, all negative.
    assert expected_calibration_error([0, 0], [0.1, 0.9], 10, "top-label") == pytest.approx(0.4, abs=1e-15)
    assert expected_calibration_error([0, 0], [0.1, 0.9], 10, "positive") == pytest.approx(0.5, abs=1e-15)


def test_reliability_curve_agrees_with_sklearn_and_marks_empty_bins():
    label, logit = _overconfident(1, 2000, 1.5)
    probability = expit(logit)
    curve = reliability_curve(label, probability, 15)
    fraction, confidence = calibration_curve(label, probability, n_bins=15)
    np.testing.assert_allclose(curve.fraction, fraction, rtol=1e-12)
    np.testing.assert_allclose(curve.confidence, confidence, rtol=1e-12)
    assert curve.count.sum() == 2000
    empty = reliability_curve([1, 1], [0.9, 1.0], 4)
    assert empty.count.tolist() == [0, 0, 0, 2]
    assert np.isnan(empty.fraction[:3]).all()


def test_calibration_error_agrees_with_netcal():
    netcal = pytest.importorskip("netcal.metrics")
    label, logit = _overconfident(2, 1000, 2.5)
    probability = expit(logit)
    expected = netcal.ECE(bins=15).measure(probability, label)
    assert expected_calibration_error(label, probability, 15, "positive") == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("true_temperature", [0.4, 1.0, 2.5])
def test_temperature_is_the_slope_of_a_logistic_regression(true_temperature):
    label, logit = _overconfident(3, 4000, true_temperature)
    fitted = fit_temperature(logit, label)
    regression = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10).fit(logit[:, None], label)
    assert fitted == pytest.approx(1 / regression.coef_.item(), rel=1e-5)
    found = minimize_scalar(lambda t: negative_log_likelihood(label, logit / t), bounds=(0.05, 20), method="bounded")
    assert negative_log_likelihood(label, logit / fitted) <= found.fun + 1e-12
    # The standard error of 1 / T from 4,000 samples is about 3 %.
    assert fitted == pytest.approx(true_temperature, rel=0.12)


def test_temperature_is_bounded():
    low, high = TEMPERATURE_RANGE
    assert (low, high) == (0.05, 20.0)
    assert fit_temperature([-3.0, -0.1, 0.2, 5.0], [0, 0, 1, 1]) == low
    assert fit_temperature([-300.0, 300.0], [0, 1]) == low
    assert fit_temperature([3.0, 5.0], [1, 1]) == low
    assert fit_temperature([-3.0, 5.0], [1, 0]) == high
    assert fit_temperature([0.0, 0.0], [1, 0]) == 1.0


def _balanced(label, probability, threshold):
    called = probability >= threshold
    return (called[label == 1].mean() + (~called[label == 0]).mean()) / 2


@pytest.mark.parametrize("seed", range(5))
def test_threshold_is_the_best_of_all_and_touches_no_sample(seed):
    label, logit = _overconfident(seed, 200, 1.0)
    probability = np.round(expit(logit - 1), 2)
    threshold = choose_threshold(label, probability)
    brute = max(_balanced(label, probability, t) for t in np.linspace(0, 1.001, 2003))
    assert _balanced(label, probability, threshold) == pytest.approx(brute, abs=1e-12)
    false_rate, true_rate, _ = sklearn_roc_curve(label, probability)
    assert 2 * brute - 1 == pytest.approx((true_rate - false_rate).max(), abs=1e-12)
    assert np.abs(probability - threshold).min() > 0.004


def test_threshold_by_hand():
    assert choose_threshold([0, 0, 1, 1], [0.1, 0.2, 0.4, 0.9]) == pytest.approx(0.3, abs=1e-15)
    # Cuts at 0.2 and at 0.6 both have J = 1/2; the second lies nearer to one half.
    assert choose_threshold([0, 1, 0, 1], [0.1, 0.3, 0.5, 0.7]) == pytest.approx(0.6, abs=1e-15)
    # Neighbouring floats have no midpoint: the upper one separates them.
    upper = np.nextafter(0.7, 1)
    assert choose_threshold([0, 1], [0.7, upper]) == upper


@pytest.mark.parametrize(
    ("label", "probability"),
    [([1, 1], [0.2, 0.9]), ([0, 0], [0.2, 0.9]), ([0, 1], [0.3, 0.3]), ([1, 0], [0.2, 0.9]), ([1], [0.8])],
)
def test_threshold_without_information_is_one_half(label, probability):
    assert choose_threshold(label, probability) == 0.5


def test_calibrate_keeps_a_temperature_that_helps():
    label, logit = _overconfident(5, 3000, 2.0)
    group = np.arange(3000) % 30
    result = calibrate(logit, label, group)
    assert result.kept
    assert result.temperature == fit_temperature(logit, label)
    assert result.ece_after < 0.5 * result.ece_before
    assert result.ece_before == expected_calibration_error(label, expit(logit))
    assert result.threshold == choose_threshold(label, expit(logit / result.temperature))


def test_calibrate_leaves_a_calibrated_classifier_alone():
    # The fitted temperature is 1 up to noise. Here noise makes the calibration error fall in its fifth digit while
    # the likelihood gets worse, and the likelihood has its say.
    label, logit = _overconfident(6, 2000, 1.0)
    result = calibrate(logit, label, np.arange(2000) % 20)
    assert not result.kept
    assert result.temperature == 1.0
    assert result.ece_after < result.ece_before
    np.testing.assert_array_equal(result.apply(logit), expit(logit))


def test_cross_fitting_rejects_what_fits_one_slide_only():
    # A temperature helps within each slide, but the two want opposite ones: what is learnt on one makes the
    # other worse.
    first, second = _overconfident(7, 1000, 3.0), _overconfident(8, 1000, 1 / 3)
    label, logit = np.concatenate([first[0], second[0]]), np.concatenate([first[1], second[1]])
    group = np.repeat(["a", "b"], 1000)
    result = calibrate(logit, label, group)
    assert not result.kept
    assert result.ece_after > result.ece_before
    held_out = np.concatenate(
        [first[1] / fit_temperature(second[1], second[0]), second[1] / fit_temperature(first[1], first[0])]
    )
    assert result.ece_after == pytest.approx(expected_calibration_error(label, expit(held_out)), abs=1e-12)


def test_separable_validation_data_do_not_make_every_probability_zero_or_one():
    rng = np.random.default_rng(9)
    label = np.arange(200) % 2
    logit = (2 * label - 1) * (0.5 + rng.random(200))
    result = calibrate(logit, label, np.arange(200) % 20)
    assert result.ece_after < result.ece_before
    assert not result.kept
    assert result.temperature == 1.0


def test_calibrate_is_deterministic_and_blind_to_the_order_of_samples():
    label, logit = _overconfident(10, 900, 2.0)
    group = np.array([f"slide_{k % 9}" for k in range(900)])
    first = calibrate(logit, label, group, seed=3)
    assert calibrate(logit, label, group, seed=3) == first
    order = np.random.default_rng(0).permutation(900)
    shuffled = calibrate(logit[order], label[order], group[order], seed=3)
    assert shuffled.ece_after == pytest.approx(first.ece_after, abs=1e-9)
    assert calibrate(logit, label, group, seed=4).ece_after != first.ece_after


def test_calibrate_falls_back_for_few_groups():
    label, logit = _overconfident(11, 400, 2.0)
    by_sample = calibrate(logit, label)
    assert calibrate(logit, label, ["only"] * 400) == by_sample
    assert by_sample.ece_after is not None
    assert calibrate(logit, label, np.arange(400) % 3).ece_after is not None
    assert calibrate([0.3, 2.0], [0, 1]).ece_after is not None


@pytest.mark.parametrize(("logit", "label"), [([0.3, 2.0, -1.0], [1, 1, 1]), ([0.3], [0])])
def test_calibrate_with_one_class_changes_nothing(logit, label):
    result = calibrate(logit, label)
    assert (result.temperature, result.threshold, result.kept, result.ece_after) == (1.0, 0.5, False, None)
    assert result.ece_before is not None


def test_calibration_is_plain_data():
    label, logit = _overconfident(12, 300, 2.0)
    result = calibrate(logit.astype(np.float32), label)
    values = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert Calibration.from_dict(values) == result
    assert {type(value) for value in result.to_dict().values()} <= {float, bool}
    assert Calibration.from_dict(Calibration().to_dict()) == Calibration()
    assert Calibration(temperature=2.0).apply([[0.0, 2.0]]).shape == (1, 2)
    assert Calibration(temperature=2.0).apply(2.0) == pytest.approx(1 / (1 + np.exp(-1)), rel=1e-15)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match='kind: expected "top-label" or "positive", received \'max\''):
        expected_calibration_error([0, 1], [0.1, 0.2], kind="max")
    with pytest.raises(ValueError, match="bins: expected at least 1, received 0"):
        reliability_curve([0, 1], [0.1, 0.2], bins=0)
    with pytest.raises(ValueError, match="folds: expected at least 2, received 1"):
        calibrate([0.1, 0.2], [0, 1], folds=1)
    with pytest.raises(DataError, match=r"group: expected shape \(2,\) to go with the labels, received \(3,\)"):
        calibrate([0.1, 0.2], [0, 1], ["a", "b", "c"])
    with pytest.raises(ValueError, match="temperature: expected a finite number above 0, received 0"):
        Calibration(temperature=0.0)
    with pytest.raises(ValueError, match=r"threshold: expected a probability in \[0, 1\], received 2"):
        Calibration(threshold=2.0)
    with pytest.raises(DataError, match=r"expected the keys .* received \['temperature'\]"):
        Calibration.from_dict({"temperature": 1.0})
