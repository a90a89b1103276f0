from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from biocnn.networks import UNet
from biocnn.networks.synced_batch_norm import other_batch_norms, plain_batch_norms, synced
from biocnn.training.processes import BatchNormSync
from tests.pipelines.commands import SERVER

SHARES = [slice(0, 1), slice(1, 5)]  # of a batch of 5; means of means would be another mean
OPTIONS: dict[str, dict[str, Any]] = {
    "usual": {},
    "cumulative": {"momentum": None},
    "without weights": {"affine": False},
    "without statistics": {"track_running_stats": False},
}


def batch() -> torch.Tensor:
    """Far from zero, where a variance of one pass would lose its digits."""
    generator = torch.Generator().manual_seed(0)
    return 1e3 + torch.randn(5, 3, 4, 6, generator=generator, dtype=torch.float64)


def passes(layer: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Two passes in training and one in evaluation: outputs, gradients and statistics."""
    for _ in range(2):
        given = images.clone().requires_grad_()
        found = layer(given)
        (found**3).sum().backward()
    assert given.grad is not None
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    gradients = {f"{name}.grad": p.grad for name, p in layer.named_parameters() if p.grad is not None}
    evaluated = layer.eval()(images) if getattr(layer, "running_mean", None) is not None else found
    return {"found": found.detach(), "grad": given.grad, "evaluated": evaluated.detach(), **state, **gradients}


def share(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=len(SHARES))
    made = {}
    for name, options in OPTIONS.items():
        layer = synced(nn.BatchNorm2d(3, **options).double())
        made[name] = passes(layer, batch()[SHARES[rank]])
    torch.save(made, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_shares_of_a_batch_are_normalised_as_the_whole(tmp_path: Path) -> None:
    started = [SERVER.Process(target=share, args=(tmp_path, rank)) for rank in range(len(SHARES))]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
    shares = [torch.load(tmp_path / f"{rank}.pt") for rank in range(len(SHARES))]
    for name, options in OPTIONS.items():
        expected = passes(nn.BatchNorm2d(3, **options).double(), batch())
        for key, value in expected.items():
            if key in ("found", "grad", "evaluated"):
                found = torch.cat([part[name][key] for part in shares])
            elif key.endswith(".grad"):  # DDP sums them over processes, and divides
                found = shares[0][name][key] + shares[1][name][key]
            else:
                found = shares[0][name][key]
                assert torch.equal(found, shares[1][name][key])
            # Torch finds a variance in one pass over numbers of 1e3.
            torch.testing.assert_close(found, value, rtol=1e-9, atol=1e-9, msg=f"{name}: {key}")


def test_layers_are_put_back_with_what_was_learned() -> None:
    network = UNet(1, channels=(4, 8), norm="batch")
    before = dict(network.named_modules())
    names = list(network.state_dict())
    plugin = BatchNormSync()
    assert plugin.apply(network) is network
    assert not plain_batch_norms(network)
    assert list(network.state_dict()) == names
    network(torch.randn(2, 1, 8, 8)).sum().backward()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    plugin.revert(network)
    assert all(module is before[name] for name, module in network.named_modules())
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert len(plain_batch_norms(network)) == 6


def test_batch_norms_of_another_kind_are_named() -> None:
    class WithActivation(nn.BatchNorm2d):
        """As timm's, which would lose its activation."""

    network = nn.Sequential(WithActivation(2), nn.BatchNorm2d(2))
    with pytest.warns(UserWarning, match="WithActivation: each process has batch statistics of its own"):
        BatchNormSync().apply(network)
    assert isinstance(network[0], WithActivation)
    assert other_batch_norms(network) == {"WithActivation"}
