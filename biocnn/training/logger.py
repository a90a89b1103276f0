"""What a run measures as a CSV that survives a kill and is continued on resume."""

import csv
import io
from argparse import Namespace
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from biocnn.files import write_text

_FIXED = ["epoch", "step"]


class MetricsCSV(Logger):
    """Appends one row to a table, ``metrics.csv``, for each call; a new metric adds a column.

    What is logged again for the last step is not written again: the validation that a resumed run repeats, and the step
    that :class:`biocnn.training.preemption.Agreement` logs before a checkpoint.

    Lightning's own CSV logger deletes the file of an earlier start in the same folder, which is where a resumed run
    writes.

    Args:
        folder: of the run.
        resume_step: rows from this step on are dropped: they were written after the checkpoint that is resumed.
        table: name of the file.
    """

    def __init__(self, folder: str | Path, resume_step: int | None = None, table: str = "metrics.csv") -> None:
        super().__init__()
        self.path = Path(folder) / table
        self._folder = Path(folder)
        self._columns = list(_FIXED)
        self._step, self._logged = -1, set[frozenset[str]]()  # the last step, and which metrics there are of it
        if self.path.is_file():
            self._take_over(resume_step or 0)

    @property
    def name(self) -> str:
        """Name of the job's folder."""
        return self._folder.parent.name

    @property
    def version(self) -> str:
        """Name of the run."""
        return self._folder.name

    @property
    def save_dir(self) -> str:
        """Folder of the run."""
        return str(self._folder)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: ``config.yaml`` and ``run.json`` hold them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append a row."""
        values: dict[str, Any] = {**metrics, "step": step}
        if "epoch" in values:
            values["epoch"] = int(values["epoch"])
        if not self._is_new(int(step or 0), frozenset(metrics)):
            return
        new = [name for name in values if name not in self._columns]
        if new or not self.path.is_file():
            rows = read_metrics(self.path) if self.path.is_file() else []
            self._columns += new
            self._rewrite(rows)
        with open(self.path, "a", newline="", encoding="utf-8") as handle:
            csv.DictWriter(handle, self._columns, restval="").writerow(values)

    def _is_new(self, step: int, names: frozenset[str]) -> bool:
        if step != self._step:
            self._step, self._logged = step, set()
        known = names in self._logged
        self._logged.add(names)
        return not known

    @rank_zero_only
    def _take_over(self, resume_step: int) -> None:
        rows = read_metrics(self.path)
        self._columns += [name for name in (rows[0] if rows else {}) if name not in _FIXED]
        kept = [row for row in rows if int(row["step"]) < resume_step]
        for row in kept:
            self._is_new(int(row["step"]), frozenset(name for name in row if row[name] and name != "step"))
        self._rewrite(kept)

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.path, text.getvalue())


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Rows of a ``metrics.csv``; a last line that a kill has torn is left out."""
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    return list(csv.DictReader(io.StringIO(whole, newline="")))
