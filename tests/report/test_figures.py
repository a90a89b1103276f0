import csv

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from biocnn.errors import DataError
from biocnn.report.figures import (
    learning_curves_figure,
    mistakes_gallery_figure,
    most_confident_mistakes,
    reliability_figure,
    roc_figure,
    save_figure,
)


def _words(figure: Figure) -> str:
    texts = [text for axes in figure.axes for text in [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]]
    texts += [text for axes in figure.axes if axes.get_legend() for text in axes.get_legend().get_texts()]
    heading = figure.get_suptitle()
    return "\n".join([heading, *(text.get_text() for text in texts)])


def _lines(axes):
    return {line.get_label(): line.get_xydata() for line in axes.get_lines()}


def _write(path, header, rows):
    with open(path, "w", newline="") as handle:
        csv.writer(handle).writerows([header, *rows])
    return path


def _case():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 200)
    return label, np.clip(0.5 + 0.3 * (2 * label - 1) + 0.3 * rng.normal(size=200), 0, 1)


def test_roc_figure_shows_area_interval_and_operating_points():
    # One of two positives and no negative at 0.5; both positives and one of two negatives at 0.25.
    figure = roc_figure([0, 0, 1, 1], [0.1, 0.3, 0.3, 0.8], interval=(0.5, 1.0), threshold=0.25)
    words = _words(figure)
    assert "AUC 0.875 (95 % interval 0.500 to 1.000)" in words
    lines = _lines(figure.axes[0])
    assert lines["threshold 0.5"].tolist() == [[0.0, 0.5]]
    assert lines["threshold 0.250 (validation)"].tolist() == [[0.5, 1.0]]


def test_roc_figure_without_interval_or_with_one_class():
    label, probability = _case()
    assert "interval" not in _words(roc_figure(label, probability, interval=(float("nan"), float("nan"))))
    assert "threshold 0.5" in _words(roc_figure(label, probability))
    assert "Only one class is present" in _words(roc_figure([1, 1], [0.2, 0.7]))


def _finite(line):
    points = line.get_xydata()
    return points[np.isfinite(points).all(1)].tolist()


def test_reliability_figure_shows_both_curves_and_their_errors():
    # Twenty samples at probability 1, half of them positive: both errors are 0.5. At 0.5 both are zero.
    figure = reliability_figure([0, 1] * 10, [1.0] * 20, [0.5] * 20)
    words = _words(figure)
    assert "before: ECE 0.500 top-label, 0.500 positive" in words
    assert "calibrated: ECE 0.000 top-label, 0.000 positive" in words
    points = [_finite(line) for line in figure.axes[0].get_lines()]
    assert [[1.0, 0.5]] in points
    assert [[0.5, 0.5]] in points


def test_reliability_figure_does_not_join_bins_of_a_few_samples():
    figure = reliability_figure([0, 1] * 10 + [1], [1.0] * 20 + [0.2], [1.0] * 20 + [0.2])
    firm, few = figure.axes[0].get_lines()[1:]
    assert _finite(firm) == [[1.0, 0.5]]
    assert _finite(few) == [[0.2, 1.0]]
    assert "fewer than 10 samples" in few.get_label()
    assert few.get_linestyle() == "None"
    assert few.get_markerfacecolor() == "none"


def test_reliability_figure_draws_one_curve_if_nothing_was_recalibrated():
    label, probability = _case()
    figure = reliability_figure(label, probability, probability)
    assert "not recalibrated: ECE" in _words(figure)
    named = [line.get_label() for line in figure.axes[0].get_lines() if line.get_label().startswith("not recal")]
    assert len([name for name in named if "ECE" in name]) == 1
    assert not [line for line in figure.axes[0].get_lines() if line.get_label().startswith("calibrated")]


def test_learning_curves_read_rows_with_blanks(tmp_path):
    rows = [[0, "1e-3", 0, "", "", ""], [0, "", 0, "0.9", "", ""], [0, "", 10, "0.7", "", ""]]
    rows += [[0, "", 10, "", "0.80", "0.5"], [1, "5e-4", 20, "", "", ""], [1, "", 20, "", "0.85", "0.6"]]
    path = _write(tmp_path / "metrics.csv", ["epoch", "lr-AdamW", "step", "train_loss", "val_auroc", "val_nll"], rows)
    figure = learning_curves_figure(path)
    loss, area, rate = figure.axes
    lines = _lines(loss)
    assert lines["training loss"].tolist() == [[0, 0.9], [10, 0.7]]
    assert lines["validation NLL, best 0.500 in epoch 0"].tolist() == [[10, 0.5], [20, 0.6]]
    assert _lines(area)["validation AUC, best 0.850 in epoch 1"].tolist() == [[10, 0.8], [20, 0.85]]
    assert rate.get_lines()[0].get_xydata().tolist() == [[0, 1e-3], [20, 5e-4]]
    assert rate.get_xlabel() == "optimiser step"


def test_training_loss_is_smoothed_without_sagging_at_the_ends(tmp_path):
    rows = [[step, 2.0] for step in range(300)]
    figure = learning_curves_figure(_write(tmp_path / "metrics.csv", ["step", "train_loss"], rows))
    smooth = _lines(figure.axes[0])["training loss, mean of 10 records"]
    np.testing.assert_allclose(smooth[:, 1], 2.0, rtol=1e-12)


def test_learning_curves_stand_missing_columns_and_broken_rows(tmp_path):
    # A resumed run goes back to an earlier step, and the last row of a killed run is cut short.
    rows = [[0, 20, "0.3"], [0, 10, "0.4"], [0]]
    figure = learning_curves_figure(_write(tmp_path / "a.csv", ["epoch", "step", "val_nll"], rows))
    assert len(figure.axes) == 1
    assert figure.axes[0].get_lines()[0].get_xydata().tolist() == [[10, 0.4], [20, 0.3]]
    empty = learning_curves_figure(_write(tmp_path / "b.csv", ["step", "train_loss"], []))
    assert "No curve has been logged yet." in _words(empty)
    with pytest.raises(DataError, match=r"c\.csv: expected a column 'step', .* received \['epoch'\]"):
        learning_curves_figure(_write(tmp_path / "c.csv", ["epoch"], [[1]]))
    with pytest.raises(FileNotFoundError):
        learning_curves_figure(tmp_path / "absent.csv")


def test_mistakes_are_ordered_by_their_distance_from_the_label():
    label, probability = [0, 1, 1, 0, 0, 1], [0.7, 0.1, 0.8, 0.2, 0.99, 0.25]
    assert most_confident_mistakes(label, probability).tolist() == [4, 1, 5, 0]
    assert most_confident_mistakes(label, probability, count=2).tolist() == [4, 1]
    assert most_confident_mistakes(label, probability, threshold=0.2).tolist() == [4, 1, 0, 3]
    assert most_confident_mistakes([0, 1], [0.1, 0.9]).size == 0


def _images(count, height=96, width=96):
    return np.random.default_rng(0).integers(0, 255, (count, height, width, 3), dtype=np.uint8)


def test_gallery_names_each_mistake_and_marks_the_centre():
    figure = mistakes_gallery_figure(
        _images(5, 96, 64),
        [0, 1, 0, 1, 0],
        [0.98, 0.02, 0.9, 0.1, 0.7],
        [0.01, 0.02, 0.03, 0.04, np.nan],
        list("abcde"),
        class_names=("normal", "tumour"),
    )
    first, last = figure.axes[0], figure.axes[4]
    assert first.get_title() == "a\nlabelled normal\np = 0.980 ± 0.010"
    assert last.get_title() == "e\nlabelled normal\np = 0.700"
    # Columns 16 to 47 and rows 32 to 63, to the outer edge of the pixels.
    assert first.patches[0].get_bbox().extents.tolist() == [15.5, 31.5, 47.5, 63.5]
    assert "probability of 'tumour'" in _words(figure)


def test_gallery_without_box_spread_or_mistakes():
    figure = mistakes_gallery_figure(_images(1), [1], [0.2], None, ["only"], box=None)
    assert len(figure.axes[0].patches) == 0
    assert "±" not in _words(figure)
    assert "there is no mistake to show" in _words(mistakes_gallery_figure(_images(0), [], [], None, []))


def test_gallery_errors_say_what_came():
    with pytest.raises(DataError, match=r"of 2 images, received \[2, 2, 2, 1\]"):
        mistakes_gallery_figure(_images(2), [0, 1], [0.9, 0.1], None, ["a"])
    with pytest.raises(DataError, match=r"images: expected uint8 \(K, H, W, 3\), received float64 \(1, 96, 96, 3\)"):
        mistakes_gallery_figure(_images(1).astype(float), [0], [0.9], None, ["a"])


@pytest.mark.parametrize("suffix", [".png", ".pdf"])
def test_save_figure_leaves_one_whole_file(tmp_path, suffix):
    label, probability = _case()
    path = tmp_path / "figures" / f"roc{suffix}"
    save_figure(roc_figure(label, probability), path, dpi=50)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    if suffix == ".png":
        with Image.open(path) as image:
            assert image.size == (280, 280)
    else:
        assert path.read_bytes().startswith(b"%PDF")


def test_every_figure_can_be_drawn(tmp_path):
    label, probability = _case()
    wrong = most_confident_mistakes(label, probability, count=6)
    curves = _write(tmp_path / "metrics.csv", ["step", "train_loss", "val_nll"], [[1, 0.5, ""], [1, "", 0.4]])
    figures = [
        roc_figure(label, probability, (0.8, 0.9), 0.3),
        reliability_figure(label, probability, probability**2),
        learning_curves_figure(curves),
        mistakes_gallery_figure(_images(6), label[wrong], probability[wrong], None, [str(k) for k in wrong]),
    ]
    for index, figure in enumerate(figures):
        save_figure(figure, tmp_path / f"{index}.png", dpi=40)
        pixels = np.asarray(Image.open(tmp_path / f"{index}.png").convert("L"))
        assert pixels.std() > 5
