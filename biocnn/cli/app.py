"""`biocnn app`: a page to try a model on images."""

import argparse
import logging
import signal
import sys
import threading
from importlib import import_module
from typing import Any

from biocnn.cli.console import CANNOT_RUN, OK, quieter

_HERE = ("127.0.0.1", "localhost", "::1")


def add(commands: Any) -> None:
    """Add the verb to the parser of the command."""
    help_text = "a page in the browser to try a model on images"
    command = commands.add_parser("app", help=help_text, description=f"{help_text.capitalize()}.")
    command.add_argument("--model", required=True, metavar="FILE", help="checkpoint, such as RUN/checkpoints/best.ckpt")
    command.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this computer only)")
    command.add_argument("--port", type=int, help="default: the first that is free from 7860")
    command.add_argument("--device", help="such as cpu or cuda:1 (default: the GPU when there is one)")
    command.add_argument(
        "--max-mpx", type=float, default=16, metavar="MPX", help="million pixels of an image (default: 16)"
    )
    command.add_argument("--max-mb", type=float, default=100, metavar="MB", help="megabytes of a file (default: 100)")
    command.set_defaults(run=_app)


def _app(arguments: argparse.Namespace) -> int:
    for option in ("max_mpx", "max_mb"):
        if not 0 < getattr(arguments, option) < float("inf"):
            name = f"--{option.replace('_', '-')}"
            print(f"biocnn: {name}: expected a number above 0, received {getattr(arguments, option)}.", file=sys.stderr)
            return CANNOT_RUN
    page = import_module("biocnn.cli.app_page")
    limits = page.Limits(int(arguments.max_mpx * 1e6), int(arguments.max_mb * 1e6))
    model = import_module("biocnn.inference.load").load(arguments.model, device=arguments.device)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # uploads are deleted then, too
    served = page.served(model, arguments.model, limits, arguments.host, arguments.port)
    # What tifffile says of damaged files is said in the page.
    with quieter(tifffile=logging.CRITICAL), served as address:
        print(f"{address} (Ctrl+C ends it)", flush=True)
        if arguments.host not in _HERE:
            print("Everybody who reaches this address can use the model; there is no password.", file=sys.stderr)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
    return OK
