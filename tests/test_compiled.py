from biocnn.compiled import compiled


def test_a_function_that_cannot_be_kept_on_disk_is_compiled_all_the_same() -> None:
    space: dict = {}
    exec("def double(x):\n    return 2 * x", space)  # has no file, hence no folder for what is compiled
    assert compiled(space["double"])(21) == 42
