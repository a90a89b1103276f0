"""Graphs as SWC, the format of neuron tracings (Cannon et al. 1998, https://doi.org/10.1016/S0165-0270(98)00091-0).

A line per sample: id, type, x, y, z, radius, parent; comments begin with ``#``. Fiji (SNT), Vaa3D, napari, navis and
NEURON read it. As the specification of the INCF has it, parents come before children, ids count from 1, roots have the
parent -1, and lengths are micrometres; x is the column, y the row and z the plane, 0 for a graph of two axes. The
origin is the centre of pixel [0, 0], as of the graph.

SWC holds trees only, one radius per sample and no more. What would be lost is in comments that begin with ``# biocnn``:

- ``unit`` is ``px`` if the size of a pixel is not known; all lengths are pixels then.
- ``spacing``: size of a pixel along each axis, (plane,) row, column.
- ``loop: A B``: sample A is B once more. A loop is cut at B; A has its place, so that other programs show a closed
  curve of the right length.
- ``unknown radius``: samples, whose radius is written as half a pixel, as programs refuse NaN.

Scores of segments are not kept.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import networkx as nx

from biocnn.data.findings import listed
from biocnn.data.graphs import UNITS, Floats, add_segment, new_graph, path_from
from biocnn.data.point_files import check_file
from biocnn.errors import DataError
from biocnn.files import write_text

UNDEFINED = 0
"""Type of a sample of which nothing is known; others are 1 soma, 2 axon, 3 basal and 4 apical dendrite."""
ROOT = -1
DECIMALS = 4
_COLUMNS = 7
_NOTE = re.compile(r"#\s*biocnn ([a-z ]+): *(.*)")
_IDS_A_LINE = 20


def write_swc(path: str | Path, graph: nx.MultiGraph, structure: int = UNDEFINED) -> int:
    """Write a graph as SWC; :func:`read_swc` gives it back with its chains merged.

    Lengths have 4 decimals. A node has the radius of its attribute, or if that is not known the mean of the ends of
    the segments there.

    Args:
        path: target file ``.swc``; its folder is made when missing.
        graph: every component becomes a tree, with its lowest node as root.
        structure: type of all samples.

    Returns:
        Number of loops that were cut, those of rings included.
    """
    samples, loops = _samples(graph)
    spacing, unit = graph.graph["spacing"], graph.graph["unit"]
    unknown = [number for number, (_, radius, _) in enumerate(samples, 1) if not math.isfinite(radius)]
    lines = [
        "# Written by biocnn: id type x y z radius parent",
        f"# Lengths in {'micrometres' if unit == 'um' else 'pixels'}; x is the column, y the row, z the plane",
        f"# biocnn unit: {unit}",
        f"# biocnn spacing: {' '.join(repr(float(step)) for step in spacing)}",
        *_unknown_notes(unknown),
        *(f"# biocnn loop: {copy} {original}" for copy, original in loops),
    ]
    instead = min(spacing) / 2
    for number, (position, radius, parent) in enumerate(samples, 1):
        place = [*(0.0,) * (3 - len(position)), *position][::-1]
        # Zero is added as -0.0 would be written with its sign.
        values = [round(value, DECIMALS) + 0.0 for value in (*place, radius if math.isfinite(radius) else instead)]
        lines.append(f"{number} {structure} {' '.join(f'{value:.{DECIMALS}f}' for value in values)} {parent}")
    write_text(path, "\n".join(lines) + "\n")
    return len(loops)


Samples = list[tuple[list[float], float, int]]


def _samples(graph: nx.MultiGraph) -> tuple[Samples, list[tuple[int, int]]]:
    """Positions, radii and parents of samples 1, 2, ..., depth first; and pairs of samples that are one point."""
    samples: Samples = []
    loops: list[tuple[int, int]] = []
    of_node: dict[int, int] = {}
    done: set[int] = set()
    for root in sorted(graph.nodes):
        if root in of_node:
            continue
        samples.append((_place(graph, root), _node_radius(graph, root), ROOT))
        of_node[root] = len(samples)
        waiting = list(graph.edges(root, data=True))
        while waiting:
            near, far, data = waiting.pop()
            if id(data) in done:
                continue
            done.add(id(data))
            parent = of_node[near]
            inner = zip(path_from(data, near).tolist(), _radius_from(data, near).tolist(), strict=True)
            for position, radius in list(inner)[1:-1]:
                samples.append((position, radius, parent))
                parent = len(samples)
            samples.append((_place(graph, far), _node_radius(graph, far), parent))
            if far in of_node:
                loops.append((len(samples), of_node[far]))
            else:
                of_node[far] = len(samples)
                waiting.extend(graph.edges(far, data=True))
    return samples, loops


def _place(graph: nx.MultiGraph, node: int) -> list[float]:
    return [float(value) for value in graph.nodes[node]["position"]]


def _node_radius(graph: nx.MultiGraph, node: int) -> float:
    radius = float(graph.nodes[node]["radius"])
    if math.isfinite(radius):
        return radius
    ends = [_radius_from(data, node)[0] for *_, data in graph.edges(node, data=True)]
    known = [float(end) for end in ends if math.isfinite(end)]
    return math.fsum(known) / len(known) if known else math.nan


def _radius_from(data: dict[str, Any], node: int) -> Floats:
    radius: Floats = data["radius"]
    return radius if data["start"] == node else radius[::-1]


def _unknown_notes(numbers: Sequence[int]) -> list[str]:
    """Numbers in ascending order as ranges, some on a line."""
    ranges: list[tuple[int, int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    texts = [str(low) if low == high else f"{low}-{high}" for low, high in ranges]
    rows = [texts[first : first + _IDS_A_LINE] for first in range(0, len(texts), _IDS_A_LINE)]
    return [f"# biocnn unknown radius: {' '.join(row)}" for row in rows]


@dataclass(frozen=True)
class _Sample:
    line: int
    position: tuple[float, float, float]
    """(plane, row, column)."""
    radius: float
    parent: int


@dataclass
class _Content:
    samples: dict[int, _Sample] = field(default_factory=dict)
    notes: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def check_swc(path: str | Path) -> list[str]:
    """What is wrong with an SWC file, each with its line; empty if it can be read.

    Wrong are: less than seven columns, what is not a number, ids that are not whole or occur twice, negative radii,
    parents that are not in the file or the sample itself, and circles of parents. A parent after its child, gaps
    between ids, any type and further columns are right.

    Raises:
        DatasetNotFoundError: if there is no such file.
    """
    return _read(Path(path)).problems


def _read(path: Path) -> _Content:
    check_file(path)
    content = _Content()
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    for number, line in enumerate(text.splitlines(), 1):
        if note := _NOTE.match(line.strip()):
            content.notes.append((note[1], note[2]))
        elif words := line.partition("#")[0].split():
            try:
                _add_sample(content, number, words)
            except ValueError as error:
                content.problems.append(f"line {number}: {error}")
    for sample in content.samples.values():
        if sample.parent != ROOT and sample.parent not in content.samples:
            content.problems.append(f"line {sample.line}: there is no sample {sample.parent}, its parent")
    if not content.problems:
        content.problems.extend(_circles(content.samples))
    if not (content.samples or content.problems or content.notes):
        content.problems.append("it holds no sample")
    return content


def _add_sample(content: _Content, line: int, words: list[str]) -> None:
    if len(words) < _COLUMNS:
        raise ValueError(f"expected {_COLUMNS} numbers with spaces between, received {len(words)} {words}")
    number, parent = _whole("id", words[0], 0), _whole("parent", words[6], ROOT)
    try:
        x, y, z, radius = (float(word) for word in words[2:6])
    except ValueError as error:
        raise ValueError(f"expected numbers, received {words[2:6]}") from error
    if not all(map(math.isfinite, (x, y, z))):
        raise ValueError(f"expected a finite place, received {words[2:5]}")
    if radius < 0 or radius == math.inf:
        raise ValueError(f"expected a radius of 0 or more, received {words[5]}; 0 is for one that is not known")
    if number in content.samples:
        raise ValueError(f"id {number} is that of line {content.samples[number].line}, too")
    if parent == number:
        raise ValueError(f"sample {number} is its own parent")
    content.samples[number] = _Sample(line, (z, y, x), radius or math.nan, parent)


def _whole(name: str, word: str, least: int) -> int:
    """A whole number, which some programs write with decimals."""
    try:
        value = float(word)
        if value.is_integer() and value >= least:
            return int(value)
    except ValueError:
        pass
    raise ValueError(f"expected a whole number of {least} or more as {name}, received {word!r}")


def _circles(samples: dict[int, _Sample]) -> list[str]:
    """A sentence for every circle of parents."""
    problems = []
    walk_of: dict[int, int] = {}
    for first in samples:
        current = first
        while current != ROOT and current not in walk_of:
            walk_of[current] = first
            current = samples[current].parent
        if current != ROOT and walk_of[current] == first:
            problems.append(f"line {samples[current].line}: sample {current} is among its own ancestors")
    return problems


def read_swc(path: str | Path, dimensions: int | None = None) -> nx.MultiGraph:
    """Read a graph of SWC: one of :func:`write_swc`, or of another program.

    Nodes, numbered in the order of the file, are single samples, ends and branch points; then the first sample of each
    ring. So a root with two children is no node. Types are left alone, and so is what other programs say in comments.
    Without a comment on the unit lengths are taken as micrometres; the size of a pixel is then not known, and given
    as 1. A radius of 0 or NaN is one that is not known.

    Args:
        path: of the file.
        dimensions: 2 or 3; None takes 3 for a file that does not say so.

    Raises:
        DatasetNotFoundError: if there is no such file.
        DataError: if :func:`check_swc` finds something, a comment of biocnn does not fit the samples, or two axes are
            asked for and the samples are in several planes.
    """
    path = Path(path)
    content = _read(path)
    if content.problems:
        raise DataError(f"{path} is no SWC: {listed(content.problems)}. Correct these lines, or export it again.")
    try:
        graph, same, unknown = _from_notes(content, dimensions)
    except (ValueError, KeyError, IndexError) as error:
        raise DataError(
            f"{path}: a comment that begins with `# biocnn` does not fit the samples ({error}). Write the file again, "
            "or remove these comments to read it as one of another program."
        ) from error
    axes = len(graph.graph["spacing"])
    planes = {sample.position[0] for sample in content.samples.values()}
    if axes == 2 and len(planes) > 1:
        raise DataError(
            f"{path} has samples in {len(planes)} planes (z {min(planes):g} to {max(planes):g}), expected one for a "
            "graph of two axes. Read it with three."
        )
    for number in unknown:
        content.samples[number] = replace(content.samples[number], radius=math.nan)
    _trace(graph, content.samples, same)
    return graph


def _from_notes(content: _Content, dimensions: int | None) -> tuple[nx.MultiGraph, dict[int, int], list[int]]:
    """An empty graph, the samples that are others once more, and those whose radius is not known."""
    samples = content.samples
    unit, steps = "um", (1.0,) * (dimensions or 3)
    same: dict[int, int] = {}
    unknown: list[int] = []
    for name, value in content.notes:
        words = value.split()
        if name == "unit":
            unit = value.strip()
        elif name == "spacing":
            steps = tuple(float(word) for word in words)
        elif name == "loop":
            copy, original = int(words[0]), int(words[1])
            apart = math.dist(samples[copy].position, samples[original].position)
            if apart > 2 * 10**-DECIMALS:
                raise ValueError(f"samples {copy} and {original} of a loop are {apart:g} apart")
            same[copy] = original
        elif name == "unknown radius":
            ends = [word.partition("-") for word in words]
            unknown.extend(n for low, _, high in ends for n in range(int(low), int(high or low) + 1))
    if dimensions not in (None, len(steps)):
        raise ValueError(f"spacing {steps}, where {dimensions} axes are asked for")
    if unit not in UNITS:
        raise ValueError(f"unit {unit!r}, expected one of {UNITS}")
    if strange := sorted((set(unknown) - set(samples)) | (set(same) & set(same.values()))):
        raise ValueError(f"samples {listed(strange)}")
    return new_graph(steps if unit == "um" else None, len(steps)), same, unknown


def _trace(graph: nx.MultiGraph, samples: dict[int, _Sample], same: dict[int, int]) -> None:
    """Add nodes and segments of linked samples to an empty graph."""
    axes = len(graph.graph["spacing"])
    links: dict[int, list[tuple[int, int]]] = {number: [] for number in samples if number not in same}
    for number, sample in samples.items():
        if sample.parent != ROOT:  # a link has the number of the child
            ends = same.get(number, number), same.get(sample.parent, sample.parent)
            links[ends[0]].append((number, ends[1]))
            links[ends[1]].append((number, ends[0]))
    node_of: dict[int, int] = {}

    def add_node(number: int) -> None:
        node_of[number] = len(node_of)
        sample = samples[number]
        graph.add_node(node_of[number], position=sample.position[3 - axes :], radius=sample.radius)

    for number, ways in links.items():
        if len(ways) != 2:
            add_node(number)
    done: set[int] = set()
    # First from ends and branch points; what is left are rings, each from its first sample.
    for first in [*node_of, *links]:
        for link, following in links[first]:
            if link in done:
                continue
            if first not in node_of:
                add_node(first)
            walk = [first, following]
            done.add(link)
            while walk[-1] not in node_of:
                one, other = links[walk[-1]]
                link, following = other if one[0] in done else one
                done.add(link)
                walk.append(following)
            path = [samples[number].position[3 - axes :] for number in walk]
            add_segment(graph, node_of[first], node_of[walk[-1]], path, [samples[number].radius for number in walk])
