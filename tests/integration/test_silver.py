"""Silver built step by step, whatever the crashes, is Silver built in one go; of any readings: test_properties.py."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from prometheus_client import REGISTRY

from apps import silver
from apps.silver import COVERED, Silver, run
from contracts.registry import load_registry
from contracts.tables import BRONZE_READINGS, SILVER_QUARANTINE, SILVER_READINGS, Table
from pipeline import metrics
from pipeline import settings as config
from pipeline.errors import CeilingPassed, Conflict, HistoryMismatch, NotSetUp, Unreachable
from pipeline.lake import delta as lakes
from pipeline.lake.delta import Lake, append, progress
from pipeline.settings import Settings
from pipeline.silver.outbox import Outbox
from pipeline.silver.statestore import StateStore

NOW = datetime(2026, 4, 2, tzinfo=UTC)
MIDNIGHT = datetime(2026, 4, 1, tzinfo=UTC)
RAW = ["raw_partition", "raw_offset"]
IMPOSSIBLE = 1e9

Reading = tuple[int, int, int, float, str]
"""Number of the sensor, number of the event, minutes from midnight, value, unit."""


def bronze_rows(feed: list[Reading], in_batch: int = 5) -> pl.DataFrame:
    """The readings as Bronze has them: sensors with an even number in partition 0, the others in 1."""
    rows = []
    offsets = {0: 0, 1: 0}
    for number, (sensor, event, minutes, value, unit) in enumerate(feed):
        partition = sensor % 2
        batch, row = divmod(offsets[partition], in_batch)
        offsets[partition] += 1
        rows.append(
            {
                "event_id": f"e{event}",
                "sensor_id": f"s{sensor}",
                "sensor_type": "temperature",
                "location": "hall",
                "timestamp": MIDNIGHT + timedelta(minutes=minutes),
                "label": None,
                "raw_partition": 0,
                "raw_offset": number,
                "raw_timestamp": NOW - timedelta(hours=1),
                "batch_partition": partition,
                "batch_offset": 2 * batch,
                "batch_row": row,
                "value": value,
                "unit": unit,
                "ingested_at": NOW,
                "ingest_date": NOW.date(),
            }
        )
    return pl.DataFrame(rows, schema=BRONZE_READINGS.schema)


def batches(rows: pl.DataFrame) -> list[pl.DataFrame]:
    return rows.partition_by("batch_partition", "batch_offset", maintain_order=True)


def commit(lake: Lake, rows: pl.DataFrame) -> None:
    ends = rows.group_by("batch_partition").agg(pl.col("batch_offset").max()).iter_rows()
    versions = {f"sensors.readings-{partition}": offset for partition, offset in ends}
    append(lake.ensure(BRONZE_READINGS), BRONZE_READINGS, rows, versions)


def local(directory: Path, max_rows: int = 500_000) -> Settings:
    return Settings(
        lake=config.Lake(uri=str(directory)),
        silver=config.Job(max_rows=max_rows),
        observability=config.Observability(port=0),
        retry_s=1.0,
    )


def fresh(settings: Settings) -> Silver:
    return Silver(settings, Lake(settings.lake), load_registry(settings.registry))


def catch_up(worker: Silver) -> int:
    total = 0
    while rows := worker.cycle(NOW):
        total += rows
    return total


def content(lake: Lake, table: Table) -> pl.DataFrame:
    return pl.scan_delta(lake.open(table)).drop("processing_timestamp").sort(RAW).collect()


def assert_same(lake: Lake, other: Lake, ignoring: tuple[str, ...] = ()) -> None:
    for table in (SILVER_READINGS, SILVER_QUARANTINE):
        left, right = (content(each, table).drop(ignoring) for each in (lake, other))
        assert_frame_equal(left, right, check_exact=True)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(local(tmp_path).lake)


class Pieces:
    """Micro-batches grouped into Bronze commits, as many in each as `cuts` says, over and over."""

    def __init__(self, parts: list[pl.DataFrame], cuts: list[int]) -> None:
        self._parts, self._cuts = parts, cuts

    def __iter__(self) -> Iterator[pl.DataFrame]:
        begin = number = 0
        while begin < len(self._parts):
            size = self._cuts[number % len(self._cuts)]
            yield pl.concat(self._parts[begin : begin + size])
            begin, number = begin + size, number + 1


class Crash(BaseException):
    """The process is gone."""


class Faults:
    """Ends the process before or after a step of the cycle."""

    STEPS = ("put", "commit", "deliver", "drop")

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at: tuple[str, str] | None = None
        self.passes = 0
        """How often it is to go well there first."""
        self.crashes = 0
        wrap = self._wrapped
        monkeypatch.setattr(silver, "append", wrap("commit", append))
        monkeypatch.setattr(silver, "lake_replace", wrap("replace", silver.lake_replace))
        monkeypatch.setattr(Outbox, "deliver", wrap("deliver", Outbox.deliver))
        monkeypatch.setattr(StateStore, "put", wrap("put", StateStore.put))
        monkeypatch.setattr(StateStore, "drop", wrap("drop", StateStore.drop))
        monkeypatch.setattr(lakes, "replace", wrap("gold", lakes.replace))
        monkeypatch.setattr(lakes, "append", wrap("gold", lakes.append))

    def _wrapped(self, step: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def faulty(*arguments: Any) -> Any:
            self._reach(("before", step))
            result = call(*arguments)
            self._reach(("after", step))
            return result

        return faulty

    def _reach(self, point: tuple[str, str]) -> None:
        if self.at == point and self.passes:
            self.passes -= 1
        elif self.at == point:
            self.at = None
            self.crashes += 1
            raise Crash


FEED: list[Reading] = [
    (sensor, event, minutes, IMPOSSIBLE if (event + minutes) % 7 == 0 else 20.0 + event % 2, unit)
    for minutes, unit in (
        (-10, "degC"),
        (-4, "degF"),
        (3, "degC"),
        (-4, "degC"),
        (3, "furlong"),
        (9, "degC"),
        (3, "degC"),
    )
    for event in range(4)
    for sensor in range(3)
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    settings = local(tmp_path_factory.mktemp("undisturbed"), max_rows=20)
    lake = Lake(settings.lake)
    for piece in Pieces(batches(bronze_rows(FEED)), [3]):
        commit(lake, piece)
    catch_up(fresh(settings))
    assert len(content(lake, SILVER_QUARANTINE)) > 10
    return lake


@pytest.mark.parametrize("state", ["kept", pytest.param("lost", marks=pytest.mark.thorough)])
@pytest.mark.parametrize("when", [pytest.param("before", marks=pytest.mark.thorough), "after"])
@pytest.mark.parametrize("step", Faults.STEPS)
def test_a_crash_at_any_step_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Lake, step: str, when: str, state: str
) -> None:
    settings = local(tmp_path, max_rows=20)
    lake = Lake(settings.lake)
    faults = Faults(monkeypatch)
    for piece in Pieces(batches(bronze_rows(FEED)), [3]):
        commit(lake, piece)
        faults.at = (when, step)
        with suppress(Crash):
            catch_up(fresh(settings))
        if state == "lost":
            shutil.rmtree(tmp_path / "_state", ignore_errors=True)  # there is none before the first commit
        faults.at = None
        catch_up(fresh(settings))
    assert faults.crashes >= 3
    assert_same(lake, undisturbed)
    # the newest, what it builds on, and of the newest version an attempt that may yet be committed, for all one knows
    assert len(list((tmp_path / "_state" / "silver").iterdir())) <= 3


def test_the_loser_of_a_race_starts_again_from_what_the_winner_committed(tmp_path: Path, undisturbed: Lake) -> None:
    settings = local(tmp_path, max_rows=20)
    lake = Lake(settings.lake)
    one, other = fresh(settings), fresh(settings)
    lost = 0
    for piece in Pieces(batches(bronze_rows(FEED)), [3]):
        commit(lake, piece)
        assert one.cycle(NOW)
        try:
            other.cycle(NOW)
        except Conflict:
            lost += 1
            assert other.cycle(NOW) == 0
        one, other = other, one
    catch_up(one)
    assert lost > 3
    assert_same(lake, undisturbed)


def test_a_writer_that_comes_in_while_the_state_is_read_is_a_conflict_not_a_rebuild(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lake: Lake
) -> None:
    settings = local(tmp_path)
    first, second, *_ = Pieces(batches(bronze_rows(FEED)), [3])
    commit(lake, first)
    winner = fresh(settings)
    catch_up(winner)
    commit(lake, second)
    load = StateStore.load

    def late(store: StateStore, version: int, attempt: int) -> Any:
        monkeypatch.setattr(StateStore, "load", load)
        catch_up(winner)
        for path in (tmp_path / "_state" / "silver").glob(f"{version:020}-*"):
            path.unlink()
        return load(store, version, attempt)

    monkeypatch.setattr(StateStore, "load", late)
    with pytest.raises(Conflict, match="moved on"):
        fresh(settings).cycle(NOW)


def test_quarantined_rows_that_could_not_be_delivered_are_delivered_by_the_next_cycle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Lake
) -> None:
    settings = local(tmp_path, max_rows=20)
    lake = Lake(settings.lake)
    worker = fresh(settings)
    failures = 0

    deliver = Outbox.deliver

    def failing(outbox: Outbox, *rest: Any) -> bool:
        nonlocal failures
        failures += len(outbox.rows) > 0
        if len(outbox.rows) and failures % 2:
            raise Unreachable("The store does not answer")
        return deliver(outbox, *rest)

    monkeypatch.setattr(Outbox, "deliver", failing)
    for piece in Pieces(batches(bronze_rows(FEED)), [3]):
        commit(lake, piece)
        with suppress(Unreachable):
            catch_up(worker)
        catch_up(worker)
    assert failures > 4
    assert_same(lake, undisturbed)


def test_versions_without_rows_move_the_progress(tmp_path: Path, lake: Lake) -> None:
    worker = fresh(local(tmp_path))
    lake.ensure(BRONZE_READINGS)
    assert worker.cycle(NOW) == 0
    assert progress(lake.open(SILVER_READINGS), COVERED) == 0
    for piece in batches(bronze_rows(FEED)):
        commit(lake, piece)
    assert worker.cycle(NOW) == len(FEED)
    lake.open(BRONZE_READINGS).optimize.compact()
    assert worker.cycle(NOW) == 0
    bronze = lake.open(BRONZE_READINGS)
    assert bronze.version() == progress(lake.open(SILVER_READINGS), COVERED)
    silver_version = lake.open(SILVER_READINGS).version()
    assert worker.cycle(NOW) == 0
    assert lake.open(SILVER_READINGS).version() == silver_version


def test_each_row_names_the_commit_of_bronze_that_brought_it(undisturbed: Lake) -> None:
    rows = pl.concat(
        [content(undisturbed, table).select(*RAW, "source_file") for table in (SILVER_READINGS, SILVER_QUARANTINE)]
    )
    files = undisturbed.files()
    for source, part in rows.partition_by("source_file", as_dict=True).items():
        actions = [json.loads(line) for line in files.cat_file(undisturbed.uri(str(source[0]))).splitlines()]
        added = [undisturbed.uri(f"bronze/readings/{action['add']['path']}") for action in actions if "add" in action]
        assert len(part.join(pl.read_parquet(added), on=RAW, how="anti")) == 0


def test_a_small_cycle_reads_no_file_of_another_day(tmp_path: Path, lake: Lake) -> None:
    worker = fresh(local(tmp_path))
    feed: list[Reading] = [
        (0, number % 5, minutes, 20.0, "degC") for number, minutes in enumerate(range(-600, 600, 7))
    ]
    commit(lake, bronze_rows(feed))
    catch_up(worker)
    for path in (tmp_path / "silver" / "readings" / "event_date=2026-03-31").iterdir():
        path.unlink()
    rows = bronze_rows([*feed, (0, 9, 590, 20.0, "degC"), feed[-1]])
    commit(lake, rows.filter(pl.col("raw_offset") >= len(feed)))
    assert worker.cycle(NOW) == 2
    assert fresh(local(tmp_path)).cycle(NOW) == 0


def test_what_becomes_of_each_reading_is_counted(tmp_path: Path, lake: Lake) -> None:
    def counted() -> dict[tuple[str, str], float]:
        names = ("pipeline_events_total", "pipeline_quarantined_total", "pipeline_anomalies_total")
        return {
            (sample.name, sample.labels.get("outcome") or sample.labels["rule"]): sample.value
            for metric in REGISTRY.collect()
            for sample in metric.samples
            if sample.name in names and sample.labels.get("stage", "silver") == "silver"
        }

    feed: list[Reading] = [
        (0, 0, 0, 20.0, "degC"),
        (0, 1, 1, 70.0, "degC"),
        (0, 0, 0, 20.0, "degC"),
        (0, 0, 0, 21.0, "degC"),
        (0, 2, 2, IMPOSSIBLE, "degC"),
        (0, 3, -11, 20.0, "degC"),
    ]
    commit(lake, bronze_rows(feed))
    before = counted()
    catch_up(fresh(local(tmp_path)))
    assert {key: value - before.get(key, 0) for key, value in counted().items() if value != before.get(key, 0)} == {
        ("pipeline_events_total", "ok"): 3,
        ("pipeline_events_total", "late"): 1,
        ("pipeline_events_total", "duplicate"): 1,
        ("pipeline_events_total", "quarantined"): 2,
        ("pipeline_quarantined_total", "conflict"): 1,
        ("pipeline_quarantined_total", "physical_range"): 1,
        ("pipeline_anomalies_total", "operating_range"): 1,
    }


def test_without_bronze_there_is_nothing_to_do(tmp_path: Path, lake: Lake) -> None:
    with pytest.raises(NotSetUp):
        fresh(local(tmp_path)).cycle(NOW)
    run(
        Settings(lake=config.Lake(uri=str(tmp_path)), observability=config.Observability(port=0)),
        until_caught_up=True,
    )
    assert not (tmp_path / "silver").exists()


def test_a_bronze_that_was_restored_to_an_earlier_version_is_told(tmp_path: Path, lake: Lake) -> None:
    for piece in batches(bronze_rows(FEED))[:3]:
        commit(lake, piece)
    catch_up(fresh(local(tmp_path)))
    for version in (2, 3):
        (tmp_path / "bronze" / "readings" / "_delta_log" / f"{version:020}.json").unlink()
    with pytest.raises(HistoryMismatch, match=r"silver/readings is at version 3 .* only at 1"):
        fresh(local(tmp_path)).cycle(NOW)


@pytest.mark.parametrize("told_when", ["when it starts", "while it runs"])
def test_a_bronze_that_was_recreated_and_has_more_versions_than_silver_covers_is_told(
    tmp_path: Path, lake: Lake, monkeypatch: pytest.MonkeyPatch, told_when: str
) -> None:
    monkeypatch.setattr(silver, "_REOPEN_AFTER", 1)
    parts = batches(bronze_rows(FEED))
    worker = fresh(local(tmp_path))
    for part in parts[:3]:
        commit(lake, part)
    catch_up(worker)
    shutil.rmtree(tmp_path / "bronze")
    for part in parts:
        commit(lake, part)
    before = content(lake, SILVER_READINGS)
    with pytest.raises(HistoryMismatch, match=r"silver/readings .* another bronze/readings") as told:
        (worker if told_when == "while it runs" else fresh(local(tmp_path))).cycle(NOW)
    assert "Remove" in told.value.todo
    assert_frame_equal(content(lake, SILVER_READINGS), before)
    for path in ("silver", "_state/silver"):  # as the error says
        shutil.rmtree(tmp_path / path)
    assert catch_up(fresh(local(tmp_path))) == len(FEED)


def test_a_silver_from_before_the_source_was_noted_goes_on_and_notes_it(
    tmp_path: Path, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = batches(bronze_rows(FEED))
    commit(lake, parts[0])
    with monkeypatch.context() as before:
        before.setattr(silver, "covering", lambda app_id, _source, version: {app_id: version})
        catch_up(fresh(local(tmp_path)))
    commit(lake, parts[1])
    assert fresh(local(tmp_path)).cycle(NOW) == len(parts[1])
    shutil.rmtree(tmp_path / "bronze")
    for part in parts:
        commit(lake, part)
    with pytest.raises(HistoryMismatch, match="another bronze/readings"):
        fresh(local(tmp_path)).cycle(NOW)


def test_a_silver_that_starts_while_another_commits_finds_nothing_wrong_with_the_history(
    tmp_path: Path, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other gets a version further between the first and the second table that the one that starts opens."""
    first, second, third, *_ = batches(bronze_rows(FEED))
    commit(lake, first)
    other, starting = fresh(local(tmp_path)), fresh(local(tmp_path))
    other.cycle(NOW)
    look = Lake.open

    def looked(self: Lake, table: Table) -> Any:
        opened = look(self, table)
        if self is starting._lake:
            monkeypatch.setattr(Lake, "open", look)
            commit(lake, second)
            assert other.cycle(NOW) == len(second)
        return opened

    monkeypatch.setattr(Lake, "open", looked)
    assert starting.cycle(NOW) == 0
    commit(lake, third)
    assert starting.cycle(NOW) == len(third)


def test_silver_readings_that_were_restored_without_their_quarantine_are_told(tmp_path: Path, lake: Lake) -> None:
    for piece in batches(bronze_rows(FEED)):
        commit(lake, piece)
    catch_up(fresh(local(tmp_path)))
    shutil.rmtree(tmp_path / "silver" / "readings")
    with pytest.raises(HistoryMismatch, match=r"silver/quarantine is at version \d+ .* only at None"):
        fresh(local(tmp_path)).cycle(NOW)


def test_a_log_that_was_cleaned_up_too_early_is_told(tmp_path: Path, lake: Lake) -> None:
    parts = batches(bronze_rows(FEED))
    worker = fresh(local(tmp_path))
    commit(lake, parts[0])
    catch_up(worker)
    for piece in parts[1:4]:
        commit(lake, piece)
    lake.open(BRONZE_READINGS).create_checkpoint()
    (tmp_path / "bronze" / "readings" / "_delta_log" / f"{2:020}.json").unlink()
    with pytest.raises(HistoryMismatch, match="no longer has every version from 2 to 4"):
        worker.cycle(NOW)


@pytest.mark.s3
def test_on_an_object_store_it_is_the_same(lake_settings: config.Lake, undisturbed: Lake) -> None:
    settings = Settings(
        lake=lake_settings, silver=config.Job(max_rows=20), observability=config.Observability(port=0), retry_s=5.0
    )
    lake = Lake(lake_settings)
    for number, piece in enumerate(Pieces(batches(bronze_rows(FEED)), [3])):
        commit(lake, piece)
        if number in (1, 5):
            run(settings, until_caught_up=True)
    for table in (SILVER_READINGS, SILVER_QUARANTINE):
        assert_frame_equal(content(lake, table), content(undisturbed, table), check_exact=True)


def test_above_the_ceiling_a_strict_silver_stops_before_the_commit_and_goes_on_without_it(
    tmp_path: Path, lake: Lake
) -> None:
    def settings(**limits: Any) -> Settings:
        return local(tmp_path, 4).model_copy(
            update={"quarantine": config.Quarantine(window=10, ceiling=0.2, **limits)}
        )

    bad = {2, 8, 9}
    feed: list[Reading] = [(0, n, n, IMPOSSIBLE if n in bad else 20.0, "degC") for n in range(15)]
    for piece in batches(bronze_rows(feed, in_batch=1)):
        commit(lake, piece)
    worker = fresh(settings(strict=True))
    assert worker.cycle(NOW) + worker.cycle(NOW) == 8
    before = quarantine_share("failed")
    for again in (worker, fresh(settings(strict=True))):  # a restart does not forget the window
        with pytest.raises(CeilingPassed, match=r"3 of the last 12 .* 20.0% of 12. .*physical_range 2; s0: ") as told:
            again.cycle(NOW)
        assert "PIPELINE_QUARANTINE__STRICT=false" in told.value.todo
    assert (len(content(lake, SILVER_READINGS)), quarantine_share("failed") - before) == (7, 2)
    catch_up(fresh(settings()))
    assert (len(content(lake, SILVER_READINGS)), len(content(lake, SILVER_QUARANTINE))) == (12, 3)
    assert quarantine_share("failed") - before == 3  # the alert is raised, strict or not; the next window is below


def quarantine_share(result: str) -> float:
    return metrics.QUALITY_CHECKS.labels("silver", SILVER_QUARANTINE.path, "quarantine_share", result)._value.get()
