import numpy as np
import pytest

from biocnn.delineation.path_examples import LEAST, follows, path_examples

ALL = np.ones((64, 64), bool)


def lines(*rows: int) -> np.ndarray:
    """Lines of 3 pixels from the left to the right."""
    mask = np.zeros((64, 64), bool)
    for row in rows:
        mask[row - 1 : row + 2] = True
    return mask


def examples(probability: np.ndarray, mask: np.ndarray, count: int = 40, seed: int = 0) -> tuple[list, np.ndarray]:
    return path_examples(probability, mask, ALL, count, np.random.default_rng(seed))


def test_ninety_per_cent_of_the_length_decide() -> None:
    diagonal = np.array([(number, number) for number in range(6)] + [(5, 6 + number) for number in range(5)])
    assert np.linalg.norm(np.diff(diagonal, axis=0), axis=1).sum() == pytest.approx(5 * 2**0.5 + 5)
    near = np.ones((20, 20), bool)
    near[5, 10] = False  # the last half step of a length of 12.07
    assert follows(diagonal, near)
    near[5, 9] = False  # 1.5 of 12.07
    assert not follows(diagonal, near)


def test_a_bridged_gap_is_positive_and_a_jump_between_lines_negative() -> None:
    mask = lines(16, 30)
    probability = np.where(mask, 0.9, 0.02)
    probability[:, 28:36] = 0.02  # both lines are lost there in the map
    probability[30, 28:36] = 0.3
    paths, labels = examples(probability, mask)
    bridges = [label for path, label in zip(paths, labels, strict=True) if set(range(28, 36)) <= set(path[:, 1])]
    jumps = [label for path, label in zip(paths, labels, strict=True) if np.ptp(path[:, 0]) > 10]
    assert True in bridges
    assert jumps
    assert not any(jumps)


@pytest.mark.parametrize("seed", range(3))
def test_labels_are_those_of_a_count_of_pixels_and_halves_are_of_each_kind(seed: int) -> None:
    mask = lines(10, 25, 40)
    rng = np.random.default_rng(seed)
    probability = np.clip(np.where(mask, 0.8, 0.1) + rng.normal(0, 0.1, mask.shape), 0, 1)
    wide = np.zeros_like(mask)
    wide[[*range(8, 13), *range(23, 28), *range(38, 43)]] = True  # a pixel more on either side
    paths, labels = examples(probability, mask, 16, seed)
    assert labels.tolist() == [True] * 8 + [False] * 8
    for path, label in zip(paths, labels, strict=True):
        assert len(path) >= LEAST
        assert np.abs(np.diff(path, axis=0)).max() == 1  # neighbouring pixels, in the order of the way
        share = wide[tuple(path.T)].mean()
        if abs(share - 0.9) > 0.05:  # steps across corners are longer than others
            assert label == (share > 0.9)


def test_a_single_structure_has_negative_examples_too() -> None:
    rows, columns = np.mgrid[:64, :64]
    mask = np.abs(np.hypot(rows - 64, columns - 32) - 45) < 2  # an arch
    _, labels = examples(np.where(mask, 0.9, 0.05), mask, 8)
    assert labels.sum() == 4
    assert (~labels).any()


def test_paths_stay_where_the_truth_is_known() -> None:
    mask, valid = lines(16, 40), np.ones((64, 64), bool)
    valid[:, 40:] = False
    paths, _ = path_examples(np.where(mask, 0.9, 0.05), mask, valid, 30, np.random.default_rng(0))
    assert paths
    assert max(path[:, 1].max() for path in paths) < 40


def test_the_same_numbers_give_the_same_paths() -> None:
    mask = lines(10, 25, 40)
    probability = np.where(mask, 0.9, 0.05)
    first, again, other = (examples(probability, mask, 10, seed)[0] for seed in (3, 3, 4))
    assert all(np.array_equal(one, two) for one, two in zip(first, again, strict=True))
    assert any(one.shape != two.shape or (one != two).any() for one, two in zip(first, other, strict=True))


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_a_map_without_structures_has_no_positive_examples(value: float) -> None:
    paths, labels = examples(np.full((64, 64), value), np.zeros((64, 64), bool), 8)
    assert len(paths) == len(labels)
    assert not labels.any()
