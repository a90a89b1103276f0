"""`biocnn predict`: images through a trained model into one folder with a table."""

import argparse
import logging
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from biocnn.cli.console import CANNOT_RUN, FOUND_PROBLEMS, OK, progress, quieter

GRAPHS = ("skeleton", "bridged", "global", "none")


def add(commands: Any) -> None:
    """Add the verb to the parser of the command."""
    help_text = "predict images with a trained model: maps, masks, graphs, counts, and one table"
    command = commands.add_parser("predict", help=help_text, description=f"{help_text.capitalize()}.")
    command.add_argument("images", nargs="+", help="files, globs, folders, OME-Zarr folders or URLs of such")
    command.add_argument("--model", required=True, metavar="FILE", help="checkpoint, such as RUN/checkpoints/best.ckpt")
    command.add_argument(
        "--out", required=True, metavar="DIR", help="folder of the results; what is there is not redone"
    )
    command.add_argument("--channels", nargs="+", metavar="C", help="names or numbers from 0, in the model's order")
    command.add_argument("--page", type=int, metavar="N", help="one plane of stacks, from 0; by default each plane")
    command.add_argument("--key", help="name of the array in HDF5 or Zarr")
    command.add_argument(
        "--pixel-size", type=float, nargs=2, metavar=("ROW", "COLUMN"), help="micrometres, instead of what files say"
    )
    command.add_argument(
        "--no-resample", action="store_true", help="do not bring images to the pixel size of the training"
    )
    command.add_argument("--device", help="such as cpu or cuda:1 (default: the GPU when there is one)")
    command.add_argument(
        "--views", type=int, choices=[1, 8], help="1: faster, without the mean over 8 symmetries (default: as trained)"
    )
    command.add_argument(
        "--graph", choices=GRAPHS, default="skeleton", help="how structures become graphs (default: skeleton)"
    )
    command.add_argument("--no-graph", dest="graph", action="store_const", const="none", help="the same as none")
    command.add_argument(
        "--limit-bytes", type=float, metavar="N", help="memory that decoding an image may take (default: 4e9)"
    )
    command.add_argument(
        "--large", type=float, metavar="MPX", help="million pixels from which images go by tiles (default: 64)"
    )
    command.add_argument(
        "--map-format", choices=["ome-tiff", "ome-zarr"], default="ome-tiff", help="of images that go by tiles"
    )
    command.add_argument("--parquet", action="store_true", help="write the table as Parquet, too (needs pyarrow)")
    command.add_argument(
        "--overwrite", action="store_true", help="delete results of another model or other settings in DIR"
    )
    command.set_defaults(run=_predict)


def _predict(arguments: argparse.Namespace) -> int:
    # What tifffile says of damaged files is said in the table.
    with quieter(tifffile=logging.CRITICAL, pytorch_lightning=logging.WARNING):
        return _predict_images(arguments)


def _predict_images(arguments: argparse.Namespace) -> int:
    load, sources = import_module("biocnn.inference.load"), import_module("biocnn.inference.sources")
    if (wrong := _wrong_number(arguments)) is not None:
        print(f"biocnn: {wrong}", file=sys.stderr)
        return CANNOT_RUN
    sources.find_images(arguments.images)  # before the model is read, which takes longer
    model = load.load(arguments.model, device=arguments.device)
    if arguments.views is not None:
        model.task.test_time_augmentation = arguments.views == 8
    predictions = import_module("biocnn.report.predictions")
    defaults = sources.Reading()
    reading = sources.Reading(
        page=arguments.page,
        channels=None if arguments.channels is None else tuple(map(_channel, arguments.channels)),
        key=arguments.key,
        pixel_size_um=None if arguments.pixel_size is None else tuple(arguments.pixel_size),
        resample=not arguments.no_resample,
        max_bytes=defaults.max_bytes if arguments.limit_bytes is None else int(arguments.limit_bytes),
        max_pixels=defaults.max_pixels if arguments.large is None else int(arguments.large * 1e6),
    )
    settings = predictions.Settings(
        reading,
        None if arguments.graph == "none" else arguments.graph,
        arguments.map_format,
        arguments.parquet,
        arguments.overwrite,
    )
    with progress("images") as advance:
        folder = predictions.predict_images(
            model,
            arguments.model,
            arguments.images,
            arguments.out,
            settings,
            advance,
            lambda line: print(line, file=sys.stderr),
        )
    return _summary(folder)


def _wrong_number(arguments: argparse.Namespace) -> str | None:
    if arguments.pixel_size is not None and not all(0 < size < float("inf") for size in arguments.pixel_size):
        return f"--pixel-size: expected two lengths above 0 in micrometres, received {arguments.pixel_size}."
    if arguments.page is not None and arguments.page < 0:
        return f"--page: expected 0 or more, received {arguments.page}."
    if arguments.limit_bytes is not None and arguments.limit_bytes < 1:
        return f"--limit-bytes: expected a number of bytes above 0, received {arguments.limit_bytes:g}."
    return None


def _channel(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def _summary(folder: Any) -> int:
    rows = list(folder.rows.values())
    failed = sum(row["status"] != "ok" for row in rows)
    flagged = sum(bool(row.get("flags")) for row in rows)
    print(
        f"{len(rows) - failed:,} image(s) predicted, {failed:,} failed, {flagged:,} with flags\n"
        f"table: {Path(folder.folder) / 'predictions.csv'}\n"
        f"files: {Path(folder.folder) / 'images'}"
    )
    return FOUND_PROBLEMS if failed else OK
