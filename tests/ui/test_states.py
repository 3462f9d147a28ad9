"""What is shown where nothing can be: before a login, on an empty lake, of old data, when the lake cannot be read."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from contracts.tables import GOLD_SENSOR_5MIN
from pipeline.settings import Settings
from tests.fleet_lake import FleetLake
from tests.ui.conftest import Served, serve, settings_of

pytestmark = pytest.mark.timeout(120)

MOST_PAGES = 8
PASSWORD = "correct horse battery staple"


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Served]:
    """A dashboard with a login, on a lake in which nothing is yet."""
    settings = settings_of(tmp_path / "lake", PASSWORD)
    few = settings.dashboard.model_copy(update={"max_sessions": MOST_PAGES})
    yield from serve(settings.model_copy(update={"dashboard": few}), tmp_path / "log")


def log_in(page: Page, password: str) -> None:
    page.get_by_label("User").fill("anybody")
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Log in").click()


def age(commit: Path, hours: int) -> None:
    """Let a commit have been made so long ago."""
    actions = [json.loads(line) for line in commit.read_text().splitlines()]
    for action in actions:
        if "commitInfo" in action:
            action["commitInfo"]["timestamp"] -= hours * 3_600_000
    commit.write_text("".join(json.dumps(action) + "\n" for action in actions))


@pytest.mark.thorough
def test_only_who_logs_in_sees_anything_and_everybody_sees_how_fresh_it_is(
    page: Page, locked: Served, made: tuple[Settings, FleetLake]
) -> None:
    page.goto(f"{locked.url}/health")
    log_in(page, "guess")
    expect(page.get_by_role("alert")).to_contain_text("Invalid")
    assert page.context.request.get(f"{locked.url}/trends", max_redirects=0).status == 302
    log_in(page, PASSWORD)
    page.wait_for_url(f"{locked.url}/")

    page.goto(f"{locked.url}/trends")
    expect(page.locator("#main")).to_contain_text("No data yet")
    page.goto(locked.url)
    badge = page.locator(".badge")
    expect(badge).to_contain_text("No data yet")
    expect(page.locator("#locations")).to_contain_text("Gold has no rows")

    lake = Path(locked.settings.lake.uri)
    log = lake / GOLD_SENSOR_5MIN.path / "_delta_log"
    shutil.copytree(made[0].lake.uri, lake.with_name("aged"))
    aged = lake.with_name("aged") / GOLD_SENSOR_5MIN.path / "_delta_log"
    for commit in aged.glob("*.json"):
        age(commit, hours=2)
    lake.with_name("aged").rename(lake)
    expect(badge).to_contain_text("No new data for 2", timeout=10_000)
    expect(page.locator("#kpis")).to_contain_text("Active sensors")

    (log / f"{len(list(log.glob('*.json'))):020}.json").write_text("not a commit")
    expect(badge).to_contain_text("last fresh", timeout=10_000)
    expect(page.locator("#kpis .note")).to_contain_text("As of")
    expect(page.locator("#kpis")).to_contain_text("Active sensors")
    told = page.content()
    assert locked.settings.lake.uri not in told
    assert "Traceback" not in told

    pages = [page.context.request.get(locked.url).text() for _ in range(MOST_PAGES + 1)]
    assert "Too many pages" in pages[-1]
    assert "Too many pages" not in pages[0]

    expect(page.locator("#lost")).to_be_hidden()
    locked.process.terminate()
    expect(page.locator("#lost")).to_be_visible()
