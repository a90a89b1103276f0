from pathlib import Path

import pytest
from pydantic import ValidationError

from biocnn.data.manifest import group_of, load_manifest, match_files, shipped_manifests, split_files
from biocnn.errors import ManifestError

SHARED = Path(__file__).parents[2].parent / "shared" / "data"

# As the official README prints them, where valid and test are swapped: these must not come back.
README_VALID_X_MD5 = "d8c2d60d490dbd479f8199bdfa0cf6ec"
README_TEST_X_MD5 = "d5b63470df7cfa627aeec8b9dc0c066e"
README_VALID_Y_MD5 = "60a7035772fbdb7f34eb86d4420cf66a"
README_TEST_Y_MD5 = "2b85f58b927af9964a4c15b8f7e8f179"


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.mark.parametrize("name", list(shipped_manifests()))
def test_shipped_manifest_is_valid_and_says_where_the_data_comes_from(name):
    manifest = load_manifest(name)
    assert manifest.name == name
    assert list(manifest.splits) == ["train", "valid", "test"]
    assert manifest.homepage is not None
    assert manifest.files or manifest.manual_download
    assert manifest.known_issues
    for file in manifest.files:
        # A file without a published checksum has to be admitted to.
        issues = " ".join(manifest.known_issues)
        assert file.sha256 or file.md5 or "checksum" in issues


def test_pcam_has_not_the_swapped_checksums_of_the_readme():
    files = {file.name.removeprefix("camelyonpatch_level_2_split_"): file for file in load_manifest("pcam").files}
    assert len(files) == 9
    assert files["valid_x.h5"].md5 == README_TEST_X_MD5
    assert files["test_x.h5"].md5 == README_VALID_X_MD5
    assert files["valid_y.h5"].md5 == README_TEST_Y_MD5
    assert files["test_y.h5"].md5 == README_VALID_Y_MD5
    # The sizes tell valid from test independently of any checksum: 805,965,320 and 800,875,929 bytes.
    assert files["valid_x.h5"].bytes == 805_965_320
    assert files["test_x.h5"].bytes == 800_875_929
    assert all(file.sha256 and file.unpacked_md5 for name, file in files.items() if name.endswith(".h5"))


def test_wildcards_pair_files_in_natural_order(tmp_path):
    touch(tmp_path, "10cell.png", "2cell.png", "1cell.png", "1dots.png", "10dots.png", ".2cell.png")
    assert list(match_files(tmp_path, "*cell.png")) == ["1", "2", "10"]
    assert list(match_files(tmp_path, "*dots.png")) == ["1", "10"]


def test_adjacent_wildcards_are_one_key(tmp_path):
    touch(tmp_path, "HE_0001_01_000.png", "HE_0001_01_dots_000.png")
    assert list(match_files(tmp_path, "HE_????_??_???.png")) == ["0001_01_000"]
    assert list(match_files(tmp_path, "HE_????_??_dots_???.png")) == ["0001_01_000"]


def test_extension_is_no_part_of_a_key(tmp_path):
    touch(tmp_path, "images/a.tif", "images/b.png", "masks/a.png")
    assert list(match_files(tmp_path, "images/*")) == ["a", "b"]
    assert list(match_files(tmp_path, "images/*.*")) == ["a", "b"]
    assert list(match_files(tmp_path, "masks/*.png")) == ["a"]


def test_folders_below_are_matched(tmp_path):
    touch(tmp_path, "p1/images/a.png", "p2/images/a.png", "p1/masks/a.png")
    assert list(match_files(tmp_path, "*/images/*.png")) == ["p1_a", "p2_a"]
    assert list(match_files(tmp_path, "**/masks/*.png")) == ["p1/_a"]


def test_ambiguous_pattern_is_refused(tmp_path):
    touch(tmp_path, "a.png", "a.tif")
    with pytest.raises(ManifestError, match=r"matches both .* as 'a'"):
        match_files(tmp_path, "*.*")


def test_select_takes_positions_and_missing_partners_are_none(tmp_path, make_manifest):
    touch(tmp_path, *(f"images/{i}.png" for i in range(12)), *(f"masks/{i}.png" for i in range(11)))
    manifest = make_manifest(
        splits={
            "train": {"images": "images/*.png", "masks": "masks/*.png", "select": {"start": 0, "stop": 9}},
            "test": {"images": "images/*.png", "masks": "masks/*.png", "select": {"start": 9, "stop": 12}},
        }
    )
    files = split_files(manifest, tmp_path, "test")
    assert [file.key for file in files] == ["9", "10", "11"]
    assert files[0].mask == tmp_path / "masks/9.png"
    assert files[2].mask is None
    with pytest.raises(ManifestError, match=r"no split 'valid'; it has \['train', 'test'\]"):
        split_files(manifest, tmp_path, "valid")


def test_group_of_searches_the_path(make_manifest):
    manifest = make_manifest(group={"pattern": r"patient(\d+)"})
    assert group_of(manifest, "patient07/images/a.png") == "07"
    assert group_of(manifest, "other/a.png") is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"foreground": (7,)}, r"foreground: \[7\] not among mask_values"),
        ({"files": ({"name": "a", "url": "ftp://host/a"},)}, "must start with https"),
        ({"files": ({"name": "a", "url": "file:///etc/passwd"},)}, "must start with https"),
        ({"files": ({"name": "../a", "url": "https://host/a"},)}, "below the root"),
        ({"files": ({"name": "a", "url": "https://host/a", "unpacked_md5": "0" * 32},)}, "describes a gzip file"),
        ({"kind": "image-points"}, "needs `points`"),
    ],
)
def test_contradictions_are_refused(make_manifest, fields, message):
    with pytest.raises(ValidationError, match=message):
        make_manifest(**fields)


def test_unknown_name_lists_the_shipped_ones():
    with pytest.raises(ManifestError, match=r"no manifest called 'pcan'. Shipped are: .*pcam"):
        load_manifest("pcan")


def test_every_wrong_field_of_a_file_is_listed(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("name: Own\nkind: image\n")
    with pytest.raises(ManifestError, match=r"(?s)own.yaml is not a valid manifest:.*name:.*licence:.*kind:"):
        load_manifest(path)


@pytest.mark.skipif(not SHARED.is_dir(), reason="real data is not at ../shared/data")
@pytest.mark.parametrize("name", ["drive", "isbi2012", "vgg_cells"])
def test_manifest_describes_the_real_folder(name):
    manifest = load_manifest(name)
    seen: set[Path] = set()
    for split_name, split in manifest.splits.items():
        files = split_files(manifest, SHARED / name, split_name)
        assert len(files) == split.count
        assert all((file.mask or file.points) is not None for file in files)
        assert not seen & {file.image for file in files}
        seen |= {file.image for file in files}
