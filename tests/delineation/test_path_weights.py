import math

import numpy as np
import pytest

from biocnn.delineation.candidates import Candidates, candidate_paths
from biocnn.delineation.path_weights import learned_weights
from biocnn.delineation.weights import log_odds


def ell(spacing: tuple[float, float] = (1.0, 1.0)) -> Candidates:
    """A line of 10 pixels to the right, then one of 6 down."""
    right = np.stack([np.full(11, 2), np.arange(11)], 1)
    down = np.stack([np.arange(2, 9), np.full(7, 10)], 1)
    nodes, ends = np.array([(2, 0), (2, 10), (8, 10)]), np.array([(0, 1), (1, 2)])
    return Candidates(nodes, ends, (right, down), np.empty((0, 2), np.int64), np.array(spacing))


def test_weights_by_hand() -> None:
    candidates, lengths = ell(spacing=(0.5, 2.0)), (20.0, 3.0)
    for p, odds in ((0.5, 0.0), (0.8, -math.log(4)), (0.2, math.log(4)), (1.0, -math.log(49)), (0.0, math.log(49))):
        expected = [odds * length for length in lengths]
        assert learned_weights([p, p], candidates) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_a_sure_path_weighs_what_its_map_does() -> None:
    candidates, probability = ell(), np.zeros((12, 20))
    for path in candidates.paths:
        probability[tuple(path.T)] = 1
    np.testing.assert_allclose(learned_weights([1.0, 1.0], candidates), log_odds(candidates, probability), rtol=1e-6)


def test_none_and_wrong_probabilities() -> None:
    candidates = ell()
    assert learned_weights([], candidate_paths(np.zeros((5, 5)), [])).shape == (0,)
    with pytest.raises(ValueError, match=r"each of the 2 candidates, received shape \(1,\)"):
        learned_weights([0.5], candidates)
    for wrong in ([0.5, math.nan], [0.5, 1.5]):
        with pytest.raises(ValueError, match=r"probability in 0\.\.1"):
            learned_weights(wrong, candidates)
