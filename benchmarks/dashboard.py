"""The dashboard under viewers: `make soak-dashboard` (ARGS="--minutes 10"; "--year": on a year of Gold).

Viewers speak the browser's protocol to a real process. Each has a page and follows it live; on the page of trends
they press another range every few seconds, and an update lasts from the press until the new range and all columns of
the chart have come: question, query, drawing, JSON and the way to the viewer. Meanwhile another process adds a
fleet's readings to the lake every second. Then sessions are opened and closed; what they leave behind counts.
On a year of Gold a browser that has nothing of the dashboard opens a page, which takes from there until the page's
figures are written and the first chart has its data; and then it opens it again.
"""

import argparse
import asyncio
import json
import multiprocessing
import random
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from multiprocessing.synchronize import Event as Synced
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
from playwright.sync_api import sync_playwright
from tornado.httpclient import AsyncHTTPClient
from tornado.websocket import WebSocketClientConnection, websocket_connect

from apps.gold import refreshes_of
from apps.local import free_ports, is_free
from benchmarks import results
from benchmarks.costs import slope
from contracts.tables import GOLD_SENSOR_5MIN
from pipeline import settings as config
from pipeline.lake import delta as lakes
from pipeline.lake import upkeep
from pipeline.lake.delta import Lake
from pipeline.settings import Settings
from pipeline.simulation.fleet import Fleet, batches
from tests.fleet_lake import TABLES, FleetLake
from tests.processes import all_ended, spawn, until

COOKIES = {"Cookie": "iot_zone=Europe/Berlin; iot_theme=light"}
PAGES = ("trends", "", "trends", "heatmap", "trends", "timeline", "trends", "health")
RANGES = {"15m": 900, "1h": 3600, "6h": 21_600}
THINK_S = 3.0
WEIGH_EVERY_S = 5.0
FLEET = Fleet(48, seed=7, malformed_rate=0.004, duplicate_rate=0.01, late_rate=0.005)
INTERVAL_S, HOURS = 5.0, 8
COMPACT_EVERY_S = 60.0
"""As in `make soak`: each second brings files to the day that viewers look at."""
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
        self._moved = False
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
        ready = {"type": "event", "name": "document_ready", "values": {"type": "map"}}
        event = {"kind": "MessageSent", "msg_type": "bokeh_event", "msg_data": ready}
        await self._send("PATCH-DOC", {"events": [event]})

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
            await asyncio.sleep(THINK_S * (0.5 + dice.random()))  # a viewer looks at it

    async def _press(self, buttons: tuple[str, list[str]], name: str) -> None:
        model, labels = buttons
        came: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._wanted, self._moved = (RANGES[name], came), False
        began = time.perf_counter()
        event = {"kind": "ModelChanged", "model": {"id": model}, "attr": "active", "new": labels.index(name)}
        await self._send("PATCH-DOC", {"events": [event]})
        self.updates_ms.append((await asyncio.wait_for(came, 30) - began) * 1000)

    async def _listen(self) -> None:
        """A message has come when the last of its buffers has."""
        assert self._socket is not None
        said: dict[str, Any] = {}
        buffers = missing = 0
        while (frame := await self._socket.read_message()) is not None:
            if missing:
                missing -= 1
            elif isinstance(frame, str):
                part = json.loads(frame)
                if "msgtype" in part:
                    buffers = 2 * part.get("num_buffers", 0)  # each has a header
                    if part["msgtype"] == "ACK":
                        self._welcome.set()
                elif {"doc", "events"} & part.keys():
                    said, missing = part, buffers
            if missing or not said:
                continue
            if "doc" in said and not self._document.done():
                self._document.set_result(said["doc"])
            self.messages += "events" in said
            for event in said.get("events", ()):
                self._heard(event)
            said = {}

    def _heard(self, event: dict[str, object]) -> None:
        """Take note of the new range, and of the lines that come with it or after it."""
        if self._wanted is None:
            return
        seconds, came = self._wanted
        if event.get("attr") == "start" and isinstance(event.get("new"), float | int):
            self._moved |= abs(time.time() - seconds - float(str(event["new"])) / 1000) < 60
        if self._moved and '"width"' in json.dumps(event) and event.get("attr") == "data" and not came.done():
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


def grow(settings: Settings, filled: Synced, stopping: Synced) -> None:
    """A lake with a fleet's last hours, and then a second's readings each second, and now and then a compaction. In a
    process of its own: what the pipeline's stages do elsewhere is not to hold up the viewers, who are measured.
    """
    now, lake = datetime.now(UTC), FleetLake(settings)
    start, done_us = now - timedelta(hours=HOURS), round(now.timestamp() * 1e6)
    lake.fill(FLEET, start, now, INTERVAL_S)
    filled.set()
    compacted = time.monotonic()
    for batch in batches(FLEET, start, INTERVAL_S / FLEET.sensors):
        at_us = batch.event_us
        while done_us < at_us[-1]:
            if stopping.wait(1.0):
                return
            due = np.flatnonzero((at_us > done_us) & (at_us <= int(time.time() * 1e6))).tolist()
            if due:
                sent = [round(at_us[number] / 1000) for number in due]
                lake.take([batch.values[n] for n in due], sent, [batch.labels[n] for n in due])
                lake.follow()
                done_us = int(at_us[due[-1]])
            if time.monotonic() - compacted > COMPACT_EVERY_S:
                compacted = time.monotonic()
                for table in TABLES:
                    upkeep.compact(lake.lake, table)


def settings_of(directory: Path) -> Settings:
    """Of a dashboard on a lake in this directory."""
    return Settings(
        lake=config.Lake(uri=str(directory), endpoint_url=None, access_key_id=None, secret_access_key=None),
        dashboard=config.Dashboard(port=free_ports(1)[0]),
        observability=config.Observability(port=0),
    )


async def soak(url: str, server: psutil.Process, viewers: int, minutes: float, sessions: int) -> dict[str, Any]:
    """How long updates took, and what memory did."""
    watching = [Viewer(url, PAGES[number % len(PAGES)]) for number in range(viewers)]
    for viewer in watching:
        await viewer.open()
    end = time.monotonic() + minutes * 60
    at: list[float] = []
    memory: list[float] = []

    async def weigh() -> None:
        while time.monotonic() < end:
            await asyncio.sleep(min(WEIGH_EVERY_S, max(0.0, end - time.monotonic())))  # between two weighings
            at.append(time.monotonic())
            memory.append(_mb(server))

    cpu = server.cpu_times()
    began = time.monotonic()
    await asyncio.gather(weigh(), *(viewer.watch(end) for viewer in watching))
    used = server.cpu_times()
    updates = np.array([ms for viewer in watching for ms in viewer.updates_ms])
    third = max(1, len(memory) // 3)
    for viewer in watching:
        await viewer.close()
    found: dict[str, Any] = {
        "viewers": viewers,
        "minutes": minutes,
        "updates": len(updates),
        "messages": sum(viewer.messages for viewer in watching),
        "update_ms": {f"p{q}": round(float(np.percentile(updates, q))) for q in (50, 95, 99, 100)},
        "cores": round((used.user + used.system - cpu.user - cpu.system) / (time.monotonic() - began), 2),
        "memory_mb": {
            "first": round(memory[0]),
            "middle third": round(float(np.median(memory[third : 2 * third]))),
            "last third": round(float(np.median(memory[-third:]))),
        },
        "memory_mb_by_minute": [round(each) for each in memory[:: round(60 / WEIGH_EVERY_S)]],
        "memory_mb_an_hour": round(slope(at, memory)),
    }
    print(json.dumps(found))
    await _open_and_close(url, WARM)
    await asyncio.sleep(LET_GO_S)  # nothing tells outside that sessions have ended
    before = _mb(server)
    await _open_and_close(url, sessions)
    most = _mb(server)
    await asyncio.sleep(LET_GO_S)  # as above
    left = {"opened": sessions, "before": before, "with them": most, "after": _mb(server)}
    found["sessions_mb"] = {name: round(value) for name, value in left.items()}
    print(json.dumps(found["sessions_mb"]))
    return found


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


def year(url: str) -> dict[str, dict[str, list[float]]]:
    """Seconds that a browser waits, on a year of Gold, until a page can be used: at its `first` visit, and `again`;
    five browsers."""
    found: dict[str, dict[str, list[float]]] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        for path, shown in (
            ("", ".kpi"), *((f"trends?range={span}", "#figures td") for span in ("1y", "30d", "24h")),
            ("heatmap?range=1y", "#worst td"),
        ):  # fmt: skip
            took = found[f"/{path}"] = {"first": [], "again": []}
            for _ in range(5):
                context = browser.new_context()
                page = context.new_page()
                page.goto(f"{url}/favicon.ico")
                context.add_cookies([{"name": n, "value": v, "url": url} for n, v in _cookies()])
                for seconds in took.values():
                    began = time.perf_counter()
                    page.goto(f"{url}/{path}", wait_until="commit")
                    page.locator(shown).first.wait_for()
                    page.wait_for_function(_DRAWN)
                    seconds.append(round(time.perf_counter() - began, 2))
                    page.goto("about:blank")
                context.close()
            for visit, seconds in took.items():
                print(f"/{path}, {visit}: " + ", ".join(f"{each:.2f} s" for each in seconds))
        browser.close()
    return found


_DRAWN = """() => [...(window.Bokeh?.documents[0]?._all_models?.values() ?? [])].some(
    (model) => model.type === "ColumnDataSource" && model.get_length() > 0)"""
"""Has a figure its data?"""


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
    parser.add_argument("--keep", action="store_true", help="into the results that docs/BENCHMARKS.md is made of")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        directory = given.lake or Path(place) / "lake"
        settings = settings_of(directory)
        if given.year:
            if not directory.exists():
                make_year(settings)
            with served(settings, Path(place) / "log") as (url, _):
                results.save("dashboard_year", given.keep, sensors=YEAR_SENSORS, days=YEAR_DAYS, seconds=year(url))
            return
        context = multiprocessing.get_context("spawn")
        filled, stopping = context.Event(), context.Event()
        growing = context.Process(target=grow, args=(settings, filled, stopping), name="growing", daemon=True)
        growing.start()
        until(lambda: filled.is_set() or not growing.is_alive(), "a lake", 300)
        with served(settings, Path(place) / "log") as (url, process), suppress(KeyboardInterrupt):
            found = asyncio.run(soak(url, process, given.viewers, given.minutes, given.sessions))
            results.save("dashboard", given.keep, **found)
        stopping.set()
        growing.join()


@contextmanager
def served(settings: Settings, log: Path) -> Iterator[tuple[str, psutil.Process]]:
    """A dashboard's address and process."""
    process = spawn(settings, log, "dashboard")
    with all_ended({"dashboard": process}):
        until(lambda: not is_free(settings.dashboard.port) or process.poll() is not None, "the dashboard", 60)
        assert process.poll() is None, log.read_text()
        yield f"http://127.0.0.1:{settings.dashboard.port}", psutil.Process(process.pid)


if __name__ == "__main__":
    main()
