"""What `biocnn predict` makes of thirty bad inputs, each in a process of its own, and how long it takes to start.

    python benchmarks/bad_inputs.py

makes a small model that was not trained and the inputs in a temporary folder, and prints two tables in Markdown. The
processes of the first are forked when everything is imported, those of the second are started anew.
"""

import json
import os
import re
import resource
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import h5py
import numpy as np
import pytorch_lightning as pl
import tifffile
import torch
import zarr
from PIL import Image

from biocnn.checkpoints import update_biocnn_section
from biocnn.cli import main as biocnn
from biocnn.networks import UNet
from biocnn.tasks.segmentation import SegmentationTask
from biocnn.tasks.thresholds import Thresholds

GREY = np.random.default_rng(0).integers(0, 256, (96, 128), dtype=np.uint8)
STARTS = 3


class Code:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple:
        return os.system, ("touch pwned",)


def checkpoint(path: Path, side: int = 256) -> None:
    """A small network with 8 views, for grey images of 0.5 um per pixel."""
    torch.manual_seed(0)
    task = SegmentationTask(UNet(1, channels=(16, 32)), image_mean=[0.5], image_std=[0.3], tile_size=side)
    task.thresholds = Thresholds(0.5, 0, 8, 1, True)
    task.data_description = {"pixel_size_um": [0.5, 0.5], "channels": ["grey"], "dtype": "uint8"}
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.strategy.connect(task)
    trainer.save_checkpoint(path)


def ome(path: Path, image: np.ndarray = GREY, size: float = 0.5, **options: object) -> None:
    sizes = {"PhysicalSizeX": size, "PhysicalSizeY": size}
    tifffile.imwrite(path, image, ome=True, metadata={"axes": "YX", **sizes}, **options)


def cut(write: Callable[[Path], object], keep: float) -> Callable[[Path], None]:
    """What is written, without its end."""

    def make(path: Path) -> None:
        write(path)
        content = path.read_bytes()
        path.write_bytes(content[: int(keep * len(content))])

    return make


def png_bomb(path: Path) -> None:
    """A hundred kilobytes that say they are 100,000 x 100,000 pixels."""
    side = 100_000
    rows = zlib.compress(bytes(1000 * (side + 1)), 1)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def hdf5(path: Path, shape: tuple[int, ...], **options: object) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("image", shape, np.uint8, **options)


def two_arrays(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["a"], file["b"] = GREY, GREY


def sparse_zarr(path: Path) -> None:
    zarr.create_array(path, shape=(3_000_000, 3_000_000), chunks=(1024, 1024), dtype=np.uint8)


IMAGES: list[tuple[str, str, Callable[[Path], object]]] = [
    ("zero bytes", "empty.tif", lambda path: path.write_bytes(b"")),
    ("zero bytes, PNG", "empty.png", lambda path: path.write_bytes(b"")),
    ("text named .tif", "text.tif", lambda path: path.write_text("image,row\na,1\n")),
    ("web page named .png", "page.png", lambda path: path.write_text("<html>404</html>")),
    ("encrypted (random bytes)", "secret.tif", lambda path: path.write_bytes(np.random.default_rng(1).bytes(50_000))),
    ("TIFF header, then noise", "noise.tif", lambda path: path.write_bytes(b"II*\0" + GREY.tobytes())),
    ("OME-TIFF cut in half", "half.ome.tif", cut(ome, 0.5)),
    ("OME-TIFF without its last 100 bytes", "end.ome.tif", cut(ome, 1 - 100 / GREY.size)),
    ("PNG cut in half", "half.png", cut(lambda path: Image.fromarray(GREY).save(path), 0.5)),
    ("JPEG cut in half", "half.jpg", cut(lambda path: Image.fromarray(GREY).save(path), 0.5)),
    ("HDF5 cut in half", "half.h5", cut(lambda path: hdf5(path, GREY.shape, data=GREY), 0.5)),
    ("three channels for a model of one", "colour.png", lambda path: Image.fromarray(np.dstack([GREY] * 3)).save(path)),
    ("16 bits for a model of 8", "deep.tif", lambda path: tifffile.imwrite(path, GREY.astype(np.uint16))),
    ("floats with nan", "nan.tif", lambda path: tifffile.imwrite(path, np.full((64, 64), np.nan, np.float32))),
    ("complex numbers", "complex.tif", lambda path: tifffile.imwrite(path, GREY.astype(np.complex64))),
    ("no pixel size", "nosize.png", lambda path: Image.fromarray(GREY).save(path)),
    ("pixel size 0.001 of the training's", "tiny.ome.tif", lambda path: ome(path, GREY, 0.0005)),
    ("pixel size 10,000 times the training's", "huge.ome.tif", lambda path: ome(path, GREY, 5000.0)),
    ("one pixel", "pixel.ome.tif", lambda path: ome(path, GREY[:1, :1])),
    ("PNG bomb, 100,000 x 100,000", "bomb.png", png_bomb),
    ("HDF5 bomb, 1,000,000 x 1,000,000", "bomb.h5", lambda path: hdf5(path, (10**6, 10**6), chunks=(512, 512))),
    ("Zarr bomb, 3,000,000 x 3,000,000", "bomb.zarr", sparse_zarr),
    ("HDF5 of two arrays, no --key", "two.h5", two_arrays),
    ("folder named .zarr", "folder.zarr", lambda path: path.mkdir()),
]


def models(folder: Path, good: Path) -> list[tuple[str, Path]]:
    """Checkpoints that cannot be used."""
    found = []
    torch.save({"state_dict": {}, "biocnn": Code()}, folder / "code.ckpt")
    found.append(("checkpoint that carries code", folder / "code.ckpt"))
    (folder / "torn.ckpt").write_bytes(good.read_bytes()[:-3000])
    found.append(("checkpoint without its end", folder / "torn.ckpt"))
    torch.save({"state_dict": {}}, folder / "foreign.ckpt")
    found.append(("checkpoint of another program", folder / "foreign.ckpt"))
    for name, words, values in (
        ("version", "checkpoint of another version", {"format": 99}),
        ("job", "checkpoint of a job that is not known", {"task": "RegistrationTask"}),
    ):
        path = folder / f"{name}.ckpt"
        path.write_bytes(good.read_bytes())
        update_biocnn_section(path, **values)
        found.append((words, path))
    return found


def arguments(image: Path, model: Path, out: Path) -> list[str]:
    return ["predict", str(image), "--model", str(model), "--out", str(out), "--device", "cpu"]


def run(folder: Path, image: Path, model: Path, out: Path, before: Callable[[], None] | None = None) -> tuple[int, str]:
    """Exit code, and what was said."""
    said = folder / "said"
    child = os.fork()
    if not child:
        code = 1
        try:
            os.chdir(folder)
            # As a process of the shell has it: both streams in files, and nothing of this one's in their buffers.
            for stream, name in ((1, "answer"), (2, "said")):
                os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
            if before is not None:
                before()
            code = biocnn(arguments(image, model, out))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    lines = [
        line
        for line in said.read_text().splitlines()
        if line.startswith(("failed:", "biocnn:", "Traceback", str(image)))
    ]
    return code, re.sub(rf"{re.escape(str(folder))}/(in/)?", "", lines[0] if lines else _flags(out))


def start(image: Path, model: Path, out: Path) -> tuple[float, float]:
    """Seconds from the command to its end, and of the processor."""
    before, since = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "biocnn.cli", *arguments(image, model, out)]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    seconds, after = time.perf_counter() - since, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _flags(out: Path) -> str:
    results = list(out.glob("images/*/result.json"))
    flags = [json.loads(path.read_text())["row"]["flags"] for path in results]
    return "; ".join(["predicted", *filter(None, flags)]) if results else ""


def small_files() -> None:
    """No file may grow beyond 20 kB, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def main() -> None:
    """Print both tables."""
    torch.set_num_threads(1)  # a process with threads is not to be forked
    import_module("biocnn.report.predictions")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        good, image = folder / "good.ckpt", folder / "in/good.ome.tif"
        checkpoint(good)
        ome(image, np.tile(GREY, (6, 4))[:512, :512])
        print("| input | exit code | what was said |\n|---|---|---|", flush=True)
        for words, file, make in IMAGES:
            make(folder / "in" / file)
            code, said = run(folder, folder / "in" / file, good, folder / "out" / file)
            print(f"| {words} | {code} | {said} |", flush=True)
        for words, model in models(folder, good):
            code, said = run(folder, image, model, folder / "out" / model.stem)
            ran = "; **its code ran**" if (folder / "pwned").exists() else ""
            print(f"| {words} | {code} | {said}{ran} |", flush=True)
        code, said = run(folder, image, good, folder / "out/full", small_files)
        print(f"| disk full | {code} | {said} |\n", flush=True)
        print("| start-up, one image of 512 x 512 px | seconds | of the processor |\n|---|---|---|")
        for number in range(STARTS):
            seconds, processor = start(image, good, folder / f"out/start{number}")
            print(f"| run {number + 1} | {seconds:.1f} | {processor:.1f} |", flush=True)


if __name__ == "__main__":
    main()
