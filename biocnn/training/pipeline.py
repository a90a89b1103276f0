"""The command line of a pipeline script: LightningCLI with run folders, safe checkpoints and resuming."""

import contextlib
import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import yaml
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn

from biocnn.checkpoints import BEST, LAST, read_biocnn_checkpoint, read_checkpoint, remove_torn_files
from biocnn.data.datamodule import DataModule
from biocnn.errors import BiocnnError, DataError
from biocnn.files import write_text
from biocnn.networks.spec import build, remember
from biocnn.tasks.base import Task
from biocnn.training.arguments import EVALUATIONS, arguments_from_checkpoint, check_task, evaluation_checkpoint
from biocnn.training.callbacks import EMA, RandomStates, checkpoint_callbacks
from biocnn.training.guards import GuardedCheckpointIO, end_launched, explained, launches, locked_run, together
from biocnn.training.job import Job
from biocnn.training.logger import MetricsCSV
from biocnn.training.preemption import (
    REQUEUE,
    REQUEUE_FILE,
    Agreement,
    PreemptedError,
    StopRequest,
    silence_lightning,
    stop_request,
)
from biocnn.training.processes import BatchNormSync
from biocnn.training.runs import (
    chosen_run,
    find_last,
    forget_launched,
    is_first_process,
    new_run,
    run_of,
    tell_launched,
    write_run_record,
)
from biocnn.training.throughput import Throughput
from biocnn.training.trackers import loggers

__all__ = ["Job", "PipelineCLI", "arguments_from_checkpoint", "evaluation_checkpoint", "run_pipeline"]


class PipelineCLI(LightningCLI):
    """LightningCLI whose every run has one folder, see DESIGN: config, record, metrics and checkpoints.

    Args:
        job: what to run.
        args: command line; that of the process when None.
        held: what is to be given back when the run has ended, such as the lock of its folder, is put here.
        request: of the signal handlers, see :mod:`biocnn.training.preemption`.
    """

    def __init__(
        self,
        job: Job,
        args: Sequence[str] | None = None,
        held: contextlib.ExitStack | None = None,
        request: StopRequest | None = None,
    ) -> None:
        self.job = job
        self._held, self._request = held or contextlib.ExitStack(), request or StopRequest()
        self.run_folder, self.checkpoint = Path(), Path()
        super().__init__(
            job.task,
            job.datamodule,
            args=list(args) if args is not None else None,
            save_config_callback=None,
            seed_everything_default=0,
            trainer_defaults={"default_root_dir": "runs", "log_every_n_steps": 10, "num_sanity_val_steps": 0},
            parser_kwargs={"fit": {"default_env": False}},
            auto_configure_optimizers=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Options of the run that belong to no part of it."""
        parser.add_argument("--run", type=str | None, default=None, help="Name of the run; the time when null.")
        parser.add_argument(
            "--ema_decay",
            type=float | None,
            default=0.999,
            help="Decay for each step of the moving average of the weights; null trains without.",
        )
        parser.add_argument(
            "--checkpoint_every_n_steps",
            type=int,
            default=500,
            help="last.ckpt is written this often, and at the end of every epoch.",
        )
        parser.add_argument(
            "--monitor",
            type=Literal[tuple(self.job.monitors)],
            default=next(iter(self.job.monitors)),
            help="Validation metric that chooses best.ckpt.",
        )
        parser.add_argument("--wandb", type=str | None, default=None, help="Project of Weights & Biases.")
        parser.add_argument("--mlflow", type=str | None, default=None, help="Address of an MLflow server.")
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)

    def before_instantiate_classes(self) -> None:
        """Find or make the run folder, and turn ``last`` and ``best`` into paths."""
        config = self.config[self.subcommand]
        _check_precision(str(config.trainer.precision))
        root = Path(config.trainer.default_root_dir or "runs")
        wanted = config.get("ckpt_path")
        if self.subcommand == "fit":
            if self.job.complete is not None:
                self.job.complete(config)
            self._prepare_fit(config, root, None if wanted is None else str(wanted))
            return
        self.checkpoint = Path(evaluation_checkpoint(wanted, root, self.job.name, config.run))
        network = read_biocnn_checkpoint(self.checkpoint)["biocnn"]["network"]
        if network is not None:
            config.model.network = build(network)
        if self.subcommand == "predict" and self.job.writers is not None:
            config.return_predictions = False
        # The weights are loaded by hand: Lightning would restore the callbacks of the training as well.
        config.ckpt_path = None

    def _prepare_fit(self, config: Any, root: Path, wanted: str | None) -> None:
        resume: Path | None = None
        told = chosen_run()
        name = config.run if told is None else told.name
        if wanted == "last":
            folder, resume = find_last(root, self.job.name, name)
            self.run_folder = folder or new_run(root, self.job.name, name)
            rank_zero_info(f"Continuing {resume}" if resume else f"{self.run_folder}: no checkpoint yet, starting anew")
        elif wanted is not None:
            resume = Path(wanted)
            self.run_folder = run_of(resume)
        else:
            self.run_folder = new_run(root, self.job.name, name)
        config.ckpt_path = None if resume is None else str(resume)
        if resume is not None:
            check_task(self.job, read_biocnn_checkpoint(resume)["biocnn"], resume)
            self._take_folder()

    def _take_folder(self) -> None:
        """Hold the run folder, from before anything is written into it; a training that resumes begins with that."""
        if is_first_process():
            self._held.enter_context(locked_run(self.run_folder))
            (self.run_folder / REQUEUE_FILE).unlink(missing_ok=True)

    def _write_config(self) -> None:
        text = self._parser(self.subcommand).dump(self.config[self.subcommand], skip_unset=False)
        path = self.run_folder / "config.yaml"
        if not path.is_file():
            write_text(path, text)
        elif _without_resume(path.read_text(encoding="utf-8")) != _without_resume(text):
            rank_zero_warn(f"The configuration differs from {path}, with which this run was begun.")

    def instantiate_classes(self) -> None:
        """Make the objects; the network remembers the class path it was made from."""
        super().instantiate_classes()
        network = self.config[self.subcommand].model.get("network")
        if network is not None and hasattr(network, "class_path"):
            init_args = network.get("init_args")
            remember(self.model.network, network.class_path, init_args.as_dict() if init_args else {})
        if self.subcommand in EVALUATIONS:
            self.model.load_checkpoint(self.checkpoint)

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """A Trainer that writes into the run folder only."""
        config = self.config[self.subcommand]
        settings = self._get(self.config_init, "trainer", default={})
        own: list[Any] = []
        logger: Any = False
        if self.subcommand == "fit":
            resume = config.ckpt_path
            step = None if resume is None else int(read_checkpoint(resume)["global_step"])
            logger = loggers(self.run_folder, step, config.wandb, config.mlflow)
            logger += [given for given in _as_list(settings.get("logger")) if isinstance(given, Logger)]
            own = _fit_callbacks(self.run_folder, config, self.job.monitors, self._request, step)
        elif self.job.writers is not None and self.subcommand is not None:
            own = self.job.writers(self.subcommand, self.checkpoint, self.datamodule)
        callbacks = _as_list(settings.get("callbacks")) + own
        plugins = [*_as_list(settings.get("plugins")), GuardedCheckpointIO()]
        plugins += [] if settings.get("sync_batchnorm") else [BatchNormSync()]
        trainer = super().instantiate_trainer(logger=logger, callbacks=callbacks, plugins=plugins, **kwargs)
        silence_lightning(trainer)
        if launches(trainer):
            tell_launched(self.run_folder)
            self._held.callback(forget_launched)
        self._held.callback(end_launched, trainer)
        return trainer

    def before_fit(self) -> None:
        """Make the run folder and write ``config.yaml`` and ``run.json``, once the data have been looked at."""
        together(self.trainer, partial(_prepare_data, self.trainer, self.datamodule))
        together(self.trainer, self._look_at_data)
        if is_first_process():
            if self.config.fit.ckpt_path is None:
                self._take_folder()
            remove_torn_files(self.run_folder / "checkpoints")
            self._write_config()
            trained = sum(p.numel() for p in self.model.network.parameters() if p.requires_grad)
            settings = yaml.safe_load(self._parser("fit").dump(self.config.fit, skip_unset=False))
            network = type(self.model.network).__name__
            write_run_record(
                self.run_folder, self.config.fit.seed_everything, self.datamodule.describe(), network, trained,
                settings, self.trainer.world_size,
            )  # fmt: skip
            for logger in self.trainer.loggers:
                logger.log_hyperparams(settings)
            print(f"Run folder: {self.run_folder}")

    def _look_at_data(self) -> dict[str, Any]:
        self.datamodule.setup("fit")
        # Too few images for a batch, or for the processes: found out later, it would leave a run folder behind.
        self.datamodule.trainer = self.trainer
        self.datamodule.check_training_items()
        self.datamodule.val_dataloader()
        return self.datamodule.describe()

    def after_fit(self) -> None:
        """The job's own ending, unless training was interrupted."""
        if not self.trainer.interrupted:
            self.trainer.logger = None  # what follows is no part of the learning curves
            folder = Path(self.trainer.strategy.broadcast(str(self.run_folder)))
            self.job.after_fit(self.trainer, self.model, self.datamodule, folder / "checkpoints" / BEST)

    def before_validate(self) -> None:
        """Nothing but a check of the data, if there are several processes."""
        _check_evaluation(self.trainer, self.model, self.datamodule, "validate", "val_dataloader")

    def before_test(self) -> None:
        """The job's own preparation, after a check of the data, if there are several processes."""
        _check_evaluation(self.trainer, self.model, self.datamodule, "test", "test_dataloader")
        self.job.before_test(self.trainer, self.model, self.datamodule, self.checkpoint)

    def after_test(self) -> None:
        """The job's own report."""
        self.job.after_test(self.trainer, self.model, self.datamodule, self.checkpoint)

    def before_predict(self) -> None:
        """Nothing but a check of the data, if there are several processes."""
        _check_evaluation(self.trainer, self.model, self.datamodule, "predict", "predict_dataloader")

    def after_predict(self) -> None:
        """The job's own output."""
        self.job.after_predict(self.trainer, self.model, self.datamodule, self.checkpoint)


def _fit_callbacks(
    run_folder: Path, config: Any, monitors: Mapping[str, str], request: StopRequest, resume_step: int | None
) -> list[pl.Callback]:
    """What every training has, in this order: agreement on stopping, checkpoints, random states, averages, speed."""
    folder, monitor = run_folder / "checkpoints", config.monitor
    checkpoints = checkpoint_callbacks(folder, monitor, monitors[monitor], config.checkpoint_every_n_steps)
    averages = [] if config.ema_decay is None else [EMA(config.ema_decay)]
    speed = Throughput(MetricsCSV(run_folder, resume_step, "throughput.csv"))
    return [Agreement(request, folder / LAST), *checkpoints, RandomStates(), *averages, speed]


def _prepare_data(trainer: pl.Trainer, datamodule: pl.LightningDataModule) -> None:
    if trainer.local_rank == 0:
        datamodule.prepare_data()


def _check_evaluation(trainer: pl.Trainer, task: Task, datamodule: DataModule, stage: str, loader: str) -> None:
    """Look at the data of an evaluation, if there are several processes, so that none goes on where another cannot."""

    def look() -> dict[str, Any]:
        trainer.strategy.connect(task)  # it knows what images have to be like
        datamodule.trainer = trainer
        datamodule.setup(stage)
        getattr(datamodule, loader)()
        return {} if stage == "predict" else datamodule.describe()

    if trainer.world_size > 1:
        together(trainer, partial(_prepare_data, trainer, datamodule))
        together(trainer, look)


def _check_precision(precision: str) -> None:
    if precision.endswith("-true") and precision != "32-true":
        raise DataError(
            f"--trainer.precision {precision} changes the precision of the weights themselves; their moving average "
            "and the images are float32. Use 32-true, bf16-mixed or 16-mixed."
        )


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _without_resume(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith(("ckpt_path:", "run:", "#"))]


def run_pipeline(job: Job, args: Sequence[str] | None = None) -> int:
    """Run a pipeline script; errors that a user can act on are printed without a traceback.

    Args:
        job: what to run.
        args: command line; that of the process when None.

    Returns:
        Exit code: 0; 2 after an error that a user can act on; :data:`biocnn.training.preemption.REQUEUE` (75) of a
        training that was stopped by SIGTERM or SIGUSR1 and is to be continued by ``--ckpt_path last``.
    """
    given = list(sys.argv[1:] if args is None else args)
    _quieten()
    with contextlib.ExitStack() as held:
        # Evaluations are begun anew: a signal ends them as it ends any process.
        request = held.enter_context(stop_request()) if given[:1] == ["fit"] else None
        try:
            PipelineCLI(job, arguments_from_checkpoint(job, given), held, request)
        except PreemptedError as stop:
            if is_first_process():
                print(stop, file=sys.stderr)
            # The process that has launched this one takes another code for a failure, and is killed for it.
            return REQUEUE if chosen_run() is None else 0
        except (BiocnnError, RuntimeError, OSError) as error:
            text = str(error) if isinstance(error, BiocnnError) else explained(error)
            if text is None:
                raise
            print(f"error: {text}", file=sys.stderr)
            return 2
    return 0


def _quieten() -> None:
    # Lightning asks not to mix args with those of the process; here they are the same, completed.
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated")
    # Lightning dumps the configuration of an evaluation, which holds the network that was built; nothing reads it.
    warnings.filterwarnings("ignore", message=r"\s*Unable to serialize instance")
    # Lightning looks for a state in the loader; the position in the epoch is in that of the datamodule.
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable")
    # Advertisements for other packages are no news about a run, nor is a default that AtomicCheckpointIO overrules.
    for name in ("utilities.rank_zero", "trainer.connectors.checkpoint_connector"):
        logging.getLogger(f"pytorch_lightning.{name}").addFilter(
            lambda record: not record.getMessage().startswith(("💡 Tip:", "`weights_only` was not set"))
        )
