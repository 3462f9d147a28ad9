"""Silver: what is new in Bronze, refined: unique, in canonical units, scored; what breaks the contract, quarantined.

A cycle takes the next versions of Bronze. One commit of silver/readings carries the rows, the version of Bronze
that they cover, and the attempt that names the state belonging to it. State and outbox (the quarantined rows) are
written before that commit and count only through it; the quarantine table gets the outbox after it, with a progress
of its own. So a crash leaves either nothing, or an outbox that the next cycle delivers first.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from typing import cast

import polars as pl
from deltalake import DeltaTable

from contracts.registry import Registry, load_registry
from contracts.tables import BRONZE_READINGS, SILVER_QUARANTINE, SILVER_READINGS, Table
from pipeline import __version__, history, metrics, slices
from pipeline.copies import IDENTITY, Copies, first_readings
from pipeline.errors import Conflict, HistoryMismatch, PipelineError
from pipeline.lake import Lake, append, covering, follows, progress, translated
from pipeline.quality import require
from pipeline.refine import Refined, State, prepare, refine, suspects
from pipeline.settings import Settings
from pipeline.slices import starts_of
from pipeline.stage import poll, retrying, running, source_exists
from pipeline.statestore import Manifest, StateStore, buckets_of

COVERED = "bronze"
"""App id whose version is that of bronze/readings which the table covers."""

STATE = "state"
"""App id whose version is the attempt that wrote the state which belongs to the same commit."""

_REOPEN_AFTER = 100
"""Cycles with one set of table objects; a held one grows with the log."""

_NONE = pl.DataFrame(schema=SILVER_QUARANTINE.schema)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Tables:
    bronze: DeltaTable
    readings: DeltaTable
    quarantine: DeltaTable


@dataclass(frozen=True)
class _Known:
    """What belongs to the version of Bronze that Silver covers; None before the first."""

    version: int | None
    attempt: int | None
    manifest: Manifest | None
    state: State
    outbox: pl.DataFrame


class Silver:
    """Keeps silver/readings and silver/quarantine up to date with bronze/readings.

    `beat` is called in the course of long work.
    """

    def __init__(
        self, settings: Settings, lake: Lake, registry: Registry, beat: Callable[[], None] = lambda: None
    ) -> None:
        self._settings = settings
        self._lake = lake
        self._registry = registry
        self._beat = beat
        files = lake.files()
        self._store = StateStore(files, lake.uri("_state/silver"))
        self._log = history.Log(lake, files)
        self._copies = Copies()
        self._tables: _Tables | None = None
        self._known: _Known | None = None
        self._cycles = 0

    def cycle(self, now: datetime) -> int:
        """Work off `settings.silver.max_rows` rows of Bronze at most, or one version. How many it were; 0: caught up.

        Raises NotSetUp while there is no Bronze, HistoryMismatch where Bronze does not go on from what Silver
        covers, and transient errors; after any of them the next call begins anew from what is committed.
        """
        try:
            while (rows := self._step(now)) == 0:
                self._beat()  # versions without rows, such as a compaction
            return rows or 0
        except PipelineError as error:
            if isinstance(error, Conflict):
                metrics.LAKE_CONFLICTS.labels(table=SILVER_READINGS.path).inc()
            self._tables = self._known = None
            self._copies.clear()
            raise

    def _step(self, now: datetime) -> int | None:
        started = time.perf_counter()
        tables, known = self._current(now)
        first, latest = (-1 if known.version is None else known.version) + 1, tables.bronze.version()
        if first > latest:
            return None
        target = self._log.target(first, latest, self._settings.silver.max_rows)
        readings = history.inserted(tables.bronze, first, target)
        earlier = self._copies.of(suspects(readings, known.state))
        refined, state = refine(readings, known.state, self._registry, self._settings.detection, earlier)
        valid = _with_lineage(refined.valid, now)
        outbox = _with_lineage(refined.quarantined, now).select(_NONE.columns)
        placed = len(valid) + len(outbox) + len(refined.duplicates)
        require(SILVER_READINGS, {"each_reading_in_one_place": placed == len(readings)})

        manifest = self._put(target, state, readings["sensor_id"], outbox, known.manifest)
        versions = covering(COVERED, tables.bronze, target) | {STATE: manifest.attempt}
        append(tables.readings, SILVER_READINGS, valid, versions)
        self._copies.accepted(valid)
        self._known = _Known(target, manifest.attempt, manifest, state, outbox)
        self._deliver(tables, self._known)
        self._store.drop((known.manifest.names if known.manifest else frozenset()) - manifest.names)

        metrics.LAKE_COMMITS.labels(table=SILVER_READINGS.path).inc()
        _count(readings, refined, time.perf_counter() - started)
        return len(readings)

    def _current(self, now: datetime) -> tuple[_Tables, _Known]:
        """The tables, Bronze at its newest version, and what belongs to the last commit of silver/readings.

        Silver is as this object last opened or wrote it: if another writer moved the progress since, our commit is
        refused. So the progress, which delta-rs reads from the log each time, is asked for only after opening.
        """
        self._cycles += 1
        if self._tables and self._known and self._cycles % _REOPEN_AFTER:
            with translated(f"read the log of {BRONZE_READINGS.path}"):
                self._tables.bronze.update_incremental()
        else:
            self._open(now)
        assert self._tables
        assert self._known
        covered, latest = self._known.version, self._tables.bronze.version()
        if covered is not None and covered > latest:
            raise self._mismatch(SILVER_READINGS, covered, f"{BRONZE_READINGS.path} only at {latest}")
        return self._tables, self._known

    def _open(self, now: datetime) -> None:
        """Open the tables; where Silver is not at the version that is known, read its state back, or make it again;
        deliver what a crash left in the outbox."""
        bronze, quarantine = self._lake.open(BRONZE_READINGS), self._lake.ensure(SILVER_QUARANTINE)
        self._tables = tables = _Tables(bronze, self._lake.ensure(SILVER_READINGS), quarantine)
        with translated(f"read the log of {BRONZE_READINGS.path}"):
            bronze.update_incremental()  # after Silver: another replica may have covered what came in between
        version, attempt = progress(tables.readings, COVERED), progress(tables.readings, STATE)
        if version is not None and not follows(tables.readings, COVERED, bronze):
            raise self._mismatch(SILVER_READINGS, version, f"but of another {BRONZE_READINGS.path} than there is now")
        self._copies.use(tables.readings, tables.quarantine)
        if self._known and (self._known.version, self._known.attempt) == (version, attempt):
            return
        self._copies.clear()
        delivered = progress(tables.quarantine, COVERED)
        if delivered is not None and (version is None or delivered > version):  # it was opened first
            raise self._mismatch(SILVER_QUARANTINE, delivered, f"{SILVER_READINGS.path} only at {version}")
        if version is None:
            self._known = _Known(None, None, None, State.empty(self._settings.detection), _NONE)
            return
        self._known = self._read_back(version, attempt) or self._rebuilt(tables, version, attempt, now)
        if delivered != version:
            self._deliver(tables, self._known)

    def _mismatch(self, table: Table, covered: int, but: str) -> HistoryMismatch:
        return HistoryMismatch(
            f"{table.path} is at version {covered} of Bronze, {but}: one was recreated or restored.",
            f"Remove {self._lake.uri('silver')} and {self._lake.uri('_state/silver')}: Silver is then built again.",
        )

    def _read_back(self, version: int, attempt: int | None) -> _Known | None:
        snapshot = None if attempt is None else self._store.load(version, attempt)
        if snapshot is None:
            return None
        self._store.drop(self._store.orphans(snapshot.manifest))
        parts = [State.from_bytes(value).fitted(self._settings.detection) for value in snapshot.values.values()]
        state = State.merge(parts) if parts else State.empty(self._settings.detection)
        return _Known(version, attempt, snapshot.manifest, state, _unpacked(snapshot.outbox))

    def _rebuilt(self, tables: _Tables, version: int, attempt: int | None, now: datetime) -> _Known:
        """Replay Bronze. What it quarantines and neither table has is the outbox that was lost with the state."""
        with translated(f"read the log of {SILVER_READINGS.path}"):
            tables.readings.update_incremental()
        if progress(tables.readings, COVERED) != version:
            raise Conflict("Another writer was first: Silver moved on, and the state of the version before is gone.")
        log.warning("the state of version %d is missing: it is made again from all of Bronze up to there", version)
        lost: list[pl.DataFrame] = []
        delivered = progress(tables.quarantine, COVERED) == version
        started, rows, state = time.perf_counter(), 0, State.empty(self._settings.detection)
        for readings in history.replay(tables.bronze, version, self._settings.silver.max_rows):
            self._beat()
            rows += len(readings)
            partition, begin = readings.select("batch_partition", "batch_offset").row(0)
            found = self._copies.of(suspects(readings, state))
            before = found.filter(pl.col("batch_partition") == partition, pl.col("batch_offset") < begin)
            earlier = pl.concat([before, *map(first_readings, lost)]).unique(IDENTITY)
            refined, state = refine(readings, state, self._registry, self._settings.detection, earlier)
            if not delivered:
                lost.append(_absent(refined.quarantined, tables.readings, tables.quarantine))
        log.warning("replayed %d readings of Bronze in %.1f s", rows, time.perf_counter() - started)
        outbox = _NONE
        if any(map(len, lost)):
            dated = history.with_commit(tables.bronze, pl.concat(lost), self._log.oldest(), version)
            outbox = _with_lineage(dated, now).select(_NONE.columns)
        if attempt is None:
            return _Known(version, attempt, None, state, outbox)
        buckets, values = buckets_of(state, state.sensor_ids, 1)
        manifest = self._store.put(version, buckets, values, _packed(outbox), None, attempt)
        return _Known(version, attempt, manifest, state, outbox)

    def _put(
        self, version: int, state: State, sensors: pl.Series, outbox: pl.DataFrame, base: Manifest | None
    ) -> Manifest:
        """Write what the rows of these sensors changed in the state; all of it where that is due."""
        if base and base.wasteful:
            base = None
        changed = sensors.unique().to_list() if base else state.sensor_ids
        buckets, values = buckets_of(state, changed, base.buckets if base else 1)
        if base and base.buckets != buckets:
            base = None
        return self._store.put(version, buckets, values, _packed(outbox), base)

    def _deliver(self, tables: _Tables, known: _Known) -> None:
        """Give the quarantine table the rows that belong to Silver's last commit; it has not got them."""
        if known.version is not None and len(known.outbox):
            append(tables.quarantine, SILVER_QUARANTINE, known.outbox, {COVERED: known.version})
            metrics.LAKE_COMMITS.labels(table=SILVER_QUARANTINE.path).inc()
            self._copies.refused(known.outbox)


def _with_lineage(rows: pl.DataFrame, now: datetime) -> pl.DataFrame:
    return rows.with_columns(
        source_file=history.commit_file(pl.col(history.COMMIT)),
        pipeline_version=pl.lit(__version__),
        processing_timestamp=pl.lit(now, dtype=pl.Datetime("us", "UTC")),
    )


def _absent(rows: pl.DataFrame, *tables: DeltaTable) -> pl.DataFrame:
    """Those of the rows that none of the tables has."""
    for table in tables:
        there = slices.read(table, starts_of(rows["timestamp"]), history.RAW)
        rows = rows.join(there, on=history.RAW, how="anti")
    return rows


def _packed(outbox: pl.DataFrame) -> bytes:
    buffer = BytesIO()
    outbox.write_ipc(buffer, compression="zstd")
    return buffer.getvalue()


def _unpacked(outbox: bytes) -> pl.DataFrame:
    return pl.concat([_NONE, pl.read_ipc(outbox)], how="diagonal")  # null: what the version before did not write


def _count(readings: pl.DataFrame, refined: Refined, seconds: float) -> None:
    if readings.is_empty():
        return
    outcomes = {
        "ok": len(refined.valid),
        "late": int(refined.valid["is_late"].sum()),
        "duplicate": len(refined.duplicates),
        "quarantined": len(refined.quarantined),
    }
    for outcome, rows in outcomes.items():
        metrics.EVENTS.labels(stage="silver", outcome=outcome).inc(rows)
    for rule, rows in refined.quarantined["rule"].value_counts().iter_rows():
        metrics.QUARANTINED.labels(rule=rule).inc(rows)
    for rule, rows in refined.valid["anomaly_rules"].explode().drop_nulls().value_counts().iter_rows():
        metrics.ANOMALIES.labels(rule=rule).inc(rows)
    metrics.BATCH_SECONDS.labels(stage="silver").observe(seconds)
    metrics.BATCH_ROWS.labels(stage="silver").observe(len(readings))
    committed = datetime.now(UTC)
    oldest, newest = cast(datetime, readings["raw_timestamp"].min()), cast(datetime, readings["timestamp"].max())
    metrics.LATENCY.labels(stage="silver").observe((committed - oldest).total_seconds())
    metrics.FRESHNESS.labels(layer="silver").set((committed - newest).total_seconds())


def run(settings: Settings, *, until_caught_up: bool = False) -> None:
    """Keep Silver up to date with Bronze until stopped, or until it has all that Bronze has."""
    with running("silver", settings) as stage:
        lake, interval_s = Lake(settings.lake), settings.silver.interval_s
        registry = load_registry(settings.registry)
        prepare(registry, settings.detection)
        silver = Silver(settings, lake, registry, stage.beat)

        def cycle() -> int:
            return retrying(settings, "refine what is new in Bronze", lambda: silver.cycle(datetime.now(UTC)))

        if source_exists(stage, settings, interval_s, lambda: lake.open(BRONZE_READINGS), until_caught_up):
            poll(stage, interval_s, cycle, until_caught_up)
