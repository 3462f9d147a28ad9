"""Silver: what is new in Bronze, refined: unique, in canonical units, scored; what breaks the contract, quarantined.

A cycle takes the next versions of Bronze. One commit of silver/readings carries the rows, the version of Bronze
that they cover, and the attempt that names the state belonging to it. State and outbox (the quarantined rows) are
written before that commit and count only through it; the quarantine table gets the outbox after it, with a progress
of its own. So a crash leaves either nothing, or an outbox that the next cycle delivers first.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial

import polars as pl
from deltalake import DeltaTable

from contracts.registry import Registry, load_registry
from contracts.tables import BRONZE_READINGS, SILVER_QUARANTINE, SILVER_READINGS, Rule, Table
from pipeline import metrics
from pipeline.core.refine import State, prepare, refine, suspects
from pipeline.errors import Conflict, HistoryMismatch, PipelineError
from pipeline.lake.delta import Lake, append, covering, follows, progress, translated
from pipeline.lake.delta import replace as lake_replace
from pipeline.lake.quality import require
from pipeline.settings import Settings
from pipeline.silver import history, outcomes, rebuild
from pipeline.silver.ceiling import Window
from pipeline.silver.copies import Copies, first_readings
from pipeline.silver.lineage import made_again, quarantine_rows, with_lineage
from pipeline.silver.outbox import Outbox
from pipeline.silver.retrace import retraced
from pipeline.silver.statestore import Manifest, StateStore, buckets_of
from pipeline.stage import poll, retrying, running, source_exists

COVERED = "bronze"
"""App id whose version is that of bronze/readings which the table covers."""

STATE = "state"
"""App id whose version is the attempt that wrote the state which belongs to the same commit."""

HELD = "held"
"""App id whose version is the time (seconds of the epoch) until which the stage waits: a rebuild is at work."""

_REOPEN_AFTER = 100
"""Cycles with one set of table objects; a held one grows with the log."""

log = logging.getLogger(__name__)

_NEW = Window()


@dataclass(frozen=True)
class Tables:
    """The table objects of one opening."""

    bronze: DeltaTable
    readings: DeltaTable
    quarantine: DeltaTable


@dataclass(frozen=True)
class Known:
    """What belongs to the version of Bronze that Silver covers; None before the first."""

    version: int | None
    attempt: int | None
    manifest: Manifest | None
    state: State
    outbox: Outbox
    window: Window = _NEW


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
        self._tables: Tables | None = None
        self._known: Known | None = None
        self._cycles = 0
        self._held_until = 0

    @property
    def copies(self) -> Copies:
        """First readings of what is in the tables."""
        return self._copies

    def held(self, now: datetime) -> bool:
        """Does a rebuild make this stage wait?"""
        return now.timestamp() < self._held_until

    def cycle(self, now: datetime) -> int:
        """Work off `settings.silver.max_rows` rows of Bronze at most, or one version. How many it were; 0: caught up.

        Raises NotSetUp while there is no Bronze, HistoryMismatch where Bronze does not go on from what Silver
        covers, and transient errors; after any of them the next call begins anew from what is committed.
        """
        try:
            while (rows := self._step(now)) == 0:
                self._beat()  # versions without rows, such as a compaction
            return rows or 0
        except PipelineError:
            self._tables = self._known = None
            self._copies.clear()
            raise

    def _step(self, now: datetime) -> int | None:
        started = time.perf_counter()
        tables, known = self._current(now)
        if self.held(now):
            self._tables = None  # to see when it is over
            return None
        first, latest = (-1 if known.version is None else known.version) + 1, tables.bronze.version()
        if first > latest:
            return None
        target = self._log.target(first, latest, self._settings.silver.max_rows)
        readings = history.inserted(tables.bronze, first, target)
        earlier = self._copies.of(suspects(readings, known.state))
        refined, state = refine(readings, known.state, self._registry, self._settings.detection, earlier)
        valid = with_lineage(refined.valid, now)
        outbox = Outbox(quarantine_rows(refined.quarantined, now))
        placed = len(valid) + len(outbox.rows) + len(refined.duplicates)
        require(SILVER_READINGS.path, {"each_reading_in_one_place": placed == len(readings)})
        window = known.window.taking(len(readings), len(outbox.rows))
        window.judge(self._settings.quarantine, outbox.rows)

        manifest = self._put(target, state, readings["sensor_id"], outbox, known.manifest)
        window = window.going_on(self._settings.quarantine)
        versions = covering(COVERED, tables.bronze, target) | {STATE: manifest.attempt} | window.versions()
        append(tables.readings, SILVER_READINGS, valid, versions)
        self._copies.accepted(valid)
        self._known = Known(target, manifest.attempt, manifest, state, outbox, window)
        self._deliver(tables, self._known)
        self._store.drop((known.manifest.names if known.manifest else frozenset()) - manifest.names)

        seconds = time.perf_counter() - started
        outcomes.count(readings, refined, seconds)
        log.debug(
            "committed", extra={"batch": {"rows": len(readings), "bronze": [first, target], "seconds": seconds}}
        )
        return len(readings)

    def opened(self, now: datetime) -> tuple[Tables, Known]:
        """The tables, with what belongs to Silver's last commit, delivered. Raises as `cycle` does.

        A stage that is at work replaces the state faster than it can be read here: `hold` it first.
        """
        self._open(now)
        assert self._tables
        assert self._known
        return self._tables, self._known

    def tables(self) -> tuple[Tables, int | None]:
        """The tables alone, to look at, and the version of Bronze that Silver covers."""
        tables = self._open_tables()
        return tables, progress(tables.readings, COVERED)

    def lost(self) -> int | None:
        """The newest version of Bronze, where Silver has nothing and Bronze's log no longer has what a stage would
        build it from; else None."""
        tables, covered = self.tables()
        return tables.bronze.version() if covered is None and self._log.oldest() > 0 else None

    def adopt(self, version: int) -> None:
        """Say that Silver, which has no row, covers Bronze up to this version: what a rebuild of all of it fills."""
        assert self._tables
        versions = covering(COVERED, self._tables.bronze, version)
        append(self._tables.readings, SILVER_READINGS, pl.DataFrame(schema=SILVER_READINGS.schema), versions)

    def hold(self, until: datetime) -> datetime:
        """Make the stages that run wait, by a commit that they have to see: until then, or until `swap`."""
        if self._tables is None:
            self._open_tables()
        self._commit(pl.DataFrame(schema=SILVER_READINGS.schema), None, {HELD: int(until.timestamp())})
        return until

    def swap(self, attempt: int, state: State, readings: tuple[str, pl.DataFrame] | None, outbox: Outbox) -> None:
        """After `opened`: in one commit of silver/readings replace rows (a predicate, and the rows that it selects
        from then on); after it those of quarantine; and go on from `state`, as far as it knows a sensor. The version
        of Bronze that Silver covers stays. Raises transient errors; where the commit was made all the same, the next
        `opened` completes the rest, and tells this `attempt` (62 random bits).
        """
        known, sensors = self._known, state.sensor_ids
        assert self._tables
        assert known
        assert known.version is not None
        other = readings or outbox.replaces or known.state.select(sensors).to_bytes() != state.to_bytes()
        if other:
            state, changed = State.merge([known.state, state]), pl.Series(sensors, dtype=pl.String)
            manifest = self._put(known.version, state, changed, outbox, known.manifest, attempt)
            after = replace(known, attempt=attempt, manifest=manifest, state=state, outbox=outbox)
        where, rows = readings or (None, pl.DataFrame(schema=SILVER_READINGS.schema))
        self._commit(rows, where, ({STATE: attempt} if other else {}) | {HELD: 0})
        if other:
            self._copies.clear()
            self._known = after
            self._deliver(self._tables, after)
            self._store.drop((known.manifest.names if known.manifest else frozenset()) - manifest.names)

    def _commit(self, rows: pl.DataFrame, where: str | None, versions: dict[str, int]) -> None:
        """Commit to silver/readings without moving its progress, which fences this all the same; nothing before it
        has any."""
        assert self._tables
        table = self._tables.readings
        if (covered := progress(table, COVERED)) is None:
            return
        versions = covering(COVERED, self._tables.bronze, covered) | versions
        if where is None:
            append(table, SILVER_READINGS, rows, versions)
        else:
            lake_replace(table, SILVER_READINGS, rows, versions, where)

    def dated(self, rows: pl.DataFrame, now: datetime) -> pl.DataFrame:
        """Rows for `swap`, with their lineage."""
        assert self._tables
        assert self._known
        assert self._known.version is not None
        return made_again(rows, self._tables.bronze, self._log.oldest(), self._known.version, now)

    def _current(self, now: datetime) -> tuple[Tables, Known]:
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
        tables = self._open_tables()
        version, attempt = progress(tables.readings, COVERED), progress(tables.readings, STATE)
        if self._known and (self._known.version, self._known.attempt) == (version, attempt):
            return
        self._copies.clear()
        delivered = progress(tables.quarantine, COVERED)
        if delivered is not None and (version is None or delivered > version):  # it was opened first
            raise self._mismatch(SILVER_QUARANTINE, delivered, f"{SILVER_READINGS.path} only at {version}")
        if version is None:
            self._known = Known(None, None, None, State.empty(self._settings.detection), Outbox())
            return
        known = self._read_back(version, attempt) or self._rebuilt(tables, version, attempt, now)
        self._known = replace(known, window=Window.committed(partial(progress, tables.readings)))
        to_add = known.outbox.replaces is None
        if progress(tables.quarantine, STATE) != attempt and not (to_add and delivered == version):
            self._deliver(tables, self._known)

    def _open_tables(self) -> Tables:
        bronze, quarantine = self._lake.open(BRONZE_READINGS), self._lake.ensure(SILVER_QUARANTINE)
        self._tables = tables = Tables(bronze, self._lake.ensure(SILVER_READINGS), quarantine)
        with translated(f"read the log of {BRONZE_READINGS.path}"):
            bronze.update_incremental()  # after Silver: another replica may have covered what came in between
        version = progress(tables.readings, COVERED)
        if version is not None and not follows(tables.readings, COVERED, bronze):
            raise self._mismatch(SILVER_READINGS, version, f"but of another {BRONZE_READINGS.path} than there is now")
        self._held_until = progress(tables.readings, HELD) or 0
        self._copies.use(tables.readings, tables.quarantine)
        return tables

    def _mismatch(self, table: Table, covered: int, but: str) -> HistoryMismatch:
        return HistoryMismatch(
            f"{table.path} is at version {covered} of Bronze, {but}: one was recreated or restored.",
            f"Remove {self._lake.uri('silver')} and {self._lake.uri('_state/silver')}: Silver is then built again.",
        )

    def _read_back(self, version: int, attempt: int | None) -> Known | None:
        snapshot = None if attempt is None else self._store.load(version, attempt)
        if snapshot is None:
            return None
        self._store.drop(self._store.orphans(snapshot.manifest))
        parts = [State.from_bytes(value).fitted(self._settings.detection) for value in snapshot.values.values()]
        state = State.merge(parts) if parts else State.empty(self._settings.detection)
        return Known(version, attempt, snapshot.manifest, state, Outbox.from_bytes(snapshot.outbox))

    def _rebuilt(self, tables: Tables, version: int, attempt: int | None, now: datetime) -> Known:
        """Replay Bronze. What it quarantines and neither table has is the outbox that was lost with the state."""
        with translated(f"read the log of {SILVER_READINGS.path}"):
            tables.readings.update_incremental()
        if (progress(tables.readings, COVERED), progress(tables.readings, STATE)) != (version, attempt):
            raise Conflict("Another writer was first: Silver moved on, and the state of the version before is gone.")
        log.warning("the state of version %d is missing: it is made again from all of Bronze up to there", version)
        lost: list[pl.DataFrame] = []
        missing: list[pl.DataFrame] = []
        delivered = progress(tables.quarantine, STATE) == attempt
        rules, most = self._settings.detection, self._settings.silver.max_rows
        started, rows, state = time.perf_counter(), 0, State.empty(rules)
        for piece in retraced(
            tables.bronze, version, self._copies, self._registry, rules, max_rows=most, missing=missing
        ):
            self._beat()
            rows, state = rows + len(piece.readings), piece.state
            if not delivered:
                lost.append(rebuild.absent(piece.refined.quarantined, tables.readings, tables.quarantine))
                missing.append(first_readings(lost[-1]))
        log.warning("replayed %d readings of Bronze in %.1f s", rows, time.perf_counter() - started)
        outbox = Outbox() if delivered else self._lost_outbox(tables, lost, version, now)
        if attempt is None:
            return Known(version, attempt, None, state, outbox)
        buckets, values = buckets_of(state, state.sensor_ids, 1)
        manifest = self._store.put(version, buckets, values, outbox.to_bytes(), None, attempt)
        return Known(version, attempt, manifest, state, outbox)

    def _lost_outbox(self, tables: Tables, lost: list[pl.DataFrame], version: int, now: datetime) -> Outbox:
        """What quarantine was to get: the rows that neither table has, and without those that Silver has."""
        rows = Outbox().rows
        if any(map(len, lost)):
            dated = history.with_commit(tables.bronze, pl.concat(lost), self._log.oldest(), version)
            rows = quarantine_rows(dated, now)
        superfluous = rebuild.in_both(tables.readings, tables.quarantine)
        if superfluous.is_empty():
            return Outbox(rows)
        where, rows = rebuild.replacement(
            tables.quarantine, SILVER_QUARANTINE, rebuild.Differences(superfluous, rows)
        )
        return Outbox(rows, where)

    def _put(
        self,
        version: int,
        state: State,
        sensors: pl.Series,
        outbox: Outbox,
        base: Manifest | None,
        attempt: int | None = None,
    ) -> Manifest:
        """Write what the rows of these sensors changed in the state; all of it where that is due."""
        if base and base.wasteful:
            base = None
        changed = sensors.unique().to_list() if base else state.sensor_ids
        buckets, values = buckets_of(state, changed, base.buckets if base else 1)
        if base and base.buckets != buckets:
            base = None
        return self._store.put(version, buckets, values, outbox.to_bytes(), base, attempt)

    def _deliver(self, tables: Tables, known: Known) -> None:
        """Give the quarantine table the rows that belong to Silver's last commit; it has not got them."""
        outbox = known.outbox
        versions = {app_id: at for app_id, at in ((COVERED, known.version), (STATE, known.attempt)) if at is not None}
        outbox.deliver(tables.quarantine, versions)
        if outbox.replaces is None:
            self._copies.refused(outbox.rows)
        else:
            self._copies.clear()


def run(settings: Settings, *, until_caught_up: bool = False) -> None:
    """Keep Silver up to date with Bronze until stopped, or until it has all that Bronze has."""
    with running("silver", settings) as stage:
        lake, interval_s = Lake(settings.lake), settings.silver.interval_s
        registry = load_registry(settings.registry)
        prepare(registry, settings.detection)
        silver = Silver(settings, lake, registry, stage.beat)
        for rule in Rule:
            metrics.QUARANTINED.labels(rule=rule.value)

        def cycle() -> int:
            told = False
            while True:
                rows = retrying(settings, "refine what is new in Bronze", lambda: silver.cycle(datetime.now(UTC)))
                if not silver.held(datetime.now(UTC)):
                    return rows
                if not told:
                    log.info("a rebuild is at work: waiting for it")
                    told = True
                if stage.wait(interval_s):
                    return 0

        if source_exists(stage, settings, interval_s, lambda: lake.open(BRONZE_READINGS), until_caught_up):
            poll(stage, interval_s, cycle, until_caught_up)
