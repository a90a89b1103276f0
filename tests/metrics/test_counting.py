import json
import math
import pickle

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.stats import linregress
from sklearn import metrics as sklearn_metrics

from biocnn.data.density import rasterise
from biocnn.errors import DataError
from biocnn.metrics.conformal import ConformalInterval
from biocnn.metrics.counting import CountingMetrics, count_scores, errors_by_decile, summarise_counts
from biocnn.metrics.game import cell_edges, game, grid_counts, grid_sums
from biocnn.metrics.points import match_points, pooled_point_scores
from tests.conftest import SHARED_DATA

N, SHAPE = 7, (21, 30)
VGG = SHARED_DATA / "vgg_cells"


def draw(n=N, seed=0):
    """Noisy maps, their points, true maps and predicted points; image 2 is empty."""
    rng = np.random.default_rng(seed)
    points = [rng.uniform(-0.5, np.array(SHAPE) - 0.5, (0 if k == 2 else 3 + 2 * k, 2)) for k in range(n)]
    dots = np.stack([np.histogramdd(one, SHAPE, [(-0.5, size - 0.5) for size in SHAPE])[0] for one in points])
    density = gaussian_filter(dots, (0, 1.5, 1.5)).astype(np.float32)[:, None]
    prediction = density * rng.uniform(0.8, 1.3, (n, 1, 1, 1)) + rng.normal(0, 1e-3, density.shape)
    peaks = [np.clip(one[:-1] + rng.normal(0, 2, one[:-1].shape), 0, np.array(SHAPE) - 1) for one in points]
    tensors = [[torch.from_numpy(one) for one in many] for many in (points, peaks)]
    return torch.from_numpy(prediction), tensors[0], torch.from_numpy(density), tensors[1]


def fill(metric, order, batch=2):
    prediction, points, density, peaks = draw()
    for chunk in torch.tensor(order, dtype=torch.int64).split(batch):
        if chunk.numel():
            here = [[many[k] for k in chunk] for many in (points, peaks)]
            metric.update(chunk, prediction[chunk], here[0], density[chunk], here[1])
    return metric


# What torch's DistributedSampler deals for 7 images (the first is repeated to make ranks even); a rank without.
DEALS = [([0, 2, 4, 6], [1, 3, 5, 0]), ([], list(range(N)))]


def rank_main(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        for number, deal in enumerate(DEALS):
            torch.save(fill(CountingMetrics(), deal[rank]).compute(), f"{folder}/deal{number}_rank{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_two_processes_give_what_one_process_gives(tmp_path):
    mp.spawn(rank_main, args=(str(tmp_path),), nprocs=2)
    alone = fill(CountingMetrics(), range(N)).compute()
    for path in sorted(tmp_path.glob("*.pt")):
        gathered = torch.load(path, weights_only=True)
        assert gathered.keys() == alone.keys()
        for name, value in alone.items():
            assert gathered[name].dtype == value.dtype
            assert torch.equal(gathered[name], value), (path.stem, name)
        assert summarise_counts(gathered, repeats=20) == summarise_counts(alone, repeats=20)
    assert len(list(tmp_path.glob("*.pt"))) == 2 * len(DEALS)


def test_scores_are_those_of_other_libraries():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 300, 60)
    prediction = 0.9 * truth + 7 + rng.normal(0, 5, 60)
    scores = count_scores(prediction, truth)
    error = prediction - truth
    line = linregress(truth, prediction)
    expected = {
        "mae": sklearn_metrics.mean_absolute_error(truth, prediction),
        "rmse": sklearn_metrics.root_mean_squared_error(truth, prediction),
        "mape": np.mean(np.abs(error) / np.maximum(truth, 1)),
        "bias": prediction.mean() - truth.mean(),
        "undercount_share": -error[error < 0].sum() / truth.sum(),
        "overcount_share": error[error > 0].sum() / truth.sum(),
        "slope": line.slope,
        "intercept": line.intercept,
    }
    assert scores == {name: pytest.approx(value, rel=1e-10) for name, value in expected.items()}
    assert scores["rmse"] >= scores["mae"] >= abs(scores["bias"])
    # A large offset does not spoil the line.
    far = count_scores(prediction + 1e7, truth + 1e7)
    assert far["slope"] == pytest.approx(line.slope, rel=1e-6)


def test_scores_that_are_undefined():
    empty = count_scores([1.0, 3.0], [0, 0])
    assert (empty["mae"], empty["mape"], empty["bias"]) == (2, 2, 2)
    assert all(math.isnan(empty[name]) for name in ("slope", "intercept", "undercount_share", "overcount_share"))
    assert math.isnan(count_scores([1.0], [5])["slope"])
    assert math.isnan(count_scores([1.0, 2, 3], [0.1] * 3)["slope"])


def test_deciles_go_by_the_true_count():
    rng = np.random.default_rng(0)
    truth = rng.permutation(50)
    rows = errors_by_decile(truth + np.where(truth < 10, 3.0, -1.0), truth)
    assert [row["n"] for row in rows] == [5] * 10
    assert [row["mean_count"] for row in rows] == [5 * k + 2 for k in range(10)]
    assert [row["bias"] for row in rows] == [3, 3] + [-1] * 8
    assert [row["mae"] for row in rows] == [3, 3] + [1] * 8
    # Equal counts stay together.
    rows = errors_by_decile([1.0, 2, 3, 4, 5], [4, 7, 7, 7, 9], parts=4)
    assert [row["n"] for row in rows] == [1, 0, 0, 4]
    assert (rows[0]["bias"], rows[3]["bias"]) == (-3, -4)
    assert all(math.isnan(rows[1][name]) for name in ("mean_count", "mae", "bias"))


@pytest.mark.parametrize("shape", [(16, 24), (21, 30), (5, 3), (250, 1)])
def test_cells_are_half_open_and_cover_all(shape):
    rng = np.random.default_rng(0)
    density = rng.normal(0, 1, shape)
    pixels = np.stack(np.unravel_index(rng.integers(0, density.size, 40), shape), 1)
    points = pixels + rng.uniform(-0.5, 0.499, pixels.shape)
    for level in range(4):
        cells = 2**level
        sums, counts = grid_sums(density, level), grid_counts(points, shape, level)
        rows, columns = ([size * k // cells for k in range(cells + 1)] for size in shape)
        assert cell_edges(shape[0], cells).tolist() == rows
        for r, c in np.ndindex(cells, cells):
            part = density[rows[r] : rows[r + 1], columns[c] : columns[c + 1]]
            assert sums[r, c] == pytest.approx(part.sum(), abs=1e-10)
            inside = (pixels >= [rows[r], columns[c]]) & (pixels < [rows[r + 1], columns[c + 1]])
            assert counts[r, c] == inside.all(1).sum()
        assert counts.sum() == 40
    assert grid_counts([[-0.5, -0.5], np.array(shape) - 0.5], shape, 3).sum() == 2


def test_game_begins_with_the_error_of_the_count_and_does_not_fall():
    rng = np.random.default_rng(0)
    for _ in range(50):
        predicted, true = rng.normal(1, 1, (8, 8)), rng.poisson(1, (8, 8))
        levels = game(predicted, true)
        assert levels[0] == pytest.approx(abs(predicted.sum() - true.sum()), abs=1e-10)
        assert levels[3] == np.abs(predicted - true).sum()
        assert (np.diff(levels) >= -1e-12).all()
    half = np.zeros((8, 8))
    half[:, :4] = 2
    # Right in all, wrong by a half of the cells in every quarter.
    assert game(half, np.ones((8, 8))) == [0, 64, 64, 64]


def test_a_row_is_what_the_functions_say():
    prediction, points, density, peaks = draw()
    table = fill(CountingMetrics(tolerance=2.5), [3, 1]).compute()
    assert table["index"].tolist() == [1, 3]
    assert tuple(table) == ("index", *CountingMetrics(tolerance=2.5).names)
    found, true = prediction[3, 0].numpy(), density[3, 0].numpy().astype(float)
    match = match_points(peaks[3], points[3], 2.5)
    levels = game(grid_sums(found, 3), grid_counts(points[3], SHAPE, 3))
    blurred = game(grid_sums(found, 3), grid_sums(true, 3))
    expected = {
        "predicted_count": found.sum(),
        "true_count": 9,
        **{f"game{level}": value for level, value in enumerate(levels)},
        **{f"game{level}_blurred": value for level, value in enumerate(blurred)},
        "true_positive_tol2.5px": match.true_positive,
        "false_positive_tol2.5px": match.false_positive,
        "false_negative_tol2.5px": match.false_negative,
    }
    assert {name: table[name][1].item() for name in table if name != "index"} == {
        name: pytest.approx(value, abs=1e-9) for name, value in expected.items()
    }
    assert table["game0"][1] == (table["predicted_count"][1] - 9).abs()


def test_truth_has_no_error_but_the_stated_floor_of_dots():
    _, points, density, _ = draw()
    metric = CountingMetrics()
    metric.update(torch.arange(N), density, points, density, points)
    summary = summarise_counts(metric.compute(), repeats=0)
    for name in ("mae", "rmse", "bias", "game0"):
        assert summary[name] == pytest.approx(0, abs=1e-5), name
    assert [summary[f"game{level}_blurred"] for level in range(4)] == [0, 0, 0, 0]
    assert summary["game0"] < summary["game1"] < summary["game2"] < summary["game3"]
    assert (summary["f1_tol5px"], summary["precision_tol5px"], summary["recall_tol5px"]) == (1, 1, 1)
    assert (summary["slope"], summary["intercept"]) == (pytest.approx(1), pytest.approx(0, abs=1e-5))
    assert (summary["n_images"], summary["n_cells"], summary["n_groups"]) == (N, sum(map(len, points)), N)


def test_the_summary_has_intervals_from_images_or_groups():
    metric = fill(CountingMetrics(), range(N))
    table = metric.compute()
    interval = ConformalInterval(0.5, images=30)
    summary = summarise_counts(table, interval=interval, repeats=300)
    found, true = table["predicted_count"].numpy(), table["true_count"].numpy()
    scores = count_scores(found, true)
    assert {name: summary[name] for name in scores} == scores
    assert summary["mae"] == pytest.approx(summary["game0"], rel=1e-12)
    low, high = interval.interval(found)
    assert summary["coverage"] == pytest.approx(((low <= true) & (true <= high)).mean())
    assert (summary["interval_width"], summary["interval_level"]) == (pytest.approx((high - low).mean()), 0.9)
    _, points, _, peaks = draw()
    pooled = pooled_point_scores(match_points(a, b, 5) for a, b in zip(peaks, points, strict=True))
    assert {name: summary[f"{name}_tol5px"] for name in pooled} == pytest.approx(pooled)
    for name in ("mae", "rmse", "bias", "game3", "game2_blurred", "f1_tol5px", "coverage", "slope"):
        assert summary[f"{name}_low"] <= summary[name] <= summary[f"{name}_high"], name
    rng = np.random.default_rng(0)
    drawn = [np.abs(found - true)[rng.integers(0, N, N)].mean() for _ in range(4000)]
    ends = summary["mae_low"], summary["mae_high"]
    np.testing.assert_allclose(ends, np.quantile(drawn, [0.025, 0.975]), atol=0.1)
    assert summary["mae_decile10"] == pytest.approx(abs(found[6] - true[6]))
    assert len(json.dumps(summary, allow_nan=False)) > 100
    # Two groups, one group, and another order of names.
    grouped = summarise_counts(table, group=list("aaabbbb"), repeats=50)
    assert grouped["n_groups"] == 2
    assert grouped["mae"] == summary["mae"]
    assert summarise_counts(table, group=["a"] * N, repeats=5)["mae_low"] is None
    with pytest.raises(DataError, match=r"group: expected shape \(7,\)"):
        summarise_counts(table, group=["a"])
    with pytest.raises(ValueError, match="repeats"):
        summarise_counts(table, repeats=-1)


def test_what_is_not_given_is_not_in_the_summary():
    prediction, points, density, peaks = draw()
    metric = CountingMetrics()
    metric.update(torch.arange(N), prediction.bfloat16(), points)
    summary = summarise_counts(metric.compute(), interval=ConformalInterval.fit([1.0], [1]), repeats=10)
    assert not [name for name in summary if "blurred" in name or "f1" in name]
    assert (summary["coverage"], summary["interval_width"], summary["interval_level"]) == (None, None, 0.9)
    # Some images without: they are left out of these means.
    metric.reset()
    metric.update(torch.arange(3), prediction[:3], points[:3])
    metric.update(torch.tensor([3]), prediction[3:4], points[3:4], density[3:4], peaks[3:4])
    table = metric.compute()
    summary = summarise_counts(table, repeats=0)
    assert summary["game2_blurred"] == pytest.approx(table["game2_blurred"][3].item())
    assert summary["recall_tol5px"] == match_points(peaks[3], points[3], 5).scores()["recall"]


def test_a_uniform_map_of_the_right_total_is_wrong_from_level_1_on():
    points = torch.tensor([[2.0, 3.0]] * 12 + [[30.0, 40.0]] * 4)
    uniform = torch.full((1, 1, 64, 64), 16 / 64**2)
    metric = CountingMetrics()
    metric.update(torch.tensor([0]), uniform, [points])
    summary = summarise_counts(metric.compute(), repeats=0)
    assert summary["mae"] == summary["game0"] == 0
    # 12 in the first quarter and 4 in the second, where 4 each were spread; then 1 of each of 16, and 0.25 of 64.
    assert [summary[f"game{level}"] for level in (1, 2, 3)] == [8 + 0 + 4 + 4, 11 + 3 + 14, 11.75 + 3.75 + 15.5]


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_sums_of_half_precision_are_exact(half):
    # 270,000.75 is beyond float16; bfloat16 rounds a sum of 128 to 256 to whole numbers.
    for value, shape in ((3.0, (300, 300)), (0.005859375, (128, 235))):
        density = torch.full((1, 1, *shape), value, dtype=half)
        density[0, 0, 0, 0] += 0.75
        metric = CountingMetrics()
        with torch.autocast("cpu", dtype=half):
            metric.update(torch.tensor([0]), density, [torch.zeros(0, 2)])
        table = metric.compute()
        assert table["predicted_count"].item() == density.double().sum().item()
        assert table["predicted_count"].dtype == torch.float64


def test_outside_valid_nothing_counts():
    prediction, points, density, peaks = draw()
    valid = torch.zeros_like(density, dtype=torch.bool)
    valid[..., 4:15, 3:20] = True
    metric = CountingMetrics()
    noisy = [torch.where(valid, one, torch.nan) for one in (prediction, density)]
    metric.update(torch.arange(N), noisy[0], points, noisy[1], peaks, valid)
    table = metric.compute()
    inside = [
        one[((one >= one.new_tensor([3.5, 2.5])) & (one < one.new_tensor([14.5, 19.5]))).all(1)] for one in points
    ]
    assert table["true_count"].tolist() == [len(one) for one in inside]
    np.testing.assert_allclose(table["predicted_count"], torch.where(valid, prediction, 0).double().sum((1, 2, 3)))
    matched = table["true_positive_tol5px"] + table["false_negative_tol5px"]
    assert matched.tolist() == table["true_count"].tolist()


def test_repeats_are_dropped_and_one_image_is_a_table():
    table = fill(CountingMetrics(), [4, 2, 4, 2]).compute()
    assert table["index"].tolist() == [2, 4]
    metric = fill(CountingMetrics(), [4])
    for same in (metric, pickle.loads(pickle.dumps(metric))):
        single = same.compute()
        assert all(value.shape == (1,) for value in single.values())
        assert torch.equal(single["game2"], table["game2"][1:])
    assert summarise_counts(single)["slope"] is None
    metric.reset()
    assert fill(metric, [2]).compute()["index"].tolist() == [2]


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric CountingMetrics was called before")
def test_errors_say_what_came():
    prediction, points, density, peaks = draw()
    metric, index = CountingMetrics(), torch.arange(N)
    with pytest.raises(DataError, match="expected at least one batch, received none"):
        metric.compute()
    for wrong in ((index, prediction[:, 0], points), (index[:3], prediction, points), (index, prediction, points[1:])):
        with pytest.raises(DataError, match="an index and a set of points for each image"):
            metric.update(*wrong)
    with pytest.raises(DataError, match=r"received .* and \[7, 7, 3\] of the latter"):
        metric.update(index, prediction, points, density, peaks[:3])
    with pytest.raises(DataError, match="did training diverge"):
        metric.update(index, prediction * math.nan, points)
    with pytest.raises(DataError, match=r"points: expected them inside 21x30 pixels.* rows .*25"):
        metric.update(index, prediction, [torch.tensor([[25.0, 3.0]])] * N)
    with pytest.raises(DataError, match=r"predicted_points: expected points of shape \(N, 2\)"):
        metric.update(index, prediction, points, None, [one[:, :1] for one in points])
    with pytest.raises(ValueError, match="tolerance: expected a finite number"):
        CountingMetrics(tolerance=-1)


@pytest.mark.skipif(not VGG.is_dir(), reason="vgg_cells is not in ../shared/data")
def test_game_of_the_first_50_vgg_cells_is_as_known():
    rows = {"uniform": [], 1: [], 3: [], 5: []}
    for number in range(1, 51):
        with Image.open(VGG / f"{number:03}dots.png") as dots:
            points = np.argwhere(np.asarray(dots.convert("RGB"))[..., 0] == 255)
        truth = grid_counts(points, (256, 256), 3)
        rows["uniform"].append(game(np.full((8, 8), len(points) / 64), truth))
        for sigma in (1, 3, 5):
            rows[sigma].append(game(grid_sums(rasterise(points, (256, 256), sigma), 3), truth))
    # Found before: a uniform map with the right total, and perfect maps with kernels.
    uniform = np.mean(rows["uniform"], axis=0)
    assert uniform[0] == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(uniform[1:], [33, 57, 91], atol=0.5)
    for sigma, level2, level3 in ((1, 3.3, 9.4), (3, 6.8, 20.8), (5, 9.1, 27.7)):
        np.testing.assert_allclose(np.mean(rows[sigma], axis=0)[2:], [level2, level3], rtol=0.08)
