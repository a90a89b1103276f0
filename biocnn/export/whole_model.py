"""A trained model in one module: preprocessing, network, and what turns its output into an answer.

Other programs scale images in their own ways, and a file that leaves that to them gives other numbers there. So what is
exported takes the values of an image as they are stored, and gives what :func:`biocnn.load` gives with one view:

- input ``image``: (B, C, H, W) float32, the values as in the file (0..255 for images of bytes, else those of the
  training images, whose range is in the description), channels in the order of the training;
- output ``probability``: (B, 1, H, W) of a structure, (B, 1) of a patch, with its temperature; or ``density``:
  (B, 1, H, W), cells per pixel, with the scale of the training and the factor of the validation.

Rows and columns are multiples of :attr:`Sizes.multiple`, and the caller pads. Larger images are cut into tiles by the
caller, with a margin of ``halo`` px that is thrown away. The mean over views, the smallest component, the interval of a
count, and points are left to biocnn.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

import biocnn
from biocnn.errors import CheckpointError
from biocnn.metrics.calibration import Calibration
from biocnn.networks.refinement import finest
from biocnn.networks.resolution import output_stride_of
from biocnn.networks.tiling import tiling_of
from biocnn.tasks.base import Task
from biocnn.tasks.classification import ClassificationTask
from biocnn.tasks.counting import CountingTask
from biocnn.tasks.segmentation import SegmentationTask

_MULTIPLE = 32  # px; networks of other packages do not say how often they halve, and five times is the most
_LEAST = 32  # px; what an example image has at least

Answer = Callable[[nn.Module, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Sizes:
    """Images that an exported model takes.

    Attributes:
        channels: C.
        multiple: what rows and columns are multiples of, px.
        fixed: rows and columns, where no others are taken, as of patches; None for images of any size.
    """

    channels: int
    multiple: int
    fixed: tuple[int, int] | None

    @property
    def examples(self) -> list[tuple[int, int, int, int]]:
        """Two shapes (B, C, H, W) that differ in all that may differ."""
        if self.fixed is not None:
            return [(2, self.channels, *self.fixed), (3, self.channels, *self.fixed)]
        cells = math.ceil(_LEAST / self.multiple)
        rows, columns = ((cells + more) * self.multiple for more in (2, 1))
        return [(2, self.channels, rows, columns), (1, self.channels, columns, 2 * rows)]


class WholeModel(nn.Module):
    """What is exported: (B, C, H, W) float32 as stored to the answer; see the docstring of this module.

    The weights are a copy on the CPU, in evaluation mode. Values beyond the range of the training are cut to it, as
    everywhere in biocnn.

    Args:
        task: with its weights and its normalisation.

    Attributes:
        sizes: what images it takes.
        range: what values of them are told apart.

    Raises:
        CheckpointError: if the task says nothing of the size of its patches, or is of no known kind.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.sizes, self.range = sizes_of(task), intensity_range(task)
        self.answer = _answer_of(task)
        # Several formats know no other layout than the plain one.
        network = copy.deepcopy(task.network).cpu().eval()
        self.network = network.to(memory_format=torch.contiguous_format).requires_grad_(False)
        for name, values in (("mean", task.image_mean), ("std", task.image_std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1))
        self.eval()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) float32 as stored to (B, 1, H, W), or (B, 1) of patches."""
        low, high = self.range
        scaled = ((image - low) * (1 / (high - low))).clamp(0, 1)
        return self.answer(self.network, (scaled - self.mean) / self.std)


def _answer_of(task: Task) -> Answer:
    if isinstance(task, ClassificationTask):
        return partial(_patch_probability, temperature=(task.calibration or Calibration()).temperature)
    if isinstance(task, SegmentationTask):
        return partial(_structure_probability, steps=task.step_count if task.refinement_steps > 1 else 0)
    if isinstance(task, CountingTask):
        cell = output_stride_of(task.network)
        return partial(_density, cell=cell, factor=task.count_factor / (task.density_scale * cell**2))
    raise CheckpointError(f"A {type(task).__name__} is not exported; the three tasks of biocnn are.")


def _patch_probability(network: nn.Module, image: torch.Tensor, temperature: float) -> torch.Tensor:
    logits: torch.Tensor = network(image)
    return torch.sigmoid(logits.reshape(-1, 1) / temperature)


def _structure_probability(network: nn.Module, image: torch.Tensor, steps: int) -> torch.Tensor:
    if steps == 0:
        return torch.sigmoid(finest(network(image)))
    # As biocnn.networks.refinement.refine, which asks a batch for its length: that is a constant in a trace.
    probability = torch.zeros_like(image[:, :1])
    for _ in range(steps):
        probability = torch.sigmoid(finest(network(torch.cat([image, probability], 1))))
    return probability


def _density(network: nn.Module, image: torch.Tensor, cell: int, factor: float) -> torch.Tensor:
    found: torch.Tensor = network(image)
    if cell > 1:  # as biocnn.networks.resolution.spread, of images whose sizes are multiples of the cell
        found = found.repeat_interleave(cell, -2).repeat_interleave(cell, -1)
    return found * factor


def intensity_range(task: Task) -> tuple[float, float]:
    """What becomes 0 and 1: 0 and 255 of images of bytes, else the range of the training images."""
    data = task.data_description
    if data.get("dtype", "uint8") == "uint8":
        return 0.0, 255.0
    low, high = (data.get("fingerprint") or {}).get("intensity_range", (0.0, 255.0))
    return float(low), float(high)


def sizes_of(task: Task) -> Sizes:
    """What images a task takes.

    Raises:
        CheckpointError: if it is of patches, and neither its data nor its network say how large they are.
    """
    network, channels = task.network, len(task.image_mean)
    if isinstance(task, ClassificationTask):
        side = getattr(network, "input_size", None)
        size = task.data_description.get("patch_size") or (side and (side, side))
        if not size:
            raise CheckpointError(
                "The checkpoint does not say how large its patches are, and an exported classifier takes one size. "
                "Train with biocnn's datamodule, or set `patch_size` in the task's data_description."
            )
        return Sizes(channels, 1, (int(size[0]), int(size[1])))
    multiple = int(getattr(network, "stride", _MULTIPLE))
    return Sizes(channels, math.lcm(multiple, output_stride_of(network)), None)


def describe_model(task: Task) -> dict[str, Any]:
    """What a file says of itself, plain data valid as JSON: how to feed it, and what its answer means.

    Keys: ``biocnn`` (version), ``task``, ``network``, ``manifest``, ``input`` (axes, dtype, channels, range,
    ``pixel_size_um`` as row and column, ``multiple_of``, ``size``), ``output`` (name, what it is), ``halo`` in pixels
    (None if a pixel depends on the whole image); of patches ``classes`` and ``threshold``, of a segmentation all of
    :class:`biocnn.tasks.thresholds.Thresholds`, of a counting ``interval``.
    """
    data, sizes = task.data_description, sizes_of(task)
    said: dict[str, Any] = {
        "biocnn": biocnn.__version__,
        "task": type(task).__name__,
        "network": type(task.network).__name__,
        "manifest": data.get("manifest"),
        "input": {
            "axes": "batch, channel, row, column",
            "dtype": "float32",
            "channels": list(data.get("channels", ())),
            "range": list(intensity_range(task)),
            "stored_as": data.get("dtype", "uint8"),
            "pixel_size_um": data.get("pixel_size_um"),
            "multiple_of": sizes.multiple,
            "size": None if sizes.fixed is None else list(sizes.fixed),
        },
        "halo": tiling_of(task.network)[0],
    }
    if isinstance(task, CountingTask):
        learned = task.learned()
        return {**said, "output": {"name": "density", "is": "cells per pixel"}, "interval": learned["interval"]}
    said["output"] = {"name": "probability", "is": "probability of the structure"}
    if isinstance(task, SegmentationTask):
        return {**said, **task.thresholds.to_dict()}
    classes = list(data.get("classes", ()))
    said["output"]["is"] = f"probability of {classes[1] if len(classes) == 2 else 'the positive class'}"
    threshold = task.calibration.threshold if isinstance(task, ClassificationTask) and task.calibration else 0.5
    return {**said, "classes": classes, "threshold": threshold}
