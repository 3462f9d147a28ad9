"""The digest from a lake on disk to a mail server and a webhook that are really there."""

import json
import math
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import polars as pl
import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

from apps.breaches import Recorder
from apps.digest import collected, run
from apps.monitor_lake import LakeWatch
from apps.monitor_round import Round, Tables
from apps.notes import newest
from apps.vitals import own
from contracts.registry import load_registry
from contracts.tables import GOLD_SENSOR_5MIN, QUALITY_DIGESTS
from pipeline.errors import AccessDenied, BadInput, Unreachable
from pipeline.lake.delta import Lake
from pipeline.monitoring.notes import DIGEST_DAYS, sent
from pipeline.monitoring.objectives import Verdict
from pipeline.settings import Settings
from pipeline.simulation.fleet import Fleet
from tests.fleet_lake import FleetLake

START = datetime(2026, 3, 1, 23, 30, tzinfo=UTC)
MIDNIGHT = datetime(2026, 3, 2, tzinfo=UTC)
DAY = START.date()
NOW = datetime(2026, 3, 2, 6, 5, tzinfo=UTC)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Half an hour of a fleet on each side of midnight, dead letters, and a breach that is over by midnight."""
    root = str(tmp_path_factory.mktemp("lake"))
    settings = Settings.model_validate({"lake": {"uri": root}})
    fleet = FleetLake(settings)
    fleet.fill(
        Fleet(sensors=6, seed=3, anomaly_rate=0.05, malformed_rate=0.02),
        START,
        MIDNIGHT + timedelta(minutes=10),
        20.0,
    )
    recorder = Recorder(Lake(settings.lake))
    for value, moment in ((150, START), (90, START + timedelta(minutes=5)), (150, MIDNIGHT + timedelta(minutes=1))):
        recorder.note([Verdict("lag", value, 100, "messages")], moment)
    return root


def settings(lake: str, **notify: Any) -> Settings:
    addressed = {"mail_from": "pipeline@example.com", "mail_to": "ops@example.com dev@example.com", **notify}
    return Settings.model_validate({"lake": {"uri": lake}, "retry_s": 0.5, "notify": addressed})


def test_the_day_is_what_the_tables_say_of_it(lake: str) -> None:
    digest = collected(settings(lake), DAY, NOW)
    windows = pl.read_delta(f"{lake}/{GOLD_SENSOR_5MIN.path}").filter(pl.col("window_start") < MIDNIGHT)
    assert digest.readings == windows["count"].sum() > 0
    assert digest.anomalies == windows["anomaly_count"].sum() > 0
    assert [hour.readings > 0 for hour in digest.hours] == [False] * 23 + [True]
    letters = pl.read_delta(f"{lake}/bronze/dead_letters").filter(pl.col("raw_timestamp") < MIDNIGHT)
    assert sum(digest.dead.values()) == len(letters) > 0
    assert [(each.objective, each.started_at) for each in digest.breaches] == [("lag", START)]
    assert digest.silent == []
    assert {layer.name: layer.newest_event is not None for layer in digest.layers} == dict.fromkeys(
        ("bronze", "silver", "gold"), True
    )


def test_a_lake_without_tables_is_a_day_without_readings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(settings(str(tmp_path)), day=DAY, dry_run=True, out=tmp_path / "digest.html")
    assert "no readings" in capsys.readouterr().out
    assert (tmp_path / "digest.html").read_text().startswith("<!doctype html>")


def test_a_day_that_is_not_over_is_refused(lake: str) -> None:
    with pytest.raises(BadInput, match="not over yet"):
        run(settings(lake), day=datetime.now(UTC).date(), dry_run=True, out=None)


class Mailbox:
    """Takes mail, or refuses it."""

    def __init__(self, answer: str = "250 OK") -> None:
        self.mails: list[EmailMessage] = []
        self.to: list[str] = []
        self._answer = answer

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:
        if self._answer.startswith("250"):
            assert isinstance(envelope.content, bytes)
            mail = message_from_bytes(envelope.content, policy=policy.default)
            assert isinstance(mail, EmailMessage)
            self.mails.append(mail)
            self.to = envelope.rcpt_tos
        return self._answer


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def mail_server(box: Mailbox) -> Iterator[dict[str, Any]]:
    server = Controller(box, hostname="127.0.0.1", port=free_port())
    server.start()
    try:
        yield {"smtp_host": "127.0.0.1", "smtp_port": server.port, "smtp_tls": "none"}
    finally:
        server.stop()


class Hook(BaseHTTPRequestHandler):
    """Slack's side: answers what it is told to, in turn, the last for ever."""

    answers: ClassVar[list[int]] = [200]
    got: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer == 200:
            self.got.append(body)
        self.send_response(answer)
        self.end_headers()
        self.wfile.write(b"ok" if answer == 200 else b"no_service")

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextmanager
def webhook(*answers: int) -> Iterator[str]:
    Hook.answers, Hook.got = list(answers), []
    with HTTPServer(("127.0.0.1", 0), Hook) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/services/T0/B0/secret-part"
        finally:
            server.shutdown()
            thread.join()


def test_mail_and_slack_get_it(lake: str) -> None:
    box = Mailbox()
    with mail_server(box) as mail, webhook(200) as hook:
        run(settings(lake, **mail, slack_webhook=hook), day=DAY, dry_run=False, out=None)
    (got,) = box.mails
    assert box.to == ["ops@example.com", "dev@example.com"]
    assert got["Subject"].startswith("Pipeline digest 2026-03-01: ")
    assert got["Message-ID"] == "<digest-2026-03-01.pipeline@example.com>"
    plain, html = got.get_body(("plain",)), got.get_body(("html",))
    assert plain is not None
    assert html is not None
    assert "Anomalies by location and type" in plain.get_content()
    assert "<svg" in html.get_content()
    (said,) = Hook.got
    assert "Pipeline digest 2026-03-01" in said["text"]


def test_a_failed_digest_is_in_the_metrics_until_it_is_sent_and_so_is_the_age_of_the_last(tmp_path: Path) -> None:
    def told(at: datetime) -> tuple[float, float]:
        this, given = Round(), settings(str(tmp_path))
        this.begin(at)
        LakeWatch(given, load_registry(), this, Tables(Lake(given.lake), this)).look()
        served = own()
        (failed,), (age,) = served["pipeline_digest_failed"], served["pipeline_digest_age_seconds"]
        return failed[1], age[1]

    assert all(map(math.isnan, told(NOW)))  # nobody ever sent one
    with webhook(404) as hook, pytest.raises(AccessDenied):
        run(settings(str(tmp_path), slack_webhook=hook), day=DAY, dry_run=False, out=None)
    failed, age = told(NOW)
    assert failed == 1
    assert math.isnan(age)
    with webhook(200) as hook:
        run(settings(str(tmp_path), slack_webhook=hook), day=DAY, dry_run=False, out=None)
    assert told(NOW) == (0, (NOW - MIDNIGHT).total_seconds())
    assert told(NOW + timedelta(days=40)) == (0, (NOW - MIDNIGHT).total_seconds() + 40 * 86_400)


def test_a_dry_run_notes_nothing(tmp_path: Path) -> None:
    run(settings(str(tmp_path)), day=DAY, dry_run=True, out=None)
    assert sent(newest(Lake(settings(str(tmp_path)).lake), QUALITY_DIGESTS, DIGEST_DAYS)) is None


def test_a_busy_webhook_is_tried_again(lake: str) -> None:
    with webhook(503, 429, 200) as hook:
        run(settings(lake, slack_webhook=hook).model_copy(update={"retry_s": 10}), day=DAY, dry_run=False, out=None)
    assert len(Hook.got) == 1


def test_where_one_channel_fails_the_other_gets_it_and_the_failure_is_told(
    lake: str, capsys: pytest.CaptureFixture[str]
) -> None:
    box = Mailbox()
    with mail_server(box) as mail, webhook(404) as hook, pytest.raises(AccessDenied, match="404 no_service") as told:
        run(settings(lake, **mail, slack_webhook=hook), day=DAY, dry_run=False, out=None)
    assert len(box.mails) == 1
    assert "secret-part" not in str(told.value)
    assert "Sent the digest of 2026-03-01 by mail." in capsys.readouterr().out
    noted = sent(newest(Lake(settings(lake).lake), QUALITY_DIGESTS, DIGEST_DAYS))
    assert noted is not None
    assert (noted.day, list(noted.refused), noted.whole) == (DAY, ["Slack"], None)
    assert "secret-part" not in str(noted)
    with mail_server(Mailbox("550 spam")) as mail, webhook(200) as hook, pytest.raises(Unreachable, match="550"):
        run(settings(lake, **mail, slack_webhook=hook), day=DAY, dry_run=False, out=None)
    assert len(Hook.got) == 1


def test_a_server_that_is_away_is_a_failure_after_a_bounded_time(lake: str) -> None:
    away = {"smtp_host": "127.0.0.1", "smtp_port": free_port(), "smtp_tls": "none"}
    with pytest.raises(Unreachable, match=r"tried \d+ times"):
        run(settings(lake, **away), day=DAY, dry_run=False, out=None)


@pytest.mark.parametrize(
    ("notify", "says"),
    [
        ({}, "nobody to send the digest to"),
        ({"smtp_host": "127.0.0.1", "mail_to": ""}, "nobody to send to or from"),
        ({"smtp_host": "mail.example.com", "smtp_tls": "none", "smtp_user": "u", "smtp_password": "p"}, "plain text"),
        ({"slack_webhook": "http://hooks.example.com/T0"}, "not an https address"),
    ],
)
def test_settings_that_cannot_work_are_refused(lake: str, notify: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        run(settings(lake, **notify), day=DAY, dry_run=False, out=None)


def test_a_server_that_cannot_encrypt_gets_no_mail(lake: str) -> None:
    box = Mailbox()
    with mail_server(box) as mail, pytest.raises(AccessDenied):
        run(settings(lake, **mail | {"smtp_tls": "starttls"}), day=DAY, dry_run=False, out=None)
    assert box.mails == []
