"""Gold on S3. All three tables of real data: test_nab.py."""

import threading
from datetime import datetime, timedelta

import pytest

from apps import gold
from contracts.tables import GOLD_SENSOR_5MIN, SILVER_READINGS
from pipeline import settings as config
from pipeline.errors import TransientError
from pipeline.lake import delta as lakes
from pipeline.lake.delta import Lake
from pipeline.settings import Settings
from tests.gold_oracle import Oracle, Reading
from tests.gold_tables import assert_gold
from tests.silver_rows import silver

pytestmark = pytest.mark.s3

START = datetime.fromisoformat("2026-02-28T23:00:00Z")
TYPES = {"temperature": timedelta(seconds=10)}


@pytest.fixture
def settings(lake_settings: config.Lake) -> Settings:
    return Settings(lake=lake_settings, observability=config.Observability(port=0), retry_s=10)


@pytest.fixture
def lake(settings: Settings) -> Lake:
    return Lake(settings.lake)


def reading(second: int, sensor: str = "s") -> Reading:
    return Reading(sensor, "temperature", "north", START + timedelta(seconds=second), 20.0 + second % 7)


def add(lake: Lake, readings: list[Reading]) -> None:
    table = lake.ensure(SILVER_READINGS)
    lakes.append(table, SILVER_READINGS, silver(readings), {"bronze": table.version()})


def test_without_silver_there_is_nothing_to_catch_up_with(settings: Settings, lake: Lake) -> None:
    gold.run(settings, until_caught_up=True)
    assert not lake.files().exists(lake.uri(GOLD_SENSOR_5MIN.path))


def test_catching_up_in_bits_gives_the_same(settings: Settings, lake: Lake) -> None:
    everything: list[Reading] = []
    for batch in ([reading(n) for n in range(0, 4000, 40)], [reading(3), reading(90_000)], [reading(3999)]):
        add(lake, batch)
        everything += batch
        gold.run(settings, until_caught_up=True)
    assert_gold(lake, Oracle(TYPES), everything)


@pytest.mark.parametrize("commits", [pytest.param(n, marks=pytest.mark.thorough if n != 1 else ()) for n in range(4)])
def test_a_crash_between_the_three_commits_leaves_nothing_to_repair(
    settings: Settings, lake: Lake, commits: int
) -> None:
    readings = [reading(n) for n in range(0, 4000, 400)]
    add(lake, readings[:5])
    gold.run(settings, until_caught_up=True)
    add(lake, readings[5:])
    for refresh in gold.refreshes_of(settings, lake)[:commits]:
        refresh()
    gold.run(settings, until_caught_up=True)
    assert_gold(lake, Oracle(TYPES), readings)


def test_two_gold_jobs_side_by_side_lose_and_double_nothing(settings: Settings, lake: Lake) -> None:
    readings = [reading(n) for n in range(0, 2000, 20)]
    add(lake, readings[:1])
    jobs = [gold.refreshes_of(settings, Lake(settings.lake)) for _ in range(2)]
    done = threading.Event()

    def work(number: int) -> None:
        while not done.is_set():
            for refresh in jobs[number]:
                try:
                    refresh()
                except TransientError:
                    continue

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        for begin in range(1, 100, 11):
            add(lake, readings[begin : begin + 11])
    finally:
        done.set()
        for thread in threads:
            thread.join()
    gold.run(settings, until_caught_up=True)
    assert_gold(lake, Oracle(TYPES), readings)


@pytest.mark.thorough
def test_compaction_of_gold_between_two_cycles_does_no_harm(settings: Settings, lake: Lake) -> None:
    readings = [reading(n) for n in range(0, 1200, 100)]
    running = gold.refreshes_of(settings, lake)
    for number, one in enumerate(readings):
        add(lake, [one])
        if number % 4 == 3:
            lake.open(GOLD_SENSOR_5MIN).optimize.compact()
            lake.open(SILVER_READINGS).optimize.compact()
        for refresh in running:
            try:
                refresh()
            except TransientError:
                refresh()
    assert_gold(lake, Oracle(TYPES), readings)
