"""Errors that a user can act on: each says what was found, what was expected and what to do.

All derive from :class:`BiocnnError`, so that the command line can print them without a traceback and a caller
can tell them from a defect in the program.
"""


class BiocnnError(Exception):
    """Base of every error that biocnn raises about its input."""


class DataError(BiocnnError, ValueError):
    """A data file is there but cannot be used: truncated, of the wrong shape, mismatching its partner."""


class DatasetNotFoundError(BiocnnError, FileNotFoundError):
    """A data set, or a file of it, is not where it was looked for."""


class ManifestError(BiocnnError, ValueError):
    """A manifest is unknown, unreadable or contradicts itself."""


class DownloadError(BiocnnError, OSError):
    """A file could not be fetched, or what arrived is not what the manifest promises."""


class CheckpointError(BiocnnError, ValueError):
    """A checkpoint cannot be read, is not one of biocnn's, or needs something that was not given."""
