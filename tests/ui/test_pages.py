"""The pages in a browser: what they show, and where they lead."""

import re
import time
from datetime import datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import polars as pl
import pytest
from playwright.sync_api import Page, expect

from contracts.tables import BRONZE_ANOMALIES, GOLD_SENSOR_5MIN
from pipeline.settings import Settings
from tests.fleet_lake import FleetLake
from tests.ui.conftest import SCREENSHOTS, SENSORS, Served

pytestmark = pytest.mark.timeout(120)

PAGES = {
    "": ("Active sensors", f"of {SENSORS}", "goal 90"),
    "trends": ("5-minute windows", "Download CSV"),
    "heatmap": ("Anomaly rate", "Click a cell", "Where to look first"),
    "timeline": ("anomalies", "Readings around it", "z-score"),
    "health": ("bronze/readings", "dead letter", "Raw messages in the lake", "freshness of gold", "✓ balanced"),
}


def query(page: Page) -> dict[str, list[str]]:
    return parse_qs(urlsplit(page.url).query)


def wait_for_charts(page: Page) -> None:
    """Texts are there before them."""
    page.wait_for_function("window.Bokeh?.documents[0]?.is_idle")


def figure_box(page: Page, number: int = 0) -> dict[str, float]:
    """Where a figure is on the screen, once it can be touched."""
    wait_for_charts(page)
    box = page.locator(".bk-Figure").nth(number).bounding_box()
    assert box is not None
    return dict(box)


@pytest.mark.parametrize("theme", ["light", pytest.param("dark", marks=pytest.mark.thorough)])
def test_each_page_shows_the_fleet(page: Page, dashboard: Served, theme: str) -> None:
    page.emulate_media(color_scheme=theme)
    names = PAGES if theme == "light" else {"": PAGES[""], "trends": PAGES["trends"]}
    for path, texts in names.items():
        page.goto(f"{dashboard.url}/{path}")
        for text in texts:
            expect(page.locator("#main").get_by_text(text).filter(visible=True).first).to_be_visible()
        expect(page.locator("html")).to_have_attribute("data-theme", theme)
        expect(page.locator(".zone")).to_have_text("Australia/Adelaide")
        page.wait_for_function("document.fonts.status === 'loaded'")
        wait_for_charts(page)
        SCREENSHOTS.mkdir(exist_ok=True)
        page.screenshot(path=SCREENSHOTS / f"{path or 'overview'}-{theme}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "wider than the screen"


@pytest.mark.thorough
def test_an_anomaly_is_shown_within_ten_seconds_of_being_announced_and_its_name_is_only_text(
    page: Page, dashboard: Served, made: tuple[Settings, FleetLake]
) -> None:
    page.goto(dashboard.url)
    expect(page.locator(".feed li").first).to_be_visible()
    lake, name = made[1], "<img src=x onerror=document.title='owned'>"
    newest = pl.read_delta(lake.lake.uri(BRONZE_ANOMALIES.path)).top_k(1, by="timestamp")
    lake.announce(
        newest.with_columns(
            timestamp=pl.col("timestamp") + timedelta(seconds=1),
            sensor_id=pl.lit(name),
            sensor_type=pl.lit("vibration"),
            anomaly_rules=pl.lit(["operating_range"], pl.List(pl.String)),
            batch_offset=pl.col("batch_offset") + 10_000_000,
        )
    )
    began = time.monotonic()
    expect(page.locator(".feed li").first).to_contain_text(name, timeout=10_000)
    expect(page.locator(".feed li").first).to_contain_text("operating range")
    assert time.monotonic() - began < 10
    page.goto(f"{dashboard.url}/timeline?rule=operating_range")
    expect(page.locator("#main").get_by_text(name).first).to_be_visible()
    assert "owned" not in page.title()


@pytest.mark.thorough
def test_a_trend_is_zoomed_shared_and_downloaded(
    page: Page, dashboard: Served, made: tuple[Settings, FleetLake], end: datetime
) -> None:
    page.goto(f"{dashboard.url}/trends?type=humidity&sensor=humidity-001&range=24h&colour=red")
    about = page.locator("#chart .muted").first
    expect(about).to_contain_text("5-minute windows")
    with page.expect_download() as downloading:
        page.get_by_text("Download CSV").click()
    rows = pl.read_csv(downloading.value.path(), try_parse_dates=True)
    gold = (
        pl.read_delta(made[1].lake.uri(GOLD_SENSOR_5MIN.path)).filter(sensor_id="humidity-001").sort("window_start")
    )
    assert rows["count"].to_list() == gold["count"].to_list()
    assert rows["p95"].to_list() == pytest.approx(gold["p95"].to_list())
    assert rows["time"].to_list()[0] == gold["window_start"].to_list()[0]

    box = figure_box(page)
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.93, y)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.95, y, steps=4)
    page.mouse.up()
    expect(about).to_contain_text("each reading")
    page.wait_for_url("**from=**")
    zoomed = query(page)
    start, stop = (datetime.fromisoformat(zoomed[name][0]) for name in ("from", "to"))
    assert timedelta(minutes=2) < stop - start < timedelta(hours=2)
    assert zoomed["sensor"] == ["humidity-001"]
    assert "sensor=" not in page.locator("body").inner_text(), "the address is no text of the page"

    other = page.context.new_page()
    other.goto(page.url)
    expect(other.locator("#chart .muted").first).to_contain_text("each reading")
    expect(other.locator("#figures td").first).to_have_text("humidity-001")
    other.close()


@pytest.mark.thorough
def test_filters_narrow_the_timeline_and_an_anomaly_leads_to_its_readings(page: Page, dashboard: Served) -> None:
    page.goto(f"{dashboard.url}/timeline")
    expect(page.locator("#list tr").nth(3)).to_be_visible()
    page.get_by_label("Type").select_option("pressure")
    expect(page.locator("#list td b").first).to_have_text(re.compile(r"pressure-\d+"))
    page.wait_for_url("**type=pressure**")
    expect(page.locator("#list td b").filter(has_not_text=re.compile("pressure"))).to_have_count(0)
    expect(page.locator("#list td b").nth(2)).to_be_visible()
    third = page.locator("#list tr").nth(3)
    sensor = third.locator("b").text_content()
    third.get_by_role("link").click()
    detail = page.locator("#detail")
    expect(detail.locator("b").first).to_have_text(str(sensor))
    expect(detail.locator(".bk-Figure")).to_be_visible()
    assert "event" in query(page)


@pytest.mark.thorough
def test_a_cell_of_the_heatmap_leads_to_the_sensors_there(page: Page, dashboard: Served) -> None:
    page.goto(f"{dashboard.url}/heatmap?by=type&range=6h&metric=anomalies")
    expect(page.locator(".bk-Figure:visible")).to_have_count(1)
    wait_for_charts(page)
    box = page.locator(".bk-Figure:visible").bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] * 0.25, box["y"] + 20)
    page.wait_for_url("**/trends?*")
    assert query(page).keys() == {"type", "location", "from", "to"}
    expect(page.locator("#figures td").first).to_have_text(re.compile(rf"{query(page)['type'][0]}-\d+"))


@pytest.mark.thorough
@pytest.mark.parametrize("path", ["", "timeline"])
def test_what_stands_side_by_side_ends_together_and_no_card_has_an_empty_strip(
    page: Page, dashboard: Served, path: str
) -> None:
    page.goto(f"{dashboard.url}/{path}")
    expect(page.locator(".beside li, .beside td").first).to_be_visible()
    wait_for_charts(page)
    strips = page.evaluate("""() => { const bottom = (part) => part.getBoundingClientRect().bottom;
        return Object.fromEntries([...document.querySelectorAll("main > .card")].map((card) => [
            card.id, bottom(card) - Math.max(...[...card.querySelectorAll(".part, .bk-Figure")].map(bottom))])); }""")
    assert {name: strip for name, strip in strips.items() if strip > 24} == {}
    ends = page.evaluate("""() => [".beside", "main > .card:not(.beside)"].map((kind) => Math.max(
        ...[...document.querySelectorAll(kind)].map((card) => card.getBoundingClientRect().bottom)))""")
    assert ends[0] == pytest.approx(ends[1], abs=1)


@pytest.mark.thorough
def test_it_can_be_read_on_a_phone(page: Page, dashboard: Served) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    for path in ("", "trends"):
        page.goto(f"{dashboard.url}/{path}")
        expect(page.locator("#main").get_by_text(PAGES[path][0]).filter(visible=True).first).to_be_visible()
        box = figure_box(page)
        assert box["width"] > 300
        assert box["height"] > 100
        page.screenshot(path=SCREENSHOTS / f"{path or 'overview'}-phone.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
