import csv
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from biocnn.errors import DataError
from biocnn.metrics.segmentation import SegmentationMetrics, score_image
from biocnn.report import segmentation as report
from biocnn.report.figures import learning_curves_figure
from biocnn.report.overlay import overlay
from biocnn.report.segmentation_figures import (
    CURVES,
    best_median_worst,
    curves_figure,
    images_figure,
    overlay_sheet,
)

N, SIZE, EMPTY, THRESHOLD = 12, 32, 4, 0.45
IDS = [f"eye_{number:02d}" for number in range(N)]
GROUPS = [f"patient_{number // 2}" for number in range(N)]
BETTI = ("betti0_error", "betti1_error")


def draw():
    """Vessels in noise, ten steps of probability; image EMPTY has no vessel and none is called."""
    rng = np.random.default_rng(0)
    mask = np.zeros((N, 1, SIZE, SIZE), dtype=bool)
    for image in mask[:, 0]:
        rows, columns = rng.integers(3, SIZE - 5, (2, 2))
        for row, column in zip(rows, columns, strict=True):
            image[row : row + 3] = image[:, column : column + 2] = True
    mask[EMPTY] = False
    noise = rng.normal(size=mask.shape) * np.linspace(0.5, 2, N)[:, None, None, None]
    probability = np.round(1 / (1 + np.exp(-np.where(mask, 2, -2) - noise)), 1).clip(0.1, 0.9)
    probability[EMPTY] = 0.1
    valid = np.ones_like(mask)
    valid[..., :3] = False
    return probability.astype(np.float32), mask, valid


PROBABILITY, MASK, VALID = draw()


@pytest.fixture(scope="module")
def tested():
    metric = SegmentationMetrics(threshold=THRESHOLD)
    metric.update(torch.arange(N), *(torch.from_numpy(array) for array in (PROBABILITY, MASK, VALID)))
    return metric.compute(), metric.rules


def rows_of(table, rows):
    return {name: column[rows] for name, column in table.items()}


def words_of(figure):
    texts = [text for axes in figure.axes for text in [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]]
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
    texts += [text for legend in legends for text in legend.get_texts()]
    return "\n".join([figure.get_suptitle(), *(text.get_text() for text in texts)])


def lines_of(axes):
    return {line.get_label(): line.get_xydata() for line in axes.get_lines()}


def test_metrics_are_flat_plain_and_have_short_names(tested):
    metrics = report.test_metrics(*tested, GROUPS, 0)
    assert json.loads(json.dumps(metrics)) == metrics
    assert metrics["betti0_error"] == metrics["betti0_error_fg8"]
    assert metrics["betti1_error"] == metrics["betti1_error_fg8"]
    assert (metrics["rule_threshold"], metrics["rule_foreground_connectivity"]) == (THRESHOLD, 8)
    assert (metrics["n_images"], metrics["n_groups"], metrics["intervals_over"]) == (N, N // 2, "groups")
    assert metrics["intervals_note"] == "6 groups: intervals from fewer than 10 groups are too narrow"
    assert metrics["dice_undefined"] == 1
    scores = [score_image(p[0], m[0], v[0], threshold=THRESHOLD)[0] for p, m, v in zip(*draw(), strict=True)]
    for name, long in (("dice", "dice"), ("cldice", "cldice"), ("betti0_error", "betti0_error_fg8")):
        assert metrics[name] == pytest.approx(np.nanmean([score[long] for score in scores]), rel=1e-12)


@pytest.mark.parametrize("name", ["dice", "iou", "cldice", "auroc", "sensitivity", "specificity", *BETTI])
@pytest.mark.parametrize("groups", [GROUPS, None])
def test_intervals_contain_the_mean(tested, name, groups):
    metrics = report.test_metrics(*tested, groups, 0)
    assert metrics[f"{name}_low"] < metrics[name] < metrics[f"{name}_high"]


@pytest.mark.parametrize("undefined", [0, 100])
def test_intervals_over_images_are_those_of_the_normal_law(tested, undefined):
    # Over many images the bootstrap of a mean tends to mean +- 1.96 s / sqrt(n), of the n images that have a Dice;
    # 1,000 replicates leave some per cent.
    table = rows_of(tested[0], torch.arange(200 + undefined) % N)
    dice = np.random.default_rng(1).beta(8, 2, 200)
    table["dice"] = torch.from_numpy(np.concatenate([dice, np.full(undefined, np.nan)]))
    metrics = report.test_metrics(table, tested[1], None, 0)
    half = 1.96 * dice.std() / math.sqrt(200)
    assert metrics["dice_high"] - metrics["dice"] == pytest.approx(half, rel=0.15)
    assert metrics["dice"] - metrics["dice_low"] == pytest.approx(half, rel=0.15)
    assert metrics["intervals_over"].startswith("images, taken as independent")
    assert (metrics["n_groups"], metrics["intervals_note"]) == (None, "")


def test_copies_in_a_group_bring_no_evidence(tested):
    single = report.test_metrics(*tested, IDS, 0)
    table = rows_of(tested[0], torch.arange(3 * N) % N)
    copied = report.test_metrics(table, tested[1], IDS * 3, 0)
    for name in ("dice", "cldice", *BETTI):
        assert copied[f"{name}_low"] == pytest.approx(single[f"{name}_low"], rel=1e-12)
        assert copied[f"{name}_high"] == pytest.approx(single[f"{name}_high"], rel=1e-12)


def test_too_few_groups_give_no_interval_instead_of_one_without_width(tested):
    table = rows_of(tested[0], torch.tensor([0, 1, EMPTY]))
    metrics = report.test_metrics(table, tested[1], ["a", "a", "b"], 0)
    assert (metrics["dice_low"], metrics["dice_high"]) == (None, None)  # group b has no Dice
    assert metrics["betti0_error_low"] is not None
    alone = report.test_metrics(rows_of(tested[0], torch.tensor([EMPTY])), tested[1], None, 0)
    assert (alone["dice"], alone["dice_low"], alone["betti0_error"], alone["betti0_error_low"]) == (None, None, 0, None)
    assert "1 image: intervals need at least 2" in alone["intervals_note"]


def test_the_table_holds_every_number_of_every_image(tested, tmp_path):
    report.write_table(tmp_path / "run" / "predictions.csv", tested[0], IDS, GROUPS)
    with open(tmp_path / "run" / "predictions.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["id"] for row in rows] == IDS
    assert [row["group"] for row in rows] == GROUPS
    for number, row in enumerate(rows):
        expected, _ = score_image(PROBABILITY[number, 0], MASK[number, 0], VALID[number, 0], threshold=THRESHOLD)
        assert set(row) == {"id", "group", *expected}
        for name, value in expected.items():
            if math.isnan(value):
                assert row[name] == ""
            else:
                assert float(row[name]) == pytest.approx(value, abs=5e-7)
    assert rows[EMPTY]["dice"] == ""
    assert rows[0]["true_positive"].isdigit()
    assert rows[0]["betti0_truth_fg8"] == "1"
    report.write_table(tmp_path / "bare.csv", tested[0], IDS)
    assert (tmp_path / "bare.csv").read_text().splitlines()[1].startswith("eye_00,,")


def test_best_median_and_worst(tested):
    table = dict(tested[0])
    table["dice"] = torch.tensor([0.5, 0.9, math.nan, 0.7, 0.1, 0.9], dtype=torch.float64)
    assert best_median_worst(table) == {"best": 1, "median": 3, "worst": 4}
    table["dice"] = torch.tensor([math.nan, 0.2, 0.4, 0.3, 0.1], dtype=torch.float64)
    assert best_median_worst(table) == {"best": 2, "median": 1, "worst": 4}
    table["dice"] = torch.tensor([0.2, math.nan, 0.3], dtype=torch.float64)
    assert best_median_worst(table) == {"best": 2, "worst": 0}
    assert best_median_worst(rows_of(table, torch.tensor([0]))) == {"best": 0}
    assert best_median_worst(rows_of(table, torch.tensor([1]))) == {}


def test_images_figure_shows_each_image_by_its_dice(tested):
    metrics = report.test_metrics(*tested, None, 0)
    figure = images_figure(tested[0], IDS, metrics)
    dice = tested[0]["dice"].numpy()
    order = [*sorted(set(range(N)) - {EMPTY}, key=lambda row: -dice[row]), EMPTY]
    first, _, components, loops = figure.axes
    assert [label.get_text() for label in first.get_yticklabels()] == [IDS[row] for row in order]
    assert first.get_lines()[0].get_xdata()[:-1] == pytest.approx(dice[order[:-1]])
    errors = tested[0]["betti0_error_fg8"].numpy()
    assert components.get_lines()[0].get_xdata() == pytest.approx(errors[order])
    assert [text.get_text() for text in first.texts] == ["undefined"]
    assert f"mean {metrics['dice']:.3f}" in first.get_title()
    assert loops.get_xlabel() == "loops, 0 is best"
    long = images_figure(tested[0], [f"{'folder/' * 9}{name}" for name in IDS], metrics)
    assert all(len(label.get_text()) <= 28 for label in long.axes[0].get_yticklabels())


def test_many_images_have_no_names_and_an_empty_one_has_no_dice(tested):
    many = rows_of(tested[0], torch.arange(100) % N)
    figure = images_figure(many, ["x"] * 100, report.test_metrics(many, tested[1], None, 0))
    assert "their names are in predictions.csv" in words_of(figure)
    empty = rows_of(tested[0], torch.tensor([EMPTY]))
    figure = images_figure(empty, ["x"], report.test_metrics(empty, tested[1], None, 0))
    assert "Dice\nno image has one" in words_of(figure)
    assert "Only one class is present" in words_of(curves_figure(empty, THRESHOLD))


def test_curves_are_those_of_all_pixels(tested):
    # Ten steps of probability, each in a bin of its own: then binning changes nothing.
    score, truth = PROBABILITY[VALID], MASK[VALID]
    left, right = curves_figure(tested[0], THRESHOLD).axes
    called = score >= THRESHOLD
    found = (called & truth).sum() / truth.sum()
    wrong = (called & ~truth).sum() / (~truth).sum()
    dice = 2 * (called & truth).sum() / (called.sum() + truth.sum())
    mark = f"threshold 0.450, Dice {dice:.3f}"
    np.testing.assert_allclose(lines_of(left)[mark], [[wrong, found]], rtol=1e-12)
    np.testing.assert_allclose(lines_of(right)[mark], [[found, truth[called].mean()]], rtol=1e-12)
    assert f"AUC {roc_auc_score(truth, score):.4f}" in lines_of(left)
    assert f"average precision {average_precision_score(truth, score):.3f}" in lines_of(right)
    assert f"chance ({100 * truth.mean():.1f} % of the pixels)" in lines_of(right)


def test_sheet_names_the_images_and_checks_the_pictures(tested):
    pictures = [np.zeros(shape, np.uint8) for shape in ((20, 30, 3), (90, 10, 3), (10, 90, 3))]
    figure = overlay_sheet(pictures, tested[0], IDS)
    assert [axes.get_title().split(":")[0] for axes in figure.axes] == ["best", "median", "worst"]
    row = best_median_worst(tested[0])["worst"]
    scores = f"Dice {tested[0]['dice'][row]:.3f}, clDice {tested[0]['cldice'][row]:.3f}"
    assert figure.axes[2].get_title().split("\n")[:2] == [f"worst: {IDS[row]}", scores]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["found", "missed", "false"]
    for axes, picture in zip(figure.axes, pictures, strict=True):
        box = axes.get_position()
        width, height = np.array([box.width, box.height]) * figure.get_size_inches()
        assert height / width == pytest.approx(picture.shape[0] / picture.shape[1])
        assert 0 <= box.x0 < box.x1 <= 1
        assert 0 < box.y0 < box.y1 < 1
    with pytest.raises(DataError, match=r"one for each of \['best', 'median', 'worst'\], received 2"):
        overlay_sheet(pictures[:2], tested[0], IDS)
    with pytest.raises(DataError, match=r"expected uint8 \(H, W, 3\), received float64 \(20, 30\)"):
        overlay_sheet([np.zeros((20, 30)), *pictures[1:]], tested[0], IDS)


def write_curves(path, header, rows):
    with open(path, "w", newline="") as handle:
        csv.writer(handle).writerows([header, *rows])
    return path


def test_learning_curves_mark_the_checkpoint_and_stand_missing_columns(tmp_path):
    header = ["epoch", "step", "train_loss", "val_dice", "val_betti0_error_fg8"]
    rows = [[0, 5, 0.9, "", ""], [0, 10, "", 0.6, 40], [1, 20, "", 0.8, 12], [2, 30, "", 0.7, 8]]
    figure = learning_curves_figure(write_curves(tmp_path / "a.csv", header, rows), CURVES, "val_dice")
    loss, score, betti = figure.axes
    assert lines_of(loss)["checkpoint kept (best val_dice)"][:, 0].tolist() == [20, 20]
    assert lines_of(score)["validation Dice, best 0.800 in epoch 1"].tolist() == [[10, 0.6], [20, 0.8], [30, 0.7]]
    # The lowest error is the best.
    assert "validation Betti-0 (components), best 8.000 in epoch 2" in lines_of(betti)
    figure = learning_curves_figure(tmp_path / "a.csv", CURVES, "val_cldice")
    assert "checkpoint kept" not in words_of(figure)
    empty = write_curves(tmp_path / "b.csv", ["epoch", "step", "other"], [[0, 1, 2]])
    assert "No curve has been logged yet." in words_of(learning_curves_figure(empty, CURVES))


def test_write_figures_leaves_pictures_that_are_not_blank(tested, tmp_path):
    table, rules = tested
    metrics = report.test_metrics(table, rules, GROUPS, 0)
    pictures = [
        overlay(255 * PROBABILITY[row, 0], PROBABILITY[row, 0] >= THRESHOLD, MASK[row, 0], VALID[row, 0])
        for row in best_median_worst(table).values()
    ]
    header, rows = ["epoch", "step", "train_loss", "val_dice"], [[0, 5, 0.9, ""], [0, 10, "", 0.6]]
    curves = write_curves(tmp_path / "metrics.csv", header, rows)
    report.write_figures(tmp_path / "all", table, IDS, metrics, curves, pictures, monitor="val_dice")
    names = {"images.png", "roc.png", "overlays.png", "learning_curves.png"}
    assert {path.name for path in (tmp_path / "all").iterdir()} == names
    for path in (tmp_path / "all").iterdir():
        pixels = np.asarray(Image.open(path).convert("L"))
        assert min(pixels.shape) > 400
        assert pixels.std() > 10
    report.write_figures(tmp_path / "few", table, IDS, metrics, tmp_path / "absent.csv")
    assert {path.name for path in (tmp_path / "few").iterdir()} == {"images.png", "roc.png"}


def test_wrong_numbers_of_names_are_refused(tested, tmp_path):
    with pytest.raises(DataError, match=r"groups: expected one for each of the 12 images of the table, received 11"):
        report.test_metrics(*tested, GROUPS[1:], 0)
    with pytest.raises(DataError, match=r"ids: expected one for each of the 12 images"):
        report.write_table(tmp_path / "a.csv", tested[0], IDS[1:])
    with pytest.raises(DataError, match=r"ids: expected one for each of the 12 images"):
        images_figure(tested[0], [*IDS, "more"], report.test_metrics(*tested, None, 0))
    assert not list(tmp_path.iterdir())


def test_summary_says_the_numbers_the_rules_and_the_places(tested, tmp_path, capsys):
    metrics = report.test_metrics(*tested, GROUPS, 0)
    report.print_summary(metrics, tmp_path)
    said = capsys.readouterr().out
    assert "test: 12 images of 6 groups; means over images" in said
    interval = f"(95 % interval {metrics['dice_low']:.4f} to {metrics['dice_high']:.4f})"
    assert f"{metrics['dice']:.4f} {interval}, undefined for 1 of 12 images" in said
    assert "threshold 0.45" in said
    assert "foreground connectivity 8" in said
    assert "intervals over groups; 6 groups: intervals from fewer than 10 groups are too narrow" in said
    assert f"table:    {tmp_path / 'predictions.csv'}" in said
    report.print_summary(report.test_metrics(rows_of(tested[0], torch.tensor([EMPTY])), tested[1], None, 0), tmp_path)
    assert "Dice           undefined, undefined for 1 of 1 images" in capsys.readouterr().out


def test_three_dimensions_have_a_third_betti_number(tmp_path):
    metric = SegmentationMetrics(ndim=3)
    mask = torch.zeros(2, 1, 5, 5, 5)
    mask[:, :, 1:4, 1:4, 1:4] = 1
    metric.update(torch.arange(2), mask * 0.8 + 0.1, mask)
    table = metric.compute()
    metrics = report.test_metrics(table, metric.rules, None, 0)
    assert (metrics["dice"], metrics["betti2_error"], metrics["betti2_error_fg26"]) == (1.0, 0.0, 0.0)
    labels = [axes.get_xlabel() for axes in images_figure(table, ["a", "b"], metrics).axes]
    assert labels[2:] == ["components, 0 is best", "handles, 0 is best", "cavities, 0 is best"]
