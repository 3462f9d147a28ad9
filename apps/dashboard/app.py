"""dashboard: one page from Gold, served by Panel until stopped."""

from datetime import UTC, datetime

import panel as pn
import polars as pl
from tornado.ioloop import PeriodicCallback

from apps.dashboard.data import Snapshot, Snapshots, freshness
from pipeline.errors import BadInput
from pipeline.lake import Lake
from pipeline.settings import Settings
from pipeline.stage import running

_REFRESH_MS = 5_000
_UNUSED_SESSION_MS = 30_000


def run(settings: Settings) -> None:
    """Serve the page. Raises BadInput where its port is taken."""
    address = settings.dashboard
    with running("dashboard", settings) as stage:
        snapshots = Snapshots(Lake(settings.lake))
        try:
            server = pn.serve(
                lambda: page(snapshots),
                address=address.host,
                port=address.port,
                websocket_origin=[f"{address.host}:{address.port}", f"localhost:{address.port}"],
                title="IoT pipeline",
                show=False,
                start=False,
                verbose=False,
                unused_session_lifetime_milliseconds=_UNUSED_SESSION_MS,
                check_unused_sessions_milliseconds=_UNUSED_SESSION_MS // 2,
            )
        except OSError as error:
            raise BadInput(
                f"Cannot serve the dashboard on {address.host}:{address.port}: {error.strerror or error}.",
                "Choose another port with PIPELINE_DASHBOARD__PORT.",
            ) from None

        def tick() -> None:
            stage.beat()
            if stage.stopping.is_set():
                server.io_loop.stop()

        ticking = PeriodicCallback(tick, 200)
        server.start()
        ticking.start()
        stage.ready()
        server.io_loop.start()
        ticking.stop()
        server.stop()


def page(snapshots: Snapshots) -> pn.viewable.Viewable:
    """The page of one session, which refreshes itself."""
    body = pn.Column(sizing_mode="stretch_width")

    def refresh() -> None:
        now = datetime.now(UTC)
        body[:] = content(snapshots.at(now), now)

    refresh()
    pn.state.add_periodic_callback(refresh, period=_REFRESH_MS)
    return body


def content(snapshot: Snapshot, now: datetime) -> list[pn.viewable.Viewable]:
    """What is on the page: freshness, what is wrong, figures, locations, anomalies."""
    shown = [pn.pane.Markdown("# IoT pipeline"), pn.pane.Str(freshness(snapshot, now))]
    if snapshot.problem:
        shown.append(pn.pane.Alert(f"Not everything could be read: {snapshot.problem}", alert_type="warning"))
    if snapshot.day is not None and not snapshot.day.is_empty():
        shown += [pn.Row(*_figures(snapshot.day)), pn.pane.Markdown("## Newest day"), _table(snapshot.day)]
    if snapshot.anomalies is not None:
        shown += [pn.pane.Markdown("## Last anomalies"), _table(snapshot.anomalies)]
    return shown


def _figures(day: pl.DataFrame) -> list[pn.viewable.Viewable]:
    readings, anomalies = int(day["readings"].sum()), int(day["anomalies"].sum())
    health = day["health_pct"].mean()
    return [
        pn.indicators.Number(name="Series", value=int(day["sensors"].sum()), format="{value:,}"),
        pn.indicators.Number(name="Readings", value=readings, format="{value:,}"),
        pn.indicators.Number(name="Anomalies", value=anomalies, format="{value:,}"),
        pn.indicators.Number(name="Health", value=health, format="{value:.1f} %", nan_format="-"),
    ]


def _table(rows: pl.DataFrame) -> pn.viewable.Viewable:
    return pn.pane.DataFrame(rows.to_pandas(), index=False, escape=True)
