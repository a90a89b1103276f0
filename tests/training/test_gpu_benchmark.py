import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("job", "lines"),
    [
        ("counting", 7),
        pytest.param("tubularity", 7, marks=pytest.mark.slow),
        pytest.param("pcam", 8, marks=pytest.mark.slow),
    ],
)
def test_the_benchmark_runs_without_a_gpu_and_says_what_that_means(job: str, lines: int) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--jobs", job, "--workers", "0"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    where, *found = [json.loads(line) for line in done.stdout.splitlines()]
    assert where["note"] == "no GPU, tiny sizes: these numbers mean nothing"
    assert len(found) == lines
    assert all(line["job"] == job and line["images_per_s"] > 0 for line in found)
    pipeline = next(line for line in found if line["contestant"] == "pipeline, bf16")
    loop = next(line for line in found if line["contestant"] == "loop, bf16, channels last")
    assert pipeline["share"] == pytest.approx(pipeline["images_per_s"] / loop["images_per_s"], rel=0.05)
    assert 0 <= pipeline["data_wait_share"] <= 1
