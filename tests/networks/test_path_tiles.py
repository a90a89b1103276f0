from collections.abc import Sequence

import numpy as np
import pytest
import torch

from biocnn.networks import DualUseUNet
from biocnn.networks.path_tiles import MARGIN, path_tile_logits, path_window


def line(start: tuple[int, int], stop: tuple[int, int]) -> np.ndarray:
    count = max(abs(stop[0] - start[0]), abs(stop[1] - start[1])) + 1
    return np.stack([np.linspace(start[axis], stop[axis], count).round() for axis in (0, 1)], 1).astype(np.int64)


@pytest.mark.parametrize("seed", range(20))
def test_windows_hold_the_path_and_lie_in_the_image(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(20, 90)), int(rng.integers(20, 90)))
    path = line(*(tuple(rng.integers(0, shape).tolist()) for _ in range(2)))  # type: ignore[arg-type]
    for axis, window in enumerate(path_window(path, shape, 40)):
        low, high = int(path[:, axis].min()), int(path[:, axis].max())
        assert 0 <= window.start <= low <= high < window.stop <= shape[axis]
        side = 40 if high - low < 20 else max(40, high - low + 1 + 2 * MARGIN)
        assert window.stop - window.start == min(side, shape[axis])


def test_short_paths_share_the_tiles_of_a_grid_and_long_ones_have_their_own() -> None:
    # Tiles start at multiples of 32; the middle of the first path is nearest to that of 32..95.
    assert path_window(line((50, 60), (69, 70)), (200, 200), 64) == (slice(32, 96), slice(32, 96))
    # 41 pixels are more than half of a tile, with 16 on either side more than one.
    assert path_window(line((50, 40), (69, 80)), (200, 200), 64) == (slice(32, 96), slice(24, 97))
    assert path_window(line((1, 199), (3, 199)), (200, 200), 64) == (slice(0, 64), slice(136, 200))
    assert path_window(line((1, 1), (3, 3)), (8, 9), 32) == (slice(0, 8), slice(0, 9))


def test_logits_are_those_of_each_path_in_its_tile() -> None:
    torch.manual_seed(0)
    network = DualUseUNet(2, channels=(4, 8), norm="instance").eval()
    image = torch.rand(2, 70, 60)
    rng = np.random.default_rng(0)
    # Short ones, some near the border, and two that are too long for a tile.
    paths = [line(start, (start[0] + 4, start[1] + 5)) for start in map(tuple, rng.integers(0, (66, 55), (40, 2)))]  # type: ignore[arg-type]
    paths += [line((2, 2), (60, 50)), line((10, 0), (10, 59))]
    passes = []

    def classify(tile: torch.Tensor, inside: Sequence[np.ndarray]) -> torch.Tensor:
        passes.append(len(inside))
        return network.path_logits(network.forward_with_features(tile)[1][0], inside)

    found = path_tile_logits(classify, image, paths, tile=24)
    expected = []
    for path in paths:
        rows, columns = path_window(path, (70, 60), 24)
        with torch.no_grad():
            features = network.forward_with_features(image[None, :, rows, columns])[1][0]
            expected.append(network.path_logits(features, [path - (rows.start, columns.start)]))
    torch.testing.assert_close(found, torch.cat(expected), atol=1e-5, rtol=1e-5)  # batches sum in another order
    assert found.std() > 0
    assert sum(passes) == len(paths)
    assert len(passes) < 30


def test_no_paths_and_wrong_paths() -> None:
    def classify(tile: torch.Tensor, inside: Sequence[np.ndarray]) -> torch.Tensor:
        return torch.zeros(len(inside))

    image = torch.rand(1, 20, 20)
    assert path_tile_logits(classify, image, []).shape == (0,)
    with pytest.raises(ValueError, match=r"Path 1, of shape \(3, 2\), is not one of pixels"):
        path_tile_logits(classify, image, [line((0, 0), (3, 3)), line((18, 0), (20, 0))])
    with pytest.raises(ValueError, match="Path 0"):
        path_tile_logits(classify, image, [np.zeros((4, 3), np.int64)])
    with pytest.raises(ValueError, match="at least 1, received 0"):
        path_tile_logits(classify, image, [], tile=0)
