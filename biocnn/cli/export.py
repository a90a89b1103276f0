"""`biocnn export`: a trained model as a file for other programs."""

import argparse
from importlib import import_module
from typing import Any

from biocnn.cli.console import OK


def add(commands: Any) -> None:
    """Add the verb to the parser of the command."""
    help_text = "a trained model as ONNX, torch.export, safetensors or a package of bioimage.io"
    command = commands.add_parser("export", help=help_text, description=f"{help_text.capitalize()}.")
    command.add_argument("checkpoint", help="such as RUN/checkpoints/best.ckpt")
    command.add_argument("--format", required=True, help="onnx, torch, safetensors or bioimageio")
    command.add_argument("--out", metavar="FILE", help="default: beside the checkpoint")
    command.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    package = command.add_argument_group("for bioimageio")
    package.add_argument("--name", help="of the model; default: network and data set")
    package.add_argument("--author", action="append", default=[], metavar="NAME", help="may be given several times")
    package.add_argument("--license", "--licence", metavar="SPDX", help="of the weights, such as CC-BY-4.0")
    package.add_argument(
        "--cite", action="append", nargs=2, default=[], metavar=("TEXT", "DOI"), help="may be given several times"
    )
    package.add_argument("--example", metavar="IMAGE", help="image for the test and the cover; default: noise")
    command.set_defaults(run=_export)


def _export(arguments: argparse.Namespace) -> int:
    formats, model_card = import_module("biocnn.export.formats"), import_module("biocnn.export.model_card")
    image = None
    if arguments.example is not None:
        image = import_module("biocnn.data.images").read_image(arguments.example).array
    cites = tuple((text, doi) for text, doi in arguments.cite)
    card = model_card.Card(arguments.name, tuple(arguments.author), arguments.license, cites)
    path, compared = formats.export(
        arguments.checkpoint,
        arguments.format,
        arguments.out,
        overwrite=arguments.overwrite,
        card=card,
        image=image,
    )
    print(f"wrote {path} ({compared})")
    return OK
