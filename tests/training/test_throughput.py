import csv
import mmap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from torch.utils.data import DataLoader, Dataset, IterableDataset

from biocnn.training.logger import MetricsCSV
from biocnn.training.throughput import DeviceTime, HostTime, Throughput, host_memory, starving


class Clock:
    """Stands still but for what is said to take time."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Images(Dataset[dict[str, Any]]):
    def __init__(self, clock: Clock, reading: float, count: int) -> None:
        self.clock, self.reading, self.count = clock, reading, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, item: int) -> dict[str, Any]:
        self.clock.now += self.reading
        return {"image": torch.zeros(1)}


class Stream(IterableDataset[dict[str, Any]]):
    """The same without a length, of which Lightning fetches one batch ahead."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self.images[item] for item in range(len(self.images)))


class Work(pl.LightningModule):
    def __init__(self, clock: Clock, training: float) -> None:
        super().__init__()
        self.clock, self.training_time = clock, training
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        self.clock.now += self.training_time
        return self.weight.sum()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.clock.now += 1000

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1.0)


class SlowCheckpoint(Checkpoint):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_end(self, *args: Any) -> None:
        self.clock.now += 0.5

    def on_train_epoch_end(self, *args: Any) -> None:
        self.clock.now += 1000


def fit(
    folder: Path, reading: float, training: float, stream: bool = False, epochs: int = 2, **arguments: Any
) -> tuple[list[dict[str, str]], list[str]]:
    """Rows of the table, and what was warned of: 8 batches of 4 images an epoch."""
    clock = Clock()
    images = Images(clock, reading / 4, 32)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=epochs, logger=MetricsCSV(folder), log_every_n_steps=4, num_sanity_val_steps=0,
        enable_progress_bar=False, enable_model_summary=False, val_check_interval=2, check_val_every_n_epoch=None,
        callbacks=[SlowCheckpoint(clock), Throughput(MetricsCSV(folder, table="throughput.csv"), HostTime(clock))],
        **arguments,
    )  # fmt: skip
    loader: Any = DataLoader(Stream(images) if stream else images, 4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(Work(clock, training), loader, DataLoader(Images(clock, 1000, 1)))
    rows = list(csv.DictReader((folder / "throughput.csv").open()))
    return rows, [str(warning.message) for warning in caught if "waits for data" in str(warning.message)]


def numbers(rows: list[dict[str, str]], *names: str) -> list[tuple[float, ...]]:
    return [tuple(float(row[name]) for name in names) for row in rows if all(row[name] for name in names)]


# A step takes `training` + 0.5 s for its checkpoint; validations and ends of epochs take 1000 s, which do not count.
@pytest.mark.parametrize(("reading", "training"), [(4.5, 1.0), (0.0, 1.0), (0.25, 3.5)])
def test_rates_and_waits_are_those_of_a_closed_form(tmp_path: Path, reading: float, training: float) -> None:
    rows, warned = fit(tmp_path, reading, training)
    step, share = reading + training + 0.5, reading / (reading + training + 0.5)
    assert numbers(rows, "epoch", "step", "images_per_s", "data_wait_share") == [
        (epoch, number, pytest.approx(4 / step), pytest.approx(share))
        for epoch, number in ((0, 3), (0, 7), (1, 11), (1, 15))
    ]
    assert numbers(rows, "epoch", "step", "epoch_images_per_s", "epoch_data_wait_share") == [
        (epoch, 8 * epoch + 7, pytest.approx(4 / step), pytest.approx(share)) for epoch in (0, 1)
    ]
    assert len(warned) == (share > 0.2)
    assert all("75 % of the time" in text and "(now 0)" in text for text in warned)
    # Names that are compared bit by bit between runs hold none of it.
    assert not (tmp_path / "metrics.csv").exists()


def test_one_batch_fetched_ahead_changes_where_the_wait_falls_but_not_its_length(tmp_path: Path) -> None:
    rows, _ = fit(tmp_path, 1.0, 2.5, stream=True, epochs=1)
    # The first batch is fetched before the epoch begins, the last fetches nothing: 8 batches are 7 waits within it.
    assert numbers(rows, "epoch_data_wait_share") == [(pytest.approx(7 / (7 + 8 * 3)),)]


def test_accumulated_batches_are_logged_once_a_step(tmp_path: Path) -> None:
    rows, _ = fit(tmp_path, 1.0, 1.5, accumulate_grad_batches=2)
    assert numbers(rows, "step", "images_per_s") == [(3, pytest.approx(4 / 3)), (7, pytest.approx(4 / 3))]


def test_what_is_said_names_the_device_and_the_setting() -> None:
    assert starving(0.43, True, 0).startswith(
        "The GPU waits for data 43 % of the time: raise --data.num_workers (now 0)"
    )
    assert starving(0.43, False, 2).startswith("The training waits for data 43 % of the time. If cores are idle")


def test_memory_is_that_of_the_process_and_its_children(tmp_path: Path) -> None:
    def describe(name: str, anonymous: int, shared: int, mapped: int) -> None:
        (tmp_path / name).mkdir(exist_ok=True)
        lines = ["0-1 ---p 0 00:00 0 [rollup]", f"Rss: {10 * mapped} kB", f"Pss_Anon: {anonymous} kB"]
        lines += [f"Pss_File: {mapped} kB", f"Pss_Shmem: {shared} kB"]
        (tmp_path / name / "smaps_rollup").write_text("\n".join(lines) + "\n")

    assert host_memory(tmp_path) is None
    describe("self", 100, 20, 5000)
    for thread, children in (("1", "7 9 "), ("2", "8 ")):
        (tmp_path / "self" / "task" / thread).mkdir(parents=True)
        (tmp_path / "self" / "task" / thread / "children").write_text(children)
    describe("7", 3, 0, 1)
    describe("8", 0, 4, 1)  # 9 has just ended
    assert host_memory(tmp_path) == 1024 * (120 + 3 + 4)


def test_memory_of_this_process_grows_with_what_it_holds() -> None:
    before = host_memory()
    if before is None:
        pytest.skip("only Linux tells")
    # From the system: an allocator may have room left over from what was freed.
    with mmap.mmap(-1, 50_000_000) as held:
        for page in range(0, len(held), mmap.PAGESIZE):
            held[page] = 1
        after = host_memory()
        assert after is not None
        # Allocators give back and take some at the same time; nothing else of this size happens.
        assert after - before == pytest.approx(len(held), rel=0.2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_time_of_a_gpu_is_that_of_its_work_and_not_of_queueing_it() -> None:
    factor = torch.rand(8192, 8192, device="cuda")
    for _ in range(3):
        factor @ factor
    torch.cuda.synchronize()
    clock, watch = HostTime(), DeviceTime()
    begun, start = clock.mark(), watch.mark()
    for _ in range(20):
        factor @ factor
    stop, queued = watch.mark(), clock.mark()
    found = watch.seconds(start, stop)
    assert found == pytest.approx(clock.seconds(begun, clock.mark()), rel=0.2)
    assert found > 2 * clock.seconds(begun, queued)
