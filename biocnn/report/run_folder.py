"""Reading a run folder: whatever is there of it; what is missing is named, not demanded."""

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from biocnn.checkpoints import BEST, read_biocnn_checkpoint
from biocnn.data.manifest import Manifest, load_manifest
from biocnn.errors import BiocnnError, DataError

Row = dict[str, str]

FILES = ("config.yaml", "run.json", "metrics.csv", "metrics.json", "predictions.csv", "figures")
"""Of a run folder; any of them makes one."""
_TASKS = {"SegmentationTask": "segmentation", "CountingTask": "counting", "ClassificationTask": "classification"}
_TELLING = {"segmentation": ("dice", "val_dice"), "counting": ("mae", "val_mae"), "classification": ("nll", "val_nll")}
"""A number that no other job has, in `metrics.json` and in `metrics.csv`."""


@dataclass(frozen=True)
class Run:
    """What a run folder holds.

    Attributes:
        folder: of the run.
        job: ``"segmentation"``, ``"counting"``, ``"classification"``, or ``""`` if nothing tells.
        config: content of ``config.yaml``.
        record: of ``run.json``.
        metrics: of ``metrics.json``.
        rows: of ``predictions.csv``.
        model: what ``best.ckpt`` says of itself, beside the weights.
        manifest: of the data, if it is at hand.
        root: folder of the data, if it is at hand.
        missing: what is not there, in words.
    """

    folder: Path
    job: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    rows: tuple[Row, ...] = ()
    model: Mapping[str, Any] = field(default_factory=dict)
    manifest: Manifest | None = None
    root: Path | None = None
    missing: tuple[str, ...] = ()

    @property
    def data(self) -> Mapping[str, Any]:
        """What is known of the training data."""
        return mapping(self.record.get("data")) or mapping(self.model.get("data"))


def read_run(folder: Path) -> Run:
    """Read a run folder; what is missing or torn becomes a sentence of `missing`.

    Raises:
        DataError: if it is no folder, or holds nothing of a run.
    """
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}. Give a run folder or the folder of a prediction.")
    if not any((folder / name).exists() for name in FILES):
        raise DataError(
            f"{folder} holds neither a run ({', '.join(FILES)}) nor a prediction (predictions.json, or predictions.csv "
            "with the columns image and status). Give a folder that a pipeline or `biocnn predict` has written."
        )
    missing: list[str] = []
    config = read_mapping(folder / "config.yaml", "the settings of the training", missing)
    record = read_mapping(folder / "run.json", "command, versions and hardware of the training", missing)
    metrics = read_mapping(folder / "metrics.json", "the numbers of a test", missing)
    rows = read_rows(folder / "predictions.csv")
    if not rows:
        missing.append("predictions.csv, the table of a test")
    if not (folder / "metrics.csv").is_file():
        missing.append("metrics.csv, the learning curves")
    model = _read_model(folder / "checkpoints" / BEST, missing)
    manifest, root = _find_data(config, missing)
    return Run(
        folder,
        _job_of(folder, model, metrics),
        config,
        record,
        metrics,
        tuple(rows),
        model,
        manifest,
        root,
        tuple(missing),
    )


def mapping(value: Any) -> Mapping[str, Any]:
    """A mapping as it is, anything else as an empty one: files of others may hold what they like."""
    return value if isinstance(value, dict) else {}


def read_mapping(path: Path, what: str, missing: list[str]) -> Mapping[str, Any]:
    """Content of a JSON or YAML file that holds a mapping; empty if it is not there or damaged, which is noted.

    Args:
        path: of the file, ``.json`` or ``.yaml``.
        what: it holds, in words.
        missing: gets a sentence if it is not there.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    except OSError:
        missing.append(f"{path.name}, {what}")
        return {}
    except (ValueError, yaml.YAMLError):
        missing.append(f"{path.name}, {what}: the file is damaged")
        return {}
    return mapping(content)


def read_rows(path: Path) -> list[Row]:
    """Rows of a table as text; rows cut short are left out, and a missing or unreadable table has none."""
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as handle:
            return [row for row in csv.DictReader(handle) if None not in row and None not in row.values()]
    except (OSError, csv.Error):
        return []


def _read_model(path: Path, missing: list[str]) -> Mapping[str, Any]:
    try:
        return mapping(read_biocnn_checkpoint(path)["biocnn"])
    except BiocnnError:
        missing.append("checkpoints/best.ckpt, the model")
        return {}


def _job_of(folder: Path, model: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    if (job := _TASKS.get(str(model.get("task")))) is not None:
        return job
    try:
        with (folder / "metrics.csv").open(encoding="utf-8") as handle:
            logged = handle.readline().strip().split(",")
    except OSError:
        logged = []
    return next((job for job, (name, column) in _TELLING.items() if name in metrics or column in logged), "")


def _find_data(config: Mapping[str, Any], missing: list[str]) -> tuple[Manifest | None, Path | None]:
    """Manifest and root as the training was told; either is None where it is not at hand."""
    given = mapping(config.get("data"))
    if not given:
        return None, None
    manifest = None
    try:
        manifest = load_manifest(str(given.get("manifest")))
    except (BiocnnError, OSError):
        missing.append(f"the manifest {given.get('manifest')}, which describes the data")
    root = None if given.get("root") is None else Path(str(given["root"]))
    if root is None or not root.is_dir():
        missing.append("the folder of the data as it was given for the training")
        root = None
    return manifest, root
