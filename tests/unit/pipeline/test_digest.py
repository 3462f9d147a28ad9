"""The digest as people get it: what is in it, and that no text of the data becomes markup."""

import re
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from xml.etree import ElementTree

import pytest

from pipeline.monitoring.breaches import Breach
from pipeline.monitoring.digest import Digest, Group, Hour, Layer, Sensor, slack, subject, text
from pipeline.monitoring.digest_page import chart, page

DAY = date(2026, 3, 1)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
MADE = datetime(2026, 3, 2, 6, 5, tzinfo=UTC)
EVIL = "<script>alert(1)</script>&"

FULL = Digest(
    day=DAY,
    made_at=MADE,
    hours=[Hour(1000 + 10 * hour, hour) for hour in range(24)],
    groups=[
        Group("plant-north", "temperature", 20_000, 200, 97.5, 30),
        Group("yard", "humidity", 0, 0, 84.0, 15),
        Group("hall", "vibration", 6760, 76, None, 4),
    ],
    worst=[Sensor("t-1", "plant-north", 40, 900, NOON)],
    silent=[Sensor("v-9", "hall", newest=NOON), Sensor("v-10", "hall")],
    dead={"not_json": 30},
    quarantined={"physical_range": 10},
    breaches=[
        Breach("freshness of gold", NOON, NOON, NOON + timedelta(minutes=12), 1200.0, 600.0, "s"),
        Breach("quality", NOON - timedelta(days=2), NOON, None, 0.91, 0.99, "1"),
    ],
    layers=[Layer("bronze", MADE - timedelta(seconds=4), MADE - timedelta(seconds=2)), Layer("gold", None, None)],
    links={"Dashboard": "https://example.com/pipeline?a=1&b=2"},
)
EMPTY = Digest(DAY, MADE, [Hour(0, 0)] * 24, [], [], [], {}, {}, [], [], {})

TOLD = (
    "26,760", "276", "99.85%", "97.5%", "93.0%", "plant-north", "vibration", "t-1", "v-9", "last heard by 12:00",
    "not heard all day", "dead letter, not json", "quarantine, physical range", "20 min at worst, 10 min promised",
    "lasted 12 min", "still open", "91.00% at worst", "4.0 s ago", "unknown",
)  # fmt: skip


def words(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL)))


@pytest.mark.parametrize("fact", [*TOLD, "40"])
def test_each_fact_is_in_the_mail_as_text_and_as_html(fact: str) -> None:
    assert fact in text(FULL)
    assert fact in words(page(FULL))


def test_the_subject_says_what_matters() -> None:
    assert subject(FULL) == "Pipeline digest 2026-03-01: 26,760 readings, 276 anomalies, 2 breaches, 2 silent"
    assert subject(EMPTY) == "Pipeline digest 2026-03-01: no readings"


def test_a_day_without_anything_says_so_and_calls_nothing_good() -> None:
    assert "Quality        unknown" in text(EMPTY)
    assert "100" not in words(page(EMPTY))
    assert "No readings." in page(EMPTY)


def test_a_bar_is_as_high_as_its_hour() -> None:
    hours = [Hour(0, 0)] * 22 + [Hour(50, 1), Hour(100, 4)]
    drawn = chart(replace(FULL, hours=hours)).partition("</svg>")[0] + "</svg>"
    bars = [[rect.attrib for rect in group.iter("rect")] for group in ElementTree.fromstring(drawn).iter("g")]
    heights = [float(readings["height"]) for readings, _ in bars]
    assert heights[:22] == [0.0] * 22
    assert heights[23] == pytest.approx(2 * heights[22])
    assert float(bars[23][1]["height"]) == pytest.approx(4 * float(bars[22][1]["height"]))


def test_what_devices_send_is_text_in_html_and_in_slack() -> None:
    evil = replace(
        FULL,
        groups=[Group(EVIL, EVIL, 1, 1, 1.0, 1)],
        worst=[Sensor(EVIL, EVIL, 1, 1)],
        silent=[Sensor("<!channel>", EVIL)],
    )
    assert "<script" not in page(evil)
    sent = str(slack(evil))
    assert "<script" not in sent
    assert "<!channel>" not in sent
    assert "&lt;!channel&gt;" in sent


def test_slack_gets_figures_breaches_and_links_within_its_limits() -> None:
    many = replace(FULL, silent=[Sensor(f"s{number}" * 20, "hall") for number in range(400)])
    payload = slack(many)
    shown = str(payload["blocks"])
    for fact in ("26,760", "276", "99.85%", "freshness of gold", "<https://example.com/pipeline?a=1&b=2|Dashboard>"):
        assert fact in shown
    assert "and 395 more" in shown
    assert len(payload["blocks"]) <= 50
    assert all(len(block["text"]["text"]) <= 3000 for block in payload["blocks"] if "text" in block)


def test_the_page_asks_nobody_for_anything() -> None:
    assert not re.findall(r"<script|<link|<img|src=|url\(|@import", page(FULL))
