"""Pretrained weights come over HTTP through torch's own hub; here from a server on this machine."""

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import torchvision
from torchvision.models import ResNet18_Weights

from biocnn.networks import Backbone


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


def test_torchvision_weights_are_fetched_and_checked(
    served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = served
    donor = torchvision.models.resnet18()
    torch.save(donor.state_dict(), folder / "weights.pth")
    digest = hashlib.sha256((folder / "weights.pth").read_bytes()).hexdigest()[:8]
    (folder / "weights.pth").rename(folder / f"resnet18-{digest}.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    # Only the address is exchanged; the download, the hash in the name and the loading are torchvision's.
    entry = ResNet18_Weights.DEFAULT.value
    monkeypatch.setattr(entry, "url", f"{address}/resnet18-{digest}.pth", raising=True)
    network = Backbone("torchvision.models.resnet18", weights="DEFAULT")
    assert torch.equal(network.network.conv1.weight, donor.conv1.weight)
    assert network.network.fc.out_features == 1
    (folder / f"resnet18-{digest}.pth").rename(folder / "resnet18-00000000.pth")
    monkeypatch.setattr(entry, "url", f"{address}/resnet18-00000000.pth")
    with pytest.raises(RuntimeError, match="invalid hash value"):
        Backbone("torchvision.models.resnet18", weights="DEFAULT")
