"""`pipeline reconcile`: prove that every reading is where it belongs, name what is not, and repair what can be."""

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import typer
from rich.console import Console
from rich.table import Table as RichTable

from apps import backfill
from apps.audit import STEPS, Audit
from apps.keeping import Deadline
from apps.notes import note
from contracts.tables import QUALITY_BOOKS
from pipeline.broker import spans
from pipeline.errors import PipelineError
from pipeline.lake.delta import Lake
from pipeline.monitoring import books
from pipeline.monitoring.books import Books, Entry
from pipeline.monitoring.notes import books_row
from pipeline.settings import Settings

_SHOWN = 20
"""Findings of a kind that the readable report shows; --json has them all."""


def run(
    settings: Settings,
    *,
    wait_s: float,
    as_json: bool,
    since: datetime | None = None,
    repair: bool = False,
    dry_run: bool = False,
) -> int:
    """Print the books; 0 balanced, 1 not, 2 cannot tell. With `repair` the raw messages that Bronze lacks are
    published once more, and the books are those of afterwards. They are noted in quality/books, where that can be.
    """
    run_at, began = datetime.now(UTC), time.monotonic()
    result = reconcile(settings, wait_s, since)
    repaired = None
    if repair and result.entries[0].gaps:
        gaps = spans.of_findings(result.entries[0].gaps)
        repaired = backfill.repair(settings, gaps, wait_s=wait_s, dry_run=dry_run)
        if repaired.published:
            result = reconcile(settings, wait_s, since)
    note(Lake(settings.lake), QUALITY_BOOKS, books_row(result, run_at, time.monotonic() - began, since))
    if as_json:
        told = {} if repaired is None else {"repaired": repaired.to_dict()}
        typer.echo(json.dumps(result.to_dict() | told, ensure_ascii=False))
    else:
        show(result)
        if repaired is not None:
            backfill.show(repaired)
    return result.exit_code


def reconcile(settings: Settings, wait_s: float = 0.0, since: datetime | None = None) -> Books:
    """Compare the layers, waiting for them `wait_s` seconds in all. What cannot be reached is in the books. With
    `since` only what the broker took from then on is judged, at a cost that does not grow with what was before.
    """
    audit = Audit(settings, Deadline(wait_s), since)
    return Books([_told(step, method) for step, method in zip(STEPS, audit.steps(), strict=True)])


def _told(step: str, method: Callable[[], Entry]) -> Entry:
    try:
        return method()
    except PipelineError as error:
        return Entry(step, {}, unknown=[str(error)])


def show(result: Books) -> None:
    """The books for people: counts by step and by partition, and the first findings."""
    console = Console()
    table = RichTable("step", "counts", "verdict")
    for entry in result.entries:
        counts = ", ".join(f"{name} {count:,}" for name, count in entry.counts.items())
        table.add_row(entry.step, counts or "-", _verdict(entry))
    console.print(table)
    for entry in result.entries:
        if entry.partitions:
            console.print(_partitions(entry.partitions))
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


def _partitions(counted: list[dict[str, Any]]) -> RichTable:
    table = RichTable(*counted[0])
    for row in counted:
        table.add_row(*(f"{number:,}" for number in row.values()))
    return table


_VERDICTS = {0: "The books balance.", 1: "The books do not balance.", 2: "Cannot tell whether the books balance."}


def _verdict(entry: Entry) -> str:
    found = [f"{len(getattr(entry, kind)):,} {kind}" for kind in books.FAULTS if getattr(entry, kind)]
    if entry.in_flight:
        found.append(f"{entry.in_flight:,} in flight")
    if entry.unknown:
        found.append("cannot tell")
    return ", ".join(found) or "balanced"
