import math

import numpy as np
import pytest
from scipy import ndimage
from skimage.morphology import skeletonize

from biocnn.errors import DataError
from biocnn.metrics.overlap import confusion
from biocnn.metrics.skeleton import centreline_scores, cldice, skeletonize_safely
from biocnn.metrics.topology import betti_numbers


def column(width, length=60, margin=3):
    mask = np.zeros((width + 2 * margin, width + 2 * margin, length + 2 * margin), dtype=bool)
    mask[margin:-margin, margin:-margin, margin:-margin] = True
    return mask


def components_without_skeleton(mask):
    labels, count = ndimage.label(mask, np.ones((3,) * mask.ndim))
    return count - len(set(labels[skeletonize_safely(mask)].tolist()) - {0})


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 6])
def test_columns_of_every_width_keep_a_centreline(width):
    mask = column(width)
    skeleton = skeletonize_safely(mask)
    assert betti_numbers(skeleton) == (1, 0, 0)
    assert 60 - width - 1 <= skeleton.sum() <= 60
    assert not (skeleton & ~mask).any()
    centre = 3 + (width - 1) / 2
    assert np.abs(np.argwhere(skeleton)[:, :2] - centre).max() <= 0.5
    if width % 2 == 0:
        assert skeletonize(mask).sum() == 0, "the defect that this guards against is gone"


def test_an_even_branch_of_an_odd_body_is_not_lost():
    mask = np.zeros((16, 60, 50), dtype=bool)
    mask[5:9, 5:55, 5:9] = True
    mask[5:9, 25:29, 5:45] = True
    skeleton = skeletonize_safely(mask)
    assert np.argwhere(skeleton)[:, 2].max() >= 40
    assert np.ptp(np.argwhere(skeleton)[:, 1]) >= 44
    assert betti_numbers(skeleton) == (1, 0, 0)


@pytest.mark.parametrize("seed", range(4))
def test_no_component_is_ever_lost(seed):
    rng = np.random.default_rng(seed)
    cloud = rng.random((20, 20, 20)) < 0.03
    blocks = ndimage.binary_dilation(cloud, np.ones((2, 2, 2)))
    plane = ndimage.binary_dilation(rng.random((64, 64)) < 0.02, np.ones((2, 2))) | (rng.random((64, 64)) < 0.02)
    for mask in (cloud, blocks, plane):
        assert components_without_skeleton(mask) == 0
    assert components_without_skeleton(np.ones((2, 2, 2), dtype=bool)) == 0
    assert components_without_skeleton(np.ones((2, 2), dtype=bool)) == 0


def test_a_thin_line_is_its_own_skeleton_and_nothing_stays_nothing():
    line = np.zeros((7, 20), dtype=bool)
    line[3, 2:18] = True
    assert (skeletonize_safely(line) == line).all()
    assert not skeletonize_safely(np.zeros((4, 5, 6), dtype=bool)).any()


def brute_force_shares(first, second, tolerance):
    a, b = np.argwhere(first), np.argwhere(second)
    near = np.linalg.norm(a[:, None] - b[None], axis=-1).min(axis=1) <= tolerance
    return near.mean()


@pytest.mark.parametrize("tolerance", [0, 1, 1.5, 3])
def test_scores_are_those_of_all_pairs_of_pixels(tolerance):
    rng = np.random.default_rng(1)
    blur = ndimage.gaussian_filter(rng.normal(size=(2, 40, 50)), (0, 2, 2))
    found, truth = blur > 0.04
    sp, st = skeletonize(found), skeletonize(truth)
    precision, sensitivity = truth[sp].mean(), found[st].mean()
    correct, complete = (brute_force_shares(*pair, tolerance) for pair in ((sp, st), (st, sp)))
    scores = centreline_scores(found, truth, tolerance=tolerance)
    assert list(scores.values()) == pytest.approx(
        [
            2 * precision * sensitivity / (precision + sensitivity),
            precision,
            sensitivity,
            correct,
            complete,
            correct * complete / (correct + complete - correct * complete),
        ]
    )
    assert f"quality_{tolerance:g}px" in scores


def test_cldice_does_not_see_thickness():
    rows, columns = np.mgrid[:100, :100]
    radius = np.hypot(rows - 50, columns - 50)
    truth, thick = np.abs(radius - 30) < 2.5, np.abs(radius - 30) < 4.5
    assert confusion(thick, truth).dice < 0.75
    assert cldice(thick, truth) == 1


def test_rules_for_empty_masks_and_for_valid():
    empty, line = np.zeros((9, 20), dtype=bool), np.zeros((9, 20), dtype=bool)
    line[4, 2:18] = True
    assert all(math.isnan(value) for value in centreline_scores(empty, empty).values())
    for found, truth in ((line, empty), (empty, line)):
        assert set(centreline_scores(found, truth).values()) == {0.0}
    far = np.zeros((9, 20), dtype=bool)
    far[0, 0] = True
    assert set(centreline_scores(far, line, tolerance=2).values()) == {0.0}
    valid = np.ones((9, 20), dtype=bool)
    valid[0] = False
    assert cldice(line | far, line) < 1
    assert set(centreline_scores(line | far, line, valid).values()) == {1.0}


@pytest.mark.parametrize("tolerance", [-1, math.nan, math.inf])
def test_bad_tolerances(tolerance):
    with pytest.raises(ValueError, match="tolerance: expected a finite number of pixels"):
        centreline_scores(np.ones((3, 3), dtype=bool), np.ones((3, 3), dtype=bool), tolerance=tolerance)


def test_bad_masks():
    with pytest.raises(DataError, match="mask: expected bool, or 0 and 1, received"):
        skeletonize_safely(np.full((3, 3), 2))
