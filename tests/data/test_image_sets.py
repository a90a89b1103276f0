from dataclasses import replace

import pytest

from biocnn.data.image_sets import draw, join
from biocnn.errors import DataError
from tests.data.drawn_cells import drawn_cells

IMAGES = drawn_cells(20)


def test_joined_and_taken_again() -> None:
    first, second = IMAGES.take(range(3)), IMAGES.take([7, 4])
    both = join([first, second])
    assert both.ids == ("image0", "image1", "image2", "image7", "image4")
    assert both.points[3] is IMAGES.points[7]
    assert both.images[4] is IMAGES.images[4]
    assert both.digests.tolist() == [0, 1, 2, 7, 4]
    assert both.groups is None
    assert join([replace(first, groups=("a", "a", "b")), replace(second, groups=("c", "b"))]).groups == tuple("aabcb")
    assert both.take([4]).ids == ("image4",)


def test_smaller_draws_are_part_of_larger_ones_and_validation_stays() -> None:
    drawn = {number: draw(IMAGES, number, 6, seed=3) for number in (2, 4, 8)}
    assert {number: len(parts["train"]) for number, parts in drawn.items()} == {2: 2, 4: 4, 8: 8}
    assert set(drawn[2]["train"].ids) < set(drawn[4]["train"].ids) < set(drawn[8]["train"].ids)
    assert len({parts["valid"].ids for parts in drawn.values()}) == 1
    for parts in drawn.values():
        assert not set(parts["train"].ids) & set(parts["valid"].ids)
        numbers = [int(name.removeprefix("image")) for name in parts["train"].ids]
        assert numbers == sorted(numbers)  # the order of the split
    assert len({draw(IMAGES, 4, 6, seed=seed)["train"].ids for seed in range(20)}) > 15


def test_what_is_not_given_is_all_the_rest() -> None:
    assert [len(part) for part in draw(IMAGES, 5, None, seed=0).values()] == [5, 15]
    assert [len(part) for part in draw(IMAGES, None, 5, seed=0).values()] == [15, 5]


@pytest.mark.parametrize("seed", range(10))
def test_no_group_gives_to_both(seed: int) -> None:
    grouped = replace(IMAGES, groups=tuple(f"field{number // 4}" for number in range(20)))
    parts = draw(grouped, 6, 4, seed=seed)
    assert (len(parts["train"]), len(parts["valid"])) == (6, 4)
    assert not set(parts["train"].groups or ()) & set(parts["valid"].groups or ())
    whole = draw(grouped, None, 6, seed=seed)
    assert (len(whole["valid"]), len(whole["train"])) == (6, 12)  # of five groups two are touched
    assert not set(whole["train"].groups or ()) & set(whole["valid"].groups or ())


def test_too_few_images() -> None:
    with pytest.raises(DataError, match=r"hold 20 images of 20 group.*expected 15 to train on and 6 of other groups"):
        draw(IMAGES, 15, 6, seed=0)
    with pytest.raises(DataError, match="expected 20 to train on and at least one"):
        draw(IMAGES, 20, None, seed=0)
    with pytest.raises(DataError, match="expected at least one to train on and 20"):
        draw(IMAGES, None, 20, seed=0)
    one = replace(IMAGES, groups=("slide",) * 20)
    with pytest.raises(DataError, match="20 images of 1 group"):
        draw(one, 5, 5, seed=0)
