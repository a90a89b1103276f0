"""Networks that return what they are shown make what is expected easy to say: see `Shown`."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import torch
from torch import nn

from biocnn.data.density import rasterise
from biocnn.data.graph_files import read_graph
from biocnn.data.graphs import total_length
from biocnn.data.images import read_image
from biocnn.data.points import read_points
from biocnn.errors import DataError
from biocnn.inference.classification import PatchClassifier
from biocnn.inference.counting import Counter
from biocnn.inference.results import CountResult, PatchResult
from biocnn.inference.segmentation import Segmenter
from biocnn.metrics.calibration import Calibration
from biocnn.metrics.conformal import ConformalInterval
from biocnn.tasks.classification import ClassificationTask
from biocnn.tasks.counting import CountingTask
from biocnn.tasks.segmentation import SegmentationTask
from biocnn.tasks.thresholds import Thresholds


class Shown(nn.Module):
    """The normalised image."""

    halo, stride = 0, 1

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image


class Mean(nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.mean((1, 2, 3))[:, None]


def segmenter(min_component: int = 0, **data: Any) -> Segmenter:
    """The probability is that of a logit which is 0 at 127.5 and 5 at 255."""
    task = SegmentationTask(Shown(), image_mean=[0.5], image_std=[0.1], test_time_augmentation=False)
    task.thresholds, task.data_description = Thresholds(0.5, min_component, 1, 1, True), data
    return Segmenter(task.eval())


def counter(**data: Any) -> Counter:
    """The density is the image, whose values are divided by 255 as nothing is known of a training."""
    task = CountingTask(Shown(), density_scale=1 / 255, image_mean=[0.0], image_std=[1.0], test_time_augmentation=False)
    task.interval, task.interval_views = ConformalInterval(2.0, 0.1, 0.5, 20), 1
    task.data_description = {"dtype": "float32", **data}
    return Counter(task.eval())


def classifier(**data: Any) -> PatchClassifier:
    """The logit of a patch is its mean, -1 to 1."""
    task = ClassificationTask(Mean(), image_mean=[0.5], image_std=[0.5], test_time_augmentation=False)
    task.calibration, task.data_description = Calibration(threshold=0.6), data
    return PatchClassifier(task.eval())


def line(rows: int = 40, columns: int = 60) -> np.ndarray:
    """Three rows of an image are bright from column 10 to 49, and so is a speck of two pixels."""
    image = np.full((rows, columns), 20, np.uint8)
    image[19:22, 10:50] = 240
    image[5, 5:7] = 240
    return image


def test_structures_are_mapped_called_and_measured(tmp_path: Path) -> None:
    result = segmenter(3, pixel_size_um=[0.5, 0.5]).predict(line(), pixel_size_um=(0.5, 0.5))
    expected = 1 / (1 + np.exp(-(line() / 255 - 0.5) / 0.1))
    np.testing.assert_allclose(result.probability, expected, atol=1e-6)
    called = line() > 200
    called[5] = False  # less than three pixels
    np.testing.assert_array_equal(result.mask, called)
    assert (result.source, result.flags, result.resampled_um) == ("<array>", (), None)
    graph = result.graph(method="skeleton")
    assert (graph.number_of_nodes(), graph.number_of_edges(), graph.graph["unit"]) == (2, 1, "um")
    measures = result.measures(graph)
    assert measures["structure_px"] == 120
    assert measures["structure_fraction"] == 120 / 2400
    assert measures["structure_um2"] == 30
    assert measures["branch_points"] == 0
    # Skeletons lose about half the width at either end.
    assert measures["length_um"] == pytest.approx(19.5, abs=1.5)
    assert measures["mean_width_um"] == pytest.approx(1.5, abs=0.5)
    assert measures["length_px"] is None
    written = result.save(tmp_path, graph)
    names = ["graph.geojson", "graph.graphml", "map.ome.tif", "mask.geojson", "mask.png"]
    assert sorted(path.name for path in written) == sorted(path.name for path in tmp_path.iterdir()) == names
    features = json.loads((tmp_path / "mask.geojson").read_text())["features"]
    assert sum(feature["properties"]["measurements"]["area_px"] for feature in features) == called.sum()
    stored = read_image(tmp_path / "map.ome.tif")
    np.testing.assert_array_equal(stored.array, result.probability)
    assert stored.pixel_size_um == (0.5, 0.5)
    np.testing.assert_array_equal(read_image(tmp_path / "mask.png").array, 255 * called)
    assert total_length(read_graph(tmp_path / "graph.graphml")) == pytest.approx(measures["length_um"], abs=1e-3)
    axes = result.plot()
    assert axes.get_title() == "5.0 % structure"
    assert len(axes.images) == 2


def test_without_a_pixel_size_lengths_are_in_pixels_and_that_is_a_flag() -> None:
    result = segmenter(pixel_size_um=[0.5, 0.5]).predict(line())
    assert result.flags == ("pixel size not known (training: 0.5 x 0.5 um)",)
    measures = result.measures(result.graph(method="skeleton"))
    assert (measures["structure_um2"], measures["length_um"], measures["mean_width_um"]) == (None, None, None)
    assert measures["length_px"] == pytest.approx(40, abs=4)  # and one of the speck
    assert segmenter().predict(line()).flags == ()  # there is nothing to compare with


def test_a_threshold_for_another_way_to_predict_is_a_flag() -> None:
    task = segmenter().task
    task.thresholds = Thresholds(0.5, 0, 8, 1, True)
    with pytest.warns(UserWarning, match="another way to predict"):
        model = Segmenter(task)
    assert model.predict(line()).flags == ("threshold chosen for another way to predict; run `test` once",)


@pytest.mark.parametrize(("size", "resampled"), [(0.25, True), (0.46, False), (0.54, False), (0.56, True)])
def test_images_are_resampled_beyond_ten_percent(size: float, resampled: bool) -> None:
    model = segmenter(pixel_size_um=[0.5, 0.5])
    result = model.predict(line(), pixel_size_um=(0.5, size))
    assert result.probability.shape == result.mask.shape == (40, 60)
    assert result.pixel_size_um == (0.5, size)
    assert result.resampled_um == ((0.5, 0.5) if resampled else None)
    assert result.flags == ()
    plain = model.predict(line(), pixel_size_um=(0.5, size), resample=False)
    np.testing.assert_array_equal(plain.probability, model.tubularity(line()))
    words = f"pixel size 0.5 x {size:g} um (training: 0.5 x 0.5 um), not resampled"
    assert plain.flags == ((words,) if resampled else ())


@pytest.mark.parametrize("size", [0.0005, 500.0])
def test_a_pixel_size_in_another_unit_is_refused(size: float) -> None:
    model = segmenter(pixel_size_um=[0.5, 0.5])
    with pytest.raises(DataError, match=r"1,000 times off those of the training.*--pixel-size.*--no-resample"):
        model.predict(line(), pixel_size_um=(size, size))
    assert model.predict(line(), pixel_size_um=(size, size), resample=False).resampled_um is None


def test_a_resampled_map_comes_back_to_the_grid_of_the_image() -> None:
    """The network sees means of 2x2 pixels; the map is interpolated between them."""
    image = np.random.default_rng(0).integers(0, 256, (40, 60), dtype=np.uint8)
    model = segmenter(9, pixel_size_um=[0.5, 0.5])
    result = model.predict(image, pixel_size_um=(0.25, 0.25))
    means = image.reshape(20, 2, 30, 2).mean((1, 3), dtype=np.float32)
    coarse = model.tubularity(np.rint(means).astype(np.uint8))
    expected = cv2.resize(coarse, (60, 40), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(result.probability, expected, atol=1e-6)
    # Nine pixels of the training are thirty-six of the image.
    _, _, statistics, _ = cv2.connectedComponentsWithStats((expected >= 0.5).astype(np.uint8), connectivity=8)
    sizes = statistics[1:, cv2.CC_STAT_AREA]
    assert (sizes < 36).any()
    assert result.mask.sum() == sizes[sizes >= 36].sum()


CELLS = np.array([[10.0, 12.0], [22.0, 40.0], [30.0, 14.0]])


def test_cells_are_counted_and_placed(tmp_path: Path) -> None:
    density = rasterise(CELLS, (40, 60), 2.0)
    result = counter(sigma=2.0).predict(density, pixel_size_um=(0.5, 0.25))
    assert isinstance(result, CountResult)
    assert result.count.cells == pytest.approx(3, rel=1e-5)
    np.testing.assert_allclose(result.density, density, rtol=1e-6)
    assert result.points is not None
    np.testing.assert_allclose(result.points[np.argsort(result.points[:, 0])], CELLS, atol=0.05)
    measures = result.measures()
    assert (measures["cells"], measures["points"]) == (3.0, 3)
    # 2 sqrt(3) to either side
    assert (measures["cells_low"], measures["cells_high"]) == (0.0, 6.46)
    assert measures["cells_per_mm2"] == pytest.approx(3 / (40 * 60 * 0.125e-6), rel=1e-4)
    result.save(tmp_path)
    for name in ("points.csv", "points.geojson"):
        np.testing.assert_allclose(read_points(tmp_path / name, (40, 60)), result.points, atol=1e-3)
    assert read_image(tmp_path / "map.ome.tif").pixel_size_um == (0.5, 0.25)
    assert result.plot().get_title() == "3.0 cells (0.0 to 6.5)"


@pytest.mark.parametrize("size", [(0.25, 0.25), (0.3, 1.1), (1.7, 0.5)])
def test_counts_survive_resampling(size: tuple[float, float]) -> None:
    """Whatever the network counts on its grid is the sum on the grid of the image."""
    image = rasterise(CELLS, (40, 60), (2.0 * 0.5 / size[0] + 2.0 * 0.5 / size[1]) / 2)
    result = counter(sigma=2.0, pixel_size_um=[0.5, 0.5]).predict(image, pixel_size_um=size)
    assert result.resampled_um == (0.5, 0.5)
    assert result.density.shape == (40, 60)
    assert result.density.sum(dtype=float) == pytest.approx(result.count.cells, rel=1e-6)
    # The network is shown means, so that it sees as many cells as the pixel is larger less.
    assert result.count.cells == pytest.approx(3 * size[0] * size[1] / 0.25, rel=0.05)


def test_points_of_a_resampled_image_are_in_its_pixels() -> None:
    image = 4 * rasterise(CELLS, (40, 60), 4.0)  # of pixels half as large
    result = counter(sigma=2.0, pixel_size_um=[0.5, 0.5]).predict(image, pixel_size_um=(0.25, 0.25))
    assert result.points is not None
    np.testing.assert_allclose(result.points[np.argsort(result.points[:, 0])], CELLS, atol=0.1)


def test_what_is_doubtful_about_a_count_is_said_once() -> None:
    print_ = {"mean": [0.9], "std": [0.3], "mean_spread": [0.01], "intensity_range": [0.0, 1.0]}
    result = counter(fingerprint=print_, pixel_size_um=[0.5, 0.5]).predict(np.full((8, 8), 0.1, np.float32))
    assert result.points is None
    assert result.flags[0] == "pixel size not known (training: 0.5 x 0.5 um)"
    assert [flag.split(" unlike")[0] for flag in result.flags[1:]] == ["intensity", "contrast"]
    assert len(result.plot().images) == 2  # the density instead of points


PATCH = {"patch_size": [16, 16]}


def test_an_image_is_a_grid_of_patches(tmp_path: Path) -> None:
    image = np.full((40, 50, 1), 255, np.uint8)
    image[16:32, :16] = 0
    model = classifier(**PATCH)
    result = model.predict(image)
    assert isinstance(result, PatchResult)
    high, low = 1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1))
    np.testing.assert_allclose(result.probability, [[high, high, high], [low, high, high]], atol=1e-6)
    np.testing.assert_array_equal(result.positive, [[True, True, True], [False, True, True]])
    assert result.flags == ("8 rows below and 2 columns to the right are in no patch",)
    measures = result.measures()
    assert (measures["patches"], measures["positive_patches"]) == (6, 5)
    assert measures["max_probability"] == round(high, 6)
    (written,) = result.save(tmp_path)
    rows = written.read_text().splitlines()
    assert rows[0] == "row,column,probability,positive"
    assert rows[4] == f"16.0,0.0,{low:.6f},0"
    assert result.plot().get_title() == "5 of 6 patches positive"
    patches = np.stack([image[:16, :16], image[16:32, :16]])
    np.testing.assert_allclose(model.predict(patches), [high, low], atol=1e-6)
    assert model.predict(patches[:0]).shape == (0,)


def test_patches_of_a_resampled_image_are_measured_in_its_pixels() -> None:
    model = classifier(pixel_size_um=[1.0, 1.0], **PATCH)
    result = model.predict(np.zeros((64, 96, 1), np.uint8), pixel_size_um=(0.5, 0.25))
    assert isinstance(result, PatchResult)
    assert result.probability.shape == (2, 1)
    assert result.patch_size == (32, 64)
    with pytest.raises(DataError, match="16x12 px at the pixel size of the training, less than a patch of 16x16"):
        model.predict(np.zeros((64, 96, 1), np.uint8), pixel_size_um=(0.25, 0.125))
    with pytest.raises(DataError, match="does not say how large the patches"):
        classifier().predict(np.zeros((64, 96, 1), np.uint8))


def test_files_are_read_as_they_are_described(tmp_path: Path) -> None:
    """Channels by name and number, pages, pixel sizes."""
    names = {"axes": "CYX", "Channel": {"Name": ["DAPI", "CD31"]}, "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.25}
    stack = np.stack([np.full((40, 60), 128, np.uint8), line()])
    tifffile.imwrite(tmp_path / "two.ome.tif", stack, photometric="minisblack", metadata=names)
    model = segmenter()
    expected = model.tubularity(line())
    for channels in (("CD31",), ("cd31",), (1,), ("1",)):
        result = model.predict(tmp_path / "two.ome.tif", channels=channels)
        np.testing.assert_array_equal(result.probability, expected)
        assert result.pixel_size_um == (0.25, 0.5)
    with pytest.raises(DataError, match=r"has 2 channel\(s\) \(DAPI, CD31\), the model was trained on 1 \(0\)"):
        model.predict(tmp_path / "two.ome.tif")
    tifffile.imwrite(tmp_path / "pages.tif", stack, photometric="minisblack")
    np.testing.assert_array_equal(model.predict(tmp_path / "pages.tif", page=1).probability, expected)
    with pytest.raises(DataError, match="2 planes"):
        model.predict(str(tmp_path / "pages.tif"))


def test_images_are_as_large_as_allowed() -> None:
    with pytest.raises(DataError, match=r"has 40 x 60 px, 0\.00 GB, more than the 0 million px"):
        segmenter().predict(line(), max_pixels=2399)
    # Enlarged 20 times in each direction.
    with pytest.raises(DataError, match="has 800 x 1,200 px"):
        segmenter(pixel_size_um=[0.5, 0.5]).predict(line(), pixel_size_um=(10.0, 10.0), max_pixels=959_999)
    with pytest.raises(DataError, match="are of files"):
        segmenter().predict(line(), page=1)


def test_the_points_of_no_cell_make_valid_geojson(tmp_path: Path) -> None:
    counter(sigma=2.0).predict(np.zeros((9, 9), np.float32)).save(tmp_path)
    assert json.loads((tmp_path / "points.geojson").read_text()) == {"type": "FeatureCollection", "features": []}
