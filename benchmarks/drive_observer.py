"""DRIVE: the second human observer scored against the first, under the metrics of the networks.

    python benchmarks/drive_observer.py --root DIR > docs/results/drive_observer.jsonl

Inside the field of view of the 20 test images; one JSON line.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from biocnn.data.images import read_image, read_mask
from biocnn.data.manifest import load_manifest, split_files
from biocnn.metrics.segmentation import score_image

PANEL = ("dice", "cldice", "betti0_error_fg8", "betti1_error_fg8", "sensitivity", "quality_3px")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of DRIVE")
    root = parser.parse_args().root
    manifest = load_manifest("drive")
    rows = []
    for files in split_files(manifest, root, "test"):
        assert files.mask is not None
        assert files.valid is not None
        second = root / "test" / "2nd_manual" / files.mask.name.replace("manual1", "manual2")
        # Palette GIFs of nearly grey colours, about 3 and 253, once the palette has been applied.
        called = read_image(second, channels=0).array > 127
        truth, valid = read_mask(files.mask, manifest.mask_values) == 255, read_mask(files.valid) != 0
        rows.append(score_image(called.astype(np.float32), truth, valid)[0])
    means = {name: round(float(np.mean([row[name] for row in rows])), 4) for name in PANEL}
    print(json.dumps({"contestant": "second observer", "images": len(rows), **means}))


if __name__ == "__main__":
    main()
