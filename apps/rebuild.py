"""`pipeline rebuild silver|gold`: days made again from the layer before, and swapped in one commit a table.

Silver: Bronze is refined from its beginning, in the order of the stream, up to the version that Silver covers, with
the registry as it is now (which knows since when each of it holds). Rows of the range that are not as that gives them
are replaced in silver/readings; quarantine follows through the outbox; the state becomes that of the replay. So the
range is what a build from scratch would have made of it, and what comes later is scored as after one. Rows outside
the range keep their old judgement. A row that is as it should be stays, with the lineage it has: where nothing is to
be changed, nothing of the tables is.

While it works, a running silver stage waits: the rebuild holds it by a commit of silver/readings, for a minute at a
time, or for as long again as it has taken so far. That is for politeness only: whoever commits second is refused,
with or without a hold.

Sensors do not depend on each other, nor do windows: with an engine other than this process their parts are made side
by side, each from the tables as they are then. There is still one commit, of this process; and where Silver moved on
while parts were read, that one is refused.
"""

import json
import secrets
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from functools import partial

import polars as pl
import typer

from apps.gold import tables as gold_tables
from apps.silver import Silver, Tables
from contracts.registry import Registry, load_registry
from contracts.tables import SILVER_QUARANTINE, SILVER_READINGS, Rule
from pipeline.core.refine import State
from pipeline.engine import HERE, Beat, Engine
from pipeline.errors import BadInput, PipelineError, TerminalError
from pipeline.gold.recompute import Recomputed, recompute
from pipeline.lake.delta import Lake, translated
from pipeline.lake.layout import scan
from pipeline.settings import Settings
from pipeline.silver import rebuild
from pipeline.silver.copies import COLUMNS
from pipeline.silver.history import RAW
from pipeline.silver.outbox import Outbox
from pipeline.silver.rebuild import Differences
from pipeline.silver.retrace import Piece, retraced
from pipeline.silver.statestore import bucket_of
from pipeline.stage import retrying

HOLD = timedelta(seconds=60)
LONGEST_HOLD = timedelta(minutes=10)
"""So long a stage waits at most for a rebuild that was killed."""


@dataclass(frozen=True)
class Selection:
    """Which part of Silver: event dates `first` to `last`, both included, of some sensors, or of all (None)."""

    first: date = date.min
    last: date = date.max
    sensors: Collection[str] | None = None


@dataclass(frozen=True)
class Rebuilt:
    """What a rebuild of Silver changed, or would: rows, by where they were and where they are now."""

    readings: int
    """Replayed."""
    released: dict[str, int]
    """quarantine -> readings, by the rule that they broke before."""
    quarantined: dict[str, int]
    """readings -> quarantine, by the rule that they break now."""
    rescored: int
    """In silver/readings before and after, not the same."""
    judged_anew: int
    """In quarantine before and after, not the same."""
    restored: int
    """In neither before."""
    superfluous: int
    """In one of them before, though Bronze does not give them."""


def silver(
    settings: Settings,
    registry: Registry,
    selection: Selection,
    *,
    dry_run: bool,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    engine: Engine = HERE,
) -> Rebuilt:
    """Make the selected part of Silver what a build from scratch gives. Raises Conflict when other writers of Silver
    were first, again and again, NotSetUp where there is no Silver, and as `apps.silver.Silver.opened`.
    """
    tried: dict[int, Rebuilt] = {}
    return retrying(
        settings, "rebuild Silver", lambda: _silver(settings, registry, selection, dry_run, clock, engine, tried)
    )


def _silver(
    settings: Settings,
    registry: Registry,
    selection: Selection,
    dry_run: bool,
    clock: Callable[[], datetime],
    engine: Engine,
    tried: dict[int, Rebuilt],
) -> Rebuilt:
    """`tried`: what each attempt to commit would change."""
    lake = Lake(settings.lake)
    lake.open(SILVER_READINGS)  # only the stage creates it
    worker, found = Silver(settings, lake, registry), _Found(State.empty(settings.detection))
    with _holding(worker, clock, dry_run=dry_run) as hold:
        lost = worker.lost()
        if lost is not None and not dry_run:
            worker.adopt(lost)
        hold()
        if dry_run:
            tables, version = worker.tables()
            version = lost if version is None else version
        else:
            tables, known = worker.opened(clock())
            version = known.version
            if known.attempt in tried:  # it was committed, whatever went wrong then
                worker.hold(clock())
                return tried[known.attempt]
        if version is None:
            return found.summary()
        work = partial(_replayed, settings, registry, selection, version)
        for part in engine.map(work, _parts(tables, selection, engine.workers), hold):
            hold()
            found.add(part)
        if dry_run:
            return found.summary()
        hold()
        now, readings, outbox = clock(), None, Outbox()
        if any(map(len, found.readings)):
            readings = rebuild.replacement(tables.readings, SILVER_READINGS, found.changes(worker, now, 0))
        if any(map(len, found.quarantine)):
            where, rows = rebuild.replacement(tables.quarantine, SILVER_QUARANTINE, found.changes(worker, now, 1))
            outbox = Outbox(rows, where)
        attempt = secrets.randbits(62)
        tried[attempt] = found.summary()
        worker.swap(attempt, found.state, readings, outbox)
        return tried[attempt]


def _parts(tables: Tables, selection: Selection, count: int) -> list[Collection[str] | None]:
    """The selected sensors in so many buckets. One part is the selection as it is: None for all sensors."""
    if count == 1:
        return [selection.sensors]
    sensors = selection.sensors
    if sensors is None:
        with translated(f"list the sensors of {tables.bronze.table_uri}"):
            found = scan(tables.bronze).select(pl.col("sensor_id").unique()).collect(engine="streaming")
        sensors = found["sensor_id"].to_list()
    buckets: dict[int, list[str]] = {}
    for sensor in sensors:
        buckets.setdefault(bucket_of(sensor, count), []).append(sensor)
    return [buckets[bucket] for bucket in sorted(buckets)]


def _replayed(
    settings: Settings,
    registry: Registry,
    selection: Selection,
    version: int,
    sensors: Collection[str] | None,
    beat: Beat,
) -> "_Found":
    """What is different of these sensors, at this version of Bronze. Opens the tables by itself: it may be another
    machine."""
    reader, found = Silver(settings, Lake(settings.lake), registry), _Found(State.empty(settings.detection))
    tables, _ = reader.tables()
    for piece in retraced(
        tables.bronze,
        version,
        reader.copies,
        registry,
        settings.detection,
        max_rows=settings.silver.max_rows,
        missing=found.missing,
        sensors=sensors,
    ):
        beat()
        found.compare(piece, selection, tables)
    return found


@contextmanager
def _holding(worker: Silver, clock: Callable[[], datetime], *, dry_run: bool) -> Iterator[Callable[[], None]]:
    """What to call first, and in the course of the work, so that stages wait; they go on where it ends in vain."""
    started = until = clock()

    def hold() -> None:
        nonlocal until
        now = clock()
        span = min(max(HOLD, now - started), LONGEST_HOLD)
        if not dry_run and until - now < span / 2:
            until = worker.hold(now + span)

    try:
        yield hold
    except (KeyboardInterrupt, TerminalError):
        with suppress(PipelineError):  # it is over by itself, too
            worker.hold(clock())
        raise


class _Found:
    """What a rebuild found to be different, piece by piece; `readings` and `quarantine` by table."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.readings: list[Differences] = []
        self.quarantine: list[Differences] = []
        self.missing: list[pl.DataFrame] = []
        """First readings (pipeline.silver.copies.COLUMNS) that neither table has."""
        self._replayed = 0

    def add(self, part: "_Found") -> None:
        """What was found of other sensors."""
        self.state = State.merge([self.state, part.state])
        self.readings += part.readings
        self.quarantine += part.quarantine
        self._replayed += part._replayed

    def compare(self, piece: Piece, selection: Selection, tables: Tables) -> None:
        """Hold the tables' rows of a piece, as far as they are selected, against what they should be."""
        self._replayed, self.state = self._replayed + len(piece.readings), piece.state
        first, last = selection.first, selection.last
        there = [
            rebuild.read(table, definition, piece.readings, first, last)
            for table, definition in ((tables.readings, SILVER_READINGS), (tables.quarantine, SILVER_QUARANTINE))
        ]
        sources = pl.concat([rows.select(*RAW, "source_file") for rows in there]).unique(RAW)
        should = [
            rows.filter(pl.col("event_date").is_between(first, last)).join(sources, on=RAW, how="left")
            for rows in (piece.refined.valid, piece.refined.quarantined)
        ]
        self.readings.append(rebuild.differences(there[0], should[0], SILVER_READINGS))
        self.quarantine.append(rebuild.differences(there[1], should[1], SILVER_QUARANTINE))
        firsts = (should[0], should[1].filter(pl.col("rule") != Rule.CONFLICT))
        absent = pl.concat([rows.filter(pl.col("source_file").is_null()).select(RAW) for rows in firsts])
        self.missing.append(piece.readings.join(absent, on=RAW, how="semi").select(COLUMNS))

    def changes(self, worker: Silver, now: datetime, table: int) -> Differences:
        """All differences of a table, with the lineage of what is added."""
        parts = (self.readings, self.quarantine)[table]
        added = worker.dated(pl.concat([part.added for part in parts]), now)
        return Differences(pl.concat([part.removed for part in parts]), added)

    def summary(self) -> Rebuilt:
        """Where the rows that are not as they should be were, and where they belong."""
        left, out = _keys(self.readings, "removed"), _keys(self.quarantine, "removed")
        came, back = _keys(self.readings, "added"), _keys(self.quarantine, "added")
        return Rebuilt(
            readings=self._replayed,
            released=_by_rule(out.join(came, on=RAW, how="semi")),
            quarantined=_by_rule(back.join(left, on=RAW, how="semi")),
            rescored=len(left.join(came, on=RAW, how="semi")),
            judged_anew=len(out.join(back, on=RAW, how="semi")),
            restored=len(pl.concat([came, back]).join(pl.concat([left, out]), on=RAW, how="anti")),
            superfluous=len(pl.concat([left, out]).join(pl.concat([came, back]), on=RAW, how="anti")),
        )


def _keys(parts: list[Differences], side: str) -> pl.DataFrame:
    frames = [pl.DataFrame(schema={**SILVER_READINGS.schema, "rule": pl.String}).select(*RAW, "rule")]
    for part in parts:
        rows: pl.DataFrame = getattr(part, side)
        rule = pl.col("rule") if "rule" in rows.columns else pl.lit(None, pl.String).alias("rule")
        frames.append(rows.select(*RAW, rule))
    return pl.concat(frames)


def _by_rule(rows: pl.DataFrame) -> dict[str, int]:
    return dict(rows["rule"].value_counts().sort("rule").iter_rows())


def gold(
    settings: Settings, registry: Registry, first: date, last: date, *, dry_run: bool, engine: Engine = HERE
) -> dict[str, Recomputed]:
    """Make the days `first` to `last` (both included) of the Gold tables what their sources give; by table.

    Raises as `pipeline.gold.recompute.recompute`.
    """
    lake, skew = Lake(settings.lake), timedelta(seconds=settings.ingest.clock_skew_s)
    most = settings.gold.max_rows
    return {
        derived.target.path: retrying(
            settings,
            f"rebuild {derived.target.path}",
            partial(recompute, lake, derived, first, last, max_rows=most, skew=skew, dry_run=dry_run, engine=engine),
        )
        for derived in gold_tables(registry)
    }


def run_silver(
    settings: Settings, *, first: date | None, last: date | None, dry_run: bool, as_json: bool, engine: Engine = HERE
) -> None:
    """Rebuild Silver and say what changed."""
    selection = Selection(*_days(first, last))
    done = silver(settings, load_registry(settings.registry), selection, dry_run=dry_run, engine=engine)
    typer.echo(json.dumps(asdict(done)) if as_json else told(done, dry_run=dry_run))


def run_gold(
    settings: Settings, *, first: date | None, last: date | None, dry_run: bool, as_json: bool, engine: Engine = HERE
) -> None:
    """Rebuild Gold and say what changed."""
    registry, days = load_registry(settings.registry), _days(first, last)
    done = gold(settings, registry, *days, dry_run=dry_run, engine=engine)
    if as_json:
        typer.echo(json.dumps({path: asdict(each) for path, each in done.items()}))
        return
    verb = "would be replaced" if dry_run else "replaced"
    for path, each in done.items():
        typer.echo(
            f"{path}: {each.windows:,} windows computed, {each.changed:,} were different; {each.days} days {verb}"
        )


def _days(first: date | None, last: date | None) -> tuple[date, date]:
    days = first or date.min, last or date.max
    if days[0] > days[1]:
        raise BadInput(f"The range ends before it begins: --from {first} --to {last}.", "Both days are included.")
    return days


def told(done: Rebuilt, *, dry_run: bool) -> str:
    """A rebuild of Silver, for people."""
    lines = [f"{done.readings:,} readings of Bronze replayed"]
    for rule, rows in done.released.items():
        lines.append(f"released from quarantine: {rows:,} ({rule})")
    for rule, rows in done.quarantined.items():
        lines.append(f"from Silver to quarantine: {rows:,} ({rule})")
    counts = {
        "scored anew": done.rescored,
        "in quarantine for another reason or in other words": done.judged_anew,
        "restored, they were in neither table": done.restored,
        "removed, Bronze does not give them": done.superfluous,
    }
    lines += [f"{what}: {rows:,}" for what, rows in counts.items() if rows]
    if len(lines) == 1:
        lines.append("everything is as it should be: nothing changed")
    elif dry_run:
        lines.append("this was a dry run: nothing changed")
    return "\n".join(lines)
