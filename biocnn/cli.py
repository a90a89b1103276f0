"""The `biocnn` command. Everything heavy is imported by the verb that needs it, so that `--help` is instant."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import biocnn
from biocnn.errors import BiocnnError

OK, FOUND_PROBLEMS, CANNOT_RUN = 0, 1, 2

_EXIT_CODES = "Exit codes: 0 all is well, 1 problems were found, 2 the command could not do its work."


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program name; those of the process by default.

    Returns:
        0 when all is well, 1 when a check found problems, 2 when the command could not run.
    """
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except BiocnnError as error:
        print(f"biocnn: {error}", file=sys.stderr)
        return CANNOT_RUN
    except KeyboardInterrupt:
        print("biocnn: stopped. Run the same command again to go on.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="biocnn", description="Pipelines for biomedical images.", epilog=_EXIT_CODES)
    parser.add_argument("--version", action="version", version=f"biocnn {biocnn.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    data = commands.add_parser("data", help="fetch, verify, audit or describe a data set", epilog=_EXIT_CODES)
    verbs = data.add_subparsers(required=True, metavar="VERB")
    for name, run, help_text in (
        ("fetch", _fetch, "download a data set, resume, verify, unpack"),
        ("verify", _verify, "compare the files with their checksums, or record them"),
        ("audit", _audit, "look for leaks, duplicates, wrong labels, missing partners"),
    ):
        verb = verbs.add_parser(name, help=help_text, description=f"{help_text.capitalize()}.", epilog=_EXIT_CODES)
        verb.add_argument("manifest", help="name of a shipped manifest, such as pcam, or path of a .yaml file")
        verb.add_argument("--root", required=True, metavar="DIR", help="folder of the data")
        if name == "audit":
            verb.add_argument("--quick", action="store_true", help="headers, labels and names only; takes seconds")
        verb.set_defaults(run=run)
    help_text = "draft a manifest for a folder of your own"
    init = verbs.add_parser("init", help=help_text, description=f"{help_text.capitalize()}.", epilog=_EXIT_CODES)
    init.add_argument("folder", metavar="DIR", help="folder of the data; the draft is written into it")
    init.set_defaults(run=_init)
    _add_delineate(commands)
    return parser


def _add_delineate(commands: Any) -> None:
    help_text = "from a tubularity map to a graph with lengths, widths and branch points"
    command = commands.add_parser("delineate", help=help_text, description=f"{help_text.capitalize()}.")
    command.add_argument("map", help="map of a prediction, 0 to 1, or a mask: TIFF, PNG, HDF5, Zarr; planes are depth")
    command.add_argument("--out", required=True, metavar="FILE", help="graph: .graphml, .swc, .geojson")
    command.add_argument("--swc", metavar="FILE", help="the same as SWC, loops cut")
    command.add_argument("--geojson", metavar="FILE", help="the same for QuPath, napari and ImageJ, in pixels")
    command.add_argument("--table", metavar="FILE", help="CSV with a row for each segment")
    command.add_argument("--overlay", metavar="FILE", help="PNG of the graph on the image, or on the map")
    command.add_argument("--image", metavar="FILE", help="image for the overlay")
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


@contextmanager
def _progress(unit: str) -> Iterator[Callable[[str, int, int | None], None]]:
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


def _table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    table = import_module("rich.table").Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        # Text, not markup: a file name may hold square brackets.
        table.add_row(*map(import_module("rich.text").Text, row))
    import_module("rich.console").Console().print(table)


def _manifest(name_or_path: str) -> Any:
    return import_module("biocnn.data.manifest").load_manifest(name_or_path)


def _fetch(arguments: argparse.Namespace) -> int:
    manifest = _manifest(arguments.manifest)
    with _progress("bytes") as progress:
        files = import_module("biocnn.data.fetch").fetch(manifest, arguments.root, progress, print)
    for file in files:
        print(f"{file.status:14} {file.name}")
    print(f"{manifest.title} is in {arguments.root}. Licence: {manifest.licence}. Please cite: {manifest.citation}")
    for issue in manifest.known_issues:
        print(f"Known issue: {issue}")
    print(f"Next: biocnn data audit {arguments.manifest} --root {arguments.root}")
    return OK


def _verify(arguments: argparse.Namespace) -> int:
    manifest = _manifest(arguments.manifest)
    with _progress("images") as progress:
        result = import_module("biocnn.data.verify").verify(manifest, arguments.root, progress)
    shown = [file for file in result.files if file.status in ("missing", "differs")]
    if len(result.files) <= 40:
        shown = list(result.files)
    if shown:
        rows = [[file.status, file.name, file.detail] for file in shown]
        _table(f"{manifest.name} in {arguments.root}", ["status", "file", "detail"], rows)
    counts = {status: sum(file.status == status for file in result.files) for status in ("ok", "recorded")}
    bad = len(result.files) - sum(counts.values())
    print(f"{counts['ok']:,} files agree, {counts['recorded']:,} were recorded, {bad:,} are missing or differ.")
    if result.note:
        print(result.note)
    return OK if result.ok else FOUND_PROBLEMS


def _audit(arguments: argparse.Namespace) -> int:
    manifest = _manifest(arguments.manifest)
    audit = import_module("biocnn.data.audit")
    if arguments.quick:
        result = audit.quick_audit(manifest, arguments.root)
    else:
        with _progress("images") as progress:
            result = audit.full_audit(manifest, arguments.root, progress)
    columns = ["split", "images", "expected", "shape", "content", "groups", "repeated"]
    rows = []
    for row in result.rows:
        images, expected, groups, repeated = map(_number, (row.images, row.expected, row.groups, row.duplicates))
        rows.append([row.split, images, expected, row.shape, row.content, groups, repeated])
    _table(f"{manifest.name} in {arguments.root} (shape: rows x columns x channels)", columns, rows)
    for finding in result.findings:
        print(f"{finding.level:8} {finding.text}")
    if not result.findings:
        print("Nothing to object to.")
    return FOUND_PROBLEMS if result.has_errors else OK


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _init(arguments: argparse.Namespace) -> int:
    draft = import_module("biocnn.data.draft").draft_manifest(arguments.folder)
    print(f"Wrote {draft.path}, a draft.")
    for reason in draft.reasons:
        print(f"  guessed  {reason}")
    for point in draft.open_points:
        print(f"  check    {point}")
    print(f"Next: edit it, then biocnn data audit {draft.path} --root {draft.path.parent}")
    return OK


def _delineate(arguments: argparse.Namespace) -> int:
    report, images = import_module("biocnn.report.delineation"), import_module("biocnn.data.images")
    targets = {
        "--out": (arguments.out, (".graphml", ".swc", ".geojson", ".json")),
        "--swc": (arguments.swc, (".swc",)),
        "--geojson": (arguments.geojson, (".geojson", ".json")),
        "--table": (arguments.table, (".csv",)),
        "--overlay": (arguments.overlay, (".png",)),
    }
    inputs = [path for path in (arguments.map, arguments.image) if path]
    report.check_targets(targets, inputs, arguments.overwrite)
    graphs = [path for path in (arguments.out, arguments.swc, arguments.geojson) if path]
    probability, size = report.read_map(arguments.map)
    size = arguments.pixel_size or size
    picture = images.read_image(arguments.image).array if arguments.image else probability
    if arguments.image and picture.shape[:2] != probability.shape[-2:]:
        shapes = f"{picture.shape[:2]} and {probability.shape[-2:]}"
        print(f"biocnn: {arguments.image} and {arguments.map} differ in rows and columns: {shapes}.", file=sys.stderr)
        return CANNOT_RUN
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


if __name__ == "__main__":
    sys.exit(main())
