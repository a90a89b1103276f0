import pytest

from biocnn.data.file_names import file_names


@pytest.mark.parametrize(
    ("ids", "names"),
    [
        (["a/b/1.png"], ["1"]),
        (["1.png", "1.tif", "1.PNG"], ["1", "1_2", "1_3"]),
        (["x/1.png", "y/1.png"], ["x_1", "y_1"]),
        (["in/x/1.png", "in/2.png"], ["x_1", "2"]),
        (["c:\\lab\\1.png", "c:\\lab\\2.png"], ["1", "2"]),
        (["s.tif#0", "s.tif#11"], ["s_0", "s_11"]),
        (["wh?t:*<is>.png", "..png", "sp ace .png"], ["wh_t_is_", "image", "sp ace"]),
        (["a/.png", "b/"], ["a_.png", "b"]),
    ],
)
def test_names_that_every_file_system_takes(ids: list[str], names: list[str]) -> None:
    assert file_names(ids) == names


def test_numbered_names_do_not_meet_others() -> None:
    names = file_names(["1.png", "1.tif", "1_2.png", "1.jpg"])
    assert len({name.lower() for name in names}) == 4
