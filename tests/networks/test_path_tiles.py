import numpy as np
import pytest
import torch

from biocnn.networks import DualUseUNet
from biocnn.networks.path_tiles import MARGIN, draw_paths, path_tile_logits, path_window


def line(start: tuple[int, int], stop: tuple[int, int]) -> np.ndarray:
    count = max(abs(stop[0] - start[0]), abs(stop[1] - start[1])) + 1
    return np.stack([np.linspace(start[axis], stop[axis], count).round() for axis in (0, 1)], 1).astype(np.int64)


def test_paths_are_drawn_one_to_a_picture() -> None:
    paths = [line((0, 0), (3, 3)), line((2, 5), (2, 1))]
    drawn = draw_paths(paths, (5, 7)).numpy()
    assert drawn.shape == (2, 1, 5, 7)
    for picture, path in zip(drawn[:, 0], paths, strict=True):
        assert set(map(tuple, np.argwhere(picture == 1))) == set(map(tuple, path))
        assert picture.sum() == len(path)


@pytest.mark.parametrize("seed", range(20))
def test_windows_hold_the_path_and_lie_in_the_image(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(20, 90)), int(rng.integers(20, 90)))
    path = line(*(tuple(rng.integers(0, shape).tolist()) for _ in range(2)))  # type: ignore[arg-type]
    for axis, window in enumerate(path_window(path, shape, 40)):
        low, high = int(path[:, axis].min()), int(path[:, axis].max())
        assert 0 <= window.start <= low <= high < window.stop <= shape[axis]
        assert window.stop - window.start == min(max(40, high - low + 1 + 2 * MARGIN), shape[axis])


def test_a_window_is_centred_unless_the_border_is_near() -> None:
    # 20 pixels a side fit in a tile of 64, 41 with 16 on either side do not.
    assert path_window(line((50, 40), (69, 80)), (200, 200), 64) == (slice(28, 92), slice(24, 97))
    assert path_window(line((1, 199), (3, 199)), (200, 200), 64) == (slice(0, 64), slice(136, 200))
    assert path_window(line((1, 1), (3, 3)), (8, 9), 32) == (slice(0, 8), slice(0, 9))


def test_logits_are_those_of_each_tile_on_its_own() -> None:
    torch.manual_seed(0)
    network = DualUseUNet(2, channels=(4, 8), norm="instance").eval()
    image = torch.rand(2, 70, 60)
    rng = np.random.default_rng(0)
    # Short ones, some near the border, and two that are too long for a tile.
    paths = [line(start, (start[0] + 4, start[1] + 5)) for start in map(tuple, rng.integers(0, (66, 55), (7, 2)))]  # type: ignore[arg-type]
    paths += [line((2, 2), (60, 50)), line((10, 0), (10, 59))]
    found = path_tile_logits(network.path_logits, image, paths, tile=24, batch_size=3)
    expected = []
    for path in paths:
        rows, columns = path_window(path, (70, 60), 24)
        whole = torch.zeros(1, 1, 70, 60)
        for row, place in path.tolist():
            whole[0, 0, row, place] = 1
        with torch.no_grad():
            expected.append(network.path_logits(image[None, :, rows, columns], whole[..., rows, columns]))
    torch.testing.assert_close(found, torch.cat(expected), atol=1e-5, rtol=1e-5)  # batches sum in another order
    assert found.std() > 0


def test_no_paths_and_wrong_paths() -> None:
    network = DualUseUNet(1, channels=(2,)).eval()
    image = torch.rand(1, 20, 20)
    assert path_tile_logits(network.path_logits, image, []).shape == (0,)
    with pytest.raises(ValueError, match=r"Path 1, of shape \(3, 2\), is not one of pixels"):
        path_tile_logits(network.path_logits, image, [line((0, 0), (3, 3)), line((18, 0), (20, 0))])
    with pytest.raises(ValueError, match="Path 0"):
        path_tile_logits(network.path_logits, image, [np.zeros((4, 3), np.int64)])
    with pytest.raises(ValueError, match="at least 1, received 0 and 16"):
        path_tile_logits(network.path_logits, image, [], tile=0)
