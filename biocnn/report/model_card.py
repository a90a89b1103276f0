"""The model card: what a model is for, what it was made of, and where nobody has tried it.

After Mitchell et al., Model cards for model reporting (FAccT 2019): every line is made of what a run recorded.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from biocnn.data.manifest import Manifest
from biocnn.report.page import Html, bullets, element, facts, joined, paragraph, rounded

NOT_FOR_DIAGNOSIS = "For research. Not for diagnosis, and not a medical device."
_FEW = 50  # training images
TASKS: Mapping[str, str] = {
    "segmentation": "Finds tubular structures (vessels, neurites, membranes): a map of 0 to 1, a mask and a graph.",
    "counting": "Counts cells: a density map whose sum is the count, an interval of the count, and points.",
    "classification": "Classifies patches: the probability that the centre of a patch belongs to the positive class.",
}
_LIMITS: Mapping[str, Sequence[str]] = {
    "segmentation": (
        "Structures thinner or wider than those of the training images may be broken or missed.",
        "Lengths and widths are in micrometres only where the pixel size is known and right.",
    ),
    "counting": (
        "The interval holds for images like those of validation; it says nothing about other stains or microscopes.",
        "Counts far above those of the training images are extrapolations.",
    ),
    "classification": (
        "Probabilities are calibrated for the share of positive patches in the validation split.",
        "A patch is judged on its own: its surroundings on the slide are not seen.",
    ),
}


def model_card(
    job: str,
    data: Mapping[str, Any],
    model: Mapping[str, Any],
    manifest: Manifest | None,
    tested: str,
) -> Html:
    """Task, intended use, data, limits and licences as HTML.

    Args:
        job: of the run, as in :class:`biocnn.report.run_folder.Run`.
        data: description of the training data, as a run records it.
        model: what the checkpoint says of itself.
        manifest: of the data; without it, source and licence are said to be unknown.
        tested: on what the numbers were measured, in words; empty for a model that was not tested.
    """
    licence = "not known: the manifest is not at hand" if manifest is None else manifest.licence
    source = "not known: the manifest is not at hand" if manifest is None else manifest.citation
    limits = [*_untested(data, tested), *_LIMITS.get(job, ())]
    return joined(
        [
            paragraph(NOT_FOR_DIAGNOSIS, kind="warning"),
            facts(
                [
                    ("Task", TASKS.get(job, "not known")),
                    ("Intended use", _intended(job, data)),
                    ("Input", _input(data)),
                    ("Trained on", _training(data, manifest)),
                    ("Tested on", tested or "nothing yet: run `test` before you rely on it"),
                    ("Chosen on validation", _chosen(job, model)),
                    ("Source of the data", source),
                    ("Licence of the data", licence),
                ]
            ),
            element("h3", "Limits"),
            bullets(limits),
        ]
    )


def size_in_words(pixel_size_um: object) -> str:
    """A pixel size, or that it is not known.

    >>> size_in_words([0.5, 0.5])
    '0.5 x 0.5 micrometres per pixel (row x column)'
    """
    if not isinstance(pixel_size_um, (list, tuple)) or len(pixel_size_um) < 2:
        return "not known, so results are in pixels"
    return f"{pixel_size_um[-2]:g} x {pixel_size_um[-1]:g} micrometres per pixel (row x column)"


def _intended(job: str, data: Mapping[str, Any]) -> str:
    known = {"segmentation": "map", "counting": "count", "classification": "rank or call"}.get(job, "analyse")
    return (
        f"To {known} images of the same tissue, stain, microscope and pixel size as those of "
        f"{data.get('manifest', 'the training data')}, by people who check a sample of the results by eye."
    )


def _input(data: Mapping[str, Any]) -> str:
    channels = data.get("channels") or []
    size = data.get("patch_size") or []
    parts = [
        f"{len(channels)} channel(s): {', '.join(map(str, channels))}" if channels else "",
        f"patches of {' x '.join(map(str, size))} pixels" if size else "",
        str(data.get("dtype", "")),
        f"pixel size {size_in_words(data.get('pixel_size_um'))}",
    ]
    return "; ".join(part for part in parts if part)


def _training(data: Mapping[str, Any], manifest: Manifest | None) -> str:
    sizes = data.get("sizes")
    counts = (
        ", ".join(f"{rounded(count)} for {name}" for name, count in sizes.items()) if isinstance(sizes, dict) else ""
    )
    name = manifest.title if manifest is not None else str(data.get("manifest", "not known"))
    return f"{name}: {counts}" if counts else name


def _chosen(job: str, model: Mapping[str, Any]) -> str:
    calibration, interval = model.get("calibration"), model.get("interval")
    if job == "classification" and isinstance(calibration, dict):
        return f"threshold {calibration['threshold']:.3f}, temperature {calibration['temperature']:.3f}"
    if job == "segmentation" and model.get("threshold") is not None:
        specks = f", without specks of less than {model['min_component']} pixels" if model.get("min_component") else ""
        return f"threshold {model['threshold']:.3f}{specks}"
    if job == "counting" and isinstance(interval, dict):
        return f"interval of {100 * (1 - interval['alpha']):g} % from {interval['images']} images"
    return ""


def _untested(data: Mapping[str, Any], tested: str) -> list[str]:
    found = ["Not tested on other laboratories, stains, microscopes, species or pixel sizes than those named above."]
    if not tested:
        found.insert(0, "Not tested at all: how well it works is not known.")
    if data.get("pixel_size_um") is None:
        found.append("The pixel size of the training images is not known, so other magnifications cannot be noticed.")
    sizes = data.get("sizes")
    count = sizes.get("train") if isinstance(sizes, dict) else None
    if isinstance(count, int) and 0 < count < _FEW:
        found.append(f"Trained on {count} images: rare appearances were hardly seen.")
    return found
