"""`pipeline dlq`: what is in sensors.raw.dlq, why, and back to sensors.raw with it, each letter once.

The topic is asked, not bronze/dead_letters, which keeps longer: only the topic has the headers of the raw messages,
and so their labels and how often they were replayed. A replay and the note of it are one Kafka transaction.
The notes are in a topic of their own, sensors.raw.replays: a run that follows one that was killed, or that had other
filters, passes over what has one.
"""

import base64
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import typer

from apps.ingest import aborting
from apps.keeping import Deadline
from apps.progress import progress
from contracts.wire import Reason
from pipeline.broker import kafka, kafka_errors, offsets
from pipeline.errors import BadInput, Unreachable
from pipeline.settings import Settings
from pipeline.wire.deadletters import Letter, again, parse

STAGE = "dlq-replay"

_ROOM = 4096
"""Bytes of a message that Kafka and the headers of a replay need."""
_SHOWN_BYTES = 4096

Place = tuple[int, int]


@dataclass(frozen=True)
class Replayed:
    """What became of the letters that were asked for."""

    replayed: int = 0
    """Sent to sensors.raw again (in a dry run: to be sent)."""
    before: int = 0
    """Passed over: sent again earlier."""
    parked: int = 0
    """Left: replayed so often, and refused each time."""
    unfit: int = 0
    """Left: too large, or of a message so large that only its beginning was kept."""
    dry_run: bool = False


def letters(settings: Settings, reasons: Sequence[str] = (), since: datetime | None = None) -> Iterator[Letter]:
    """The dead letters with one of these reasons (none given: all) that were refused since then, as far as the topic
    reaches now; by partition. An open transaction that hides the rest is waited for.

    Raises BadInput for a reason that does not exist, Unreachable where the transaction stays open.
    """
    if wrong := set(reasons) - set(Reason):
        raise BadInput(f"There is no reason {', '.join(sorted(wrong))}.", f"Reasons: {', '.join(Reason)}.")
    ends = offsets.end_offsets(settings, kafka.DEAD_LETTERS)
    starts = offsets.at_time(settings, kafka.DEAD_LETTERS, since) if since else dict.fromkeys(ends, 0)
    at, waiting, until = dict(starts), set(ends), time.monotonic() + settings.kafka.timeout_s
    while waiting:
        ranges = {partition: [(at[partition], ends[partition])] for partition in waiting}
        waiting = set()
        for partition, message in offsets.messages(settings, kafka.DEAD_LETTERS, ranges):
            if message is None:
                waiting.add(partition)
                continue
            at[partition] = message.offset() + 1
            letter = _parsed(message)
            if letter is not None and (not reasons or letter.reason in reasons):
                yield letter
        if waiting and time.monotonic() > until:
            raise Unreachable(
                f"A transaction on {kafka.topic(settings, kafka.DEAD_LETTERS)} stays open and hides what follows.",
                "Try again: Kafka ends it after transaction.timeout.ms. Is ingest running?",
            )


def _parsed(message: Any) -> Letter | None:
    place = message.partition(), message.offset(), message.timestamp()[1]
    return parse(*place, message.key(), message.value(), message.headers())


def replayed_before(settings: Settings) -> set[Place]:
    """Places of the letters that were sent again. Raises Unreachable while a replay's end is undecided."""
    ends = offsets.end_offsets(settings, kafka.REPLAYS)

    def noted() -> tuple[set[Place], bool]:
        found, whole = set(), True
        for _, message in offsets.messages(settings, kafka.REPLAYS, {p: [(0, end)] for p, end in ends.items()}):
            if message is None:
                whole = False
            else:
                partition, _, offset = message.key().decode().partition("-")
                found.add((int(partition), int(offset)))
        return found, whole

    found, whole = Deadline(settings.kafka.timeout_s).until(noted)
    if not whole:
        raise Unreachable("A replay's transaction is open: what it sent cannot be told yet.", "Try again soon.")
    return found


def listing(settings: Settings, *, since: datetime | None, max_replays: int, as_json: bool) -> int:
    """Print how many there are by reason, sensor type and hour, and what has become of them."""
    done = replayed_before(settings)
    groups: dict[tuple[str, str, str], Counter[str]] = {}
    for letter in letters(settings, since=since):
        hour = f"{letter.refused_at:%Y-%m-%dT%H:00Z}"
        counts = groups.setdefault((_plain(letter.reason), _plain((letter.sensor_type or "-")[:40]), hour), Counter())
        counts["letters"] += 1
        counts["replayed"] += (letter.partition, letter.offset) in done
        counts["parked"] += letter.replays >= max_replays
    rows: list[dict[str, Any]] = [
        dict(zip(_COLUMNS, group, strict=True)) | {name: groups[group][name] for name in _COUNTS}
        for group in sorted(groups)
    ]
    if as_json:
        typer.echo(json.dumps({"groups": rows}))
        return 0
    for row in ({name: name for name in rows[0]}, *rows) if rows else ():
        texts = [f"{row[name]:<{width}}" for name, width in _COLUMNS.items()]
        typer.echo("".join([*texts, *(f"{row[name]:>10}" for name in _COUNTS)]))
    typer.echo(f"{sum(row['letters'] for row in rows):,} dead letters.")
    return 0


_COLUMNS = {"reason": 24, "sensor_type": 16, "hour": 20}
_COUNTS = ("letters", "replayed", "parked")


def show(settings: Settings, place: str) -> int:
    """Print one letter, named PARTITION-OFFSET. Raises BadInput where there is none."""
    partition, _, offset = place.partition("-")
    if not (partition.isdigit() and offset.isdigit()):
        raise BadInput(f"{place!r} is no place of a dead letter: write PARTITION-OFFSET, e.g. 0-12.")
    wanted = {int(partition): [(int(offset), int(offset) + 1)]}
    known = offsets.end_offsets(settings, kafka.DEAD_LETTERS)
    found = offsets.messages(settings, kafka.DEAD_LETTERS, wanted, at_once=1) if int(partition) in known else ()
    letter = next((_parsed(message) for _, message in found if message is not None), None)
    if letter is None:
        raise BadInput(f"There is no dead letter {place} in {kafka.topic(settings, kafka.DEAD_LETTERS)}.")
    told = {
        "refused at": letter.refused_at.isoformat(),
        "reason": _plain(letter.reason),
        "message": _plain(letter.message),
        "came from": f"{letter.raw_topic}, partition {letter.raw_partition}, offset {letter.raw_offset}",
        "replays": str(letter.replays),
        "key": _text(letter.key),
        **{f"header {_plain(name)}": _text(value) for name, value in letter.headers},
        "value": _text(letter.value),
    }
    for name, text in told.items():
        typer.echo(f"{name}: {text}")
    return 0


def _text(value: bytes | None) -> str:
    if value is None:
        return "null"
    more = f" ... ({len(value):,} bytes in all)" if len(value) > _SHOWN_BYTES else ""
    return _plain(value[:_SHOWN_BYTES].decode(errors="backslashreplace")) + more


def _plain(text: str) -> str:
    """What a stranger sent, with nothing in it that a terminal obeys."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def export(settings: Settings, file: Path, reasons: Sequence[str], since: datetime | None) -> int:
    """Write the letters as JSON lines, key, value and headers in Base64; the file is there whole or not at all."""
    arriving = file.with_name(f"{file.name}.arriving")
    count = 0
    try:
        with arriving.open("w") as lines:
            for letter in letters(settings, reasons, since):
                lines.write(json.dumps(_exported(letter)) + "\n")
                count += 1
        arriving.replace(file)
    except OSError as error:
        raise BadInput(f"Cannot write {file}: {error}") from error
    typer.echo(f"Wrote {count:,} dead letters to {file}.")
    return 0


def _exported(letter: Letter) -> dict[str, Any]:
    def encoded(value: bytes | None) -> str | None:
        return None if value is None else base64.b64encode(value).decode()

    return asdict(letter) | {
        "refused_at": letter.refused_at.isoformat(),
        "key": encoded(letter.key),
        "value": encoded(letter.value),
        "headers": [[name, encoded(value)] for name, value in letter.headers],
    }


def run_replay(
    settings: Settings, reasons: Sequence[str], *, since: datetime | None, max_replays: int, dry_run: bool
) -> int:
    """Replay, and print what became of the letters."""
    done = replay(settings, reasons, since=since, max_replays=max_replays, dry_run=dry_run)
    typer.echo(
        f"{'Would replay' if dry_run else 'Replayed'} {done.replayed:,} dead letters. Passed over: {done.before:,} "
        f"that were replayed before, {done.parked:,} parked after {max_replays} replays, {done.unfit:,} too large."
    )
    return 0


def replay(
    settings: Settings, reasons: Sequence[str], *, since: datetime | None, max_replays: int, dry_run: bool
) -> Replayed:
    """Send letters to sensors.raw again, a transaction for each `ingest.max_messages`: the messages, and the notes.

    Raises Conflict where another replay began meanwhile; what this one committed stays and is not sent again.
    """
    partitions = kafka.require_topics(settings, kafka.RAW, kafka.DEAD_LETTERS, kafka.REPLAYS)
    sink = None if dry_run else kafka.fencing_producer(settings, STAGE)
    done, counts = replayed_before(settings), Counter[str]()
    raw, notes = kafka.topic(settings, kafka.RAW), kafka.topic(settings, kafka.REPLAYS)
    limit = kafka.max_message_bytes(kafka.RAW) - _ROOM

    def fate(letter: Letter) -> str:
        if (letter.partition, letter.offset) in done:
            return "before"
        if letter.truncated or letter.size > limit:
            return "unfit"
        return "parked" if letter.replays >= max_replays else "replayed"

    wanted = _counted(letters(settings, reasons, since), fate, counts)
    with progress("dead letters") as advance:
        while slice_ := list(islice(wanted, settings.ingest.max_messages)):
            if sink is not None:
                with (
                    kafka_errors.translated(settings, "replay dead letters"),
                    aborting(sink, settings.kafka.timeout_s),
                ):
                    sink.begin_transaction()
                    for letter in slice_:
                        sink.produce(raw, **again(letter, partitions[kafka.RAW]))
                        place = letter.partition % partitions[kafka.REPLAYS]
                        sink.produce(notes, b"", letter.place.encode(), partition=place)
                    sink.commit_transaction(settings.kafka.timeout_s)
            advance(len(slice_))
    return Replayed(**counts, dry_run=dry_run)


def _counted(found: Iterator[Letter], fate: Callable[[Letter], str], counts: Counter[str]) -> Iterator[Letter]:
    """Those to be replayed; all are counted by what becomes of them."""
    for letter in found:
        counts[became := fate(letter)] += 1
        if became == "replayed":
            yield letter
