"""A dashboard as a user runs it, on a lake that the stages' own functions made, and a real browser before it."""

import os
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from pydantic import SecretStr

from apps.local import free_ports
from contracts.tables import QUALITY_BOOKS, QUALITY_BREACHES
from pipeline import settings as config
from pipeline.lake.delta import Lake, append
from pipeline.monitoring.breaches import Breach, rows
from pipeline.settings import Settings
from pipeline.simulation.fleet import Fleet
from tests.fleet_lake import FleetLake
from tests.processes import all_ended, spawn, until
from tests.services import ROOT
from tests.tools import require

SCREENSHOTS = ROOT / ".screenshots"
"""Where a run of the tests leaves a picture of each page."""
expect.set_options(timeout=20_000)
HOURS = 5
SENSORS = 16


@dataclass(frozen=True)
class Served:
    """A dashboard that runs."""

    url: str
    settings: Settings
    process: subprocess.Popen[bytes]


def local_lake(directory: Path) -> config.Lake:
    """A lake on this disk."""
    return config.Lake(uri=str(directory), endpoint_url=None, access_key_id=None, secret_access_key=None)


def settings_of(directory: Path, password: str | None = None) -> Settings:
    """Of a dashboard on a free port, and of what makes its lake."""
    dashboard = config.Dashboard(port=free_ports(1)[0], password=SecretStr(password) if password else None)
    return Settings(
        lake=local_lake(directory), dashboard=dashboard, observability=config.Observability(port=0), retry_s=1.0
    )


def serve(settings: Settings, log: Path) -> Iterator[Served]:
    """Until the caller is done with it."""
    process = spawn(settings, log, "dashboard")

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{settings.dashboard.port}/favicon.ico", timeout=2).close()
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True

    with all_ended({"dashboard": process}):
        until(answers, "the dashboard", 60)
        yield Served(f"http://127.0.0.1:{settings.dashboard.port}", settings, process)
        process.terminate()
        assert process.wait(20) == 0, log.read_text()


@pytest.fixture(scope="session")
def end() -> datetime:
    """Where the fleet's readings end: just now."""
    return datetime.now(UTC).replace(microsecond=0)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, end: datetime) -> tuple[Settings, FleetLake]:
    """A lake with some hours of a fleet."""
    settings = settings_of(tmp_path_factory.mktemp("lake"))
    lake = FleetLake(settings)
    fleet = Fleet(SENSORS, seed=7, anomaly_rate=0.02, malformed_rate=0.01, duplicate_rate=0.01)
    lake.fill(fleet, end - timedelta(hours=HOURS), end, 10.0)
    note_what_was_not_kept(lake.lake, end)
    return settings, lake


def note_what_was_not_kept(lake: Lake, end: datetime) -> None:
    """As monitor and reconcile note it."""
    hours = [(500, 490), (300, 299), (52, 20), (2, 1)]
    over = [
        Breach("freshness of gold", begun, ended, ended, 900.0, 120.0, "s")
        for begun, ended in ((end - timedelta(hours=start), end - timedelta(hours=stop)) for start, stop in hours)
    ]
    begun = end - timedelta(minutes=20)
    notes = [*over, Breach("dead letters", begun, begun, None, 0.012, 0.01, "1")]
    append(lake.ensure(QUALITY_BREACHES), QUALITY_BREACHES, rows(notes), {})
    columns = {name: 0.0 if kind == pl.Float64 else 0 for name, kind in QUALITY_BOOKS.schema.items()}
    told = {"run_at": end, "since": None, "verdict": "balanced", "unknown": None, "run_date": end.date()}
    books = pl.DataFrame([columns | told], schema=QUALITY_BOOKS.schema)
    append(lake.ensure(QUALITY_BOOKS), QUALITY_BOOKS, books, {})


@pytest.fixture(scope="session")
def dashboard(made: tuple[Settings, FleetLake], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """On that lake, without a login, as on the machine of whoever develops."""
    yield from serve(made[0], tmp_path_factory.mktemp("dashboard") / "log")


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Debian's Chromium, without a window. Gone with the last test of this folder: Playwright keeps an event loop
    running in the main thread, and tests elsewhere want one of their own.
    """
    path = os.environ.get("CHROMIUM") or require("chromium")
    with sync_playwright() as playwright:
        quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        found = playwright.chromium.launch(executable_path=path, args=quiet)
        yield found
        found.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A viewer in Adelaide, whose hours are not UTC's. What the page itself gets wrong fails the test."""
    context = browser.new_context(
        viewport={"width": 1440, "height": 900}, timezone_id="Australia/Adelaide", color_scheme="light"
    )
    opened = context.new_page()
    opened.set_default_timeout(20_000)
    wrong: list[str] = []
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    yield opened
    context.close()
    assert not wrong
