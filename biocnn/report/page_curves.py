"""Learning curves as SVG in the page: lines take their colours from its style sheet, so both schemes can be read."""

import csv
import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from biocnn.report.figures import PATCH_PANELS, Panels
from biocnn.report.page import Html, element, number
from biocnn.report.segmentation_figures import CURVES

COUNT_PANELS: Panels = (
    ("training loss", [("train_loss", "training loss")]),
    ("error (cells per image)", [("val_mae", "validation MAE"), ("val_rmse", "validation RMSE")]),
    ("bias (cells per image)", [("val_bias", "validation bias")]),
    ("learning rate", [("lr*", "learning rate")]),
)
PANELS: Mapping[str, Panels] = {"segmentation": CURVES, "counting": COUNT_PANELS, "classification": PATCH_PANELS}

WIDTH, HEIGHT = 480, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 12, 14, 48
_DASHES = (None, "9 5", "3 4", "12 4 3 4")
_COLOURS = ("var(--one)", "var(--two)", "var(--three)", "var(--four)")
_POINTS = 300
"""Of a line: more are not seen on a panel of this width, and each is the mean of as many records."""
_LOG_FROM = 30.0
"""Ratio of the largest to the smallest value from which an axis is logarithmic."""

Floats = NDArray[np.float64]


def read_curves(path: Path) -> dict[str, Floats]:
    """Columns of a `metrics.csv`: (K, 2) of step and value for each that holds a number; empty without the file.

    Rows cut short by a kill, and cells that are no numbers, are passed over.
    """
    try:
        with path.open(newline="", encoding="utf-8") as handle:
            rows = list(csv.DictReader(handle))
    except OSError:
        return {}
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        step = _finite(row.get("step"))
        for name, cell in row.items():
            value = _finite(cell)
            if name not in (None, "step", "epoch") and step is not None and value is not None:
                found.setdefault(name, []).append((step, value))
    return {name: np.array(sorted(points), dtype=np.float64) for name, points in found.items()}


def _finite(cell: object) -> float | None:
    try:
        value = float(str(cell))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def curves_html(columns: Mapping[str, Floats], job: str, monitor: str | None) -> Html | None:
    """Panels of learning curves, or None if nothing has been logged.

    Args:
        columns: of :func:`read_curves`.
        job: one of `PANELS`; another one gets a panel for each column.
        monitor: the column whose best chose the checkpoint; a dashed line marks it.
    """
    panels = PANELS.get(job) or [(name, [(name, name)]) for name in columns]
    kept = columns.get(monitor or "")
    mark = None if kept is None or monitor is None else best_of(monitor, kept)[0]
    steps = np.concatenate([points[:, 0] for points in columns.values()]) if columns else np.zeros(1)
    span = (float(steps.min()), float(steps.max()))
    drawn = []
    for title, curves in panels:
        names = [(_first(columns, pattern), text) for pattern, text in curves]
        known = {text: (name, columns[name]) for name, text in names if name is not None}
        if known:
            drawn.append(_panel(title.replace("\n", " "), known, span, mark))
    return element("div", *drawn, class_="curves") if drawn else None


def _first(columns: Mapping[str, Floats], pattern: str) -> str | None:
    return next((name for name in columns if fnmatch(name, pattern)), None)


def best_of(name: str, points: Floats) -> tuple[float, float]:
    """Step and value of the best point of a column: the first lowest of an error, the first highest of a score."""
    value = np.abs(points[:, 1]) if "bias" in name else points[:, 1]
    lower = any(word in name for word in ("loss", "nll", "bce", "error", "mae", "rmse", "game", "bias", "ece"))
    place = int(np.argmin(value) if lower else np.argmax(value))
    return float(points[place, 0]), float(points[place, 1])


def _panel(title: str, curves: Mapping[str, tuple[str, Floats]], span: tuple[float, float], mark: float | None) -> Html:
    """A figure with a title, the lines over the steps of `span`, and a legend."""
    every = np.concatenate([points for _, points in curves.values()])
    sizes = [-(-len(points) // _POINTS) for _, points in curves.values()]
    low, high = float(every[:, 1].min()), float(every[:, 1].max())
    logarithmic = low > 0 and high > _LOG_FROM * low
    ticks = _log_ticks(low, high) if logarithmic else _ticks(low, high)
    across = _Scale(*span, _LEFT, WIDTH - _RIGHT)
    upward = _Scale(min(low, ticks[0]), max(high, ticks[-1]), HEIGHT - _BOTTOM, _TOP, logarithmic)
    parts = [_grid(ticks, span, across, upward)]
    if mark is not None:
        place = f"{across(mark):.1f}"
        parts.append(element("line", x1=place, x2=place, y1=_TOP, y2=HEIGHT - _BOTTOM, class_="kept"))
    words = []
    styles = zip(_COLOURS, _DASHES, strict=True)
    for (text, (name, points)), size, (colour, dash) in zip(curves.items(), sizes, styles, strict=False):
        parts.append(_line(_thinned(points, size), across, upward, colour, dash))
        words.append(_legend(text, name, points, size, colour, dash))
    drawing = element(
        "svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=f"{title} against the optimiser step"
    )
    return element("figure", element("h3", title), drawing, element("figcaption", element("ul", *words)))


class _Scale:
    """A linear or logarithmic map of values to the coordinates of a drawing."""

    def __init__(self, low: float, high: float, start: float, end: float, logarithmic: bool = False) -> None:
        self._of = math.log10 if logarithmic else float
        self._low, self._start = self._of(low), start
        self._factor = (end - start) / ((self._of(high) - self._low) or 1.0)

    def __call__(self, value: float) -> float:
        return self._start + (self._of(value) - self._low) * self._factor


def _ticks(low: float, high: float) -> list[float]:
    if high == low:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    return [float(tick) for tick in MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)]


def _log_ticks(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    step = max(1, (last - first) // 4)
    return [10.0**power for power in range(first, last + step, step)]


def _grid(ticks: Sequence[float], span: tuple[float, float], across: _Scale, upward: _Scale) -> Html:
    left, right, bottom = _LEFT, WIDTH - _RIGHT, HEIGHT - _BOTTOM
    parts = []
    for tick in ticks:
        height = f"{upward(tick):.1f}"
        parts.append(element("line", x1=left, x2=right, y1=height, y2=height, class_="grid"))
        parts.append(
            element(
                "text",
                f"{tick:,.0f}" if abs(tick) >= 1000 else f"{tick:.3g}",
                x=left - 8,
                y=f"{upward(tick) + 5:.1f}",
                text_anchor="end",
            )
        )
    for step in MaxNLocator(4, integer=True).tick_values(*span):
        if span[0] <= step <= span[1]:
            text = f"{step:,.0f}"
            parts.append(element("text", text, x=f"{across(step):.1f}", y=bottom + 20, text_anchor="middle"))
    parts.append(element("text", "optimiser step", x=(left + right) / 2, y=HEIGHT - 6, text_anchor="middle"))
    return element("g", *parts)


def _thinned(points: Floats, size: int) -> Floats:
    """Means of so many neighbours each; fewer in the last."""
    starts = np.arange(0, len(points), size)
    counts = np.diff([*starts, len(points)])[:, None]
    return np.asarray(np.add.reduceat(points, starts, axis=0) / counts, dtype=np.float64)


def _line(points: Floats, across: _Scale, upward: _Scale, colour: str, dash: str | None) -> Html:
    places = [(across(step), upward(value)) for step, value in points]
    if len(places) == 1:
        return element("circle", cx=f"{places[0][0]:.1f}", cy=f"{places[0][1]:.1f}", r=4, style=f"fill:{colour}")
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return element("polyline", points=path, class_="line", style=f"stroke:{colour}", stroke_dasharray=dash)


def _legend(text: str, name: str, points: Floats, size: int, colour: str, dash: str | None) -> Html:
    border = "solid" if dash is None else "dotted" if dash == _DASHES[2] else "dashed"
    key = element("span", class_="key", style=f"border-top:3px {border} {colour}")
    if name.startswith("val_"):
        step, value = best_of(name, points)
        return element("li", key, f"{text}, best ", number(value), f" at step {step:,.0f}")
    return element("li", key, f"{text}, mean of {size} records" if size > 1 else text)
