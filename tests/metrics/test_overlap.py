import math

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from biocnn.errors import DataError
from biocnn.metrics.overlap import Confusion, auroc_inside, check_mask, confusion, overlap_scores, restrict

TRUTH = np.array([[1, 1, 1, 0], [0, 0, 0, 0]], dtype=bool)
FOUND = np.array([[0, 1, 1, 1], [0, 0, 0, 0]], dtype=bool)


def test_counts_and_ratios_by_hand():
    counts = confusion(FOUND, TRUTH)
    assert counts == Confusion(true_positive=2, false_positive=1, false_negative=1, true_negative=4)
    assert counts.ratios() == pytest.approx(
        {"dice": 2 / 3, "iou": 1 / 2, "sensitivity": 2 / 3, "specificity": 4 / 5, "accuracy": 6 / 8}
    )


@pytest.mark.parametrize("shape", [(17, 23), (5, 9, 11)])
def test_ratios_are_those_of_scikit_learn_inside_valid(shape):
    rng = np.random.default_rng(0)
    found, truth, valid = rng.random(shape) < 0.4, rng.random(shape) < 0.3, rng.random(shape) < 0.7
    score = rng.random(shape).round(1)
    a, b = truth[valid], found[valid]
    assert overlap_scores(found, truth, valid) == pytest.approx(
        {
            "dice": sklearn_metrics.f1_score(a, b),
            "iou": sklearn_metrics.jaccard_score(a, b),
            "sensitivity": sklearn_metrics.recall_score(a, b),
            "specificity": sklearn_metrics.recall_score(~a, ~b),
            "accuracy": sklearn_metrics.accuracy_score(a, b),
        }
    )
    assert auroc_inside(score, truth, valid) == pytest.approx(sklearn_metrics.roc_auc_score(a, score[valid]))


def test_what_is_outside_valid_does_not_count():
    valid = np.ones_like(TRUTH)
    valid[0, [0, 3]] = False
    assert overlap_scores(FOUND, TRUTH, valid)["dice"] == 1
    found, truth = restrict(FOUND, TRUTH, valid)
    assert (found == truth).all()
    score = np.where(valid, TRUTH, np.nan)
    assert auroc_inside(score, TRUTH, valid) == 1


def test_undefined_is_nan_and_a_miss_is_zero():
    empty, full = np.zeros_like(TRUTH), np.ones_like(TRUTH)
    nothing = overlap_scores(empty, empty)
    assert {name for name, value in nothing.items() if math.isnan(value)} == {"dice", "iou", "sensitivity"}
    assert (nothing["specificity"], nothing["accuracy"]) == (1, 1)
    for found, truth in ((FOUND, empty), (empty, TRUTH)):
        scores = overlap_scores(found, truth)
        assert (scores["dice"], scores["iou"]) == (0, 0)
    assert math.isnan(overlap_scores(FOUND, empty)["sensitivity"])
    assert math.isnan(overlap_scores(FOUND, full)["specificity"])
    assert math.isnan(auroc_inside(np.zeros(TRUTH.shape), empty))


def test_counts_add_up_to_pooled_numbers():
    empty = np.zeros_like(TRUTH)
    pooled = confusion(FOUND, TRUTH) + confusion(empty, TRUTH)
    assert pooled.dice == confusion(np.stack([FOUND, empty]), np.stack([TRUTH, TRUTH])).dice == 4 / 9


def test_errors_say_what_came():
    with pytest.raises(DataError, match=r"prediction: expected shape \(2, 4\) as the others, received \(4, 2\)"):
        confusion(FOUND.T, TRUTH)
    with pytest.raises(DataError, match=r"received \[0, 255\]; .* decode grey values"):
        confusion(FOUND, TRUTH.astype(np.uint8) * 255)
    with pytest.raises(DataError, match="threshold probabilities first"):
        confusion(FOUND * 0.7, TRUTH)
    with pytest.raises(DataError, match="received none of 8"):
        confusion(FOUND, TRUTH, np.zeros_like(TRUTH))
    for shape in ((4,), (0, 3), (1, 2, 3, 4)):
        with pytest.raises(DataError, match="expected a mask of one image"):
            check_mask("mask", np.zeros(shape, dtype=bool))
    with pytest.raises(DataError, match="nan"):
        auroc_inside(np.full(TRUTH.shape, np.nan), TRUTH)
