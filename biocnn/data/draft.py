"""Drafting a manifest for a folder that a lab already has: recognise the layout, guess the rest, say why."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from biocnn.data.hdf5 import array_header
from biocnn.data.image_headers import IMAGE_SUFFIXES, Header, pixel_size_um, read_header, read_mask
from biocnn.data.manifest import SPLITS, Manifest, load_manifest, match_files, natural_key
from biocnn.data.patches import read_meta_column
from biocnn.data.points import POINT_SUFFIXES
from biocnn.errors import DataError, DatasetNotFoundError, ManifestError
from biocnn.files import write_text

_IMAGE_FOLDERS = {"images", "image", "imgs", "img", "raw", "original", "originals"}
_MASK_FOLDERS = {"masks", "mask", "labels", "label", "annotations", "annotation", "manual", "1st_manual", "gt"}
_MASK_FOLDERS |= {"groundtruth", "ground_truth", "segmentation", "segmentations", "seg", "targets", "target"}
_POINT_FOLDERS = {"points", "dots", "centroids", "centres", "centers"}
_SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "valid": ("valid", "val", "validation", "dev"),
    "test": ("test", "testing"),
}
_SAMPLED = 20


@dataclass(frozen=True)
class Draft:
    """A manifest that was guessed.

    Attributes:
        path: YAML file that was written.
        manifest: its content.
        reasons: what was guessed, and from what, in sentences.
        open_points: what the user has to fill in or check.
    """

    path: Path
    manifest: Manifest
    reasons: tuple[str, ...]
    open_points: tuple[str, ...]


@dataclass(frozen=True)
class _Layout:
    kind: str
    splits: dict[str, dict[str, str]]
    reason: str


def draft_manifest(folder: str | Path) -> Draft:
    """Look at a folder of data and write ``<name>.yaml`` into it, a manifest to be checked by hand.

    Recognised are HDF5 patches in the PCam layout; images with masks in sister folders, or beside them with
    another ending; images with dot images, tables of points, or points of QuPath or ImageJ. Split folders called
    train, valid (val, validation) and test are used; otherwise everything is `train`.

    Args:
        folder: with the data; its name becomes the name of the data set.

    Raises:
        DatasetNotFoundError: if there is no such folder, or no known layout in it.
        ManifestError: if there is a draft already.
        DataError: if a file cannot be read.
    """
    folder = Path(folder).resolve()
    if not folder.is_dir():
        raise DatasetNotFoundError(f"There is no folder {folder}.")
    name = re.sub(r"[^a-z0-9_-]+", "_", folder.name.lower()).strip("_-") or "data"
    path = folder / f"{name}.yaml"
    if path.exists():
        raise ManifestError(f"{path} is there already and is left as it is. Move it away to draft a new one.")
    layout = _find_layout(folder)
    content, reasons, open_points = _describe(folder, name, layout)
    reasons.insert(0, layout.reason)
    missing = [split for split in SPLITS if split not in layout.splits]
    if missing:
        open_points.append(
            f"There is no {' and no '.join(missing)} split. Make one by folders, patterns or `select`, with whole "
            "groups (patients, slides, fields) on one side."
        )
    comments = "".join(f"# CHECK: {point}\n" for point in open_points)
    write_text(path, comments + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110))
    return Draft(path, load_manifest(path), tuple(reasons), tuple(open_points))


def _describe(folder: Path, name: str, layout: _Layout) -> tuple[dict[str, Any], list[str], list[str]]:
    content: dict[str, Any] = {
        "name": name,
        "title": folder.name,
        "description": "Say what the images show, how they were taken and who annotated them.",
        "licence": "unknown",
        "citation": "none",
        "kind": layout.kind,
    }
    fill = _describe_patches if layout.kind == "patches-hdf5" else _describe_images
    reasons, open_points = fill(folder, layout, content)
    content["splits"] = layout.splits
    open_points.insert(0, "description, licence and citation are placeholders.")
    return content, reasons, open_points


def _find_layout(folder: Path) -> _Layout:
    for find in (_find_patches, _find_sister_folders, _find_endings):
        if (layout := find(folder)) is not None:
            return layout
    seen = sorted({path.suffix.lower() or "no extension" for path in folder.rglob("*") if path.is_file()})
    raise DatasetNotFoundError(
        f"{folder} has no layout that is known here; its files are of the types {', '.join(seen) or '(none)'}. "
        "Expected *_x.h5 with *_y.h5, or folders images/ and masks/ (or points/), or pairs such as 001cell.png with "
        "001dots.png. See data_manifests/README.md to write the manifest by hand."
    )


def _split_of(text: str) -> str | None:
    """Split that a folder or file name speaks of, as a whole word."""
    words = re.split(r"[^a-z0-9]+", text.lower())
    return next((split for split, names in _SPLIT_FOLDERS.items() if set(names) & set(words)), None)


def _find_patches(folder: Path) -> _Layout | None:
    splits: dict[str, dict[str, str]] = {}
    for images in sorted(folder.glob("*_x.h5")):
        labels = images.with_name(images.name.removesuffix("_x.h5") + "_y.h5")
        meta = images.with_name(images.name.removesuffix("_x.h5") + "_meta.csv")
        split = _split_of(images.name) or "train"
        if labels.is_file() and split not in splits:
            splits[split] = {"images": images.name, "labels": labels.name}
            splits[split] |= {"meta": meta.name} if meta.is_file() else {}
    if not splits:
        return None
    ordered = {split: splits[split] for split in SPLITS if split in splits}
    return _Layout("patches-hdf5", ordered, "Kind patches-hdf5: there are *_x.h5 files with *_y.h5 beside them.")


def _files_in(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    return sorted(
        (path for path in folder.iterdir() if path.suffix.lower() in suffixes and path.name[0] != "."),
        key=lambda path: natural_key(path.name),
    )


def _split_roots(folder: Path) -> dict[str, Path]:
    """Folders train/, valid/ and test/; the folder itself as `train` when there is none."""
    found = {_split_of(path.name): path for path in sorted(folder.iterdir()) if path.is_dir()}
    return {split: found[split] for split in SPLITS if split in found} or {"train": folder}


def _find_sister_folders(folder: Path) -> _Layout | None:
    splits: dict[str, dict[str, str]] = {}
    kind = ""
    for split, root in _split_roots(folder).items():
        below = {path.name.lower(): path for path in sorted(root.iterdir()) if path.is_dir()}
        images = next((path for name, path in below.items() if name in _IMAGE_FOLDERS), None)
        # `mask` after the others: retinal sets keep the field of view there.
        names = sorted(below.keys() & _MASK_FOLDERS, key=lambda name: (name == "mask", name))
        points = next((path for name, path in below.items() if name in _POINT_FOLDERS), None)
        partner = points or (below[names[0]] if names else None)
        if images is None or partner is None:
            continue
        partners = _files_in(partner, IMAGE_SUFFIXES) or _files_in(partner, POINT_SUFFIXES)
        patterns = _pair_patterns(folder, _files_in(images, IMAGE_SUFFIXES), partners)
        if patterns is not None:
            part, kind = ("points", "image-points") if points else ("masks", "image-mask")
            splits[split] = {"images": patterns[0], part: patterns[1]}
    if not splits:
        return None
    return _Layout(kind, splits, f"Kind {kind}: there are folders of images beside folders of annotations.")


def _find_endings(folder: Path) -> _Layout | None:
    """Images and annotations in one folder, told apart by their endings: cell/dots, _mask, _points.geojson."""
    splits: dict[str, dict[str, str]] = {}
    kind = ""
    for split, root in _split_roots(folder).items():
        images, others = _files_in(root, IMAGE_SUFFIXES), _files_in(root, POINT_SUFFIXES)
        for word, candidate in (("dots", "image-points"), ("points", "image-points"), ("mask", "image-mask")):
            partners = [path for path in (*images, *others) if path.stem.lower().endswith(word)]
            rest = [path for path in images if path not in partners]
            patterns = _pair_patterns(folder, rest, partners)
            if patterns is not None:
                kind = candidate
                part = "masks" if kind == "image-mask" else "points"
                splits[split] = {"images": patterns[0], part: patterns[1]}
                break
    if not splits:
        return None
    return _Layout(kind, splits, f"Kind {kind}: images and their annotations differ in the ending of their names.")


def _pair_patterns(folder: Path, images: list[Path], partners: list[Path]) -> tuple[str, str] | None:
    """Globs of images and partners whose wildcards match the same text for most images, or None.

    The longest common beginning and ending of the names, cut back to where a number or word starts, are written
    out; the rest is the wildcard.
    """
    if not images or not partners:
        return None
    best: tuple[int, str, str] = (0, "", "")
    # What a single image and its partner have in common is the key; there are no other names to compare with.
    single = len(images) == len(partners) == 1
    shared = _common([images[0].stem, partners[0].stem]).rstrip("_-. ") if single else ""
    partner_keys = {pattern: _keys(folder, pattern, partners) for pattern in _patterns(folder, partners, shared)}
    for image_pattern in _patterns(folder, images, shared):
        keys = _keys(folder, image_pattern, images)
        for partner_pattern, others in partner_keys.items():
            if len(keys & others) > best[0]:
                best = (len(keys & others), image_pattern, partner_pattern)
    # Fewer than half in pairs is a coincidence of names.
    return best[1:] if 2 * best[0] >= len(images) else None


def _keys(folder: Path, pattern: str, allowed: list[Path]) -> set[str]:
    """Keys of a glob; none when it also matches files that are not `allowed`, or is ambiguous."""
    try:
        found = match_files(folder, pattern)
    except ManifestError:
        return set()
    return set(found) if set(found.values()) <= set(allowed) else set()


def _patterns(folder: Path, files: list[Path], key: str) -> list[str]:
    """Globs for files of one folder, from the widest to the narrowest; `key` is given for a single file only."""
    parent = files[0].parent.relative_to(folder).as_posix()
    place = "" if parent == "." else f"{parent}/"
    suffixes = {path.suffix for path in files}
    suffix = suffixes.pop() if len(suffixes) == 1 else ".*"
    stems = [path.stem for path in files]
    start, end = _common(stems), _common([stem[::-1] for stem in stems])[::-1]
    start, end = re.sub(r"\d+$", "", start), re.sub(r"^\d+", "", end)
    if len(files) == 1:
        start, end = "", stems[0].removeprefix(key) if key else ""
    # `*[0-9]` tells cell_01.png from cell_01_mask.png.
    return list(
        dict.fromkeys(
            f"{place}{first}{wildcard}{last}{suffix}"
            for first in ("", start)
            for wildcard in ("*", "*[0-9]")
            for last in ("", end)
        )
    )


def _common(texts: list[str]) -> str:
    length = 0
    while all(len(text) > length and text[length] == texts[0][length] for text in texts):
        length += 1
    return texts[0][:length]


def _describe_patches(folder: Path, layout: _Layout, content: dict[str, Any]) -> tuple[list[str], list[str]]:
    reasons, open_points = [], []
    first = next(iter(layout.splits.values()))
    shape, dtype = array_header(folder / first["images"], "x")
    if len(shape) != 4 or dtype != np.uint8:
        raise DataError(f"{folder / first['images']}: 'x' is {shape} {dtype}, expected (N, rows, columns, 3) uint8.")
    content["classes"] = ["negative", "positive"]
    open_points.append("classes: the names of labels 0 and 1 are placeholders.")
    content["channels"] = _channels(shape[3])
    content["image"] = {"dtype": "uint8", "height": shape[1], "width": shape[2]}
    reasons.append(f"Images: {shape[1]}x{shape[2]} px, {shape[3]} channels, uint8, from the header of 'x'.")
    if all("meta" in split for split in layout.splits.values()):
        _describe_meta(folder / first["meta"], content, reasons, open_points)
    else:
        open_points.append("group: there is no meta CSV that says which slide or patient a patch is from.")
    open_points.append("pixel_size_um: HDF5 patches do not say it.")
    for split in layout.splits.values():
        split["count"] = array_header(folder / split["images"], "x")[0][0]  # type: ignore[assignment]
    return reasons, open_points


def _describe_meta(meta: Path, content: dict[str, Any], reasons: list[str], open_points: list[str]) -> None:
    for column in ("wsi", "slide", "patient", "case", "field", "group"):
        try:
            groups = np.unique(read_meta_column(meta, column))
        except DataError:
            continue
        content["group"] = {"column": column}
        reasons.append(f"Group: column {column!r} of {meta.name} has {len(groups)} values. This is a guess.")
        break
    else:
        open_points.append(f"group: no column of {meta.name} is called wsi, slide, patient, case, field or group.")
    try:
        read_meta_column(meta, "center_tumor_patch")
    except DataError:
        return
    content["label_column"] = "center_tumor_patch"
    reasons.append(f"Label column: center_tumor_patch of {meta.name}, as in PCam.")


def _channels(number: int) -> list[str]:
    return {1: ["grey"], 3: ["red", "green", "blue"]}.get(number) or [f"channel_{i}" for i in range(1, number + 1)]


def _describe_images(folder: Path, layout: _Layout, content: dict[str, Any]) -> tuple[list[str], list[str]]:
    reasons: list[str] = []
    open_points: list[str] = []
    images: list[Path] = []
    for name, split in layout.splits.items():
        found = match_files(folder, split["images"])
        images += found.values()
        part = split.get("masks") or split["points"]
        pairs = found.keys() & match_files(folder, part).keys()
        reasons.append(f"Split {name}: {len(found)} images {split['images']}, {len(pairs)} in pairs with {part}.")
        split["count"] = len(found)  # type: ignore[assignment]
    headers = [read_header(path) for path in images]
    _describe_headers(headers, content, reasons, open_points)
    sizes = Counter(pixel_size_um(path) for path in images[:_SAMPLED])
    size = sizes.most_common(1)[0][0]
    if size is not None and len(sizes) == 1:
        content["pixel_size_um"] = [round(value, 6) for value in size]
        reasons.append(f"Pixel size: {size[0]:.4g} x {size[1]:.4g} um (rows, columns), from the TIFF tags.")
    else:
        open_points.append("pixel_size_um: the files do not say it, or disagree; without it lengths are in pixels.")
    if layout.kind == "image-mask":
        _describe_masks(folder, layout, content, reasons, open_points)
    _guess_groups(folder, images, content, reasons, open_points)
    return reasons, open_points


def _describe_headers(
    headers: list[Header], content: dict[str, Any], reasons: list[str], open_points: list[str]
) -> None:
    looks = Counter(headers)
    common = looks.most_common(1)[0][0]
    if common.dtype not in ("uint8", "uint16", "uint32", "float32"):
        raise DataError(f"Images are {common.dtype}, expected uint8, uint16, uint32 or float32. Convert them.")
    content["channels"] = _channels(common.channels)
    content["image"] = {"dtype": common.dtype}
    if len({(header.height, header.width) for header in headers}) == 1:
        content["image"] |= {"height": common.height, "width": common.width}
    reasons.append(f"Images: {common} in {looks[common]} of {len(headers)} files.")
    if common.channels not in (1, 3):
        open_points.append(f"channels: {common.channels} per image; name them.")
    if len({(header.channels, header.dtype, header.planes) for header in headers}) > 1 or common.planes > 1:
        open_points.append(f"images are not alike: {', '.join(map(str, looks))}.")


def _describe_masks(
    folder: Path, layout: _Layout, content: dict[str, Any], reasons: list[str], open_points: list[str]
) -> None:
    values: set[float] = set()
    looked = [path for split in layout.splits.values() for path in match_files(folder, split["masks"]).values()][
        :_SAMPLED
    ]
    for path in looked:
        values |= set(np.unique(read_mask(path)).tolist())
    if len(values) > 10:
        open_points.append(
            f"mask_values: {len(values)} different values in {len(looked)} masks, so these are instances, or were "
            "saved as JPEG. Give masks with one value per class."
        )
        return
    content["mask_values"] = {int(value): f"value_{int(value)}" for value in sorted(values)}
    if 0 in values:
        content["mask_values"][0] = "background"
    reasons.append(f"Mask values: {sorted(map(int, values))} in the first {len(looked)} masks.")
    open_points.append("mask_values: give the values their names; set `foreground` if the structure is drawn as 0.")


def _guess_groups(
    folder: Path, images: list[Path], content: dict[str, Any], reasons: list[str], open_points: list[str]
) -> None:
    """Group by what stands before the last number of the names, when several images share it."""
    pattern = r"([^/]+)[_-]\d+[^/\d]*$"
    names = [path.relative_to(folder).as_posix() for path in images]
    matches = [re.search(pattern, name) for name in names]
    groups = Counter(match[1] for match in matches if match is not None)
    if None not in matches and 1 < len(groups) < len(names):
        content["group"] = {"pattern": pattern}
        reasons.append(
            f"Group: what stands before the last number of the name, {len(groups)} groups such as "
            f"{next(iter(groups))!r}. This is a guess."
        )
    else:
        open_points.append("group: the names do not tell which images are of one patient, slide or field.")
