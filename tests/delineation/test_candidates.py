import numpy as np
import pytest
from scipy import ndimage
from skimage.graph import route_through_array

from biocnn.delineation.candidates import Candidates, candidate_paths, conflicts_of, half_widths
from biocnn.delineation.fronts import grid_of, grow, meetings, trace_pairs
from biocnn.delineation.samples import sample_points
from biocnn.delineation.weights import STEEPEST, component_price, log_odds, with_continuations
from biocnn.errors import DataError


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (2.0, 0.5), (3.0, 1.0, 1.0)])
def test_fronts_of_one_source_are_the_paths_of_scikit_image(spacing: tuple[float, ...]) -> None:
    rng = np.random.default_rng(0)
    cost = rng.uniform(0.1, 2, (9, 14, 12)[: len(spacing)])
    grid = grid_of(cost, np.array(spacing))
    source, target = (0,) * cost.ndim, tuple(size - 1 for size in cost.shape)
    total, _, before = grow(grid.cost, grid.flat(np.array([source])), grid.steps, grid.lengths, np.inf)
    if set(spacing) == {1.0}:
        path, least = route_through_array(cost, source, target, geometric=True)
        end = grid.flat(np.array([target]))
        assert total[end[0]] == pytest.approx(least, rel=1e-5)
        found, _ = trace_pairs(before, np.array([[end[0], -1]]))
        assert grid.pixels(found).tolist() == [list(one) for one in path]
    else:  # on a uniform map, the length of the steps of a chess king
        flat = grid_of(np.ones(cost.shape), np.array(spacing))
        far = grow(flat.cost, flat.flat(np.array([source])), flat.steps, flat.lengths, np.inf)[0]
        row = flat.flat(np.array([(3, *(0,) * (cost.ndim - 1))]))
        assert far[row[0]] == pytest.approx(3 * spacing[0])


def test_fronts_meet_on_the_minimal_path_of_two_sources() -> None:
    cost = np.random.default_rng(1).uniform(0.1, 2, (20, 24))
    grid = grid_of(cost, np.ones(2))
    places = np.array([(2, 3), (17, 20)])
    total, owner, before = grow(grid.cost, grid.flat(places), grid.steps, grid.lengths, np.inf)
    meet, value = meetings(grid, total, owner)
    path, least = route_through_array(cost, places[0], places[1], geometric=True)
    assert value.tolist() == pytest.approx([least], rel=1e-5)
    assert grid.pixels(trace_pairs(before, meet)[0]).tolist() == [list(one) for one in path]


def test_fronts_stop_at_their_reach() -> None:
    grid = grid_of(np.ones((21, 21)), np.ones(2))
    total, *_ = grow(grid.cost, grid.flat(np.array([(10, 10)])), grid.steps, grid.lengths, 5.0)
    reached = grid.pixels(np.flatnonzero(np.isfinite(total))) - 10
    low, high = np.sort(np.abs(reached), axis=1).T
    assert (high - low + np.sqrt(2) * low).max() <= 5.0
    assert len(reached) == (np.sqrt(2) * np.minimum(*np.abs(np.indices((21, 21)) - 10))
                            + np.abs(np.subtract(*np.abs(np.indices((21, 21)) - 10))) <= 5).sum()  # fmt: skip


def cross(gap: bool = False) -> np.ndarray:
    """Two lines three pixels thick that cross at (30, 30); the one along the row has a gap around the other."""
    probability = np.full((61, 61), 0.02)
    probability[29:32, 5:56] = 0.95
    if gap:
        probability[29:32, 25:36] = 0.02
    probability[5:56, 29:32] = 0.95
    return probability


def test_every_stretch_is_one_candidate_and_paths_lead_from_node_to_node() -> None:
    probability = cross()
    found = candidate_paths(probability, sample_points(probability))
    assert len(found) == len(found.ends) > 0
    inner = [tuple(pixel) for path in found.paths for pixel in path[1:-1].tolist() if probability[tuple(pixel)] > 0.5]
    assert len(inner) == len(set(inner))
    for path, (one, two) in zip(found.paths, found.ends, strict=True):
        np.testing.assert_array_equal(path[[0, -1]], found.nodes[[one, two]])
        assert np.abs(np.diff(path, axis=0)).max() == 1


def test_a_loose_end_is_connected_across_another_structure() -> None:
    probability = cross(gap=True)
    found = candidate_paths(probability, sample_points(probability))
    across = [
        path
        for path, ends in zip(found.paths, found.nodes[found.ends], strict=True)
        if ends[:, 1].min() < 26 and ends[:, 1].max() > 34
    ]
    assert across
    assert all(np.abs(path[:, 0] - 30).max() <= 3 for path in across)


@pytest.mark.parametrize(("gap", "bridged"), [(15.0, True), (8.0, False)])
def test_no_candidate_has_a_longer_gap(gap: float, bridged: bool) -> None:
    probability = np.full((21, 80), 0.02)
    probability[9:12, 5:30] = probability[9:12, 42:70] = 0.95
    found = candidate_paths(probability, sample_points(probability), gap=gap)
    columns = found.nodes[found.ends][..., 1]
    assert ((columns.min(axis=1) < 30) & (columns.max(axis=1) > 41)).any() == bridged


@pytest.mark.parametrize("tail", [False, True])
def test_a_ring_has_no_loose_end_and_with_a_tail_one(tail: bool) -> None:
    rows, columns = np.indices((64, 64)) - 32
    structure = np.abs(np.hypot(rows, columns) - 20) < 2
    structure[31:34, 52:62] |= tail
    probability = np.where(structure, 0.9, 0.0)
    found = candidate_paths(probability, sample_points(probability))
    # All of the ring is covered, whatever it is cut into.
    covered = np.zeros(structure.shape, bool)
    for path in found.paths:
        covered[tuple(path.T)] = True
    angles = np.arctan2(*(np.argwhere(covered).T - 32))
    assert len(np.unique(np.floor(angles / (2 * np.pi) * 36) % 36)) == 36


def test_the_unit_does_not_matter() -> None:
    probability = cross(gap=True)
    samples = sample_points(probability)
    plain = candidate_paths(probability, samples)
    scaled = candidate_paths(probability, samples, spacing=(0.25, 0.25))
    np.testing.assert_array_equal(plain.ends, scaled.ends)
    np.testing.assert_allclose(log_odds(plain, probability), 4 * log_odds(scaled, probability))


def test_half_widths_of_a_line_and_a_map_without_background() -> None:
    line = np.zeros((20, 9))
    line[:, 2:7] = 1
    np.testing.assert_allclose(half_widths(line)[10], [0, 0, 0.5, 1.5, 2.5, 1.5, 0.5, 0, 0])
    np.testing.assert_allclose(half_widths(line, (2.0, 2.0)), 2 * half_widths(line))
    assert half_widths(np.ones((5, 5)))[2, 2] == 2.5


def test_conflicts_are_of_paths_beside_each_other() -> None:
    row = np.stack([np.full(20, 10), np.arange(20)], axis=1)
    beside, off, crossing = np.add(row, (1, 5)), np.add(row, (3, 0)), np.stack([np.arange(20), np.full(20, 10)], axis=1)
    assert conflicts_of([row, beside, off, crossing], (30, 30)).tolist() == [[0, 1]]
    assert conflicts_of([row[:8], row[:8]], (30, 30)).tolist() == []
    assert conflicts_of([], (30, 30)).shape == (0, 2)


def straight(columns: list[tuple[int, int]], values: np.ndarray) -> Candidates:
    """Candidates along row 0, from column to column."""
    at = sorted({column for pair in columns for column in pair})
    paths = tuple(np.stack([np.zeros(b - a + 1, np.int64), np.arange(a, b + 1)], 1) for a, b in columns)
    ends = np.array([[at.index(a), at.index(b)] for a, b in columns])
    nodes = np.array([(0, column) for column in at])
    return Candidates(nodes, ends, paths, np.empty((0, 2), np.int64), np.ones(values.ndim))


def test_log_odds_by_hand() -> None:
    values = np.array([[0.8, 0.8, 0.8, 0.2, 0.2, 0.8, 1.0, 1.0]])
    found = straight([(0, 2), (1, 5), (6, 7)], values)
    steep = np.log(4)
    # Of the second, the step from 1 to 2 is inside the structure that it leads away from.
    np.testing.assert_allclose(log_odds(found, values), [-2 * steep, steep, -STEEPEST], rtol=1e-6)
    np.testing.assert_allclose(log_odds(found, values, threshold=0.8)[0], 0, atol=1e-6)


def test_loose_ends_are_continued_once_and_straight_on() -> None:
    values = np.zeros((1, 60))
    # 0 and 2 are structures, 1 and 3 two ways over the gap between them, 4 leads on from the end of 2 to nowhere.
    found = straight([(0, 20), (20, 30), (30, 50), (20, 30), (50, 58)], values)
    weights = np.array([-20.0, 10.0, -20.0, 12.0, 8.0])
    np.testing.assert_allclose(with_continuations(found, weights, 7.0), [-20, -4, -20, 12, 8])


def test_the_price_is_that_of_a_gap() -> None:
    assert component_price((1.0, 1.0)) == pytest.approx(15 * np.log(49))
    assert component_price((0.5, 2.0)) == pytest.approx(7.5 * np.log(49))
    assert component_price((0.5, 2.0), 3.0) == pytest.approx(3 * np.log(49))


def test_few_samples_and_wrong_ones() -> None:
    probability = cross()
    for samples in ([], [(3, 3)]):
        found = candidate_paths(probability, samples)
        assert (len(found), found.ends.shape, found.nodes.shape) == (0, (0, 2), (0, 2))
    for wrong in ([(3, 3), (3, 3)], [(3, 3), (61, 0)], [(1.5, 2.0), (0.0, 1.0)], [(1, 2, 3)]):
        with pytest.raises(ValueError, match="samples"):
            candidate_paths(probability, wrong)
    with pytest.raises(DataError, match="expected numbers in 0"):
        candidate_paths(probability * 9, [(3, 3), (9, 9)])


@pytest.mark.parametrize("kind", ["blob", "specks", "noise"])
def test_maps_without_lines_have_few_candidates(kind: str) -> None:
    rng = np.random.default_rng(0)
    probability = np.full((400, 400), 0.01)
    if kind == "blob":
        rows, columns = np.indices(probability.shape) - 200
        probability[np.hypot(rows, columns) < 160] = 0.99
    elif kind == "specks":
        probability[tuple(rng.integers(0, 400, (2, 3000)))] = 0.9
    else:
        smooth = ndimage.gaussian_filter(rng.normal(size=probability.shape), 1.5)
        probability = 1 / (1 + np.exp(-3 * smooth / smooth.std()))
    samples = sample_points(probability)
    found = candidate_paths(probability, samples)
    assert len(found) < 10 * max(len(samples), 1)
