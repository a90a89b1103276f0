import numpy as np
import pytest
from scipy.spatial import KDTree

from biocnn.data.drawn_networks import drawn_network
from biocnn.delineation.samples import sample_points
from biocnn.errors import DataError


def line_with_gap() -> np.ndarray:
    """A line three pixels thick along row 20, from column 5 to 75, with a gap from 35 to 46."""
    probability = np.full((41, 81), 0.02)
    probability[19:22, 5:76] = 0.95
    probability[19:22, 35:47] = 0.02
    return probability


def test_both_sides_of_a_gap_and_the_ends_are_samples() -> None:
    samples = sample_points(line_with_gap())
    assert (np.abs(samples[:, 0] - 20) <= 1).all()
    for column in (5, 34, 47, 75):
        assert np.abs(samples[:, 1] - column).min() <= 2


def test_samples_are_as_far_apart_as_asked_and_leave_no_ridge_out() -> None:
    samples = sample_points(line_with_gap(), distance=7)
    # Every pixel of the ridge is suppressed by a sample, or is one.
    ridge = [(20, column) for column in [*range(7, 34), *range(48, 74)]]
    assert KDTree(samples).query(ridge)[0].max() <= 7
    away, _ = KDTree(samples).query(samples, k=2)
    assert away[:, 1].min() >= 3


@pytest.mark.parametrize("shape", [(90, 110), (24, 70, 80)])
def test_the_spacing_is_that_of_the_distance(shape: tuple[int, ...]) -> None:
    network = drawn_network(3, shape, gap=6)
    plain = sample_points(network.probability, distance=8)
    scaled = sample_points(network.probability, spacing=(0.5,) * len(shape), distance=4)
    np.testing.assert_array_equal(plain, scaled)
    # With planes four times as far apart, samples on the same column of planes are nearer in pixels.
    coarse = sample_points(network.probability, spacing=(4.0, *(1.0,) * (len(shape) - 1)), distance=8)
    assert len(coarse) > len(plain)


def test_a_faint_structure_has_samples_below_the_threshold() -> None:
    probability = np.full((41, 81), 0.02)
    probability[19:22, 5:76] = 0.35
    assert len(sample_points(probability)) >= 3
    assert len(sample_points(probability * 0.3)) == 0


def test_the_number_of_samples_is_limited_to_the_most_probable() -> None:
    rng = np.random.default_rng(0)
    probability = np.zeros((400, 400))
    places = np.argwhere(np.ones((40, 40))) * 10 + 4
    probability[tuple(places.T)] = rng.permutation(np.linspace(0.6, 0.99, len(places)))
    assert len(sample_points(probability)) == len(places)
    few = sample_points(probability, limit=100)
    assert {tuple(one) for one in few.tolist()} == {
        tuple(one) for one in places[np.argsort(-probability[tuple(places.T)])][:100].tolist()
    }


def test_an_empty_map_has_no_samples() -> None:
    assert sample_points(np.zeros((20, 30))).shape == (0, 2)
    assert sample_points(np.zeros((0, 30))).shape == (0, 2)


@pytest.mark.parametrize(
    ("probability", "spacing", "message"),
    [
        (np.zeros(5), None, "2 or 3 axes"),
        (np.full((4, 4), np.nan), None, "nan"),
        (np.full((4, 4), 3.0), None, "sigmoid"),
        (np.full((4, 4), -0.1), None, "expected numbers in 0"),
        (np.array([["a"]]), None, "numbers"),
        (np.zeros((4, 4)), (1.0, 1.0, 1.0), "2 positive numbers"),
        (np.zeros((4, 4)), (1.0, 0.0), "2 positive numbers"),
    ],
)
def test_maps_that_cannot_be_used(probability: np.ndarray, spacing: tuple[float, ...] | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        sample_points(probability, spacing)


@pytest.mark.parametrize("arguments", [{"threshold": 0.0}, {"threshold": 1.0}, {"distance": 0.0}, {"limit": 0}])
def test_numbers_out_of_range(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        sample_points(np.zeros((4, 4)), **arguments)  # type: ignore[arg-type]
