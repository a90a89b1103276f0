"""The parser of the `biocnn` command. No verb imports anything heavy before it runs, so `--help` is instant."""

import argparse
import sys

import biocnn
from biocnn.cli import app, collect, data, delineate, export, predict, report
from biocnn.cli.console import CANNOT_RUN, EXIT_CODES
from biocnn.errors import BiocnnError


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program name; those of the process by default.

    Returns:
        0 when all is well, 1 when a check found problems, 2 when the command could not run.
    """
    arguments = command_parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except BiocnnError as error:
        print(f"biocnn: {error}", file=sys.stderr)
        return CANNOT_RUN
    except KeyboardInterrupt:
        print("biocnn: stopped. Run the same command again to go on.", file=sys.stderr)
        return 130


def command_parser() -> argparse.ArgumentParser:
    """The parser with all verbs; each has set `run`, a function of the arguments that returns an exit code."""
    parser = argparse.ArgumentParser(prog="biocnn", description="Pipelines for biomedical images.", epilog=EXIT_CODES)
    parser.add_argument("--version", action="version", version=f"biocnn {biocnn.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for verb in (data, predict, delineate, report, collect, export, app):
        verb.add(commands)
    return parser
