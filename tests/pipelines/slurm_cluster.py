"""A SLURM of two drawn nodes with eight drawn GPUs each, all of it on this machine and in one temporary folder."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.pipelines.drawn_runs import ENVIRONMENT, ROOT

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "sinfo", "scancel")
NODES = ("node1", "node2")
UNDER_WAY = ("PENDING", "CONFIGURING", "RUNNING", "SIGNALING", "COMPLETING")
"""States of a job that has not ended."""
# Any device files will do for GPUs: nothing opens them.
GPUS = "NodeName=node[1-2] Name=gpu File=/dev/tty[1-8]\n"
CONF = """
ClusterName=drawn
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
JobRequeue=1
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=64 RealMemory=1000000 Gres=gpu:8
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=64 RealMemory=1000000 Gres=gpu:8
PartitionName=main Nodes=ALL Default=YES State=UP
"""


def cannot_run() -> str:
    """Why there can be no cluster here; empty if there can."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"SLURM is not installed ({', '.join(absent)}): apt-get install slurm-wlm munge"
    if os.geteuid() != 0:
        return "the daemons of SLURM have to be started by root"
    return "" if Path("/dev/tty8").exists() else "there are no device files that could stand for GPUs"


def wait_until(what: str, condition: Callable[[], bool], seconds: float) -> None:
    """Ask again and again, as a user looks at the queue: the daemons tell nobody when they are done."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not in {seconds} s: {what}"
        time.sleep(0.2)


@dataclass(frozen=True)
class Cluster:
    """The daemons that run.

    Attributes:
        folder: of the configuration, the state and the logs of jobs.
        environment: of a user's shell, whose Python is the one of the tests.
    """

    folder: Path
    environment: dict[str, str]

    def call(self, *command: str, **more: str) -> str:
        """Run a command of SLURM in the checkout, with more environment variables; returns what it says."""
        done = subprocess.run(
            command, env={**self.environment, **more}, cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def submit(self, script: str, *arguments: str, options: Sequence[str] = (), **variables: str) -> str:
        """Submit a file of pipelines/slurm as it is; returns the id of the job."""
        output = str(self.folder / "%A_%a.out" if script == "array.sbatch" else self.folder / "%j.out")
        command = ("sbatch", "--parsable", "--output", output, *options, f"pipelines/slurm/{script}", *arguments)
        return self.call(*command, **variables)

    def said(self, job: str) -> str:
        """The log of a job."""
        path = self.folder / f"{job}.out"
        return path.read_text(errors="replace") if path.exists() else ""

    def shown(self, job: str, field: str) -> str:
        """A field of what SLURM knows of a job."""
        words = self.call("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)[field]

    def wait_for(self, job: str, state: str, seconds: float = 900) -> None:
        """Wait for a state of a job."""

        def reached() -> bool:
            now = self.shown(job, "JobState")
            assert now in (state, *UNDER_WAY), f"{now}: {self.said(job)}"
            return now == state

        wait_until(f"job {job} is {state}", reached, seconds)

    def wait_for_line(self, job: str, line: str, count: int = 1, seconds: float = 900) -> None:
        """Wait for what a job says, so many times."""

        def there() -> bool:
            assert self.shown(job, "JobState") in UNDER_WAY, self.said(job)
            return self.said(job).count(line) >= count

        wait_until(f"job {job} says {line!r}", there, seconds)

    def continue_at_once(self, job: str) -> None:
        """Let a job that is back in the queue begin now, with time enough: SLURM lets it wait for two minutes."""
        self.wait_for(job, "PENDING")
        assert self.shown(job, "Restarts") == "1"
        self.call("scontrol", "update", f"JobId={job}", "StartTime=now", "TimeLimit=60")


@contextmanager
def running(program: Sequence[str], environment: dict[str, str], log: Path) -> Iterator[None]:
    """A daemon in the foreground, which is ended in any case."""
    with log.open("w") as handle:
        process = subprocess.Popen(program, env=environment, stdout=handle, stderr=subprocess.STDOUT)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_ports(number: int) -> list[int]:
    """Ports of the loopback that nobody listens at."""
    with ExitStack() as sockets:
        opened = [sockets.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)]
        return [each.getsockname()[1] for each in opened]


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Start the daemons, and end them and what they run whatever happens."""
    with ExitStack() as stack:
        # A path of its own: names of sockets are short, and munged looks at the owners of the folders above.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm_", ignore_cleanup_errors=True)))
        (folder / "state").mkdir()
        host = socket.gethostname().split(".")[0]
        (folder / "slurm.conf").write_text(CONF.format(folder=folder, host=host, ports=free_ports(3)))
        (folder / "gres.conf").write_text(GPUS)
        (folder / "key").write_bytes(os.urandom(1024))
        (folder / "key").chmod(0o400)
        environment = {
            **ENVIRONMENT,
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{Path(sys.executable).parent}:{ENVIRONMENT['PATH']}",
            "MASTER_ADDR": "127.0.0.1",  # the names of drawn nodes lead nowhere
        }
        environment = {name: value for name, value in environment.items() if not name.startswith("SLURM_JOB")}
        files = {"key": "key", "socket": "munge.socket", "pid": "munge.pid", "log": "munge.log", "seed": "munge.seed"}
        munge = [f"--{name}-file={folder / file}" for name, file in files.items() if name != "socket"]
        munged = ["munged", "--foreground", "--force", f"--socket={folder / 'munge.socket'}", *munge]
        stack.enter_context(running(munged, environment, folder / "munged.out"))
        wait_until("munged listens", (folder / "munge.socket").exists, 60)
        stack.enter_context(running(["slurmctld", "-D", "-c"], environment, folder / "slurmctld.out"))
        for node in NODES:
            (folder / f"spool-{node}").mkdir()
            stack.enter_context(running(["slurmd", "-D", "-N", node], environment, folder / f"{node}.out"))
        made = Cluster(folder, environment)
        stack.callback(_empty, made)
        wait_until("the nodes are idle", lambda: _states(made) == {"idle"}, 60)
        yield made


def _states(made: Cluster) -> set[str]:
    done = subprocess.run(
        ["sinfo", "-h", "-N", "-o", "%T"], env=made.environment, capture_output=True, text=True, check=False
    )
    return set(done.stdout.split())


def _empty(made: Cluster) -> None:
    """Cancel what still runs, and wait for it."""
    made.call("scancel", "--user", "root")
    wait_until("the queue is empty", lambda: made.call("squeue", "--noheader") == "", 60)
