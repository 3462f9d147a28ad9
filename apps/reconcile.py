"""`pipeline reconcile`: take a cut, follow it through the layers, and prove that every reading is where it belongs.

The cut is the end of sensors.raw now. Each step waits until the next layer covers what the one before held at the
cut, and then compares the two at exactly the version that is covered, so that a running pipeline balances too.
"""

import json
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from typing import TypeVar

import polars as pl
import tenacity
import typer
from deltalake import DeltaTable
from rich.console import Console
from rich.table import Table as RichTable

from contracts.tables import (
    BRONZE_DEAD_LETTERS,
    BRONZE_READINGS,
    GOLD_SENSOR_5MIN,
    SILVER_QUARANTINE,
    SILVER_READINGS,
    WINDOW,
    Rule,
    Table,
)
from contracts.warehouse import FACTS
from pipeline import books, changefeed, kafka, offsets
from pipeline.books import Books, Entry
from pipeline.errors import HistoryMismatch, PipelineError, TransientError
from pipeline.lake import Lake, progress, translated
from pipeline.layout import scan
from pipeline.settings import Settings
from pipeline.sink import positions
from pipeline.warehouse import Warehouse, storable

T = TypeVar("T")

_FACT = next(fact for fact in FACTS if fact.table is GOLD_SENSOR_5MIN)

STEPS = ("raw -> bronze", "bronze -> silver", "silver -> gold", "gold -> warehouse")
_LOOK_EVERY_S = 0.5
_SHOWN = 20
"""Findings of a kind that the readable report shows; --json has them all."""


def run(settings: Settings, *, wait_s: float, as_json: bool) -> int:
    """Print the books; 0 balanced, 1 not, 2 cannot tell."""
    result = reconcile(settings, wait_s)
    if as_json:
        typer.echo(json.dumps(result.to_dict(), ensure_ascii=False))
    else:
        show(result)
    return result.exit_code


def reconcile(settings: Settings, wait_s: float = 0.0) -> Books:
    """Compare the layers, waiting for them `wait_s` seconds in all. What cannot be reached is in the books."""
    audit = _Audit(settings, time.monotonic() + wait_s)
    return Books([_told(step, method) for step, method in zip(STEPS, audit.steps(), strict=True)])


def _told(step: str, method: Callable[[], Entry]) -> Entry:
    try:
        return method()
    except PipelineError as error:
        return Entry(step, {}, unknown=[str(error)])


class _Audit:
    """One run: the steps in order, each setting the version that the next has to cover."""

    def __init__(self, settings: Settings, deadline: float) -> None:
        self._settings = settings
        self._lake = Lake(settings.lake)
        self._deadline = deadline

    def steps(self) -> list[Callable[[], Entry]]:
        return [self.raw, self.silver, self.gold, self.warehouse]

    def raw(self) -> Entry:
        """(1) the end of the topic, (2) what ingest has committed, (3) what it wrote by then, (4) Bronze has that."""
        settings, step = self._settings, STEPS[0]
        goal = offsets.end_offsets(settings, kafka.RAW)

        def ingested() -> tuple[dict[int, int], bool]:
            done = offsets.committed(settings, settings.group("ingest"), kafka.RAW)
            return done, offsets.drained(settings, kafka.RAW, done, goal)

        cut, complete = self._await(ingested)
        unread = 0 if complete else _behind(cut, goal)
        if complete:  # below the goal is nothing left to read; whether there was something, the holes tell
            cut = {partition: max(end, cut.get(partition, 0)) for partition, end in goal.items()}
        tables = {}
        for topic, table in ((kafka.READINGS, BRONZE_READINGS), (kafka.DEAD_LETTERS, BRONZE_DEAD_LETTERS)):
            written = offsets.end_offsets(settings, topic)
            opened, at, complete = self._kept(topic, table, written)
            if not complete:
                left = _behind(at, written)
                why = f"{table.path} has yet to take {left} offsets of {kafka.topic(settings, topic)}"
                return Entry(step, {}, unknown=[why], in_flight=unread + left)
            tables[table] = opened
        readings, dead = (_collect(scan(opened).select(books.RAW_KEY)) for opened in tables.values())
        placed = pl.concat([readings, dead])
        low = offsets.low_offsets(settings, kafka.RAW)
        holes = books.holes(placed, {}, cut)
        entry = books.raw_against_bronze(
            readings,
            dead,
            cut=cut,
            ends=offsets.end_offsets(settings, kafka.RAW),
            missing=offsets.count_messages(settings, kafka.RAW, _clip(holes, above=low)),
            expired={p: spans for p, spans in _clip(holes, below=low).items() if spans},
        )
        return replace(entry, in_flight=unread)

    def _kept(self, topic: str, table: Table, goal: Mapping[int, int]) -> tuple[DeltaTable, dict[int, int], bool]:
        settings = self._settings

        def kept() -> tuple[tuple[DeltaTable, dict[int, int]], bool]:
            opened = self._lake.open(table)
            at = positions(opened, kafka.topic(settings, topic), goal)
            return (opened, at), offsets.drained(settings, topic, at, goal)

        (opened, at), complete = self._await(kept)
        return opened, at, complete

    def silver(self) -> Entry:
        """Silver and its quarantine, which follows it with a commit of its own, at one version of Bronze."""
        goal = self._lake.open(BRONZE_READINGS).version()

        def compare() -> tuple[Entry, bool]:
            silver = self._lake.open(SILVER_READINGS)
            quarantine = self._lake.open(SILVER_QUARANTINE)
            covered, followed = progress(silver, "bronze") or 0, progress(quarantine, "bronze") or 0
            behind = self._changes(BRONZE_READINGS, covered, goal)
            if followed > covered:
                return Entry(STEPS[1], {}, unknown=["Silver moved while it was read"], in_flight=behind), False
            prints, original = books.fingerprints(), books.fingerprints("original_value", "original_unit")
            conflict = (pl.col("rule") == Rule.CONFLICT).alias("is_conflict")
            entry = books.bronze_against_silver(
                _collect(scan(self._at(BRONZE_READINGS, covered)).select(*books.RAW_KEY, *books.ORDER, *prints)),
                _collect(scan(silver).select(*books.RAW_KEY, "is_late", *original)),
                _collect(scan(quarantine).select(*books.RAW_KEY, conflict, *prints)),
            )
            same = progress(silver, "state") == progress(quarantine, "state")  # a rebuild moves nothing else
            settled = entry.balanced or (followed == covered and same)
            return replace(entry, in_flight=behind), behind == 0 and settled

        return self._await(compare)[0]

    def gold(self) -> Entry:
        """Gold's 5-minute counts at the version of Silver that they cover."""
        return self._windows(STEPS[2], SILVER_READINGS, "timestamp", _silver_windows, self._gold)

    def _gold(self) -> tuple[int, pl.DataFrame]:
        table = self._lake.open(GOLD_SENSOR_5MIN)
        return progress(table, "silver") or 0, _gold_windows(table)

    def warehouse(self) -> Entry:
        """The warehouse's 5-minute counts at the version of Gold that its ledger names."""
        with closing(Warehouse(self._settings.warehouse)) as warehouse:
            return self._windows(
                STEPS[3], GOLD_SENSOR_5MIN, "window_start", _storable_windows, lambda: self._loaded(warehouse)
            )

    def _loaded(self, warehouse: Warehouse) -> tuple[int, pl.DataFrame]:
        shown, rows = warehouse.row_counts(_FACT)
        gold = str(self._lake.open(GOLD_SENSOR_5MIN).metadata().id)
        if shown is not None and shown.table_id != gold:
            raise HistoryMismatch(
                f"{_FACT.name} shows another {GOLD_SENSOR_5MIN.path}, version {shown.version} of {shown.table_id}, "
                f"not {gold}.",
                "Start `pipeline load`: it loads the new table in its place.",
            )
        return shown.version if shown else 0, rows

    def _windows(
        self,
        step: str,
        source: Table,
        time_column: str,
        windows_of: Callable[[DeltaTable], pl.DataFrame],
        follower: Callable[[], tuple[int, pl.DataFrame]],
    ) -> Entry:
        """Compare windows. A follower replaces them piece by piece before it moves its progress: where it does not
        agree with the version that it covers, windows that its source has changed since are not judged but in flight.
        """
        goal = self._lake.open(source).version()
        names = [name.split(".")[0] for name in step.split(" -> ")]

        def compare() -> tuple[Entry, bool]:
            covered, after = follower()
            behind = self._changes(source, covered, goal)
            before = windows_of(self._at(source, covered))
            counts = dict(zip(names, (_total(before), _total(after)), strict=True))
            entry = books.windows(step, before, after, counts)
            if not entry.balanced and len(since := self._touched(source, time_column, covered)):
                settled = ~pl.col("window_start").is_in(since.implode())
                entry = books.windows(step, before.filter(settled), after.filter(settled), counts)
                behind = max(behind, len(since))
            return replace(entry, in_flight=behind), behind == 0

        return self._await(compare)[0]

    def _touched(self, table: Table, time_column: str, after: int) -> pl.Series:
        """Windows of the rows that changed after a version."""
        opened = self._lake.open(table)
        starts = (
            [
                frame[time_column].dt.truncate(WINDOW).unique()
                for frame in changefeed.batches(opened, after + 1, opened.version(), [time_column])
            ]
            if opened.version() > after
            else []
        )
        return pl.concat(starts).unique() if starts else pl.Series(dtype=pl.Datetime("us", "UTC"))

    def _changes(self, table: Table, after: int, last: int) -> int:
        """Rows that changed in the versions after `after`, up to `last`; compaction changes none."""
        if after >= last:
            return 0
        feed = changefeed.batches(self._lake.open(table), after + 1, last, [table.key[0]])
        return sum(len(frame) for frame in feed)

    def _at(self, table: Table, version: int) -> DeltaTable:
        opened = self._lake.open(table)
        if version != opened.version():
            with translated(f"open version {version} of {opened.table_uri}"):
                opened.load_as_version(version)
        return opened

    def _await(self, look: Callable[[], tuple[T, bool]]) -> tuple[T, bool]:
        """Look, again until it is complete or the time is over: what was seen last, and whether it is complete."""
        looking = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(TransientError)
            | tenacity.retry_if_result(lambda seen: not seen[1]),
            stop=tenacity.stop_after_delay(max(0.0, self._deadline - time.monotonic())),
            wait=tenacity.wait_fixed(_LOOK_EVERY_S),
            retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
        )
        return looking(look)


def _silver_windows(silver: DeltaTable) -> pl.DataFrame:
    start = pl.col("timestamp").dt.truncate(WINDOW).alias("window_start")
    count = pl.len().cast(pl.Int64).alias("count")
    return _collect(scan(silver).group_by(*books.WINDOW_KEY[:3], start).agg(count))


def _gold_windows(gold: DeltaTable) -> pl.DataFrame:
    return _collect(scan(gold).select(*books.WINDOW_KEY, "count"))


def _storable_windows(gold: DeltaTable) -> pl.DataFrame:
    """As the warehouse can hold them."""
    return storable(_gold_windows(gold))


def _collect(frame: pl.LazyFrame) -> pl.DataFrame:
    with translated("read the lake"):
        return frame.collect(engine="streaming")


def _total(frame: pl.DataFrame) -> int:
    return int(frame["count"].sum())


def _behind(at: Mapping[int, int], goal: Mapping[int, int]) -> int:
    return sum(max(0, end - at.get(partition, 0)) for partition, end in goal.items())


def _clip(
    spans: Mapping[int, list[tuple[int, int]]],
    *,
    above: Mapping[int, int] | None = None,
    below: Mapping[int, int] | None = None,
) -> dict[int, list[tuple[int, int]]]:
    """The parts of half-open ranges that are at or above, or below, a bound per partition."""
    clipped: dict[int, list[tuple[int, int]]] = {}
    for partition, each in spans.items():
        low = above.get(partition, 0) if above else 0
        high = below.get(partition, 0) if below else None
        cut = [(max(start, low), end if high is None else min(end, high)) for start, end in each]
        clipped[partition] = [(start, end) for start, end in cut if start < end]
    return clipped


def show(result: Books) -> None:
    """The books for people: counts by step, and the first findings."""
    console = Console()
    table = RichTable("step", "counts", "verdict")
    for entry in result.entries:
        counts = ", ".join(f"{name} {count:,}" for name, count in entry.counts.items())
        table.add_row(entry.step, counts or "-", _verdict(entry))
    console.print(table)
    for entry in result.entries:
        for kind in books.FAULTS:
            findings = getattr(entry, kind)
            for finding in findings[:_SHOWN]:
                where = ", ".join(f"{name} {value}" for name, value in finding.items() if name != "step")
                console.print(f"{entry.step}: {kind}: {where}", markup=False, soft_wrap=True)
            if len(findings) > _SHOWN:
                console.print(f"{entry.step}: {kind}: {len(findings) - _SHOWN:,} more: see --json", markup=False)
        for why in entry.unknown:
            console.print(f"{entry.step}: {why}", markup=False, soft_wrap=True)
    console.print(_VERDICTS[result.exit_code], soft_wrap=True)


_VERDICTS = {0: "The books balance.", 1: "The books do not balance.", 2: "Cannot tell whether the books balance."}


def _verdict(entry: Entry) -> str:
    found = [f"{len(getattr(entry, kind)):,} {kind}" for kind in books.FAULTS if getattr(entry, kind)]
    if entry.in_flight:
        found.append(f"{entry.in_flight:,} in flight")
    if entry.unknown:
        found.append("cannot tell")
    return ", ".join(found) or "balanced"
