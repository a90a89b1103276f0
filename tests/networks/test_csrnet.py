import copy
import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import VGG16_Weights

from biocnn.errors import CheckpointError, DownloadError
from biocnn.networks.csrnet import CSRNet
from biocnn.networks.resolution import output_stride_of, spread, sum_pool
from biocnn.networks.spec import build, describe
from biocnn.networks.tiling import predict_tiles, tiling_of


@pytest.fixture(scope="module")
def vgg_features() -> nn.Sequential:
    """torchvision's own first ten convolutions, with random weights."""
    torch.manual_seed(0)
    with torch.device("meta"):
        features = torchvision.models.vgg16().features[:23]
    features.to_empty(device="cpu")
    for module in features:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.normal_(module.bias, std=0.1)
    return features


@pytest.fixture(scope="module")
def network() -> CSRNet:
    torch.manual_seed(0)
    return CSRNet().eval()


def narrow(network: CSRNet) -> CSRNet:
    """The same layers with two channels each, so that large images cost little."""
    result = copy.deepcopy(network)
    for part in (result.front_end, result.back_end):
        for number, module in enumerate(part):
            if isinstance(module, nn.Conv2d):
                width = 3 if module.in_channels == 3 else 2
                part[number] = nn.Conv2d(width, 2, 3, padding=module.padding, dilation=module.dilation)
    result.head = nn.Conv2d(2, 1, 1)
    for module in result.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            module.weight.data.abs_()  # through many layers of two channels nothing else survives
    return result.eval()


def test_parameters_of_the_paper(network: CSRNet) -> None:
    back = 9 * (3 * 512 * 512 + 512 * 256 + 256 * 128 + 128 * 64) + 3 * 512 + 256 + 128 + 64
    front = 7_635_264  # sum over the ten convolutions of VGG16
    assert sum(weight.numel() for weight in network.parameters()) == front + back + 65 == 16_263_489
    assert [module.dilation for module in network.back_end if isinstance(module, nn.Conv2d)] == [(2, 2)] * 6


def test_front_end_is_that_of_torchvision(tmp_path: Path, vgg_features: nn.Sequential) -> None:
    state = {f"features.{name}": value for name, value in vgg_features.state_dict().items()}
    torch.save({**state, "classifier.0.weight": torch.zeros(2)}, tmp_path / "whole.pth")
    torch.save(vgg_features.state_dict(), tmp_path / "features.pth")
    image = torch.randn(1, 3, 32, 48)
    for name in ("whole.pth", "features.pth"):
        network = CSRNet(weights=str(tmp_path / name)).eval()
        with torch.inference_mode():
            torch.testing.assert_close(network.front_end(image), vgg_features(image), rtol=1e-4, atol=1e-4)
    assert describe(network) == {
        "class_path": "biocnn.networks.csrnet.CSRNet",
        "init_args": {"in_channels": 3, "out_channels": 1, "weights": None},  # the file is not needed again
    }
    grey = CSRNet(in_channels=1, weights=str(tmp_path / "whole.pth")).eval()
    image = torch.randn(1, 1, 32, 48)
    with torch.inference_mode():
        expected = vgg_features(image.expand(1, 3, 32, 48))
        torch.testing.assert_close(grey.front_end(image), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (9, 31), (40, 33)], ids=str)
def test_the_output_has_a_cell_for_every_eight_pixels(network: CSRNet, size: tuple[int, int]) -> None:
    image, density = torch.randn(2, 3, *size), torch.rand(2, 1, *size)
    with torch.inference_mode():
        counts = network(image)
    target = sum_pool(density, output_stride_of(network))
    assert counts.shape == target.shape
    full = spread(counts, output_stride_of(network), size)
    assert full.shape == density.shape
    torch.testing.assert_close(full.sum((2, 3)), counts.sum((2, 3)), rtol=1e-4, atol=1e-4)


def test_it_is_made_again_and_trains() -> None:
    torch.manual_seed(0)
    network = CSRNet(in_channels=2)
    image = torch.randn(1, 2, 41, 30)
    counts = network(image)
    # Weights that keep the variance, and a last layer near zero, but not dead.
    assert 1e-4 < float(counts.detach().std()) < 1
    (counts - sum_pool(torch.rand(1, 1, 41, 30), 8)).square().mean().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in network.parameters())
    assert all(weight.grad.any() for weight in network.parameters())  # type: ignore[union-attr]
    spec = describe(network)
    assert spec is not None
    again = build(spec)
    again.load_state_dict(network.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(again.eval()(image), network.eval()(image), rtol=0, atol=0)


def test_gradient_fills_the_receptive_field_and_ends_there(network: CSRNet) -> None:
    small = narrow(network).double()
    # Largest values hide the other pixels of a block from the gradient; means do not.
    small.front_end = nn.Sequential(
        *(nn.AvgPool2d(2, ceil_mode=True) if isinstance(module, nn.MaxPool2d) else module for module in small.front_end)
    )
    cell = 20
    image = torch.rand(1, 3, 344, 344, dtype=torch.float64, requires_grad=True)
    for weight in small.parameters():
        weight.data.clamp_(min=0.01)
    small(image)[0, 0, cell, cell].backward()
    assert image.grad is not None
    found = (image.grad[0] != 0).any(0).nonzero()
    first, last = int(found.min()), int(found.max())
    # From the last pixel of the cell to the first that it depends on, and from the first to the last.
    assert (8 * cell + 7 - first, last - 8 * cell) == (small.halo, small.halo) == (145, 145)
    # Dilated by 2 at an eighth of the resolution, the layers reach every other place there; the three convolutions
    # of the front end close the gaps.
    assert len(found) == (last - first + 1) ** 2
    assert small.receptive_field == 2 * 145 + 1


@pytest.mark.parametrize("size", [(430, 377), (401, 480)], ids=str)
def test_tiles_equal_the_whole_image(network: CSRNet, size: tuple[int, int]) -> None:
    torch.manual_seed(2)
    small = narrow(network)

    def density(image: torch.Tensor) -> torch.Tensor:
        return spread(small(image), output_stride_of(small), (image.shape[2], image.shape[3]))

    image = torch.rand(3, *size)
    with torch.no_grad():
        small.head.weight /= small(image[None]).max()  # the bias is nothing to it
        counts = small(image[None])[0]
        whole = density(image[None])[0]
    assert float(whole.std()) > 1e-4  # something to compare
    tiled = predict_tiles(density, image, 340, *tiling_of(small))
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-7)  # of counts up to 1, which 64 pixels share
    assert float(tiled.double().sum()) == pytest.approx(float(counts.double().sum()), rel=1e-5)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield tmp_path, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_torchvision_weights_are_fetched_and_checked(
    served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vgg_features: nn.Sequential
) -> None:
    folder, address = served
    state = {f"features.{name}": value for name, value in vgg_features.state_dict().items()}
    torch.save(state, folder / "weights.pth")
    digest = hashlib.sha256((folder / "weights.pth").read_bytes()).hexdigest()[:8]
    (folder / "weights.pth").rename(folder / f"vgg16-{digest}.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    # Only the address is exchanged; the download, the hash in the name and the loading are torchvision's.
    entry = VGG16_Weights.DEFAULT.value
    monkeypatch.setattr(entry, "url", f"{address}/vgg16-{digest}.pth", raising=True)
    network = CSRNet(weights="DEFAULT")
    assert torch.equal(network.front_end[21].weight, vgg_features[21].weight)  # type: ignore[arg-type]
    (folder / f"vgg16-{digest}.pth").rename(folder / "vgg16-00000000.pth")
    monkeypatch.setattr(entry, "url", f"{address}/vgg16-00000000.pth")
    with pytest.raises(DownloadError, match=r"vgg16 could not be fetched .*invalid hash value.*pass its path"):
        CSRNet(weights="DEFAULT")


def test_wrong_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no weights file .*missing\.pth.*or null for random weights"):
        CSRNet(weights=str(tmp_path / "missing.pth"))
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(CheckpointError, match="not a file of weights that torch can load safely"):
        CSRNet(weights=str(tmp_path / "text.pth"))
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="expected a state dict, received a list"):
        CSRNet(weights=str(tmp_path / "list.pth"))
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(CheckpointError, match=r"expected '0\.weight' of shape \(64, 3, 3, 3\).*received none"):
        CSRNet(weights=str(tmp_path / "resnet.pth"))


def test_wrong_arguments_and_images_are_named(network: CSRNet) -> None:
    with pytest.raises(ValueError, match="pass in_channels"):
        CSRNet(None)
    with pytest.raises(ValueError, match="at least 1, received in_channels=0"):
        CSRNet(in_channels=0)
    with pytest.raises(ValueError, match="takes images of 3 channels, or 1, received in_channels=4"):
        CSRNet(in_channels=4, weights="DEFAULT")
    with pytest.raises(ValueError, match=r"made for images \(B, 3, H, W\), received \(1, 1, 32, 32\)"):
        network(torch.rand(1, 1, 32, 32))
