"""Names of files for images, made of their ids."""

import re
from collections.abc import Sequence
from itertools import takewhile
from pathlib import PurePosixPath


def file_names(ids: Sequence[str]) -> list[str]:
    """A name for each id that every file system takes: without folders that all share and without suffix.

    Equal names, whatever their case, are numbered.

    >>> file_names(["test/images/01_test.tif", "test/images/02_test.tif"])
    ['01_test', '02_test']
    >>> file_names(["day 1/cell.tif#0", "day 1/cell.tif#1", "day 2/Cell_0.png", "day 2/cell_0.png"])
    ['day 1_cell_0', 'day 1_cell_1', 'day 2_Cell_0', 'day 2_cell_0_2']
    """
    parts = [PurePosixPath(text.replace("\\", "/")) for text in ids]
    levels = zip(*(path.parent.parts for path in parts), strict=False)
    shared = sum(1 for _ in takewhile(lambda names: len(set(names)) == 1, levels))
    found: dict[str, str] = {}  # by the name in lower case
    for path in parts:
        plane = path.suffix.partition("#")[2]
        last = f"{path.stem}_{plane}" if plane else path.stem
        name = "_".join([*path.parent.parts[shared:], last])
        name = re.sub(r'[<>:"/\\|?*#\x00-\x1f]+', "_", name).strip(" .") or "image"
        number, free = 1, name
        while free.lower() in found:
            number += 1
            free = f"{name}_{number}"
        found[free.lower()] = free
    return list(found.values())
