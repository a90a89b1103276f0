"""The house in order: layers, sizes, names, docstrings and types, and nothing of a single machine in the text."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "biocnn"
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}
SCRIPTS = [path for folder in ("pipelines", "benchmarks", "tests") for path in sorted((ROOT / folder).rglob("*.py"))]

# Lowest first: a part imports from parts above it in this list, and from itself. The longest name that fits counts.
LAYERS = [
    "biocnn",  # __init__, which imports nothing when it is imported
    "biocnn.errors",
    "biocnn.files",
    "biocnn.compiled",
    "biocnn.checkpoints",
    "biocnn.data",
    "biocnn.networks",
    "biocnn.losses",
    "biocnn.metrics",
    "biocnn.delineation",
    "biocnn.tasks",
    "biocnn.inference",
    "biocnn.report",
    "biocnn.training",
    "biocnn.export",
    "biocnn.cli",
]

# Imports inside functions: optional packages, and what is slow to import and seldom needed.
INNER_IMPORTS = {
    ("biocnn.networks.backbones", "timm"),
    ("biocnn.data.datamodule", "cv2"),  # in worker processes only
    ("biocnn.data.point_files", "roifile"),
    ("biocnn.data.outline_files", "roifile"),
    ("biocnn.inference.tables", "pyarrow.parquet"),
    ("biocnn.export.programs", "onnx"),
    ("biocnn.export.programs", "onnxruntime"),
    ("biocnn.export.bioimage_package", "bioimageio"),
}
# The same by `import_module`: the verbs of the command, `biocnn.load`, and class paths of networks.
IMPORT_MODULE = {"biocnn", "biocnn.networks.spec"}

MAX_FILE, MAX_CLASS, MAX_FUNCTION = 400, 200, 60

Function = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_name(name: str) -> str:
    return name.removesuffix(".__init__")


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(tree: ast.AST) -> Iterator[str]:
    """Modules that are imported, at any depth, but not those for type checkers only."""
    for node in ast.iter_child_nodes(tree):
        if is_type_checking(node):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in GRAPH_NAMES else node.module
        else:
            yield from imports(node)


GRAPH_NAMES = {module_name(name) for name in MODULES}
GRAPH = {
    module_name(name): {module for module in imports(tree_of(path)) if module in GRAPH_NAMES}
    for name, path in MODULES.items()
}


def layer(module: str) -> int:
    fitting = [name for name in LAYERS[1:] if module == name or module.startswith(f"{name}.")]
    return LAYERS.index(max(fitting, key=len)) if fitting else 0


def test_every_part_has_a_layer_and_every_layer_a_part() -> None:
    parts = {".".join(name.split(".")[:2]) for name in GRAPH}
    assert parts <= set(LAYERS), "say where a new part belongs"
    assert {name for name in LAYERS if name not in GRAPH} == set()


@pytest.mark.parametrize("module", sorted(GRAPH))
def test_imports_go_down(module: str) -> None:
    higher = {name for name in GRAPH[module] if layer(name) > layer(module)}
    assert higher == set(), f"{module} imports from parts that come after its own in LAYERS"


def test_no_import_circle() -> None:
    left = {name: set(needed) - {name} for name, needed in GRAPH.items()}
    while free := [name for name, needed in left.items() if not needed]:
        for name in free:
            del left[name]
        for needed in left.values():
            needed.difference_update(free)
    assert left == {}, "what is left imports itself in a circle"


def test_nothing_imports_a_pipeline() -> None:
    for name, path in MODULES.items():
        assert not {module.split(".")[0] for module in imports(tree_of(path))} & {"pipelines", "pcam", "tests"}, name


def test_imports_inside_functions_are_the_listed_ones() -> None:
    found, by_name = set(), set()
    for name, path in MODULES.items():
        tree = tree_of(path)
        for node in ast.walk(tree):
            if isinstance(node, Function):
                found |= {(name, module) for module in imports(node)}
        if any(isinstance(node, ast.Name) and node.id == "import_module" for node in ast.walk(tree)):
            by_name.add(module_name(name))
    assert found == INNER_IMPORTS
    assert {name for name in by_name if not name.startswith("biocnn.cli.")} == IMPORT_MODULE


@pytest.mark.parametrize("path", [*MODULES.values(), *SCRIPTS], ids=name_of)
def test_sizes_and_names(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_FILE, "a file that passes 400 lines is asking to be two"
    assert not {"utils", "util", "helpers", "helper", "common", "misc"} & {path.stem, path.parent.name}
    assert len(path.relative_to(ROOT).parts) <= 3, "two levels deep, no deeper"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.ClassDef, Function)):
            limit = MAX_CLASS if isinstance(node, ast.ClassDef) else MAX_FUNCTION
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node) is not None and not isinstance(node, ast.ClassDef):
                docstring = node.body[0]
                assert docstring.end_lineno is not None
                length -= docstring.end_lineno - docstring.lineno + 1
            assert length <= limit, f"{node.name} has {length} lines"


def public(tree: ast.Module | ast.ClassDef, prefix: str = "") -> Iterator[tuple[str, ast.ClassDef | Function]]:
    """Public classes and functions of a module, and the public methods of the former."""
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, Function)) and not node.name.startswith("_"):
            yield f"{prefix}{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from public(node, f"{prefix}{node.name}.")
        elif isinstance(node, Function) and node.name == "__init__":
            yield f"{prefix}{node.name}", node


@pytest.mark.parametrize("name", sorted(MODULES))
def test_public_names_are_documented_and_typed(name: str) -> None:
    tree = tree_of(MODULES[name])
    assert ast.get_docstring(tree), f"{name} has no docstring"
    for title, node in public(tree):
        # A class describes its constructor.
        assert ast.get_docstring(node) or title.endswith("__init__"), f"{name}: {title} has no docstring"
        if isinstance(node, ast.ClassDef):
            continue
        assert node.returns is not None, f"{name}: {title} does not say what it returns"
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
        bare = [a.arg for a in arguments if a is not None and a.annotation is None and a.arg not in ("self", "cls")]
        assert bare == [], f"{name}: {title} has arguments without a type"


def tracked_texts() -> Iterator[tuple[str, str]]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in listed.rstrip("\0").split("\0"):
        path = ROOT / name
        if path.is_file() and path.suffix not in (".png", ".h5"):
            yield name, path.read_text(encoding="utf-8")


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_no_machine_and_no_package_registry_in_the_text() -> None:
    # Put together here, so that this file does not hold what it looks for.
    hosts = [".".join(parts) for parts in (("pypi", "org"), ("pythonhosted", "org"), ("anaconda", "org"))]
    hosts += [".".join(("download", "pytorch", "org")), ".".join(("registry", "npmjs"))]
    # A slash before the folder and a name after it; `/tmp` and `/path/to` are nobody's.
    folders = "|".join(("home", "root", "Users", "work", "mnt", "scratch"))
    machine = re.compile(rf"(?<![\w.)/])/(?:{folders})/\w|[A-Z]:\\Users")
    for name, text in tracked_texts():
        assert [host for host in hosts if host in text] == [], name
        assert machine.findall(text) == [], name


def test_continuous_integration_calls_the_test_command_of_the_readme() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    lines = script.read_text().splitlines()
    assert [line for line in lines if "make" in line] == [lines[-1]] == ["exec make test"]
    assert "\nmake test\n" in (ROOT / "README.md").read_text()
