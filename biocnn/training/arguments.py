"""Which checkpoint an evaluation takes, and what the command line takes from it: plain settings, never code."""

import json
import types
from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from biocnn.checkpoints import BEST, read_biocnn_checkpoint
from biocnn.errors import CheckpointError
from biocnn.networks.spec import resolve
from biocnn.tasks.base import Task
from biocnn.training.job import Job
from biocnn.training.runs import find_last

EVALUATIONS = ("validate", "test", "predict")
"""Subcommands that need a checkpoint."""

# What the network is given belongs to the weights; the rest of the settings may be changed at test time.
_FIXED_SETTINGS = ("image_mean", "image_std", "refinement_steps")
_CONFIG = ("--config", "-c")
# What may be said without the `data.` before it, where the datamodule has such an argument.
_SHORT = ("rois",)
_SCALARS = (bool, int, float, str, type(None))


def evaluation_checkpoint(wanted: Any, root: Path, job: str, run: str | None) -> Path | str:
    """The checkpoint to evaluate: what is given; ``best`` (also when None) and ``last`` of the newest run.

    Raises:
        CheckpointError: if there is none.
    """
    if wanted not in (None, "best", "last"):
        return str(wanted)  # as it is: a Path would hide that it is a URL
    folder, last = find_last(root, job, run)
    path = last if folder is None or wanted == "last" else folder / "checkpoints" / BEST
    if path is None or not path.is_file():
        raise CheckpointError(
            f"There is no finished run in {(root / job).resolve()}. Train one, or give --ckpt_path a file."
        )
    return path


def arguments_from_checkpoint(job: Job, args: Sequence[str]) -> list[str]:
    """Complete the command line of an evaluation by what the checkpoint says about network and normalisation.

    So `test --ckpt_path RUN/checkpoints/best.ckpt --data.root DIR` is enough. The network and the normalisation of the
    checkpoint win over a ``--config``; its other settings are defaults. ``--rois`` stands for ``--data.rois``.

    jsonargparse imports and calls what it is told to, and may take any string for a name. So it is given plain
    settings only; the network is made by :func:`biocnn.networks.spec.build`, and the command line holds its place.

    Args:
        job: whose task the checkpoint has to hold.
        args: such as ``["test", "--ckpt_path", "x.ckpt"]``.

    Raises:
        CheckpointError: if the checkpoint cannot be read, is of another job, holds anything but plain settings of the
            task, or names a network that is not trusted.
    """
    args = [_long(job, argument) for argument in args]
    if not args or args[0] not in EVALUATIONS or "--help" in args or "-h" in args:
        return args
    root = Path(_given(args, "trainer.default_root_dir") or "runs")
    path = evaluation_checkpoint(_given(args, "ckpt_path"), root, job.name, _given(args, "run"))
    stored = read_biocnn_checkpoint(path)["biocnn"]
    check_task(job, stored, path)
    settings = {name: json.dumps(value) for name, value in _plain_settings(job.task, stored, path).items()}
    before = [f"--model.{name}={value}" for name, value in settings.items() if name not in _FIXED_SETTINGS]
    after = [f"--model.{name}={value}" for name, value in settings.items() if name in _FIXED_SETTINGS]
    if stored["network"] is not None:
        try:
            resolve(stored["network"])
        except CheckpointError as error:
            raise CheckpointError(f"{path} names no network that can be made from its name. {error}") from error
        after.append("--model.network=torch.nn.Identity")
    elif not any(arg.partition("=")[0] in _CONFIG for arg in args):
        raise CheckpointError(
            f"{path} holds the weights of a {stored['network_name']}, which is not made by name. Give the --config "
            "that it was trained with."
        )
    return [args[0], *before, *args[1:], *after]


def check_task(job: Job, stored: Mapping[str, Any], path: Path | str) -> None:
    """Raise a CheckpointError if a checkpoint is of another job, by its ``biocnn`` section."""
    if stored.get("task") != job.task.__name__:
        raise CheckpointError(
            f"{path} holds a {stored.get('task')}, expected a {job.task.__name__}. Use the script in pipelines/ that "
            "it was trained with."
        )


def _long(job: Job, argument: str) -> str:
    """``--data.rois`` for ``--rois``; other arguments as they are."""
    option, equals, value = argument.partition("=")
    name = option.removeprefix("--")
    known = name in _SHORT and name in signature(job.datamodule).parameters
    return f"--data.{name}{equals}{value}" if known and option.startswith("--") else argument


def _plain_settings(task: type[Task], stored: Mapping[str, Any], path: Path | str) -> dict[str, Any]:
    """The settings of a checkpoint, all of which have to be arguments of the task that hold no objects.

    Raises:
        CheckpointError: naming the first that is not.
    """
    hints = get_type_hints(task.__init__)
    known = [name for name, hint in hints.items() if name != "return" and _is_plain_hint(hint)]
    settings = dict(stored["settings"])
    for name, value in settings.items():
        values = value if isinstance(value, (list, tuple)) else [value]
        if name not in known or not all(isinstance(item, _SCALARS) for item in values):
            raise CheckpointError(
                f"{path}: the setting {name!r} is a {type(value).__name__}; expected numbers, strings or lists of them "
                f"for {', '.join(known)} of a {task.__name__}. It was not written by biocnn, or by another version."
            )
    return settings


def _is_plain_hint(hint: Any) -> bool:
    origin = get_origin(hint)
    if origin is Literal:
        return True
    if origin in (Union, types.UnionType, Sequence, list, tuple):
        return all(part is Ellipsis or _is_plain_hint(part) for part in get_args(hint))
    return hint in _SCALARS


def _given(args: Sequence[str], name: str) -> str | None:
    """What the command line says about a setting, by an option or in a ``--config``; the last one counts."""
    found = None
    for argument, following in zip(args, [*args[1:], ""], strict=True):
        option, equals, value = argument.partition("=")
        value = value if equals else following
        if option == f"--{name}":
            found = value
        elif option in _CONFIG and Path(value).is_file():
            content: Any = yaml.safe_load(Path(value).read_text(encoding="utf-8"))
            for key in name.split("."):
                content = content.get(key, found) if isinstance(content, dict) else found
            found = None if content is None else str(content)
    return found
