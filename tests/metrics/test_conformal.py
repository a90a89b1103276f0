import json
import math

import numpy as np
import pytest

from biocnn.errors import CheckpointError, DataError
from biocnn.metrics.conformal import ConformalInterval, check_counts, interval_coverage


def images(rng, count, kind):
    """Counts as of microscope fields, and predictions whose errors grow with the count, lean and have outliers."""
    truth = rng.integers(0, 300, count).astype(float)
    noise = {
        "even": rng.normal(0, 3, count),
        "poisson": np.sqrt(truth + 1) * rng.normal(0.4, 0.3, count),
        "heavy": 0.05 * truth * rng.standard_t(2, count),
    }[kind]
    return truth + noise, truth


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["even", "poisson", "heavy"])
def test_coverage_of_exchangeable_images_is_as_promised(kind, power):
    rng = np.random.default_rng(0)
    repeats, new = 1500, 20
    for n, alpha in ((9, 0.1), (36, 0.1), (30, 0.25)):
        shares = []
        for _ in range(repeats // 3):
            fitted = ConformalInterval.fit(*images(rng, n, kind), alpha, power)
            prediction, truth = images(rng, new, kind)
            shares.append(interval_coverage(*fitted.interval(prediction), truth)["coverage"])
        # The mean over draws lies in [1 - alpha, 1 - alpha + 1 / (n + 1)]; four standard errors of its estimate.
        error = 4 * np.std(shares) / math.sqrt(len(shares))
        assert 1 - alpha - error <= np.mean(shares) <= 1 - alpha + 1 / (n + 1) + error


def test_the_quantile_is_the_stated_order_statistic():
    prediction = np.full(19, 100.0)
    truth = 100 + np.arange(1, 20) * np.where(np.arange(19) % 2, 1, -1)
    # Errors 1..19 over the root of 100; ceil(20 * 0.9) = 18.
    fitted = ConformalInterval.fit(prediction, truth, 0.1)
    assert fitted.quantile == 1.8
    low, high = fitted.interval([100.0, 25.0, 0.25, -3.0])
    np.testing.assert_allclose(low, [82, 16, 0, 0])
    np.testing.assert_allclose(high, [118, 34, 2.05, 0])
    assert ConformalInterval.fit(prediction, truth, 0.1, power=0).quantile == 18
    assert ConformalInterval.fit(prediction, truth, 0.05).quantile == 1.9
    # A product that is whole but for rounding asks for no image more.
    for n, alpha, rank in ((29, 0.1, 27), (9, 0.7, 3), (99, 0.01, 99), (19, 0.15, 17)):
        errors = np.arange(1.0, n + 1)
        assert ConformalInterval.fit(np.zeros(n), errors, alpha, 0).quantile == rank


@pytest.mark.parametrize(("alpha", "needed"), [(0.1, 9), (0.05, 19), (0.2, 4), (0.3, 3), (0.5, 1)])
def test_too_few_images_say_so(alpha, needed):
    enough = ConformalInterval.fit(np.ones(needed), np.zeros(needed), alpha)
    assert (enough.images_needed, enough.note) == (needed, "")
    assert math.isfinite(enough.quantile)
    if needed > 1:
        few = ConformalInterval.fit(np.ones(needed - 1), np.zeros(needed - 1), alpha)
        assert f"{needed - 1} validation images: an interval of {1 - alpha:.4g} needs at least {needed}" in few.note
        low, high = few.interval([0.0, 50.0])
        assert low.tolist() == [0, 0]
        assert high.tolist() == [math.inf, math.inf]
        assert few.coverage_range(100) == (1, 1)
        assert interval_coverage(low, high, [3, 1000]) == {"coverage": 1.0, "interval_width": math.inf}


def test_the_range_of_coverage_is_that_of_simulation():
    rng = np.random.default_rng(1)
    n, new = 36, 100
    shares = []
    for _ in range(1500):
        fitted = ConformalInterval.fit(*images(rng, n, "poisson"))
        prediction, truth = images(rng, new, "poisson")
        shares.append(interval_coverage(*fitted.interval(prediction), truth)["coverage"])
    low, high = fitted.coverage_range(new, 0.9)
    drawn = np.quantile(shares, [0.05, 0.95])
    np.testing.assert_allclose([low, high], drawn, atol=0.015)
    assert low < 0.85 < 0.95 < high


def test_it_is_plain_data_and_comes_back():
    for fitted in (ConformalInterval.fit([10.0, 20.0], [11, 25], 0.5), ConformalInterval.fit([1.0], [1])):
        assert ConformalInterval.from_dict(json.loads(json.dumps(fitted.to_dict(), allow_nan=False))) == fitted
    assert ConformalInterval.fit([1.0], [1]).to_dict()["quantile"] is None
    good = ConformalInterval(1.0).to_dict()
    with pytest.raises(CheckpointError, match=r"expected the keys \['quantile'.* received \['alpha'\]"):
        ConformalInterval.from_dict({"alpha": 0.1})
    for name, value in (("alpha", 2.0), ("power", -1), ("quantile", -1), ("images", None), ("alpha", "0.1")):
        with pytest.raises(CheckpointError, match="expected numbers in their ranges"):
            ConformalInterval.from_dict({**good, name: value})


def test_errors_say_what_came():
    for prediction, truth in (([], []), ([1.0], [1, 2]), ([[1.0]], [[1]])):
        with pytest.raises(DataError, match="expected predicted and true counts of one shape"):
            ConformalInterval.fit(prediction, truth)
    with pytest.raises(DataError, match="prediction: expected finite counts, received 1 others"):
        check_counts([math.nan, 1], [1, 1])
    with pytest.raises(DataError, match="truth: expected counts of 0 or more, received -2"):
        check_counts([1.0], [-2])
    for alpha in (0, 1, -0.1):
        with pytest.raises(ValueError, match="alpha: expected a share"):
            ConformalInterval.fit([1.0], [1], alpha)
    with pytest.raises(ValueError, match="power: expected a number from 0 to 1"):
        ConformalInterval.fit([1.0], [1], power=2)
    with pytest.raises(DataError, match="prediction: expected finite counts"):
        ConformalInterval(1.0).interval([math.inf])
    with pytest.raises(DataError, match="of one shape"):
        interval_coverage([1.0], [1.0, 2.0], [1.0, 2.0])
    with pytest.raises(DataError, match="low <= high"):
        interval_coverage([2.0], [1.0], [1.0])
