"""What all verbs share: exit codes, progress bars and tables on the terminal."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

OK, FOUND_PROBLEMS, CANNOT_RUN = 0, 1, 2

EXIT_CODES = "Exit codes: 0 all is well, 1 problems were found, 2 the command could not do its work."


@contextmanager
def progress(unit: str) -> Iterator[Callable[[str, int, int | None], None]]:
    """A progress bar per name, on a terminal; `unit` is ``"bytes"`` or ``"images"``."""
    bars = import_module("rich.progress")
    console = import_module("rich.console").Console(stderr=True)
    amount = [bars.DownloadColumn(), bars.TransferSpeedColumn()] if unit == "bytes" else [bars.MofNCompleteColumn()]
    columns = [bars.TextColumn("{task.description}"), bars.BarColumn(), *amount, bars.TimeRemainingColumn()]
    tasks: dict[str, Any] = {}
    # Nothing is drawn into log files.
    with bars.Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as display:

        def advance(name: str, done: int, total: int | None) -> None:
            if name not in tasks:
                tasks[name] = display.add_task(name, total=total)
            display.update(tasks[name], completed=done, total=total)

        yield advance


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table on standard output; cells are text, not markup."""
    table = import_module("rich.table").Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        # A file name may hold square brackets, which are markup.
        table.add_row(*map(import_module("rich.text").Text, row))
    import_module("rich.console").Console().print(table)


@contextmanager
def quieter(**levels: int) -> Iterator[None]:
    """Loggers at these levels, by their names; at the end they have those of before."""
    before = {name: logging.getLogger(name).level for name in levels}
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
