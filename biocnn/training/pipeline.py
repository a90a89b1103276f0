"""The command line of a pipeline script: LightningCLI with run folders, safe checkpoints and resuming."""

import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn

from biocnn.checkpoints import (
    BEST,
    AtomicCheckpointIO,
    read_biocnn_checkpoint,
    read_checkpoint,
    remove_torn_files,
)
from biocnn.errors import BiocnnError, CheckpointError, DataError
from biocnn.files import write_text
from biocnn.networks.spec import build, remember
from biocnn.training.arguments import EVALUATIONS, arguments_from_checkpoint, evaluation_checkpoint
from biocnn.training.callbacks import EMA, RandomStates, checkpoint_callbacks
from biocnn.training.job import Job
from biocnn.training.logger import MetricsCSV
from biocnn.training.runs import (
    chosen_run,
    find_last,
    is_first_process,
    new_run,
    run_of,
    tell_launched,
    write_run_record,
)

__all__ = ["Job", "PipelineCLI", "arguments_from_checkpoint", "evaluation_checkpoint", "run_pipeline"]


class PipelineCLI(LightningCLI):
    """LightningCLI whose every run has one folder, see DESIGN: config, record, metrics and checkpoints.

    Args:
        job: what to run.
        args: command line; that of the process when None.
    """

    def __init__(self, job: Job, args: Sequence[str] | None = None) -> None:
        self.job = job
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
        tell_launched(self.run_folder)
        config.ckpt_path = None if resume is None else str(resume)
        if resume is not None and not resume.is_file():
            raise CheckpointError(f"There is no checkpoint {resume.resolve()}.")

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
        own: list[Any] = []
        logger: Any = False
        if self.subcommand == "fit":
            resume = config.ckpt_path
            step = None if resume is None else int(read_checkpoint(resume)["global_step"])
            logger = MetricsCSV(self.run_folder, step)
            mode = self.job.monitors[config.monitor]
            own = checkpoint_callbacks(
                self.run_folder / "checkpoints", config.monitor, mode, config.checkpoint_every_n_steps
            )
            own += [RandomStates()] + ([] if config.ema_decay is None else [EMA(config.ema_decay)])
        elif self.job.writers is not None and self.subcommand is not None:
            own = self.job.writers(self.subcommand, self.checkpoint, self.datamodule)
        settings = self._get(self.config_init, "trainer", default={})
        callbacks = _as_list(settings.get("callbacks")) + own
        plugins = [*_as_list(settings.get("plugins")), AtomicCheckpointIO()]
        return super().instantiate_trainer(logger=logger, callbacks=callbacks, plugins=plugins, **kwargs)

    def before_fit(self) -> None:
        """Make the run folder and write ``config.yaml`` and ``run.json``, once the data have been looked at."""
        if is_first_process():
            self.datamodule.prepare_data()
        self.datamodule.setup("fit")
        if is_first_process():
            self._check_processes(self.datamodule.val_dataloader)
            remove_torn_files(self.run_folder / "checkpoints")
            self._write_config()
            trained = sum(p.numel() for p in self.model.network.parameters() if p.requires_grad)
            seed = self.config.fit.seed_everything
            write_run_record(
                self.run_folder, seed, self.datamodule.describe(), type(self.model.network).__name__, trained
            )
            print(f"Run folder: {self.run_folder}")

    def _check_processes(self, loader: Callable[[], Any]) -> None:
        # With fewer images than processes there is no loader. Found out later, each process would say so and be killed.
        self.datamodule.trainer = self.trainer
        loader()

    def after_fit(self) -> None:
        """The job's own ending, unless training was interrupted."""
        if not self.trainer.interrupted:
            self.trainer.logger = None  # what follows is no part of the learning curves
            folder = Path(self.trainer.strategy.broadcast(str(self.run_folder)))
            self.job.after_fit(self.trainer, self.model, self.datamodule, folder / "checkpoints" / BEST)

    def before_validate(self) -> None:
        """Nothing but a check of the data, before processes are launched."""
        if is_first_process() and self.trainer.world_size > 1:
            self.datamodule.prepare_data()
            self.datamodule.setup("validate")
            self._check_processes(self.datamodule.val_dataloader)

    def before_test(self) -> None:
        """The job's own preparation, after a check of the data, before processes are launched."""
        if is_first_process() and self.trainer.world_size > 1:
            self.datamodule.prepare_data()
            self.datamodule.setup("test")
            self._check_processes(self.datamodule.test_dataloader)
        self.job.before_test(self.trainer, self.model, self.datamodule, self.checkpoint)

    def after_test(self) -> None:
        """The job's own report."""
        self.job.after_test(self.trainer, self.model, self.datamodule, self.checkpoint)

    def before_predict(self) -> None:
        """One process writes one table."""
        if self.trainer.world_size > 1:
            raise DataError("Prediction runs on one device: pass --trainer.devices 1.")

    def after_predict(self) -> None:
        """The job's own output."""
        self.job.after_predict(self.trainer, self.model, self.datamodule, self.checkpoint)


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
        Exit code: 0, or 2 after an error in the input.
    """
    given = list(sys.argv[1:] if args is None else args)
    _quieten()
    try:
        PipelineCLI(job, arguments_from_checkpoint(job, given))
    except BiocnnError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _quieten() -> None:
    # Lightning asks not to mix args with those of the process; here they are the same, completed.
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated")
    # Lightning dumps the configuration of an evaluation, which holds the network that was built; nothing reads it.
    warnings.filterwarnings("ignore", message=r"\s*Unable to serialize instance")
    # Advertisements for other packages are no news about a run.
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(
        lambda record: "Tip:" not in record.getMessage()
    )
