"""The `biocnn` command: one module for each verb, which imports what is heavy when it runs."""

from biocnn.cli.main import main

__all__ = ["main"]
