import pytest
import torch

from biocnn.networks.views import D4_VIEWS, d4_average, d4_inverse, d4_view, view_logits


def test_the_eight_views_are_the_symmetries_of_the_square() -> None:
    image = torch.arange(9.0).reshape(1, 1, 3, 3)
    views = [d4_view(image, number) for number in range(8)]
    assert torch.equal(views[0], image)
    assert len({tuple(view.flatten().tolist()) for view in views}) == 8
    # A group: a view of a view is a view.
    for first in range(8):
        for second in range(8):
            again = d4_view(d4_view(image, first), second)
            assert any(torch.equal(again, view) for view in views)
    with pytest.raises(ValueError, match="views 0 to 7, received 8"):
        d4_view(image, 8)


def test_mean_over_views_does_not_change_under_a_symmetry() -> None:
    weight = torch.randn(1, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def network(x: torch.Tensor) -> torch.Tensor:
        return (x * weight).sum((1, 2, 3)).tanh()

    image = torch.rand(5, 3, 8, 8, dtype=torch.float64)
    expected = view_logits(network, image, 8)
    assert expected.shape == (5, 8)
    assert torch.equal(expected[:, 0], network(image))
    for number in range(8):
        moved = view_logits(network, d4_view(image, number), 8)
        torch.testing.assert_close(moved.mean(1), expected.mean(1), rtol=0, atol=1e-14)
        torch.testing.assert_close(moved.sort(1).values, expected.sort(1).values, rtol=0, atol=1e-14)


def test_inverse_views_undo_views() -> None:
    image = torch.arange(2 * 3 * 5).reshape(2, 3, 5)
    for number in range(D4_VIEWS):
        assert torch.equal(d4_inverse(d4_view(image, number), number), image)


def test_mean_of_dense_results_turns_with_the_image() -> None:
    torch.manual_seed(0)
    network = torch.nn.Conv2d(2, 3, 3, padding=1).double()
    image = torch.randn(2, 2, 6, 9, dtype=torch.float64)
    assert torch.equal(d4_average(network, image, 1), network(image))
    expected = d4_average(network, image)
    assert expected.shape == (2, 3, 6, 9)
    # A convolution over all views is one with the mean of the turned kernels.
    kernel = sum(d4_view(network.weight, number) for number in range(D4_VIEWS)) / D4_VIEWS
    by_hand = torch.nn.functional.conv2d(image, kernel, network.bias, padding=1)  # type: ignore[arg-type]
    torch.testing.assert_close(expected, by_hand, rtol=0, atol=1e-14)
    for number in range(D4_VIEWS):
        moved = d4_average(network, d4_view(image, number))
        torch.testing.assert_close(moved, d4_view(expected, number), rtol=0, atol=1e-14)
    expected.sum().backward()
    assert network.weight.grad is not None


def test_mean_of_half_precision_is_single() -> None:
    found = d4_average(lambda view: view.to(torch.bfloat16), torch.full((1, 3, 3), 1.0))
    assert found.dtype == torch.float32
    assert torch.equal(found, torch.ones(1, 3, 3))
