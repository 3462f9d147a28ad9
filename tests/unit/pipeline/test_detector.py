"""The detector between checkpoints that commit, fail, or lose a partition; Quix and Kafka are a dictionary here."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import polars as pl
import pytest

from contracts.registry import load_registry
from pipeline import metrics
from pipeline.core.refine import State, refine
from pipeline.detection import detector as module
from pipeline.detection import statelog
from pipeline.detection.detector import Detector
from pipeline.detection.livewindows import Silence
from pipeline.errors import SchemaTooNew, TerminalError
from pipeline.settings import Detect, Settings
from pipeline.wire.microbatch import _ipc, _record_batch
from tests.unit.pipeline.test_memory import R, table

REGISTRY = load_registry(None)


class Partition:
    """A partition's store: what is committed, and what the open checkpoint has changed."""

    def __init__(self) -> None:
        self.committed: dict[str, bytes] = {}
        self.changed: dict[str, bytes] = {}
        self.former: list[bytes] = []

    def get(self, key: str) -> bytes | None:
        return self.changed.get(key, self.committed.get(key))

    def set(self, key: str, value: bytes) -> None:
        assert len(value) <= statelog.MAX_BYTES
        self.changed[key] = value

    def take_former(self) -> list[bytes]:
        taken, self.former = self.former, []
        return taken


class Checkpoints:
    """Quix, as far as the detector sees it."""

    def __init__(self, *partitions: int) -> None:
        self.stores = {partition: Partition() for partition in partitions}
        self.announced: list[str] = []
        self.closed: list[int] = []
        self.silent: list[str] = []
        self._open: tuple[list[str], list[int], list[str]] = [], [], []

    def partitions(self) -> Iterator[int]:
        return iter(self.stores)

    def store(self, partition: int) -> Partition:
        return self.stores[partition]

    def anomalies(self, flagged: pl.DataFrame) -> None:
        self._open[0].extend(flagged["event_id"])

    def dropouts(self, silent: list[Silence]) -> None:
        self._open[2].extend(each.name[0] for each in silent)

    def windows(self, final: pl.DataFrame) -> None:
        self._open[1].extend(final["count"])

    @contextmanager
    def checkpoint(self, commits: bool = True) -> Iterator[None]:
        """What happens within is committed, or lost."""
        yield
        for kept, new in zip((self.announced, self.closed, self.silent), self._open, strict=True):
            if commits:
                kept.extend(new)
            new.clear()
        for store in self.stores.values():
            if commits:
                store.committed |= store.changed
            store.changed.clear()


def detector(checkpoints: Checkpoints) -> Detector:
    made = Detector(Settings(detect=Detect(identities=64)), REGISTRY)
    made.connect(checkpoints)
    return made


def send(to: Detector, readings: list[R], offset: int, partition: int = 0, at: float | None = None) -> None:
    """These readings as one micro-batch."""
    value = _ipc(_record_batch(pl.DataFrame(table(readings))))
    to.add(value, b"0", round((at or time.time()) * 1000), [], "readings", partition, offset)


def steady(first: int, count: int, sensor: str = "a") -> list[R]:
    return [R(sensor, f"{sensor}{number}", number, 20 + number % 3 / 10) for number in range(first, first + count)]


def spike(number: int, sensor: str = "a") -> R:
    return R(sensor, f"spike-{sensor}{number}", number, 59.0)


def test_each_rule_is_counted_from_nothing() -> None:
    """A panel of dropouts shows 0, not a hole, before the first one."""
    metrics.ANOMALIES.clear()
    detector(Checkpoints())
    samples = metrics.ANOMALIES.collect()[0].samples
    told = {sample.labels["rule"]: sample.value for sample in samples if sample.name.endswith("_total")}
    assert told.keys() >= {"zscore", "stuck", "jump", "drift", "dropout"}
    assert set(told.values()) == {0.0}


def test_a_spike_is_announced_with_the_checkpoint_that_has_it() -> None:
    checkpoints = Checkpoints(0)
    one = detector(checkpoints)
    send(one, steady(0, 20), 0)
    send(one, [spike(20)], 1)
    assert one.buffered_bytes > 0
    with checkpoints.checkpoint():
        one.flush()
    assert (checkpoints.announced, one.buffered_bytes) == (["spike-a20"], 0)


def test_another_process_goes_on_where_the_last_checkpoint_ended() -> None:
    checkpoints = Checkpoints(0, 1)
    for turn in range(12):
        with checkpoints.checkpoint():
            each = detector(checkpoints)
            send(each, steady(2 * turn, 2), turn)
            send(each, steady(2 * turn, 2, "b"), turn, partition=1)
            each.flush()
    last = detector(checkpoints)
    send(last, [*steady(22, 2), spike(24), spike(24)], 12)
    with checkpoints.checkpoint():
        last.flush()
    assert checkpoints.announced == ["spike-a24"]


def test_a_checkpoint_that_failed_is_forgotten() -> None:
    checkpoints = Checkpoints(0)
    one = detector(checkpoints)
    send(one, steady(0, 20), 0)
    with checkpoints.checkpoint():
        one.flush()
    for commits in (False, True):
        send(one, [spike(20), *steady(21, 3)], 1)
        with checkpoints.checkpoint(commits):
            one.flush()
    assert checkpoints.announced == ["spike-a20"], "the second time it is no copy of what was never committed"


def test_reading_again_from_an_offset_takes_back_what_was_kept_from_there() -> None:
    checkpoints = Checkpoints(0)
    one = detector(checkpoints)
    send(one, steady(0, 20), 0)
    send(one, [R("a", "wrong", 20, 59.0)], 1)
    send(one, [spike(21)], 1)
    with checkpoints.checkpoint():
        one.flush()
    assert checkpoints.announced == ["spike-a21"]


def test_what_was_kept_of_a_partition_that_another_worked_off_meanwhile_is_dropped() -> None:
    checkpoints = Checkpoints(0)
    one, other = detector(checkpoints), detector(checkpoints)
    send(one, steady(0, 20), 0)
    with checkpoints.checkpoint():
        one.flush()
    for each in (one, other):
        send(each, [spike(20)], 1)
    with checkpoints.checkpoint():
        other.flush()
    send(one, [spike(21)], 2)
    with checkpoints.checkpoint():
        one.flush()
    assert checkpoints.announced == ["spike-a20", "spike-a21"]
    lost = checkpoints.stores.pop(0)
    send(one, [spike(22)], 3)
    with checkpoints.checkpoint():
        one.flush()
    assert checkpoints.announced == ["spike-a20", "spike-a21"], "it is another's"
    assert lost.committed


def test_what_is_no_micro_batch_is_skipped() -> None:
    checkpoints = Checkpoints(0)
    one = detector(checkpoints)
    one.add(b"hello", b"0", 0, [], "readings", 0, 0)
    with checkpoints.checkpoint():
        one.flush()
    one.add(None, b"0", 0, [], "readings", 0, 1)
    send(one, [*steady(0, 20), spike(20)], 2)
    with checkpoints.checkpoint():
        one.flush()
    assert checkpoints.announced == ["spike-a20"]


def test_silence_is_announced_once_across_restarts_and_not_while_we_are_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1_772_323_200.0  # the readings' first, by their raw timestamps
    monkeypatch.setattr(module.time, "time", lambda: now)
    checkpoints = Checkpoints(0)

    def look(seconds: float, one: Detector) -> None:
        nonlocal now
        now += seconds
        with checkpoints.checkpoint():
            one.look()

    one = detector(checkpoints)
    send(one, steady(0, 1), 0)
    with checkpoints.checkpoint():
        one.flush()
    look(29, one)
    send(one, [spike(20)], 1, at=now - 10)
    with checkpoints.checkpoint():
        one.flush()
    look(29, one)
    assert checkpoints.silent == [], "we were behind, and wait anew"
    one = detector(checkpoints)
    look(0.5, one)
    look(29, one)
    assert checkpoints.silent == [], "we have just begun to listen"
    look(2, one)
    assert checkpoints.silent == ["a"]
    one = detector(checkpoints)
    look(1, one)
    look(60, one)
    assert checkpoints.silent == ["a"]
    assert checkpoints.closed == []
    look(900, one)
    assert checkpoints.closed == [2], "the window of a sensor that is silent"


def test_one_that_falls_silent_is_announced_while_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_772_323_200.0
    monkeypatch.setattr(module.time, "time", lambda: now)
    checkpoints = Checkpoints(0)
    one = detector(checkpoints)
    for turn in range(40):
        send(one, [*steady(turn, 1), *(steady(turn, 1, "b") if turn < 5 else [])], turn, at=now)
        with checkpoints.checkpoint():
            one.look()
            one.flush()
        now += 1.0
    assert checkpoints.silent == ["b"]


def test_the_state_of_the_first_layout_is_taken_over() -> None:
    checkpoints = Checkpoints(0)
    rules, warm = Settings().detection, pl.DataFrame(table(steady(0, 20)))
    _, state = refine(warm, State.empty(rules), REGISTRY, rules, warm.clear())
    checkpoints.stores[0].former = [state.select(["a"]).to_bytes()]
    for turn, readings in enumerate(([spike(20)], [spike(21)])):
        one = detector(checkpoints)
        send(one, readings, turn)
        with checkpoints.checkpoint():
            one.flush()
    assert checkpoints.announced == ["spike-a20", "spike-a21"]


def test_the_changes_are_a_log_that_is_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statelog, "_LEAST", 1000)
    monkeypatch.setattr(statelog, "_AT_ONCE", 2)
    checkpoints = Checkpoints(0)
    one = detector(checkpoints)
    for turn in range(40):
        send(one, [reading for sensor in "abcde" for reading in steady(turn, 1, sensor)], turn)
        with checkpoints.checkpoint():
            one.flush()
    store = checkpoints.stores[0]
    known = statelog.manifest(store)
    assert known is not None
    assert known.through == 39
    assert known.change_bytes <= 2 * known.whole_bytes
    assert len(store.committed) <= 1 + 3 + 3 * 4
    other = detector(checkpoints)
    send(other, [spike(40, sensor) for sensor in "abcde"], 40)
    with checkpoints.checkpoint():
        other.flush()
    assert len(checkpoints.announced) == 5


def test_a_value_that_would_be_too_large_is_halved() -> None:
    sensors = [f"{number}" for number in range(10)]
    pieces = list(statelog._pieces(sensors, lambda some: b"x" * (statelog.MAX_BYTES // 3 * len(some))))
    assert max(map(len, pieces)) <= statelog.MAX_BYTES
    assert sum(map(len, pieces)) == statelog.MAX_BYTES // 3 * 10


def test_a_state_that_is_newer_or_not_whole_is_refused() -> None:
    checkpoints = Checkpoints(0)
    one = detector(checkpoints)
    send(one, steady(0, 3), 0)
    with checkpoints.checkpoint():
        one.flush()
    store = checkpoints.stores[0].committed
    manifest = store["manifest"]
    for damage, error, match in (
        ({"whole/0": None}, TerminalError, "whole/0 is missing"),
        ({"manifest": b"\xc1"}, TerminalError, "cannot be read"),
        ({"manifest": manifest.replace(b"\xa6format\x02", b"\xa6format\x09")}, SchemaTooNew, "format 9"),
    ):
        broken = Checkpoints(0)
        broken.stores[0].committed = {key: value for key, value in (store | damage).items() if value is not None}
        two = detector(broken)
        send(two, steady(3, 1), 1)
        with pytest.raises(error, match=match):
            two.flush()
