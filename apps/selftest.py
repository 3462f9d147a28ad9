"""`pipeline warehouse selftest`: prove on the warehouse itself what tests can only show on a stand-in.

Everything happens in transactions that are rolled back; only files of exports stay, until `pipeline lake vacuum`.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import polars as pl
import typer
from psycopg import sql

from contracts.registry import load_registry
from contracts.warehouse import FACTS, SCHEMA
from pipeline.errors import ContractBroken, PipelineError
from pipeline.lake.delta import Lake
from pipeline.settings import Settings
from pipeline.warehouse import checksum, migrations, plan
from pipeline.warehouse.facts import Job, Loaded, Warehouse, shown
from pipeline.warehouse.plan import Scope, storable

_FACT = FACTS[0]
_WINDOW = datetime(1971, 1, 1, tzinfo=UTC)
"""Of the probe's rows: a window that no device's clock is in."""


@dataclass(frozen=True)
class Step:
    """A step of the self-test: what it found, or what went wrong."""

    what: str
    well: bool
    found: str


class _RolledBack(Exception):
    """Ends the probe's transaction."""


def run(settings: Settings, *, as_json: bool, warehouse: Warehouse | None = None) -> int:
    """Print the steps; 0 all well, 1 one was not. Nothing that it does is committed."""
    lake = Lake(settings.lake)
    with closing(warehouse or Warehouse(settings.warehouse, lake)) as opened:
        steps = list(_steps(settings, opened))
    well = all(step.well for step in steps)
    if as_json:
        typer.echo(json.dumps({"well": well, "steps": [asdict(step) for step in steps]}))
    else:
        for step in steps:
            typer.echo(f"{'ok   ' if step.well else 'WRONG'}  {step.what}: {step.found}")
    return 0 if well else 1


def _steps(settings: Settings, warehouse: Warehouse) -> Iterator[Step]:
    probe = _Probe(settings, warehouse)
    for what, step in (
        ("connect", probe.connect),
        ("schema", probe.schema),
        ("load, twice, in one transaction", probe.load),
        ("a file of other columns is refused", probe.refuse),
        ("nothing of it is left", probe.nothing),
    ):
        done = _step(what, step)
        yield done
        if not done.well:
            return


def _step(what: str, step: Callable[[], str]) -> Step:
    try:
        return Step(what, True, step())
    except PipelineError as error:
        return Step(what, False, str(error))
    except AssertionError as error:
        return Step(what, False, str(error))


class _Probe:
    """Rows with the extremes of every type, in a window of their own."""

    def __init__(self, settings: Settings, warehouse: Warehouse) -> None:
        self._warehouse = warehouse
        self._registry = load_registry(settings.registry)
        self._sensor = f"selftest-{uuid4().hex}"
        self._rows = probe_rows(self._sensor)

    def connect(self) -> str:
        with self._warehouse.transaction() as cursor:
            row = cursor.execute("SELECT version(), current_user").fetchone()
            assert row is not None
            encrypted = cursor.connection.pgconn.ssl_in_use
        return f"{row[0]}; user {row[1]}; {'over TLS' if encrypted else 'NOT over TLS'}"

    def schema(self) -> str:
        status = migrations.status(self._warehouse)
        assert status.well, "not as its contract says: `pipeline warehouse status` tells more"
        return f"{len(status.applied)} migrations, as its contract says"

    def load(self) -> str:
        rows = self._rows
        try:
            with self._warehouse.transaction() as cursor:
                self._warehouse.run(cursor, self._warehouse.using.lock())
                basis = shown(cursor, _FACT)
                target = Loaded("selftest", (basis.version if basis else 0) + 1)
                job = Job(_FACT, Scope(windows=rows[_FACT.window].unique()), basis, target)
                for _ in range(2):
                    staged = self._warehouse.using.prepare(_FACT.relation, [rows])
                    self._warehouse.replace(cursor, job, staged, self._registry, datetime.now(UTC))
                found = cursor.execute(self._mine()).fetchall()
                assert shown(cursor, _FACT) == target, "the ledger does not say what was loaded"
                raise _RolledBack
        except _RolledBack:
            pass
        kept = pl.DataFrame(found, schema=_FACT.table.schema, orient="row")
        assert len(kept) == len(rows), f"{len(rows)} rows were loaded twice, {len(kept)} are there"
        assert checksum.total(kept) == checksum.total(storable(rows)), "the rows that came back are others"
        return f"{len(rows)} rows came back bit for bit"

    def refuse(self) -> str:
        """COPY goes by place: a file that lacks a column must not be loaded, and Redshift has to say why."""
        if self._warehouse.using.dialect != "redshift":
            return "not asked: rows are streamed by name"
        whole = _FACT.relation
        lacking = replace(whole, schema=pl.Schema(list(whole.schema.items())[:-1]))
        try:
            with self._warehouse.transaction() as cursor:
                self._warehouse.run(cursor, plan.stage(whole, self._warehouse.using.dialect))
                self._warehouse.using.prepare(lacking, [self._rows]).copy(cursor)
                raise _RolledBack
        except ContractBroken as refused:
            return " ".join(refused.what.split())
        except _RolledBack:
            raise AssertionError("it was loaded") from None

    def nothing(self) -> str:
        with self._warehouse.transaction() as cursor:
            left = cursor.execute(self._mine()).fetchall()
        assert not left, f"{len(left)} rows of the probe are there"
        return f"no row of {self._sensor} in {SCHEMA}.{_FACT.name}"

    def _mine(self) -> sql.Composed:
        columns = sql.SQL(", ").join(map(sql.Identifier, _FACT.table.schema))
        return sql.SQL("SELECT {} FROM {} WHERE sensor_id = {}").format(
            columns, plan.name(_FACT.name), sql.Literal(self._sensor)
        )


def probe_rows(sensor_id: str) -> pl.DataFrame:
    """Rows of the fact table that a lossy step would change: the largest and smallest numbers, nulls, microseconds,
    texts as long as they may be, in bytes too."""
    usual = {
        "sensor_id": sensor_id,
        "sensor_type": "temperature",
        "location": "north",
        "window_start": _WINDOW,
        "event_date": _WINDOW.date(),
        "count": 1,
        "avg": 0.1 + 0.2,
        "min": -1.7976931348623157e308,
        "max": 1.7976931348623157e308,
        "anomaly_count": 0,
        **dict.fromkeys(("p50", "p95", "p99", "sum", "m2"), 5e-324),
    }
    rows = [
        usual,
        usual | {"location": "\U0001f321" * 128, "count": 2**63 - 1, "std": 0.0, "health_pct": 100.0 / 3},
        usual | {"location": 'it\'s \\ "odd",\t|', "expected_count": 5, "reported_count": 0},
        usual | {"window_start": _WINDOW + timedelta(microseconds=1)},
    ]
    return pl.DataFrame(rows, schema=_FACT.table.schema)
