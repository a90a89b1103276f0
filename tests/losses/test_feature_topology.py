"""The VGG is the real one, cut after relu3_4, with random weights of a fixed seed: no test needs a download."""

import copy
import hashlib
import pickle
import threading
import warnings
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.models import VGG19_Weights
from torchvision.models.vgg import cfgs, make_layers

from biocnn.errors import CheckpointError, DownloadError
from biocnn.losses import BCE
from biocnn.losses.feature_topology import FeatureTopology
from biocnn.training.callbacks import EMA


def make_features(seed: int = 0, architecture: str = "E", entries: int = 10) -> nn.Sequential:
    """`features` of torchvision's VGG19 ("E") or VGG16 ("D") up to conv3_4 and its ReLU."""
    torch.manual_seed(seed)
    features: nn.Sequential = make_layers(cfgs[architecture][:entries], batch_norm=False)
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            assert layer.bias is not None
            nn.init.normal_(layer.bias, std=0.1)
    return features


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vgg") / "features.pth"
    torch.save(make_features().state_dict(), path)
    return path


@pytest.fixture
def loss(weights: Path) -> FeatureTopology:
    return FeatureTopology(weights)


class Small(nn.Module):
    """Smooth features of two sizes, and a batch norm that would change in training mode."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 2, 3, stride=2)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        first = torch.tanh(self.norm(self.first(maps)))
        return first, torch.tanh(self.second(first))


def line(size: int = 40, gap: bool = False) -> torch.Tensor:
    target = torch.zeros(1, 1, size, size)
    target[..., size // 2 - 1 : size // 2 + 2, 4:-4] = 1
    if gap:
        target[..., size // 2 - 2 : size // 2 + 2] = 0
    return target


def draw(shape: tuple[int, ...], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return logits, (torch.rand(shape, generator=generator) > 0.7).double()


def slow_loss(logits: torch.Tensor, target: torch.Tensor, stops: dict[int, int]) -> float:
    """Eq. 3 a map at a time; `stops` says how many modules of `features` each layer needs."""
    features = make_features().double()
    mean, std = (np.float32(one).astype(float) for one in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    samples = []
    for b in range(len(logits)):
        channels = []
        for c in range(logits.shape[1]):
            probability = 1 / (1 + np.exp(-logits[b, c].numpy()))
            total = 0.0
            for count in stops.values():
                maps = []
                for one in (target[b, c].numpy(), probability):
                    image = torch.from_numpy(np.stack([(one - mean[k]) / std[k] for k in range(3)]))[None]
                    # Every layer from the image again, so that nothing after it can change it.
                    maps.append(features[:count](image)[0].detach().numpy())
                kinds, height, width = maps[0].shape
                squares = [np.linalg.norm(maps[0][m] - maps[1][m]) ** 2 for m in range(kinds)]
                total += sum(squares) / (kinds * width * height)
            channels.append(total)
        samples.append(np.mean(channels))
    return float(np.mean(samples))


@pytest.mark.parametrize(
    ("layers", "stops"),
    [((3, 8, 17), {3: 4, 8: 9, 17: 18}), ((2,), {2: 3}), ((0, 4, 7), {0: 1, 4: 5, 7: 8})],
)
def test_values(weights: Path, layers: tuple[int, ...], stops: dict[int, int]) -> None:
    logits, target = draw((2, 2, 9, 12))
    value = FeatureTopology(weights, layers=layers)(logits, target).item()
    # In double precision on both sides, so only the order of the sums differs.
    assert value == pytest.approx(slow_loss(logits, target, stops), rel=1e-10)
    if layers == (3, 8, 17):
        assert FeatureTopology(weights)(logits, target).item() == value
        assert FeatureTopology(weights)(logits.float(), target).item() == pytest.approx(value, rel=1e-5)


def test_truth_is_zero_and_the_loss_depends_on_the_target(loss: FeatureTopology) -> None:
    # The packaged versions of this loss take the argmax over one channel, so that any target is all zeros to them.
    logits, random = draw((1, 1, 32, 32))
    targets = [torch.zeros_like(random), torch.ones_like(random), random]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "FeatureTopology: every pixel")
        for target in targets:
            assert loss(200 * (2 * target.float() - 1), target).item() == 0
            assert loss(-200 * (2 * target.float() - 1), target).item() > 0.01
        values = [loss(logits.float(), target).item() for target in targets]
    assert min(abs(one - other) / one for one, other in zip(values, values[1:] + values[:1], strict=True)) > 0.01


def test_gradient() -> None:
    loss = FeatureTopology(network=Small())
    logits, target = draw((2, 2, 6, 7))
    valid = torch.rand(2, 1, 6, 7, generator=torch.Generator().manual_seed(1)) > 0.2
    assert torch.autograd.gradcheck(lambda x: loss(x, target), logits.requires_grad_(), fast_mode=True)
    assert torch.autograd.gradcheck(lambda x: loss(x, target, valid), logits, fast_mode=True)


def test_gradient_points_at_the_gap(loss: FeatureTopology) -> None:
    target, size = line(64), 64
    logits = (12 * (2 * line(64, gap=True) - 1)).double().requires_grad_()
    loss(logits, target).backward()
    assert logits.grad is not None
    # Of the probability, since at these logits all slopes of the sigmoid are the same.
    gradient = (logits.grad / (torch.sigmoid(logits) * torch.sigmoid(-logits)).detach())[0, 0]
    gap = (slice(size // 2 - 1, size // 2 + 2), slice(size // 2 - 2, size // 2 + 2))
    near = (slice(size // 2 - 6, size // 2 + 7), slice(size // 2 - 7, size // 2 + 7))
    assert gradient[near].abs().sum() > 0.5 * gradient.abs().sum()
    assert (gradient[gap] < 0).all()  # descending raises the probability
    assert gradient[gap].abs().mean() > 10 * gradient.abs().mean()
    assert loss(12 * (2 * line(64) - 1), target) < loss(12 * (2 * line(64, gap=True) - 1), target)


def test_batches_and_channels(loss: FeatureTopology) -> None:
    logits, target = draw((3, 2, 12, 16))
    alone = [loss(logits[i : i + 1], target[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(loss(logits, target), torch.stack(alone).mean(), rtol=1e-12, atol=0)
    channels = [loss(logits[:, i : i + 1], target[:, i : i + 1]) for i in range(2)]
    torch.testing.assert_close(loss(logits, target), torch.stack(channels).mean(), rtol=1e-12, atol=0)


def test_outside_valid_both_are_blank(loss: FeatureTopology) -> None:
    logits, target = draw((2, 1, 16, 20))
    valid = torch.zeros(2, 1, 16, 20, dtype=torch.bool)
    valid[0, :, 3:12, 5:] = True
    blank = torch.where(valid, logits, -200.0)[:1]  # probability 0 to double precision
    expected = loss(blank, torch.where(valid, target, 0.0)[:1])
    logits = torch.where(valid, logits, torch.nan).requires_grad_()
    value = loss(logits, torch.where(valid, target, 255.0), valid)
    value.backward()
    # The second sample has no valid pixel and does not count.
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    assert logits.grad is not None
    assert (logits.grad[~valid] == 0).all()
    assert (logits.grad[valid] != 0).any()


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(loss: FeatureTopology, half: torch.dtype) -> None:
    logits, target = draw((1, 1, 16, 16))
    logits = logits.to(half).requires_grad_()
    loss.to(half)  # as Lightning does for "16-true"
    with torch.autocast("cpu", dtype=half):
        value = loss(logits, target)
        value.backward()
    assert value.dtype == torch.float32
    assert logits.grad is not None
    assert logits.grad.dtype == half
    assert value.item() == loss(logits.float(), target).item()


def test_the_network_is_no_part_of_the_model(weights: Path) -> None:
    parent = nn.ModuleDict({"network": nn.Conv2d(1, 1, 3, padding=1), "loss": BCE() + 0.1 * FeatureTopology(weights)})
    assert list(parent.state_dict()) == ["network.weight", "network.bias"]
    assert [name for name, _ in parent.named_parameters()] == ["network.weight", "network.bias"]
    assert not list(parent["loss"].buffers())
    parent.train().requires_grad_(True)
    loss = parent["loss"].parts()[1][2]
    assert isinstance(loss, FeatureTopology)
    before = {name: value.clone() for name, value in loss.network.state_dict().items()}
    optimizer = torch.optim.SGD(parent.parameters(), 0.1)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2
    parent["loss"](parent["network"](line()), line()).backward()
    optimizer.step()
    assert not any(module.training for module in loss.network.modules())
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in loss.network.parameters())
    for name, value in loss.network.state_dict().items():
        assert torch.equal(value, before[name])
    # What was trained with this loss can be loaded without it, and the other way round.
    other = nn.ModuleDict({"network": nn.Conv2d(1, 1, 3, padding=1), "loss": BCE() + BCE()})
    other.load_state_dict(parent.state_dict())
    parent.load_state_dict(other.state_dict())
    assert "network=VGG19Features, frozen" in repr(parent)


def test_copies_are_the_same(loss: FeatureTopology) -> None:
    logits, target = draw((1, 1, 8, 8))
    expected = loss(logits, target).item()
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert other.network is not loss.network
        assert other(logits, target).item() == expected


def test_first_use_in_inference_mode_does_not_spoil_training(loss: FeatureTopology) -> None:
    logits, target = draw((1, 1, 8, 8))
    with torch.inference_mode():
        value = loss(logits, target).item()  # float64: the weights are converted here
    again = loss(logits.requires_grad_(), target)
    again.backward()
    assert again.item() == value


class Model(pl.LightningModule):
    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.network, self.loss = nn.Conv2d(1, 1, 3, padding=1), loss

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = self.loss(self.network(batch), batch)
        return value

    def validation_step(self, batch: torch.Tensor) -> None:
        self.log("val_loss", self.loss(self.network(batch), batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.01)


def test_training_with_averaged_weights(loss: FeatureTopology, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in loss.network.state_dict().items()}
    loader = DataLoader(torch.cat([line(), line(gap=True)]), batch_size=1)  # type: ignore[arg-type]
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[EMA(0.9)],
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Model(BCE() + 0.1 * loss)
    trainer.fit(model, loader, loader)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    stored = torch.load(tmp_path / "model.ckpt", weights_only=True)
    assert set(stored["state_dict"]) == {"network.weight", "network.bias"}
    assert (tmp_path / "model.ckpt").stat().st_size < 100_000
    for name, value in loss.network.state_dict().items():
        assert torch.equal(value, before[name])


def test_another_network_is_copied_and_frozen() -> None:
    network = Small().train()
    loss = FeatureTopology(network=network)
    logits, target = draw((2, 1, 9, 9))
    loss(logits.float().requires_grad_(), target).backward()
    assert network.training
    assert network.first.weight.requires_grad
    assert network.norm.running_mean is not None
    assert (network.norm.running_mean == 0).all()
    assert not loss.network.training
    # A tensor stands for one layer, and a network need not have weights.
    alone = FeatureTopology(network=nn.Identity())(logits, target).item()
    assert alone == pytest.approx(F.mse_loss(torch.sigmoid(logits), target).item(), rel=1e-12)


class Wrong(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, maps: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        return {"none": [], "mean": maps.mean((1, 2, 3)), "batch": maps.mean(0), "detached": maps.detach()}[self.kind]


@pytest.mark.parametrize("kind", ["none", "mean", "batch", "detached"])
def test_networks_that_give_no_features(kind: str) -> None:
    logits, target = draw((2, 1, 9, 9))
    expected = "do not depend on the map" if kind == "detached" else "Wrong: expected feature maps .* N = 2 maps"
    with pytest.raises(ValueError, match=expected):
        FeatureTopology(network=Wrong(kind))(logits.requires_grad_(), target)


@pytest.mark.filterwarnings("ignore:FeatureTopology. every pixel of target")  # there is only one
def test_shapes_that_do_not_fit(loss: FeatureTopology, weights: Path) -> None:
    with pytest.raises(ValueError, match=r"for images \(B, C, H, W\), received \(1, 1, 8, 8, 8\).*SoftClDice"):
        loss(*draw((1, 1, 8, 8, 8)))
    with pytest.raises(ValueError, match=r"at least 4 x 4 pixels, received \(3, 40\). Use larger tiles"):
        loss(*draw((1, 1, 3, 40)))
    assert loss(*draw((1, 1, 4, 4))).isfinite()
    assert FeatureTopology(weights, layers=(3,))(*draw((1, 1, 1, 1))).isfinite()


@pytest.mark.parametrize("layers", [(), (3, 3), (8, 3), (-1,), (3, 37), (3.0,), (True,)])
def test_layers_that_make_no_sense(weights: Path, layers: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="layers: expected rising indices from 0 to 36, received"):
        FeatureTopology(weights, layers=layers)


def test_arguments_that_do_not_go_together(weights: Path) -> None:
    for arguments in ({"weights": weights}, {"layers": (3,)}):
        with pytest.raises(ValueError, match="do not go with network=Small"):
            FeatureTopology(network=Small(), **arguments)


def test_weights_of_the_whole_network(weights: Path, tmp_path: Path) -> None:
    whole = {f"features.{name}": value for name, value in make_features().state_dict().items()}
    torch.save(
        whole | {"features.19.weight": torch.ones(2), "classifier.0.bias": torch.ones(3)}, tmp_path / "whole.pth"
    )
    logits, target = draw((1, 1, 8, 8))
    expected = FeatureTopology(weights)(logits, target).item()
    assert FeatureTopology(str(tmp_path / "whole.pth"))(logits, target).item() == expected


def test_weights_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"There is no weights file .*none\.pth.*'DEFAULT' to have it downloaded"):
        FeatureTopology(tmp_path / "none.pth")
    (tmp_path / "torn.pth").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(CheckpointError, match="not a file of weights that torch can load"):
        FeatureTopology(tmp_path / "torn.pth")
    torch.save(make_features(), tmp_path / "code.pth")  # a pickled module, which would run code
    with pytest.raises(CheckpointError, match="can load safely"):
        FeatureTopology(tmp_path / "code.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="expected a state dict, received a list"):
        FeatureTopology(tmp_path / "list.pth")
    # VGG16 is the same up to relu3_3.
    torch.save(make_features(architecture="D", entries=9).state_dict(), tmp_path / "vgg16.pth")
    with pytest.raises(CheckpointError, match=r"expected '16.weight' of shape \(256, 256, 3, 3\).*received none"):
        FeatureTopology(tmp_path / "vgg16.pth")
    torch.save({"features.0.weight": torch.ones(64, 1, 3, 3)}, tmp_path / "grey.pth")
    with pytest.raises(CheckpointError, match=r"expected 'features.0.weight'.*received \(64, 1, 3, 3\)"):
        FeatureTopology(tmp_path / "grey.pth")


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    folder = tmp_path / "served"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()


def test_default_weights_are_fetched_and_checked(
    served: tuple[Path, str], weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = served
    content = weights.read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:8]
    (folder / f"vgg19-{digest}.pth").write_bytes(content)
    (folder / "vgg19-00000000.pth").write_bytes(content)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    # Only the address is exchanged; the download, the hash in the name and the loading are torchvision's.
    entry = VGG19_Weights.DEFAULT.value
    monkeypatch.setattr(entry, "url", f"{address}/vgg19-{digest}.pth", raising=True)
    logits, target = draw((1, 1, 8, 8))
    expected = FeatureTopology(weights)(logits, target).item()
    assert FeatureTopology()(logits, target).item() == expected
    (folder / f"vgg19-{digest}.pth").unlink()
    assert FeatureTopology()(logits, target).item() == expected  # from the cache
    for name, why in (("vgg19-00000000.pth", "invalid hash value"), ("vgg19-11111111.pth", "404")):
        monkeypatch.setattr(entry, "url", f"{address}/{name}")
        with pytest.raises(DownloadError, match=rf"{name} .*{why}.*pass its path as weights.*hub.checkpoints"):
            FeatureTopology()
        assert not (tmp_path / "hub" / "hub" / "checkpoints" / name).exists()
