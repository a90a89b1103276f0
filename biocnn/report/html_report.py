"""One HTML file about a run or a prediction that needs nothing else: no network, no folder beside it."""

import datetime
from dataclasses import dataclass
from pathlib import Path

import biocnn
from biocnn.errors import DataError
from biocnn.files import write_text
from biocnn.report.page import page
from biocnn.report.results_page import is_results, read_results, results_page
from biocnn.report.run_cards import Progress
from biocnn.report.run_folder import read_run
from biocnn.report.run_page import run_page

NAME = "report.html"
_GENERATOR = "biocnn"
_HEAD = 1024
"""Bytes of a file in which our mark is looked for."""


@dataclass(frozen=True)
class Written:
    """A report that was written.

    Attributes:
        path: of the file.
        size: in bytes.
        images: number of pictures in it.
    """

    path: Path
    size: int
    images: int


def _quietly(name: str, done: int, total: int | None) -> None:
    """No progress is shown."""


def write_report(
    folder: str | Path, out: str | Path | None = None, overwrite: bool = False, progress: Progress = _quietly
) -> Written:
    """Write the page of a run folder, or of the folder of a prediction.

    Args:
        folder: what a pipeline or `biocnn predict` has written.
        out: target file; ``report.html`` in the folder when None.
        overwrite: whether a file that is no report of ours is replaced; an older report always is.
        progress: called while pictures are made, with their name, how many are done and of how many.

    Raises:
        DataError: if the folder holds neither, or the target is another file.
    """
    source = Path(folder)
    target = source / NAME if out is None else Path(out)
    check_target(target, overwrite)
    if is_results(source):
        title, subtitle, sections = results_page(read_results(source), progress)
    else:
        title, subtitle, sections = run_page(read_run(source), progress)
    now = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="minutes")
    footer = f"Made by biocnn {biocnn.__version__} on {now} from the folder {source.resolve().name}."
    text = page(title, subtitle, sections, footer, f"{_GENERATOR} {biocnn.__version__}")
    write_text(target, text)
    return Written(target, target.stat().st_size, text.count("<img "))


def check_target(target: Path, overwrite: bool) -> None:
    """Make sure that nothing is lost by writing a report.

    Raises:
        DataError: if the target is a folder, or a file that is no report of ours and may not be replaced.
    """
    if target.is_dir():
        raise DataError(f"{target} is a folder. Give --out the name of a file, such as {target / NAME}.")
    if not target.exists() or overwrite:
        return
    with target.open("rb") as handle:
        if f'<meta name="generator" content="{_GENERATOR} '.encode() in handle.read(_HEAD):
            return
    raise DataError(
        f"{target} is there already and is no report of biocnn. Give another --out, or --overwrite to replace it."
    )
