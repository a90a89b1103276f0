import hashlib
import json
import os
import sys
from pathlib import Path

import pytest
import torch

from biocnn.data.segmentation_module import SegmentationDataModule
from biocnn.errors import CheckpointError, DataError
from biocnn.training.pipeline import evaluation_checkpoint
from biocnn.training.runs import (
    chosen_run,
    find_last,
    forget_launched,
    make_room,
    new_run,
    open_validation,
    prediction_path,
    read_json,
    result_stamp,
    run_of,
    tell_launched,
    versions,
    write_run_record,
)
from tests.data.drawn import write_folder


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


@pytest.mark.parametrize("variable", ["RANK", "LOCAL_RANK", "SLURM_PROCID", "NODE_RANK"])
def test_processes_after_the_first_follow_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    (tmp_path / "pcam" / "a").mkdir(parents=True)
    (tmp_path / "pcam" / "a" / "config.yaml").write_text("")  # as the first process leaves it at once
    monkeypatch.setenv("BIOCNN_RUN_FOLDER", "an/older/run")
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "NODE_RANK"):
        monkeypatch.setenv(name, "0")
    with pytest.raises(DataError, match="holds a run already"):
        new_run(tmp_path, "pcam", "a")
    assert chosen_run() is None
    monkeypatch.setenv(variable, "1")
    assert new_run(tmp_path, "pcam", "a") == tmp_path / "pcam" / "a"
    assert chosen_run() == Path("an/older/run")
    monkeypatch.delenv("BIOCNN_RUN_FOLDER")  # started by torchrun or SLURM, not by the first process
    assert chosen_run() is None


def test_launched_processes_are_told_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BIOCNN_RUN_FOLDER", raising=False)
    tell_launched(tmp_path / "pcam" / "2026-01-01_000000")
    assert chosen_run() is None
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert chosen_run() == tmp_path / "pcam" / "2026-01-01_000000"
    forget_launched()
    assert chosen_run() is None


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


STAMP = {"manifest": "drawn", "split_hash": "01", "checkpoint": "ab"}


def put_results(folder: Path, **stamp: str) -> None:
    for name in ("maps", "masks", "figures"):
        (folder / name).mkdir(parents=True)
        (folder / name / "1.png").write_text("old")
    (folder / "predictions.csv").write_text("old")
    (folder / "metrics.csv").write_text("of the training")
    (folder / "metrics.json").write_text(json.dumps({**STAMP, **stamp, "dice": 0.8}))


def test_results_of_the_same_are_left_to_be_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_room(tmp_path / "new", STAMP, None)
    assert not (tmp_path / "new").exists()
    put_results(tmp_path)
    make_room(tmp_path, STAMP, read_json(tmp_path / "metrics.json"))
    assert (tmp_path / "maps" / "1.png").is_file()
    assert not (tmp_path / "previous").exists()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("changed", list(STAMP))
def test_results_of_something_else_are_moved_aside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: str
) -> None:
    put_results(tmp_path, **{changed: "other"})
    make_room(tmp_path, STAMP, read_json(tmp_path / "metrics.json"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.csv", "previous"]
    (aside,) = (tmp_path / "previous").iterdir()
    names = {"maps", "masks", "figures", "predictions.csv", "metrics.json"}
    assert {path.name for path in aside.iterdir()} == names
    assert (aside / "figures" / "1.png").read_text() == "old"
    assert f"was moved to {aside}" in capsys.readouterr().out


def test_results_without_their_numbers_are_moved_aside(tmp_path: Path) -> None:
    put_results(tmp_path)
    (tmp_path / "metrics.json").write_text("{torn")
    make_room(tmp_path, STAMP, read_json(tmp_path / "metrics.json"))
    make_room(tmp_path, STAMP, read_json(tmp_path / "metrics.json"))  # now there is nothing to move
    assert len(list((tmp_path / "previous").iterdir())) == 1


def test_stamp_of_results(tmp_path: Path) -> None:
    path = put(tmp_path / "a.ckpt")
    data = {"manifest": "drawn", "split_hash": "01", "seed": 3}
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert result_stamp(data, path) == {"manifest": "drawn", "split_hash": "01", "checkpoint": digest[:16]}


def test_predictions_get_a_new_path(tmp_path: Path) -> None:
    assert prediction_path(tmp_path, "lab/*.tif", "") == tmp_path / "predictions_lab"
    assert prediction_path(tmp_path, "lab", ".csv") == tmp_path / "predictions_lab.csv"
    assert prediction_path(tmp_path, "/data/day 1/b.tif", "") == tmp_path / "predictions_day 1_b"
    assert prediction_path(tmp_path, "**/*.tif", "") == tmp_path / "predictions"
    for number in ("", "_2"):
        (tmp_path / f"predictions_lab{number}").mkdir()
    assert prediction_path(tmp_path, "lab/*.tif", "") == tmp_path / "predictions_lab_3"
    assert prediction_path(tmp_path, "lab/*.tif", ".csv") == tmp_path / "predictions_lab.csv"


def test_only_the_validation_split_of_the_training_is_opened(tmp_path: Path) -> None:
    def module(folder: str, valid: int) -> SegmentationDataModule:
        manifest = write_folder(tmp_path / folder, {"train": 2, "valid": valid})
        return SegmentationDataModule(str(tmp_path / folder), manifest, tile_size=32, batch_size=2, num_workers=0)

    trained = module("a", 2)
    trained.setup("fit")
    opened = module("copy of a", 2)
    open_validation(opened, trained.describe(), tmp_path / "best.ckpt")
    assert opened.describe()["sizes"] == {"valid": 2}
    with pytest.raises(DataError, match=r"needed to complete .*best\.ckpt.*Give the --data\.root"):
        open_validation(module("b", 1), trained.describe(), tmp_path / "best.ckpt")
