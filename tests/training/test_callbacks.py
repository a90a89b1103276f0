import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from biocnn.training.callbacks import EMA, RandomStates, RunCheckpoint, checkpoint_callbacks


class Line(pl.LightningModule):
    """Moves its weight by 1 in every step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.validated: list[float] = []

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.count += 1
        return -self.weight.sum()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.validated.append(self.weight.item())
        self.log("score", self.weight.sum())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1.0)


def fit(callbacks: list[Any], steps: int = 20, **arguments: Any) -> Line:
    model = Line()
    quiet: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        **quiet, max_epochs=1, callbacks=callbacks, enable_model_summary=False, num_sanity_val_steps=0, **arguments
    )
    trainer.fit(model, DataLoader(torch.zeros(steps, 1)), DataLoader(torch.zeros(1, 1)))
    return model


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_average_follows_its_recursion(decay: float) -> None:
    model = fit([EMA(decay)], enable_checkpointing=False)
    expected = 1.0  # the first update copies the weight after the first step
    for t in range(1, 20):
        factor = min(decay, (1 + t) / (10 + t))
        expected = factor * expected + (1 - factor) * (t + 1)
    # The model ends with the averaged weight, and was validated with it.
    assert model.weight.item() == pytest.approx(expected, rel=1e-5)
    assert model.validated == [pytest.approx(expected, rel=1e-5)]
    assert int(model.count) == 20  # whole numbers are copied, not averaged


def test_decay_is_checked() -> None:
    with pytest.raises(ValueError, match=r"decay must be in 0\.\.1, received 1\.0"):
        EMA(1.0)


def test_random_states_are_plain_and_come_back(tmp_path: Path) -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    callback = RandomStates()
    state = callback.state_dict()
    expected = draw()
    torch.save(state, tmp_path / "state.pt")
    draw()
    other = RandomStates()
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert draw() != expected  # loading alone changes nothing: loaders are still to be made
    other.on_train_start(None, None)  # type: ignore[arg-type]
    assert draw() == expected


def test_checkpoints_have_stable_names(tmp_path: Path) -> None:
    fit(checkpoint_callbacks(tmp_path, "score", "max", every_n_steps=7))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.ckpt", "last.ckpt"]
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert last["global_step"] == 20


def test_best_score_survives_a_renamed_folder(tmp_path: Path) -> None:
    old = RunCheckpoint(dirpath=tmp_path / "old", monitor="score", mode="max")
    old.best_model_score = torch.tensor(0.9)
    old.best_model_path = str(tmp_path / "old" / "best.ckpt")
    old.best_k_models = {old.best_model_path: old.best_model_score}
    old.kth_best_model_path, old.kth_value = old.best_model_path, old.best_model_score
    new = RunCheckpoint(dirpath=tmp_path / "new", monitor="score", mode="max")
    new.load_state_dict(old.state_dict())
    assert new.best_model_score == pytest.approx(0.9)
    assert new.best_model_path == str(tmp_path / "new" / "best.ckpt")
    assert list(new.best_k_models) == [new.best_model_path]
