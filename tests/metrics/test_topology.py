from collections import deque
from itertools import product

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from skimage.measure import euler_number

from biocnn.errors import DataError
from biocnn.metrics.overlap import confusion
from biocnn.metrics.skeleton import centreline_scores
from biocnn.metrics.topology import betti_errors, betti_numbers, betti_suffix, remove_small
from tests.conftest import SHARED_DATA

DRIVE = SHARED_DATA / "drive"
needs_drive = pytest.mark.skipif(not DRIVE.is_dir(), reason="the DRIVE images are not at ../shared/data")


def flood_fill_count(mask, reach):
    """Components, pixel by pixel; `reach` is how many axes neighbours may differ along."""
    steps = [step for step in product((-1, 0, 1), repeat=mask.ndim) if 0 < np.abs(step).sum() <= reach]
    left = {tuple(pixel) for pixel in np.argwhere(mask).tolist()}
    count = 0
    while left:
        count += 1
        queue = deque([left.pop()])
        while queue:
            pixel = queue.popleft()
            for step in steps:
                other = tuple(a + b for a, b in zip(pixel, step, strict=True))
                if other in left:
                    left.remove(other)
                    queue.append(other)
    return count


def cubical_euler(mask, touching):
    """Vertices - edges + faces - cubes of the union of closed pixels (`touching` corners join) or of its dual."""
    cells = np.zeros(tuple(2 * size + 1 for size in mask.shape), dtype=bool)
    if touching:
        # Pixels are cubes; a cell of lower dimension belongs to the union if any pixel around it does.
        cells[(slice(1, None, 2),) * mask.ndim] = mask
        for axis in range(mask.ndim):
            cells |= np.roll(cells, 1, axis) | np.roll(cells, -1, axis)
    else:
        # Pixels are vertices; a cell belongs to the complex if all its vertices do.
        cells = np.zeros(tuple(2 * size - 1 for size in mask.shape), dtype=bool)
        cells[(slice(None, None, 2),) * mask.ndim] = mask
        for axis in range(mask.ndim):
            low = [slice(None)] * mask.ndim
            low[axis] = slice(1, None, 2)
            cells[tuple(low)] = np.take(cells, range(0, cells.shape[axis] - 1, 2), axis) & np.take(
                cells, range(2, cells.shape[axis], 2), axis
            )
    dimension = sum(np.indices(cells.shape)) * 0
    for index in np.indices(cells.shape):
        dimension = dimension + index % 2
    return int(((-1.0) ** dimension)[cells].sum())


@pytest.mark.parametrize(("connectivity", "reach", "dual"), [(8, 2, 1), (4, 1, 2)])
def test_two_dimensions_against_flood_fill_and_euler(connectivity, reach, dual):
    rng = np.random.default_rng(0)
    for density in (0.2, 0.5, 0.5, 0.6, 0.8):
        mask = rng.random((12, 15)) < density
        holes = flood_fill_count(np.pad(~mask, 1, constant_values=True), dual) - 1
        assert betti_numbers(mask, connectivity) == (flood_fill_count(mask, reach), holes)
        chi = betti_numbers(mask, connectivity)[0] - holes
        assert chi == euler_number(mask, connectivity=reach) == cubical_euler(mask, connectivity == 8)


@pytest.mark.parametrize(("connectivity", "reach", "dual"), [(26, 3, 1), (6, 1, 3)])
def test_three_dimensions_against_flood_fill_and_cubical_complex(connectivity, reach, dual):
    rng = np.random.default_rng(1)
    for density in (0.1, 0.3, 0.5, 0.8, 0.9):
        mask = rng.random((6, 7, 8)) < density
        b0, b1, b2 = betti_numbers(mask, connectivity)
        assert b0 == flood_fill_count(mask, reach)
        assert b2 == flood_fill_count(np.pad(~mask, 1, constant_values=True), dual) - 1
        assert b0 - b1 + b2 == cubical_euler(mask, connectivity == 26)
        assert b1 >= 0


@pytest.mark.parametrize(
    ("shape", "connectivity", "cells"),
    # Pixels as squares or cubes touch at corners, pixels as vertices along axes only.
    [
        ((12, 13), 8, "top_dimensional_cells"),
        ((12, 13), 4, "vertices"),
        ((6, 7, 8), 26, "top_dimensional_cells"),
        ((6, 7, 8), 6, "vertices"),
    ],
)
def test_persistent_homology_agrees(shape, connectivity, cells):
    gudhi = pytest.importorskip("gudhi")
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = rng.random(shape) < 0.5
        filtration = gudhi.CubicalComplex(**{cells: np.where(mask, 0.0, 1.0)})
        filtration.compute_persistence()
        assert tuple(filtration.persistent_betti_numbers(0.5, 0.5)[: mask.ndim]) == betti_numbers(mask, connectivity)


def test_solids_with_known_numbers():
    grid = np.mgrid[-12:13, -12:13, -12:13]
    radius = np.sqrt((grid**2).sum(axis=0))
    ring = np.hypot(np.hypot(grid[1], grid[2]) - 8, grid[0])
    torus = ring <= 3
    tube = (ring <= 3.5) & (ring >= 1.5)
    assert betti_numbers(radius <= 9) == (1, 0, 0)
    assert betti_numbers((radius <= 9) & (radius >= 6)) == (1, 0, 1)
    assert betti_numbers(torus) == betti_numbers(torus, 6) == (1, 1, 0)
    # The surface of a torus: two independent loops and one cavity.
    assert betti_numbers(tube) == (1, 2, 1)
    assert betti_numbers(np.zeros((3, 4, 5), dtype=bool)) == (0, 0, 0)
    assert betti_numbers(np.ones((3, 4), dtype=bool)) == (1, 0)


def test_a_loop_closed_by_the_border_or_by_valid_is_no_hole():
    arch = np.array([[1, 1, 1], [1, 0, 1], [1, 0, 1]], dtype=bool)
    assert betti_numbers(arch) == (1, 0)
    ring = np.pad(np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]], dtype=bool), 1)
    valid = np.ones_like(ring)
    valid[3] = False
    errors = betti_errors(ring, ring & valid, valid)
    assert set(errors.values()) == {0, 1}
    assert (errors["betti1_prediction_fg8"], errors["betti1_error_fg8"]) == (0, 0)
    assert betti_errors(ring, ring & valid)["betti1_error_fg8"] == 1
    # An invalid island inside a structure is a hole in both.
    island = np.ones((5, 5), dtype=bool)
    island[2, 2] = False
    errors = betti_errors(np.ones((5, 5)), np.ones((5, 5)), island)
    assert (errors["betti1_prediction_fg8"], errors["betti1_error_fg8"]) == (1, 0)


def test_specks_can_be_ignored_by_a_stated_size():
    truth = np.zeros((20, 20), dtype=bool)
    truth[10] = True
    found = truth.copy()
    found[[2, 3, 4], [2, 3, 4]] = True  # three pixels along a diagonal
    assert betti_errors(found, truth)["betti0_error_fg8"] == 1
    assert betti_errors(found, truth, connectivity=4)["betti0_error_fg4"] == 3
    assert betti_errors(found, truth, min_size=3)["betti0_error_fg8_min3"] == 1
    assert betti_errors(found, truth, min_size=4)["betti0_error_fg8_min4"] == 0
    assert (remove_small(found, 2, connectivity=4) == truth).all()
    assert (remove_small(found, 1) == found).all()


def grid_of_lines(gaps):
    """256 x 256, six lines of 5 px each way; with `gaps`, 2 px are missing half-way between vertical lines."""
    mask = np.zeros((256, 256), dtype=bool)
    for start in range(20, 256, 40):
        mask[start : start + 5] = True
        mask[:, start : start + 5] = True
    if gaps:
        broken = mask.copy()
        for start, gap in product(range(20, 256, 40), range(40, 256, 40)):
            broken[start : start + 5, gap : gap + 2] = False
        return broken
    return mask


def test_the_panel_shows_breaks_that_overlap_and_centrelines_miss():
    # Lines run on to the border. Of the six gaps in each horizontal line, five cut edges between vertical lines
    # and the sixth cuts off the end on the right: 6 vertical lines and 6 ends make 12 components, no loop stays.
    truth, broken = grid_of_lines(False), grid_of_lines(True)
    scores = {**confusion(broken, truth).ratios(), **centreline_scores(broken, truth), **betti_errors(broken, truth)}
    assert scores["dice"] == pytest.approx(0.987, abs=5e-4)
    assert scores["cldice"] == pytest.approx(0.988, abs=5e-4)
    assert [scores[f"{name}_3px"] for name in ("correctness", "completeness", "quality")] == [1, 1, 1]
    assert (scores["betti0_truth_fg8"], scores["betti0_prediction_fg8"]) == (1, 12)
    assert (scores["betti1_truth_fg8"], scores["betti1_prediction_fg8"]) == (25, 0)
    assert (scores["betti0_error_fg8"], scores["betti1_error_fg8"]) == (11, 25)


def read_mask(path):
    # By palette: the masks of the second observer store indices 0 and 1 for the greys 3 and 253.
    return np.asarray(Image.open(path).convert("L")) > 127


@needs_drive
def test_components_of_all_drive_labels_by_connectivity():
    # All 40 masks of the first observer, 20 for training (72 and 9,037) and 20 for testing (60 and 9,813).
    count = np.zeros(2, dtype=int)
    for path in sorted(DRIVE.glob("*/1st_manual/*.gif")):
        mask = read_mask(path)
        count += [betti_numbers(mask, connectivity)[0] for connectivity in (8, 4)]
    assert count.tolist() == [132, 18850]


@needs_drive
def test_second_observer_of_drive_inside_the_field_of_view():
    found, truth = (read_mask(DRIVE / f"test/{n}_manual/01_manual{n[0]}.gif") for n in ("2nd", "1st"))
    valid = read_mask(DRIVE / "test/mask/01_test_mask.gif")
    assert confusion(found, truth, valid).dice == pytest.approx(0.80, abs=0.02)
    errors = betti_errors(found, truth, valid)
    assert errors["betti0_truth_fg8"] == ndimage.label(truth & valid, np.ones((3, 3)))[1]
    holes = ndimage.label(np.pad(~(truth & valid), 1, constant_values=True))[1] - 1
    assert errors["betti1_truth_fg8"] == holes
    assert errors["betti0_error_fg8"] == abs(errors["betti0_prediction_fg8"] - errors["betti0_truth_fg8"])


def test_errors_say_what_came():
    mask = np.zeros((3, 3), dtype=bool)
    with pytest.raises(ValueError, match=r"expected one of \[4, 8\] for a 2-D image, received 26"):
        betti_numbers(mask, 26)
    with pytest.raises(ValueError, match=r"expected one of \[6, 26\] for a 3-D image, received 18"):
        betti_suffix(3, 18)
    with pytest.raises(ValueError, match="min_size: expected a number of pixels, 0 or more, received -1"):
        betti_errors(mask, mask, min_size=-1)
    with pytest.raises(DataError, match="expected shape"):
        betti_errors(mask, np.zeros((4, 3), dtype=bool))
