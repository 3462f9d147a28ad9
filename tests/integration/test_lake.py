"""The lake on a real object store, and what it says when something is wrong there."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from unittest.mock import Mock

import polars as pl
import pytest
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError
from pydantic import SecretStr
from quixstreams.sinks import SinkBackpressureError

from apps.local import free_ports
from contracts.tables import BRONZE_DEAD_LETTERS, BRONZE_READINGS
from pipeline import settings as config
from pipeline.errors import AccessDenied, Conflict, NotSetUp, PipelineError, SchemaTooNew, Unreachable
from pipeline.lake.delta import Lake, append, changes, progress
from pipeline.lake.sink import DeltaSink
from pipeline.settings import Settings, environment
from tests.faultproxy import FaultProxy
from tests.services import Store
from tests.unit.pipeline.test_sink import TOPIC, decode, feed, whole

pytestmark = pytest.mark.s3


def letters(*offsets: int) -> pl.DataFrame:
    now = datetime.now(UTC)
    frame = pl.DataFrame({"raw_offset": offsets}).with_columns(
        raw_topic=pl.lit("sensors.raw"),
        raw_partition=pl.lit(0),
        raw_timestamp=pl.lit(now),
        reason=pl.lit("not_json"),
        message=pl.lit("no"),
        key=pl.lit(None),
        value=pl.lit(b"\xff"),
        app_version=pl.lit("0"),
        batch_partition=pl.lit(0),
        batch_offset=pl.col("raw_offset"),
        ingested_at=pl.lit(now),
        ingest_date=pl.lit(now.date()),
    )
    return frame.cast(dict(BRONZE_DEAD_LETTERS.schema))


def said(error: PipelineError) -> str:
    """The error's text, if it is what a person should read."""
    assert len(error.what.splitlines()) == 1, error.what
    assert not {"\x1b", "↳", "<?xml"} & {error.what[i : i + n] for n in (1, 5) for i in range(len(error.what))}
    assert error.todo
    return error.what


@pytest.fixture
def proxy(store: Store) -> Iterator[FaultProxy]:
    with FaultProxy(store.endpoint_url) as running:
        yield running


@pytest.fixture
def through(lake_settings: config.Lake, proxy: FaultProxy) -> Lake:
    """A lake that is reached through the proxy."""
    return Lake(lake_settings.model_copy(update={"endpoint_url": proxy.endpoint_url}))


def changed(settings: config.Lake, **values: object) -> Lake:
    return Lake(settings.model_copy(update=values))


def test_a_table_that_is_missing_is_named(lake_settings: config.Lake) -> None:
    with pytest.raises(NotSetUp, match="bronze/readings") as told:
        Lake(lake_settings).open(BRONZE_READINGS)
    said(told.value)


def test_a_log_that_lacks_a_part_is_an_error_that_says_so() -> None:
    """A lake that was wiped under a running bronze has what that wrote next, and nothing before."""
    table = Mock(table_uri="s3://lake/bronze/readings")
    table.transaction_version.side_effect = DeltaError("Kernel error: File not found: bronze/readings/2.json")
    with pytest.raises(NotSetUp, match=r"a file is missing \(.*readings/2\.json"):
        progress(table, "x")


@pytest.mark.parametrize("use", [lambda lake: lake.ensure(BRONZE_READINGS), Lake.require_conditional_put])
def test_a_missing_bucket_is_an_error_that_says_so_and_is_not_created(
    lake_settings: config.Lake, use: object
) -> None:
    lake = changed(lake_settings, uri="s3://no-such-bucket/x")
    with pytest.raises(NotSetUp, match="bucket") as told:
        use(lake)
    said(told.value)
    assert not lake.files().exists("s3://no-such-bucket")


@pytest.mark.parametrize("wrong", [{"secret_access_key": SecretStr("wrong")}, {"access_key_id": "nobody"}], ids=str)
def test_wrong_credentials_are_denied_at_once(lake_settings: config.Lake, wrong: dict[str, object]) -> None:
    lake = changed(lake_settings, **wrong)
    started = time.monotonic()
    with pytest.raises(AccessDenied, match=r"SignatureDoesNotMatch|InvalidAccessKeyId") as told:
        lake.ensure(BRONZE_READINGS)
    said(told.value)
    with pytest.raises(AccessDenied):
        lake.require_conditional_put()
    assert time.monotonic() - started < 5


def test_credentials_that_expire_are_denied_when_a_commit_needs_them(through: Lake, proxy: FaultProxy) -> None:
    table = through.ensure(BRONZE_DEAD_LETTERS)
    proxy.fault = lambda method, _: 403 if method == "PUT" else None
    with pytest.raises(AccessDenied) as told:
        append(table, BRONZE_DEAD_LETTERS, letters(1), {"x": 1})
    said(told.value)


def test_a_store_that_is_not_there_is_given_up_within_ten_seconds(lake_settings: config.Lake) -> None:
    lake = changed(lake_settings, endpoint_url=f"http://127.0.0.1:{free_ports(1)[0]}")
    for use in (lambda: lake.open(BRONZE_READINGS), lake.require_conditional_put):
        started = time.monotonic()
        with pytest.raises(Unreachable) as told:
            use()
        assert time.monotonic() - started < 10
        assert "PIPELINE_LAKE__ENDPOINT_URL" in told.value.todo
        said(told.value)


def test_a_store_that_fails_at_a_commit_is_no_conflict(through: Lake, proxy: FaultProxy) -> None:
    table = through.ensure(BRONZE_DEAD_LETTERS)
    proxy.fault = lambda method, path: 503 if method == "PUT" and "_delta_log" in path else None
    with pytest.raises(Unreachable) as told:
        append(table, BRONZE_DEAD_LETTERS, letters(1), {"x": 1})
    said(told.value)


def test_the_store_keeps_two_writers_apart(lake_settings: config.Lake) -> None:
    lake = Lake(lake_settings)
    lake.require_conditional_put()
    assert not any("_checks/" in path for path in lake.files().find(lake.uri("")))


def test_a_store_that_ignores_conditions_is_refused(
    lake_settings: config.Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = Lake(lake_settings)
    files = lake.files()
    put = files.pipe_file
    monkeypatch.setattr(files, "pipe_file", lambda path, value, mode: put(path, value))
    monkeypatch.setattr(lake, "files", lambda: files)
    with pytest.raises(NotSetUp, match="If-None-Match"):
        lake.require_conditional_put()


def test_of_two_writers_with_one_app_id_the_second_is_refused(lake_settings: config.Lake) -> None:
    lake = Lake(lake_settings)
    first, second = lake.ensure(BRONZE_DEAD_LETTERS), lake.open(BRONZE_DEAD_LETTERS)
    append(first, BRONZE_DEAD_LETTERS, letters(1), {"x": 1})
    append(second, BRONZE_DEAD_LETTERS, letters(2), {"y": 1})
    with pytest.raises(Conflict) as told:
        append(lake_at(lake, 1), BRONZE_DEAD_LETTERS, letters(3), {"y": 2})
    assert "\x1b" not in told.value.what
    assert progress(lake.open(BRONZE_DEAD_LETTERS), "y") == 1


def lake_at(lake: Lake, version: int) -> DeltaTable:
    """The table as a writer holds it who opened it at that version."""
    return DeltaTable(lake.uri(BRONZE_DEAD_LETTERS.path), version=version, storage_options=lake.storage_options)


def test_a_table_of_a_newer_version_is_refused(lake_settings: config.Lake) -> None:
    lake = Lake(lake_settings)
    lake.ensure(BRONZE_DEAD_LETTERS).alter.set_table_name("bronze/dead_letters@9")
    with pytest.raises(SchemaTooNew, match="schema version 9"):
        lake.ensure(BRONZE_DEAD_LETTERS)


def test_the_change_feed_is_exactly_the_appended_rows(lake_settings: config.Lake) -> None:
    table = Lake(lake_settings).ensure(BRONZE_DEAD_LETTERS)
    for offset in (1, 2, 3):
        append(table, BRONZE_DEAD_LETTERS, letters(offset), {"x": offset})
    table.optimize.compact()
    feed = changes(table, 2, table.version())
    assert sorted(feed["raw_offset"]) == [2, 3]
    assert sorted(feed["_commit_version"]) == [2, 3]


def test_a_lost_answer_to_a_commit_costs_and_doubles_nothing(through: Lake, proxy: FaultProxy) -> None:
    sink = DeltaSink(through, BRONZE_READINGS, TOPIC, decode, retry_s=60.0)
    sink.setup()
    feed(sink, 0, 1)
    lost: list[str] = []

    def lose_each_first_answer(method: str, path: str) -> str | None:
        if method == "PUT" and "_delta_log" in path and path not in lost:
            lost.append(path)
            return "lost"
        return None

    proxy.fault = lose_each_first_answer
    for offset in range(2, 8):
        feed(sink, 0, *range(1, offset + 1))
        try:
            sink.flush()
        except SinkBackpressureError:
            feed(sink, 0, *range(1, offset + 1))
            sink.flush()
    assert lost
    assert s3_rows(through) == whole(*((0, offset) for offset in range(1, 8)))


def test_through_a_store_that_fails_now_and_then_every_message_is_kept_once(through: Lake, proxy: FaultProxy) -> None:
    sink = DeltaSink(through, BRONZE_READINGS, TOPIC, decode, retry_s=60.0)
    sink.setup()
    faults = iter(["lost", "silence", 500, "lost", 503, "silence", "lost", 500] * 3)
    asked = 0

    def every_seventh(_method: str, _path: str) -> int | str | None:
        nonlocal asked
        asked += 1
        return next(faults, None) if asked % 7 == 0 else None

    proxy.fault = every_seventh
    done, pauses = 1, 0
    while done < 20:
        feed(sink, 0, *range(max(1, done - 2), done + 1))
        try:
            sink.flush()
            done += 1
        except SinkBackpressureError:
            pauses += 1
    assert s3_rows(through) == whole(*((0, offset) for offset in range(1, 20)))


def s3_rows(lake: Lake) -> list[tuple[int, int, int]]:
    columns = ["batch_partition", "batch_offset", "batch_row"]
    table = DeltaTable(lake.uri("bronze/readings"), storage_options=lake.storage_options)
    read = table.to_pyarrow_table(columns=columns)
    return sorted(zip(*(column.to_pylist() for column in read.columns), strict=True))


IDLE = """if True:
    import sys, time
    from pathlib import Path
    import apps.cli  # as a stage begins
    import polars as pl
    from pipeline.lake.delta import Lake
    from pipeline.lake.layout import scan
    from pipeline.settings import load_settings
    from contracts.tables import BRONZE_DEAD_LETTERS

    def wakes():
        told = [each.read_text() for each in Path("/proc/self/task").glob("*/status")]
        return sum(int(text.partition("voluntary_ctxt_switches:")[2].split()[0]) for text in told)

    rows = scan(Lake(load_settings().lake).open(BRONZE_DEAD_LETTERS)).collect()
    before = wakes()
    time.sleep(1)  # what is counted
    print(len(rows), wakes() - before)
"""


def test_a_process_that_has_read_from_the_store_then_sleeps(lake_settings: config.Lake) -> None:
    """By the limiter of Polars' requests it would be woken some thousand times a second."""
    append(Lake(lake_settings).ensure(BRONZE_DEAD_LETTERS), BRONZE_DEAD_LETTERS, letters(0, 1), {})
    own = {name: value for name, value in os.environ.items() if not name.startswith("POLARS_")}
    given = own | environment(Settings(lake=lake_settings))
    told = subprocess.run([sys.executable, "-c", IDLE], env=given, capture_output=True, text=True, check=True)
    rows, wakes = map(int, told.stdout.split())
    assert rows == 2
    assert wakes < 200
