"""The audit behind `pipeline reconcile`: take a cut, follow it through the layers, and compare each with the next.

The cut is the end of sensors.raw now. Each step waits until the next layer covers what the one before held at the
cut, and then compares the two at exactly the version that is covered, so that a running pipeline balances too. With a
beginning (`since`) it judges only what the broker took from then on: files without such rows are not read.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import datetime

import polars as pl
from deltalake import DeltaTable

from apps.keeping import CLOCKS, KEEPS, Deadline, behind_of, collect, first_offsets, kept, places
from contracts.columns import WINDOW
from contracts.tables import (
    BRONZE_READINGS,
    GOLD_SENSOR_5MIN,
    SILVER_QUARANTINE,
    SILVER_READINGS,
    Rule,
    Table,
)
from contracts.warehouse import FACTS
from pipeline.broker import kafka, offsets
from pipeline.broker.spans import clipped
from pipeline.errors import HistoryMismatch
from pipeline.lake import changefeed, slices
from pipeline.lake.delta import Lake, progress, translated
from pipeline.lake.layout import scan
from pipeline.monitoring import books
from pipeline.monitoring.books import Entry
from pipeline.settings import Settings
from pipeline.silver.outbox import Outbox
from pipeline.silver.statestore import StateStore
from pipeline.warehouse.facts import Warehouse, storable

STEPS = ("raw -> bronze", "bronze -> silver", "silver -> gold", "gold -> warehouse")

_FACT = next(fact for fact in FACTS if fact.table is GOLD_SENSOR_5MIN)
_EVER = 2**63 - 1


class Audit:
    """One run: the steps in order."""

    def __init__(self, settings: Settings, deadline: Deadline, since: datetime | None = None) -> None:
        self._settings = settings
        self._lake = Lake(settings.lake)
        self._deadline = deadline
        self._since = since

    def steps(self) -> list[Callable[[], Entry]]:
        """A comparison for each of STEPS; each raises PipelineErrors where it cannot be made."""
        return [self.raw, self.silver, self.gold, self.warehouse]

    def raw(self) -> Entry:
        """(1) the end of the topic, (2) what ingest has committed, (3) what it wrote by then, (4) Bronze has that."""
        settings = self._settings
        goal = offsets.end_offsets(settings, kafka.RAW)

        def ingested() -> tuple[dict[int, int], bool]:
            done = offsets.committed(settings, settings.group("ingest"), kafka.RAW)
            return done, offsets.drained(settings, kafka.RAW, done, goal)

        cut, complete = self._deadline.until(ingested)
        unread = 0 if complete else behind_of(cut, goal)
        if complete:  # below the goal is nothing left to read; whether there was something, the holes tell
            cut = {partition: max(end, cut.get(partition, 0)) for partition, end in goal.items()}
        opened, behind = kept(settings, self._lake, self._deadline)
        if behind:
            return Entry(STEPS[0], {}, unknown=list(behind), in_flight=unread + sum(behind.values()))
        lows = offsets.low_offsets(settings, kafka.RAW)
        start = {} if self._since is None else first_offsets(settings, opened.values(), self._since)
        judged = {partition: [(offset, _EVER)] for partition, offset in start.items()} or None
        readings, dead = (places(opened[table], judged, self._since) for table in KEEPS.values())
        holes = books.holes(pl.concat([readings, dead]), start, cut)
        entry = books.raw_against_bronze(
            readings,
            dead,
            cut=cut,
            ends=offsets.end_offsets(settings, kafka.RAW),
            holes=holes,
            lows=lows,
            missing=offsets.count_messages(settings, kafka.RAW, clipped(holes, above=lows)),
        )
        return replace(entry, in_flight=unread)

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
            outbox = self._outbox(silver, quarantine)
            bronze = self._at(BRONZE_READINGS, covered)
            entry = self._silver(bronze, silver, quarantine, _NOTHING if outbox is None else outbox)
            if outbox is None and not entry.balanced:
                why = "what silver/quarantine has yet to get cannot be read: start `pipeline silver`, it delivers it"
                return Entry(STEPS[1], {}, unknown=[why], in_flight=behind), False
            return replace(entry, in_flight=behind), behind == 0

        return self._deadline.until(compare)[0]

    def _silver(self, bronze: DeltaTable, silver: DeltaTable, quarantine: DeltaTable, outbox: pl.DataFrame) -> Entry:
        prints, original = books.fingerprints(), books.fingerprints("original_value", "original_unit")
        conflict = (pl.col("rule") == Rule.CONFLICT).alias("is_conflict")
        key = [*books.RAW_KEY, *books.ORDER]
        rows = scan(bronze).filter(self._recent(dated=True))
        readings, refused = scan(silver), scan(quarantine)
        waiting = outbox.filter(self._recent()).select(*books.RAW_KEY, conflict, *prints)
        earlier = None
        if self._since is not None:
            starts = collect(rows.select(_start("timestamp")).unique())["window_start"].to_list()
            before = slices.within(starts) & (pl.col("raw_timestamp") < self._since)
            earlier = pl.concat(
                [
                    collect(readings.filter(before).select(*key, *original)),
                    collect(refused.filter(before, pl.col("rule") != Rule.CONFLICT).select(*key, *prints)),
                ]
            )
        return books.bronze_against_silver(
            collect(rows.select(*key, *prints)),
            collect(readings.filter(self._recent()).select(*books.RAW_KEY, "is_late", *original)),
            pl.concat([collect(refused.filter(self._recent()).select(*books.RAW_KEY, conflict, *prints)), waiting]),
            earlier,
        )

    def _outbox(self, silver: DeltaTable, quarantine: DeltaTable) -> pl.DataFrame | None:
        """Rows of quarantine that a Silver which stopped between its two commits has left for its next start; None
        where that cannot be read, or is to replace others.
        """
        version, attempt = progress(silver, "bronze"), progress(silver, "state")
        if version is None or attempt is None or progress(quarantine, "state") == attempt:
            return _NOTHING
        packed = StateStore(self._lake.files(), self._lake.uri("_state/silver")).outbox(version, attempt)
        outbox = None if packed is None else Outbox.from_bytes(packed)
        if outbox is None or outbox.replaces is not None:
            return None
        return _NOTHING if progress(quarantine, "bronze") == version else outbox.rows

    def gold(self) -> Entry:
        """Gold's 5-minute counts and extremes at the version of Silver that they cover."""

        def windows_of(silver: DeltaTable) -> pl.DataFrame:
            rows = scan(silver)
            if self._since is not None:
                rows = rows.filter(slices.within(self._starts(silver)))
            value = pl.col("value")
            figures = pl.len().cast(pl.Int64).alias("count"), value.min().alias("min"), value.max().alias("max")
            return collect(rows.group_by(*books.WINDOW_KEY[:3], _start("timestamp")).agg(figures))

        def gold() -> tuple[int, pl.DataFrame]:
            table = self._lake.open(GOLD_SENSOR_5MIN)
            covered = progress(table, "silver") or 0
            return covered, self._gold_windows(table, covered, "min", "max")

        return self._windows(STEPS[2], SILVER_READINGS, "timestamp", windows_of, gold)

    def _gold_windows(self, gold: DeltaTable, silver_version: int, *figures: str) -> pl.DataFrame:
        rows = scan(gold)
        if self._since is not None:
            starts = self._starts(self._at(SILVER_READINGS, silver_version))
            rows = rows.filter(slices.within(starts, "window_start"))
        return collect(rows.select(*books.WINDOW_KEY, "count", *figures))

    def _starts(self, silver: DeltaTable) -> Sequence[datetime]:
        """Windows with a reading that the broker took since the beginning."""
        rows = scan(silver).filter(self._recent()).select(_start("timestamp")).unique()
        return list(collect(rows)["window_start"])

    def warehouse(self) -> Entry:
        """The warehouse's 5-minute counts at the version of Gold that its ledger names."""

        def windows_of(gold: DeltaTable) -> pl.DataFrame:
            return storable(self._gold_windows(gold, progress(gold, "silver") or 0))

        with closing(Warehouse(self._settings.warehouse)) as warehouse:
            return self._windows(
                STEPS[3], GOLD_SENSOR_5MIN, "window_start", windows_of, lambda: self._loaded(warehouse)
            )

    def _loaded(self, warehouse: Warehouse) -> tuple[int, pl.DataFrame]:
        starts = [] if self._since is None else self._starts(self._lake.open(SILVER_READINGS))
        shown, rows = warehouse.row_counts(_FACT, min(starts, default=None), max(starts, default=None))
        table = self._lake.open(GOLD_SENSOR_5MIN)
        gold = str(table.metadata().id)
        if shown is not None and shown.table_id != gold:
            raise HistoryMismatch(
                f"{_FACT.name} shows another {GOLD_SENSOR_5MIN.path}, version {shown.version} of {shown.table_id}, "
                f"not {gold}.",
                "Start `pipeline load`: it loads the new table in its place.",
            )
        covered = shown.version if shown else 0
        if self._since is not None:
            judged = self._gold_windows(self._at(GOLD_SENSOR_5MIN, covered), progress(table, "silver") or 0)
            rows = rows.filter(pl.col("window_start").is_in(judged["window_start"].unique().implode()))
        return covered, rows

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

        return self._deadline.until(compare)[0]

    def _recent(self, dated: bool = False) -> pl.Expr:
        """Rows to judge, of tables that tell when the broker took the raw message; `dated`: and that are partitioned
        by the day of their commit."""
        if self._since is None:
            return pl.lit(value=True)
        recent = pl.col("raw_timestamp") >= self._since
        return recent & (pl.col("ingest_date") >= (self._since - CLOCKS).date()) if dated else recent

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


_NOTHING = pl.DataFrame(schema=SILVER_QUARANTINE.schema)


def _start(column: str) -> pl.Expr:
    return pl.col(column).dt.truncate(WINDOW).alias("window_start")


def _total(frame: pl.DataFrame) -> int:
    return int(frame["count"].sum())
