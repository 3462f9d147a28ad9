"""The auditor itself, proven: it has nothing to say of a whole pipeline, and finds whatever is changed in it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pyarrow.fs
import pytest
from deltalake import DeltaTable, write_deltalake

from apps import bronze, gold, ingest, load, silver, warehouse
from pipeline import settings as config
from pipeline.broker import kafka
from pipeline.settings import Settings
from tests import oracle
from tests.feed import Feed, Sender, days_ago
from tests.oracle import Evidence, Findings, Place, Row, judge

pytestmark = [pytest.mark.kafka, pytest.mark.s3, pytest.mark.postgres]

MESSAGES = 500


@pytest.fixture
def piped(settings: Settings, tmp_path: Path) -> Settings:
    """A feed that went the whole way, into a lake on the disk."""
    settings = settings.model_copy(update={"lake": config.Lake(uri=str(tmp_path / "lake"))})
    kafka.create_topics(settings)
    warehouse.init(settings)
    sender = Sender(settings.kafka.bootstrap_servers, kafka.topic(settings, kafka.RAW), Feed(1, days_ago(2)), 0)
    sender.send(MESSAGES)
    sender.finish()
    for stage in (ingest, bronze, silver, gold, load):
        stage.run(settings, until_caught_up=True)
    return settings


def gather(settings: Settings) -> Evidence:
    broker, where = settings.kafka.bootstrap_servers, settings.warehouse
    rows = oracle.tables(pyarrow.fs.LocalFileSystem(), settings.lake.uri)
    return Evidence(
        raw=oracle.raw_messages(broker, kafka.topic(settings, kafka.RAW)),
        dead=oracle.dead_letters(broker, kafka.topic(settings, kafka.DEAD_LETTERS)),
        bronze=rows["bronze/readings"],
        dead_letters=rows["bronze/dead_letters"],
        silver=rows["silver/readings"],
        quarantine=rows["silver/quarantine"],
        gold={name: rows[f"gold/{name}"] for name in oracle.GOLD},
        warehouse=oracle.facts(f"host={where.host} port={where.port} user={where.user} dbname={where.database}"),
    )


Spoil = Callable[[Evidence], Any]


def _first(evidence: Evidence) -> Place:
    return Place(evidence.bronze[0]["raw_partition"], evidence.bronze[0]["raw_offset"])


def _condemn(evidence: Evidence) -> None:
    evidence.dead.append((_first(evidence), evidence.raw[_first(evidence)]))
    evidence.bronze.pop(0)


def _cut(evidence: Evidence) -> None:
    number = next(number for number, (_, letter) in enumerate(evidence.dead) if letter.value)
    place, letter = evidence.dead[number]
    evidence.dead[number] = place, letter._replace(value=(letter.value or b"")[:-1])


def _repeated(evidence: Evidence) -> dict[str, int]:
    """The place of a copy, which Silver must not have."""
    kept = {(row["raw_partition"], row["raw_offset"]) for row in [*evidence.silver, *evidence.quarantine]}
    places = [(row["raw_partition"], row["raw_offset"]) for row in evidence.bronze]
    return dict(zip(("raw_partition", "raw_offset"), next(each for each in places if each not in kept), strict=True))


IN_MEMORY: dict[str, tuple[Spoil, str]] = {
    "a raw message that nobody has": (lambda e: e.raw.update({Place(0, 10**6): e.raw[Place(0, 0)]}), "lost: 1"),
    "a row of Bronze is gone": (lambda e: e.bronze.pop(), "lost: 1"),
    "a row of Bronze is there twice": (lambda e: e.bronze.append(e.bronze[7]), "twice: 1"),
    "a dead letter is gone": (lambda e: e.dead.pop(), "lost: 1"),
    "a dead letter is there twice": (lambda e: e.dead.append(e.dead[3]), "twice: 1"),
    "a reading is a dead letter too": (lambda e: e.dead.append((_first(e), e.raw[_first(e)])), "twice: 1"),
    "a good reading is a dead letter": (_condemn, "is a dead letter"),
    "a dead letter lost a byte": (_cut, "other bytes"),
    "a dead letter is not in the lake": (lambda e: e.dead_letters.pop(), "does not have it once"),
    "a row of no message": (lambda e: e.bronze.append(e.bronze[0] | {"raw_offset": 10**7}), "is no raw message"),
    "two rows at one place of a batch": (lambda e: e.bronze[0].update(batch_row=e.bronze[1]["batch_row"]), "rows at"),
    **{
        f"Bronze: another {name}": (lambda e, n=name, v=value: e.bronze[5].update({n: v}), f"{name} is")
        for name, value in {"value": 7.25, "unit": "K", "event_id": "x", "location": "y", "sensor_id": "z"}.items()
    },
    "Bronze: a moved event time": (lambda e: e.bronze[5].update(timestamp=e.bronze[9]["timestamp"]), "timestamp is"),
    "a row of Silver is gone": (lambda e: e.silver.pop(), "silver: "),
    "a row of Silver is there twice": (lambda e: e.silver.append(e.silver[2]), "silver: "),
    "Silver: another value": (lambda e: e.silver[4].update(value=e.silver[4]["value"] + 1e-6), "silver: "),
    "a duplicate in Silver": (lambda e: e.silver.append(e.silver[0] | _repeated(e)), "silver: "),
    "a quarantined row is gone": (lambda e: e.quarantine.pop(), "silver: "),
    "a quarantined row with another rule": (lambda e: e.quarantine[0].update(rule="late"), "silver: "),
    "another flag": (lambda e: e.silver[4].update(is_anomaly=not e.silver[4]["is_anomaly"]), "anomaly_count"),
    **{
        f"{layer}: {table}: {what}": (lambda e, a=layer, t=table, s=spoil: s(getattr(e, a)[t]), f"{layer}: {table}")
        for layer in ("gold", "warehouse")
        for table in oracle.GOLD
        for what, spoil in {
            "a row is gone": lambda rows: rows.pop(),
            "a row is there twice": lambda rows: rows.append(rows[0]),
            "another count": lambda rows: rows[0].update(count=rows[0]["count"] + 1),
            "another mean": lambda rows: rows[-1].update(avg=rows[-1]["avg"] + 1e-5),
            "another health": lambda rows: rows[0].update(health_pct=rows[0]["health_pct"] / 2 + 1),
        }.items()
    },
}  # fmt: skip


def _copied(evidence: Evidence) -> Evidence:
    def rows(table: list[Row]) -> list[Row]:
        return [dict(row) for row in table]

    return Evidence(
        dict(evidence.raw),
        list(evidence.dead),
        *map(rows, (evidence.bronze, evidence.dead_letters, evidence.silver, evidence.quarantine)),
        gold={name: rows(table) for name, table in evidence.gold.items()},
        warehouse={name: rows(table) for name, table in (evidence.warehouse or {}).items()},
    )


def _delete_one(table: DeltaTable) -> None:
    row = table.to_pyarrow_table().to_pylist()[0]
    table.delete(f"raw_partition = {row['raw_partition']} AND raw_offset = {row['raw_offset']}")


def _double_one(table: DeltaTable) -> None:
    write_deltalake(table, table.to_pyarrow_table().slice(3, 1), mode="append")


def _change_one(table: DeltaTable) -> None:
    row = table.to_pyarrow_table().to_pylist()[0]
    table.update(
        predicate=f"raw_partition = {row['raw_partition']} AND raw_offset = {row['raw_offset']}",
        updates={"value": "value + 1"},
    )


IN_BRONZE: dict[str, tuple[Callable[[DeltaTable], None], Callable[[Findings], bool]]] = {
    "deleted": (_delete_one, lambda found: len(found.lost) == 1 and not found.twice),
    "doubled": (_double_one, lambda found: len(found.twice) == 1 and not found.lost),
    "changed": (_change_one, lambda found: "value is" in str(found) and not found.lost and not found.twice),
}


@pytest.mark.thorough
def test_the_auditor_has_nothing_to_say_of_a_whole_pipeline_and_finds_whatever_is_changed(piped: Settings) -> None:
    evidence = gather(piped)
    assert len(evidence.raw) == MESSAGES
    assert len(evidence.bronze) > len(evidence.silver) > 350
    assert evidence.dead
    assert {row["rule"] for row in evidence.quarantine} == {"conflict", "unknown_unit", "physical_range"}
    assert not judge(evidence), str(judge(evidence))

    for what, (spoil, named) in IN_MEMORY.items():
        spoiled = _copied(evidence)
        spoil(spoiled)
        assert named in str(judge(spoiled)), what

    address = piped.lake.uri + "/bronze/readings"
    shutil.copytree(address, piped.lake.uri + "/whole")
    for what, (spoil_table, found) in IN_BRONZE.items():
        spoil_table(DeltaTable(address))
        assert found(judge(gather(piped))), what
        shutil.rmtree(address)
        shutil.copytree(piped.lake.uri + "/whole", address)
    assert not judge(gather(piped))

    where = piped.warehouse
    with psycopg.connect(host=where.host, port=where.port, user=where.user, dbname=where.database) as connection:
        connection.execute("UPDATE analytics.fact_sensor_5min SET max = max + 1 WHERE sensor_id = 'pressure-2'")
    assert "warehouse: sensor_5min" in str(judge(gather(piped)))
