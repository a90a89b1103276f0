"""The page of a run: what was trained on what, how good it is, where it fails, and what it may be used for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from biocnn.data.audit import quick_audit
from biocnn.errors import BiocnnError
from biocnn.report.model_card import model_card, size_in_words
from biocnn.report.page import (
    Html,
    bullets,
    details,
    element,
    facts,
    gallery,
    joined,
    number,
    paragraph,
    rounded,
    table,
    tiles,
)
from biocnn.report.page_curves import curves_html, read_curves
from biocnn.report.page_metrics import (
    floor_rows,
    floors_of,
    headline_tiles,
    in_words,
    metric_rows,
    warnings_of,
)
from biocnn.report.page_pictures import as_colours, encoded, read_pixels
from biocnn.report.run_cards import MAX_CARDS, Progress, number_in, run_cards, worst_first
from biocnn.report.run_folder import Row, Run, mapping

Sections = Mapping[str, Sequence[object]]

MAX_ROWS = 5000
"""Of the table: browsers become slow with more; the whole table is the CSV."""
FIGURE_SIDE = 1100
_FIGURES = {"roc": "ROC", "reliability": "Reliability", "counts": "Counts", "images": "Every image"}
_NAMES = {"segmentation": "Tubular structures", "counting": "Cell counting", "classification": "Patch classification"}
_FLOOR_COLUMNS = ("without a model", "reaches", "this model", "unit", "verdict")
_LAST = ("_prediction_", "_truth_", "true_positive", "false_positive", "false_negative", "true_negative", "_blurred")
"""Parts of the names of columns that few people look at: they come last in the table."""


def run_page(run: Run, progress: Progress) -> tuple[str, str, Sections]:
    """Title, subtitle and sections of the page of a run.

    Args:
        run: as :func:`biocnn.report.run_folder.read_run` reads it.
        progress: called while pictures are made.
    """
    title = f"{_NAMES.get(run.job, 'Run')}: {run.data.get('manifest') or run.metrics.get('manifest') or 'unnamed data'}"
    tested = _tested(run)
    started = str(run.record.get("started", ""))[:10]
    subtitle = ", ".join(
        part
        for part in (
            f"Run {run.folder.resolve().name}",
            f"trained on {started}" if started else "",
            f"tested on {tested}" if tested else "not tested yet",
        )
        if part
    )
    order = worst_first(run.job, run.rows)
    sections: dict[str, Sequence[object]] = {
        "In short": _summary(run),
        "Numbers": _numbers(run),
        "Learning curves": _curves(run),
        "Images, worst first": _images(run, order, progress),
        "Table": _table(run, order),
        "Data and audit": _data(run),
        "Model card": [model_card(run.job, run.data, run.model, run.manifest, tested)],
        "How it was made": _record(run),
    }
    return title, f"{subtitle}.", {name: parts for name, parts in sections.items() if parts}


def _tested(run: Run) -> str:
    count = run.metrics.get("n_images", run.metrics.get("n"))
    if count is None:
        return ""
    what = "patches" if run.job == "classification" else "images"
    groups = run.metrics.get("n_groups")
    over = f" of {groups} groups" if run.job == "classification" and groups else ""
    return f"{rounded(count)} {what}{over} of {run.metrics.get('manifest', 'unnamed data')}"


def _summary(run: Run) -> list[object]:
    floors = floors_of(run.job, run.metrics, run.rows)
    warnings = warnings_of(run.job, run.metrics, floors)
    shown = headline_tiles(run.job, run.metrics)
    if run.metrics and run.job:
        words = paragraph(in_words(run.job, run.metrics))
    else:
        words = paragraph(
            "This run has not been tested, so how good it is on images it has not seen is not known. ",
            "Run the `test` of its pipeline, then make this report again.",
        )
    parts: list[object] = [words, tiles(shown) if shown else None]
    parts += [paragraph(text, kind="warning") for text in warnings]
    if run.missing:
        parts += [details(f"Not in this report ({len(run.missing)})", bullets(run.missing))]
    return parts


def _numbers(run: Run) -> list[object]:
    rows = metric_rows(run.job, run.metrics)
    parts: list[object] = []
    if rows:
        over = run.metrics.get("intervals_over", "images" if run.job == "counting" else "groups")
        said = f"Measured on the test split; 95 % intervals from a bootstrap over {over}."
        columns = ("measure", "value", "95 % interval")
        parts.append(table(columns, rows, said, sortable=False))
    floors = floors_of(run.job, run.metrics, run.rows)
    if floors:
        parts += [
            element("h3", "Floors"),
            paragraph("What one gets without a model. One that is not better has learned nothing of use."),
            table(_FLOOR_COLUMNS, floor_rows(floors, run.metrics), "Floors, on the same test images", sortable=False),
        ]
    elif rows:
        parts.append(paragraph("The run wrote no floor or baseline beside its numbers.", kind="note"))
    if run.metrics:
        every = [[name, number(value)] for name, value in run.metrics.items()]
        whole = table(("name", "value"), every, "metrics.json, as written by the test", sortable=False)
        parts.append(details(f"All {len(every)} entries of metrics.json", whole))
    figures = _figures(run.folder / "figures")
    return [*parts, figures] if figures else parts


def _figures(folder: Path) -> Html | None:
    drawn = []
    for name, title in _FIGURES.items():
        pixels = read_pixels(folder / f"{name}.png")
        if pixels is not None:
            picture = encoded(title, as_colours(pixels[..., :3], FIGURE_SIDE), lossless=True)
            shown = element(
                "img", src=picture.uri, alt=title, width=picture.width, height=picture.height, decoding="async"
            )
            drawn.append(element("figure", shown, element("figcaption", title)))
    return element("div", *drawn, class_="figures") if drawn else None


def _curves(run: Run) -> list[object]:
    monitor = run.config.get("monitor")
    drawn = curves_html(read_curves(run.folder / "metrics.csv"), run.job, None if monitor is None else str(monitor))
    if drawn is None:
        return []
    chosen = (
        f" The checkpoint with the best {monitor} on the validation split was kept, where the dotted line is."
        if monitor
        else ""
    )
    return [paragraph(f"Loss and validation numbers while training went on.{chosen}"), drawn]


def _images(run: Run, order: Sequence[int], progress: Progress) -> list[object]:
    if not run.rows:
        return []
    shown = order[:MAX_CARDS]
    cards = run_cards(run, shown, progress)
    rules = {
        "segmentation": "the lowest Dice first. White is found, blue is missed, orange is false",
        "counting": "the largest error of the count first. White is found, blue is missed, orange is false",
        "classification": "the most confident mistakes first",
    }
    said = f"Sorted by {rules.get(run.job, 'nothing')}."
    parts: list[object] = [paragraph(said)]
    if len(order) > len(shown):
        parts.append(paragraph(f"The worst {len(shown)} of {len(order):,} are shown; the table has more.", kind="note"))
    seen = sum(bool(card.pictures) for card in cards)
    images = sum(any(picture.kind == "image" for picture in card.pictures) for card in cards)
    if not seen:
        return [*parts, paragraph("No picture was found: neither the images nor maps and overlays are at hand.")]
    if images < len(cards):
        parts.append(paragraph(f"The image itself is not at hand for {len(cards) - images} of them.", kind="note"))
    return [*parts, gallery(cards)]


def _table(run: Run, order: Sequence[int]) -> list[object]:
    if not run.rows:
        return []
    columns = [name for name in run.rows[0] if any(row.get(name) for row in run.rows)]
    columns.sort(key=lambda name: any(part in name for part in _LAST))
    shown = [[run.rows[place].get(name, "") for name in columns] for place in order[:MAX_ROWS]]
    what = "patch" if run.job == "classification" else "image"
    said = f"A row for each {what}, worst first"
    if len(order) > MAX_ROWS:
        said += f"; the worst {MAX_ROWS:,} of {len(order):,}, all of them are in predictions.csv"
    by = columns.index("dice") if run.job == "segmentation" and "dice" in columns else None
    return [
        paragraph("Click on a header to sort. ", _column_notes(run.job, run.rows)),
        table(columns, shown, said, sorted_by=None if by is None else (by, "ascending")),
    ]


def _column_notes(job: str, rows: Sequence[Row]) -> str:
    if job == "counting":
        known = any(number_in(row, "low") is not None for row in rows)
        interval = " low and high are the ends of its interval," if known else ""
        return f"In cells: count is what the model counted,{interval} true what people counted, error count - true."
    if job == "segmentation":
        return "Shares are of 0 to 1; betti0 counts pieces and betti1 loops; true_positive and its like are pixels."
    return "probability is that of the positive class, spread its standard deviation over turned and mirrored views."


def _data(run: Run) -> list[object]:
    data, manifest = run.data, run.manifest
    known = [("Manifest", data.get("manifest")), ("Title", manifest.title if manifest else None)]
    if manifest is not None:
        known += [("Description", manifest.description), ("Source", manifest.citation), ("Licence", manifest.licence)]
        known += [("Homepage", manifest.homepage)]
    known += [
        ("Pixel size", size_in_words(data.get("pixel_size_um"))),
        ("Fingerprint of the splits", data.get("split_hash")),
    ]
    if data.get("folds"):
        known.append(("Validation", f"fold {data.get('fold')} of {data['folds']}"))
    parts: list[object] = [facts(known)]
    sizes = dict(mapping(data.get("sizes")))
    sizes.setdefault("test", run.metrics.get("n_images", run.metrics.get("n")))
    counts = [[name, number(count)] for name, count in sizes.items() if count is not None]
    if counts:
        parts.append(table(("split", "images"), counts, "Images or patches of each split", sortable=False))
    found = mapping(data.get("fingerprint"))
    if found:
        rows = [[name.replace("_", " "), _listed(value)] for name, value in found.items()]
        whole = table(("of the training images", "value"), rows, "Fingerprint", sortable=False)
        parts.append(details("What the training images look like", whole))
    if manifest is not None and manifest.known_issues:
        parts += [element("h3", "Known issues"), bullets(manifest.known_issues)]
    return [*parts, element("h3", "Audit"), *_audit(run)]


def _audit(run: Run) -> list[object]:
    """The quick audit of the files as they are now: a run stores none, as errors stop it before it begins."""
    if run.manifest is None or run.root is None:
        return [paragraph("Left out: the manifest or the data are not at hand, and a run does not store its audit.")]
    try:
        audit = quick_audit(run.manifest, run.root)
    except (BiocnnError, OSError) as error:
        return [paragraph(f"Left out: the data could not be looked at ({error}).")]
    every: dict[str, list[str]] = {
        "split": [row.split for row in audit.rows],
        "images": [number(row.images) for row in audit.rows],
        "expected": ["" if row.expected is None else number(row.expected) for row in audit.rows],
        "size": [row.shape for row in audit.rows],
        "content": [row.content for row in audit.rows],
        "groups": ["" if row.groups is None else number(row.groups) for row in audit.rows],
    }
    known = {name: cells for name, cells in every.items() if any(cells)}
    marked = [
        joined([element("b", f"{item.level}: ", class_="alarm" if item.level == "error" else None), item.text])
        for item in audit.findings
    ]
    said = "Of the files as they were when this report was made, by headers and labels, without decoding images"
    return [
        table(list(known), list(zip(*known.values(), strict=True)), said, sortable=False),
        bullets(marked) if marked else paragraph("Nothing was found that would make a score misleading."),
    ]


def _listed(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(_listed(item) for item in value)
    if isinstance(value, float):
        return rounded(value)
    return "not known" if value is None else str(value)


def _record(run: Run) -> list[object]:
    record = run.record
    hardware = mapping(record.get("hardware"))
    gpus = hardware.get("gpus") or []
    versions = mapping(record.get("versions"))
    parameters = record.get("parameters")
    network = str(record.get("network", run.model.get("network_name", "")))
    known: list[tuple[str, object]] = [
        ("Command", element("code", record["command"]) if record.get("command") else None),
        ("Started", record.get("started")),
        ("Continued", f"{len(record['resumed_from'])} time(s)" if record.get("resumed_from") else None),
        ("Seed", None if record.get("seed") is None else str(record["seed"])),
        ("Network", f"{network}, {rounded(parameters)} weights" if parameters else network),
        ("State of the code (git)", record.get("git") or ("not a git checkout" if record else None)),
        ("Hardware", _hardware(hardware, gpus)),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("Checkpoint tested", run.metrics.get("checkpoint")),
        ("Splits tested", run.metrics.get("split_hash")),
    ]
    return [facts(known)] if any(value for _, value in known) else []


def _hardware(hardware: Mapping[str, Any], gpus: Sequence[object]) -> str:
    if not hardware:
        return ""
    said = f"{hardware.get('system', '')}, {hardware.get('machine', '')}, {hardware.get('cpu_threads', '')} threads"
    return f"{said}, {', '.join(map(str, gpus)) if gpus else 'no GPU'}"
