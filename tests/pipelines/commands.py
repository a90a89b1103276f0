"""Commands of the three pipelines in processes of their own, one or several that train together.

Importing takes longer than a training of a few steps, so the processes are forked from a server that has imported all.
"""

import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch
from pytorch_lightning.utilities import rank_zero_only

from biocnn.training.job import Job
from biocnn.training.pipeline import run_pipeline
from biocnn.training.runs import forget_launched
from pipelines import counting, pcam, tubularity

JOBS: dict[str, Job] = {module.JOB.name: module.JOB for module in (pcam, tubularity, counting)}
Command = tuple[str, list[str]]
"""Name of the job, and arguments of its command line, in which RANK stands for the number of the process."""

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([__name__])


def begin(
    commands: Sequence[Command], said: Path, processes: int = 1, codes: Sequence[int] | None = None
) -> list[ForkServerProcess]:
    """Start processes that run commands one after another, each a group of its own; `said` gets their output.

    Several find each other as those that torchrun starts. A command that ends with another code than its own of
    `codes`, which are all 0 when None, is the last one, and ends the process with a code that is not 0.
    """
    steps = list(zip(commands, codes or [0] * len(commands), strict=True))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [SERVER.Process(target=_run, args=(steps, said, rank, processes, port)) for rank in range(processes)]
    for process in started:
        process.start()
    return started


def end(processes: Sequence[ForkServerProcess], seconds: float = 240) -> list[int | None]:
    """Wait for processes; their exit codes, negative for the signal that killed them, None for those that went on."""
    for process in processes:
        process.join(seconds)
    codes = [process.exitcode for process in processes]
    for process in processes:
        kill(process)
    return codes


def kill(process: ForkServerProcess) -> None:
    """Kill a process and its workers, without warning."""
    if process.exitcode is None and process.pid is not None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:  # it has not come to making its group
            process.kill()
    process.join()


def run_in_processes(
    commands: Sequence[Command], folder: Path, processes: int = 2, codes: Sequence[int] | None = None
) -> str:
    """Run commands to their end in several processes, as :func:`begin`; returns all that they say."""
    said = folder / "said.txt"
    ends = end(begin(commands, said, processes, codes))
    assert ends == [0] * processes, f"{ends}\n{said.read_text()}"
    return said.read_text()


def _run(steps: Sequence[tuple[Command, int]], said: Path, rank: int, processes: int, port: int) -> None:
    os.setsid()
    # That of the server would be inherited, and workers would be children of the server, which outlive a kill.
    multiprocessing.set_start_method("fork", force=True)
    with open(said, "a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    torch.set_num_threads(1)
    more: list[str] = []
    if processes > 1:
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        own |= {"GROUP_RANK": 0, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in own.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", TORCHELASTIC_RUN_ID="biocnn")
        forget_launched()  # the server may have been started after a training that launched processes
        rank_zero_only.rank = rank  # found when Lightning is imported
        more = ["--trainer.devices", str(processes), "--trainer.strategy", "ddp"]
    for (job, arguments), expected in steps:
        code = run_pipeline(JOBS[job], [word.replace("RANK", str(rank)) for word in [*arguments, *more]])
        if code != expected:
            sys.exit(f"process {rank} ended with {code}, expected {expected}, after {arguments}")
