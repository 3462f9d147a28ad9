"""What of Quix is mended in a stage's application, against Quix's own classes."""

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import OFFSET_INVALID, TopicPartition
from quixstreams.state.recovery import RecoveryManager, RecoveryPartition

from pipeline.broker import application, offsets
from pipeline.errors import Unreachable
from pipeline.settings import Settings

SOURCE = [TopicPartition("readings", partition) for partition in range(3)]
CHANGELOG = [TopicPartition("changelog", partition) for partition in range(3)]


class Asked:
    """A consumer of these partitions, and whoever else may be asked for watermarks; `log` is who was."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.end = 5
        monkeypatch.setattr(offsets, "kept", self._kept)

    def _kept(self, _: Settings, places: list[TopicPartition]) -> dict[TopicPartition, tuple[int, int]]:
        self.log.append(f"all {len(places)}")
        return {place: (1, self.end + place.partition) for place in places}

    def assignment(self) -> list[TopicPartition]:
        return [*SOURCE, *CHANGELOG]

    def get_watermark_offsets(
        self, partition: TopicPartition, timeout: float | None = None, cached: bool = False
    ) -> tuple[int, int]:
        self.log.append(f"{partition.topic}-{partition.partition}")
        return 0, 0


def watched(asked: Asked, on_assign: Callable[..., None]) -> Any:
    app = SimpleNamespace(_consumer=asked, _on_assign=on_assign)
    application._ask_for_all_at_once(Settings(), app)
    return app


def test_the_first_question_of_an_assignment_is_for_all_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quix's rebalance took as many long polls as there are partitions and changelogs."""
    asked, found = Asked(monkeypatch), []

    def on_assign(consumer: Any, partitions: list[TopicPartition]) -> None:
        asked.log.append("committed")
        found.extend(asked.get_watermark_offsets(place, timeout=30) for place in (*partitions, *CHANGELOG))

    app = watched(asked, on_assign)
    app._on_assign(None, SOURCE)
    assert asked.log == ["committed", "all 6"], "after the committed offsets"
    assert found == [(1, 5), (1, 6), (1, 7)] * 2

    asked.end = 9
    app._on_assign(None, SOURCE)
    assert asked.log == ["committed", "all 6"] * 2, "what was told before counts for nothing"
    assert found[6:] == [(1, 9), (1, 10), (1, 11)] * 2


def test_apart_from_an_assignment_the_client_answers_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(monkeypatch)

    def fails(*_: object) -> None:
        asked.get_watermark_offsets(SOURCE[0])
        raise RuntimeError("no")

    app = watched(asked, fails)
    with pytest.raises(RuntimeError, match="no"):
        app._on_assign(None, SOURCE)
    assert asked.get_watermark_offsets(SOURCE[1]) == (0, 0)
    assert asked.log == ["all 6", "readings-1"]


def test_a_broker_that_does_not_answer_yet_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rebalance after its restart comes before all of it is up."""
    asked, told = Asked(monkeypatch), iter([Unreachable("no leader"), {SOURCE[0]: (2, 3)}])

    def kept(*_: object) -> dict[TopicPartition, tuple[int, int]]:
        if isinstance(answer := next(told), Exception):
            raise answer
        return answer

    monkeypatch.setattr(offsets, "kept", kept)
    found = []
    app = watched(asked, lambda *_: found.append(asked.get_watermark_offsets(SOURCE[0])))
    app._on_assign(None, SOURCE)
    assert found == [(2, 3)]


class Changelog:
    """A consumer whose place is known after some polls, and at the end of the changelog after some more."""

    def __init__(self, *positions: int) -> None:
        self._positions = list(positions)
        self.waits: list[float] = []

    def poll(self, timeout: float) -> None:
        self.waits.append(timeout)

    def position(self, places: list[TopicPartition]) -> list[TopicPartition]:
        at = self._positions.pop(0) if len(self._positions) > 1 else self._positions[0]
        return [TopicPartition(place.topic, place.partition, at) for place in places]

    def nothing(self, *_: object) -> list[TopicPartition]:
        return []

    seek = resume = pause = assignment = nothing


def recovery(reader: Changelog) -> RecoveryManager:
    topics = SimpleNamespace(non_changelog_topics={}, changelog_topics={})
    manager = RecoveryManager(reader, topics)
    store = SimpleNamespace(
        get_changelog_offset=lambda: 3, recover_from_changelog_message=lambda *_: None, complete_recovery=lambda: None
    )
    part = RecoveryPartition("changelog", 0, store, {}, 0, 5)
    manager._recovery_partitions = {0: {"changelog": part}}
    application._look_often(manager)
    return manager


def test_the_end_of_a_changelog_is_seen_at_the_next_look() -> None:
    """Each start of detect waited for a second, and each look took the place of the one before for its own."""
    reader = Changelog(OFFSET_INVALID, OFFSET_INVALID, 4, 5)
    manager = recovery(reader)
    manager.do_recovery()
    assert not manager.has_assignments
    assert reader.waits == [0.1] * 4


def test_a_place_that_is_long_in_coming_is_waited_for_as_long_as_quix_would() -> None:
    reader = Changelog(*[OFFSET_INVALID] * 599, 5)
    recovery(reader).do_recovery()
    assert sum(reader.waits) == pytest.approx(60)

    with pytest.raises(RuntimeError, match="Recovery stuck"):
        recovery(Changelog(OFFSET_INVALID)).do_recovery()


def test_a_stage_whose_client_does_not_close_ends_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(application, "_CLOSING_S", 0.05)
    for_ever = threading.Event()
    reader = SimpleNamespace(close=for_ever.wait)
    application._close_in_time(reader)
    reader.close()
    for_ever.set()
