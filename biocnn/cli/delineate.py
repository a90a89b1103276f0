"""`biocnn delineate`: from a tubularity map to a graph."""

import argparse
import sys
from importlib import import_module
from typing import Any

from biocnn.cli.console import CANNOT_RUN, OK


def add(commands: Any) -> None:
    """Add the verb to the parser of the command."""
    help_text = "from a tubularity map to a graph with lengths, widths and branch points"
    command = commands.add_parser("delineate", help=help_text, description=f"{help_text.capitalize()}.")
    command.add_argument("map", help="map of a prediction, 0 to 1, or a mask: TIFF, PNG, HDF5, Zarr; planes are depth")
    command.add_argument("--out", required=True, metavar="FILE", help="graph: .graphml, .swc, .geojson")
    command.add_argument("--swc", metavar="FILE", help="the same as SWC, loops cut")
    command.add_argument("--geojson", metavar="FILE", help="the same for QuPath, napari and ImageJ, in pixels")
    command.add_argument("--table", metavar="FILE", help="CSV with a row for each segment")
    command.add_argument("--overlay", metavar="FILE", help="PNG of the graph on the image, or on the map")
    command.add_argument("--image", metavar="FILE", help="image for the overlay and for --model")
    command.add_argument(
        "--model",
        metavar="FILE",
        help="checkpoint of pipelines/delineation.yaml, whose classifier weighs paths too",
    )
    command.add_argument(
        "--pixel-size", type=float, nargs="+", metavar="UM", help="micrometres (plane,) row, column; else of the file"
    )
    command.add_argument("--method", choices=["global", "bridged", "skeleton"], default="global")
    command.add_argument("--threshold", type=float, default=0.5, help="where structures are evident (default: 0.5)")
    command.add_argument("--gap", type=float, help="longest gap that is closed, in the unit of the graph (15 pixels)")
    command.add_argument("--shortest", type=float, default=0.0, help="smallest length of a component (default: 0)")
    command.add_argument("--trees", action="store_true", help="no loops, as of neurites")
    command.add_argument("--time-limit", type=float, default=60.0, metavar="S", help="of the selection, in seconds")
    command.add_argument("--overwrite", action="store_true", help="replace files that are there")
    command.set_defaults(run=_delineate)


def _delineate(arguments: argparse.Namespace) -> int:
    report, images = import_module("biocnn.report.delineation"), import_module("biocnn.data.images")
    targets = {
        "--out": (arguments.out, (".graphml", ".swc", ".geojson", ".json")),
        "--swc": (arguments.swc, (".swc",)),
        "--geojson": (arguments.geojson, (".geojson", ".json")),
        "--table": (arguments.table, (".csv",)),
        "--overlay": (arguments.overlay, (".png",)),
    }
    inputs = [path for path in (arguments.map, arguments.image, arguments.model) if path]
    report.check_targets(targets, inputs, arguments.overwrite)
    graphs = [path for path in (arguments.out, arguments.swc, arguments.geojson) if path]
    probability, size = report.read_map(arguments.map)
    size = arguments.pixel_size or size
    picture = images.read_image(arguments.image).array if arguments.image else probability
    if arguments.image and picture.shape[:2] != probability.shape[-2:]:
        shapes = f"{picture.shape[:2]} and {probability.shape[-2:]}"
        print(f"biocnn: {arguments.image} and {arguments.map} differ in rows and columns: {shapes}.", file=sys.stderr)
        return CANNOT_RUN
    if arguments.model and not arguments.image:
        print("biocnn: --model classifies paths in the image: give --image as well.", file=sys.stderr)
        return CANNOT_RUN
    weights = None
    if arguments.model:
        segmenter = import_module("biocnn").load(arguments.model)
        weights = import_module("biocnn.inference.paths").classifier_weights(
            segmenter, picture, probability, arguments.threshold
        )
    delineate = import_module("biocnn.delineation.delineate").delineate
    try:
        graph = delineate(
            probability,
            size,
            method=arguments.method,
            threshold=arguments.threshold,
            gap=arguments.gap,
            shortest=arguments.shortest,
            loops=not arguments.trees,
            time_limit=arguments.time_limit,
            weights=weights,
        )
    except ValueError as error:
        print(f"biocnn: {arguments.map}: {error}", file=sys.stderr)
        return CANNOT_RUN
    if size is None:
        print("No pixel size in the file: lengths are in pixels, not micrometres. Give --pixel-size.", file=sys.stderr)
    overlay = (arguments.overlay, picture) if arguments.overlay else None
    written = report.write_delineation(graph, graphs, arguments.table, overlay)
    if not len(graph):
        highest = probability.max() if probability.size else 0
        print(
            f"Nothing reaches the threshold {arguments.threshold:g}: the largest value is {highest:g}.", file=sys.stderr
        )
    print(report.describe_graph(graph))
    if len(graph) and (gap := graph.graph.get("optimality_gap")) is not None:
        print(f"The selection is within {100 * gap:.2g} % of the best possible one.")
    print(*(f"wrote {path}" for path in written), sep="\n")
    return OK
