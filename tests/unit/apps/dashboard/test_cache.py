"""Questions and answers: read once for all, when something changed, and honest about it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from queue import SimpleQueue
from threading import Event

import pytest

from apps.dashboard import cache as caches
from apps.dashboard.cache import Answer, Cache
from contracts.tables import GOLD_SENSOR_5MIN, SILVER_READINGS, Table
from pipeline.errors import AccessDenied, NotSetUp, PipelineError, SchemaTooNew, Unreachable
from tests.processes import until


@dataclass
class Tables:
    """In the place of a lake: versions that a test moves on, or that cannot be read."""

    versions: dict[str, int] = field(default_factory=lambda: {GOLD_SENSOR_5MIN.path: 1, SILVER_READINGS.path: 1})
    broken: Exception | None = None
    read: list[str] = field(default_factory=list)

    def version(self, table: Table) -> tuple[str, int]:
        if self.broken:
            raise self.broken
        return "id", self.versions[table.path]


@dataclass(frozen=True)
class Ask:
    """What version Gold has."""

    name: str
    tables: tuple[Table, ...] = (GOLD_SENSOR_5MIN,)
    every: timedelta | None = None

    def answer(self, source: Tables, now: datetime) -> str:
        source.read.append(self.name)
        if self.name == "defect":
            raise ZeroDivisionError("s3://secret-place")
        return f"{self.name} {source.versions[GOLD_SENSOR_5MIN.path]}"


@pytest.fixture
def tables() -> Tables:
    return Tables()


@pytest.fixture
def cache(tables: Tables, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cache]:
    monkeypatch.setattr(caches, "POLL_S", 0.01)
    monkeypatch.setattr(caches, "LEAST_GAP_S", 0.0)
    with Cache(tables) as running:
        yield running


def answer(cache: Cache, question: Ask, is_it: str) -> Answer[str]:
    def found() -> Answer[str] | None:
        known = cache.ask(question)
        return known if known.value == is_it else None

    return until(found, is_it, 5)


def test_who_asks_does_not_wait_and_many_who_ask_the_same_cost_one_query(cache: Cache, tables: Tables) -> None:
    assert cache.ask(Ask("a")) == Answer()
    answers = {id(answer(cache, Ask("a"), "a 1").value) for _ in range(20)}
    assert len(answers) == 1
    assert tables.read == ["a"]


def test_only_what_stands_on_a_table_that_changed_is_read_again(cache: Cache, tables: Tables) -> None:
    first = answer(cache, Ask("a"), "a 1")
    answer(cache, Ask("b"), "b 1")
    tables.versions[SILVER_READINGS.path] = 2
    confirmed = until(lambda: cache.ask(Ask("a")).confirmed != first.confirmed or None, "another look", 5)
    assert confirmed
    assert cache.ask(Ask("a")).number == first.number
    assert sorted(tables.read) == ["a", "b"]
    tables.versions[GOLD_SENSOR_5MIN.path] = 2
    assert answer(cache, Ask("a"), "a 2").number > first.number


def test_an_answer_that_depends_on_the_time_is_read_again_after_a_while(cache: Cache, tables: Tables) -> None:
    question = Ask("a", every=timedelta(milliseconds=20))
    answer(cache, question, "a 1")
    until(lambda: (cache.ask(question) and len(tables.read) >= 3) or None, "three readings", 5)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (Unreachable("s3://secret-place"), "the lake does not answer"),
        (AccessDenied("s3://secret-place"), "the lake refuses access"),
        (SchemaTooNew("s3://secret-place"), "the lake was written by another version of the pipeline"),
        (NotSetUp("s3://secret-place"), "a part of the lake is missing"),
    ],
)
def test_a_lake_that_cannot_be_read_is_a_problem_and_what_was_known_stays(
    cache: Cache, tables: Tables, error: PipelineError, words: str
) -> None:
    known = answer(cache, Ask("a"), "a 1")
    tables.broken = error
    wrong = until(lambda: (found := cache.ask(Ask("a"))).problem and found, "the problem", 5)
    assert (wrong.value, wrong.problem) == ("a 1", words)
    assert wrong.number > known.number
    assert cache.ask(Ask("b")).value is None
    tables.broken = None
    well = until(lambda: not (found := cache.ask(Ask("a"))).problem and found, "all is well", 5)
    assert well.confirmed is not None
    assert wrong.confirmed is not None
    assert well.confirmed > wrong.confirmed


def test_a_defect_is_logged_and_only_named_to_the_viewer(cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
    wrong = until(lambda: (found := cache.ask(Ask("defect"))).problem and found, "the problem", 5)
    assert wrong.problem == "an error, which the dashboard's log has"
    assert "ZeroDivisionError" in caplog.text


def test_a_defect_in_looking_at_a_table_is_told_and_passes(
    cache: Cache, tables: Tables, caplog: pytest.LogCaptureFixture
) -> None:
    tables.broken = ZeroDivisionError("s3://secret-place")
    wrong = until(lambda: (found := cache.ask(Ask("a"))).problem and found, "the problem", 5)
    assert wrong.problem == "an error, which the dashboard's log has"
    assert "ZeroDivisionError" in caplog.text
    tables.broken = None
    assert answer(cache, Ask("a"), "a 1").problem == ""


def test_who_listens_hears_of_each_change_until_they_end_it(cache: Cache, tables: Tables) -> None:
    heard: SimpleQueue[set[object]] = SimpleQueue()
    silence = cache.listen(lambda questions: heard.put(set(questions)))
    answer(cache, Ask("a"), "a 1")
    assert heard.get(timeout=5) == {Ask("a")}
    answer(cache, Ask("b"), "b 1")
    assert heard.get(timeout=5) == {Ask("b")}
    silence()
    tables.versions[GOLD_SENSOR_5MIN.path] = 2
    answer(cache, Ask("a"), "a 2")
    assert heard.empty()


def test_a_new_question_waits_neither_for_the_next_look_nor_for_those_that_are_read_again(
    tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caches, "POLL_S", 3600.0)
    let_go = Event()
    with Cache(tables) as cache:
        for worker in range(8):
            cache._pool.submit(let_go.wait, 60)
            assert cache.ask(Ask(f"{worker}")) == Answer()
        for worker in range(8):
            answer(cache, Ask(f"{worker}"), f"{worker} 1")
        let_go.set()


def test_what_nobody_asks_any_more_is_given_up(cache: Cache, tables: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "MOST_KEPT", 2)
    for name in ("a", "b", "c"):
        answer(cache, Ask(name), f"{name} 1")
    answer(cache, Ask("a"), "a 1")
    assert tables.read.count("a") == 2
