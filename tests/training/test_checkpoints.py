import os
import resource
from pathlib import Path

import pytest
import torch

from biocnn.checkpoints import AtomicCheckpointIO, read_checkpoint, remove_torn_files, update_biocnn_section
from biocnn.errors import CheckpointError


def checkpoint(value: float = 1.0) -> dict[str, object]:
    return {"state_dict": {"w": torch.full((1000,), value)}, "biocnn": {"format": 1, "calibration": None}}


def test_round_trip(tmp_path: Path) -> None:
    io = AtomicCheckpointIO()
    io.save_checkpoint(checkpoint(), tmp_path / "a.ckpt")
    assert torch.equal(io.load_checkpoint(tmp_path / "a.ckpt")["state_dict"]["w"], torch.ones(1000))
    update_biocnn_section(tmp_path / "a.ckpt", calibration={"temperature": 2.0})
    assert read_checkpoint(tmp_path / "a.ckpt")["biocnn"] == {"format": 1, "calibration": {"temperature": 2.0}}
    io.remove_checkpoint(tmp_path / "a.ckpt")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    io = AtomicCheckpointIO()
    io.save_checkpoint(checkpoint(1.0), tmp_path / "a.ckpt")
    with pytest.raises(AttributeError, match=r"local object|pickle"):
        io.save_checkpoint({"state_dict": {"w": torch.zeros(10**6)}, "bad": lambda: None}, tmp_path / "a.ckpt")
    assert read_checkpoint(tmp_path / "a.ckpt")["state_dict"]["w"][0] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    """A limit on the size of files makes writes fail as a full disk does."""
    AtomicCheckpointIO().save_checkpoint(checkpoint(1.0), tmp_path / "a.ckpt")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises((OSError, RuntimeError)):  # torch's own, of its zip writer
            AtomicCheckpointIO().save_checkpoint({"state_dict": {"w": torch.zeros(10**6)}}, tmp_path / "a.ckpt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_checkpoint(tmp_path / "a.ckpt")["state_dict"]["w"][0] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


def test_temporary_file_lies_beside_the_target_and_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append(f"replace in {Path(a).parent}"), replace(a, b)))
    AtomicCheckpointIO().save_checkpoint(checkpoint(), tmp_path / "a.ckpt")
    assert events == ["fsync", f"replace in {tmp_path}"]


def test_files_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    AtomicCheckpointIO().save_checkpoint(checkpoint(), tmp_path / "last.ckpt")
    torn = tmp_path / ".last.0123abcd.part.ckpt"
    torn.write_bytes(b"half")
    assert remove_torn_files(tmp_path) == [torn]
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_lightnings_own_loading_refuses_addresses(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a URL"):
        AtomicCheckpointIO().load_checkpoint("http://127.0.0.1:9/a.ckpt")
