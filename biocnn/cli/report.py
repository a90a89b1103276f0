"""`biocnn report`: one HTML page about a run or a prediction."""

import argparse
from importlib import import_module
from typing import Any

from biocnn.cli.console import OK, progress


def add(commands: Any) -> None:
    """Add the verb to the parser of the command."""
    help_text = "one HTML page about a run, or about what `biocnn predict` wrote"
    command = commands.add_parser("report", help=help_text, description=f"{help_text[0].upper()}{help_text[1:]}.")
    command.add_argument("folder", help="a run folder, runs/JOB/RUN, or the folder of a prediction")
    command.add_argument("--out", metavar="FILE", help="target (default: report.html in the folder)")
    command.add_argument("--overwrite", action="store_true", help="replace a file that is no report of biocnn")
    command.set_defaults(run=_report)


def _report(arguments: argparse.Namespace) -> int:
    write_report = import_module("biocnn.report.html_report").write_report
    with progress("images") as advance:
        written = write_report(arguments.folder, arguments.out, arguments.overwrite, advance)
    print(f"wrote {written.path} ({written.size / 1e6:,.1f} MB, {written.images:,} pictures)")
    return OK
