"""What the prediction of an image gives: arrays on the grid of the image, measures, pictures and files.

Notation: H rows, W columns, C channels of the image as it was read; N points. Everything is on the grid of the image,
also where it was resampled for the network. Measures have their unit in their name; what is not known is None.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import networkx as nx
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from biocnn.data.graph_files import write_graph
from biocnn.data.graphs import total_length
from biocnn.data.ome_tiff import write_ome_tiff
from biocnn.data.outline_files import write_mask_geojson, write_points_csv, write_points_geojson
from biocnn.delineation.delineate import delineate
from biocnn.files import atomic_path
from biocnn.inference.tables import write_csv

PixelSize = tuple[float, float]

STRUCTURE_COLUMNS = (
    *("structure_px", "structure_fraction", "structure_um2", "length_um", "length_px", "branch_points"),
    *("mean_width_um", "mean_width_px"),
)
COUNT_COLUMNS = ("cells", "cells_low", "cells_high", "points", "cells_per_mm2")
PATCH_COLUMNS = ("patches", "positive_patches", "positive_fraction", "mean_probability", "max_probability")
_FOUND = "#F0E442"  # yellow of Okabe & Ito (2008): on a grey image, readers of all kinds of colour vision see it


class Count(NamedTuple):
    """A count with its interval, in cells.

    Attributes:
        cells: the sum of the density; seldom a whole number, and below 0 where a network predicts less than nothing.
        low: 0 without an interval.
        high: infinite without an interval, as below 0, where no validation image was.
    """

    cells: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class TubularityResult:
    """A tubularity map and its mask.

    Attributes:
        source: path of the image, ``""`` for an array.
        image: (H, W, C), as it was read.
        probability: (H, W) float32, 0..1.
        mask: (H, W) bool.
        pixel_size_um: micrometres per pixel, row and column; None if not known.
        threshold: least probability of a pixel of the mask.
        flags: what makes the result doubtful, in words.
        resampled_um: pixel size to which the image was resampled for the network; None if it was not.
    """

    source: str
    image: np.ndarray
    probability: NDArray[np.float32]
    mask: NDArray[np.bool_]
    pixel_size_um: PixelSize | None
    threshold: float
    flags: tuple[str, ...] = ()
    resampled_um: PixelSize | None = None

    def graph(self, **options: Any) -> nx.MultiGraph:
        """The graph of the structures, in micrometres where the pixel size is known.

        Args:
            **options: of :func:`biocnn.delineation.delineate.delineate`; its threshold is that of the mask by default,
                and the specks that the mask leaves out are left out.
        """
        specks = (self.probability >= self.threshold) & ~self.mask
        return delineate(
            np.where(specks, np.float32(0), self.probability),
            self.pixel_size_um,
            **{"threshold": self.threshold, **options},
        )

    def measures(self, graph: nx.MultiGraph | None = None) -> dict[str, Any]:
        """Values of `STRUCTURE_COLUMNS`; lengths and widths are those of a graph, None without one."""
        return structure_measures(int(self.mask.sum()), self.mask.size, self.pixel_size_um, graph)

    def plot(self, axes: Axes | None = None) -> Axes:
        """Draw the image, grey, with the mask on it; in axes of a new figure when None, which ``axes.figure`` is."""
        panel = _picture(self.image, axes)
        layer = np.ma.masked_where(~self.mask, np.ones(self.mask.shape))
        panel.imshow(layer, cmap=ListedColormap([_FOUND]), alpha=0.7, interpolation="nearest")
        panel.set_title(f"{100 * self.mask.mean():.1f} % structure")
        return panel

    def save(self, folder: str | Path, graph: nx.MultiGraph | None = None) -> list[Path]:
        """Write map, mask and graph; returns the paths.

        They are ``map.ome.tif``, ``mask.png`` and, for QuPath, ``mask.geojson``; of a graph ``graph.graphml`` and
        ``graph.geojson``.
        """
        target = Path(folder)
        written = [target / "map.ome.tif", target / "mask.png", target / "mask.geojson"]
        write_ome_tiff(written[0], self.probability.shape, np.float32, iter([self.probability]), self.pixel_size_um)
        with atomic_path(written[1]) as temporary:
            Image.fromarray(self.mask.astype(np.uint8) * np.uint8(255)).save(temporary, format="PNG")
        write_mask_geojson(written[2], self.mask, pixel_size_um=self.pixel_size_um)
        if graph is not None:
            for name in ("graph.graphml", "graph.geojson"):
                write_graph(target / name, graph)
                written.append(target / name)
        return written


@dataclass(frozen=True, eq=False)
class CountResult:
    """A count with its interval, the density whose sum it is, and points.

    Attributes:
        source: path of the image, ``""`` for an array.
        image: (H, W, C), as it was read.
        density: (H, W) float32, cells per pixel.
        count: cells, and both ends of the interval.
        points: (N, 2) float32, row and column, strongest first; None if the width of the kernels is not known.
        pixel_size_um: micrometres per pixel, row and column; None if not known.
        flags: what makes the count doubtful, in words.
        resampled_um: pixel size to which the image was resampled for the network; None if it was not.
    """

    source: str
    image: np.ndarray
    density: NDArray[np.float32]
    count: Count
    points: NDArray[np.float32] | None
    pixel_size_um: PixelSize | None
    flags: tuple[str, ...] = ()
    resampled_um: PixelSize | None = None

    def measures(self) -> dict[str, Any]:
        """Values of `COUNT_COLUMNS`."""
        points = None if self.points is None else len(self.points)
        return count_measures(self.count, points, self.density.size, self.pixel_size_um)

    def plot(self, axes: Axes | None = None) -> Axes:
        """Draw the image, grey, with the points on it, or the density if there are none to draw."""
        panel = _picture(self.image, axes)
        if self.points is None:
            panel.imshow(self.density, cmap="magma", alpha=0.6, interpolation="nearest")
        else:
            panel.plot(self.points[:, 1], self.points[:, 0], "+", color=_FOUND, markersize=5)
        cells, low, high = self.count
        interval = f" ({low:.1f} to {high:.1f})" if math.isfinite(high) else ""
        panel.set_title(f"{cells:.1f} cells{interval}")
        return panel

    def save(self, folder: str | Path) -> list[Path]:
        """Write ``map.ome.tif``, and if there are points ``points.csv`` and ``points.geojson``; returns them."""
        target = Path(folder)
        written = [target / "map.ome.tif"]
        write_ome_tiff(written[0], self.density.shape, np.float32, iter([self.density]), self.pixel_size_um)
        return written if self.points is None else written + write_points(target, self.points)


@dataclass(frozen=True, eq=False)
class PatchResult:
    """Probabilities of the patches of an image, on a grid without overlap that begins in the upper left corner.

    Attributes:
        source: path of the image, ``""`` for an array.
        image: (H, W, C), as it was read.
        probability: (rows, columns) of the grid, float64, 0..1, calibrated.
        patch_size: rows and columns of a patch in pixels of the image; no whole numbers where it was resampled.
        threshold: probability from which a patch is called positive.
        pixel_size_um: micrometres per pixel, row and column; None if not known.
        flags: what makes the result doubtful, in words.
        resampled_um: pixel size to which the image was resampled for the network; None if it was not.
    """

    source: str
    image: np.ndarray
    probability: NDArray[np.float64]
    patch_size: tuple[float, float]
    threshold: float
    pixel_size_um: PixelSize | None
    flags: tuple[str, ...] = ()
    resampled_um: PixelSize | None = None

    @property
    def positive(self) -> NDArray[np.bool_]:
        """(rows, columns), which patches are called positive."""
        return np.asarray(self.probability >= self.threshold)

    def measures(self) -> dict[str, Any]:
        """Values of `PATCH_COLUMNS`."""
        values = self.probability
        return {
            "patches": values.size,
            "positive_patches": int(self.positive.sum()),
            "positive_fraction": round(float(self.positive.mean()), 6),
            "mean_probability": round(float(values.mean()), 6),
            "max_probability": round(float(values.max()), 6),
        }

    def plot(self, axes: Axes | None = None) -> Axes:
        """Draw the image, grey, with the probability of each patch as a colour."""
        panel = _picture(self.image, axes)
        rows, columns = (np.array(self.probability.shape) * self.patch_size).tolist()
        shades = panel.imshow(
            self.probability,
            cmap="viridis",
            vmin=0,
            vmax=1,
            alpha=0.5,
            extent=(-0.5, columns - 0.5, rows - 0.5, -0.5),
            interpolation="nearest",
        )
        panel.figure.colorbar(shades, ax=panel, label="probability")
        panel.set(xlim=(-0.5, self.image.shape[1] - 0.5), ylim=(self.image.shape[0] - 0.5, -0.5))
        panel.set_title(f"{int(self.positive.sum())} of {self.probability.size} patches positive")
        return panel

    def save(self, folder: str | Path) -> list[Path]:
        """Write ``patches.csv``, a row for each patch with its upper left corner in pixels; returns its path."""
        target = Path(folder) / "patches.csv"
        corners = np.indices(self.probability.shape).reshape(2, -1).T * self.patch_size
        rows = [
            {"row": round(row, 2), "column": round(column, 2), "probability": round(p, 6), "positive": int(called)}
            for (row, column), p, called in zip(
                corners.tolist(), self.probability.ravel().tolist(), self.positive.ravel(), strict=True
            )
        ]
        write_csv(target, rows, ("row", "column", "probability", "positive"))
        return [target]


Result = TubularityResult | CountResult | PatchResult


def structure_measures(
    pixels: int, area: int, pixel_size_um: PixelSize | None, graph: nx.MultiGraph | None = None
) -> dict[str, Any]:
    """Values of `STRUCTURE_COLUMNS`.

    Args:
        pixels: of the structure.
        area: pixels of the image.
        pixel_size_um: None leaves micrometres unknown.
        graph: None leaves lengths, branch points and widths unknown.
    """
    values = dict.fromkeys(STRUCTURE_COLUMNS)
    known = {
        "structure_px": pixels,
        "structure_fraction": round(pixels / area, 6),
        "structure_um2": None if pixel_size_um is None else round(pixels * math.prod(pixel_size_um), 4),
    }
    if graph is not None:
        unit = graph.graph["unit"]
        edges = [data for *_, data in graph.edges(data=True) if math.isfinite(data["width"])]
        length = math.fsum(data["length"] for data in edges)
        width = math.fsum(data["width"] * data["length"] for data in edges) / length if length else None
        known |= {
            f"length_{unit}": round(total_length(graph), 4),
            "branch_points": sum(degree > 2 for _, degree in graph.degree),
            f"mean_width_{unit}": None if width is None else round(width, 4),
        }
    return values | known


def count_measures(count: Count, points: int | None, area: int, pixel_size_um: PixelSize | None) -> dict[str, Any]:
    """Values of `COUNT_COLUMNS`.

    Args:
        count: of the image; the ends of an interval that is not known stay unknown.
        points: their number.
        area: pixels of the image.
        pixel_size_um: None leaves the density unknown.
    """
    known = math.isfinite(count.high)
    square_mm = None if pixel_size_um is None else area * math.prod(pixel_size_um) / 1e6
    return {
        "cells": round(count.cells, 2),
        "cells_low": round(count.low, 2) if known else None,
        "cells_high": round(count.high, 2) if known else None,
        "points": points,
        "cells_per_mm2": None if square_mm is None else round(count.cells / square_mm, 4),
    }


def write_points(folder: Path, points: NDArray[np.floating]) -> list[Path]:
    """Write points (N, 2) as ``points.csv``, which napari opens, and ``points.geojson`` for QuPath; returns both."""
    write_points_csv(folder / "points.csv", points)
    write_points_geojson(folder / "points.geojson", points)
    return [folder / "points.csv", folder / "points.geojson"]


def _picture(image: np.ndarray, axes: Axes | None) -> Axes:
    """Axes with the image in grey: the mean of its channels, from the 1st to the 99th percentile."""
    panel = Figure(figsize=(6, 6), layout="constrained").subplots() if axes is None else axes
    grey = image.mean(axis=-1) if image.ndim == 3 else image
    low, high = np.percentile(grey, (1, 99))
    panel.imshow(grey, cmap="gray", vmin=low, vmax=max(high, low + 1e-12))
    panel.set(xticks=[], yticks=[])
    return panel
