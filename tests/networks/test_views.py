import pytest
import torch

from biocnn.networks.views import d4_view, view_logits


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
