"""Imports, without what they would bring along."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec


class _NotThere(MetaPathFinder):
    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names

    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        if fullname.partition(".")[0] in self._names:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        return None


@contextmanager
def without(*names: str) -> Iterator[None]:
    """While the block lasts these packages are not installed, as far as imports can tell, in any thread; one that is
    loaded is.
    """
    with asked_first(_NotThere(names)):
        yield


@contextmanager
def asked_first(finder: MetaPathFinder) -> Iterator[None]:
    """While the block lasts this one is asked before all others where a module is, in any thread."""
    sys.meta_path = [finder, *sys.meta_path]  # another list each time: other threads may be going through it
    try:
        yield
    finally:
        sys.meta_path = [each for each in sys.meta_path if each is not finder]
