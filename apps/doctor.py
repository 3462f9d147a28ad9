"""`pipeline doctor`: is each part there and well, and what to do if not.

Three marks: ok; absent (what a stage makes when it first runs: no fault); wrong. Exit 1 when anything is wrong.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Literal

import typer
from rich.console import Console
from rich.text import Text

from contracts.registry import RegistryError, load_registry
from contracts.tables import TABLES, Table
from contracts.warehouse import FACTS, SCHEMA, Fact
from pipeline.broker import kafka, offsets
from pipeline.errors import NotSetUp, PipelineError
from pipeline.lake.delta import Lake
from pipeline.lake.layout import schema_version
from pipeline.settings import Settings
from pipeline.stage import retrying
from pipeline.warehouse.facts import Warehouse

Mark = Literal["ok", "absent", "wrong"]

GROUPS = {
    "ingest": (kafka.RAW,),
    "detect": (kafka.READINGS,),
    "bronze": (kafka.READINGS, kafka.DEAD_LETTERS, kafka.ANOMALIES),
}
"""Which topics each consumer group reads."""

_COORDINATOR_S = 3.0
"""A broker that has just started needs a moment until it knows who coordinates a group."""


@dataclass(frozen=True)
class Check:
    """One line of the checklist."""

    what: str
    mark: Mark
    found: str
    todo: str = ""


def run(settings: Settings, *, as_json: bool) -> int:
    """Print the checklist; 0 all well, 1 something is wrong."""
    checks = []
    console = Console()
    for check in examine(settings):
        checks.append(check)
        if not as_json:
            _show(console, check)
    well = all(check.mark != "wrong" for check in checks)
    if as_json:
        typer.echo(json.dumps({"well": well, "checks": [asdict(check) for check in checks]}, ensure_ascii=False))
    return 0 if well else 1


def examine(settings: Settings) -> Iterator[Check]:
    """Every check, in the way of a reading. Where a system does not answer, its parts are not asked for."""
    yield _registry(settings)
    yield from _kafka(settings)
    yield from _lake(settings)
    yield from _warehouse(settings)


def _check(what: str, look: Callable[[], str], absent: type[PipelineError] | tuple[()] = ()) -> Check:
    """The outcome of `look`, which tells what it found; an `absent` error is no fault."""
    try:
        return Check(what, "ok", look())
    except PipelineError as error:
        return Check(what, "absent" if isinstance(error, absent) else "wrong", error.what, error.todo)


def _registry(settings: Settings) -> Check:
    what = f"sensor registry {settings.registry or '(the one that comes along)'}"
    try:
        registry = load_registry(settings.registry)
    except RegistryError as error:
        return Check(what, "wrong", str(error), "Correct it, or point PIPELINE_REGISTRY at another.")
    return Check(what, "ok", f"version {registry.version}, types {', '.join(sorted(registry.sensor_types))}")


def _kafka(settings: Settings) -> Iterator[Check]:
    counts: dict[str, int] = {}

    def broker() -> str:
        counts.update(kafka.check(settings))
        return f"answers, {len(counts)} topics"

    reached = _check(f"Kafka at {settings.kafka.bootstrap_servers}", broker)
    yield reached
    if reached.mark != "ok":
        return
    for definition in kafka.TOPICS:
        name = kafka.topic(settings, definition.name)

        def described(name: str = name, short: str = definition.name) -> str:
            kafka.check_topics(settings, short)
            return f"{counts[name]} partitions"

        yield _check(f"topic {name}", described)
    for stage, names in GROUPS.items():
        for name in names:
            if kafka.topic(settings, name) in counts:
                yield _group(settings, stage, name)


def _group(settings: Settings, stage: str, name: str) -> Check:
    """Has the group begun, and does Kafka still have what it has yet to read?"""
    group, topic = settings.group(stage), kafka.topic(settings, name)
    what = f"consumer group {group} on {topic}"
    patient = settings.model_copy(update={"retry_s": _COORDINATOR_S})
    try:
        done = retrying(patient, f"read {group}", lambda: offsets.committed(settings, group, name))
        low, end = offsets.low_offsets(settings, name), offsets.end_offsets(settings, name)
    except PipelineError as error:
        return Check(what, "wrong", error.what, error.todo)
    if not done:
        return Check(what, "absent", "has not begun", f"Start `pipeline {stage}`.")
    if lost := {p: low[p] - offset for p, offset in done.items() if offset < low.get(p, 0)}:
        return Check(
            what,
            "wrong",
            f"Kafka deleted messages before they were read: {_by_partition(lost)}",
            f"Start `pipeline {stage}` and see why it was down for longer than the topic's retention.",
        )
    if ahead := {p: offset - end[p] for p, offset in done.items() if offset > end.get(p, 0)}:
        return Check(
            what,
            "wrong",
            f"the group is ahead of the topic, which was recreated: {_by_partition(ahead)}",
            "They belong together, with the lake: begin with an empty lake and another PIPELINE_KAFKA__GROUP_PREFIX.",
        )
    behind = sum(end[partition] - done.get(partition, low[partition]) for partition in end)
    return Check(what, "ok", f"{behind:,} offsets behind")


def _by_partition(counts: Mapping[int, int]) -> str:
    return ", ".join(f"{count:,} offsets of partition {partition}" for partition, count in sorted(counts.items()))


def _lake(settings: Settings) -> Iterator[Check]:
    lake = Lake(settings.lake)

    def store() -> str:
        lake.require_conditional_put()
        return "can be written, keeps two writers apart"

    reached = _check(f"lake {settings.lake.uri} at {settings.lake.endpoint_url or 'AWS'}", store)
    yield reached
    if reached.mark != "ok":
        return
    for table in TABLES:

        def opened(table: Table = table) -> str:
            delta = lake.open(table)
            return f"version {delta.version()}, schema version {schema_version(delta)}"

        yield _check(f"table {table.path}", opened, absent=NotSetUp)


def _warehouse(settings: Settings) -> Iterator[Check]:
    address = settings.warehouse
    with closing(Warehouse(address)) as warehouse:
        for fact in FACTS:

            def shown(fact: Fact = fact) -> str:
                loaded = warehouse.loaded(fact)
                return f"shows version {loaded.version} of {fact.table.path}" if loaded else "nothing loaded yet"

            where = f"{address.host}:{address.port}, {address.database}"
            check = _check(f"warehouse {where}: {SCHEMA}.{fact.name}", shown)
            yield check
            if check.mark != "ok":
                return


def _show(console: Console, check: Check) -> None:
    mark = {"ok": ("ok    ", "green"), "absent": ("absent", "yellow"), "wrong": ("WRONG ", "bold red")}[check.mark]
    console.print(Text.assemble(mark, f"  {check.what}: {check.found}"), soft_wrap=True)
    if check.todo and check.mark != "ok":
        console.print(Text(f"        {check.todo}"), soft_wrap=True)
