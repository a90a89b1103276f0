"""Metrics of many runs in one table, with their spread: what folds and seeds are trained for."""

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from biocnn.errors import DataError
from biocnn.files import write_text
from biocnn.report.run_folder import mapping, read_mapping

FIRST = ("run", "job", "seed", "folds", "fold")
_TOLD = ("_low", "_high")
"""Ends of intervals within a run; the spread over runs is another thing."""
_SETTINGS = ("rule_", "version_", "bootstrap_")
_SAME_IN_ALL = ("seed", "views", "steps", "interval_level")


@dataclass(frozen=True)
class Collected:
    """Runs as rows.

    Attributes:
        rows: one for each run that was tested: what is in `FIRST`, and all of its ``metrics.json`` but lists.
        missing: a sentence for each run that was not.
    """

    rows: tuple[Mapping[str, Any], ...]
    missing: tuple[str, ...]


def collect_runs(folders: Sequence[str | Path]) -> Collected:
    """Read ``metrics.json``, and seed and fold from ``config.yaml``, of run folders, in their order.

    Raises:
        DataError: if two of the folders are one, which would count a run twice.
    """
    rows: list[Mapping[str, Any]] = []
    missing: list[str] = []
    seen: set[Path] = set()
    for folder in map(Path, folders):
        if folder.resolve() in seen:
            raise DataError(f"{folder} is given twice. Give every run folder once.")
        seen.add(folder.resolve())
        metrics = read_mapping(folder / "metrics.json", "the numbers of a test", [])
        if not metrics:
            missing.append(f"{folder} is left out: {_why(folder)}")
            continue
        config = read_mapping(folder / "config.yaml", "the settings of the training", [])
        data = mapping(config.get("data"))
        folds = data.get("folds")
        own = (
            *(folder.name, folder.resolve().parent.name, config.get("seed_everything")),
            *(folds, None if folds is None else data.get("fold")),
        )
        scalars = {name: value for name, value in metrics.items() if isinstance(value, (str, int, float))}
        rows.append({**scalars, **dict(zip(FIRST, own, strict=True))})
    return Collected(tuple(rows), tuple(missing))


def _why(folder: Path) -> str:
    if not folder.is_dir():
        return "there is no such folder."
    if (folder / "metrics.json").is_file():
        return "its metrics.json is damaged. Test it again."
    if (folder / "requeue").is_file():
        return "its training was stopped and waits to be continued, with --ckpt_path last."
    if not (folder / "checkpoints" / "best.ckpt").is_file():
        return "it holds no finished training."
    return "it has no metrics.json. Test it: --ckpt_path RUN/checkpoints/best.ckpt."


def write_table(table: Collected, path: str | Path, overwrite: bool = False) -> None:
    """Write a CSV with a row for each run; a metric that a run does not have is an empty cell.

    Args:
        table: of the runs.
        path: of the CSV.
        overwrite: whether a file that is there is replaced.

    Raises:
        DataError: if there is a file already.
    """
    if Path(path).exists() and not overwrite:
        raise DataError(f"{path} is there already. Choose another --out, or pass --overwrite.")
    columns = [*FIRST, *dict.fromkeys(name for row in table.rows for name in row if name not in FIRST)]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(table.rows)
    write_text(path, text.getvalue())


def spreads(table: Collected) -> dict[str, list[tuple[str, float, float, int]]]:
    """Spread of each metric over the runs of each job.

    Returns:
        For each job, (metric, mean, standard deviation, number of runs) of every metric that is a finite number in at
        least one run. The deviation is that of a sample, with n - 1; nan of one run. Intervals, counts of the
        bootstrap, versions and settings are left out.
    """
    jobs: dict[str, list[Mapping[str, Any]]] = {}
    for row in table.rows:
        jobs.setdefault(row["job"], []).append(row)
    return {job: _spreads(rows) for job, rows in sorted(jobs.items())}


def _spreads(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, float, float, int]]:
    found = []
    for name in dict.fromkeys(name for row in rows for name in row):
        if name in (*FIRST, *_SAME_IN_ALL) or name.startswith(_SETTINGS) or name.endswith(_TOLD):
            continue
        numbers = [row[name] for row in rows if _is_number(row.get(name))]
        if numbers:
            deviation = statistics.stdev(numbers) if len(numbers) > 1 else math.nan
            found.append((name, statistics.fmean(numbers), deviation, len(numbers)))
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
