import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from biocnn.data.points import read_points
from biocnn.errors import DataError
from biocnn.inference.tables import write_csv
from biocnn.metrics.conformal import ConformalInterval
from biocnn.metrics.counting import CountingMetrics
from biocnn.report import counting as report
from biocnn.report.overlay import CALLED, FALSE, FOUND, MISSED

IDS = ["lab/a.tif", "lab/b.tif", "lab/c.tif", "lab/d.tif"]
COUNT, TRUE = [8.0, 12.0, 30.0, 51.5], [10.0, 10.0, 30.0, 50.0]
POINTS = {"true_positive": [8, 9, 30, 48], "false_positive": [0, 3, 0, 3], "false_negative": [2, 1, 0, 2]}
INTERVAL = ConformalInterval(0.5, 0.1, 0.5, 19)  # the count -/+ half of its root
FLOORS = {"constant": 20.0, "linear": {"channel": 1, "slope": 0.5, "intercept": 1.0, "mae_left_out": 3.0}}
INTENSITY = [[7, 18], [7, 20], [7, 58], [7, 90]]


def table_of(rows=slice(None), points=True, blurred=True):
    """Four images whose errors are -2, 2, 0 and 1.5 cells."""
    error = np.abs(np.subtract(COUNT, TRUE))
    columns = {"predicted_count": COUNT, "true_count": TRUE}
    columns |= {f"game{level}": error + level for level in range(4)}
    columns |= {f"game{level}_blurred": error + level / 2 if blurred else [math.nan] * 4 for level in range(4)}
    columns |= {f"{name}_tol3px": values if points else [math.nan] * 4 for name, values in POINTS.items()}
    found = {name: torch.tensor(values, dtype=torch.float64)[rows] for name, values in columns.items()}
    return {"index": torch.arange(4)[rows], **found}


def metrics_of(table=None, interval=INTERVAL, floors=FLOORS, groups=None):
    table = table_of() if table is None else table
    return report.test_metrics(table, interval, floors, INTENSITY[: len(table["index"])], groups, 0)


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def words_of(figure):
    texts = [text for axes in figure.axes for text in [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]]
    texts += [text for axes in figure.axes if axes.get_legend() for text in axes.get_legend().get_texts()]
    return "\n".join([figure.get_supxlabel(), *(text.get_text() for text in texts)])


def is_drawn(path):
    """Whether a picture has more than its paper and a frame."""
    with Image.open(path) as picture:
        grey = np.bincount(np.asarray(picture.convert("L")).ravel(), minlength=256)
    return (grey > 0).sum() > 20 and grey[:250].sum() > 0.005 * grey.sum()


def test_the_table_by_hand_has_the_names_of_the_metric():
    assert tuple(table_of()) == ("index", *CountingMetrics(3.0).names)


def test_numbers_by_hand():
    metrics = metrics_of(groups=list("aabb"))
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    expected = {
        "n_images": 4,
        "n_cells": 100,
        "n_groups": 2,
        "mae": 5.5 / 4,
        "rmse": math.sqrt((4 + 4 + 0 + 2.25) / 4),
        "bias": 1.5 / 4,
        "mape": (0.2 + 0.2 + 0 + 0.03) / 4,
        "game0": 5.5 / 4,
        "game3": 5.5 / 4 + 3,
        "game2_blurred": 5.5 / 4 + 1,
        "precision": 95 / 101,
        "recall": 95 / 100,
        "f1": 190 / 201,
        "interval_alpha": 0.1,
        "interval_images": 19,
        "interval_quantile": 0.5,
        "interval_level": 0.9,
        "coverage": 2 / 4,  # 8 +- 1.4 and 12 +- 1.7 miss 10; 30 and 51.5 +- 3.6 hold 30 and 50
        "interval_width": np.sqrt(COUNT).mean(),
        "floor_constant_mae": (10 + 10 + 10 + 30) / 4,
        "floor_linear_mae": (0 + 1 + 0 + 4) / 4,  # 10, 11, 30 and 46 by channel 1
        "floor_linear_channel": 1,
        # Of two groups with means 2 and 0.75 a quarter of the replicates draws the one twice, a quarter the other.
        "mae_low": 0.75,
        "mae_high": 2.0,
    }
    assert {name: metrics[name] for name in expected} == {
        name: pytest.approx(value, rel=1e-12) for name, value in expected.items()
    }
    assert metrics["interval_note"] == ""
    for name in ("precision", "recall", "f1"):
        assert metrics[name] == metrics[f"{name}_tol3px"]


def test_the_expected_coverage_is_that_of_counting_orders():
    # Of all orders of 19 validation and 4 test errors: how many test errors are not above the 18th validation error.
    share = [math.comb(17 + j, j) * math.comb(1 + 4 - j, 4 - j) / math.comb(23, 4) for j in range(5)]
    assert sum(share) == pytest.approx(1)
    ends = [int(np.searchsorted(np.cumsum(share), level)) / 4 for level in (0.05, 0.95)]
    metrics = metrics_of()
    assert [metrics["coverage_expected_low"], metrics["coverage_expected_high"]] == ends
    assert ends[0] < ends[1]


def test_what_is_not_known_is_none():
    metrics = metrics_of(table_of(points=False, blurred=False), None, {})
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    unknown = ("precision", "recall", "f1", "interval_alpha", "interval_images", "interval_quantile")
    unknown += ("floor_constant_mae", "floor_linear_mae", "floor_linear_channel")
    assert {metrics[name] for name in unknown} == {None}
    assert metrics["interval_note"] == "the checkpoint has not been validated"
    assert not [name for name in metrics if name.startswith("coverage") or "blurred" in name]
    # Too few training images for a line.
    metrics = metrics_of(floors={"constant": 20.0, "linear": None})
    assert (metrics["floor_constant_mae"], metrics["floor_linear_mae"]) == (15, None)


def test_an_infinite_interval_says_why_and_promises_nothing():
    few = ConformalInterval.fit([3.0] * 5, [4.0] * 5)
    metrics = metrics_of(interval=few)
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    assert (metrics["interval_images"], metrics["interval_quantile"], metrics["coverage"]) == (5, None, None)
    assert "5 validation images: an interval of 0.9 needs at least 9" in metrics["interval_note"]
    assert "coverage_expected_low" not in metrics
    rows = report.test_rows(table_of(), IDS, None, few, [[]] * 4)
    assert {(row["low"], row["high"]) for row in rows} == {("", "")}
    assert "images; no interval" in words_of(report.scatter_figure(table_of(), few, metrics))


def test_one_image_has_numbers_a_row_and_pictures(tmp_path):
    single = table_of(slice(1))
    metrics = metrics_of(single, groups=["a"])
    assert (metrics["n_images"], metrics["mae"], metrics["slope"], metrics["mae_low"]) == (1, 2, None, None)
    assert len(report.test_rows(single, IDS[:1], ["a"], INTERVAL, [[]])) == 1
    assert report.best_median_worst(single) == {"best": 0}
    picture = np.full((9, 9, 3), 7, np.uint8)
    report.write_figures(tmp_path, single, IDS[:1], INTERVAL, metrics, tmp_path / "metrics.csv", [picture])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["counts.png", "points.png"]
    assert is_drawn(tmp_path / "counts.png")


def test_few_images_are_not_called_groups_where_they_stand_alone(caplog):
    for groups, words in (
        (None, "over images, each a group of its own: 4 groups"),
        (["s", "s", "t", "t"], "over groups: 2"),
    ):
        caplog.clear()
        report.test_metrics(table_of(), INTERVAL, {}, np.zeros((4, 1)), groups, 0)
        assert f"Confidence intervals {words}" in caplog.text


def test_rows_of_a_test(tmp_path):
    flags = [[], ["count below zero"], ["one", "two"], []]
    rows = report.test_rows(table_of(), IDS, ["s1", "s1", "s2", "s2"], INTERVAL, flags)
    write_csv(tmp_path / "run" / "predictions.csv", rows)
    written = rows_of(tmp_path / "run" / "predictions.csv")
    assert list(written[0]) == [
        *("id", "group", "true", "count", "low", "high", "error", "game1", "game2", "game3"),
        *(f"game{level}_blurred" for level in range(4)),
        *(f"{name}_tol3px" for name in POINTS),
        "flags",
    ]
    assert [row["id"] for row in written] == IDS
    assert [row["group"] for row in written] == ["s1", "s1", "s2", "s2"]
    assert [row["true"] for row in written] == ["10", "10", "30", "50"]
    assert [row["flags"] for row in written] == ["", "count below zero", "one; two", ""]
    # 8 -/+ half the root of 8, to two decimals
    first = {"count": "8.0", "low": "6.59", "high": "9.41", "error": "-2.0", "game3": "5.0", "game2_blurred": "3.0"}
    assert {name: written[0][name] for name in first} == first
    for name, values in POINTS.items():
        assert [row[f"{name}_tol3px"] for row in written] == [str(value) for value in values]


def test_what_is_not_known_is_an_empty_cell():
    table = table_of(blurred=False)
    table["true_positive_tol3px"][1] = math.nan
    rows = report.test_rows(table, IDS, None, None, [[]] * 4)
    assert {(row["group"], row["low"], row["high"], row["game1_blurred"]) for row in rows} == {("", "", "", "")}
    assert [row["true_positive_tol3px"] for row in rows] == [8, "", 30, 48]
    assert report.count_columns(-0.004, 0.0, 0.3) == {"count": 0, "low": 0, "high": 0.3}
    for ids, flags in ((IDS[:3], [[]] * 4), (IDS, [[]] * 5)):
        with pytest.raises(DataError, match=f"for each of 4 images, received {len(ids)} and {len(flags)}"):
            report.test_rows(table, ids, None, None, flags)


def test_written_points_are_annotations_again(tmp_path):
    points = [[0.25, 59.4999], [12.0, 3.0625], [-0.5, 39.5]]
    report.write_points(tmp_path / "points.csv", points)
    np.testing.assert_allclose(read_points(tmp_path / "points.csv", (40, 60)), points, atol=0.00051)  # three decimals
    report.write_points(tmp_path / "none.csv", np.zeros((0, 2)))
    assert (tmp_path / "none.csv").read_text().split() == ["row,column"]
    assert read_points(tmp_path / "none.csv", (40, 60), allow_empty=True).shape == (0, 2)


def test_points_of_a_picture_have_the_colours_of_the_legend():
    # Two predictions on one cell: one of them is false. A point on a corner has half of its cross.
    found, true = [[5.2, 4.8], [5.0, 8.0], [0.0, 0.0]], [[5.0, 5.0], [15.0, 11.0]]
    picture, legend = report.points_picture(np.zeros((20, 24)), found, true, tolerance=3)
    expected = np.zeros((20, 24, 3), np.uint8)
    cross = [(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)]
    for centre, colour in (((5, 5), FOUND), ((5, 8), FALSE), ((0, 0), FALSE), ((15, 11), MISSED)):
        for row, column in np.array(centre) + cross:
            if row >= 0 and column >= 0:
                expected[row, column] = colour
    np.testing.assert_array_equal(picture, expected)
    assert legend == [("false: 2", FALSE), ("missed: 1", MISSED), ("found: 1", FOUND)]


def test_points_on_the_border_are_drawn_in_the_last_pixels():
    picture, _ = report.points_picture(np.zeros((20, 24)), [[19.5, 23.5], [-0.5, 10.0]])
    assert (picture[[19, 0], [23, 10]] == CALLED).all()
    assert len(np.argwhere(picture.any(2))) == 3 + 4


def test_a_table_without_rows_is_written(tmp_path):
    write_csv(tmp_path / "none.csv", [])
    assert (tmp_path / "none.csv").read_text() == ""
    write_csv(tmp_path / "names.csv", [], ["a", "b"])
    assert (tmp_path / "names.csv").read_text().split() == ["a,b"]


def test_points_without_truth_are_yellow_and_grow_with_the_picture():
    image = np.random.default_rng(0).integers(0, 255, (1024, 1100, 3), np.uint8)
    valid = np.ones((1024, 1100), bool)
    valid[:, :20] = False
    picture, legend = report.points_picture(image, [[500.0, 600.0]], valid=valid)
    assert legend == [("points found: 1", CALLED)]
    marked = np.argwhere((picture == np.array(CALLED)).all(2))
    assert len(marked) == 13  # three pixels to each of four sides, and the middle
    assert np.abs(marked - [500, 600]).max() == 3
    assert picture[:, :20].max() <= 0.15 * 255 + 1  # darker where nothing counts
    assert (picture[:, 20:].max(2) == picture[:, 20:].min(2)).sum() == 1024 * 1080 - 13
    none, legend = report.points_picture(image, np.zeros((0, 2)), np.zeros((0, 2)))
    assert [words for words, _ in legend] == ["false: 0", "missed: 0", "found: 0"]
    assert (none.max(2) == none.min(2)).all()


def test_the_scatter_shows_every_image_and_which_interval_misses(tmp_path):
    table = table_of()
    figure = report.scatter_figure(table, INTERVAL, metrics_of())
    words = words_of(figure)
    assert "90 % interval holds the true count: 2" in words
    assert "90 % interval misses the true count: 2" in words
    assert "4 test images: MAE 1.38, bias +0.38 cells" in words
    (panel,) = figure.axes
    shown = [line.get_xydata() for line in panel.get_lines() if line.get_marker() in ("o", "D")]
    expected = np.stack([TRUE, COUNT], 1)
    np.testing.assert_array_equal(np.concatenate(shown), expected[[2, 3, 0, 1]])
    bars = np.concatenate([bar.get_segments() for bar in panel.collections])[:, :, 1]
    reach = 0.5 * np.sqrt(COUNT)
    np.testing.assert_allclose(bars, np.stack([COUNT - reach, COUNT + reach], 1)[[2, 3, 0, 1]])
    low, high = panel.get_ylim()
    assert low == 0
    assert high > 51.5 + reach[3]
    report.save_figure(figure, tmp_path / "counts.png")
    assert is_drawn(tmp_path / "counts.png")


def test_the_scatter_of_nothing_and_of_counts_below_zero(tmp_path):
    for counts in ([0.0] * 4, [-3.0, -0.1, 0.0, 2.0]):
        table = table_of()
        table["predicted_count"] = torch.tensor(counts, dtype=torch.float64)
        table["true_count"] = torch.zeros(4, dtype=torch.float64)
        for interval in (INTERVAL, None):
            figure = report.scatter_figure(table, interval, metrics_of(table, interval))
            (panel,) = figure.axes
            assert panel.get_ylim()[0] == min(counts)
            assert panel.get_ylim()[1] >= max(counts)
        report.save_figure(figure, tmp_path / "counts.png")
        assert is_drawn(tmp_path / "counts.png")


def test_learning_curves_are_those_of_the_log(tmp_path):
    log = tmp_path / "metrics.csv"
    log.write_text("step,train_loss,val_mae,val_rmse\n1,0.5,,\n2,,9,11\n3,0.25,,\n4,,2.5,4\n6,,3,3.5\n")
    figure = report.curves_figure(log)
    lines = {line.get_label(): line.get_xydata().tolist() for panel in figure.axes for line in panel.get_lines()}
    assert lines == {
        "training loss": [[1, 0.5], [3, 0.25]],
        "validation MAE": [[2, 9], [4, 2.5], [6, 3]],
        "least: 2.50": [[4, 2.5]],
        "validation RMSE": [[2, 11], [4, 4], [6, 3.5]],
    }
    report.save_figure(figure, tmp_path / "curves.png")
    assert is_drawn(tmp_path / "curves.png")
    log.write_text("step,train_loss\n1,0.5\n")
    figure = report.curves_figure(log)
    assert words_of(figure).count("Nothing has been logged yet.") == 1
    log.write_text("step\n")
    assert words_of(report.curves_figure(log)).count("Nothing has been logged yet.") == 2


def test_best_median_and_worst_by_the_error_of_the_count():
    assert report.best_median_worst(table_of()) == {"best": 2, "median": 3, "worst": 1}
    assert report.best_median_worst(table_of(slice(3))) == {"best": 2, "median": 0, "worst": 1}
    assert report.best_median_worst(table_of(slice(2))) == {"best": 0, "worst": 1}


def test_all_figures_are_written_and_not_blank(tmp_path):
    table, log = table_of(), tmp_path / "metrics.csv"
    log.write_text("step,train_loss,val_mae,val_rmse\n1,0.5,9,11\n2,0.4,8,10\n")
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (20, 30, 3), np.uint8) for _ in range(3)]
    report.write_figures(tmp_path / "figures", table, IDS, INTERVAL, metrics_of(), log, pictures)
    written = sorted((tmp_path / "figures").iterdir())
    assert [path.name for path in written] == ["counts.png", "learning_curves.png", "points.png"]
    assert all(map(is_drawn, written))
    words = words_of(report.points_sheet(pictures, table, IDS))
    for title in ("best: c.tif\n30.0 of 30 cells", "median: d.tif\n51.5 of 50 cells", "worst: b.tif\n12.0 of 10 cells"):
        assert title in words
    with pytest.raises(ValueError, match="zip"):
        report.points_sheet(pictures[:2], table, IDS)
    report.write_figures(tmp_path / "bare", table, IDS, None, metrics_of(), tmp_path / "no.csv", [])
    assert [path.name for path in (tmp_path / "bare").iterdir()] == ["counts.png"]


def test_the_summary_says_what_is_known(capsys):
    report.print_summary(metrics_of(), Path("run"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "test: 4 images, 100 cells"
    said = dict(line.strip().rsplit(maxsplit=1) for line in lines[1:9])
    assert said == {
        "MAE": "1.375",
        "RMSE": "1.601",
        "bias": "0.375",
        "GAME(3)": "4.375",
        "F1 in 3px": "0.945",
        "coverage": "0.500",
        "floor: constant, MAE": "15.000",
        "floor: linear, MAE": "1.250",
    }
    assert lines[9] == "  the interval promises a coverage of 0.90"
    assert [line.split()[1] for line in lines[10:]] == ["run/metrics.json", "run/predictions.csv", "run/figures"]
    report.print_summary(metrics_of(table_of(points=False), None, {}), Path("run"))
    bare = capsys.readouterr().out
    assert "  no interval: the checkpoint has not been validated\n" in bare
    assert not [word for word in ("F1", "coverage", "floor", "None", "nan") if word in bare]
    report.print_summary(metrics_of(interval=ConformalInterval.fit([3.0] * 5, [4.0] * 5)), Path("run"))
    assert "no interval: 5 validation images: an interval of 0.9 needs at least 9" in capsys.readouterr().out
