import numpy as np
import pytest

from biocnn.data.splits import group_folds, split_hash


def test_no_group_is_cut_and_folds_are_balanced() -> None:
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 60, 3000).astype("S")
    labels = (rng.random(3000) < 0.3).astype(int)
    fold = group_folds(groups, labels, 5, seed=1)
    for group in np.unique(groups):
        assert len(np.unique(fold[groups == group])) == 1
    sizes = np.bincount(fold, minlength=5)
    positives = np.bincount(fold, labels, 5) / sizes
    assert sizes.max() / sizes.min() < 1.1
    assert positives.max() - positives.min() < 0.05
    np.testing.assert_array_equal(fold, group_folds(groups, labels, 5, seed=1))
    assert (fold != group_folds(groups, labels, 5, seed=2)).any()


def test_every_fold_gets_a_group_even_when_one_is_huge() -> None:
    groups = np.array(["huge"] * 1000 + ["a", "b", "c"])
    fold = group_folds(groups, None, 4, seed=0)
    assert sorted(np.unique(fold)) == [0, 1, 2, 3]


def test_too_few_groups() -> None:
    with pytest.raises(ValueError, match="2 groups cannot be dealt to 3 folds"):
        group_folds(np.array(["a", "b", "b"]), None, 3, seed=0)


def test_hash_sees_every_change() -> None:
    ids, labels = np.array([b"train:0", b"train:1"]), np.array([0, 1])
    reference = split_hash({"train": (ids, labels)})
    assert len(reference) == 16
    assert reference == split_hash({"train": (ids.copy(), labels.astype(np.int32))})
    changed = [
        {"valid": (ids, labels)},
        {"train": (ids[::-1], labels)},
        {"train": (ids, 1 - labels)},
        {"train": (ids, None)},
        {"train": (ids[:1], labels[:1])},
    ]
    assert len({reference, *(split_hash(parts) for parts in changed)}) == len(changed) + 1
