"""Looking at a data set before training: counts, labels, pairs, duplicates, and groups that sit in two splits."""

from pathlib import Path

from biocnn.data.audit_images import audit_images
from biocnn.data.audit_patches import audit_patches
from biocnn.data.findings import Audit, AuditRow, Finding
from biocnn.data.manifest import Manifest
from biocnn.data.verify import Progress
from biocnn.errors import DatasetNotFoundError

__all__ = ["Audit", "AuditRow", "Finding", "full_audit", "quick_audit"]


def quick_audit(manifest: Manifest, root: str | Path) -> Audit:
    """Check what headers, labels and meta files tell, without decoding an image.

    Counts, sizes, types, class balance, labels outside the classes, labels that differ from the meta file, images
    without a mask or points and the reverse, masks of another size, groups and files in two splits. Takes
    about a second for PCam; prints nothing.

    Args:
        manifest: description of the data set.
        root: folder that holds the files.

    Returns:
        The audit; what is missing or unreadable is a finding, not an exception.

    Raises:
        DatasetNotFoundError: if the root is no folder.
    """
    return _audit(manifest, Path(root), decode=False, progress=None)


def full_audit(manifest: Manifest, root: str | Path, progress: Progress | None = None) -> Audit:
    """Everything of :func:`quick_audit`, and what only the decoded pixels tell.

    Exact duplicates within and across splits, identical images with different labels, blank images, mask values
    that the manifest does not know, empty masks, and points per image. Reads every image once, in blocks.

    Args:
        manifest: description of the data set.
        root: folder that holds the files.
        progress: called with the split, the images done and the images in all.

    Raises:
        DatasetNotFoundError: if the root is no folder.
    """
    return _audit(manifest, Path(root), decode=True, progress=progress)


def _audit(manifest: Manifest, root: Path, decode: bool, progress: Progress | None) -> Audit:
    if not root.is_dir():
        raise DatasetNotFoundError(f"There is no folder {root}. Give the folder of the data as --root.")
    audit = audit_patches if manifest.kind == "patches-hdf5" else audit_images
    return audit(manifest, root, decode, progress)
