"""The sbatch files and docs/cluster.md without a SLURM: what of them can be checked anywhere."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from biocnn.training.job import Job
from biocnn.training.pipeline import run_pipeline
from pipelines import counting, pcam, tubularity
from tests.pipelines.drawn_runs import ROOT

FOLDER = ROOT / "pipelines" / "slurm"
SBATCH = sorted(path.name for path in FOLDER.glob("*.sbatch"))
JOBS: dict[str, Job] = {f"pipelines/{module.JOB.name}.py": module.JOB for module in (pcam, tubularity, counting)}
DOCUMENT = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
BASH = shutil.which("bash") or ""

pytestmark = pytest.mark.skipif(not BASH, reason="there is no bash")


def bash(code: str, *arguments: str, code_expected: int = 0, **variables: str) -> str:
    done = subprocess.run(
        [BASH, "-c", code, "bash", *arguments],
        env={**os.environ, **variables}, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code_expected, done.stderr
    return done.stdout.strip() if code_expected == 0 else done.stderr


def commands() -> list[str]:
    """Of the document, without the lines that belong to bash itself."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line not in ("[ $? -eq 75 ] || break", "done")]


def options_of_the_document() -> dict[str, list[str]]:
    """What each script is given in the document, by its own commands and by the sbatch files, in one list."""
    found: dict[str, list[str]] = {}
    for command in commands():
        words = shlex.split(command.removeprefix("until ").removesuffix("; do"))
        variables = dict(word.split("=", 1) for word in words if re.match(r"[A-Z]+=", word))
        at = next((number for number, word in enumerate(words) if word.endswith(".sbatch")), None)
        if at is not None:
            config, options = words[at + 1], words[at + 2 :]
            script = variables.get("PIPELINE", config.replace(".yaml", ".py"))
            found.setdefault(script, []).extend(options)
        elif (at := next((number for number, word in enumerate(words) if word in JOBS), None)) is not None:
            assert words[at + 1] == "fit"
            found.setdefault(words[at], []).extend(words[at + 2 :])
    return found


@pytest.mark.parametrize("name", [*SBATCH, "job.sh", "stage.sh"])
def test_bash_reads_it(name: str) -> None:
    bash('bash -n "$1"', str(FOLDER / name))


@pytest.mark.parametrize("name", SBATCH)
def test_every_job_can_be_stopped_and_continued(name: str) -> None:
    text = (FOLDER / name).read_text(encoding="utf-8")
    given = dict(re.findall(r"^#SBATCH (--[\w-]+)(?:=(\S+))?$", text, re.MULTILINE))
    assert given["--signal"] == "TERM@120", "to the steps, so without B:"
    assert given["--open-mode"] == "append"
    assert "--requeue" in given
    assert {"--ntasks-per-node", "--nodes"} <= set(given), "from which Lightning knows the number of processes"
    assert "\nset -euo pipefail\n" in text


SCRIPTS = {name: name for name in ("counting", "pcam", "quickstart", "tubularity")}
SCRIPTS |= {"delineation": "tubularity", "marrow": "pcam"}


def test_every_configuration_has_its_script() -> None:
    assert {path.stem for path in (ROOT / "pipelines").glob("*.yaml")} == set(SCRIPTS)
    code = 'source pipelines/slurm/job.sh; set -e; for name in "$@"; do pipeline_of "pipelines/$name.yaml"; done'
    assert bash(code, *SCRIPTS, SLURM_JOB_ID="1").split() == [f"pipelines/{name}.py" for name in SCRIPTS.values()]


def test_a_configuration_without_a_script_is_named(tmp_path: Path) -> None:
    config = shutil.copy(ROOT / "pipelines" / "pcam.yaml", tmp_path / "mine.yaml")
    code = 'source pipelines/slurm/job.sh; set -e; pipeline_of "$1"'
    said = bash(code, str(config), code_expected=2, SLURM_JOB_ID="1")
    assert "PIPELINE=" in said
    assert bash(code, str(config), SLURM_JOB_ID="1", PIPELINE="pipelines/pcam.py") == "pipelines/pcam.py"


def stage(data: Path, disk: Path) -> Path:
    return Path(bash('bash pipelines/slurm/stage.sh "$1"', str(data), SLURM_TMPDIR=str(disk)))


@pytest.mark.skipif(shutil.which("flock") is None, reason="there is no flock, which is of Linux")
def test_staging_copies_once_whole_and_anew_when_data_change(tmp_path: Path) -> None:
    data, disk = tmp_path / "a b", tmp_path / "disk"
    (data / "train").mkdir(parents=True)
    (data / "train" / "0.bin").write_bytes(b"one")
    (data / "link.bin").symlink_to(data / "train" / "0.bin")
    disk.mkdir()
    copy = stage(data, disk)
    assert {path.relative_to(copy).as_posix() for path in copy.rglob("*")} == {"train", "train/0.bin", "link.bin"}
    assert (copy / "link.bin").read_bytes() == b"one"
    assert not (copy / "link.bin").is_symlink(), "a copy does not lead back to the shared disk"
    made = copy.stat().st_mtime_ns, copy.stat().st_ino
    assert stage(data, disk) == copy
    assert (copy.stat().st_mtime_ns, copy.stat().st_ino) == made
    (data / "train" / "1.bin").write_bytes(b"two")
    # Of an earlier copy that was interrupted: a file cut short, and one that is no more.
    changed = stage(data, tmp_path / "elsewhere").name
    part = disk / copy.parent.name / f"{changed}.part"
    (part / "train").mkdir(parents=True)
    (part / "train" / "1.bin").write_bytes(b"t")
    (part / "gone.bin").write_bytes(b"x")
    second = stage(data, disk)
    assert second != copy
    assert second.name == changed
    assert (second / "train" / "1.bin").read_bytes() == b"two"
    assert not (second / "gone.bin").exists()
    assert not part.exists()


@pytest.mark.skipif(shutil.which("flock") is None, reason="there is no flock, which is of Linux")
def test_jobs_that_stage_together_share_one_copy(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for number in range(50):
        (data / str(number)).write_bytes(bytes(1000 * number))
    code = 'for i in 1 2 3 4; do bash pipelines/slurm/stage.sh "$1" & done; wait'
    places = bash(code, str(data), SLURM_TMPDIR=str(tmp_path)).splitlines()
    assert len(places) == 4
    (copy,) = set(map(Path, places))
    assert {path.name: path.stat().st_size for path in copy.iterdir()} == {str(n): 1000 * n for n in range(50)}


def test_the_document_has_a_command_for_every_sbatch_file() -> None:
    named = {Path(word).name for command in commands() for word in shlex.split(command) if word.endswith(".sbatch")}
    assert named == set(SBATCH)
    for command in commands():
        for word in shlex.split(command):
            if word.startswith(("pipelines/", "tests/")):
                assert (ROOT / word.removesuffix(";")).exists(), command


@pytest.mark.parametrize("script", sorted(options_of_the_document()))
def test_the_document_gives_options_that_there_are(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = script.replace(".py", ".yaml")
    with pytest.raises(SystemExit) as stopped:
        run_pipeline(JOBS[script], ["fit", "--config", config, *options_of_the_document()[script], "--print_config"])
    said = capsys.readouterr()
    assert stopped.value.code in (None, 0), said.err
    assert "seed_everything" in said.out


@pytest.mark.parametrize("command", [command for command in commands() if " --array " in command])
def test_arrays_of_the_document_count_folds_by_seeds(command: str) -> None:
    folds, seeds = (re.search(rf'{name}="?([\d ]*)"? ', command) for name in ("FOLDS", "SEEDS"))
    last = re.search(r"--array 0-(\d+)", command)
    assert folds
    assert seeds
    assert last
    assert int(last[1]) + 1 == max(1, len(folds[1].split())) * len(seeds[1].split())


def test_links_of_the_document_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)]+)\)", DOCUMENT)
    assert [link for link in links if "://" not in link and not (ROOT / "docs" / link).exists()] == []
