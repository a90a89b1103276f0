"""`biocnn collect`: one table of the metrics of many runs."""

import argparse
import sys
from importlib import import_module
from typing import Any

from biocnn.cli.console import FOUND_PROBLEMS, OK, print_table


def add(commands: Any) -> None:
    """Add the verb to the parser of the command."""
    help_text = "one table of the metrics of many runs, such as folds and seeds, with mean and standard deviation"
    command = commands.add_parser("collect", help=help_text, description=f"{help_text[0].upper()}{help_text[1:]}.")
    command.add_argument("runs", nargs="+", help="run folders, runs/JOB/RUN")
    command.add_argument("--out", required=True, metavar="FILE", help="CSV with a row for each run that was tested")
    command.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    command.set_defaults(run=_collect)


def _collect(arguments: argparse.Namespace) -> int:
    collect = import_module("biocnn.report.collect")
    table = collect.collect_runs(arguments.runs)
    collect.write_table(table, arguments.out, arguments.overwrite)
    for job, spreads in collect.spreads(table).items():
        rows = [[name, f"{mean:.4g}", f"{deviation:.4g}", str(runs)] for name, mean, deviation, runs in spreads]
        print_table(job, ["metric", "mean", "standard deviation", "runs"], rows)
    for line in table.missing:
        print(f"biocnn: {line}", file=sys.stderr)
    print(f"wrote {arguments.out} ({len(table.rows)} of {len(table.rows) + len(table.missing)} runs)")
    return FOUND_PROBLEMS if table.missing else OK
