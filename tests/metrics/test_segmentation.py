import math
import pickle

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from sklearn import metrics as sklearn_metrics

from biocnn.errors import DataError
from biocnn.metrics.overlap import confusion
from biocnn.metrics.partition import membrane_scores
from biocnn.metrics.segmentation import (
    N_BINS,
    SegmentationMetrics,
    auroc_of_histogram,
    best_dice_threshold,
    score_histogram,
    score_image,
    summarise,
)
from biocnn.metrics.skeleton import centreline_scores
from biocnn.metrics.topology import betti_errors

N = 7


def draw(n=N, size=24, seed=0):
    """Noisy lines: probability, mask, valid, each (n, 1, size, size); the last image is without structure."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((n, 1, size, size), dtype=bool)
    for image in mask[:-1, 0]:
        image[rng.integers(2, size - 4) :][:3] = True
        image[:, rng.integers(2, size - 4) :][:, :3] = True
    probability = 1 / (1 + np.exp(-rng.normal(np.where(mask, 1.5, -1.5), 1)))
    valid = np.ones_like(mask)
    valid[..., :2] = False
    return torch.tensor(probability, dtype=torch.float32), torch.tensor(mask).float(), torch.tensor(valid)


def fill(metric, order, batch=2):
    probability, mask, valid = draw()
    for chunk in torch.tensor(order, dtype=torch.int64).split(batch):
        if chunk.numel():
            metric.update(chunk, probability[chunk], mask[chunk], valid[chunk])
    return metric


# What torch's DistributedSampler deals for 7 images (the first is repeated to make ranks even); a rank without.
DEALS = [([0, 2, 4, 6], [1, 3, 5, 0]), ([], list(range(N)))]


def rank_main(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        for number, deal in enumerate(DEALS):
            torch.save(fill(SegmentationMetrics(), deal[rank]).compute(), f"{folder}/deal{number}_rank{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_two_processes_give_what_one_process_gives(tmp_path):
    mp.spawn(rank_main, args=(str(tmp_path),), nprocs=2)
    alone = fill(SegmentationMetrics(), range(N)).compute()
    for path in sorted(tmp_path.glob("*.pt")):
        gathered = torch.load(path, weights_only=True)
        assert gathered.keys() == alone.keys()
        for name, value in alone.items():
            assert gathered[name].dtype == value.dtype
            assert torch.equal(gathered[name].nan_to_num(-1), value.nan_to_num(-1)), (path.stem, name)
        assert summarise(gathered) == summarise(alone)
    assert len(list(tmp_path.glob("*.pt"))) == 2 * len(DEALS)


def test_a_row_is_what_the_functions_say_inside_valid():
    metric = fill(SegmentationMetrics(tolerance=1.5, min_size=3, membranes=True, threshold=0.3), [3, 1])
    table = metric.compute()
    assert table["index"].tolist() == [1, 3]
    assert tuple(table) == ("index", *metric.names, "histogram")
    probability, mask, valid = (part[3, 0].numpy() for part in draw())
    found = (probability >= 0.3) & valid
    expected = {
        **confusion(found, mask, valid).ratios(),
        "true_positive": confusion(found, mask, valid).true_positive,
        "auroc": sklearn_metrics.roc_auc_score(mask[valid], probability[valid]),
        **centreline_scores(found, mask, valid, 1.5),
        **betti_errors(found, mask, valid, min_size=3),
        **membrane_scores(found, mask, valid),
    }
    for name, value in expected.items():
        assert table[name].dtype == torch.float64
        assert table[name][1].item() == pytest.approx(value, abs=1e-12), name
    assert set(metric.names) - set(expected) == {"false_positive", "false_negative", "true_negative"}
    assert table["histogram"][1].sum() == valid.sum()


def test_summary_has_means_counts_of_undefined_and_pooled_numbers():
    table = fill(SegmentationMetrics(), range(N)).compute()
    summary = summarise(table)
    probability, mask, valid = (part.numpy() for part in draw())
    found, truth, score = (probability >= 0.5)[valid], mask[valid].astype(bool), probability[valid]
    assert summary["n_images"] == N
    assert summary["dice"] == pytest.approx(np.nanmean(table["dice"].numpy()))
    assert summary["dice_pooled"] == pytest.approx(sklearn_metrics.f1_score(truth, found))
    assert summary["accuracy_pooled"] == pytest.approx((truth == found).mean())
    assert summary["true_positive"] == (truth & found).sum()
    exact = sklearn_metrics.roc_auc_score(truth, score)
    assert abs(summary["auroc_pooled"] - exact) <= summary["auroc_pooled_bound"] < 0.005
    # The image without structure has predicted specks: Dice 0, sensitivity and area undefined.
    assert table["dice"][-1] == 0
    assert "dice_undefined" not in summary
    assert (summary["sensitivity_undefined"], summary["auroc_undefined"]) == (1, 1)
    assert summary["sensitivity"] == pytest.approx(table["sensitivity"][:-1].mean().item())
    assert all(value is None or math.isfinite(value) for value in summary.values())


def test_all_undefined_is_none():
    metric = SegmentationMetrics()
    metric.update(torch.tensor([0]), torch.zeros(1, 1, 5, 5), torch.zeros(1, 1, 5, 5))
    summary = summarise(metric.compute())
    assert [summary[name] for name in ("dice", "cldice", "auroc_pooled", "auroc_pooled_bound")] == [None] * 4
    assert (summary["dice_undefined"], summary["specificity"], summary["betti0_error_fg8"]) == (1, 1, 0)


def test_repeats_are_dropped_and_one_image_is_a_table():
    table = fill(SegmentationMetrics(), [4, 2, 4, 2]).compute()
    assert table["index"].tolist() == [2, 4]
    metric = fill(SegmentationMetrics(), [4])
    for same in (metric, pickle.loads(pickle.dumps(metric))):
        single = same.compute()
        assert all(len(value) == 1 for value in single.values())
        assert torch.equal(single["dice"], table["dice"][1:])
        assert single["histogram"].shape == (1, 2, N_BINS)
    metric.reset()
    assert fill(metric, [2]).compute()["index"].tolist() == [2]


def test_outside_valid_may_hold_anything():
    probability, mask, valid = (part[:1].clone() for part in draw())
    metric = SegmentationMetrics()
    metric.update(torch.tensor([0]), probability, mask, valid)
    probability[~valid], mask[~valid] = math.nan, 255
    metric.update(torch.tensor([1]), probability, mask, valid)
    table = metric.compute()
    for name in metric.names:
        assert table[name][0] == table[name][1], name


def test_names_and_rules_state_the_choices():
    metric = SegmentationMetrics(ndim=3, tolerance=2, connectivity=6, min_size=5)
    assert {"quality_2px", "betti0_error_fg6_min5", "betti2_error_fg6_min5"} <= set(metric.names)
    assert metric.rules["background_connectivity"] == 26
    assert str(metric.rules["border_rule"]).startswith("open")
    volume = torch.zeros(1, 1, 8, 9, 10)
    volume[..., 3:5, 3:5, 1:9] = 1
    metric.update(torch.tensor([0]), volume.to(torch.bfloat16), volume.to(torch.uint8))
    summary = summarise(metric.compute())
    assert (summary["dice"], summary["cldice"], summary["betti0_truth_fg6_min5"]) == (1, 1, 1)


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.7, 0.9])
def test_the_threshold_is_that_of_torch(threshold):
    probability = torch.full((1, 1, 2, 2), threshold)
    assert (probability >= threshold).all()
    row, _ = score_image(probability[0, 0].numpy(), np.ones((2, 2)), threshold=threshold)
    assert row["dice"] == 1


def test_the_histogram_bounds_the_error_of_the_pooled_area():
    rng = np.random.default_rng(0)
    truth = rng.random(20_000) < 0.1
    # A confident network: most pixels within 1e-3 of 0 or 1.
    score = 1 / (1 + np.exp(-rng.normal(np.where(truth, 5, -8), 4)))
    area, bound = auroc_of_histogram(score_histogram(score, truth))
    assert abs(area - sklearn_metrics.roc_auc_score(truth, score)) <= bound < 1e-3
    ties = score_histogram([0, 0, 1, 1], [False, True, False, True])
    assert auroc_of_histogram(ties) == (0.5, 0.25)
    assert ties[:, [0, -1]].tolist() == [[1, 1], [1, 1]]
    assert all(math.isnan(value) for value in auroc_of_histogram(np.zeros((2, N_BINS))))


def test_the_best_threshold_of_a_histogram():
    rng = np.random.default_rng(0)
    truth = rng.random(5_000) < 0.2
    score = (1 / (1 + np.exp(-rng.normal(np.where(truth, 0, -2), 1)))).astype(np.float32)
    threshold, dice = best_dice_threshold(score_histogram(score, truth))
    assert dice == pytest.approx(sklearn_metrics.f1_score(truth, score >= np.float32(threshold)), abs=1e-12)
    assert dice >= max(sklearn_metrics.f1_score(truth, score >= cut) for cut in np.linspace(0.05, 0.95, 19))
    # Of equally good ones, the one nearest to 0.5.
    assert best_dice_threshold(score_histogram([0.1, 0.9], [False, True])) == (0.5, 1)
    with pytest.raises(DataError, match="received background only"):
        best_dice_threshold(score_histogram([0.1, 0.9], [False, False]))
    with pytest.raises(DataError, match=r"expected shape \(2, 2048\), received \(2, 3\)"):
        best_dice_threshold(np.ones((2, 3)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ndim": 4}, "ndim: expected 2 or 3, received 4"),
        ({"threshold": 1.5}, "threshold: expected a probability, received 1.5"),
        ({"tolerance": -1}, "tolerance: expected a finite number"),
        ({"min_size": -1}, "min_size: expected a number of pixels"),
        ({"connectivity": 26}, r"expected one of \[4, 8\] for a 2-D image"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SegmentationMetrics(**arguments)


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric SegmentationMetrics was called before")
def test_errors_say_what_came():
    metric, zeros = SegmentationMetrics(), torch.zeros(2, 1, 4, 5)
    with pytest.raises(DataError, match=r"received \(3,\) and \[\(2, 1, 4, 5\), \(2, 1, 4, 5\)\]"):
        metric.update(torch.arange(3), zeros, zeros)
    with pytest.raises(DataError, match=r"\(2, 4, 5\)"):
        metric.update(torch.arange(2), zeros, zeros[:, 0])
    with pytest.raises(DataError, match="with 2 axes of the image"):
        metric.update(torch.arange(2), zeros[None], zeros[None])
    with pytest.raises(DataError, match="pass logits through a sigmoid first"):
        metric.update(torch.arange(2), zeros - 3, zeros)
    with pytest.raises(DataError, match=r"expected numbers in \[0, 1\]"):
        metric.update(torch.arange(2), zeros * math.nan, zeros)
    with pytest.raises(DataError, match=r"received \[255.0\]; .* decode grey values"):
        metric.update(torch.arange(2), zeros, zeros + 255)
    with pytest.raises(DataError, match=r"mask: expected shape \(4, 5\) as the probability, received \(5,\)"):
        score_image(np.zeros((4, 5)), np.zeros(5))
    with pytest.raises(DataError, match=r"valid: expected shape \(4, 5\)"):
        score_image(np.zeros((4, 5)), np.zeros((4, 5)), np.ones(5))
    with pytest.raises(DataError, match="received none of 20"):
        metric.update(torch.arange(2), zeros, zeros, zeros.bool())
    with pytest.raises(DataError, match="expected at least one batch, received none"):
        metric.compute()
