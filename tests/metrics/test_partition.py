import math

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from skimage import metrics as skimage_metrics

from biocnn.errors import DataError
from biocnn.metrics.partition import (
    adapted_rand,
    best_v_scores,
    contingency,
    label_cells,
    membrane_names,
    membrane_scores,
    thin_borders,
    v_scores,
    variation_of_information,
)
from tests.conftest import SHARED_DATA

ISBI = SHARED_DATA / "isbi2012" / "train" / "label"


def draw_cells(seed, shape=(64, 64), n=12):
    """Membrane, two pixels wide or so, between cells around random points."""
    rng = np.random.default_rng(seed)
    points = rng.random((n, len(shape))) * shape
    distance = np.linalg.norm(np.stack(np.indices(shape), -1)[..., None, :] - points, axis=-1)
    nearest, second = np.sort(distance, axis=-1)[..., :2].transpose(-1, *range(len(shape)))
    return second - nearest < 2


def random_labels(seed, shape=(20, 30)):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 6, shape), rng.integers(0, 5, shape)


def mean_over_pairs(prediction, truth, alone):
    """V-Rand from all pairs (also of a pixel with itself); `alone` gives each pixel of label 0 its own segment."""
    inside = truth.ravel() != 0
    a, b = prediction.ravel()[inside].copy(), truth.ravel()[inside]
    if alone:
        a[a == 0] = 1000 + np.arange((a == 0).sum())
    same_a, same_b = a[:, None] == a[None], b[:, None] == b[None]
    return 2 * (same_a & same_b).sum() / (same_a.sum() + same_b.sum())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", [(20, 30), (5, 8, 9)])
def test_rand_and_information_are_those_of_scikit_image(seed, shape):
    prediction, truth = random_labels(seed, shape)
    # scikit-image 0.26 returns recall where its documentation says precision; which is which is tested by hand.
    error, *sides = skimage_metrics.adapted_rand_error(truth, prediction)
    rand = adapted_rand(prediction, truth)
    assert (rand["error"], rand["f_score"]) == pytest.approx((error, 1 - error))
    assert sorted([rand["precision"], rand["recall"]]) == pytest.approx(sorted(sides))
    split, merge = skimage_metrics.variation_of_information(truth, prediction, ignore_labels=(0,))
    result = variation_of_information(prediction, truth)
    assert result == pytest.approx({"split": split, "merge": merge, "total": split + merge})


@pytest.mark.parametrize("seed", range(3))
def test_v_scores_from_all_pairs_of_pixels(seed):
    prediction, truth = random_labels(seed)
    scores = v_scores(prediction, truth)
    assert scores["v_rand"] == pytest.approx(mean_over_pairs(prediction, truth, alone=True))
    # Each pixel between predicted segments is a segment of its own, so scikit-image can be asked as well.
    alone = prediction.copy()
    alone[alone == 0] = 1000 + np.arange((alone == 0).sum())
    split, merge = skimage_metrics.variation_of_information(truth, alone, ignore_labels=(0,))
    share = np.bincount(truth[truth != 0])[1:] / (truth != 0).sum()
    entropy = -(share * np.log2(share)).sum()
    information = entropy - merge
    assert scores["v_info"] == pytest.approx(2 * information / (information + split + entropy))
    # Up to pairs of a pixel with itself, of which there are n among n^2, V-Rand is the adapted Rand score.
    n = np.count_nonzero(truth)
    assert 1 - skimage_metrics.adapted_rand_error(truth, alone)[0] == pytest.approx(scores["v_rand"], abs=10 / n)


def test_a_merge_and_a_split_by_hand():
    truth, merged = np.array([[1, 1, 2, 2]]), np.array([[1, 1, 1, 1]])
    for prediction, true, low in ((merged, truth, "precision"), (truth, merged, "recall")):
        rand = adapted_rand(prediction, true)
        assert rand[low] == pytest.approx(4 / 12)
        assert rand["f_score"] == pytest.approx(1 / 2)
        assert v_scores(prediction, true) == pytest.approx({"v_rand": 2 * 8 / (16 + 8), "v_info": 0})
    assert variation_of_information(merged, truth) == {"split": 0, "merge": 1, "total": 1}
    assert variation_of_information(truth, merged) == {"split": 1, "merge": 0, "total": 1}
    # Two pixels between segments: 1 and 1 of 4 instead of one segment of 2.
    assert v_scores(np.array([[1, 1, 0, 0]]), truth)["v_rand"] == pytest.approx(2 * 6 / (6 + 8))
    both, predicted, true_counts = contingency(np.array([[1, 1, 0, 0]]), truth, singletons=True)
    assert (sorted(both), sorted(predicted), sorted(true_counts)) == ([1, 1, 2], [1, 1, 2], [2, 2])


def test_equal_single_and_absent_cells():
    single, nothing = np.ones((4, 4), dtype=int), np.zeros((4, 4), dtype=int)
    assert v_scores(single, single) == {"v_rand": 1, "v_info": 1}
    assert adapted_rand(single, single)["error"] == 0
    pixels = np.arange(1, 17).reshape(4, 4)
    assert adapted_rand(pixels, pixels)["error"] == 0
    assert v_scores(single, pixels)["v_info"] == 0
    for function in (v_scores, adapted_rand, variation_of_information):
        assert all(math.isnan(value) for value in function(single, nothing).values())
    labels = label_cells(draw_cells(0))
    assert v_scores(labels, labels) == pytest.approx({"v_rand": 1, "v_info": 1})
    assert variation_of_information(labels, labels)["total"] == 0


def test_cells_that_touch_at_corners_are_apart():
    diagonal = np.eye(6, dtype=bool)
    assert label_cells(diagonal).max() == thin_borders(diagonal).max() == 2
    assert label_cells(np.stack([diagonal] * 3)).max() == 2


def test_thinning_leaves_one_pixel_and_keeps_cells():
    for membrane in (draw_cells(1), ndimage.binary_dilation(draw_cells(1), iterations=1)):
        cells, thinned = label_cells(membrane), thin_borders(membrane)
        assert thinned.max() == cells.max()
        assert (thinned[cells > 0] == cells[cells > 0]).all()
        lines = thinned == 0
        # One pixel wide: every pixel left touches two cells.
        neighbours = [np.roll(np.pad(thinned, 1), shift, axis)[1:-1, 1:-1] for axis in (0, 1) for shift in (1, -1)]
        touched = [len({cell for cell in around if cell}) for around in np.stack(neighbours)[:, lines].T.tolist()]
        assert np.mean(np.array(touched) >= 2) > 0.95
        assert lines.sum() < membrane.sum()
    # A membrane that separates nothing vanishes; an image that is all membrane is one region.
    dangling = np.zeros((9, 9), dtype=bool)
    dangling[4, :5] = True
    assert set(thin_borders(dangling).ravel().tolist()) == {1}
    assert set(thin_borders(np.ones((4, 4), dtype=bool)).ravel().tolist()) == {1}


def test_thinned_scores_forgive_thickness_but_not_a_gap():
    truth = draw_cells(2)
    thick = ndimage.binary_dilation(truth, iterations=2)
    gap = truth.copy()
    gap[28:36, :] = False
    for found, v_rand in ((truth, 1.0), (thick, 0.98)):
        scores = membrane_scores(found, truth)
        assert tuple(scores) == membrane_names(2)
        assert v_rand <= scores["v_rand_thinned_cell4"] <= 1
    assert membrane_scores(thick, truth)["adapted_rand_error_cell4"] > 0.05
    assert membrane_scores(gap, truth)["v_rand_thinned_cell4"] < 0.9
    assert membrane_scores(truth, truth)["v_info_thinned_cell4"] == pytest.approx(1)


def test_three_dimensions_have_their_own_names():
    membrane = draw_cells(3, (12, 14, 16), n=5)
    scores = membrane_scores(membrane, membrane)
    assert set(scores) == set(membrane_names(3)) == {name.replace("cell4", "cell6") for name in membrane_names(2)}
    assert scores["v_rand_thinned_cell6"] == pytest.approx(1)


def test_what_is_outside_valid_does_not_count_nor_connect():
    truth = draw_cells(4)
    valid = np.zeros_like(truth)
    valid[8:50, 5:60] = True
    rng = np.random.default_rng(0)
    found = np.where(valid, truth, rng.random(truth.shape) < 0.5)
    assert membrane_scores(found, truth, valid) == pytest.approx(
        dict(zip(membrane_names(2), (0, 0, 0, 1, 1), strict=True)), abs=1e-12
    )
    strip = np.zeros((5, 9), dtype=bool)
    middle = np.ones((5, 9), dtype=bool)
    middle[:, 4] = False
    assert label_cells(strip, middle).max() == thin_borders(strip, middle).max() == 2
    # A valid part that is all membrane becomes a region of its own.
    strip[:, 5:] = True
    regions = thin_borders(strip, middle)
    assert [np.ptp(regions[:, part]) for part in (slice(0, 4), slice(5, 9))] == [0, 0]
    assert len(set(regions[0].tolist())) == 3


def test_the_best_threshold_of_a_stack():
    truths = [draw_cells(seed) for seed in range(3)]
    maps = [np.where(truth, 0.65, 0.15) for truth in truths]
    best = best_v_scores(maps, truths)
    assert best["v_rand_thinned_best"] == best["v_info_thinned_best"] == pytest.approx(1)
    assert best["v_rand_threshold"] == best["v_info_threshold"] == 0.2
    mean = np.mean([v_scores(thin_borders(t), label_cells(truths[0]))["v_rand"] for t in (truths[0], truths[1])])
    mixed = best_v_scores([maps[0], maps[1]], [truths[0], truths[0]], thresholds=[0.5])
    assert mixed["v_rand_thinned_best"] == pytest.approx(mean)
    # An image without any true cell is left out.
    blank = np.ones_like(truths[0])
    assert best_v_scores([*maps, maps[0]], [*truths, blank]) == best
    with pytest.raises(DataError, match="expected an image with at least one cell, received 1 without"):
        best_v_scores([maps[0]], [blank])
    with pytest.raises(ValueError, match="thresholds: expected at least one"):
        best_v_scores(maps, truths, thresholds=[])
    with pytest.raises(ValueError, match="shorter"):
        best_v_scores(maps, truths[:2])


def test_errors_say_what_came():
    labels = np.ones((3, 3), dtype=int)
    with pytest.raises(DataError, match=r"truth: expected integer labels of one image, .* received float64"):
        adapted_rand(labels, labels * 1.0)
    with pytest.raises(DataError, match=r"prediction: expected shape \(3, 3\) as the truth, received \(2, 3\)"):
        v_scores(labels[:2], labels)
    with pytest.raises(DataError, match="valid: expected shape"):
        v_scores(labels, labels, np.ones((2, 3), dtype=bool))
    with pytest.raises(DataError, match="received none of 9"):
        v_scores(labels, labels, np.zeros((3, 3), dtype=bool))


@pytest.mark.skipif(not ISBI.is_dir(), reason="the ISBI 2012 slices are not at ../shared/data")
def test_membranes_of_the_isbi_challenge():
    truth, following = (np.asarray(Image.open(ISBI / f"{n}.png")) < 128 for n in (25, 26))
    same = membrane_scores(truth, truth)
    assert list(same.values()) == pytest.approx([0, 0, 0, 1, 1], abs=1e-12)
    thick = membrane_scores(ndimage.binary_dilation(truth, iterations=2), truth)
    assert thick["v_rand_thinned_cell4"] > 0.99
    assert thick["adapted_rand_error_cell4"] > 0.1
    # The next slice, 50 nm away, is another picture: 0.63.
    assert 0.5 < membrane_scores(following, truth)["v_rand_thinned_cell4"] < 0.8
