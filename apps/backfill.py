"""`pipeline backfill` and `reconcile --repair`: raw messages that Bronze lacks are published again.

Beside the live stages, in no consumer group. What ingest has yet to read is left to it; of the rest: (1) fence an
earlier backfill, by a transactional id that all of them share: what it was about to publish it no longer can, (2) see
where the topics of readings and dead letters end, (3) wait until Bronze holds all of that, so that (4) what Bronze
lacks, nobody else has published, (5) publish that, a transaction for each slice. Killed anywhere and run again it
begins with (1), and finds only what is still lacking. The readings take their place at the end of sensors.readings,
as the order of the stream has it.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import polars as pl
import typer
from confluent_kafka import Message

from apps.ingest import aborting, produce, translate
from apps.keeping import KEEPS, Deadline, first_offsets, kept, places
from apps.progress import progress
from contracts.registry import load_registry
from pipeline.broker import kafka, kafka_errors, offsets, spans
from pipeline.broker.spans import Range, Ranges
from pipeline.errors import BadInput, Unreachable
from pipeline.lake.delta import Lake
from pipeline.monitoring import books
from pipeline.settings import Settings

STAGE = "backfill"


@dataclass(frozen=True)
class Repaired:
    """What Bronze lacked of the offsets that were asked about, and what became of it."""

    asked: int
    """Offsets looked at: those that ingest has read."""
    readings: int = 0
    dead: int = 0
    """Raw messages published (or, in a dry run, to be published) as readings and as dead letters."""
    expired: dict[int, list[Range]] = field(default_factory=dict)
    """Half-open ranges that Bronze lacks and Kafka no longer has."""
    dry_run: bool = False

    @property
    def published(self) -> bool:
        """Was anything?"""
        return not self.dry_run and self.readings + self.dead > 0

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


def run(
    settings: Settings,
    *,
    from_time: datetime | None,
    to_time: datetime | None,
    partition: int | None,
    between: Range | None,
    wait_s: float,
    dry_run: bool,
) -> int:
    """Publish what Bronze lacks of a range; 0 done, 2 where some of it has expired. Raises BadInput for no range."""
    repaired = repair(
        settings, asked(settings, from_time, to_time, partition, between), wait_s=wait_s, dry_run=dry_run
    )
    show(repaired)
    return 2 if repaired.expired else 0


def asked(
    settings: Settings,
    from_time: datetime | None,
    to_time: datetime | None,
    partition: int | None,
    between: Range | None,
) -> dict[int, list[Range]]:
    """The range of sensors.raw that the command line means: of the times at which the broker took the messages, and
    the partition or its offsets (half-open here)."""
    if between is not None and (partition is None or from_time or to_time):
        raise BadInput("--offsets are those of one --partition, and leave no place for times.")
    if between is None and partition is None and from_time is None:
        raise BadInput("What is to be filled? Give --from-time, or a --partition, with --offsets or without.")
    ends = offsets.end_offsets(settings, kafka.RAW)
    if partition is not None and partition not in ends:
        raise BadInput(f"{kafka.topic(settings, kafka.RAW)} has no partition {partition}, only 0 to {max(ends)}.")
    starts = dict.fromkeys(ends, 0)
    if from_time is not None:
        starts = first_offsets(settings, map(Lake(settings.lake).open, KEEPS.values()), from_time)
    stops = offsets.at_time(settings, kafka.RAW, to_time) if to_time else ends
    return {each: [between or (starts[each], stops[each])] for each in ends if partition is None or each == partition}


def repair(settings: Settings, wanted: Ranges, *, wait_s: float, dry_run: bool) -> Repaired:
    """Publish the raw messages in these ranges that Bronze lacks.

    Raises Unreachable where Bronze does not hold, within `wait_s`, what has been published before, Conflict where
    another backfill began meanwhile.
    """
    sensor_types = load_registry(settings.registry).sensor_types
    partitions = kafka.require_topics(settings, kafka.RAW, *KEEPS)
    sink = None if dry_run else kafka.fencing_producer(settings, STAGE)
    read = offsets.committed(settings, settings.group("ingest"), kafka.RAW)
    wanted = spans.clipped(wanted, below=read)
    opened, behind = kept(settings, Lake(settings.lake), Deadline(wait_s))
    if behind:
        raise Unreachable(
            f"What Bronze lacks cannot be told yet: {'; '.join(behind)}.",
            "Is `pipeline bronze` running? Give it more time with --wait.",
        )
    placed = pl.concat([places(table, wanted) for table in opened.values()])
    lacking = _lacking(placed, wanted)
    lows = offsets.low_offsets(settings, kafka.RAW)
    left = spans.clipped(lacking, above=lows)
    repaired = Repaired(spans.size(wanted), expired=spans.clipped(lacking, below=lows), dry_run=dry_run)
    with progress("raw messages", spans.size(left)) as advance:
        for messages in _slices(settings, left):
            output = translate(settings, messages, sensor_types, partitions[kafka.READINGS], datetime.now(UTC))
            if sink is not None:
                with (
                    kafka_errors.translated(settings, "publish what Bronze lacks"),
                    aborting(sink, settings.kafka.timeout_s),
                ):
                    sink.begin_transaction()
                    produce(settings, sink, output, partitions[kafka.DEAD_LETTERS])
                    sink.commit_transaction(settings.kafka.timeout_s)
            repaired = Repaired(
                repaired.asked,
                repaired.readings + sum(output.readings.values()),
                repaired.dead + len(output.dead),
                repaired.expired,
                dry_run,
            )
            advance(len(messages))
    return repaired


def _lacking(placed: pl.DataFrame, wanted: Ranges) -> dict[int, list[Range]]:
    """The offsets in these ranges without a row."""
    starts = {partition: min(start for start, _ in each) for partition, each in wanted.items()}
    ends = {partition: max(end for _, end in each) for partition, each in wanted.items()}
    return spans.intersection(books.holes(placed, starts, ends), wanted)


def _slices(settings: Settings, ranges: Ranges) -> Iterator[list[Message]]:
    """The messages in these ranges, as many at a time as a transaction of ingest holds."""
    found = (message for _, message in offsets.messages(settings, kafka.RAW, ranges) if message is not None)
    while messages := list(islice(found, settings.ingest.max_messages)):
        yield messages


def show(repaired: Repaired) -> None:
    """What was done, for people."""
    what = "Would publish" if repaired.dry_run else "Published"
    typer.echo(
        f"Bronze lacks {repaired.readings + repaired.dead:,} messages of {repaired.asked:,} offsets. {what} "
        f"{repaired.readings:,} readings and {repaired.dead:,} dead letters."
    )
    for where in spans.told(repaired.expired):
        typer.echo(f"{where} are in no table and have expired in Kafka: nothing can bring them back.")
