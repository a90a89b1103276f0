import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from biocnn.data.fingerprint import scale
from biocnn.data.lazy_images import LazyImage, from_array
from biocnn.errors import DataError
from biocnn.inference.strip_store import StripStore
from biocnn.inference.strips import StripReader, predict_strips, tiling_of_task
from biocnn.networks import UNet
from biocnn.tasks.counting import CountingTask
from biocnn.tasks.segmentation import SegmentationTask

MEAN, STD = [0.4, 0.5, 0.3], [0.2, 0.3, 0.25]
COLOURS = np.random.default_rng(0).integers(0, 256, (213, 151, 3), dtype=np.uint8)
COLUMNS = 4  # tiles along 151 px, of at most 64 px with a halo of 9 px
GREY = np.random.default_rng(1).integers(0, 4000, (213, 151, 1)).astype(np.uint16)


def set_statistics(network: nn.Module) -> nn.Module:
    """Batch norm that is not the identity."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return network


class Mixing(nn.Module):
    """Every pixel reaches every other of a tile, so there is no halo."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.InstanceNorm2d(4), nn.Conv2d(4, 1, 3, padding=1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layers(image)
        return found


def segmentation(network: nn.Module | None = None, **options: Any) -> SegmentationTask:
    torch.manual_seed(0)
    network = set_statistics(UNet(3, channels=(4, 8))) if network is None else network
    task = SegmentationTask(network, image_mean=MEAN, image_std=STD, **{"tile_size": 64, **options})
    return task.eval()


def counting(channels: int = 3, **data: Any) -> CountingTask:
    torch.manual_seed(0)
    network = set_statistics(UNet(channels, channels=(4, 8)))
    task = CountingTask(network, image_mean=MEAN[:channels], image_std=STD[:channels], tile_size=64)
    task.count_factor, task.data_description = 1.25, data
    return task.eval()


def joined(store: StripStore) -> np.ndarray:
    return np.concatenate(list(store.bands()))


def in_memory(task: SegmentationTask, views: int) -> np.ndarray:
    """The whole image by `predict_tiles`."""
    with torch.inference_mode():
        image = torch.from_numpy(COLOURS).permute(2, 0, 1).float() * (1 / 255)
        return torch.sigmoid(task.image_logits(image, views))[0].numpy()


@pytest.mark.parametrize("views", [1, 8])
def test_with_a_halo_the_map_is_that_of_the_whole_image(tmp_path: Path, views: int) -> None:
    task = segmentation()
    store = predict_strips(task, from_array(COLOURS), tmp_path, views=views)
    assert len(store.rows) > 3
    assert sum(part.stop - part.start for part in store.rows) == len(COLOURS)  # nothing is stored twice
    found = joined(store)
    assert (found.shape, found.dtype) == ((213, 151), np.float32)
    # float32 sums in another order. Sides that are no multiples of the stride: turned tiles meet the turned grid.
    np.testing.assert_allclose(found, in_memory(task, views), rtol=0, atol=1e-6)


def test_without_a_halo_strips_fade_into_each_other_as_tiles_do(tmp_path: Path) -> None:
    task = segmentation(Mixing())
    store = predict_strips(task, from_array(COLOURS), tmp_path / "one", views=1)
    assert all(store.rows[number].stop > store.rows[number + 1].start for number in range(len(store.rows) - 1))
    found = joined(store)
    np.testing.assert_allclose(found, in_memory(task, 1), rtol=0, atol=1e-6)
    # Several views are cut along other rows than in memory; with a weight that forgets this, it would be tenths.
    found, whole = joined(predict_strips(task, from_array(COLOURS), tmp_path / "all", views=8)), in_memory(task, 8)
    assert np.abs(found - whole).max() < 0.1
    assert np.abs(found - whole).mean() < 0.01


def test_steps_of_refinement_have_their_halo(tmp_path: Path) -> None:
    torch.manual_seed(0)
    task = segmentation(set_statistics(UNet(4, channels=(4, 8))), refinement_steps=3, tile_size=96)
    assert tiling_of_task(task).halo == 27
    found = joined(predict_strips(task, from_array(COLOURS), tmp_path, views=1, batch_size=2))
    np.testing.assert_allclose(found, in_memory(task, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("side", [30, 64, 65])
def test_an_image_of_one_tile_or_just_more(tmp_path: Path, side: int) -> None:
    task, pixels = segmentation(), COLOURS[:side, :side]
    with torch.inference_mode():
        whole = torch.sigmoid(task(torch.from_numpy(pixels / 255).permute(2, 0, 1)[None].float()))[0, 0].numpy()
    found = joined(predict_strips(task, from_array(pixels), tmp_path, views=1))
    np.testing.assert_allclose(found, whole, rtol=0, atol=1e-6)


def test_a_density_is_that_of_the_task_with_bytes_and_with_other_intensities(tmp_path: Path) -> None:
    task = counting()
    whole = task.image_density(torch.from_numpy(COLOURS).permute(2, 0, 1), 2)[0].numpy()
    found = joined(predict_strips(task, from_array(COLOURS), tmp_path / "a", views=2))
    np.testing.assert_allclose(found, whole, rtol=0, atol=1e-7)
    task = counting(1, dtype="uint16", fingerprint={"intensity_range": (500, 3000)})
    planes = torch.from_numpy(scale(GREY, (500.0, 3000.0))).permute(2, 0, 1)
    whole = task.image_density(planes, 2)[0].numpy()
    found = joined(predict_strips(task, from_array(GREY), tmp_path / "b", views=2))
    np.testing.assert_allclose(found, whole, rtol=0, atol=1e-7)


def counted(image: LazyImage) -> tuple[LazyImage, list[slice]]:
    """The image, and the rows that are read of it."""
    reads: list[slice] = []

    def part(rows: slice, columns: slice) -> np.ndarray:
        reads.append(rows)
        return image.part(rows, columns)

    return replace(image, part=part), reads


def test_an_interrupted_image_goes_on_and_every_tile_is_computed_once(tmp_path: Path) -> None:
    task = segmentation()
    image, reads = counted(from_array(COLOURS))
    seen: Counter[bytes] = Counter()
    handle = task.network.register_forward_pre_hook(lambda _, inputs: seen.update([inputs[0].numpy().tobytes()]))

    def stop(done: int, total: int) -> None:
        calls.append((done, total))
        if len(calls) == 2 * COLUMNS + 1:  # in the third strip
            raise RuntimeError("stopped")

    calls: list[tuple[int, int]] = []
    with pytest.raises(RuntimeError, match="stopped"):
        predict_strips(task, image, tmp_path, views=1, progress=stop)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.f32")}
    assert len(before) == 2
    calls, again = [], reads.copy()
    store = predict_strips(task, image, tmp_path, views=1, progress=lambda done, total: calls.append((done, total)))
    left = COLUMNS * (len(store.rows) - 2)
    assert calls == [(number, left) for number in range(1, left + 1)]
    assert len(reads) - len(again) == len(store.rows) - 2
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert Counter(seen.values()) == {1: COLUMNS * len(store.rows) - 1, 2: 1}  # the one it was stopped at
    handle.remove()
    np.testing.assert_allclose(joined(store), in_memory(task, 1), rtol=0, atol=1e-6)
    again = reads.copy()
    assert predict_strips(task, image, tmp_path, views=1) == store
    assert reads == again  # nothing was left to do
    store.remove()
    assert not tmp_path.exists()


def test_a_signal_to_end_is_heard_after_the_tile(tmp_path: Path) -> None:
    done: list[int] = []

    def end(number: int, _: int) -> None:
        done.append(number)
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as caught:
        predict_strips(segmentation(), from_array(COLOURS), tmp_path, views=1, progress=end)
    assert (caught.value.code, done) == (143, [1])


def test_strips_of_another_prediction_are_refused(tmp_path: Path) -> None:
    task, image = segmentation(), from_array(COLOURS)
    with pytest.raises(ValueError, match="views must be 1 to 8"):
        predict_strips(task, image, tmp_path, views=9)
    predict_strips(task, image, tmp_path, views=1)  # the folder of a prediction that made nothing can be used
    with pytest.raises(DataError, match="differs in: settings"):
        predict_strips(task, image, tmp_path, views=2)
    with pytest.raises(DataError, match="differs in: shape, rows, image"):
        predict_strips(task, from_array(COLOURS[:100]), tmp_path, views=1)
    torch.nn.init.zeros_(next(task.network.parameters()))
    with pytest.raises(DataError, match="differs in: model"):
        predict_strips(task, image, tmp_path, views=1)


def test_missing_and_damaged_strips_are_told(tmp_path: Path) -> None:
    store = predict_strips(segmentation(), from_array(COLOURS), tmp_path, views=1)
    store.path(1).write_bytes(store.path(1).read_bytes()[:-4])
    with pytest.raises(DataError, match=r"strip_00001\.f32 is damaged"):
        joined(store)
    store.path(1).unlink()
    with pytest.raises(DataError, match=f"lacks 1 of {len(store.rows)} strips"):
        joined(store)


def test_images_unlike_the_training_and_broken_pixels_are_told(tmp_path: Path) -> None:
    task = counting(1, dtype="float32")
    with pytest.raises(DataError, match=r"expected a float32 image with 1 channels.*received uint16 with 1"):
        predict_strips(task, from_array(GREY), tmp_path)
    with pytest.raises(DataError, match="received uint8 with 3"):
        predict_strips(task, from_array(COLOURS), tmp_path)
    broken = GREY.astype(np.float32)
    broken[150, 3] = np.inf
    with pytest.raises(DataError, match="nan or infinity in rows 1"):
        predict_strips(task, from_array(broken), tmp_path)
    torch.nn.init.constant_(next(task.network.parameters()), np.nan)
    with pytest.raises(DataError, match=r"in the strip of rows 0 to 58: .* not finite"):
        predict_strips(task, from_array(GREY.astype(np.float32)), tmp_path / "b")


def test_a_map_that_the_disk_has_no_room_for_is_refused(tmp_path: Path) -> None:
    def part(rows: slice, columns: slice) -> np.ndarray:
        raise AssertionError("nothing is read")

    image = replace(from_array(COLOURS), shape=(10**5, 10**11, 3), part=part)
    with pytest.raises(DataError, match=r"needs 40000000\.00 GB more"):
        predict_strips(segmentation(tile_size=10**4), image, tmp_path)


def test_the_next_strip_is_read_while_one_is_worked_on() -> None:
    read = [threading.Event() for _ in range(4)]

    def make(number: int) -> tuple[int, torch.Tensor]:
        read[number].set()
        return number, torch.zeros(1)

    with ThreadPoolExecutor(1) as thread:
        for number, _ in StripReader(make, [0, 1, 2, 3], thread):
            assert all(event.wait(60) for event in read[: number + 2])
            assert not any(event.is_set() for event in read[number + 2 :])


def test_errors_of_reading_ahead_come_out() -> None:
    def fail(number: int) -> tuple[int, torch.Tensor]:
        if number:
            raise DataError("damaged")
        return number, torch.zeros(1)

    with ThreadPoolExecutor(1) as thread:
        strips = iter(StripReader(fail, [0, 1], thread))
        assert next(strips)[0] == 0
        with pytest.raises(DataError, match="damaged"):
            next(strips)
        assert list(StripReader(fail, [], thread)) == []


WORKER = """
import json, os, sys
from pathlib import Path
import pytorch_lightning as pl
import torch
sys.path.insert(0, sys.argv[1])
from test_strips import COLOURS, from_array, joined, predict_strips, segmentation

torch.set_num_threads(1)
options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
for number, rows in enumerate((213, 60)):  # of the second image there is one strip, for two processes
    trainer = pl.Trainer(accelerator="cpu", devices=2, strategy="ddp", **options)
    folder, done = Path(sys.argv[2]) / str(number), []
    image = from_array(COLOURS[:rows])
    count = lambda *at: done.append(at)
    store = predict_strips(segmentation(), image, folder, views=1, trainer=trainer, progress=count)
    joined(store).tofile(f"{sys.argv[2]}/map_{number}_{trainer.global_rank}")
    Path(f"{sys.argv[2]}/tiles_{number}_{trainer.global_rank}").write_text(str(len(done)))
"""


def test_two_processes_share_the_strips_and_both_see_all(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*torchrun, str(script), str(Path(__file__).parent), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    for number, rows in enumerate((213, 60)):
        tiles = [int((tmp_path / f"tiles_{number}_{rank}").read_text()) for rank in range(2)]
        strips = len(list((tmp_path / str(number)).glob("*.f32")))
        # Each tile by one of them only; of five or more strips one does at most one more.
        assert sum(tiles) == COLUMNS * strips
        assert abs(tiles[0] - tiles[1]) <= COLUMNS
        with torch.inference_mode():
            image = torch.from_numpy(COLOURS[:rows]).permute(2, 0, 1).float() * (1 / 255)
            whole = torch.sigmoid(segmentation().image_logits(image, 1))[0].numpy()
        for rank in range(2):
            found = np.fromfile(tmp_path / f"map_{number}_{rank}", np.float32).reshape(whole.shape)
            np.testing.assert_allclose(found, whole, rtol=0, atol=1e-6)
