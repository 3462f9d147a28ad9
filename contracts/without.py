"""Imports, without what they would bring along."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _NotThere(MetaPathFinder):
    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,  # noqa: ARG002 - the protocol's arguments
        target: ModuleType | None = None,  # noqa: ARG002 - as above
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] in self._names:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        return None


@contextmanager
def without(*names: str) -> Iterator[None]:
    """While the block lasts these packages are not installed, as far as imports can tell, in any thread; one that is
    loaded is.
    """
    not_there = _NotThere(names)
    sys.meta_path = [not_there, *sys.meta_path]  # another one each time: other threads may be going through it
    try:
        yield
    finally:
        sys.meta_path = [finder for finder in sys.meta_path if finder is not not_there]
