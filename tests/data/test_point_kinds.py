"""Points as other programs write them, from the file to the training set and the audit."""

import json
from pathlib import Path

import numpy as np
import pytest

from biocnn.data.audit import full_audit
from biocnn.data.counting_module import CountingDataModule
from biocnn.data.manifest import load_manifest
from tests.data.drawn import save
from tests.data.drawn_cells import cells, write_point_manifest


def write_points_as(kind: str, path: Path, points: np.ndarray) -> None:
    """Points in one of the kinds of files that other programs write."""
    path.parent.mkdir(parents=True)
    suffix = kind.partition(" ")[0]
    target = path.with_suffix(suffix)
    if suffix in (".csv", ".tsv", ".txt"):
        separator = {".csv": ",", ".tsv": "\t", ".txt": ","}[suffix] if kind == suffix else ";"
        lines = [("row", "column"), *points.tolist()]
        target.write_text("".join(f"{row}{separator}{column}\n" for row, column in lines))
    elif suffix in (".geojson", ".json"):
        places = [{"type": "Point", "coordinates": [column + 0.5, row + 0.5]} for row, column in points.tolist()]
        features = [{"type": "Feature", "properties": {}, "geometry": place} for place in places]
        target.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    else:
        roifile = pytest.importorskip("roifile", reason="needs the package roifile")
        roi = roifile.ImagejRoi.frompoints(points[:, ::-1])
        roi.roitype = roifile.ROI_TYPE.POINT
        if suffix == ".roi":
            roi.tofile(target)
        else:
            roifile.roiwrite(target, [roi])


@pytest.mark.parametrize("kind", [".csv", ".csv with semicolons", ".tsv", ".txt", ".geojson", ".json", ".roi", ".zip"])
def test_points_of_every_kind_can_be_trained_on_and_audited(tmp_path: Path, kind: str) -> None:
    for number, split in enumerate(("train", "valid")):
        image, points = cells(number)
        save(tmp_path / split / "images/a.png", image)
        write_points_as(kind, tmp_path / split / "points/a", points)
    manifest = write_point_manifest(tmp_path, ["train", "valid"])
    made = CountingDataModule(str(tmp_path), manifest, tile_size=32, num_workers=0)
    made.setup("fit")
    for number, split in enumerate(("train", "valid")):
        np.testing.assert_array_equal(made.points(split).points[0], cells(number)[1])
    audit = full_audit(load_manifest(manifest), tmp_path)
    assert not audit.has_errors
    assert [row.content for row in audit.rows] == ["12.0 ± 0.0 points per image (12 to 12), 12 in all"] * 2
