"""Manifests: one YAML file that says what a data set is, where it comes from and how it is split.

Notation: a *split* is one of ``train``, ``valid`` and ``test``; a *group* (slide, patient, field of view) is
what must never sit in two splits; paths are relative to the folder the user calls the root.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from biocnn.errors import ManifestError

SPLITS = ("train", "valid", "test")
SplitName = Literal["train", "valid", "test"]
Kind = Literal["patches-hdf5", "image-mask", "image-points"]

_PACKAGE = Path(__file__).resolve().parents[1]
# A wheel carries the manifests inside the package; a checkout has them beside it.
_MANIFEST_FOLDERS = (_PACKAGE / "_manifests", _PACKAGE.parent / "data_manifests")


def _relative(path: str) -> str:
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or "\\" in path or not path:
        raise ValueError(f"must be a path below the root with forward slashes, received {path!r}")
    return path


def _regex(pattern: str) -> str:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"is not a regular expression: {error}") from error
    if groups != 1:
        raise ValueError(f"needs exactly one (group), received {pattern!r} with {groups}")
    return pattern


def _http(url: str) -> str:
    if not re.match(r"https?://[^/]+/", url):
        raise ValueError(f"must start with https:// or http:// and name a host, received {url!r}")
    return url


HttpUrl = Annotated[str, AfterValidator(_http)]
RelativePath = Annotated[str, AfterValidator(_relative)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Md5 = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RemoteFile(_Strict):
    """One file to download.

    Checksums and sizes are facts about published files. Where none is known the field stays empty:
    `biocnn data verify` then records what it finds beside the data instead of comparing.
    """

    name: RelativePath
    """Where it lies below the root once unpacked: a file, or for ``zip`` and ``tar`` the folder that the
    members go to, ``.`` for the root itself."""
    url: HttpUrl
    mirrors: tuple[HttpUrl, ...] = ()
    bytes: int | None = Field(default=None, gt=0)
    """Size of the download."""
    sha256: Sha256 | None = None
    """Of the download."""
    md5: Md5 | None = None
    """Of the download."""
    unpack: Literal["none", "gzip", "zip", "tar"] = "none"
    unpacked_bytes: int | None = Field(default=None, gt=0)
    unpacked_sha256: Sha256 | None = None
    unpacked_md5: Md5 | None = None

    @model_validator(mode="after")
    def _unpacked(self) -> "RemoteFile":
        if self.unpack != "gzip" and (self.unpacked_bytes or self.unpacked_sha256 or self.unpacked_md5):
            raise ValueError(f"unpacked_* describes a gzip file, but unpack is {self.unpack!r}")
        return self


class Selection(_Strict):
    """Images ``start`` to ``stop - 1`` in natural order (2 before 10), for splits by blocks."""

    start: int = Field(ge=0)
    stop: int = Field(gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> "Selection":
        if self.stop <= self.start:
            raise ValueError(f"select: stop ({self.stop}) must be greater than start ({self.start})")
        return self


class Split(_Strict):
    """Where the parts of one split lie. File names for ``patches-hdf5``, glob patterns for the image kinds.

    An image and its mask, dots or field of view belong together when the wildcards of their patterns match
    the same text: ``images: "*cell.png"`` and ``points: "*dots.png"`` pair 001cell.png with 001dots.png. See
    :func:`match_files`.
    """

    images: RelativePath
    labels: RelativePath | None = None
    """HDF5 file of labels (``patches-hdf5``)."""
    meta: RelativePath | None = None
    """CSV with one row per patch, in the order of the images."""
    masks: RelativePath | None = None
    """Glob of the masks."""
    valid: RelativePath | None = None
    """Glob of field-of-view masks: pixels outside never count."""
    points: RelativePath | None = None
    """Glob of dot images or point tables."""
    count: int | None = Field(default=None, gt=0)
    """Number of images that a whole copy has, after `select`."""
    select: Selection | None = None


class GroupRule(_Strict):
    """How to tell which group an image belongs to: a column of the meta CSV, or a pattern on its path."""

    column: str | None = None
    pattern: Annotated[str, AfterValidator(_regex)] | None = None

    @model_validator(mode="after")
    def _one(self) -> "GroupRule":
        if (self.column is None) == (self.pattern is None):
            raise ValueError("group: give either `column` or `pattern`")
        return self


class ImageFormat(_Strict):
    """What every image of the data set looks like; ``None`` where sizes differ."""

    dtype: Literal["uint8", "uint16", "uint32", "float32"] = "uint8"
    height: int | None = Field(default=None, gt=0)
    width: int | None = Field(default=None, gt=0)


class PointFormat(_Strict):
    """How the files of points of the data set are to be read (``image-points``); see `biocnn.data.points`."""

    unit: Literal["pixel", "um"] = "pixel"
    """Of the coordinates in tables: ``um`` for micrometres, which needs the pixel size."""
    duplicates: Literal["refuse", "keep", "drop"] = "refuse"
    """What to do with points at exactly the same place."""
    threshold: float | None = None
    """Dots of dot images are above it; half of the largest value when left out, 127 in a JPEG."""


_TARGETS: Mapping[str, str] = {"patches-hdf5": "labels", "image-mask": "masks", "image-points": "points"}


class Manifest(_Strict):
    """A data set, described.

    Raises:
        pydantic.ValidationError: if a field is missing, unknown or contradicts another. Use
            :func:`load_manifest` to get a :class:`~biocnn.errors.ManifestError` that names the file.
    """

    name: Annotated[str, Field(pattern="^[a-z0-9][a-z0-9_-]*$")]
    title: str
    description: str
    licence: str
    citation: str
    homepage: str | None = None
    kind: Kind
    classes: tuple[str, ...] = ()
    """Class names in the order of their labels 0, 1, ..."""
    mask_values: dict[int, str] | None = None
    """What the grey values of a mask mean (``image-mask``), after a palette has been applied."""
    foreground: tuple[int, ...] = ()
    """Mask values of the structure to find; when empty, every value but 0."""
    channels: tuple[str, ...]
    pixel_size_um: tuple[float, float] | None = None
    """Micrometres per pixel, row then column."""
    image: ImageFormat = ImageFormat()
    points: PointFormat = PointFormat()
    image_key: str = "x"
    label_key: str = "y"
    label_column: str | None = None
    """Column of the meta CSV that must agree with the labels (``patches-hdf5``)."""
    group: GroupRule | None = None
    splits: dict[SplitName, Split]
    files: tuple[RemoteFile, ...] = ()
    manual_download: str | None = None
    """What a user has to do when no file can be fetched without an account."""
    known_issues: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> "Manifest":
        target = _TARGETS[self.kind]
        for split_name, split in self.splits.items():
            if getattr(split, target) is None:
                raise ValueError(f"splits.{split_name}: kind {self.kind!r} needs `{target}`")
            if self.group is not None and self.group.column is not None and split.meta is None:
                raise ValueError(f"splits.{split_name}: group.column needs `meta`")
        if unknown := set(self.foreground) - set(self.mask_values or {}):
            raise ValueError(f"foreground: {sorted(unknown)} not among mask_values {list(self.mask_values or {})}")
        names = [file.name for file in self.files]
        if repeated := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"files: named twice: {sorted(repeated)}")
        return self


def shipped_manifests() -> dict[str, Path]:
    """Names and paths of the manifests that come with biocnn, sorted by name."""
    found = {path.stem: path for folder in _MANIFEST_FOLDERS for path in sorted(folder.glob("*.yaml"))}
    return dict(sorted(found.items()))


def load_manifest(name_or_path: str | Path) -> Manifest:
    """Read a manifest by the name of a shipped one, such as ``"pcam"``, or by the path of a YAML file.

    Args:
        name_or_path: a shipped name, or a path that ends in ``.yaml`` or ``.yml``.

    Raises:
        ManifestError: if there is no such manifest, it is not YAML, or a field is wrong; every wrong field is
            listed.

    Example:
        >>> load_manifest("pcam").splits["test"].count
        32768
    """
    text = str(name_or_path)
    if text.endswith((".yaml", ".yml")):
        path = Path(text)
        if not path.is_file():
            raise ManifestError(f"There is no manifest file {path}. `biocnn data init DIR` drafts one.")
    else:
        shipped = shipped_manifests()
        if text not in shipped:
            raise ManifestError(
                f"There is no manifest called {text!r}. Shipped are: {', '.join(shipped)}. "
                "Give one of these names, or the path of a .yaml file."
            )
        path = shipped[text]
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path} is not readable as YAML: {error}") from error
    if not isinstance(content, dict):
        raise ManifestError(f"{path} must hold `key: value` pairs, received {type(content).__name__}.")
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, item['loc'])) or 'manifest'}: {item['msg']}" for item in error.errors()]
        raise ManifestError(f"{path} is not a valid manifest:\n" + "\n".join(lines)) from error


@dataclass(frozen=True)
class ImageFiles:
    """One image of a split and its partners; ``None`` where the manifest names none or the file is missing.

    Attributes:
        key: what the wildcards of the pattern matched, such as ``"001"``; unique within the split.
        image: path of the image.
        mask: path of its mask.
        valid: path of its field-of-view mask.
        points: path of its dot image or point table.
    """

    key: str
    image: Path
    mask: Path | None = None
    valid: Path | None = None
    points: Path | None = None


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Sort key that puts 2 before 10 and compares letters without case.

    Example:
        >>> sorted(["10.png", "2.png", "1.png"], key=natural_key)
        ['1.png', '2.png', '10.png']
    """
    parts = re.findall(r"\d+|\D+", text)
    return [(0, int(part), part) if part.isdigit() else (1, 0, part.lower()) for part in parts]


_WILDCARDS = re.compile(r"(?:\*\*/|\*|\?|\[[^\]]+\])+")
_WILDCARD_REGEX = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}


def _pattern_regex(pattern: str) -> re.Pattern[str]:
    """Regular expression of a glob, with one group for every run of adjacent wildcards."""
    pieces, position = [], 0
    for run in _WILDCARDS.finditer(pattern):
        tokens = re.findall(r"\*\*/|\*|\?|\[[^\]]+\]", run.group())
        group = "".join(_WILDCARD_REGEX.get(token, token.replace("[!", "[^")) for token in tokens)
        pieces += [re.escape(pattern[position : run.start()]), f"({group})"]
        position = run.end()
    return re.compile("".join(pieces) + re.escape(pattern[position:]))


def match_files(root: str | Path, pattern: str) -> dict[str, Path]:
    """Files below a folder that match a glob, by what its wildcards matched, in natural order.

    The extension is no part of the key when a wildcard at the end covers it, so that ``images/*`` and
    ``masks/*`` pair a.tif with a.png. Hidden files are left out.

    Args:
        root: folder.
        pattern: glob relative to it, with ``*``, ``?``, ``[...]`` and ``**/``.

    Raises:
        ManifestError: if two files have the same key, so that partners could not be told apart.
    """
    root = Path(root)
    regex = _pattern_regex(pattern)
    found: dict[str, Path] = {}
    for path in root.glob(pattern):
        relative = path.relative_to(root).as_posix()
        match = regex.fullmatch(relative)
        if match is None or path.name.startswith(".") or not path.is_file():
            continue
        groups = list(match.groups())
        if pattern.endswith(".*"):
            groups = groups[:-1]
        elif pattern.endswith("*"):
            groups[-1] = groups[-1].removesuffix(path.suffix)
        key = "_".join(groups)
        if key in found:
            raise ManifestError(
                f"Pattern {pattern!r} matches both {found[key]} and {path} as {key!r}. Make the pattern "
                "narrower, for example by giving the file extension."
            )
        found[key] = path
    return dict(sorted(found.items(), key=lambda item: natural_key(item[0])))


def split_files(manifest: Manifest, root: str | Path, split: str) -> list[ImageFiles]:
    """Images of one split of an image kind with their partners, in natural order.

    Args:
        manifest: of kind ``image-mask`` or ``image-points``.
        root: folder of the data set.
        split: ``"train"``, ``"valid"`` or ``"test"``.

    Returns:
        One entry per image; partners that are missing are ``None``, which `biocnn data audit` reports. Empty
        when nothing matches.

    Raises:
        ManifestError: if the manifest has no such split, or a pattern is ambiguous.
    """
    if split not in manifest.splits:
        raise ManifestError(f"Manifest {manifest.name!r} has no split {split!r}; it has {list(manifest.splits)}.")
    parts: Split = manifest.splits[split]
    images = list(match_files(root, parts.images).items())
    if parts.select is not None:
        images = images[parts.select.start : parts.select.stop]
    masks, valid, points = (
        {} if pattern is None else match_files(root, pattern) for pattern in (parts.masks, parts.valid, parts.points)
    )
    return [ImageFiles(key, image, masks.get(key), valid.get(key), points.get(key)) for key, image in images]


def group_of(manifest: Manifest, relative_path: str) -> str | None:
    """Group of an image: ``group.pattern`` searched in its path; ``None`` if nothing matches."""
    if manifest.group is None or manifest.group.pattern is None:
        return None
    match = re.search(manifest.group.pattern, relative_path)
    return None if match is None else match.group(1)
