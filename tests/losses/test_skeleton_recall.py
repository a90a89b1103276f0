import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.morphology import dilation, skeletonize

from biocnn.errors import DataError
from biocnn.losses import SkeletonRecall, skeleton_tube


def blobs(shape: tuple[int, ...], seed: int) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    return noise > 0.5 * noise.std()


def slow_recall(logits: torch.Tensor, tube: torch.Tensor) -> float:
    values = []
    for b, c in np.ndindex(logits.shape[:2]):
        found = total = 0.0
        for place in np.ndindex(logits.shape[2:]):
            if tube[(b, c, *place)]:
                found, total = found + 1 / (1 + math.exp(-logits[(b, c, *place)])), total + 1
        values.append(1 - found / total if total else 0.0)
    return float(np.mean(values))


@pytest.mark.parametrize("shape", [(3, 2, 9, 8), (2, 1, 5, 6, 7)])
def test_values(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, dtype=torch.float64, generator=generator)
    tube = (torch.rand(shape, generator=generator) > 0.7).double()
    tube[0, 0] = 0
    assert SkeletonRecall()(logits, tube).item() == pytest.approx(slow_recall(logits, tube), rel=1e-12)


def test_gradient_is_in_the_tube_only() -> None:
    tube = torch.zeros(1, 1, 9, 9)
    tube[..., 4, :] = 1
    logits = torch.zeros(1, 1, 9, 9, requires_grad=True)
    SkeletonRecall()(logits, tube).backward()
    assert logits.grad is not None
    assert (logits.grad[tube > 0] < 0).all()
    assert (logits.grad[tube == 0] == 0).all()


@pytest.mark.parametrize("shape", [(60, 70), (24, 26, 28)])
def test_tube_is_that_of_the_paper_where_no_component_is_lost(shape: tuple[int, ...]) -> None:
    mask = blobs(shape, 0)
    label, _ = ndimage.label(mask, np.ones((3,) * mask.ndim))
    skeleton = skeletonize(mask) > 0
    kept = np.isin(label, label[skeleton]) & mask
    assert kept.any()
    expected = dilation(dilation(skeletonize(kept) > 0)) * kept
    tube = skeleton_tube(kept)
    assert tube.dtype == np.uint8
    np.testing.assert_array_equal(tube, expected)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shape", [(60, 70), (24, 26, 28)])
@pytest.mark.parametrize("radius", [0, 1, 3])
def test_every_component_keeps_a_pixel_and_the_tube_stays_inside(
    shape: tuple[int, ...], seed: int, radius: int
) -> None:
    mask = blobs(shape, seed) | (np.random.default_rng(seed).random(shape) > 0.99)
    label, count = ndimage.label(mask, np.ones((3,) * mask.ndim))
    tube = skeleton_tube(mask, radius)
    assert set(np.unique(label[tube > 0])) == set(range(1, count + 1))
    assert not (tube[~mask]).any()


@pytest.mark.parametrize("width", [2, 4, 6])
def test_columns_of_even_width_keep_their_length(width: int) -> None:
    mask = np.zeros((110, 16, 16), bool)
    mask[5:105, 4 : 4 + width, 4 : 4 + width] = True
    mask[:, 0, 0] = True  # another component
    column = skeleton_tube(mask, 0)[:, 2:, 2:]
    planes = column.any((1, 2))
    assert planes[5 + width : 105 - width].all()
    assert column.sum() < 2 * 100


@pytest.mark.parametrize("shape", [(2, 2), (2, 2, 2), (1, 1), (1, 1, 1), (1, 2, 3)])
def test_specks(shape: tuple[int, ...]) -> None:
    mask = np.zeros([size + 4 for size in shape], np.int64)
    mask[tuple(slice(2, 2 + size) for size in shape)] = 1
    assert 1 <= skeleton_tube(mask, 0).sum() <= 3
    assert np.array_equal(skeleton_tube(np.ones(shape, bool), 2).shape, shape)
    assert skeleton_tube(np.ones(shape, bool)).sum() >= 1


def test_known_by_hand() -> None:
    mask = np.zeros((9, 15), bool)
    mask[1:8, 1:14] = True
    tube = skeleton_tube(mask, 1)
    assert tube[4, 5:10].all()
    assert tube[3, 6:9].all()
    assert tube[5, 6:9].all()
    assert not tube[2, 6:9].any()
    assert not skeleton_tube(np.zeros((5, 5))).any()


def test_bad_input() -> None:
    for radius in (-1, 1.5, True):
        with pytest.raises(ValueError, match="radius must be an int of 0 or more"):
            skeleton_tube(np.ones((3, 3)), radius)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"received \(1, 1, 3, 3\)"):
        skeleton_tube(np.ones((1, 1, 3, 3)))
    for value in (255, 0.5, np.nan):
        with pytest.raises(DataError, match="expected 0 and 1 only"):
            skeleton_tube(np.full((3, 3), value))
