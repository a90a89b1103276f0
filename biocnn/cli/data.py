"""`biocnn data`: fetch, verify, audit and describe data sets."""

import argparse
from importlib import import_module
from typing import Any

from biocnn.cli.console import EXIT_CODES, FOUND_PROBLEMS, OK, print_table, progress


def add(commands: Any) -> None:
    """Add the verb to the parser of the command."""
    data = commands.add_parser("data", help="fetch, verify, audit or describe a data set", epilog=EXIT_CODES)
    verbs = data.add_subparsers(required=True, metavar="VERB")
    for name, run, help_text in (
        ("fetch", _fetch, "download a data set, resume, verify, unpack"),
        ("verify", _verify, "compare the files with their checksums, or record them"),
        ("audit", _audit, "look for leaks, duplicates, wrong labels, missing partners"),
    ):
        verb = verbs.add_parser(name, help=help_text, description=f"{help_text.capitalize()}.", epilog=EXIT_CODES)
        verb.add_argument("manifest", help="name of a shipped manifest, such as pcam, or path of a .yaml file")
        verb.add_argument("--root", required=True, metavar="DIR", help="folder of the data")
        if name == "audit":
            verb.add_argument("--quick", action="store_true", help="headers, labels and names only; takes seconds")
        verb.set_defaults(run=run)
    help_text = "draft a manifest for a folder of your own"
    init = verbs.add_parser("init", help=help_text, description=f"{help_text.capitalize()}.", epilog=EXIT_CODES)
    init.add_argument("folder", metavar="DIR", help="folder of the data; the draft is written into it")
    init.set_defaults(run=_init)


def _manifest(name_or_path: str) -> Any:
    return import_module("biocnn.data.manifest").load_manifest(name_or_path)


def _fetch(arguments: argparse.Namespace) -> int:
    manifest = _manifest(arguments.manifest)
    with progress("bytes") as advance:
        files = import_module("biocnn.data.fetch").fetch(manifest, arguments.root, advance, print)
    for file in files:
        print(f"{file.status:14} {file.name}")
    print(f"{manifest.title} is in {arguments.root}. Licence: {manifest.licence}. Please cite: {manifest.citation}")
    for issue in manifest.known_issues:
        print(f"Known issue: {issue}")
    print(f"Next: biocnn data audit {arguments.manifest} --root {arguments.root}")
    return OK


def _verify(arguments: argparse.Namespace) -> int:
    manifest = _manifest(arguments.manifest)
    with progress("images") as advance:
        result = import_module("biocnn.data.verify").verify(manifest, arguments.root, advance)
    shown = [file for file in result.files if file.status in ("missing", "differs")]
    if len(result.files) <= 40:
        shown = list(result.files)
    if shown:
        rows = [[file.status, file.name, file.detail] for file in shown]
        print_table(f"{manifest.name} in {arguments.root}", ["status", "file", "detail"], rows)
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
        with progress("images") as advance:
            result = audit.full_audit(manifest, arguments.root, advance)
    columns = ["split", "images", "expected", "shape", "content", "groups", "repeated"]
    rows = []
    for row in result.rows:
        images, expected, groups, repeated = map(_number, (row.images, row.expected, row.groups, row.duplicates))
        rows.append([row.split, images, expected, row.shape, row.content, groups, repeated])
    print_table(f"{manifest.name} in {arguments.root} (shape: rows x columns x channels)", columns, rows)
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
