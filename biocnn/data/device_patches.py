"""Training patches held in the memory of the device and augmented there, for when the processors cannot keep up.

Notation: M patches that are held, B patches in a batch, H = W rows and columns, C channels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from skimage.color import hed_from_rgb, rgb_from_hed

from biocnn.data.augmentation import Augmentation, PatchAugmentation
from biocnn.data.batches import Batch
from biocnn.data.dataset import ItemDataset, epoch_and_index
from biocnn.data.sampler import ItemKey
from biocnn.errors import DataError

_BLOCK = 4096  # patches that are read at once, 113 MB of PCam
_DRAWS = 13
_DARKEST = 1 / 255  # stands for black, so that its optical density is finite


class DevicePatches(ItemDataset):
    """A data set whose batches name patches, and whose images are made of them on the device.

    Order and splits are those of the data set it is made from; so is the augmentation, of which the numbers are others:
    they come from a hash of (seed, epoch, row), drawn for a whole batch at once. A batch is the same whatever it is
    a part of.

    Args:
        items: the patches, with their rows and their seed; their augmentation is done here instead.
        augmentation: how strong it is.
        labels: (M,) int64.
        ids: (M,) bytes.
        groups: (M,) bytes, None without a group rule.

    Raises:
        DataError: if the augmentation is not a :class:`PatchAugmentation`, or jitters stains of images that are
            not RGB.
    """

    def __init__(
        self,
        items: ItemDataset,
        augmentation: Augmentation,
        labels: np.ndarray,
        ids: np.ndarray,
        groups: np.ndarray | None,
    ) -> None:
        if type(augmentation) is not PatchAugmentation:
            raise DataError(
                f"Patches on the device are augmented as PatchAugmentation says, received "
                f"{type(augmentation).__name__}. Leave out --data.on_device to use it."
            )
        self._shape = items.source.read(items.rows[:1])["image"].shape[1:]
        if augmentation.hed_sigma and self._shape[2] != 3:
            raise DataError(
                f"Stains are jittered in RGB images, received {self._shape[2]} channel(s): set hed_sigma to 0."
            )
        super().__init__(items.source, items.rows, None, items.seed)
        self._strength = augmentation
        self._labels, self._ids, self._groups = labels, ids, groups
        self._patches: torch.Tensor | None = None

    def __getitems__(self, keys: Sequence[ItemKey | int]) -> Batch:
        epochs, index = np.array([epoch_and_index(key) for key in keys], np.int64).T
        uniform = uniforms(self.seed, epochs, self.rows[index], _DRAWS)
        groups = [] if self._groups is None else [name.decode() for name in self._groups[index].tolist()]
        return {
            "label": torch.from_numpy(self._labels[index]),
            "index": torch.from_numpy(index),
            "id": [name.decode() for name in self._ids[index].tolist()],
            "group": groups,
            **drawn(uniform, self._strength),
        }

    def complete(self, batch: Batch) -> Batch:
        """The batch with its images, (B, C, H, W) float32 in 0..1, made on the device where its rest already is.

        The first one moves all patches there.

        Raises:
            DataError: if they do not fit.
        """
        index = batch["index"]
        if self._patches is None or self._patches.device != index.device:
            self._patches = self._moved(index.device)
        image = placed(self._patches, index, batch["symmetry"], batch["shift"])
        image = image.permute(0, 3, 1, 2).float() / 255
        if self._strength.hed_sigma:
            image = torch.where(batch["stained"][:, None, None, None], stained(image, batch["stains"]), image)
        gain, offset = batch["tone"].T[:, :, None, None, None]
        batch = {name: value for name, value in batch.items() if name not in _RECIPE}
        return {**batch, "image": (image * gain + offset).clamp_(0, 1)}

    def _moved(self, device: torch.device) -> torch.Tensor:
        needed = len(self) * int(np.prod(self._shape))
        if device.type == "cuda" and needed > (free := torch.cuda.mem_get_info(device)[0]):
            raise DataError(
                f"The {len(self):,} training patches take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB of {device} "
                "are free. Leave out --data.on_device."
            )
        patches = torch.empty((len(self), *self._shape), dtype=torch.uint8, device=device)
        for start in range(0, len(self), _BLOCK):
            block = self.source.read(self.rows[start : start + _BLOCK])["image"]
            patches[start : start + _BLOCK] = torch.from_numpy(block)
        return patches


_RECIPE = ("symmetry", "shift", "stained", "stains", "tone")


def uniforms(seed: int, epochs: np.ndarray, items: np.ndarray, count: int) -> np.ndarray:
    """Random numbers of (seed, epoch, item) and of nothing else.

    Each of the three is taken in by one step of SplitMix64, whose further steps give the numbers.

    Reference: Steele, Lea, Flood: Fast splittable pseudorandom number generators. OOPSLA 2014.

    Args:
        seed: non-negative.
        epochs: (B,) integers.
        items: (B,) integers.
        count: K, numbers of each item.

    Returns:
        (B, K) float64, uniform in 0..1 without 1.
    """
    state = np.full(len(items), seed, np.uint64)
    for key in (np.zeros(len(items), np.uint64), epochs.astype(np.uint64), items.astype(np.uint64)):
        state = splitmix(state, 1)[:, 0] ^ key
    return (splitmix(state, count) >> np.uint64(11)) * 2.0**-53


def splitmix(state: np.ndarray, count: int) -> np.ndarray:
    """The next K outputs of SplitMix64 generators: (B,) uint64 states to (B, K) uint64."""
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = state[:, None] + steps
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def drawn(uniform: np.ndarray, strength: PatchAugmentation) -> dict[str, Any]:
    """What is done to each patch, from uniform numbers, with the distributions of :class:`PatchAugmentation`.

    Args:
        uniform: (B, 13) in 0..1 without 1.
        strength: of the augmentation.

    Returns:
        ``symmetry`` (B,) int64 in 0..7, see :func:`placed`; ``shift`` (B, 2) int64 in pixels, rows and columns;
        ``stained`` (B,) bool; ``stains`` (B, 3, 4) float32, see :func:`stained`; ``tone`` (B, 2) float32, factor
        and offset on values in 0..1.
    """
    symmetry = np.floor(8 * uniform[:, 0]).astype(np.int64)
    shift = np.floor((2 * strength.max_shift + 1) * uniform[:, 1:3]).astype(np.int64) - strength.max_shift
    signed = 2 * uniform - 1
    alpha, beta = 1 + strength.hed_sigma * signed[:, 4:7], strength.hed_sigma * signed[:, 7:10]
    linear = np.einsum("ds,bs,se->bed", hed_from_rgb, alpha, rgb_from_hed)
    stains = np.concatenate([linear, (beta @ rgb_from_hed)[:, :, None]], axis=2)
    contrast, brightness = np.where(uniform[:, 10] < 0.5, strength.brightness * signed[:, 11:13].T, 0.0)
    tone = np.stack([1 + contrast, brightness], axis=1)
    return {
        "symmetry": torch.from_numpy(symmetry),
        "shift": torch.from_numpy(shift),
        "stained": torch.from_numpy(uniform[:, 3] < strength.hed_probability),
        "stains": torch.from_numpy(stains.astype(np.float32)),
        "tone": torch.from_numpy(tone.astype(np.float32)),
    }


def placed(patches: torch.Tensor, index: torch.Tensor, symmetry: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Patches turned, mirrored and shifted, in one look-up of pixels; nothing is interpolated.

    Args:
        patches: (M, H, H, C).
        index: (B,) int64, which of them.
        symmetry: (B,) int64: 1 mirrors rows, 2 columns, and 4 transposes before that; they add up.
        shift: (B, 2) int64, rows and columns that the turned patch moves by; the border is mirrored.

    Returns:
        (B, H, H, C).
    """
    side, channels = patches.shape[1], patches.shape[3]
    place = torch.arange(side, device=patches.device) - shift[:, :, None]  # (B, 2, H)
    place = side - 1 - (side - 1 - place.abs()).abs()  # mirrored without repeating the border
    mirrored = torch.stack([symmetry & 1, symmetry & 2], dim=1).bool()
    rows, columns = torch.where(mirrored[:, :, None], side - 1 - place, place).unbind(1)
    rows, columns = rows[:, :, None], columns[:, None, :]
    pixel = torch.where((symmetry & 4).bool()[:, None, None], columns * side + rows, rows * side + columns)
    return patches.view(-1, channels)[pixel + index[:, None, None] * side**2]


def stained(image: torch.Tensor, stains: torch.Tensor) -> torch.Tensor:
    """Images with other amounts of stain, see :class:`biocnn.data.augmentation.HEDJitter`; nothing is rounded.

    Args:
        image: (B, 3, H, W) float32 in 0..1.
        stains: (B, 3, 4), acting on (optical density, 1).

    Returns:
        (B, 3, H, W) float32 in 0..1.
    """
    density = -image.clamp(min=_DARKEST).log()
    # Term by term, and not as a matrix product, whose rounding depends on the size of the batch.
    changed = stains[:, :, 3, None, None].expand_as(image)
    for channel in range(3):
        changed = changed + stains[:, :, channel, None, None] * density[:, channel : channel + 1]
    return (-changed).exp().clamp_(max=1)
