import json
import logging

import numpy as np
import pytest
from scipy.special import expit
from sklearn import metrics as sk

from biocnn.errors import DataError
from biocnn.metrics.binary import auroc
from biocnn.metrics.bootstrap import cluster_bootstrap
from biocnn.metrics.calibration import Calibration, expected_calibration_error
from biocnn.metrics.evaluation import evaluate_binary

CALIBRATION = Calibration(temperature=1.7, threshold=0.3, kept=True)
INTERVALS = {
    "auroc",
    "average_precision",
    "nll",
    "brier",
    *(f"{name}{at}" for name in ("accuracy", "balanced_accuracy", "sensitivity", "specificity")
      for at in ("", "_at_threshold")),
}  # fmt: skip
POINTS = INTERVALS | {
    "ece",
    "ece_positive",
    "nll_uncalibrated",
    "ece_uncalibrated",
    "ece_positive_uncalibrated",
    "prevalence",
    "accuracy_majority",
}


def _case(size=600, groups=20, seed=0):
    rng = np.random.default_rng(seed)
    group = rng.integers(0, groups, size)
    label = (rng.random(size) < 0.4).astype(int)
    logit = 2 * (2 * label - 1) + 3 * rng.normal(size=size) + rng.normal(size=groups)[group]
    return logit.astype(np.float32), label, np.array([f"slide_{k:03d}" for k in group])


def _by_sklearn(logit, label):
    logit = logit.astype(np.float64)
    probability, raw = expit(logit / 1.7), expit(logit)
    expected = {
        "auroc": sk.roc_auc_score(label, logit),
        "average_precision": sk.average_precision_score(label, logit),
        "nll": sk.log_loss(label, probability),
        "nll_uncalibrated": sk.log_loss(label, raw),
        "brier": sk.brier_score_loss(label, probability),
        "ece": expected_calibration_error(label, probability),
        "ece_positive": expected_calibration_error(label, probability, kind="positive"),
        "ece_uncalibrated": expected_calibration_error(label, raw),
        "ece_positive_uncalibrated": expected_calibration_error(label, raw, kind="positive"),
        "prevalence": label.mean(),
        "accuracy_majority": max(label.mean(), 1 - label.mean()),
    }
    for at, threshold in (("", 0.5), ("_at_threshold", 0.3)):
        called = probability >= threshold
        expected[f"accuracy{at}"] = sk.accuracy_score(label, called)
        expected[f"balanced_accuracy{at}"] = sk.balanced_accuracy_score(label, called)
        expected[f"sensitivity{at}"] = sk.recall_score(label, called)
        expected[f"specificity{at}"] = sk.recall_score(label, called, pos_label=0)
    return expected


def test_every_point_value_agrees_with_an_oracle():
    logit, label, group = _case()
    result = evaluate_binary(logit, label, group, CALIBRATION, repeats=20)
    expected = _by_sklearn(logit, label)
    assert set(expected) == POINTS
    for name, value in expected.items():
        assert result[name] == pytest.approx(value, rel=1e-9), name
    assert (result["n"], result["n_groups"]) == (600, 20)
    assert (result["temperature"], result["threshold"]) == (1.7, 0.3)


def test_the_keys_are_these():
    logit, label, group = _case()
    result = evaluate_binary(logit, label, group, CALIBRATION, repeats=20, content_hash=np.arange(600))
    ends = {f"{name}_{end}" for name in INTERVALS for end in ("low", "high")}
    other = {"n", "n_groups", "n_unique", "temperature", "threshold", "bootstrap_repeats", "bootstrap_dropped"}
    unique = {f"{name}_unique" for name in POINTS}
    unique |= {f"{name}_unique_{end}" for name in INTERVALS for end in ("low", "high")}
    assert set(result) == POINTS | ends | other | unique
    assert result["auroc_unique_low"] == result["auroc_low"]  # here every sample is unique
    assert result["bootstrap_repeats"] == 20
    for name in INTERVALS:
        assert result[f"{name}_low"] <= result[name] <= result[f"{name}_high"], name


def test_no_repeats_leave_the_intervals_out():
    logit, label, group = _case()
    result = evaluate_binary(logit, label, group, CALIBRATION, repeats=0)
    assert set(result) == POINTS | {"n", "n_groups", "temperature", "threshold"}
    assert result["n_groups"] == 20
    with pytest.raises(ValueError, match="repeats: expected at least 1, received -1"):
        evaluate_binary(logit, label, group, CALIBRATION, repeats=-1)


def test_intervals_are_those_of_resampled_groups():
    logit, label, group = _case()
    result = evaluate_binary(logit, label, group, CALIBRATION, repeats=100, seed=4)
    called = expit(logit.astype(np.float64) / 1.7) >= 0.3
    slow = cluster_bootstrap(
        lambda weight: {
            "auroc": auroc(label, logit, weight),
            "accuracy_at_threshold": np.average(called == label, weights=weight),
            "sensitivity_at_threshold": np.average(called[label == 1], weights=weight[label == 1]),
        },
        group,
        repeats=100,
        seed=4,
    )
    for name in slow.low:
        assert result[f"{name}_low"] == pytest.approx(slow.low[name], abs=1e-12)
        assert result[f"{name}_high"] == pytest.approx(slow.high[name], abs=1e-12)


def test_unique_values_count_the_first_of_each_content():
    logit, label, group = _case()
    rng = np.random.default_rng(1)
    content = rng.integers(0, 400, 600)
    seen, first = set(), []
    for row, value in enumerate(content):
        if value not in seen:
            seen.add(value)
            first.append(row)
    names = np.array([f"{value:032x}" for value in content])
    result = evaluate_binary(logit, label, group, CALIBRATION, content_hash=names, repeats=5)
    assert result["n_unique"] == len(first)
    for name, value in _by_sklearn(logit[first], label[first]).items():
        assert result[f"{name}_unique"] == pytest.approx(value, rel=1e-9), name


def test_a_temperature_leaves_ranks_alone_even_where_probabilities_saturate():
    logit, label, group = np.array([40.0, 50.0, 60.0, 45.0]), [0, 1, 1, 0], ["a", "b", "a", "b"]
    result = evaluate_binary(logit, label, group, Calibration(temperature=0.05), repeats=5)
    assert result["auroc"] == 1.0
    assert result["nll"] == pytest.approx((40 + 45) / 0.05 / 4, rel=1e-12)


def test_undefined_numbers_are_null_in_valid_json(caplog):
    with caplog.at_level(logging.WARNING):
        result = evaluate_binary([1.0, -1.0, 2.0], [1, 1, 1], ["a"] * 3, Calibration(), repeats=50)
    assert "intervals need at least 2 groups" in caplog.text
    text = json.dumps(result, allow_nan=False)
    back = json.loads(text)
    assert back == result
    for name in ("auroc", "specificity", "balanced_accuracy", "accuracy_low", "accuracy_high", "nll_low"):
        assert back[name] is None
    assert back["accuracy"] == pytest.approx(2 / 3)
    assert back["accuracy_majority"] == 1.0


def test_values_are_plain_and_dropped_replicates_are_told():
    logit, label, group = _case(60, 12)
    label[:] = group == group[0]
    result = evaluate_binary(logit, label, group, CALIBRATION, repeats=200)
    assert {type(value) for value in result.values()} <= {float, int}
    # The only slide with positives is missed with probability (11/12)^12 = 0.352; standard deviation 7 of 200.
    assert result["bootstrap_dropped"] == pytest.approx(70, abs=28)


def test_bad_companions_are_named():
    with pytest.raises(DataError, match=r"group: expected shape \(2,\) to go with the labels, received \(1,\)"):
        evaluate_binary([0.1, 0.2], [0, 1], ["a"], CALIBRATION)
    with pytest.raises(DataError, match=r"content_hash: expected shape \(2,\)"):
        evaluate_binary([0.1, 0.2], [0, 1], ["a", "b"], CALIBRATION, content_hash=["x"], repeats=2)
    with pytest.raises(DataError, match=r"logit: expected a non-empty array of shape \(N,\), received shape \(1, 2\)"):
        evaluate_binary([[0.1, 0.2]], [0, 1], ["a", "b"], CALIBRATION)
