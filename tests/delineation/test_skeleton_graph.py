"""Graphs of skeletons against Euler numbers, drawn arrays, closed forms and a plain search over pixels."""

import math
from itertools import pairwise, permutations, product

import networkx as nx
import numpy as np
import pytest
from scipy import ndimage
from skimage.measure import euler_number
from skimage.morphology import skeletonize

from biocnn.data.graphs import add_segment, loop_count, merge_chains, new_graph, total_length
from biocnn.delineation.skeleton_graph import mask_graph, skeleton_graph
from biocnn.errors import DataError
from biocnn.metrics.overlap import Mask

ROOT2 = math.sqrt(2)


def drawn(*rows: str) -> Mask:
    return np.array([[pixel == "x" for pixel in row] for row in rows])


def betti(mask: Mask) -> tuple[int, int]:
    """Components and loops by labels and the Euler number."""
    components = ndimage.label(mask, np.ones((3,) * mask.ndim))[1]
    cavities = ndimage.label(~np.pad(mask, 1))[1] - 1 if mask.ndim == 3 else 0
    return components, components + cavities - euler_number(mask, mask.ndim)


def counts(graph: nx.MultiGraph) -> tuple[int, int]:
    return nx.number_connected_components(graph), loop_count(graph)


def degrees(graph: nx.MultiGraph) -> list[int]:
    return sorted(degree for _, degree in graph.degree())


def check_form(graph: nx.MultiGraph, skeleton: Mask) -> None:
    """Paths lead over touching pixels of the skeleton from node to node, and no node is left that is neither."""
    for u, v, data in graph.edges(data=True):
        path = np.rint(data["path"]).astype(int)
        assert (np.abs(np.diff(path, axis=0)).max(axis=1) == 1).all()
        assert skeleton[tuple(path.T)].all()
        end = v if data["start"] == u else u
        assert tuple(data["path"][0]) == graph.nodes[data["start"]]["position"]
        assert tuple(data["path"][-1]) == graph.nodes[end]["position"]
        assert u != v or len({tuple(point) for point in path}) > 3, "a ring has an inside"
    assert set(merge_chains(graph)) == set(graph), "no node in the middle of a path"


@pytest.mark.parametrize("thin", [False, True])
def test_random_images_keep_components_and_loops(thin: bool) -> None:
    random = np.random.default_rng(0)
    for _ in range(400):
        mask = random.random(random.integers(1, 14, 2)) < random.uniform(0.1, 0.95)
        mask = skeletonize(mask) if thin else mask
        if mask.any():
            graph = skeleton_graph(mask)
            assert counts(graph) == betti(mask)
            check_form(graph, mask)


@pytest.mark.parametrize("thin", [False, True])
def test_random_volumes_keep_components_and_loops(thin: bool) -> None:
    random = np.random.default_rng(1)
    for _ in range(150):
        mask = random.random(random.integers(1, 8, 3)) < random.uniform(0.02, 0.9)
        mask = skeletonize(mask).astype(bool) if thin else mask
        if mask.any():
            graph = skeleton_graph(mask)
            assert counts(graph) == betti(mask)
            check_form(graph, mask)


def test_large_smooth_structures_keep_components_and_loops() -> None:
    noise = ndimage.gaussian_filter(np.random.default_rng(2).normal(size=(300, 300)), 4)
    mask = np.abs(noise) < 0.4 * noise.std()
    graph = mask_graph(mask)
    assert counts(graph) == betti(mask)


@pytest.mark.parametrize(
    ("rows", "expected_degrees", "lengths"),
    [
        (["       ", "  x    ", "       "], [0], []),
        (["       ", " xxxxx ", "       "], [1, 1], [4]),
        (["xx     ", "xx     ", "       "], [0], []),  # a block is a pixel
        (["x      ", "xx     ", "       "], [1, 1], [ROOT2]),  # a corner is cut
        (["x    x ", " x  x  ", "  xx   ", "  x    ", "  x    "], [1, 1, 1, 3], [2, 2 * ROOT2, 1 + 2 * ROOT2]),
        (["  x    ", "  x    ", "xxxxx  ", "  x    ", "  x    "], [1, 1, 1, 1, 4], [2, 2, 2, 2]),
        # Two branch points side by side are one.
        (["  x    ", "  x    ", "xxxxxxx", "   x   ", "   x   "], [1, 1, 1, 1, 4], None),
        # Stairs: every second corner is cut.
        (["x      ", "xx     ", " xx    ", "  xx   ", "   xx  "], [1, 1], [4 * ROOT2]),
        # A block in the middle of a line is no branch point.
        (["       ", "xxxx   ", "  xxxxx", "       "], [1, 1], None),
        ([" xxx   ", " x x   ", " xxx   "], [2], [4 * ROOT2]),
        (["  x    ", " x x   ", "  x    "], [2], [4 * ROOT2]),
        # A theta: two nodes, three segments.
        ([" xxxxx ", "x  x  x", "x  x  x", "x  x  x", " xxxxx "], [3, 3], None),
        # Two rings with one pixel in common.
        ([" x   x ", "x x x x", "x  x  x", "x x x x", " x   x "], [4], None),
        # A lollipop.
        ([" x     ", "x xxxxx", " x     "], [1, 3], [4 * ROOT2, 4]),
    ],
)
def test_drawn_arrays(rows: list[str], expected_degrees: list[int], lengths: list[float] | None) -> None:
    skeleton = drawn(*rows)
    graph = skeleton_graph(skeleton)
    assert degrees(graph) == expected_degrees
    check_form(graph, skeleton)
    if lengths is not None:
        found = sorted(length for *_, length in graph.edges(data="length"))
        np.testing.assert_allclose(found, sorted(lengths), rtol=0, atol=1e-12)


def test_two_segments_between_the_same_nodes_and_a_ring_on_its_own() -> None:
    skeleton = np.zeros((9, 20), bool)
    skeleton[2, 3:8] = skeleton[6, 3:8] = True
    skeleton[3:6, 2] = skeleton[3:6, 8] = True
    skeleton[4, :3] = skeleton[4, 8:12] = True
    skeleton[[3, 5, 4, 4], [16, 16, 15, 17]] = True
    graph = skeleton_graph(skeleton)
    assert degrees(graph) == [1, 1, 2, 3, 3]
    (left, right) = (node for node, degree in graph.degree() if degree == 3)
    assert graph.number_of_edges(left, right) == 2
    assert {graph.nodes[node]["position"] for node in (left, right)} == {(4.0, 2.0), (4.0, 8.0)}


def test_the_node_of_a_cluster_is_the_pixel_next_to_its_middle() -> None:
    # Branch points (1, 2), (1, 3) and (1, 4) side by side.
    graph = skeleton_graph(drawn("  x x  ", "xxxxxxx", "   x   ", "   x   "))
    (node,) = (node for node, degree in graph.degree() if degree > 1)
    assert graph.nodes[node]["position"] == (1.0, 3.0)
    assert graph.degree(node) == 5


def chamfer_length(skeleton: Mask) -> float:
    """Sum over touching pairs without a shorter way round: the length, where no pixel is a corner or in a cluster."""
    total = 0.0
    for pixel in np.argwhere(skeleton):
        for offset in product((-1, 0, 1), repeat=2):
            other = pixel + offset
            if offset <= (0, 0) or (other < 0).any() or (other >= skeleton.shape).any() or not skeleton[tuple(other)]:
                continue
            corners = skeleton[pixel[0], other[1]] or skeleton[other[0], pixel[1]]
            total += 0.0 if all(offset) and corners else math.hypot(*offset)
    return total


def test_the_total_length_is_the_sum_over_touching_pixels() -> None:
    random = np.random.default_rng(3)
    checked = 0
    for _ in range(300):
        mask = ndimage.gaussian_filter(random.normal(size=(24, 24)), 2) > 0
        skeleton = skeletonize(mask)
        blocks = ndimage.binary_hit_or_miss(skeleton, np.ones((2, 2)))
        corner = ndimage.correlate(skeleton.astype(int), [[0, 1, 0], [1, 0, 1], [0, 1, 0]], mode="constant")
        straight = (np.roll(skeleton, 1, 0) & np.roll(skeleton, -1, 0)) | (
            np.roll(skeleton, 1, 1) & np.roll(skeleton, -1, 1)
        )
        if not skeleton.any() or blocks.any() or (skeleton & (corner >= 2) & ~(straight & (corner == 2))).any():
            continue
        checked += 1
        assert total_length(skeleton_graph(skeleton)) == pytest.approx(chamfer_length(skeleton), abs=1e-9)
    assert checked > 20


def test_lengths_of_turned_and_mirrored_images_are_the_same() -> None:
    random = np.random.default_rng(4)
    for _ in range(100):
        mask = ndimage.gaussian_filter(random.normal(size=(30, 40)), 2) > 0.05
        skeleton = skeletonize(mask)
        graph = skeleton_graph(skeleton)
        for turned in (skeleton[::-1], skeleton[:, ::-1], skeleton.T):
            other = skeleton_graph(turned)
            assert degrees(other) == degrees(graph)
            assert counts(other) == counts(graph)
            # Clusters of two pixels have no middle one; either choice moves ends by a pixel.
            assert total_length(other) == pytest.approx(total_length(graph), rel=0.02, abs=1)


def test_lines_and_rings_have_the_same_length_from_all_sides() -> None:
    random = np.random.default_rng(5)
    for _ in range(100):
        line = np.zeros((40, 40), bool)
        row, column = 20, 1
        while column < 39 and 1 < row < 38:  # steps as of a staircase and as of a slope
            line[row, column] = True
            move = random.integers(3)
            row, column = row + (move == 2), column + (move < 2)
        lengths = [total_length(skeleton_graph(turned)) for turned in (line, line[::-1], line[:, ::-1], line.T)]
        np.testing.assert_allclose(lengths, lengths[0], rtol=0, atol=1e-9)
    ring = drawn(" xx  ", "xx xx", "x   x", "xx xx", " xxx ")
    lengths = [total_length(skeleton_graph(turned)) for turned in (ring, ring[::-1], ring[:, ::-1], ring.T)]
    np.testing.assert_allclose(lengths, lengths[0], rtol=0, atol=1e-9)


def test_anisotropic_lengths_in_closed_form() -> None:
    skeleton = np.zeros((30, 30), bool)
    skeleton[5, 2:12] = True
    skeleton[10:16, 3] = True
    skeleton[np.arange(18, 25), np.arange(5, 12)] = True
    graph = skeleton_graph(skeleton, spacing=(2.0, 0.5))
    found = sorted(length for *_, length in graph.edges(data="length"))
    np.testing.assert_allclose(found, sorted([9 * 0.5, 5 * 2.0, 6 * math.hypot(2, 0.5)]), rtol=0, atol=1e-12)
    assert graph.graph["unit"] == "um"
    assert graph.graph["spacing"] == (2.0, 0.5)
    assert (10.0, 1.0) in {data["position"] for _, data in graph.nodes(data=True)}


def test_a_volume_with_spacing() -> None:
    skeleton = np.zeros((12, 12, 12), bool)
    steps = np.arange(1, 9)
    skeleton[steps, steps, steps] = True  # a diagonal of the volume
    skeleton[8, 8, 9:12] = True
    skeleton[9:12, 8, 8] = True
    graph = skeleton_graph(skeleton, spacing=(3.0, 1.0, 2.0))
    assert degrees(graph) == [1, 1, 1, 3]
    found = sorted(length for *_, length in graph.edges(data="length"))
    np.testing.assert_allclose(found, sorted([7 * math.sqrt(14), 3 * 2.0, 3 * 3.0]), rtol=0, atol=1e-12)


def test_three_voxels_around_a_corner_are_no_ring() -> None:
    skeleton = np.zeros((4, 4, 4), bool)
    skeleton[[1, 0, 0], [0, 1, 0], [0, 0, 1]] = True  # all three touch
    assert degrees(skeleton_graph(skeleton)) == [0]


def test_every_orientation_of_a_volume_gives_the_same_counts() -> None:
    random = np.random.default_rng(6)
    for _ in range(10):
        skeleton = skeletonize(ndimage.gaussian_filter(random.normal(size=(14, 14, 14)), 1.5) > 0.1).astype(bool)
        expected = degrees(skeleton_graph(skeleton))
        for axes in permutations(range(3)):
            assert degrees(skeleton_graph(skeleton.transpose(axes))) == expected


def test_attributes_are_those_of_add_segment() -> None:
    random = np.random.default_rng(7)
    skeleton = skeletonize(ndimage.gaussian_filter(random.normal(size=(60, 60)), 2) > 0)
    radius, probability = random.uniform(1, 4, skeleton.shape), random.random(skeleton.shape)
    radius[random.random(skeleton.shape) < 0.2] = math.nan
    spacing = (0.7, 1.3)
    graph = skeleton_graph(skeleton, spacing, radius, probability)
    assert graph.number_of_edges() > 10
    for u, v, data in graph.edges(data=True):
        pixels = tuple(np.rint(data["path"] / spacing).astype(int).T)
        np.testing.assert_array_equal(data["radius"], radius[pixels])
        single = new_graph(spacing)
        for node in (u, v):
            single.add_node(node, **graph.nodes[node])
        end = v if data["start"] == u else u
        key = add_segment(single, data["start"], end, data["path"], data["radius"])
        expected = single.edges[u, v, key]
        np.testing.assert_allclose(data["length"], expected["length"], rtol=1e-12)
        np.testing.assert_allclose(data["width"], expected["width"], rtol=1e-12)
        # The score, by the trapezoidal rule.
        values = probability[pixels]
        steps = [math.dist(a, b) for a, b in pairwise(data["path"].tolist())]
        area = sum((a + b) / 2 * step for (a, b), step in zip(pairwise(values), steps, strict=True))
        assert data["score"] == pytest.approx(area / sum(steps), rel=1e-12)
    for _, data in graph.nodes(data=True):
        pixel = tuple(np.rint(np.array(data["position"]) / spacing).astype(int))
        np.testing.assert_array_equal(data["radius"], radius[pixel])


def test_what_is_not_known_is_nan() -> None:
    graph = skeleton_graph(drawn("xxx"))
    (data,) = (data for *_, data in graph.edges(data=True))
    assert math.isnan(data["score"])
    assert math.isnan(data["width"])
    assert np.isnan(data["radius"]).all()


def test_an_empty_skeleton_has_an_empty_graph() -> None:
    assert len(skeleton_graph(np.zeros((4, 5), bool), spacing=(1, 1))) == 0
    assert len(mask_graph(np.zeros((4, 5, 6), bool))) == 0


@pytest.mark.parametrize("width", [1, 2, 5, 8])
def test_the_graph_of_a_bar_that_leaves_the_image_leads_from_border_to_border(width: int) -> None:
    mask = np.zeros((40, 60), bool)
    mask[15 : 15 + width] = True
    graph = mask_graph(mask, spacing=(0.5, 0.5))
    assert degrees(graph) == [1, 1]
    assert sorted(data["position"][1] for _, data in graph.nodes(data=True)) == [0.0, 29.5]
    ((_, _, data),) = graph.edges(data=True)
    middle = data["radius"][10:-10]  # away from ends, where a line of an even width may bend
    assert (middle == 0.5 * (width if width % 2 else width - 1) / 2).all()
    # The border is no edge of the structure: it is not thinner there.
    assert data["radius"][[0, -1]].tolist() == [middle[0]] * 2


def test_a_bar_along_the_border_and_one_across_a_corner() -> None:
    along = np.zeros((40, 60), bool)
    along[:9] = True
    graph = mask_graph(along)
    assert degrees(graph) == [1, 1]
    assert {data["position"][1] for _, data in graph.nodes(data=True)} == {0.0, 59.0}
    capped = np.zeros((40, 60), bool)
    capped[:9, 10:50] = True
    graph = mask_graph(capped)
    assert degrees(graph) == [1, 1]
    assert all(3 <= data["position"][0] <= 5 for _, data in graph.nodes(data=True))
    rows, columns = np.indices((60, 60))
    graph = mask_graph(np.abs(rows - columns) < 7)
    assert degrees(graph) == [1, 1]
    assert all(min(*data["position"]) == 0 or max(*data["position"]) == 59 for _, data in graph.nodes(data=True))


def test_a_column_of_even_width_leaves_a_volume() -> None:
    mask = np.zeros((20, 20, 30), bool)
    mask[8:12, 8:12] = True
    graph = mask_graph(mask, spacing=(2.0, 2.0, 1.0))
    assert degrees(graph) == [1, 1]
    assert {data["position"][2] for _, data in graph.nodes(data=True)} == {0.0, 29.0}


def test_radii_are_distances_to_the_rim() -> None:
    random = np.random.default_rng(8)
    for shape, spacing in (((40, 50), (1.0, 1.0)), ((40, 50), (0.4, 1.7)), ((16, 18, 20), (2.0, 1.0, 0.5))):
        mask = ndimage.gaussian_filter(random.normal(size=shape), 2) > 0
        graph = mask_graph(mask, spacing)
        # The transform knows no border either.
        expected = ndimage.distance_transform_edt(mask, sampling=spacing) - min(spacing) / 2
        for *_, data in graph.edges(data=True):
            pixels = tuple(np.rint(data["path"] / spacing).astype(int).T)
            np.testing.assert_allclose(data["radius"], expected[pixels], rtol=1e-12)


def test_a_mask_without_background_has_no_radius() -> None:
    graph = mask_graph(np.ones((5, 30), bool))
    assert all(math.isnan(data["radius"]) for _, data in graph.nodes(data=True))


def test_random_masks_keep_components_and_loops_at_the_border() -> None:
    random = np.random.default_rng(9)
    for _ in range(150):
        noise = ndimage.gaussian_filter(random.normal(size=(24, 24)), random.uniform(0.5, 3))
        mask = noise > np.quantile(noise, random.uniform(0.4, 0.9))
        assert counts(mask_graph(mask)) == betti(mask)


def test_errors_name_what_is_wrong() -> None:
    skeleton = drawn("xxx")
    with pytest.raises(DataError, match="radius: expected shape"):
        skeleton_graph(skeleton, radius=np.ones(3))
    with pytest.raises(DataError, match="probability: expected shape"):
        mask_graph(skeleton, probability=np.ones((3, 1)))
    for wrong in (math.nan, -0.1, 1.1):
        with pytest.raises(DataError, match=r"0\.\.1"):
            skeleton_graph(skeleton, probability=np.array([[0.5, 0.5, wrong]]))
    with pytest.raises(DataError, match="spacing: expected 2"):
        skeleton_graph(skeleton, spacing=(1, 1, 1))
    with pytest.raises(DataError, match="positive"):
        mask_graph(skeleton, spacing=(1, 0))
    with pytest.raises(DataError, match="0 and 1"):
        skeleton_graph(np.full((3, 3), 0.5))
