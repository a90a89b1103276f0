"""Importing biocnn, and asking its command for help, must not load what takes seconds."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = (
    "torch",
    "torchvision",
    "pytorch_lightning",
    "albumentations",
    "cv2",
    "matplotlib",
    "skimage",
    "scipy",
    "numpy",
)


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "code",
    [
        "import biocnn",
        "import biocnn; dir(biocnn); biocnn.__version__",
        "from biocnn.cli import main\ntry: main(['--help'])\nexcept SystemExit as stopped: assert stopped.code == 0",
        "from biocnn.cli import main\ntry: main(['data', 'audit', '--help'])\nexcept SystemExit: pass",
    ],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    done = python(
        "-c", f"{code}\nimport sys\nloaded = sorted(set({HEAVY!r}) & set(sys.modules))\nassert not loaded, loaded"
    )
    assert done.returncode == 0, done.stderr


def test_load_is_there_when_it_is_asked_for() -> None:
    code = "import sys, biocnn\nassert 'load' in dir(biocnn)\nassert biocnn.load.__module__ == 'biocnn.inference.load'"
    done = python("-c", f"{code}\nassert 'torch' in sys.modules")
    assert done.returncode == 0, done.stderr


def test_unknown_names_are_attribute_errors() -> None:
    done = python("-c", "import biocnn; biocnn.lode")
    assert "AttributeError: module 'biocnn' has no attribute 'lode'" in done.stderr


def test_import_warns_about_nothing() -> None:
    done = python("-W", "error", "-c", "import biocnn")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_command_is_installed_as_a_module_too() -> None:
    done = python("-m", "biocnn.cli", "--version")
    assert done.returncode == 0
    assert done.stdout.startswith("biocnn ")


def test_albumentations_asks_no_server_for_its_version() -> None:
    done = python("-c", "import biocnn, os; assert os.environ['NO_ALBUMENTATIONS_UPDATE'] == '1'")
    assert done.returncode == 0, done.stderr
