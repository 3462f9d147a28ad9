"""dashboard: the lake in the browser, five pages, served by Panel until stopped."""

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from threading import Thread

import panel as pn
from bokeh.settings import settings as bokeh
from tornado.ioloop import PeriodicCallback

from apps.dashboard.access import origins, rules
from apps.dashboard.cache import Cache
from apps.dashboard.frame import PageKind, render
from apps.dashboard.health import Health
from apps.dashboard.heatmap import Heatmap
from apps.dashboard.overview import Overview
from apps.dashboard.source import Source
from apps.dashboard.timeline import Timeline
from apps.dashboard.trends import Trends
from pipeline.errors import BadInput, PipelineError
from pipeline.settings import Settings
from pipeline.stage import running

PAGES = (
    PageKind("", "Overview", "How the fleet is now, where, and what is out of the ordinary.", Overview),
    PageKind("trends", "Trends", "Sensors over time: drag to zoom, and the resolution follows.", Trends),
    PageKind("heatmap", "Heatmap", "Locations over time, or by what they measure.", Heatmap),
    PageKind("timeline", "Timeline", "What was out of the ordinary, when, and why.", Timeline),
    PageKind("health", "Pipeline", "Each stage's pace, lag and freshness; bad data; the books.", Health),
)

_UNUSED_SESSION_MS = 15_000
_TICK_MS = 200

log = logging.getLogger(__name__)


def run(settings: Settings) -> None:
    """Serve the pages. Raises BadInput where the port is taken, or anybody could come in from another machine."""
    # Every session has the same layout: to look for mistakes in it took 0.05 s of the 0.2 to 0.4 that one costs.
    bokeh.perform_document_validation = False
    address = settings.dashboard
    login = rules(address)
    source = Source(settings)
    with running("dashboard", settings) as stage, Cache(source) as cache:
        pages = {kind.path or "/": _maker(kind, cache, logout=bool(login)) for kind in PAGES}
        try:
            server = pn.serve(
                pages,
                address=address.host,
                port=address.port,
                websocket_origin=origins(address),
                title={kind.path or "/": kind.title for kind in PAGES},
                show=False,
                start=False,
                verbose=False,
                unused_session_lifetime_milliseconds=_UNUSED_SESSION_MS,
                check_unused_sessions_milliseconds=_UNUSED_SESSION_MS // 3,
                **login,
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

        ticking = PeriodicCallback(tick, _TICK_MS)
        server.start()
        ticking.start()
        stage.ready()
        Thread(target=_read_ahead, args=[source], name="ahead", daemon=True).start()
        server.io_loop.start()
        ticking.stop()
        server.stop()


def _read_ahead(source: Source) -> None:
    """What it does not get is read when somebody asks for it."""
    try:
        source.read_ahead(datetime.now(UTC))
    except PipelineError as error:
        log.warning("the year is not read ahead: %s", error.what)


def _maker(kind: PageKind, cache: Cache, *, logout: bool) -> Callable[[], None]:
    """A function proper, which is what Panel calls for each session."""
    return lambda: render(kind, PAGES, cache, logout=logout)
