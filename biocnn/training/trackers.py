"""Where the metrics of a run go: its CSV always, TensorBoard by default, Weights & Biases and MLflow if asked for."""

from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities import rank_zero_info, rank_zero_only

from biocnn.errors import DataError
from biocnn.files import write_text
from biocnn.training.logger import MetricsCSV


def loggers(
    run_folder: Path, resume_step: int | None = None, wandb: str | None = None, mlflow: str | None = None
) -> list[Logger]:
    """The loggers of a training; all of them write in the first process only.

    Args:
        run_folder: ``root/job/run``; nothing is written into it before the training begins.
        resume_step: step of the checkpoint that is resumed. What was written from there on is dropped from the CSV and
            hidden by TensorBoard; Weights & Biases and MLflow keep it, and get the same values once more.
        wandb: project of Weights & Biases. A resumed run goes on as the same run there. ``WANDB_MODE=offline``
            keeps everything in the run folder, for nodes without a connection.
        mlflow: address of an MLflow server, such as ``http://host:5000``; with the whole of the package mlflow, also
            that of a data base, such as ``sqlite:///runs.db``. The experiment is named after the job.

    Raises:
        DataError: if a package is missing.
    """
    found: list[Logger] = [MetricsCSV(run_folder, resume_step)]
    try:
        found.append(EventFiles(run_folder, resume_step))
    except ModuleNotFoundError:
        rank_zero_info("There is no package tensorboardX: metrics are in metrics.csv only. See biocnn's dependencies.")
    for name, target, kind in (("wandb", wandb, WeightsAndBiases), ("mlflow", mlflow, MLflow)):
        if target is None:
            continue
        try:
            found.append(kind(run_folder, target))
        except ModuleNotFoundError as error:
            raise DataError(f"--{name} needs the package {name}: pip install 'biocnn[{name}]'.") from error
    return found


class EventFiles(TensorBoardLogger):
    """TensorBoard's files, in the folder ``tensorboard`` of the run.

    Every start writes a file of its own. It begins with a note that what earlier ones hold from the resumed step on is
    void, which TensorBoard heeds, so that no step is shown twice.

    Args:
        run_folder: ``root/job/run``.
        resume_step: of the checkpoint that is resumed.

    Raises:
        ModuleNotFoundError: if there is neither tensorboardX nor tensorboard.
    """

    def __init__(self, run_folder: Path, resume_step: int | None = None) -> None:
        super().__init__(run_folder, "", "tensorboard", default_hp_metric=False, purge_step=resume_step or 0)

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: ``config.yaml`` holds them."""

    @rank_zero_only
    def save(self) -> None:
        """Write what is buffered; no ``hparams.yaml``, which would be empty."""
        self.experiment.flush()


class WeightsAndBiases(WandbLogger):
    """A run of Weights & Biases, which a resumed training finds again by the id in ``wandb_id.txt``.

    Args:
        run_folder: ``root/job/run``; the run is named ``job/run``.
        project: of Weights & Biases.

    Raises:
        ModuleNotFoundError: if there is no package wandb.
    """

    def __init__(self, run_folder: Path, project: str) -> None:
        self._id_file = run_folder / "wandb_id.txt"
        super().__init__(_name(run_folder), str(run_folder), project=project, id=_remembered(self._id_file))

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run; the first look begins it."""
        run = super().experiment
        _remember(self._id_file, run.id)
        return run


class MLflow(MLFlowLogger):
    """A run of MLflow, which a resumed training finds again by the id in ``mlflow_id.txt``.

    Args:
        run_folder: ``root/job/run``; the experiment is named after the job.
        address: of the server or data base.

    Raises:
        ModuleNotFoundError: if there is no package mlflow.
    """

    def __init__(self, run_folder: Path, address: str) -> None:
        self._id_file = run_folder / "mlflow_id.txt"
        known = _remembered(self._id_file)
        super().__init__(run_folder.parent.name, run_folder.name, address, run_id=known)
        self._resumed = known is not None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The client; the first look begins the run."""
        client = super().experiment
        assert self._run_id is not None
        _remember(self._id_file, self._run_id)
        return client

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Those of the first start: MLflow refuses other values for a run that has some."""
        if not self._resumed:
            super().log_hyperparams(params)


def _name(run_folder: Path) -> str:
    return f"{run_folder.parent.name}/{run_folder.name}"


def _remembered(path: Path) -> str | None:
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def _remember(path: Path, identity: str) -> None:
    if not path.is_file():
        write_text(path, f"{identity}\n")
