from collections.abc import Callable
from pathlib import Path
from typing import Any

import albumentations as A
import numpy as np
import pytest
import torch

from biocnn.data.augmentation import HEDJitter, PatchAugmentation, RandomShift, TileAugmentation
from biocnn.data.batches import Batch
from biocnn.data.device_patches import drawn, placed, splitmix, stained, uniforms
from biocnn.data.patch_module import PatchDataModule
from biocnn.errors import DataError

STILL = PatchAugmentation(max_shift=0, hed_sigma=0.0, brightness=0.0)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def module(root: Path, augmentation: PatchAugmentation | None = None, seed: int = 0) -> PatchDataModule:
    made = PatchDataModule(str(root), augmentation=augmentation, batch_size=8, num_workers=0, seed=seed, on_device=True)
    made.setup("fit")
    return made


def batch_of(made: PatchDataModule, keys: list[tuple[int, int]]) -> Batch:
    return made.on_after_batch_transfer(made.dataset("train").__getitems__(keys), 0)


def test_splitmix_gives_the_published_numbers() -> None:
    # The first outputs of the reference implementation (Vigna, splitmix64.c) for the seed 1234567.
    found = splitmix(np.array([1234567], np.uint64), 5)[0].tolist()
    assert found == [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821
    ]  # fmt: skip


def test_numbers_are_uniform_and_independent() -> None:
    epochs, items = (grid.ravel() for grid in np.meshgrid(np.arange(20), np.arange(2000)))
    found = uniforms(3, epochs, items, 4)
    assert found.min() >= 0
    assert found.max() < 1
    # Deciles of 160,000 numbers: the variance of a share of n is p (1 - p) / n; five standard deviations.
    counts = np.histogram(found, 10, (0, 1))[0] / found.size
    assert np.abs(counts - 0.1).max() < 5 * np.sqrt(0.09 / found.size)
    # Neighbours in every direction: number, item, epoch and seed. A correlation of n has a deviation of 1 / sqrt(n).
    table = found.reshape(2000, 20, 4)
    other = uniforms(4, epochs, items, 4).reshape(2000, 20, 4)
    pairs = [(table[..., 1:], table[..., :-1]), (table[1:], table[:-1]), (table[:, 1:], table[:, :-1]), (table, other)]
    for first, second in pairs:
        assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 5 / np.sqrt(first.size)


def test_symmetries_are_exact() -> None:
    patches = noise(3, 6, 6, 2)
    turned = placed(
        torch.from_numpy(patches), torch.full((8,), 1), torch.arange(8), torch.zeros(8, 2, dtype=torch.long)
    ).numpy()
    for number in range(8):
        expected = patches[1].transpose(1, 0, 2) if number & 4 else patches[1]
        expected = expected[::-1] if number & 1 else expected
        expected = expected[:, ::-1] if number & 2 else expected
        np.testing.assert_array_equal(turned[number], expected)
    whole = {np.rot90(side, quarter).tobytes() for side in (patches[1], patches[1][::-1]) for quarter in range(4)}
    assert {image.tobytes() for image in turned} == whole


def test_shifts_are_those_of_the_ordinary_augmentation() -> None:
    patch = noise(1, 9, 9, 3)
    shift = torch.tensor([[rows, columns] for rows in range(-4, 5) for columns in (-4, 0, 3)])
    zeros = torch.zeros(len(shift), dtype=torch.long)
    moved = placed(torch.from_numpy(patch), zeros, zeros, shift).numpy()
    for image, (rows, columns) in zip(moved, shift.tolist(), strict=True):
        np.testing.assert_array_equal(image, RandomShift(4).apply(patch[0], rows, columns))


def test_stains_are_those_of_the_ordinary_augmentation_without_its_rounding() -> None:
    patches = noise(4, 16, 16, 3)
    stains = drawn(uniforms(0, np.zeros(4, int), np.arange(4), 13), PatchAugmentation(hed_sigma=0.2))["stains"]
    found = stained(torch.from_numpy(patches).permute(0, 3, 1, 2) / 255, stains).permute(0, 2, 3, 1).numpy() * 255
    for image, patch, matrix in zip(found, patches, stains.double().numpy(), strict=True):
        expected = HEDJitter().apply(patch, matrix).astype(float)
        # Half a grey level of rounding, and some for logarithms in single precision.
        np.testing.assert_allclose(image, expected, atol=0.5 + 1e-2, rtol=0)


def test_tones_are_those_of_albumentations(make_pcam: Callable[..., Path]) -> None:
    strength = PatchAugmentation(max_shift=0, hed_sigma=0.0, brightness=0.3)
    made = module(make_pcam(), strength)
    keys = [(0, item) for item in range(16)]
    tones = drawn(uniforms(0, np.zeros(16, int), np.arange(16), 13), strength)["tone"].double().tolist()
    assert 0 < sum(tone == [1.0, 0.0] for tone in tones) < 16
    plain = batch_of(module(Path(made.root), STILL), keys)["image"]
    for image, patch, (gain, offset) in zip(batch_of(made, keys)["image"], plain, tones, strict=True):
        same = A.RandomBrightnessContrast((offset, offset), (gain - 1, gain - 1), p=1.0)
        expected = same(image=(patch.permute(1, 2, 0) * 255).round().byte().numpy())["image"]
        # albumentations cuts to whole grey levels.
        np.testing.assert_allclose(image.permute(1, 2, 0).numpy() * 255, expected, atol=1 + 1e-3, rtol=0)


def test_strengths_have_the_distributions_of_the_ordinary_augmentation() -> None:
    count = 20_000
    found = drawn(uniforms(1, np.zeros(count, int), np.arange(count), 13), PatchAugmentation())

    def near(values: torch.Tensor, mean: float, deviation: float) -> bool:
        return abs(float(values.double().mean()) - mean) < 5 * deviation / np.sqrt(count)

    for number in range(8):
        assert near(found["symmetry"] == number, 1 / 8, np.sqrt(7 / 64))
    for moved in range(-4, 5):
        assert near(found["shift"][:, 0] == moved, 1 / 9, np.sqrt(8 / 81))
        assert near(found["shift"][:, 1] == moved, 1 / 9, np.sqrt(8 / 81))
    assert near(found["stained"], 0.75, np.sqrt(3 / 16))
    gain, offset = found["tone"].unbind(1)
    assert near((gain == 1) & (offset == 0), 0.5, 0.5)
    # Uniform in -0.1..0.1 in half of the cases.
    assert near(gain - 1, 0.0, 0.1 / np.sqrt(6))
    assert near((offset / 0.1) ** 2, 1 / 6, 0.3)
    assert offset.abs().max() <= 0.1
    # The amounts average to the same stains: the mean matrix is the identity, and the mean shift is none.
    assert torch.allclose(found["stains"].mean(0), torch.eye(3, 4), atol=5 * 0.05 / np.sqrt(count) * 3)


def test_items_and_their_order_are_those_of_the_ordinary_loader(make_pcam: Callable[..., Path]) -> None:
    root = make_pcam()
    ordinary = PatchDataModule(str(root), batch_size=8, num_workers=0)
    ordinary.setup("fit")
    held = module(root, STILL)
    for epoch in (0, 1):
        loaders = [made.train_dataloader() for made in (ordinary, held)]
        for loader in loaders:
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        for expected, found in zip(*loaders, strict=True):
            assert "image" not in found
            found = held.on_after_batch_transfer(found, 0)
            assert found.keys() == expected.keys()
            for name in ("label", "index"):
                assert torch.equal(found[name], expected[name])
            assert (found["id"], found["group"]) == (expected["id"], expected["group"])
            stored = held._datasets["train"].source.read(expected["index"].numpy())["image"]
            for image, patch in zip(found["image"], stored, strict=True):
                # Turned, and nothing else: the pixels are the same ones.
                pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
                first, second = (np.sort(array.astype(int) @ (1, 256, 65536), axis=None) for array in (pixels, patch))
                np.testing.assert_array_equal(first, second)
    assert held.dataset("valid")[0]["image"].dtype == torch.uint8


def test_a_batch_does_not_depend_on_how_it_is_split(make_pcam: Callable[..., Path]) -> None:
    root = make_pcam()
    made = module(root)
    keys: list[tuple[int, int]] = [(epoch, item) for epoch in (0, 1) for item in range(10)]
    whole = batch_of(made, keys)["image"]
    assert whole.shape == (20, 3, 96, 96)
    assert 0 <= float(whole.min()) < float(whole.max()) <= 1
    parts = [batch_of(module(root), keys[start:stop])["image"] for start, stop in ((0, 1), (1, 8), (8, 20))]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole[:10], whole[10:])
    assert not torch.equal(whole, batch_of(module(root, seed=1), keys)["image"])


def test_what_cannot_be_done_on_the_device_is_refused(make_pcam: Callable[..., Path]) -> None:
    made: Any = PatchDataModule(str(make_pcam()), augmentation=TileAugmentation(), num_workers=0, on_device=True)
    with pytest.raises(DataError, match=r"received TileAugmentation\. Leave out --data\.on_device"):
        made.setup("fit")
