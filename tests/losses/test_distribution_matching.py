import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from biocnn.losses.distribution_matching import DMCount, OptimalTransport, TotalVariation, sinkhorn

SHARP = {"iterations": 5000, "tolerance": 1e-13}


def problem(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Shares of 12 pixels, one of them empty, and of 5 points, and squared distances."""
    rng = np.random.default_rng(seed)
    source, target = rng.dirichlet(np.ones(12)), rng.dirichlet(np.ones(5))
    source[3] = 0
    places, points = rng.uniform(0, 6, (12, 2)), rng.uniform(0, 6, (5, 2))
    cost = ((places[:, None] - points[None]) ** 2).sum(2)
    return torch.from_numpy(source / source.sum()), torch.from_numpy(target), torch.from_numpy(cost)


def dots(points: list[tuple[int, int]], shape: tuple[int, int] = (12, 15)) -> tuple[torch.Tensor, torch.Tensor]:
    image = torch.zeros(1, 1, *shape, dtype=torch.float64)
    for row, column in points:
        image[0, 0, row, column] += 1
    return image, torch.tensor(points, dtype=torch.float64).reshape(-1, 2)


POINTS = [(1, 2), (2, 11), (7, 5), (7, 6), (10, 13), (10, 13)]


@pytest.mark.parametrize("reg", [0.3, 2.0, 50.0])
def test_sinkhorn_is_that_of_pot(reg: float) -> None:
    ot = pytest.importorskip("ot")
    source, target, cost = problem()
    potential, value = sinkhorn(source, target, cost, reg, **SHARP)
    a, b, c = source.numpy(), target.numpy(), cost.numpy()
    kept = a > 0
    solved = ot.solve(c[kept], a[kept], b, reg=reg, reg_type="KL", max_iter=100_000, tol=1e-13)
    assert value.item() == pytest.approx(float(solved.value), rel=1e-7)
    # The plan follows from the potential of one side.
    weight = (source * (potential / reg).exp())[:, None] * (-cost / reg).exp()
    np.testing.assert_allclose((weight / weight.sum(0) * target).numpy()[kept], solved.plan, atol=1e-9)


def test_without_regularisation_it_is_a_linear_program() -> None:
    source, target, cost = problem()
    marginals = np.vstack([np.kron(np.eye(12), np.ones(5)), np.kron(np.ones(12), np.eye(5))])
    exact = linprog(cost.numpy().ravel(), A_eq=marginals, b_eq=np.concatenate([source, target])).fun
    previous = math.inf
    for reg in (1.0, 0.1, 0.01):
        _, value = sinkhorn(source, target, cost, reg, 20_000, 1e-12)
        # KL is at most the entropy of the smaller side, log 5.
        assert exact - 1e-9 <= value.item() <= exact + reg * math.log(5)
        assert value.item() < previous
        previous = value.item()


def test_the_potential_is_the_derivative_and_the_plan_has_its_marginals() -> None:
    source, target, cost = problem()
    potential, value = sinkhorn(source, target, cost, 1.0, **SHARP)
    assert potential.isfinite().all()
    # Mass moved from pixel 0 to pixel 3, which has none.
    step = 1e-6
    moved = source.clone()
    moved[0], moved[3] = moved[0] - step, moved[3] + step
    _, other = sinkhorn(moved, target, cost, 1.0, **SHARP)
    # At the border of the simplex the derivative is one-sided, and its error of the order of the step.
    assert ((other - value) / step).item() == pytest.approx((potential[3] - potential[0]).item(), rel=1e-4)


@pytest.mark.parametrize("stride", [1, 3])
def test_the_image_of_dots_costs_nothing(stride: int) -> None:
    image, points = dots(POINTS)
    loss = DMCount(stride=stride)
    terms = loss.terms(image, image, [points])
    assert list(terms) == ["count", "transport", "variation"]
    for name, value in terms.items():
        assert value.item() == pytest.approx(0, abs=1e-9), name
    # The scale divided out, the same.
    assert loss(image * 100, image, [points], scale=100.0).item() == pytest.approx(0, abs=1e-9)


def test_a_shifted_image_costs_the_square_of_the_way() -> None:
    image, points = dots([(2, 2), (2, 12), (9, 7)])
    shifted = torch.roll(image, 2, 2)
    value = OptimalTransport(reg=0.5, **SHARP)(shifted, image, [points]).item()
    assert value == pytest.approx(4, abs=1e-6)
    assert TotalVariation()(shifted, image, [points]).item() == 3
    # Half of one cell in place: (1/2 + 1 + 1) / 3 of the normalised mass is misplaced, times three.
    shifted[0, 0, 2, 2], shifted[0, 0, 4, 2] = 0.5, 0.5
    assert TotalVariation()(shifted, image, [points]).item() == pytest.approx(2.5)
    # How many cells there are is the business of the count.
    assert OptimalTransport(0.5, **SHARP)(5 * torch.roll(image, 2, 2), image, [points]).item() == pytest.approx(value)


def test_the_price_of_regularisation_is_as_stated() -> None:
    image, points = dots(POINTS)
    target, cost = torch.full((6,), 1 / 6).double(), torch.cdist(points, points).square()
    _, bound = sinkhorn(target, target, cost, 10.0, **SHARP)
    rows, columns = torch.meshgrid(torch.arange(12), torch.arange(15), indexing="ij")
    loss = OptimalTransport(10.0, **SHARP)
    for width in (1.0, 4.0, 20.0):
        drawn = torch.exp(-((rows - 6) ** 2 + (columns - 8) ** 2) / width).double()[None, None]
        assert loss(drawn, image, [points]).item() >= -bound.item()


def test_the_gradient_is_the_formula_of_the_paper() -> None:
    image, points = dots(POINTS)
    prediction = torch.rand(image.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    prediction.requires_grad_()
    OptimalTransport(10.0, **SHARP)(prediction, image, [points]).backward()
    z = prediction.detach().flatten()
    count = z.sum()
    rows, columns = np.divmod(np.arange(12 * 15), 15)
    places = torch.from_numpy(np.stack([rows, columns], 1)).double()
    target = torch.full((6,), 1 / 6, dtype=torch.float64)
    beta, _ = sinkhorn(z / count, target, torch.cdist(places, points).square(), 10.0, **SHARP)
    expected = beta / count - (beta @ z) / count**2
    assert prediction.grad is not None
    torch.testing.assert_close(prediction.grad.flatten(), expected, rtol=1e-6, atol=1e-9)


def test_the_default_number_of_iterations_is_enough() -> None:
    rng = np.random.default_rng(0)
    points = torch.from_numpy(rng.uniform(0, 63, (40, 2)))
    image = torch.zeros(1, 1, 64, 64, dtype=torch.float64)
    image[0, 0, points[:, 0].round().long(), points[:, 1].round().long()] = 1
    # All mass in one quarter: as far from the points as a map can be.
    prediction = torch.zeros_like(image)
    prediction[..., :32, :32] = 0.1
    density = torch.full_like(image, 40 / image.numel())
    default = OptimalTransport()(prediction, density, [points]).item()
    exact = OptimalTransport(**SHARP)(prediction, density, [points]).item()
    assert default == pytest.approx(exact, rel=1e-3)
    assert exact > 500


def test_empty_samples_and_dead_maps() -> None:
    image, points = dots(POINTS)
    empty = torch.zeros_like(image)
    prediction = torch.full_like(image, 0.1, requires_grad=True)
    terms = DMCount().terms(prediction, empty, [points[:0]])
    assert (terms["transport"].item(), terms["variation"].item()) == (0, 0)
    assert terms["count"].item() == pytest.approx(18)
    sum(terms.values()).backward()  # type: ignore[union-attr]
    # A map of zeros, or of negative numbers: only the count pulls, and evenly.
    for level in (0.0, -0.01):
        dead = torch.full_like(image, level, requires_grad=True)
        value = DMCount()(dead, image, [points])
        value.backward()
        assert value.item() > 6
        assert dead.grad is not None
        assert (dead.grad == -1).all()


def test_arguments() -> None:
    for reg in (0.0, -1.0, math.inf):
        with pytest.raises(ValueError, match="reg must be positive"):
            OptimalTransport(reg)
    for iterations in (0, 1.5, True):
        with pytest.raises(ValueError, match="iterations must be an int"):
            OptimalTransport(iterations=iterations)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tolerance must be finite"):
        OptimalTransport(tolerance=-1.0)
    with pytest.raises(ValueError, match="stride must be an int"):
        OptimalTransport(stride=0)
    with pytest.raises(ValueError, match="weight of 'transport' must be positive"):
        DMCount(transport=0.0)
    assert [weight for _, weight, _ in DMCount().parts()] == [1.0, 0.1, 0.01]
    assert "reg=10.0, iterations=100, tolerance=0.001, stride=1" in repr(OptimalTransport())
