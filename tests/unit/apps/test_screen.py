"""What the demo shows: one live screen on a terminal, plain lines elsewhere."""

import io
from dataclasses import replace

import pytest
from rich.console import Console
from rich.live import Live

from apps.screen import Screen, line, screen
from apps.vitals import LayerVitals, StageVitals, Vitals
from contracts.wire import Anomaly

ANOMALY = Anomaly(
    event_id="e1", sensor_id="boiler-7", sensor_type="temperature", location="cellar",
    timestamp="2026-01-31T12:00:00.000000Z", value=99.5, unit="degC", anomaly_rules=["zscore", "operating_range"],
    zscore=6.25, baseline_mean=20.0, baseline_std=1.0, window_start="2026-01-31T12:00:00.000000Z",
)  # fmt: skip
VITALS = Vitals(
    stages={"ingest": StageVitals(ready=True, events=12_345, per_second=99.6, lag=17), "bronze": None},
    layers={
        "bronze/readings": LayerVitals(rows=12_000, freshness_s=3.2, commit_age_s=0.4),
        "gold/sensor_5min": LayerVitals(rows=None, freshness_s=None, commit_age_s=None),
        "warehouse": LayerVitals(rows=7, freshness_s=125.0, commit_age_s=8.0),
    },
    anomalies=[ANOMALY],
)


def test_a_line_holds_rates_and_rows() -> None:
    assert line(VITALS) == "ingest 100/s | rows: bronze/readings 12,000, gold/sensor_5min -, warehouse 7"


def test_what_was_committed_while_it_was_asked_for_is_not_of_the_future() -> None:
    written = io.StringIO()
    with Live(console=Console(file=written, force_terminal=True, width=120), auto_refresh=False) as live:
        now = replace(VITALS.layers["warehouse"], commit_age_s=-0.1)
        Screen("A title", live).show(replace(VITALS, layers={"warehouse": now}))
        live.refresh()
    assert "0.0 s ago" in written.getvalue()
    assert "-0.1" not in written.getvalue()


def test_without_a_terminal_there_are_plain_lines_not_more_often_than_every_few_seconds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with screen("A title", ["Dashboard: here"]) as shown:
        shown.show(VITALS)
        shown.show(VITALS)
        shown.say("First light")
    told = capsys.readouterr().out.splitlines()
    assert told == ["Dashboard: here", f"0.0 s  {line(VITALS)}", "First light"]


def test_a_terminal_shows_stages_layers_and_anomalies() -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=120, color_system=None)
    with Live(console=console, auto_refresh=False) as live:
        shown = Screen("A title", live)
        shown.show(VITALS)
        live.refresh()
        shown.say("First [light]")
    text = written.getvalue()
    expected = ["A title", "12,345", "starting", "12,000", "2 min ago", "boiler-7", "99.50 degC",
                "zscore, operating_range", "6.2", "First [light]"]  # fmt: skip
    assert [each for each in expected if each not in text] == []


def test_what_is_to_be_typed_stands_whole_above_a_low_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "dumb"), ("LINES", "24"), ("COLUMNS", "80")):
        monkeypatch.setenv(name, value)
    notes = [f"export NAME_{number}={'x' * 90}" for number in range(30)]
    with screen("A title", notes) as shown:
        shown.show(VITALS)
    told = capsys.readouterr().out
    assert told.splitlines()[:30] == notes
    assert "A title" in told
