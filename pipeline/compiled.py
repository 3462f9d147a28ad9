"""Loops that no column operation can do, as machine code."""

from collections.abc import Callable
from typing import Any, cast

from numba import njit


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """To machine code, at the first call (a second of work), kept beside this file or in the user's cache directory;
    where neither can be written (a read-only image without NUMBA_CACHE_DIR), made anew by every process.
    """
    try:
        machine_code = njit(cache=True, nogil=True)(function)
    except RuntimeError:
        machine_code = njit(nogil=True)(function)
    return cast(Callable[..., Any], machine_code)
