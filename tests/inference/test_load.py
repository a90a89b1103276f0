import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn

import biocnn
from biocnn.checkpoints import read_checkpoint, update_biocnn_section
from biocnn.errors import CheckpointError, DataError
from biocnn.metrics.calibration import Calibration
from biocnn.networks import LeNet5, SmallDenseNet
from biocnn.tasks.classification import ClassificationTask


class OwnNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.linear(image.mean((2, 3)))


def save(path: Path, task: ClassificationTask) -> Path:
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.strategy.connect(task)
    trainer.save_checkpoint(path)
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    task = ClassificationTask(SmallDenseNet(layers=(1, 1)), image_mean=(0.7, 0.5, 0.7), image_std=(0.2, 0.3, 0.2))
    task.calibration = Calibration(temperature=1.7, threshold=0.3, kept=True)
    task.data_description = {"classes": ["normal", "tumour"], "pixel_size_um": [0.97, 0.97], "patch_size": [96, 96]}
    return save(tmp_path / "best.ckpt", task)


PATCHES = np.random.default_rng(0).integers(0, 255, (5, 96, 96, 3), dtype=np.uint8)


def test_predicts_what_the_parts_give_by_hand(checkpoint: Path) -> None:
    model = biocnn.load(checkpoint)
    state = read_checkpoint(checkpoint)["state_dict"]
    network = SmallDenseNet(layers=(1, 1))
    network.load_state_dict({name.removeprefix("network."): value for name, value in state.items()})
    network.eval()
    image = torch.from_numpy(PATCHES).permute(0, 3, 1, 2) / 255.0
    image = (image - torch.tensor([0.7, 0.5, 0.7]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.2]).view(3, 1, 1)
    with torch.inference_mode():
        logits = [network(torch.rot90(x, turns, (2, 3)))[:, 0] for x in (image, image.flip(3)) for turns in range(4)]
    by_hand = torch.sigmoid(torch.stack(logits).mean(0) / 1.7).numpy()
    found = model.predict(PATCHES)
    np.testing.assert_allclose(found, by_hand, atol=1e-6)  # float32 sums in another order
    assert found.shape == (5,)
    assert model.threshold == 0.3
    assert model.classes == ("normal", "tumour")
    assert model.pixel_size_um == (0.97, 0.97)
    probability, spread = model.predict_with_spread(PATCHES, batch_size=2)
    np.testing.assert_allclose(probability, found, atol=1e-6)
    assert (spread > 0).all()
    assert model.predict(PATCHES[:0]).shape == (0,)


def test_wrong_patches_are_refused(checkpoint: Path) -> None:
    model = biocnn.load(checkpoint)
    with pytest.raises(DataError, match=r"Expected uint8 patches .* received \(5, 96, 96, 3\) float64"):
        model.predict(PATCHES / 255)
    with pytest.raises(DataError, match=r"1 channel\(s\) \(0\), the model was trained on 3"):
        model.predict(PATCHES[0, ..., 0])
    with pytest.raises(DataError, match="trained on patches of 96x96 px, received 64x64"):
        model.predict(PATCHES[:, :64, :64])


def test_own_network_is_passed(tmp_path: Path) -> None:
    task = ClassificationTask(OwnNetwork())
    path = save(tmp_path / "own.ckpt", task)
    with pytest.raises(CheckpointError, match=r"weights of a OwnNetwork.*biocnn\.load\(path, network="):
        biocnn.load(path)
    model = biocnn.load(path, network=OwnNetwork())
    assert torch.equal(model.task.network.linear.weight, task.network.linear.weight)
    with pytest.raises(CheckpointError, match="do not fit LeNet5"):
        biocnn.load(path, network=LeNet5())


def test_names_in_the_file_are_resolved_in_trusted_packages_only(checkpoint: Path, tmp_path: Path) -> None:
    update_biocnn_section(checkpoint, network={"class_path": "subprocess.Popen", "init_args": {"args": "true"}})
    with pytest.raises(CheckpointError, match=r"'subprocess\.Popen' is not made by name"):
        biocnn.load(checkpoint)


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "biocnn": _Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError, match="never loaded") as caught:
        biocnn.load(tmp_path / "evil.ckpt")
    assert "weights_only" not in str(caught.value)  # torch tells how to load such a file all the same
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/best.ckpt", "https://x/y.ckpt", "file:///tmp/x.ckpt"])
def test_addresses_are_refused(address: str) -> None:
    with pytest.raises(CheckpointError, match="is a URL"):
        biocnn.load(address)


def test_foreign_torn_and_missing_files_are_named(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        biocnn.load(tmp_path / "missing.ckpt")
    torn = tmp_path / "torn.ckpt"
    torn.write_bytes(checkpoint.read_bytes()[:-2000])
    with pytest.raises(CheckpointError, match=r"torn\.ckpt cannot be read as a checkpoint"):
        biocnn.load(torn)
    torch.save({"a": 1}, tmp_path / "weights.ckpt")
    with pytest.raises(CheckpointError, match="not a Lightning checkpoint"):
        biocnn.load(tmp_path / "weights.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    with pytest.raises(CheckpointError, match="not written by biocnn"):
        biocnn.load(tmp_path / "foreign.ckpt")
    update_biocnn_section(checkpoint, format=99)
    with pytest.raises(CheckpointError, match="has format 99"):
        biocnn.load(checkpoint)
