import itertools
import warnings

import numpy as np
import pytest
import torch

from biocnn.errors import DataError
from biocnn.losses.distance import DistanceRegression, truncated_distance
from biocnn.losses.maximin import window_starts
from biocnn.losses.overlap import BCE, Dice
from biocnn.losses.region_separation import RegionSeparation
from tests.losses.test_maximin import slow_window

GAP = (..., slice(14, 17), slice(30, 34))


def line(gap: bool = False) -> torch.Tensor:
    """A line of three rows across a picture of 48 x 64, with or without four columns that are missing."""
    mask = torch.zeros(1, 1, 48, 64)
    mask[..., 14:17, :] = 1
    if gap:
        mask[GAP] = 0
    return mask


def distances(mask: torch.Tensor, max_distance: float = 15.0) -> torch.Tensor:
    found = [truncated_distance(one, max_distance) for one in mask.flatten(0, 1).numpy()]
    return torch.from_numpy(np.stack(found)).view(mask.shape)


def logits_of(mask: torch.Tensor, sure: float = 4.0) -> torch.Tensor:
    return (sure * (2 * mask - 1)).requires_grad_()


def drawn(
    shape: tuple[int, ...], seed: int, max_distance: float = 15.0, holes: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits in float64, all different, and distances to a few lines, which may have holes."""
    rng = np.random.default_rng(seed)
    mask = torch.zeros(shape, dtype=torch.float64)
    for b, c in np.ndindex(*shape[:2]):
        mask[b, c, ..., rng.integers(3, shape[-2] - 3), :] = 1
        mask[b, c, ..., :, rng.integers(3, shape[-1] - 3)] = 1
        mask[b, c][torch.from_numpy(rng.random(shape[2:]) < holes)] = 0
    logits = 3 * mask - 1.5 + 2 * torch.from_numpy(rng.normal(size=shape))
    return logits.requires_grad_(), distances(mask, max_distance).double()


def slow_loss(
    logits: np.ndarray, distance: np.ndarray, valid: np.ndarray, loss: RegionSeparation, height_only: bool = False
) -> float:
    """The loss by all pairs of all windows, (B, C, H, W)."""
    d, margin = loss.max_distance, loss.margin
    height = logits if height_only else 1 / (1 + np.exp(logits))
    values = np.zeros(logits.shape[:2])
    for b, c in np.ndindex(*values.shape):
        kinds: tuple[list[float], list[float]] = ([], [])
        starts = [window_starts(size, loss.window) for size in logits.shape[2:]]
        for row, column in itertools.product(*starts):
            place = slice(row, row + loss.window), slice(column, column + loss.window)
            y, t, counted = height[b, c][place], distance[b, c][place], valid[b, 0][place]
            near = t <= margin
            share = np.minimum(y * d / np.maximum(t, 1e-9), 1) if loss.head == "distance" else y
            order = np.where(near, y + t / margin, share).astype(np.float32)
            apart, same = slow_window(order, near, (t > 0) | ~counted, counted)
            for kind, weights, value in zip(kinds, (apart, same), (y**2, (1 - share) ** 2), strict=True):
                if weights.any():
                    kind.append((weights * value).sum())
        for kind, weight in zip(kinds, (loss.gap_weight, loss.false_weight), strict=True):
            values[b, c] += weight * np.mean(kind) if kind else 0
    return float(values.mean())


@pytest.mark.parametrize("head", ["mask", "distance"])
@pytest.mark.parametrize("masked", [False, True])
def test_values_by_all_pairs(head: str, masked: bool) -> None:
    logits, distance = drawn((2, 2, 11, 13), 3, 4.0, 0.15)
    valid = torch.ones(2, 1, 11, 13, dtype=torch.bool)
    if masked:
        valid = torch.rand(valid.shape, generator=torch.Generator().manual_seed(0)) > 0.1
    loss = RegionSeparation(4.0, 7, gap_weight=0.7, false_weight=0.3, margin=1.0, head=head)
    expected = slow_loss(logits.detach().numpy(), distance.numpy(), valid.numpy(), loss)
    assert expected > 0.05
    assert loss(logits, distance, valid if masked else None).item() == pytest.approx(expected, rel=1e-6)


def test_values_in_3d_are_those_of_the_projections() -> None:
    logits, distance = drawn((2, 1, 8, 9, 10), 0, 4.0)
    distance[:, :, 3:] = 4  # or the projections are all structure
    valid = torch.ones(2, 1, 8, 9, 10, dtype=torch.bool)
    valid[:, :, :, :2, :2] = False  # no voxel of a ray along the first axis, some of the others
    loss = RegionSeparation(4.0, 8, false_weight=1.0, margin=1.0)
    expected = []
    height = torch.sigmoid(-logits.detach()).masked_fill(~valid, 1).numpy()
    distance_of_valid = distance.masked_fill(~valid, 4).numpy()
    for axis in (2, 3, 4):
        pictures = height.min(axis), distance_of_valid.min(axis), valid.numpy().any(axis)
        expected.append(slow_loss(*pictures, loss, height_only=True))
    assert min(expected) > 0
    assert loss(logits, distance, valid).item() == pytest.approx(np.mean(expected), rel=1e-6)


def test_the_projected_distance_is_that_of_the_projected_structure() -> None:
    mask = np.random.default_rng(0).random((9, 10, 11)) < 0.01
    for axis in range(3):
        np.testing.assert_allclose(
            truncated_distance(mask, 5).min(axis), truncated_distance(mask.any(axis), 5), rtol=1e-6
        )


@pytest.mark.parametrize("head", ["mask", "distance"])
@pytest.mark.parametrize("shape", [(2, 1, 11, 9), (1, 1, 7, 8, 9)])
def test_gradient(head: str, shape: tuple[int, ...]) -> None:
    logits, distance = drawn(shape, 1, 4.0)
    if len(shape) == 5:
        distance[:, :, 2:] = 4
    loss = RegionSeparation(4.0, 7, false_weight=1.0, margin=1.0, head=head)
    assert loss(logits, distance) > 0.05
    assert torch.autograd.gradcheck(lambda x: loss(x, distance), logits)


def test_nothing_to_lose_if_perfect() -> None:
    truth = line()
    distance = distances(truth)
    assert RegionSeparation(false_weight=1)(logits_of(truth, 20), distance).item() < 1e-10
    perfect = torch.log(15 / distance.clamp(1e-3, 15 - 1e-3) - 1)
    assert RegionSeparation(false_weight=1, head="distance")(perfect, distance).item() < 1e-6
    # A mask is no distance and the other way round, and the weaker demand is the distance.
    assert RegionSeparation(false_weight=1)(perfect, distance).item() > 0.01
    assert RegionSeparation(false_weight=1, head="distance")(logits_of(truth, 20), distance).item() < 1e-10


@pytest.mark.parametrize("head", ["mask", "distance"])
def test_gradient_of_a_gap_is_in_the_gap(head: str) -> None:
    truth = line()
    logits = logits_of(line(gap=True))
    loss = RegionSeparation(false_weight=0, head=head)
    value = loss(logits, distances(truth))
    value.backward()
    assert logits.grad is not None
    # Two of the four windows have the line in them, and the gap of columns 30 to 33 reaches into both.
    assert value.item() == pytest.approx(torch.tensor(4.0).sigmoid().item() ** 2, rel=1e-5)
    assert logits.grad[GAP].sum() < 0
    assert logits.grad[GAP].abs().sum() > 0.99 * logits.grad.abs().sum()
    assert loss(logits_of(truth), distances(truth)) < 0.01 * value


def test_gradient_of_a_false_connection_is_on_it() -> None:
    bridge = line()
    bridge[..., 17:, 20:22] = 1
    logits = logits_of(bridge)
    loss = RegionSeparation(gap_weight=0, false_weight=1)
    value = loss(logits, distances(line()))
    value.backward()
    assert logits.grad is not None
    on_bridge = logits.grad[..., 17:, 20:22]
    assert (on_bridge >= 0).all()
    assert on_bridge.sum() > 0.9 * logits.grad.abs().sum()  # the rest is spread over the whole background
    # The bridge parts a window; pixels of it that part nothing weigh less than the one that would let through.
    assert on_bridge.max() > 10 * on_bridge[on_bridge > 0].median()
    spot = line()
    spot[..., 30:40, 20:22] = 1
    assert value > 2 * loss(logits_of(spot), distances(line()))


def test_steps_close_gaps_and_cut_false_connections() -> None:
    truth, wrong = line(), line(gap=True)
    wrong[..., 17:, 20:22] = 1
    logits = logits_of(wrong, 2.0).detach().requires_grad_()
    loss = RegionSeparation(false_weight=1)
    optimizer = torch.optim.Adam([logits], 0.3)
    for _ in range(60):
        optimizer.zero_grad()
        loss(logits, distances(truth)).backward()
        optimizer.step()
    # A wall of one pixel parts as well as one of three, and one way through the bridge is enough.
    assert (logits[GAP] > 0).any(-2).all()
    assert (logits[..., 32:, 20:22] < 0).any(-2).all()


def test_a_structure_beside_its_true_place_is_one() -> None:
    truth = torch.zeros(1, 1, 32, 32)
    truth[..., 15, :] = 1
    loss = RegionSeparation(false_weight=0)
    for shift, limit in ((0, 1e-3), (1, 1e-3), (3, 0.9)):
        value = loss(logits_of(truth.roll(shift, 2)), distances(truth)).item()
        assert value < limit or shift == 3
    assert value > 0.9  # beyond the margin it is a gap


def test_the_end_of_a_structure_is_not_asked_to_grow() -> None:
    truth = torch.zeros(1, 1, 32, 32)
    truth[..., 15, :29] = 1  # a dilation by 5 would part the window
    with pytest.warns(UserWarning, match="in no window of 32 pixels of a batch does a structure separate"):
        assert RegionSeparation(false_weight=0)(logits_of(truth), distances(truth)).item() == 0


def test_batch_and_crop_do_not_change_the_value() -> None:
    logits, distance = drawn((4, 1, 64, 32), 0)
    loss = RegionSeparation(false_weight=1)
    alone = torch.stack([loss(logits[i : i + 1], distance[i : i + 1]) for i in range(4)])
    halves = torch.stack([loss(logits[i : i + 2], distance[i : i + 2]) for i in (0, 2)])
    together = loss(logits, distance)
    torch.testing.assert_close(alone.mean(), together, rtol=1e-12, atol=0)
    torch.testing.assert_close(halves.mean(), together, rtol=1e-12, atol=0)
    tiled = loss(logits.tile(1, 1, 2, 3), distance.tile(1, 1, 2, 3))
    torch.testing.assert_close(tiled, together, rtol=1e-6, atol=0)  # shares are float32


@pytest.mark.parametrize("size", [(33, 40), (31, 65), (20, 50)])
def test_a_gap_at_the_end_is_seen_whatever_the_size(size: tuple[int, int]) -> None:
    truth = torch.zeros(1, 1, *size)
    truth[..., size[0] // 2, :] = 1
    broken = truth.clone()
    broken[..., -1] = 0
    logits = logits_of(broken)
    RegionSeparation(false_weight=0)(logits, distances(truth)).backward()
    assert logits.grad is not None
    place = np.unravel_index(logits.grad.abs().argmax().item(), logits.shape)
    assert place == (0, 0, size[0] // 2, size[1] - 1)


def test_what_is_not_valid_is_on_no_path() -> None:
    logits, distance = drawn((2, 1, 40, 40), 0)
    valid = torch.ones(2, 1, 40, 40, dtype=torch.bool)
    valid[0, :, :, 25:] = False
    valid[1, :, 10:20, 10:20] = False
    loss = RegionSeparation(false_weight=1)
    value = loss(logits, distance, valid)
    value.backward()
    assert logits.grad is not None
    assert (logits.grad[~valid] == 0).all()
    assert logits.grad[valid].abs().sum() > 0
    other = logits.detach().masked_fill(~valid, np.nan)
    assert loss(other, distance.masked_fill(~valid, -1), valid).item() == value.item()
    # A strip that is not valid is no structure: it does not part the background.
    strip = torch.ones(1, 1, 32, 32, dtype=torch.bool)
    strip[..., 15] = False
    far = torch.full((1, 1, 32, 32), 15.0)
    with pytest.warns(UserWarning, match="in no window"):
        RegionSeparation()(torch.full_like(far, -3), far, strip)


def test_half_precision_and_repetition() -> None:
    logits, distance = drawn((2, 1, 40, 40), 0)
    loss = BCE() + Dice() + RegionSeparation()
    target = {"mask": (distance == 0).double(), "distance": distance}
    half = logits.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(half, target)
    value.backward()
    assert half.grad is not None
    assert half.grad.isfinite().all()
    assert value.dtype == torch.float32
    assert value.item() == loss(half.detach().float(), target).item()
    assert loss.names == ["bce", "dice", "region_separation"]
    grads = [torch.autograd.grad(loss(logits, target), logits)[0] for _ in range(3)]
    assert torch.equal(grads[0], grads[1])
    assert torch.equal(grads[0], grads[2])


def test_it_says_when_it_cannot_act() -> None:
    logits = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    loss = RegionSeparation()
    empty = torch.full_like(logits, 15.0)
    with pytest.warns(UserWarning, match="in no window of 32 pixels"):
        assert loss(logits, empty) > 0  # false connections are seen
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(logits, empty)  # said once
        (DistanceRegression() + RegionSeparation(gap_weight=0))(logits, empty)
    with pytest.warns(UserWarning, match="no window of a batch has two connected pixels more than 2 pixels"):
        value = RegionSeparation(gap_weight=0)(logits.requires_grad_(), torch.full_like(logits, 2.0))
    value.backward()  # 0, but a training step does not fail
    assert value.item() == 0
    with pytest.raises(DataError, match=r"expected 0\.\.15"):
        loss(logits, torch.full_like(logits, 20.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_distance": 0}, "max_distance must be positive"),
        ({"window": 6}, "window must be an int of at least 7"),
        ({"window": 32.0}, "window must be an int"),
        ({"window": True}, "window must be an int"),
        ({"gap_weight": -1}, "gap_weight must be 0 or more and finite, received -1"),
        ({"false_weight": np.nan}, "false_weight must be 0 or more"),
        ({"gap_weight": 0, "false_weight": 0}, "cannot act"),
        ({"margin": "2"}, "margin must be 0 or more"),
        ({"margin": 4, "max_distance": 4}, "margin must be below max_distance"),
        ({"head": "mean"}, r"head must be one of \('mask', 'distance'\)"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RegionSeparation(**arguments)
    assert "head='mask'" in repr(RegionSeparation())
