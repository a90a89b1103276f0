"""Audit of data sets of kind ``patches-hdf5``. Notation: N patches in a split, H rows, W columns, C channels."""

import hashlib
from pathlib import Path

import numpy as np

from biocnn.data.findings import (
    Audit,
    AuditRow,
    Contents,
    Finding,
    content_findings,
    count_finding,
    listed,
    make_audit,
    shared_groups,
    split_findings,
)
from biocnn.data.hdf5 import array_header, read_array
from biocnn.data.manifest import Manifest, Split
from biocnn.data.patches import HASH_BYTES, open_patch_source, read_meta_column
from biocnn.data.verify import Progress
from biocnn.errors import DataError, DatasetNotFoundError


def audit_patches(manifest: Manifest, root: Path, decode: bool, progress: Progress | None) -> Audit:
    """Audit of every split; see :func:`biocnn.data.audit.full_audit`."""
    findings = split_findings(manifest.splits)
    rows: dict[str, AuditRow] = {}
    groups: dict[str, set[str]] = {}
    contents: dict[str, Contents] = {}
    for name, split in manifest.splits.items():
        found: list[Finding] = []
        rows[name], members = _check_split(manifest, root, name, split, found)
        if members is not None:
            groups[name] = {group.decode() for group in np.unique(members)}
        findings += found
        # Patches that do not fit their labels cannot be read as a source; what is wrong is reported already.
        if decode and not any(finding.level == "error" for finding in found):
            try:
                contents[name] = _read_contents(manifest, root, name, progress)
            except DataError as error:
                findings.append(Finding("error", f"{name}: {error}"))
    findings += shared_groups(groups)
    repeats: dict[str, int] = {}
    if contents:
        more, repeats = content_findings(contents, "patches")
        findings += more
    return make_audit(
        manifest.name,
        (AuditRow(**{**row.__dict__, "duplicates": repeats.get(name)}) for name, row in rows.items()),
        findings,
    )


def _check_split(
    manifest: Manifest, root: Path, name: str, split: Split, findings: list[Finding]
) -> tuple[AuditRow, np.ndarray | None]:
    """Headers, labels and meta of one split; appends to `findings` and returns the row and the group of each patch."""

    def error(text: object) -> None:
        findings.append(Finding("error", f"{name}: {text}"))

    try:
        shape, dtype = array_header(root / split.images, manifest.image_key)
    except (DataError, DatasetNotFoundError) as problem:
        error(problem)
        return AuditRow(name, 0, split.count), None
    expected = (manifest.image.height, manifest.image.width, len(manifest.channels))
    if len(shape) != 4 or any(want not in (None, have) for want, have in zip(expected, shape[1:], strict=False)):
        shown = ", ".join("any" if size is None else str(size) for size in expected)
        error(f"{root / split.images}: {manifest.image_key!r} has shape {shape}, expected (N, {shown})")
    if dtype != np.uint8:
        error(f"{root / split.images}: {manifest.image_key!r} is {dtype}, expected uint8 with values 0 to 255")
    count = shape[0]
    findings += count_finding(name, count, split.count)
    try:
        labels = _check_labels(manifest, root, name, split, count, findings)
        members = _check_meta(manifest, root, name, split, count, labels, findings)
    except (DataError, DatasetNotFoundError) as problem:
        error(problem)
        labels, members = None, None
    size = "x".join(map(str, shape[1:]))
    row = AuditRow(
        name,
        count,
        split.count,
        f"{size} {dtype}",
        "" if labels is None else _balance(manifest, labels),
        None if members is None else len(np.unique(members)),
    )
    return row, members


def _check_labels(
    manifest: Manifest, root: Path, name: str, split: Split, count: int, findings: list[Finding]
) -> np.ndarray:
    path = root / str(split.labels)
    labels = read_array(path, manifest.label_key)
    if labels.size != count:
        raise DataError(
            f"{path} has {labels.size:,} labels for {count:,} patches in {split.images}. They do not belong together."
        )
    labels = labels.reshape(-1)
    classes = np.arange(len(manifest.classes)) if manifest.classes else np.arange(labels.max(initial=0) + 1)
    if not np.isin(labels, classes).all():
        strange = np.unique(labels[~np.isin(labels, classes)])
        raise DataError(
            f"{path} has labels {listed(strange)} outside the classes 0 to {len(classes) - 1}"
            f"{' (' + ', '.join(manifest.classes) + ')' if manifest.classes else ''}. Correct `classes` or the labels."
        )
    labels = labels.astype(np.int64)
    if len(np.unique(labels)) == 1:
        findings.append(
            Finding("warning", f"{name}: all {count:,} patches have label {labels[0]}; no AUC can be computed.")
        )
    return labels


def _check_meta(
    manifest: Manifest,
    root: Path,
    name: str,
    split: Split,
    count: int,
    labels: np.ndarray,
    findings: list[Finding],
) -> np.ndarray | None:
    if split.meta is None:
        return None
    path = root / split.meta
    if manifest.label_column is not None:
        values, inverse = np.unique(read_meta_column(path, manifest.label_column), return_inverse=True)
        truth = np.array([_as_label(value.decode()) for value in values], np.int64)[inverse]
        if len(truth) != count:
            raise DataError(f"{path} has {len(truth):,} rows for {count:,} patches. They do not belong together.")
        if len(differing := np.flatnonzero(truth != labels)):
            findings.append(
                Finding(
                    "error",
                    f"{name}: {len(differing):,} of {count:,} labels differ from column {manifest.label_column!r} of "
                    f"{path}, first in rows {listed(differing)}. Images, labels and meta file are not of one set, or "
                    "another column is meant.",
                )
            )
    if manifest.group is None or manifest.group.column is None:
        return None
    members = read_meta_column(path, manifest.group.column)
    if len(members) != count:
        raise DataError(f"{path} has {len(members):,} rows for {count:,} patches. They do not belong together.")
    if len(empty := np.flatnonzero(members == b"")):
        findings.append(
            Finding("warning", f"{name}: {len(empty):,} patches have no {manifest.group.column!r} in {path}.")
        )
    return members


def _as_label(text: str) -> int:
    """Label that a cell of a CSV stands for: a number, or True and False as pandas writes them; -1 for other text."""
    text = {"true": "1", "false": "0"}.get(text.lower(), text).removesuffix(".0")
    return int(text) if text.isdecimal() else -1


def _balance(manifest: Manifest, labels: np.ndarray) -> str:
    counts = np.bincount(labels, minlength=len(manifest.classes))
    names = manifest.classes or tuple(map(str, range(len(counts))))
    return ", ".join(
        f"{name} {100 * count / max(len(labels), 1):.1f} %" for name, count in zip(names, counts, strict=True)
    )


def _read_contents(manifest: Manifest, root: Path, name: str, progress: Progress | None) -> Contents:
    source = open_patch_source(manifest, root, name)
    digests, blank = [], []
    for block in source.blocks():
        digests += [hashlib.blake2b(patch, digest_size=HASH_BYTES).digest() for patch in block]
        blank.append((block == block[:, :1, :1]).all(axis=(1, 2, 3)))
        if progress is not None:
            progress(name, len(digests), len(source))
    hashes = np.frombuffer(b"".join(digests), dtype=f"V{HASH_BYTES}")
    blanks = np.concatenate(blank) if blank else np.zeros(0, bool)
    return Contents(hashes, blanks, np.char.decode(source.ids), source.labels)
