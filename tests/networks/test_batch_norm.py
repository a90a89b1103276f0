import pytest
import torch
from torch import nn

from biocnn.errors import DataError
from biocnn.networks.batch_norm import reestimate_batch_norm
from biocnn.networks.fcrn import FCRNA


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3, momentum=0.3), nn.ReLU(), nn.Dropout(0.9), nn.Conv2d(3, 2, 1),
        nn.BatchNorm2d(2),
    )  # fmt: skip


def batches(count: int = 3) -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randn(4, 2, 5, 6) * (1 + number) + number for number in range(count)]


def statistics(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and unbiased variance of each channel, in float64."""
    channels = values.detach().double().transpose(0, 1).flatten(1)
    mean = channels.sum(1) / channels.shape[1]
    return mean, (channels - mean[:, None]).square().sum(1) / (channels.shape[1] - 1)


def normalised(values: torch.Tensor) -> torch.Tensor:
    """What a fresh batch norm in training makes of float64 features."""
    centred = values - values.mean((0, 2, 3), keepdim=True)
    return centred / (centred.square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()


def test_statistics_are_the_averages_over_the_batches() -> None:
    network = small()
    for layer in (network[1], network[5]):
        layer.running_mean.fill_(7), layer.running_var.fill_(9)
    assert reestimate_batch_norm(network, batches()) == 3
    first, second = [], []
    for batch in batches():
        features = network[0](batch).double()
        first.append(statistics(features))
        # Dropout is off, though it would drop nine of ten features in training.
        second.append(statistics(network[4].double()(normalised(features).relu())))
        network.float()
    for layer, found in ((network[1], first), (network[5], second)):
        mean = torch.stack([one for one, _ in found]).mean(0)
        variance = torch.stack([one for _, one in found]).mean(0)
        torch.testing.assert_close(layer.running_mean.double(), mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(layer.running_var.double(), variance, rtol=1e-5, atol=1e-5)


def test_nothing_else_changes() -> None:
    network = small()
    network[2].eval(), network[5].eval()  # modes that differ
    modes = [module.training for module in network.modules()]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    one = batches(1)
    reestimate_batch_norm(network, one)
    assert [module.training for module in network.modules()] == modes
    assert (network[1].momentum, network[5].momentum) == (0.3, 0.1)
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    assert changed == {f"{layer}.{name}" for layer in (1, 5) for name in buffers}
    assert all(weight.grad is None for weight in network.parameters())


def test_one_batch_then_gives_the_same_in_training_and_evaluation() -> None:
    torch.manual_seed(0)
    network, batch = FCRNA(in_channels=2), torch.rand(8, 2, 61, 64)
    with torch.no_grad():
        trained = network.train()(batch)
        reestimate_batch_norm(network, [batch])
        evaluated = network.eval()(batch)
    # The variance is the unbiased one, of 8 x 8 x 8 values at the coarsest level: 0.2 % more than in training.
    torch.testing.assert_close(evaluated, trained, rtol=0, atol=0.01)
    assert float(trained.std()) > 0.1


@pytest.mark.parametrize("broken", ["nan", "shape", "none"])
def test_after_a_failure_all_is_as_before(broken: str) -> None:
    network = small()
    reestimate_batch_norm(network, batches())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    bad = {"nan": [*batches(), torch.full((4, 2, 5, 6), torch.nan)], "shape": [*batches(), torch.rand(1, 5, 4, 4)]}
    error = {"nan": DataError, "shape": RuntimeError, "none": ValueError}[broken]
    with pytest.raises(error):
        reestimate_batch_norm(network, bad.get(broken, []))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.training
    assert network[1].momentum == 0.3


def test_networks_without_running_statistics_are_refused() -> None:
    without = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3, track_running_stats=False), nn.GroupNorm(1, 3))
    with pytest.raises(ValueError, match="Sequential has no batch norm with running statistics"):
        reestimate_batch_norm(without, batches())
    with pytest.raises(ValueError, match="from no batches"):
        reestimate_batch_norm(small(), iter(()))
