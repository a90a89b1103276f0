"""Loops that are compiled by numba."""

from collections.abc import Callable

from numba import njit


def compiled(function: Callable) -> Callable:
    """The function compiled at its first call, without the interpreter's lock, kept on disk where a folder allows it.

    Where neither the folder of the source nor a cache folder of the user can be written, as in some containers, it is
    compiled anew in every process.
    """
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:
        return njit(nogil=True)(function)
