"""`pipeline digest`: what a day was like, to people. Facts come from the lake; nothing but it has to be there."""

import logging
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from email.message import EmailMessage
from email.utils import format_datetime
from functools import partial
from pathlib import Path

import polars as pl
import typer

from apps import notify
from apps.breaches import breaches
from apps.keeping import collect
from apps.monitor_lake import LAYERS
from apps.notes import note
from contracts.registry import load_registry
from contracts.tables import (
    BRONZE_DEAD_LETTERS,
    GOLD_DAILY_SUMMARY,
    GOLD_LOCATION_HOURLY,
    GOLD_SENSOR_5MIN,
    QUALITY_DIGESTS,
    SILVER_QUARANTINE,
    Table,
)
from pipeline.core.aggregate import FIVE_MINUTES
from pipeline.errors import BadInput, NotSetUp, PipelineError
from pipeline.lake.delta import Lake
from pipeline.lake.logged import committed_at, data_files, newest
from pipeline.monitoring.digest import Digest, Group, Hour, Layer, Sensor, slack, subject, text
from pipeline.monitoring.digest_page import page
from pipeline.monitoring.notes import digest_row
from pipeline.monitoring.silence import silent
from pipeline.settings import Settings
from pipeline.stage import retrying

_WORST = 10
_DAY = timedelta(days=1)

log = logging.getLogger(__name__)


def run(settings: Settings, *, day: date | None, dry_run: bool, out: Path | None) -> None:
    """Make the digest of a day (default: yesterday) and send it; `dry_run`: print the text instead.

    `out` takes the HTML as well. Each attempt is noted in quality/digests, where that can be: monitor and `pipeline
    status` tell of it. Raises BadInput where there is nobody to send it to; what a channel answers, after
    every channel was tried.
    """
    now = datetime.now(UTC)
    day = day or now.date() - _DAY
    if day >= now.date():
        raise BadInput(f"{day} is not over yet (UTC).", "Give --date a day that is, or leave it out for yesterday.")
    channels = {} if dry_run else _channels(settings)
    digest = collected(settings, day, now)
    if out is not None:
        try:
            out.write_text(page(digest), encoding="utf-8")
        except OSError as error:
            raise BadInput(f"The digest cannot be written: {error}.", "Give --out a path that can be.") from error
    if dry_run:
        typer.echo(text(digest), nl=False)
        return
    failed: list[PipelineError] = []
    for name, send in channels.items():
        why = None
        try:
            retrying(settings, f"send the digest by {name}", partial(send, digest))
            typer.echo(f"Sent the digest of {day} by {name}.")
        except PipelineError as error:
            log.error("the digest was not sent by %s: %s", name, error.what)
            failed.append(error)
            why = error.what
        note(Lake(settings.lake), QUALITY_DIGESTS, digest_row(day, name, datetime.now(UTC), why))
    if failed:
        raise failed[0]


def _channels(settings: Settings) -> Mapping[str, Callable[[Digest], None]]:
    known: dict[str, Callable[[Digest], None]] = {}
    to = settings.notify
    if to.smtp_host:
        if not (to.mail_to and to.mail_from):
            raise BadInput(
                "There is a mail server, but nobody to send to or from.",
                "Set PIPELINE_NOTIFY__MAIL_TO and PIPELINE_NOTIFY__MAIL_FROM.",
            )
        known["mail"] = lambda digest: notify.mail(to, message(settings, digest))
    if to.slack_webhook:
        known["Slack"] = lambda digest: notify.slack(to, slack(digest))
    if not known:
        raise BadInput(
            "There is nobody to send the digest to.",
            "Set PIPELINE_NOTIFY__SMTP_HOST or PIPELINE_NOTIFY__SLACK_WEBHOOK, or see it with --dry-run.",
        )
    return known


def message(settings: Settings, digest: Digest) -> EmailMessage:
    """The mail: text, and HTML beside it. Its id is that of the day, so that a second one is known as the same."""
    mail = EmailMessage()
    mail["Subject"] = subject(digest)
    mail["From"] = settings.notify.mail_from
    mail["To"] = ", ".join(settings.notify.mail_to.split())
    mail["Date"] = format_datetime(digest.made_at)
    domain = settings.notify.mail_from.rpartition("@")[2].strip("> ")
    mail["Message-ID"] = f"<digest-{digest.day}.{settings.kafka.group_prefix}@{domain}>"
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content(text(digest))
    mail.add_alternative(page(digest), subtype="html")
    return mail


def collected(settings: Settings, day: date, now: datetime) -> Digest:
    """The facts of a day. What a stage has yet to make is empty, and a layer that nobody can tell of is None.

    Raises as the lake does.
    """
    lake, start = Lake(settings.lake), datetime(day.year, day.month, day.day, tzinfo=UTC)
    end = start + _DAY
    hourly = _rows(lake, GOLD_LOCATION_HOURLY, day)
    hours = {
        row["hour"].hour: Hour(row["count"], row["anomaly_count"])
        for row in collect(hourly.group_by("hour").agg(pl.col("count", "anomaly_count").sum())).iter_rows(named=True)
    }
    groups = [
        Group(
            row["location"],
            row["sensor_type"],
            row["count"],
            row["anomaly_count"],
            row["health_pct"],
            row["sensors_expected"],
        )
        for row in collect(
            _rows(lake, GOLD_DAILY_SUMMARY, day).sort(
                "anomaly_count", "location", "sensor_type", descending=[True, False, False]
            )
        ).iter_rows(named=True)
    ]
    by_sensor = _rows(lake, GOLD_SENSOR_5MIN, day).group_by("sensor_id", "sensor_type").agg(
        pl.col("location").sort_by("window_start").last(),
        pl.col("count", "anomaly_count").sum(),
        newest=pl.col("window_start").max() + FIVE_MINUTES,
    )  # fmt: skip
    sensors = collect(by_sensor)
    worst = sensors.filter(pl.col("anomaly_count") > 0).sort("anomaly_count", "sensor_id", descending=[True, False])
    away = silent(sensors, load_registry(settings.registry), end, settings.detect.dropout_after)
    return Digest(
        day=day,
        made_at=now,
        hours=[hours.get(hour, Hour(0, 0)) for hour in range(24)],
        groups=groups,
        worst=[
            Sensor(row["sensor_id"], row["location"], row["anomaly_count"], row["count"], row["newest"])
            for row in worst.head(_WORST).iter_rows(named=True)
        ],
        silent=[
            Sensor(row["sensor_id"], row["location"], newest=row["newest"]) for row in away.iter_rows(named=True)
        ],
        dead=_dead(lake, start, end),
        quarantined=_counts(_rows(lake, SILVER_QUARANTINE, day), "rule"),
        breaches=[
            breach
            for breach in breaches(lake)
            if breach.started_at < end and (breach.ended_at is None or breach.ended_at >= start)
        ],
        layers=[_layer(lake, name, table, column) for name, (table, column) in LAYERS.items()],
        links=settings.notify.links,
    )


def _dead(lake: Lake, start: datetime, end: datetime) -> dict[str, int]:
    """Dead letters of messages that the broker took on that day; they may have been kept on a later one."""
    rows = lake.rows(BRONZE_DEAD_LETTERS).filter(
        pl.col("ingest_date") >= start.date(), pl.col("raw_timestamp") >= start, pl.col("raw_timestamp") < end
    )
    return _counts(rows, "reason")


def _counts(rows: pl.LazyFrame, column: str) -> dict[str, int]:
    return dict(collect(rows.group_by(column).len()).iter_rows())


def _rows(lake: Lake, table: Table, day: date) -> pl.LazyFrame:
    return lake.rows(table).filter(pl.col(table.partition_by) == day)


def _layer(lake: Lake, name: str, table: Table, column: str) -> Layer:
    try:
        opened = lake.open(table)
        return Layer(name, newest(data_files(opened), column), committed_at(opened))
    except NotSetUp:
        return Layer(name, None, None)
