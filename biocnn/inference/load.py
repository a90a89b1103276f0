"""`biocnn.load`: from a checkpoint file to something that predicts, without the training data or its script."""

from pathlib import Path

import torch
from torch import nn

from biocnn.checkpoints import read_biocnn_checkpoint
from biocnn.errors import CheckpointError
from biocnn.inference.classification import PatchClassifier
from biocnn.inference.counting import Counter
from biocnn.inference.segmentation import Segmenter
from biocnn.networks.spec import build
from biocnn.tasks.classification import ClassificationTask
from biocnn.tasks.counting import CountingTask
from biocnn.tasks.segmentation import SegmentationTask


def load(
    path: str | Path, network: nn.Module | None = None, device: str | torch.device | None = None
) -> PatchClassifier | Segmenter | Counter:
    """Load a trained model, ready to predict.

    The file is read with `weights_only=True`: only tensors and plain data, never code. Its network is made by name
    if the name lies in a package that biocnn trusts (:data:`biocnn.networks.spec.TRUSTED_PACKAGES`).

    Args:
        path: of a local checkpoint such as ``RUN/checkpoints/best.ckpt``, or of weights that were exported as
            ``.safetensors``. URLs are refused.
        network: the network, with any weights, if it cannot be made by name.
        device: where to predict; the GPU when there is one, else the CPU.

    Returns:
        What predicts with a model of this task: a :class:`PatchClassifier`, a :class:`Segmenter` or a :class:`Counter`.

    Raises:
        CheckpointError: if the file is missing, torn, not one of biocnn's, holds a network that has to be passed, or
            its weights do not fit.
    """
    stored = read_biocnn_checkpoint(path)["biocnn"]
    tasks = (ClassificationTask, SegmentationTask, CountingTask)
    task_class = {task.__name__: task for task in tasks}.get(stored["task"])
    if task_class is None:
        raise CheckpointError(f"{path} holds a {stored['task']}, which this version of biocnn cannot predict with.")
    if network is None:
        if stored["network"] is None:
            raise CheckpointError(
                f"{path} holds the weights of a {stored['network_name']}, which is not made by name. Make it and pass "
                "it: biocnn.load(path, network=...)."
            )
        network = build(stored["network"])
    task = task_class(network, **stored["settings"])
    task.load_checkpoint(path)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    task = task.to(device).eval()
    if isinstance(task, ClassificationTask):
        return PatchClassifier(task)
    return Segmenter(task) if isinstance(task, SegmentationTask) else Counter(task)
