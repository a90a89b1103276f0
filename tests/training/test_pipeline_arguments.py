"""What a checkpoint may say on the command line of an evaluation."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from biocnn.errors import CheckpointError
from biocnn.tasks.classification import ClassificationTask
from biocnn.tasks.segmentation import SegmentationTask
from biocnn.training.pipeline import Job, PipelineCLI, arguments_from_checkpoint, run_pipeline
from pipelines.counting import JOB as COUNTING
from pipelines.pcam import JOB
from pipelines.tubularity import JOB as TUBULARITY

LENET: dict[str, Any] = {"class_path": "biocnn.networks.LeNet5", "init_args": {}}


def stored(path: Path, network: object = LENET, task: str = "ClassificationTask", **settings: object) -> Path:
    """A checkpoint without weights; the setting `name_` is stored as `name`, so that it may be any."""
    settings = {name.removesuffix("_"): value for name, value in settings.items()}
    section = {"format": 1, "task": task, "network": network, "network_name": "N", "settings": settings}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {}, "biocnn": section}, path)
    return path


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module `trap_module`, which leaves a file when it is imported; returns the path of that file."""
    sprung = tmp_path / "sprung"
    code = f"from pathlib import Path\nPath({str(sprung)!r}).touch()\n\n\nclass Trap:\n    pass\n"
    (tmp_path / "trap_module.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "trap_module", raising=False)
    return sprung


def test_arguments_of_a_test_come_from_the_checkpoint(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.ckpt", lr=0.1, image_mean=[0.5])
    args = ["test", "--ckpt_path", str(path), "--config", "x.yaml"]
    assert (
        arguments_from_checkpoint(JOB, args)
        == [
            "test",
            "--model.lr=0.1",  # a default, which the user's arguments may change
            *args[1:],
            "--model.image_mean=[0.5]",  # belongs to the weights, and wins
            "--model.network=torch.nn.Identity",  # holds the place of the network, which is not made by the parser
        ]
    )
    assert arguments_from_checkpoint(JOB, ["fit", "--ckpt_path", "last"]) == ["fit", "--ckpt_path", "last"]
    assert arguments_from_checkpoint(JOB, ["test", "--help"]) == ["test", "--help"]


def test_regions_may_be_named_without_the_group_of_their_argument() -> None:
    for said, meant in ((["--rois", "a.zip"], ["--data.rois", "a.zip"]), (["--rois=--rois"], ["--data.rois=--rois"])):
        assert arguments_from_checkpoint(COUNTING, ["fit", *said]) == ["fit", *meant]
        assert arguments_from_checkpoint(JOB, ["fit", *said]) == ["fit", *said]  # which has no regions
    others = ["fit", "--data.rois", "rois", "--data.images=--rois"]
    assert arguments_from_checkpoint(COUNTING, others) == others


def test_a_network_without_a_description_needs_the_config(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.ckpt", None)
    with pytest.raises(CheckpointError, match="Give the --config"):
        arguments_from_checkpoint(JOB, ["test", f"--ckpt_path={path}"])
    args = ["test", f"--ckpt_path={path}", "-c", "x.yaml"]
    assert arguments_from_checkpoint(JOB, args) == args


@pytest.mark.parametrize("job", [JOB, TUBULARITY], ids=["pcam", "tubularity"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("loss", {"class_path": "trap_module.Trap"}),
        ("loss", "trap_module.Trap"),
        ("network", {"class_path": "trap_module.Trap"}),
        ("loss.init_args", 1),
        ("lr", {"class_path": "trap_module.Trap"}),
        ("image_mean", [{"class_path": "trap_module.Trap"}]),
        ("image_mean", [[0.5]]),
        ("not_a_setting", 1),
        ("__init__", 1),
    ],
)
def test_only_plain_settings_of_the_task_are_taken(
    tmp_path: Path, trap: Path, capsys: pytest.CaptureFixture[str], job: Job, name: str, value: object
) -> None:
    path = stored(tmp_path / "a.ckpt", task=job.task.__name__, **{"weight_decay": 0.5, f"{name}_": value})
    assert run_pipeline(job, ["test", "--ckpt_path", str(path)]) == 2
    error = capsys.readouterr().err
    assert f"the setting {name!r}" in error
    assert "Traceback" not in error
    assert not trap.exists()


@pytest.mark.parametrize("job", [JOB, TUBULARITY], ids=["pcam", "tubularity"])
@pytest.mark.parametrize(
    "network",
    [
        {"class_path": "os.system", "init_args": {}},
        {"class_path": "trap_module.Trap", "init_args": {}},
        {"class_path": "torchvision.models.get_model", "init_args": {"name": "resnet18"}},
        {"class_path": "biocnn.networks.LeNet5", "init_args": {"a": {"class_path": "trap_module.Trap"}}},
        {"class_path": "biocnn.networks.LeNet5", "init_args": {"a": [{"b": {"class_path": "trap_module.Trap"}}]}},
        {"class_path": "biocnn.networks.LeNet5", "init_args": ["trap_module.Trap"]},
        {"init_args": {}},
        "trap_module.Trap",
    ],
)
def test_networks_that_would_not_be_built_are_refused(
    tmp_path: Path, trap: Path, capsys: pytest.CaptureFixture[str], job: Job, network: object
) -> None:
    path = stored(tmp_path / "a.ckpt", network, task=job.task.__name__)
    assert run_pipeline(job, ["test", "--ckpt_path", str(path)]) == 2
    error = capsys.readouterr().err
    assert f"{path} names no network that can be made from its name" in error
    assert "Traceback" not in error
    assert not trap.exists()


def test_no_name_among_the_arguments_of_a_network_is_imported(tmp_path: Path, trap: Path) -> None:
    # `norm_layer` is annotated as a callable: jsonargparse would import what a string names, and pass it on.
    network = {
        "class_path": "torchvision.models.resnet18",
        "init_args": {"num_classes": 1, "norm_layer": "trap_module.Trap"},
    }
    path = stored(tmp_path / "a.ckpt", network)
    args = arguments_from_checkpoint(JOB, ["test", "--ckpt_path", str(path)])
    with pytest.raises(TypeError, match="not callable"):
        PipelineCLI(JOB, args)
    assert not trap.exists()


def test_a_checkpoint_of_another_job_is_named(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"a\.ckpt holds a ClassificationTask, expected a SegmentationTask"):
        arguments_from_checkpoint(TUBULARITY, ["predict", "--ckpt_path", str(path)])
    path = stored(tmp_path / "b.ckpt", task="SegmentationTask")
    with pytest.raises(CheckpointError, match=r"b\.ckpt holds a SegmentationTask, expected a ClassificationTask"):
        arguments_from_checkpoint(JOB, ["validate", "--ckpt_path", str(path)])


def test_the_settings_that_tasks_store_are_all_taken(tmp_path: Path) -> None:
    network = torch.nn.Identity()
    for job, task in ((JOB, ClassificationTask(network)), (TUBULARITY, SegmentationTask(network))):
        path = stored(tmp_path / "a.ckpt", LENET, job.task.__name__, **task.settings())
        args = arguments_from_checkpoint(job, ["test", "--ckpt_path", str(path)])
        names = {arg.partition("=")[0] for arg in args if arg.startswith("--model.")}
        assert names == {f"--model.{name}" for name in task.settings()} | {"--model.network"}


def test_run_and_folder_may_be_said_in_the_config(tmp_path: Path) -> None:
    run = Path("pcam", "r", "checkpoints", "best.ckpt")
    one, two = stored(tmp_path / "1" / run, lr=0.1), stored(tmp_path / "2" / run, lr=0.2)
    written = {"trainer": {"default_root_dir": str(tmp_path / "1")}, "run": "r", "ckpt_path": None}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(written))
    config = ["--config", str(tmp_path / "config.yaml")]
    assert "--model.lr=0.1" in arguments_from_checkpoint(JOB, ["test", *config])
    assert "--model.lr=0.1" in arguments_from_checkpoint(JOB, ["test", f"--config={config[1]}"])
    # What is said later counts, as in jsonargparse.
    root = ["--trainer.default_root_dir", str(tmp_path / "2")]
    assert "--model.lr=0.2" in arguments_from_checkpoint(JOB, ["test", *config, *root])
    assert "--model.lr=0.1" in arguments_from_checkpoint(JOB, ["test", *root, *config])
    assert "--model.lr=0.2" in arguments_from_checkpoint(JOB, ["test", *config, "--ckpt_path", str(two)])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**written, "run": "missing", "ckpt_path": str(one)}))
    assert "--model.lr=0.1" in arguments_from_checkpoint(JOB, ["test", *config])
