"""The soft skeleton against loops, against MONAI where that is right, and at the border, where it is not."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional as F

from biocnn.losses.skeleton import continue_outwards, iterations_for_radius, soft_skeleton

CASES = [((2, 1, 11, 13), 1), ((1, 2, 9, 16), 3), ((1, 1, 6, 7, 8), 2)]


def draw(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def slow_skeleton(image: np.ndarray, iterations: int) -> np.ndarray:
    """Algorithm 1 of the paper on one image that goes on for ever: scipy's own padding of a wide margin."""
    margin = iterations + 3
    cross = ndimage.generate_binary_structure(image.ndim, 1)
    image = np.pad(image, margin, mode="edge")
    skeleton = np.zeros_like(image)
    for _ in range(iterations + 1):
        eroded = ndimage.grey_erosion(image, footprint=cross, mode="nearest")
        delta = np.maximum(image - ndimage.grey_dilation(eroded, size=3, mode="nearest"), 0)
        skeleton = skeleton + np.maximum(delta - skeleton * delta, 0)
        image = eroded
    return skeleton[(slice(margin, -margin),) * image.ndim]


@pytest.mark.parametrize(("shape", "iterations"), CASES)
def test_values_are_those_of_the_paper(shape: tuple[int, ...], iterations: int) -> None:
    image = draw(shape)
    skeleton = soft_skeleton(image, iterations)
    assert skeleton.shape == image.shape
    for b, c in np.ndindex(shape[:2]):
        np.testing.assert_allclose(skeleton[b, c], slow_skeleton(image[b, c].numpy(), iterations), rtol=0, atol=1e-11)


@pytest.mark.parametrize(("shape", "iterations"), CASES)
def test_values_and_gradients_equal_monai_inside(shape: tuple[int, ...], iterations: int) -> None:
    soft_skel = pytest.importorskip("monai.losses.cldice").soft_skel
    margin = (iterations + 2,) * (2 * (len(shape) - 2))
    own = F.pad(draw(shape), margin, value=0.01).requires_grad_()
    peer = own.detach().clone().requires_grad_()
    weight = draw(tuple(own.shape), seed=1)
    mine, theirs = soft_skeleton(own, iterations), soft_skel(peer, iterations)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-11)
    (mine * weight).sum().backward()
    (theirs * weight).sum().backward()
    inside = own.detach() != 0.01  # ties go elsewhere in the constant margin
    assert own.grad is not None
    assert peer.grad is not None
    torch.testing.assert_close(own.grad[inside], peer.grad[inside], rtol=0, atol=1e-9)


@pytest.mark.parametrize(("shape", "iterations"), [((1, 2, 6, 5), 3), ((2, 1, 1, 7), 1), ((1, 1, 4, 5, 4), 2)])
def test_gradient(shape: tuple[int, ...], iterations: int) -> None:
    image = draw(shape).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: soft_skeleton(x, iterations), image)


def test_gradient_where_values_are_0_and_1() -> None:
    # d is 1 on the line: its own factor of the product is 0 there, which must not swallow the gradient.
    image = torch.zeros(1, 1, 7, 9, dtype=torch.float64)
    image[..., 3, :] = 1
    image.requires_grad_()
    skeleton = soft_skeleton(image, 4)
    torch.testing.assert_close(skeleton, image, rtol=0, atol=1e-11)
    skeleton.sum().backward()
    assert image.grad is not None
    assert image.grad.isfinite().all()
    assert (image.grad[..., 3, :] == 1).all()


def bars() -> torch.Tensor:
    """A horizontal bar of 9 rows and a vertical one of 5 columns that cross."""
    image = torch.zeros(1, 1, 80, 90)
    image[..., 30:39, :] = 0.9
    image[..., 40:45] = 0.8
    return image


@pytest.mark.parametrize("columns", [slice(0, 30), slice(50, 90), slice(10, 35)])
def test_a_bar_that_leaves_the_image_keeps_its_skeleton_to_the_edge(columns: slice) -> None:
    whole, tile = soft_skeleton(bars(), 8), soft_skeleton(bars()[..., columns], 8)
    crop = whole[..., columns]
    # The other bar is 5 to 20 columns away, its skeleton nowhere in the tile.
    assert torch.equal(tile[..., 32:37, :], crop[..., 32:37, :])
    assert (tile[..., 34, :] > 0.89).all()
    assert torch.equal(tile.nonzero()[:, 2].unique(), torch.tensor([34]))


def test_a_band_on_the_edge_has_no_skeleton_on_the_edge() -> None:
    # Whatever goes on for ever beyond the edge has its middle beyond it, too. A mirror puts the middle on the edge.
    image = torch.zeros(1, 1, 40, 40)
    image[..., :9, :] = 1
    assert soft_skeleton(image, 10).sum() == 0


def test_monai_mirrors_at_the_edge() -> None:
    image = torch.zeros(1, 1, 40, 40)
    image[..., :9, :] = 1
    soft_skel = pytest.importorskip("monai.losses.cldice").soft_skel
    assert torch.equal(soft_skel(image, 10)[0, 0, 0], torch.ones(40))


@pytest.mark.parametrize("shape", [(1, 1, 20, 23), (1, 1, 9, 8, 10)])
def test_the_edge_is_as_if_the_image_went_on(shape: tuple[int, ...]) -> None:
    image, wide = draw(shape), (9,) * (2 * (len(shape) - 2))
    padded = soft_skeleton(F.pad(image, wide, mode="replicate"), 4)
    inner = (..., *[slice(9, -9)] * (len(shape) - 2))
    torch.testing.assert_close(soft_skeleton(image, 4), padded[inner], rtol=0, atol=1e-14)


def test_symmetries_and_range() -> None:
    image = draw((2, 1, 17, 17))
    skeleton = soft_skeleton(image, 5)
    assert 0 <= skeleton.min() <= skeleton.max() <= 1
    for turned in (lambda x: x.flip(2), lambda x: x.flip(3), lambda x: x.transpose(2, 3)):
        torch.testing.assert_close(soft_skeleton(turned(image), 5), turned(skeleton), rtol=0, atol=1e-14)
    assert soft_skeleton(image.half(), 5).dtype == torch.float32


def kept_times_input(function: Callable[[torch.Tensor, int], torch.Tensor]) -> float:
    """Bytes that autograd keeps for backward after 10 iterations, each storage once, per byte of the input."""
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    image = draw((1, 1, 64, 64)).float().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = function(image, 10)
    assert output.requires_grad
    return sum(storage.nbytes() for storage in storages.values()) / (image.numel() * image.element_size())


def test_two_images_are_kept_for_backward() -> None:
    assert kept_times_input(soft_skeleton) == 2  # the probability itself and the product


def test_monai_keeps_a_hundred_times_as_much() -> None:
    assert kept_times_input(pytest.importorskip("monai.losses.cldice").soft_skel) > 200


def random_shape(rng: np.random.Generator, ndim: int) -> np.ndarray:
    """A thick line in any direction, or the union of some balls, inside a box."""
    grid = np.stack(np.meshgrid(*[np.arange(48.0 if ndim == 2 else 22.0)] * ndim, indexing="ij"), -1)
    size = grid.shape[0]
    if rng.random() < 0.5:
        direction = rng.normal(size=ndim)
        offset = grid - size / 2 - rng.random(ndim)
        along = offset @ (direction / np.linalg.norm(direction))
        across = np.sqrt(np.maximum((offset**2).sum(-1) - along**2, 0))
        mask = (across < rng.uniform(1, size / 5)) & (np.abs(along) < size / 3)
    else:
        centres = rng.uniform(size * 0.35, size * 0.65, (3, ndim))
        mask = np.any([((grid - c) ** 2).sum(-1) < rng.uniform(1, size / 4) ** 2 for c in centres], 0)
    assert mask.any()
    return mask


@pytest.mark.parametrize("ndim", [2, 3])
def test_iterations_for_radius_leave_nothing_undone(ndim: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(40 if ndim == 2 else 8):
        mask = random_shape(rng, ndim)
        enough = iterations_for_radius(ndimage.distance_transform_edt(mask).max(), ndim)
        image = torch.from_numpy(mask[None, None].astype(np.float32))
        skeleton = soft_skeleton(image, enough)
        assert skeleton.sum() > 0
        assert torch.equal(skeleton, soft_skeleton(image, enough + 5)), "more iterations change nothing"


def test_iterations_for_radius() -> None:
    assert [iterations_for_radius(r) for r in (0.5, 1, 2, 5, 7.07)] == [1, 1, 2, 7, 9]
    assert iterations_for_radius(5, 3) == 8
    # A diagonal bar needs more than its radius.
    rows, columns = np.mgrid[:80, :80]
    mask = np.abs(rows - columns) < 12
    radius = ndimage.distance_transform_edt(mask)[20:60, 20:60].max()
    image = torch.from_numpy(mask[None, None].astype(np.float32))
    middle = (slice(30, 50), slice(30, 50))
    assert soft_skeleton(image, iterations_for_radius(radius))[0, 0][middle].sum() > 0
    assert soft_skeleton(image, math.ceil(radius) - 1)[0, 0][middle].sum() == 0
    for bad in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match="radius must be positive"):
            iterations_for_radius(bad)
    with pytest.raises(ValueError, match="ndim must be 2 or 3, received 4"):
        iterations_for_radius(2, 4)


@pytest.mark.parametrize("bad", [0, -3, 2.5, True, None])
def test_iterations_have_to_be_a_positive_int(bad: object) -> None:
    with pytest.raises(ValueError, match="iterations must be a positive int"):
        soft_skeleton(torch.rand(1, 1, 5, 5), bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="received \\(5, 5\\)"):
        soft_skeleton(torch.rand(5, 5), 2)


def test_what_is_not_valid_is_continued_from_what_is() -> None:
    nan = math.nan
    values = torch.tensor([[[[1.0, 2, nan, nan], [3, 4, nan, nan], [nan, 5, nan, nan]]]])
    filled = continue_outwards(values, ~values.isnan())
    assert filled[0, 0].tolist() == [[1, 2, 2, 2], [3, 4, 4, 4], [3, 5, 5, 5]]
    values = torch.rand(2, 1, 3, 3)
    nothing = torch.zeros(2, 1, 3, 3, dtype=torch.bool)
    assert torch.equal(continue_outwards(values, nothing), values)


def test_a_field_of_view_leaves_no_rim() -> None:
    # A disc of light seen through a round field of view: everything is foreground, and there is no skeleton at the rim.
    rows, columns = torch.meshgrid(torch.arange(60.0), torch.arange(60.0), indexing="ij")
    valid = ((rows - 30) ** 2 + (columns - 30) ** 2 < 25**2)[None, None]
    image = torch.where(valid, 1.0, 0.0)
    assert soft_skeleton(image, 10).sum() == 0 or soft_skeleton(image, 30).sum() > 0
    assert soft_skeleton(image, 30, valid).sum() == 0
    bar = torch.zeros(1, 1, 60, 60)
    bar[..., 28:33, :] = 1
    skeleton = soft_skeleton(torch.where(valid, bar, 0), 5, valid)
    assert torch.equal(skeleton, torch.where(valid, soft_skeleton(bar, 5), 0))
