"""Folds by group, and a fingerprint of a split that results can be stamped with."""

import hashlib

import numpy as np


def group_folds(groups: np.ndarray, labels: np.ndarray | None, folds: int, seed: int) -> np.ndarray:
    """Deal whole groups to folds of nearly equal size and class balance.

    Groups are dealt in order of size, equal ones in an order drawn from `seed`; each goes to the fold where it
    leaves the class counts least uneven (the sum of squared counts over folds and classes grows least).

    Args:
        groups: (N,) group of every item.
        labels: (N,) class of every item, or None.
        folds: number of folds, at least 2.
        seed: of the draw.

    Returns:
        (N,) int64 fold of every item, 0..folds-1. No group sits in two folds.

    Raises:
        ValueError: if there are fewer groups than folds.
    """
    names, member = np.unique(groups, return_inverse=True)
    if folds < 2 or len(names) < folds:
        raise ValueError(
            f"{len(names)} groups cannot be dealt to {folds} folds: give 2 to {len(names)} folds, or finer groups."
        )
    classes = np.zeros(len(groups), np.int64) if labels is None else np.unique(labels, return_inverse=True)[1]
    counts = np.zeros((len(names), classes.max() + 1))
    np.add.at(counts, (member, classes), 1)
    shuffled = np.random.default_rng(seed).permutation(len(names))
    order = shuffled[np.argsort(-counts[shuffled].sum(1), kind="stable")]
    totals = np.zeros((folds, counts.shape[1]))
    fold_of = np.empty(len(names), np.int64)
    for position, group in enumerate(order):
        growth = ((totals + counts[group]) ** 2 - totals**2).sum(1)
        # Every fold gets a group before any gets a second one: an empty fold would be useless.
        if position < folds:
            growth[np.isin(np.arange(folds), fold_of[order[:position]])] = np.inf
        fold = int(growth.argmin())
        fold_of[group] = fold
        totals[fold] += counts[group]
    return fold_of[member]


def split_hash(parts: dict[str, tuple[np.ndarray, np.ndarray | None]]) -> str:
    """Fingerprint of which items, with which labels, sit in which split.

    Args:
        parts: split name to (ids (M,) bytes, labels (M,) int64 or None).

    Returns:
        16 hexadecimal digits; equal exactly when names, ids, their order and labels are equal.
    """
    digest = hashlib.sha256()
    for name in sorted(parts):
        ids, labels = parts[name]
        digest.update(f"{name}:{len(ids)};".encode())
        digest.update(b"\0".join(ids.tolist()))
        if labels is not None:
            digest.update(labels.astype("<i8").tobytes())
    return digest.hexdigest()[:16]
