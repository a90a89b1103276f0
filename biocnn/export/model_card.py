"""What goes with a model that is given away: who made it, under which licence, and a page about it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from biocnn.data.manifest import Manifest, load_manifest, shipped_manifests


@dataclass(frozen=True)
class Card:
    """What a checkpoint does not know.

    Attributes:
        name: of the model; by default its network and data set.
        authors: names of who made it.
        licence: SPDX identifier of the licence of the weights, such as ``"CC-BY-4.0"``.
        cites: text and DOI of works to cite.
    """

    name: str | None = None
    authors: tuple[str, ...] = ()
    licence: str | None = None
    cites: tuple[tuple[str, str], ...] = ()


_WHAT = {
    "ClassificationTask": "classifies patches",
    "SegmentationTask": "segments tubular structures",
    "CountingTask": "counts cells by a density map",
}


def manifest_of(said: Mapping[str, Any]) -> Manifest | None:
    """The manifest of the training data, if it is one of those that come with biocnn."""
    name = said["manifest"]
    return load_manifest(name) if name in shipped_manifests() else None


def title_of(card: Card, said: Mapping[str, Any]) -> str:
    """Name of the model."""
    data = f" ({said['manifest']})" if said["manifest"] else ""
    return card.name or f"{said['network']} that {_WHAT[said['task']]}{data}"


def model_page(card: Card, said: Mapping[str, Any], compared: str) -> str:
    """Markdown about a model: what it takes and gives, of what it was trained, and its limits.

    Args:
        card: what the user says.
        said: of :func:`biocnn.export.whole_model.describe_model`.
        compared: how the file was compared with the model.
    """
    into, out, manifest = said["input"], said["output"], manifest_of(said)
    size = into["pixel_size_um"]
    low, high = into["range"]
    channels = ", ".join(into["channels"]) or "as in training"
    multiples = f"multiples of {into['multiple_of']} px"
    margin = f"{said['halo']} px on each side are to be thrown away"
    rows = {
        "Takes": f"{into['dtype']} ({into['axes']}), channels {channels}; values as stored ({into['stored_as']}), of "
        f"which {low:g} to {high:g} are told apart. Do not scale or normalise them: the file does.",
        "Rows and columns": multiples if into["size"] is None else "{} x {} px".format(*into["size"]),
        "Pixel size": "not known" if size is None else f"{size[0]:g} x {size[1]:g} um (row, column); resample others",
        "Gives": f"{out['name']}: {out['is']}",
        "Margin of tiles": "every pixel depends on the whole image" if said["halo"] is None else margin,
    }
    if "threshold" in said:
        rows["Threshold"] = f"{said['threshold']:g}" + (
            f", chosen for the mean over {said['threshold_views']} views of an image; the file predicts one"
            if said.get("threshold_views", 1) > 1
            else ""
        )
    table = "\n".join(f"| {name} | {text} |" for name, text in rows.items())
    data = "not known" if said["manifest"] is None else said["manifest"]
    if manifest is not None:
        data = f"{manifest.title}. {manifest.description.strip()} Licence of the data: {manifest.licence}."
    return f"""# {title_of(card, said)}

A {said["network"]} that {_WHAT[said["task"]]}, trained with biocnn {said["biocnn"]}.

| | |
|---|---|
{table}

## Data of the training

{data}

## Intended use and limits

Research on images like those of the training: the same stain, modality and pixel size. It is no medical device. Images
that differ give answers that look as sure as others; compare some of yours with what you see in them first.

## Validation

{compared[0].upper()}{compared[1:]}. The files with `test_` in their name are an input and what the model makes of it.
For the quality on your images, `biocnn` tests a checkpoint on annotated ones, with intervals.
"""
