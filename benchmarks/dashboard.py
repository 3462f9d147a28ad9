"""The dashboard under viewers: `make soak-dashboard` (ARGS="--minutes 10"; "--year": on a year of Gold).

Viewers speak the browser's protocol to a real process. Each has a page and follows it live; on the page of trends
they press another range every few seconds, and an update lasts from the press until the new range has come. Meanwhile
the lake grows by a fleet's readings every second. Then sessions are opened and closed; what they leave behind counts.
"""

import argparse
import asyncio
import gc
import json
import random
import re
import tempfile
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import psutil
from playwright.sync_api import sync_playwright
from tornado.httpclient import AsyncHTTPClient
from tornado.websocket import WebSocketClientConnection, websocket_connect

from apps.gold import refreshes_of
from apps.local import free_ports, is_free
from contracts.tables import GOLD_SENSOR_5MIN
from pipeline import settings as config
from pipeline.lake import delta as lakes
from pipeline.lake.delta import Lake
from pipeline.settings import Settings
from pipeline.simulation.fleet import Fleet, batches
from tests.fleet_lake import FleetLake
from tests.processes import all_ended, spawn, until

COOKIES = {"Cookie": "iot_zone=Europe/Berlin; iot_theme=light"}
PAGES = ("trends", "", "trends", "heatmap", "trends", "timeline", "trends", "health")
RANGES = {"15m": 900, "1h": 3600, "6h": 21_600}
THINK_S = 3.0
FLEET = Fleet(48, seed=7, malformed_rate=0.004, duplicate_rate=0.01, late_rate=0.005)
INTERVAL_S, HOURS = 5.0, 8
WARM = 40
"""Sessions before the counted ones: what the process allocates once."""
LET_GO_S = 30.0
"""How long the server takes to end sessions that were closed."""
YEAR_SENSORS, YEAR_DAYS = 200, 365
CHROMIUM = "/usr/bin/chromium"


class Viewer:
    """One open page."""

    def __init__(self, url: str, page: str) -> None:
        self._url, self._page = url, page
        self._socket: WebSocketClientConnection | None = None
        self._document: asyncio.Future[dict[str, object]] = asyncio.get_running_loop().create_future()
        self._welcome = asyncio.Event()
        self._wanted: tuple[int, asyncio.Future[float]] | None = None
        self._listening: asyncio.Task[None] | None = None
        self.updates_ms: list[float] = []
        self.messages = 0

    async def open(self) -> None:
        """Get the page, connect, and take its document."""
        page = await AsyncHTTPClient().fetch(f"{self._url}/{self._page}", headers=COOKIES, request_timeout=60)
        token = re.search(r'"token":"([^"]+)"', page.body.decode())
        assert token, "no session in the page"
        path = f"{self._url.replace('http', 'ws', 1)}/{self._page}{'/' if self._page else ''}ws"
        self._socket = await websocket_connect(path, subprotocols=["bokeh", token[1]])
        self._listening = asyncio.create_task(self._listen())
        await asyncio.wait_for(self._welcome.wait(), 60)
        await self._send("PULL-DOC-REQ", {})
        await asyncio.wait_for(self._document, 60)

    async def close(self) -> None:
        """Go away without a word, as a browser does."""
        assert self._socket is not None
        assert self._listening is not None
        self._socket.close()
        await self._listening

    async def watch(self, end: float) -> None:
        """Follow the page; where it has ranges that count, press another one now and then."""
        dice = random.Random(id(self))
        buttons = _range_buttons(json.dumps(self._document.result()))
        now = ""
        while time.monotonic() < end:
            if self._page == "trends":
                now = dice.choice([name for name in RANGES if name != now])
                await self._press(buttons, now)
            await asyncio.sleep(THINK_S * (0.5 + dice.random()))

    async def _press(self, buttons: tuple[str, list[str]], name: str) -> None:
        model, labels = buttons
        came: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._wanted = RANGES[name], came
        began = time.perf_counter()
        event = {"kind": "ModelChanged", "model": {"id": model}, "attr": "active", "new": labels.index(name)}
        await self._send("PATCH-DOC", {"events": [event]})
        self.updates_ms.append((await asyncio.wait_for(came, 30) - began) * 1000)

    async def _listen(self) -> None:
        assert self._socket is not None
        while (frame := await self._socket.read_message()) is not None:
            if not isinstance(frame, str) or not frame.startswith("{"):
                continue
            said = json.loads(frame)
            if said.get("msgtype") == "ACK":
                self._welcome.set()
            if "doc" in said and not self._document.done():
                self._document.set_result(said["doc"])
            self.messages += "events" in said
            for event in said.get("events", ()):
                self._heard(event)

    def _heard(self, event: dict[str, object]) -> None:
        if self._wanted is None or event.get("attr") != "start" or not isinstance(event.get("new"), float | int):
            return
        seconds, came = self._wanted
        start_s = float(str(event["new"])) / 1000
        if abs(time.time() - seconds - start_s) < 60 and not came.done():
            came.set_result(time.perf_counter())

    async def _send(self, kind: str, content: dict[str, object]) -> None:
        assert self._socket is not None
        for part in ({"msgid": f"v{time.perf_counter_ns()}", "msgtype": kind}, {}, content):
            await self._socket.write_message(json.dumps(part))


def _range_buttons(document: str) -> tuple[str, list[str]]:
    """Id and labels of the buttons for ranges, in a document's JSON."""
    found: tuple[str, list[str]] = "", []

    def look(node: object) -> None:
        nonlocal found
        if isinstance(node, dict):
            labels = node.get("attributes", {}).get("labels") if isinstance(node.get("attributes"), dict) else None
            if isinstance(labels, list) and "15m" in labels:
                found = str(node["id"]), labels
            for value in node.values():
                look(value)
        elif isinstance(node, list):
            for value in node:
                look(value)

    look(json.loads(document))
    return found


class Growing(threading.Thread):
    """Adds a second's readings each second: the fleet that was there since `start` goes on after `now`."""

    def __init__(self, lake: FleetLake, start: datetime, now: datetime) -> None:
        super().__init__(name="growing", daemon=True)
        self._lake = lake
        self._start = start
        self._now = now
        self.stopping = threading.Event()

    def run(self) -> None:
        done_us = round(self._now.timestamp() * 1e6)
        for batch in batches(FLEET, self._start, INTERVAL_S / FLEET.sensors):
            at_us = batch.event_us
            while done_us < at_us[-1]:
                if self.stopping.wait(1.0):
                    return
                now_us = int(time.time() * 1e6)
                due = np.flatnonzero((at_us > done_us) & (at_us <= now_us)).tolist()
                if due:
                    sent = [round(at_us[number] / 1000) for number in due]
                    self._lake.take([batch.values[n] for n in due], sent, [batch.labels[n] for n in due])
                    self._lake.follow()
                    done_us = int(at_us[due[-1]])


def settings_of(directory: Path) -> Settings:
    """Of a dashboard on a lake in this directory."""
    return Settings(
        lake=config.Lake(uri=str(directory), endpoint_url=None, access_key_id=None, secret_access_key=None),
        dashboard=config.Dashboard(port=free_ports(1)[0]),
        observability=config.Observability(port=0),
    )


async def soak(url: str, server: psutil.Process, viewers: int, minutes: float, sessions: int) -> None:
    """Print how long updates took, and what memory did."""
    watching = [Viewer(url, PAGES[number % len(PAGES)]) for number in range(viewers)]
    for viewer in watching:
        await viewer.open()
    end = time.monotonic() + minutes * 60
    memory: list[float] = []

    async def weigh() -> None:
        while time.monotonic() < end:
            await asyncio.sleep(min(5.0, max(0.0, end - time.monotonic())))
            memory.append(_mb(server))

    cpu = server.cpu_times()
    began = time.monotonic()
    await asyncio.gather(weigh(), *(viewer.watch(end) for viewer in watching))
    used = server.cpu_times()
    share = (used.user + used.system - cpu.user - cpu.system) / (time.monotonic() - began)
    updates = np.array([ms for viewer in watching for ms in viewer.updates_ms])
    p50, p95, most = (float(np.percentile(updates, q)) for q in (50, 95, 100))
    messages = sum(viewer.messages for viewer in watching)
    print(f"{viewers} viewers, {minutes:g} min: {len(updates)} updates, p50 {p50:.0f} ms, p95 {p95:.0f} ms, "
          f"longest {most:.0f} ms; {messages:,} messages; {share:.0%} of a core")  # fmt: skip
    third = max(1, len(memory) // 3)
    middle, last = np.median(memory[third : 2 * third]), np.median(memory[-third:])
    print(f"memory: {memory[0]:.0f} MB at first, {middle:.0f} MB in the middle third, {last:.0f} MB in the last")
    for viewer in watching:
        await viewer.close()
    await _open_and_close(url, WARM)
    await asyncio.sleep(LET_GO_S)
    before = _mb(server)
    await _open_and_close(url, sessions)
    most_mb = _mb(server)
    await asyncio.sleep(LET_GO_S)
    after = _mb(server)
    print(f"{sessions} sessions opened and closed: {before:.0f} MB before, {most_mb:.0f} MB with them, "
          f"{after:.0f} MB after: {after - before:+.0f} MB")  # fmt: skip


async def _open_and_close(url: str, count: int) -> None:
    for number in range(count):
        viewer = Viewer(url, PAGES[number % len(PAGES)])
        await viewer.open()
        await viewer.close()


def _mb(process: psutil.Process) -> float:
    return float(process.memory_info().rss) / 1e6


def make_year(settings: Settings) -> None:
    """A year of windows of 200 sensors into Gold, with its hours and days."""
    lake, dice = Lake(settings.lake), np.random.default_rng(7)
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    kinds = ["temperature", "humidity", "pressure", "vibration"]
    sensors = pl.DataFrame(
        {
            "sensor_id": [f"{kinds[each % 4]}-{each:03}" for each in range(YEAR_SENSORS)],
            "sensor_type": [kinds[each % 4] for each in range(YEAR_SENSORS)],
            "location": [f"hall-{each % 10}" for each in range(YEAR_SENSORS)],
            "level": [(20.0, 50.0, 1010.0, 3.0)[each % 4] for each in range(YEAR_SENSORS)],
        }
    )
    day = sensors.join(pl.DataFrame({"minute": range(0, 1440, 5)}), how="cross")
    table = lake.ensure(GOLD_SENSOR_5MIN)
    for back in reversed(range(YEAR_DAYS)):
        start = today - timedelta(days=back)
        half = pl.Series(np.abs(dice.normal(1, 0.2, len(day))))
        level = day["level"] + pl.Series(dice.normal(0, 1, len(day)))
        values = {
            "avg": level, "min": level - half, "max": level + half, "p50": level, "p95": level + half * 0.8,
            "p99": level + half * 0.95, "sum": level * 30, "m2": half * 29, "std": half.sqrt(),
            "anomaly_count": pl.Series((dice.random(len(day)) < 0.02).astype(np.int64)),
        }  # fmt: skip
        rows = day.with_columns(
            window_start=pl.lit(start) + pl.duration(minutes=pl.col("minute")),
            event_date=pl.lit(start.date()),
            health_pct=pl.lit(100.0),
            **{name: pl.lit(30, pl.Int64) for name in ("count", "expected_count", "reported_count")},
            **values,
        ).filter(pl.col("window_start") <= datetime.now(UTC))
        written = rows.select(GOLD_SENSOR_5MIN.schema.names()).cast(dict(GOLD_SENSOR_5MIN.schema))
        lakes.append(table, GOLD_SENSOR_5MIN, written, {"year": YEAR_DAYS - back})
    for refresh in refreshes_of(settings, lake)[1:]:
        refresh()


def year(url: str) -> None:
    """Print how long a browser waits, on a year of Gold, until a page shows its figures."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        for path, shown in (
            ("", ".kpi"), *((f"trends?range={span}", "#figures td") for span in ("1y", "30d", "24h")),
            ("heatmap?range=1y", "#worst td"),
        ):  # fmt: skip
            times = []
            for _ in range(3):
                context = browser.new_context()
                page = context.new_page()
                page.goto(f"{url}/favicon.ico")
                context.add_cookies([{"name": n, "value": v, "url": url} for n, v in _cookies()])
                began = time.perf_counter()
                page.goto(f"{url}/{path}")
                page.locator(shown).first.wait_for()
                times.append(time.perf_counter() - began)
                context.close()
            print(f"a year of {YEAR_SENSORS} sensors, /{path}: " + ", ".join(f"{took:.2f} s" for took in times))
        browser.close()


def _cookies() -> list[tuple[str, str]]:
    return [(name, value) for name, _, value in (each.partition("=") for each in COOKIES["Cookie"].split("; "))]


def main() -> None:
    """Make a lake, start a dashboard, and measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dashboard", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long viewers watch")
    parser.add_argument("--viewers", type=int, default=20)
    parser.add_argument("--sessions", type=int, default=200, help="opened and closed afterwards")
    parser.add_argument("--year", action="store_true", help="on a year of Gold: how soon pages can be used")
    parser.add_argument("--lake", type=Path, help="directory of the lake of --year; made where there is none")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        directory = given.lake or Path(place) / "lake"
        settings = settings_of(directory)
        growing = None
        if given.year:
            if not directory.exists():
                make_year(settings)
        else:
            now, lake = datetime.now(UTC), FleetLake(settings)
            start = now - timedelta(hours=HOURS)
            lake.fill(FLEET, start, now, INTERVAL_S)
            growing = Growing(lake, start, now)
        gc.collect()
        process = spawn(settings, Path(place) / "log", "dashboard")
        with all_ended({"dashboard": process}):
            port = settings.dashboard.port
            until(lambda: not is_free(port) or process.poll() is not None, "the dashboard", 60)
            assert process.poll() is None, (Path(place) / "log").read_text()
            url = f"http://127.0.0.1:{port}"
            if growing is None:
                year(url)
                return
            growing.start()
            with suppress(KeyboardInterrupt):
                asyncio.run(soak(url, psutil.Process(process.pid), given.viewers, given.minutes, given.sessions))
            growing.stopping.set()
            growing.join()


if __name__ == "__main__":
    main()
