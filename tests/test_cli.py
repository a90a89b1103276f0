import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from biocnn.cli import main

SHARED = Path(__file__).parents[1].parent / "shared" / "data"


def draw(root, same=False):
    """Images and masks in train, valid and test; with `same`, one image of train is in test as well."""
    rng = np.random.default_rng(3)
    for split in ("train", "valid", "test"):
        for folder in ("images", "masks"):
            (root / split / folder).mkdir(parents=True)
        for index in range(2):
            Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(root / split / "images" / f"{index}.png")
            Image.fromarray(np.full((8, 8), 255, np.uint8)).save(root / split / "masks" / f"{index}.png")
    if same:
        shutil.copy(root / "train/images/0.png", root / "test/images/1.png")


def test_help_and_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith("biocnn 0.")
    with pytest.raises(SystemExit):
        main(["data", "audit", "--help"])
    assert "--quick" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["--help", "init", "verify", "audit", "fetch"])
def test_no_verb_of_data_imports_torch(verb, tmp_path):
    draw(tmp_path / "lab")
    main(["data", "init", str(tmp_path / "lab")])
    manifest = tmp_path / "lab" / "lab.yaml"
    if verb == "--help":
        arguments = ["--help"]
    elif verb == "init":
        manifest.unlink()
        arguments = ["data", "init", str(tmp_path / "lab")]
    else:
        arguments = ["data", verb, str(manifest), "--root", str(tmp_path / "lab")]
    code = (
        "import sys\nfrom biocnn.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'lightning', 'pytorch_lightning', 'torchvision', 'albumentations'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_from_folder_to_audit(tmp_path, capsys):
    root = tmp_path / "lab"
    draw(root)
    assert main(["data", "init", str(root)]) == 0
    out = capsys.readouterr().out
    assert "Wrote" in out
    assert "guessed  Kind image-mask" in out
    manifest = str(root / "lab.yaml")
    assert main(["data", "verify", manifest, "--root", str(root)]) == 0
    assert "12 were recorded" in capsys.readouterr().out
    assert main(["data", "verify", manifest, "--root", str(root)]) == 0
    assert "12 files agree" in capsys.readouterr().out
    assert main(["data", "audit", manifest, "--root", str(root)]) == 0
    assert "Nothing to object to." in capsys.readouterr().out


def test_a_leak_is_exit_code_1_and_quick_cannot_see_it(tmp_path, capsys):
    root = tmp_path / "lab"
    draw(root, same=True)
    main(["data", "init", str(root)])
    arguments = ["data", "audit", str(root / "lab.yaml"), "--root", str(root)]
    assert main(arguments) == 1
    assert "error    1 images of test are in train as well" in capsys.readouterr().out
    assert main([*arguments, "--quick"]) == 0


def test_a_changed_file_is_exit_code_1(tmp_path, capsys):
    root = tmp_path / "lab"
    draw(root)
    main(["data", "init", str(root)])
    arguments = ["data", "verify", str(root / "lab.yaml"), "--root", str(root)]
    main(arguments)
    shutil.copy(root / "train/images/0.png", root / "train/images/1.png")
    capsys.readouterr()
    assert main(arguments) == 1
    assert "1 are missing or differ" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data", "verify", "pcan", "--root", "."], "There is no manifest called 'pcan'"),
        (["data", "audit", "pcam", "--root", "nowhere"], "There is no folder nowhere"),
        (["data", "fetch", "drive", "--root", "drive"], "Register at https://drive.grand-challenge.org/"),
        (["data", "init", "nowhere"], "There is no folder"),
    ],
)
def test_errors_are_a_sentence_on_stderr_and_exit_code_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("biocnn: ")
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not SHARED.is_dir(), reason="real data is not at ../shared/data")
def test_own_patches_under_the_pcam_manifest(capsys):
    assert main(["data", "audit", "pcam", "--root", str(SHARED / "marrow_patches")]) == 0
    assert "train: 1,280 images, the manifest says 262,144" in capsys.readouterr().out
