import json
import os
import sys
from pathlib import Path

import pytest
import torch

from biocnn.errors import CheckpointError, DataError
from biocnn.training.pipeline import arguments_from_checkpoint, evaluation_checkpoint
from biocnn.training.runs import find_last, new_run, run_of, versions, write_run_record


def put(path: Path, age: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {}}, path)
    for touched in (path, path.parent, path.parent.parent):
        os.utime(touched, ns=(10**18 - age * 10**9,) * 2)
    return path


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    first = new_run(tmp_path, "pcam", "a")
    assert first == tmp_path / "pcam" / "a"
    assert not first.exists()  # a start that fails leaves nothing behind
    first.mkdir(parents=True)
    (first / "config.yaml").write_text("")
    with pytest.raises(DataError, match=r"holds a run already\. Choose another --run"):
        new_run(tmp_path, "pcam", "a")
    unnamed = new_run(tmp_path, "pcam")
    unnamed.mkdir()
    (unnamed / "config.yaml").write_text("")
    assert new_run(tmp_path, "pcam") != unnamed


def test_the_newest_whole_checkpoint_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert find_last(tmp_path, "pcam") == (None, None)
    put(tmp_path / "pcam" / "old" / "checkpoints" / "last.ckpt", age=100)
    best = put(tmp_path / "pcam" / "new" / "checkpoints" / "best.ckpt", age=20)
    last = put(tmp_path / "pcam" / "new" / "checkpoints" / "last.ckpt", age=10)
    assert find_last(tmp_path, "pcam") == (tmp_path / "pcam" / "new", last)
    assert find_last(tmp_path, "pcam", "old")[0] == tmp_path / "pcam" / "old"
    last.write_bytes(last.read_bytes()[:100])
    assert find_last(tmp_path, "pcam") == (tmp_path / "pcam" / "new", best)
    assert "Passed over" in capsys.readouterr().err
    best.unlink()
    (tmp_path / "pcam" / "new" / "config.yaml").write_text("")
    assert find_last(tmp_path, "pcam") == (tmp_path / "pcam" / "new", None)
    (tmp_path / "pcam" / "empty").mkdir()
    (tmp_path / "pcam" / "old" / "metrics.json").write_text("{}")  # tested later than the other was trained
    assert find_last(tmp_path, "pcam")[0] == tmp_path / "pcam" / "new"


def test_what_an_evaluation_takes(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="There is no finished run in"):
        evaluation_checkpoint(None, tmp_path, "pcam", None)
    best = put(tmp_path / "pcam" / "a" / "checkpoints" / "best.ckpt", age=20)
    last = put(tmp_path / "pcam" / "a" / "checkpoints" / "last.ckpt")
    assert evaluation_checkpoint(None, tmp_path, "pcam", None) == best
    assert evaluation_checkpoint("best", tmp_path, "pcam", None) == best
    assert evaluation_checkpoint("last", tmp_path, "pcam", None) == last
    assert evaluation_checkpoint("x.ckpt", tmp_path, "pcam", None) == "x.ckpt"
    (tmp_path / "pcam" / "a" / "config.yaml").write_text("")
    assert run_of(best) == tmp_path / "pcam" / "a"
    assert run_of(Path("folder/x.ckpt")) == Path("folder/x_results")  # never among a user's own files
    assert run_of(Path("folder/checkpoints/x.ckpt")) == Path("folder/checkpoints/x_results")


def stored(tmp_path: Path, network: dict[str, object] | None) -> Path:
    section = {"format": 1, "network": network, "network_name": "N", "settings": {"lr": 0.1, "image_mean": [0.5]}}
    torch.save({"state_dict": {}, "biocnn": section}, tmp_path / "a.ckpt")
    return tmp_path / "a.ckpt"


def test_arguments_of_a_test_come_from_the_checkpoint(tmp_path: Path) -> None:
    path = stored(tmp_path, {"class_path": "biocnn.networks.LeNet5", "init_args": {}})
    args = ["test", "--ckpt_path", str(path), "--config", "x.yaml"]
    assert (
        arguments_from_checkpoint("pcam", args)
        == [
            "test",
            "--model.lr=0.1",  # a default, which the user's arguments may change
            *args[1:],
            "--model.image_mean=[0.5]",  # belongs to the weights, and wins
            '--model.network={"class_path": "biocnn.networks.LeNet5", "init_args": {}}',
        ]
    )
    assert arguments_from_checkpoint("pcam", ["fit", "--ckpt_path", "last"]) == ["fit", "--ckpt_path", "last"]
    assert arguments_from_checkpoint("pcam", ["test", "--help"]) == ["test", "--help"]


def test_untrusted_networks_of_a_checkpoint_are_not_made(tmp_path: Path) -> None:
    path = stored(tmp_path, {"class_path": "os.system", "init_args": {}})
    with pytest.raises(CheckpointError, match=r"names the network 'os\.system', which is not trusted"):
        arguments_from_checkpoint("pcam", ["test", f"--ckpt_path={path}"])
    path = stored(tmp_path, None)
    with pytest.raises(CheckpointError, match="Give the --config"):
        arguments_from_checkpoint("pcam", ["test", f"--ckpt_path={path}"])


def test_record_keeps_those_of_earlier_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["pipelines/pcam.py", "fit", "--data.root", "a b"])
    for seed in (1, 2, 3):
        write_run_record(tmp_path, seed, {"split_hash": "0123"}, "LeNet5", 10)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["seed"] == 3
    assert [earlier["seed"] for earlier in record["resumed_from"]] == [1, 2]
    assert record["command"].endswith("pipelines/pcam.py fit --data.root 'a b'")
    assert record["data"] == {"split_hash": "0123"}
    assert record["versions"]["torch"] == torch.__version__
    assert set(versions()) >= {"python", "biocnn", "torch", "pytorch-lightning", "albumentations", "numpy"}
