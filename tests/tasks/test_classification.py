import itertools
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from sklearn.metrics import log_loss, roc_auc_score
from torch import nn
from torch.utils.data import DataLoader

from biocnn.networks import LeNet5
from biocnn.tasks.base import warmup_cosine
from biocnn.tasks.classification import ClassificationTask


class MeanNetwork(nn.Module):
    """Logit = weight * mean + bias: small enough to do by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.tensor([[2.0]])), nn.Parameter(torch.tensor([0.1]))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.mean((1, 2, 3))[:, None] * self.weight + self.bias


def batches(count: int = 4, size: int = 10) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for number in range(count):
        image = torch.rand(size, 3, 4, 4, generator=generator)
        label = torch.randint(0, 2, (size,), generator=generator)
        made.append({"image": image, "label": label, "index": torch.arange(size) + size * number})
    return made


def trainer(**arguments: Any) -> pl.Trainer:
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return pl.Trainer(**(quiet | arguments))


def loader(items: list[dict[str, Any]]) -> DataLoader[Any]:
    return DataLoader(items, batch_size=None)  # type: ignore[arg-type]


def test_validation_metrics_equal_scikit_learn_over_all_batches() -> None:
    task = ClassificationTask(MeanNetwork(), test_time_augmentation=False)
    data = batches()
    logged = trainer().validate(task, loader(data), verbose=False)[0]
    image, label = torch.cat([b["image"] for b in data]), torch.cat([b["label"] for b in data])
    with torch.inference_mode():
        probability = torch.sigmoid(task.logits(image)).double().numpy()
    # Lightning keeps logged values in float32.
    assert logged["val_auroc"] == pytest.approx(roc_auc_score(label, probability), rel=1e-6)
    assert logged["val_nll"] == pytest.approx(log_loss(label, probability), rel=1e-6)
    assert logged["val_accuracy"] == pytest.approx(((probability >= 0.5) == label.numpy()).mean(), rel=1e-6)


def test_calibration_uses_the_validated_predictions() -> None:
    task = ClassificationTask(MeanNetwork())
    data = batches(8)
    trainer().validate(task, loader(data), verbose=False)
    calibration = task.calibrate_on_validation([f"slide {row % 7}" for row in range(80)])
    assert task.calibration is calibration
    assert 0 < calibration.threshold < 1


def test_one_step_of_training_equals_a_plain_loop() -> None:
    torch.manual_seed(0)
    task, data = ClassificationTask(LeNet5(input_size=16), lr=1e-2, warmup=0.5), batches(4)
    for batch in data:
        batch["image"] = torch.rand(10, 3, 16, 16)
    plain = LeNet5(input_size=16)
    plain.load_state_dict(task.network.state_dict())
    trainer(max_epochs=1, deterministic=True).fit(task, loader(data))
    decayed = [p for p in plain.parameters() if p.ndim > 1]
    rest = [p for p in plain.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 1e-2}, {"params": rest, "weight_decay": 0.0}], lr=1e-2
    )
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (task.image_mean, task.image_std))
    for factor, batch in zip([0.5, 1.0, 1.0, 0.5], data, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * factor
        optimizer.zero_grad()
        logits = plain((batch["image"] - mean) / std)[:, 0]
        nn.functional.binary_cross_entropy_with_logits(logits, batch["label"].float()).backward()
        optimizer.step()
    for own, other in zip(task.network.parameters(), plain.parameters(), strict=True):
        assert torch.equal(own, other)


def test_schedule_starts_low_peaks_and_ends_at_zero() -> None:
    factors = [warmup_cosine(step, rise=10, total=100) for step in range(101)]
    assert np.argmax(factors) in (9, 10)
    assert factors[0] == pytest.approx(0.1)
    assert factors[100] == pytest.approx(0, abs=1e-12)
    assert all(later <= earlier for earlier, later in itertools.pairwise(factors[10:]))


def test_networks_of_another_shape_are_named() -> None:
    task = ClassificationTask(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)))
    with pytest.raises(ValueError, match=r"Sequential returned \(10, 2\) for 10 images, expected \(10, 1\)"):
        task.logits(batches()[0]["image"])


def test_a_loss_that_is_not_finite_stops_with_the_ids() -> None:
    data = batches(1)
    data[0]["image"][3] = float("nan")
    data[0]["id"] = [f"train:{row}" for row in range(10)]
    with pytest.raises(ValueError, match=r"loss is nan in step 0 .*train:0"):
        trainer(max_epochs=1).fit(ClassificationTask(MeanNetwork()), loader(data))


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match=r"received lr=-1\.0"):
        ClassificationTask(MeanNetwork(), lr=-1.0)
    with pytest.raises(ValueError, match="one value for each channel"):
        ClassificationTask(MeanNetwork(), image_mean=(0.5,), image_std=(0.0,))
    frozen = MeanNetwork().requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        trainer(max_epochs=1).fit(ClassificationTask(frozen), loader(batches(1)))
