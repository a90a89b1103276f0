"""Audit of data sets of the kinds ``image-mask`` and ``image-points``."""

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from biocnn.data.findings import (
    Audit,
    AuditRow,
    Contents,
    Finding,
    Level,
    content_findings,
    count_finding,
    listed,
    make_audit,
    shared_groups,
    split_findings,
)
from biocnn.data.image_headers import Header, pixel_size_um, read_header, read_mask, read_pixels
from biocnn.data.manifest import ImageFiles, Manifest, Split, group_of, match_files, split_files
from biocnn.data.patches import HASH_BYTES
from biocnn.data.points import POINT_SUFFIXES, read_annotation
from biocnn.data.verify import Progress
from biocnn.errors import DataError


def audit_images(manifest: Manifest, root: Path, decode: bool, progress: Progress | None) -> Audit:
    """Audit of every split; see :func:`biocnn.data.audit.full_audit`."""
    findings = split_findings(manifest.splits)
    rows: list[AuditRow] = []
    groups: dict[str, set[str]] = {}
    paths: dict[str, set[str]] = {}
    contents: dict[str, Contents] = {}
    for name, split in manifest.splits.items():
        files = split_files(manifest, root, name)
        report = _Report(root, name)
        row = AuditRow(name, len(files), split.count)
        if not files:
            report.add("error", f"no image matches {split.images!r} in {root}")
        findings += count_finding(name, len(files), split.count)
        _check_pairs(root, split, files, report)
        row = replace(row, shape=_check_headers(manifest, files, report))
        paths[name] = {str(file.image) for file in files}
        if manifest.group is not None:
            members = [group_of(manifest, file.image.relative_to(root).as_posix()) for file in files]
            report.each("warning", "images have no group: its pattern is not in their path", _without(files, members))
            groups[name] = {member for member in members if member is not None}
            row = replace(row, groups=len(groups[name]))
        if decode and files:
            contents[name], content = _check_pixels(manifest, files, report, progress)
            row = replace(row, content=content)
        findings += report.findings
        rows.append(row)
    findings += _shared_files(paths) + shared_groups(groups)
    if contents:
        more, repeats = content_findings(contents, "images")
        findings += more
        rows = [replace(row, duplicates=repeats.get(row.split)) for row in rows]
    return make_audit(manifest.name, rows, findings)


class _Report:
    """Findings of one split, with paths shown below the root."""

    def __init__(self, root: Path, split: str) -> None:
        self.root, self.split, self.findings = root, split, list[Finding]()

    def add(self, level: Level, text: str) -> None:
        self.findings.append(Finding(level, f"{self.split}: {text}."))

    def each(self, level: Level, what: str, paths: list[Path]) -> None:
        """One finding for all `paths` that share a defect, or none."""
        if paths:
            shown = listed(path.relative_to(self.root).as_posix() for path in paths)
            self.add(level, f"{len(paths):,} {what}: {shown}")


def _without(files: list[ImageFiles], members: list[str | None]) -> list[Path]:
    return [file.image for file, member in zip(files, members, strict=True) if member is None]


def _shared_files(paths: dict[str, set[str]]) -> list[Finding]:
    times = Counter(path for members in paths.values() for path in members)
    if not (shared := sorted(path for path, count in times.items() if count > 1)):
        return []
    return [
        Finding(
            "error",
            f"{len(shared):,} files are in more than one split: {listed(shared)}. Make the patterns or `select` of "
            "the splits disjoint.",
        )
    ]


def _check_pairs(root: Path, split: Split, files: list[ImageFiles], report: _Report) -> None:
    images = match_files(root, split.images)
    for what, pattern, absent in (
        ("mask", split.masks, [file.image for file in files if file.mask is None]),
        ("field-of-view mask", split.valid, [file.image for file in files if file.valid is None]),
        ("points", split.points, [file.image for file in files if file.points is None]),
    ):
        if pattern is None:
            continue
        report.each("error", f"images have no {what} that matches {pattern!r}", absent)
        orphans = [path for key, path in match_files(root, pattern).items() if key not in images]
        report.each("warning", f"files match {pattern!r} and have no image", orphans)


def _check_headers(manifest: Manifest, files: list[ImageFiles], report: _Report) -> str:
    """Sizes, channels and types against the manifest and between partners; returns what the images look like."""
    headers: dict[Path, Header] = {}
    unreadable = []
    for file in files:
        for path in (file.image, file.mask, file.valid, file.points):
            if path is None or path.suffix.lower() in POINT_SUFFIXES:
                continue
            try:
                headers[path] = read_header(path)
            except DataError:
                unreadable.append(path)
    report.each("error", "files cannot be read as images", unreadable)
    images = {file.image: headers[file.image] for file in files if file.image in headers}
    wanted = manifest.image
    strange = [path for path, header in images.items() if header.dtype != wanted.dtype]
    report.each("error", f"images are not {wanted.dtype}, as the manifest says", strange)
    strange = [path for path, header in images.items() if header.channels != len(manifest.channels)]
    report.each("error", f"images have not the {len(manifest.channels)} channels of the manifest", strange)
    # A stack with a stack of masks is its planes; points have no plane.
    stacks = [path for path, header in images.items() if header.planes > 1 and manifest.kind != "image-mask"]
    report.each("error", "images have several planes", stacks)
    strange = [
        path
        for path, header in images.items()
        if wanted.height not in (None, header.height) or wanted.width not in (None, header.width)
    ]
    report.each("warning", f"images are not {wanted.height}x{wanted.width} px (rows x columns)", strange)
    for what in ("mask", "valid", "points"):
        differing = []
        for file in files:
            image, partner = images.get(file.image), headers.get(getattr(file, what))
            if image and partner and _extent(image) != _extent(partner):
                differing.append(getattr(file, what))
        report.each("error", f"files of `{what}` differ in size from their image", differing)
    looks = Counter(map(str, images.values()))
    return listed(look for look, _ in looks.most_common(2)) + (f" ({len(looks)} kinds)" if len(looks) > 2 else "")


def _extent(header: Header) -> tuple[int, int, int]:
    return header.planes, header.height, header.width


def _check_pixels(
    manifest: Manifest, files: list[ImageFiles], report: _Report, progress: Progress | None
) -> tuple[Contents, str]:
    """Decode every image and its partner once; returns digests of the images and a summary of the targets."""
    digests, blank, names = [], [], []
    failed, not_finite = [], []
    targets = _Targets(manifest)
    for done, file in enumerate(files):
        try:
            pixels = read_pixels(file.image)
            digests.append(_digest(pixels))
            blank.append(bool((pixels == pixels.flat[0]).all()) if pixels.ndim == 2 else _one_colour(pixels))
            names.append(file.image.relative_to(report.root).as_posix())
            if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
                not_finite.append(file.image)
            targets.look(file, pixels.shape[:2])
        except DataError as error:
            failed.append(str(error))
        if progress is not None:
            progress(report.split, done + 1, len(files))
    if failed:
        report.add("error", f"{len(failed):,} files cannot be decoded: {listed(failed)}")
    report.each("error", "images hold NaN or infinity", not_finite)
    content = targets.report(report)
    return Contents(np.array(digests, dtype=f"V{HASH_BYTES}"), np.array(blank, bool), np.array(names)), content


def _digest(pixels: np.ndarray) -> bytes:
    # Shape and dtype as well: zeros of 2x8 and 4x4 have the same bytes.
    digest = hashlib.blake2b(f"{pixels.shape}{pixels.dtype}".encode(), digest_size=HASH_BYTES)
    digest.update(pixels.tobytes())
    return digest.digest()


def _one_colour(pixels: np.ndarray) -> bool:
    return bool((pixels == pixels[:1, :1]).all())


class _Targets:
    """Masks or points of one split, summed up image by image."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.values: Counter[float] = Counter()
        self.unknown: list[Path] = []
        self.empty: list[Path] = []
        self.unusable: list[str] = []
        self.counts: list[int] = []
        self.foreground, self.pixels = 0, 0

    def look(self, file: ImageFiles, size: tuple[int, ...]) -> None:
        """Read the partner of an image of `size` (rows, columns)."""
        if file.mask is not None:
            found, numbers = np.unique(read_mask(file.mask), return_counts=True)
            self.values.update(dict(zip(found.tolist(), numbers.tolist(), strict=True)))
            known = self.manifest.mask_values
            if known is not None and not set(found.tolist()) <= set(known):
                self.unknown.append(file.mask)
            is_structure = np.isin(found, self.manifest.foreground) if self.manifest.foreground else found != 0
            inside = int(numbers[is_structure].sum())
            self.foreground, self.pixels = self.foreground + inside, self.pixels + int(numbers.sum())
            if inside == 0:
                self.empty.append(file.mask)
        if file.points is not None:
            self._look_at_points(file.image, file.points, (size[0], size[1]))

    def _look_at_points(self, image: Path, path: Path, size: tuple[int, int]) -> None:
        manifest = self.manifest
        try:
            points = read_annotation(path, size, manifest.points, manifest.pixel_size_um or pixel_size_um(image))
        except DataError as error:
            self.unusable.append(str(error))
            return
        self.counts.append(len(points))
        if len(points) == 0:
            self.empty.append(path)

    def report(self, report: _Report) -> str:
        """Add what was found, and return the summary for the table."""
        if self.unknown:
            known = sorted(self.manifest.mask_values or {})
            strange = sorted(set(self.values) - set(known))
            report.each(
                "error",
                f"masks have values {listed(strange)} that are not among mask_values {known}; add them to the "
                "manifest or correct the masks",
                self.unknown,
            )
        elif self.values and self.manifest.mask_values is None:
            report.add("info", f"masks have the values {listed(sorted(self.values))}; name them in mask_values")
        if self.unusable:
            report.add("error", f"{len(self.unusable):,} files of points cannot be used: {listed(self.unusable)}")
        report.each("warning", "masks hold no foreground or tables no point", self.empty)
        if self.pixels:
            return f"foreground {100 * self.foreground / self.pixels:.1f} %"
        if self.counts:
            counts = np.array(self.counts)
            low, high = counts.min(), counts.max()
            return (
                f"{counts.mean():.1f} ± {counts.std():.1f} points per image ({low} to {high}), {counts.sum():,} in all"
            )
        return ""
