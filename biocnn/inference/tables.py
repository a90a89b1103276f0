"""Tables as CSV and Parquet, whole or not there."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from biocnn.errors import DataError
from biocnn.files import atomic_path

Row = Mapping[str, Any]


def write_csv(path: str | Path, rows: Sequence[Row], columns: Sequence[str] | None = None) -> None:
    """Write rows as CSV, whole or not at all; what a row does not have is empty, and so is None.

    Args:
        path: target file; its folder is made when missing.
        rows: dicts.
        columns: names, in order; a row may not have others. Those of the first row when None; without rows as well the
            file is empty.
    """
    names = list(columns or (rows[0] if rows else ()))
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, names)
        if names:
            writer.writeheader()
        writer.writerows(rows)


def check_parquet() -> None:
    """Make sure that Parquet can be written.

    Raises:
        DataError: if pyarrow is not installed.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise DataError("Parquet needs the package pyarrow: pip install 'biocnn[parquet]'.") from error


def write_parquet(path: str | Path, rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Write rows as Parquet; what a row does not have is null. Columns are as :func:`write_csv` writes them.

    Raises:
        DataError: if pyarrow is not installed.
    """
    check_parquet()
    import pyarrow.parquet

    table = pyarrow.table({name: [row.get(name) for row in rows] for name in columns})
    with atomic_path(path) as temporary:
        pyarrow.parquet.write_table(table, temporary)
