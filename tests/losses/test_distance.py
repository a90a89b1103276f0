import itertools
import warnings

import numpy as np
import pytest
import torch

from biocnn.errors import DataError
from biocnn.losses.distance import DistanceRegression, predicted_distance, truncated_distance
from biocnn.losses.overlap import BCE


@pytest.mark.parametrize("shape", [(9, 8), (4, 5, 6)])
def test_distance_by_all_pairs(shape: tuple[int, ...]) -> None:
    mask = np.random.default_rng(0).random(shape) < 0.05
    mask.flat[7] = True
    places = np.argwhere(mask)
    expected = np.empty(shape)
    for place in np.ndindex(shape):
        expected[place] = min(2.5, np.sqrt(((places - place) ** 2).sum(1)).min())
    found = truncated_distance(mask, 2.5)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.max() == 2.5
    np.testing.assert_array_equal(truncated_distance(mask.astype(np.uint8), 2.5), found)


def test_no_structure_and_nothing_else() -> None:
    np.testing.assert_array_equal(truncated_distance(np.zeros((4, 5)), 7), np.full((4, 5), 7))
    np.testing.assert_array_equal(truncated_distance(np.ones((4, 5)), 7), np.zeros((4, 5)))


def test_predicted_distance() -> None:
    logits = torch.tensor([-100.0, 0.0, 100.0])
    torch.testing.assert_close(predicted_distance(logits, 8), torch.tensor([8.0, 4.0, 0.0]))
    assert predicted_distance(logits.bfloat16()).dtype == torch.bfloat16
    # Read as a probability, 1 - y / max_distance is the sigmoid of the logits.
    logits = torch.linspace(-5, 5, 11, dtype=torch.float64)
    torch.testing.assert_close(1 - predicted_distance(logits, 8) / 8, torch.sigmoid(logits))


@pytest.mark.parametrize("shape", [(2, 2, 5, 6), (2, 1, 3, 4, 5)])
@pytest.mark.parametrize("max_distance", [4.0, 15.0])
def test_values(shape: tuple[int, ...], max_distance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(shape, dtype=torch.float64, generator=generator)
    target = max_distance * torch.rand(shape, dtype=torch.float64, generator=generator)
    valid = torch.rand(shape[0], 1, *shape[2:], generator=generator) > 0.4
    distance = max_distance / (1 + np.exp(logits.numpy()))
    square = ((distance - target.numpy()) / max_distance) ** 2
    loss = DistanceRegression(max_distance)
    assert loss(logits, target).item() == pytest.approx(square.mean(), rel=1e-12)
    samples = [one[:, mask[0]].mean() for one, mask in zip(square, valid.numpy(), strict=True)]
    for hidden in (0.0, np.nan):
        masked = target.masked_fill(~valid, hidden)
        assert loss(logits, masked, valid).item() == pytest.approx(np.mean(samples), rel=1e-12)


def test_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 1, 4, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    target = 15 * torch.rand(2, 1, 4, 5, dtype=torch.float64, generator=generator)
    loss = DistanceRegression()
    assert torch.autograd.gradcheck(lambda x: loss(x, target), logits)


def test_zero_if_perfect() -> None:
    mask = np.zeros((1, 1, 20, 20), bool)
    mask[..., 5:7, 3:17] = True
    target = torch.from_numpy(truncated_distance(mask[0, 0], 6)[None, None])
    # The logits of a distance: y = d / (1 + e^x), so x = log(d / y - 1), cut where y is 0 or d.
    logits = torch.log(6 / target.clamp(1e-6, 6 - 1e-5) - 1)
    assert DistanceRegression(6)(logits, target).item() < 1e-9


def test_in_a_sum_under_autocast() -> None:
    mask = (torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.9).float()
    distance = torch.from_numpy(truncated_distance(mask[0, 0], 15)[None, None])
    logits = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(1)).bfloat16()
    loss = BCE() + DistanceRegression()
    assert loss.names == ["bce", "distance"]
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(logits, {"mask": mask, "distance": distance.bfloat16()})
    expected = loss(logits.float(), {"mask": mask, "distance": distance.bfloat16()})
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected)


def test_target_of_another_max_distance_is_refused_and_a_mask_is_warned_about() -> None:
    logits = torch.zeros(1, 1, 4, 4)
    for target in (torch.full_like(logits, 20.0), torch.full_like(logits, -1.0)):
        with pytest.raises(DataError, match=r"expected 0\.\.15 where valid.*truncated_distance\(mask, 15\)"):
            DistanceRegression(15)(logits, target)
    DistanceRegression(20)(logits, torch.full_like(logits, 20.0))
    mask = torch.eye(4)[None, None]
    loss = DistanceRegression(15)
    with pytest.warns(UserWarning, match="0 and 1 only, as a mask is"):
        loss(logits, mask)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(logits, mask)  # said once
        DistanceRegression(1)(logits, mask)  # here 1 is far from all structures


def test_bad_arguments() -> None:
    for bad, make in itertools.product(
        (0, -1, np.inf, np.nan, "15", True),
        (DistanceRegression, lambda d: truncated_distance(np.ones((2, 2)), d), lambda d: predicted_distance(0, d)),
    ):
        with pytest.raises(ValueError, match="max_distance must be positive and finite"):
            make(bad)
    with pytest.raises(ValueError, match=r"received \(1, 1, 3, 3\)"):
        truncated_distance(np.ones((1, 1, 3, 3)))
    for value in (255, 0.5, np.nan):
        with pytest.raises(DataError, match="expected 0 and 1 only"):
            truncated_distance(np.full((3, 3), value))
