"""A service that the workers of a test run share."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.services import shared


def test_it_is_one_for_all_who_are_there_and_another_for_who_comes_after_them(tmp_path: Path) -> None:
    started: list[str] = []

    @contextmanager
    def start() -> Iterator[dict[str, str]]:
        started.append("a service")
        yield {"number": str(len(started))}

    with shared(tmp_path / "service", start) as one, shared(tmp_path / "service", start) as other:
        assert one == other == {"number": "1"}
    with shared(tmp_path / "service", start) as late:
        assert late == {"number": "2"}
