import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml

from biocnn.data.datamodule import sensible_workers
from biocnn.data.manifest import load_manifest
from biocnn.data.patch_module import PatchDataModule
from biocnn.errors import DataError, DatasetNotFoundError, ManifestError


def module(root: Path, **arguments: Any) -> PatchDataModule:
    made = PatchDataModule(str(root), **{"batch_size": 16, "num_workers": 0, **arguments})
    made.setup("fit")
    return made


def epoch(loader: Any, number: int) -> list[dict[str, Any]]:
    loader.sampler.set_epoch(number)
    return list(loader)


def images(batches: list[dict[str, Any]]) -> torch.Tensor:
    return torch.cat([batch["image"] for batch in batches])


def test_batches_do_not_depend_on_workers(pcam_folder: Path) -> None:
    reference = module(pcam_folder).train_dataloader()
    expected = [images(epoch(reference, number)) for number in range(2)]
    assert not torch.equal(expected[0], expected[1])
    settings: list[dict[str, Any]] = [
        {"num_workers": 1, "start_method": "fork"},
        {"num_workers": 4, "start_method": "fork"},
        {"num_workers": 2, "start_method": "spawn"},
        {"num_workers": 2, "start_method": "forkserver"},
    ]
    for setting in settings:
        made = module(pcam_folder, **setting)
        made.dataset("train")[0]  # the file is open in the parent before workers start
        loader = made.train_dataloader()
        for number in range(2):
            assert torch.equal(images(epoch(loader, number)), expected[number]), setting


def test_seed_changes_order_and_augmentation(pcam_folder: Path) -> None:
    first, second = (epoch(module(pcam_folder, seed=seed).train_dataloader(), 0) for seed in (0, 1))
    assert not torch.equal(torch.cat([b["index"] for b in first]), torch.cat([b["index"] for b in second]))


def test_evaluation_serves_every_item_once_in_order(make_pcam: Callable[..., Path]) -> None:
    made = module(make_pcam(valid=30), eval_batch_size=8)
    batches = list(made.val_dataloader())
    assert [len(batch["index"]) for batch in batches] == [8, 8, 8, 6]
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(30))
    made.setup("test")
    assert sum(len(batch["index"]) for batch in made.test_dataloader()) == 32


def test_every_item_carries_its_slide(pcam_folder: Path) -> None:
    made = module(pcam_folder)
    batch = next(iter(made.val_dataloader()))
    assert batch["group"] == [f"valid_slide_{(row // 2) % 4}" for row in range(32)]
    assert made.groups("valid") == batch["group"]
    assert made.ids("valid") == batch["id"]


def test_folds_share_no_slide_and_cover_everything(pcam_folder: Path) -> None:
    seen: list[str] = []
    for fold in range(4):
        made = module(pcam_folder, folds=4, fold=fold)
        train, valid = set(made.groups("train") or []), set(made.groups("valid") or [])
        assert not train & valid
        seen += made.ids("valid")
    assert len(seen) == len(set(seen)) == 96
    with pytest.raises(ValueError, match=r"fold must be in 0\.\.3, received 4"):
        PatchDataModule(str(pcam_folder), folds=4, fold=4)


def test_a_part_of_train_is_held_out_by_group(make_pcam: Callable[..., Path], tmp_path: Path) -> None:
    root = make_pcam()
    content = load_manifest("pcam").model_dump(mode="json")
    content["splits"] = {"train": content["splits"]["train"]}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(content))
    own = str(tmp_path / "own.yaml")
    with pytest.raises(ManifestError, match=r"no split 'valid'; it has \['train'\].*--data\.folds 5"):
        module(root, manifest=own)
    made = module(root, manifest=own, folds=4)
    assert len(set(made.groups("valid") or [])) == 1
    assert len(made.dataset("train")) + len(made.dataset("valid")) == 64


def test_unique_only_leaves_out_repeated_patches(make_pcam: Callable[..., Path]) -> None:
    root = make_pcam()
    with h5py.File(root / "camelyonpatch_level_2_split_train_x.h5", "r+") as file:
        file["x"][40] = file["x"][2]
    made = module(root, unique_only=True)
    assert len(made.dataset("train")) == 63
    assert "train:40" not in made.ids("train")
    assert len(made.dataset("valid")) == 32


def test_compressed_files_give_the_same_batches(make_pcam: Callable[..., Path]) -> None:
    plain = module(make_pcam("plain"))
    packed_root = make_pcam("packed", chunks=(1, 96, 96, 3), compression="gzip")
    packed = module(packed_root)
    assert torch.equal(images(epoch(plain.train_dataloader(), 0)), images(epoch(packed.train_dataloader(), 0)))


def test_split_hash_names_the_split(make_pcam: Callable[..., Path], pcam_folder: Path) -> None:
    reference = module(pcam_folder).describe()
    assert reference["sizes"] == {"train": 64, "valid": 32}
    assert module(make_pcam("same")).describe()["split_hash"] == reference["split_hash"]
    assert module(make_pcam("other", train=62)).describe()["split_hash"] != reference["split_hash"]


def test_a_slide_in_two_splits_stops_before_training(make_pcam: Callable[..., Path]) -> None:
    root = make_pcam()
    meta = root / "camelyonpatch_level_2_split_valid_meta.csv"
    meta.write_text(meta.read_text().replace("valid_slide_0", "train_slide_0"))
    with pytest.raises(DataError, match=r"(?s)cannot be trained on.*train_slide_0"):
        module(root)


def test_missing_and_unfit_data_stop_early(tmp_path: Path, make_pcam: Callable[..., Path]) -> None:
    with pytest.raises((DatasetNotFoundError, DataError), match=r"camelyonpatch_level_2_split_train_x\.h5"):
        module(tmp_path)
    with pytest.raises(ValueError, match=r"64 training items do not fill one batch of 65"):
        module(make_pcam("a"), batch_size=65).train_dataloader()
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        PatchDataModule(batch_size=0)
    with pytest.raises(ManifestError, match="no manifest called 'pcamm'"):
        PatchDataModule(manifest="pcamm")
    with pytest.raises(ManifestError, match="of kind 'image-mask'"):
        PatchDataModule(manifest="drive")


def test_one_class_is_nothing_to_train_on(make_pcam: Callable[..., Path]) -> None:
    root = make_pcam()
    with h5py.File(root / "camelyonpatch_level_2_split_train_y.h5", "r+") as file:
        file["y"][...] = 1
    meta = root / "camelyonpatch_level_2_split_train_meta.csv"
    rows = list(csv.reader(meta.open()))
    with meta.open("w", newline="") as handle:
        csv.writer(handle).writerows([rows[0]] + [[*row[:3], True, True, row[5]] for row in rows[1:]])
    with pytest.raises(DataError, match="all 64 patches of 'train' have label 1"):
        module(root)


def position(made: PatchDataModule, **changed: Any) -> dict[str, Any]:
    return {"epoch": 1, "consumed": 32, "seed": 0, "split_hash": made.describe()["split_hash"], **changed}


def test_resuming_with_another_seed_or_other_data_is_refused(pcam_folder: Path) -> None:
    made = module(pcam_folder, seed=1)
    with pytest.raises(DataError, match=r"trained with data\.seed=0, received 1"):
        made.load_state_dict(position(made))
    made = module(pcam_folder)
    with pytest.raises(DataError, match=r"trained on splits 0123, the data at hand are"):
        made.load_state_dict(position(made, split_hash="0123"))


def test_position_is_continued(pcam_folder: Path) -> None:
    whole = [batch["index"].tolist() for batch in epoch(module(pcam_folder).train_dataloader(), 1)]
    resumed = module(pcam_folder)
    resumed.load_state_dict(position(resumed))
    loader = resumed.train_dataloader()
    assert [batch["index"].tolist() for batch in epoch(loader, 1)] == whole[2:]
    assert len(epoch(loader, 2)) == 4


def test_labels_other_than_0_and_1_and_oblong_patches_stop_early(
    make_pcam: Callable[..., Path], tmp_path: Path
) -> None:
    content = load_manifest("pcam").model_dump(mode="json")
    content |= {"classes": [], "label_column": None, "image": {"dtype": "uint8"}}
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump(content))
    root = make_pcam()
    with h5py.File(root / "camelyonpatch_level_2_split_train_y.h5", "r+") as file:
        file["y"][...] = file["y"][...] + 1
    with pytest.raises(DataError, match=r"the labels of 'train' are \[1, 2\], expected 0 and 1"):
        module(root, manifest=str(own))
    oblong = make_pcam("oblong")
    for split in ("train", "valid", "test"):
        path = oblong / f"camelyonpatch_level_2_split_{split}_x.h5"
        with h5py.File(path) as file:
            cut = file["x"][:, :64]
        with h5py.File(path, "w") as file:
            file["x"] = cut
    with pytest.raises(DataError, match="'train' have 64x96 px, expected squares"):
        module(oblong, manifest=str(own))
    own.write_text(yaml.safe_dump({**content, "classes": ["a", "b", "c"]}))
    with pytest.raises(ManifestError, match=r"classes \['a', 'b', 'c'\]; this pipeline tells two classes apart"):
        module(oblong, manifest=str(own))


def test_folds_mend_groups_that_sit_in_train_and_valid(make_pcam: Callable[..., Path]) -> None:
    root = make_pcam()
    meta = root / "camelyonpatch_level_2_split_valid_meta.csv"
    meta.write_text(meta.read_text().replace("valid_slide_0", "train_slide_0"))
    made = module(root, folds=3)
    assert not set(made.groups("train") or []) & set(made.groups("valid") or [])
    meta = root / "camelyonpatch_level_2_split_test_meta.csv"
    meta.write_text(meta.read_text().replace("test_slide_0", "train_slide_1"))
    with pytest.raises(DataError, match="train_slide_1"):
        module(root, folds=3)


def test_workers_are_chosen_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sensible_workers(augmented=False, accelerator="cuda")[0] == 0
    assert sensible_workers(augmented=True, accelerator="cpu")[0] == 0
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    assert sensible_workers(augmented=True, accelerator="cuda", processes=4) == (
        3,
        "16 cores for 4 process(es), one kept for training",
    )


def test_reading_does_not_touch_the_global_random_state(pcam_folder: Path) -> None:
    made = module(pcam_folder, num_workers=1)
    torch.manual_seed(0)
    numpy_before, torch_before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    list(made.train_dataloader())
    list(made.val_dataloader())
    assert torch.equal(torch.get_rng_state(), torch_before)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002
