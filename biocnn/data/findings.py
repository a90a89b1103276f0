"""What an audit reports: one row per split, and findings in plain sentences."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

Level = Literal["error", "warning", "info"]
_SHOWN = 5


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        level: ``error`` makes training or its evaluation wrong; ``warning`` deserves a look; ``info`` is a fact.
        text: what was found, where, and what to do.
    """

    level: Level
    text: str


@dataclass(frozen=True)
class AuditRow:
    """One split in numbers.

    Attributes:
        split: ``"train"``, ``"valid"`` or ``"test"``.
        images: number of images found.
        expected: number that the manifest gives, or None.
        shape: such as ``"96x96x3 uint8"``: rows, columns, channels.
        content: class balance, share of foreground, or points per image; empty when not looked at.
        groups: number of groups, or None when there is no group rule.
        duplicates: images that repeat an earlier one of the same split, or None when not looked for.
    """

    split: str
    images: int
    expected: int | None = None
    shape: str = ""
    content: str = ""
    groups: int | None = None
    duplicates: int | None = None


@dataclass(frozen=True)
class Audit:
    """Result of an audit.

    Attributes:
        name: of the manifest.
        rows: one per split, in the order train, valid, test.
        findings: errors first, then warnings, then information.
    """

    name: str
    rows: tuple[AuditRow, ...]
    findings: tuple[Finding, ...]

    @property
    def has_errors(self) -> bool:
        """True when a finding is an error: then a score of this data set would mislead."""
        return any(finding.level == "error" for finding in self.findings)


def make_audit(name: str, rows: Iterable[AuditRow], findings: Iterable[Finding]) -> Audit:
    """Build an :class:`Audit` with the findings in order of severity."""
    order = ("error", "warning", "info")
    return Audit(name, tuple(rows), tuple(sorted(findings, key=lambda finding: order.index(finding.level))))


def listed(names: Iterable[object]) -> str:
    """The first five names, and how many more there are."""
    texts = [str(name) for name in names]
    more = f" and {len(texts) - _SHOWN:,} more" if len(texts) > _SHOWN else ""
    return ", ".join(texts[:_SHOWN]) + more


def count_finding(split: str, found: int, expected: int | None) -> list[Finding]:
    """A warning when a split is not as large as the manifest says; an own set in a known layout may well differ."""
    if expected is None or found in (expected, 0):
        return []
    return [
        Finding(
            "warning",
            f"{split}: {found:,} images, the manifest says {expected:,}. If this is not a copy of the published "
            "set, write a manifest of your own (`biocnn data init DIR`); if it is, fetch the set again.",
        )
    ]


def split_findings(splits: Iterable[str]) -> list[Finding]:
    """A warning for every split that the manifest does not have."""
    uses = {"valid": "chooses the checkpoint and the threshold", "test": "gives the score that is reported"}
    absent = [name for name in uses if name not in splits]
    return [Finding("warning", f"There is no {name} split, which {uses[name]}.") for name in absent]


def shared_groups(groups: Mapping[str, set[str]]) -> list[Finding]:
    """An error for every pair of splits that have a group in common."""
    findings = []
    for first, second in combinations(groups, 2):
        if common := sorted(groups[first] & groups[second]):
            findings.append(
                Finding(
                    "error",
                    f"{len(common):,} groups are in {first} and in {second} ({listed(common)}): scores on {second} "
                    "would be too good. Move each group to one split.",
                )
            )
    return findings


@dataclass(frozen=True)
class Contents:
    """Digests of the N decoded images of one split.

    Attributes:
        hashes: (N,) ``V16``.
        blank: (N,) bool, True where all pixels are equal.
        names: (N,) what to call an image in a message.
        labels: (N,) int64, or None.
    """

    hashes: np.ndarray
    blank: np.ndarray
    names: np.ndarray
    labels: np.ndarray | None = None


def content_findings(contents: Mapping[str, Contents], what: str) -> tuple[list[Finding], dict[str, int]]:
    """Duplicates within and across splits, conflicting labels and blank images.

    Blank images of two splits are equal but give nothing away, so they count as blank, not as a leak.

    Args:
        contents: digests by split.
        what: ``"patches"`` or ``"images"``.

    Returns:
        The findings, and for every split the number of images that repeat an earlier one of it.
    """
    findings, repeats = [], {}
    codes = np.unique(np.concatenate([part.hashes for part in contents.values()]), return_inverse=True)[1]
    by_split = dict(
        zip(contents, np.split(codes, np.cumsum([len(part.hashes) for part in contents.values()])[:-1]), strict=True)
    )
    for split, part in contents.items():
        first = np.unique(by_split[split], return_index=True)[1]
        repeated = np.setdiff1d(np.arange(len(part.hashes)), first)
        repeats[split] = len(repeated)
        if len(repeated):
            advice = "Set `unique_only`" if what == "patches" else "Remove them"
            findings.append(
                Finding(
                    "warning",
                    f"{split}: {len(repeated):,} of {len(part.hashes):,} {what} repeat an earlier one exactly, such as "
                    f"{part.names[repeated[0]]}. {advice} to have each once.",
                )
            )
        if part.blank.any():
            named = listed(part.names[part.blank])
            findings.append(
                Finding("warning", f"{split}: {part.blank.sum():,} {what} are blank, all pixels equal: {named}.")
            )
    for first_split, second_split in combinations(contents, 2):
        one, two = contents[first_split], contents[second_split]
        shared = np.isin(by_split[second_split], by_split[first_split][~one.blank]) & ~two.blank
        if shared.any():
            findings.append(
                Finding(
                    "error",
                    f"{shared.sum():,} {what} of {second_split} are in {first_split} as well, pixel by pixel: "
                    f"{listed(two.names[shared])}. Remove them from one of the two.",
                )
            )
    return findings + _conflicts(contents, codes, what), repeats


def _conflicts(contents: Mapping[str, Contents], codes: np.ndarray, what: str) -> list[Finding]:
    parts = list(contents.values())
    if any(part.labels is None for part in parts):
        return []
    labels = np.concatenate([part.labels for part in parts if part.labels is not None])
    names = np.concatenate([part.names for part in parts])
    pairs = np.unique(np.stack([codes, labels], axis=1), axis=0)
    conflicting, counts = np.unique(pairs[:, 0], return_counts=True)
    rows = np.isin(codes, conflicting[counts > 1])
    if not rows.any():
        return []
    return [
        Finding(
            "warning",
            f"{rows.sum():,} {what} are identical to another one with a different label: {listed(names[rows])}. "
            "No model can get both right.",
        )
    ]
