"""/metrics, /healthz (liveness) and /readyz (readiness) of a process, served by a daemon thread."""

import logging
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder

from pipeline.errors import BadInput

log = logging.getLogger(__name__)


class Health:
    """Whether the loop turns, and whether the stage works.

    A loop that stood still for `wedged_after_s` is wedged. Only a ready stage is judged so: starting, recovery of
    state and retries may take longer, and killing the process would only begin them again.
    """

    def __init__(self, wedged_after_s: float) -> None:
        self._wedged_after_s = wedged_after_s
        self._beat = time.monotonic()
        self._why: str | None = "starting"

    def beat(self) -> None:
        """The loop turned."""
        self._beat = time.monotonic()

    def ready(self) -> None:
        """The stage works from now on."""
        self.beat()
        self._why = None

    def unready(self, why: str) -> None:
        """The stage does not work for now."""
        self._why = why

    @property
    def unready_because(self) -> str | None:
        """Why the stage is not ready; None when it is."""
        return self._why

    @property
    def still_s(self) -> float:
        """Seconds since the loop last turned."""
        return time.monotonic() - self._beat

    def liveness(self) -> tuple[bool, str]:
        """Alive or not, and a line that says it."""
        still = self.still_s
        if self._why is None and still > self._wedged_after_s:
            return False, f"wedged: the loop has not turned for {still:.0f} s"
        return True, "alive"

    def readiness(self) -> tuple[bool, str]:
        """Ready or not, and a line that says it."""
        return (True, "ready") if self._why is None else (False, f"not ready: {self._why}")


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002 - http.server's signature
        """A prober that hangs up before it has its answer is no news; anything else is a defect, and logged."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            log.exception("a request from %s failed", client_address)


def serve(health: Health, host: str, port: int) -> ThreadingHTTPServer:
    """Start the server on `port` (0: any free one, see `server_port`). The caller shuts it down.

    Raises BadInput where the port is taken or the address is not this machine's.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            match self.path.split("?")[0]:
                case "/metrics":
                    encode, content_type = choose_encoder(self.headers.get("Accept", ""))
                    self._answer(HTTPStatus.OK, encode(REGISTRY), content_type)
                case "/healthz":
                    self._probe(*health.liveness())
                case "/readyz":
                    self._probe(*health.readiness())
                case _:
                    self._answer(HTTPStatus.NOT_FOUND, b"/metrics /healthz /readyz\n", "text/plain; charset=utf-8")

        def _probe(self, well: bool, line: str) -> None:
            status = HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE
            self._answer(status, f"{line}\n".encode(), "text/plain; charset=utf-8")

        def _answer(self, status: HTTPStatus, body: bytes, content_type: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Probes come every few seconds: not worth a line each."""

    try:
        server = _Server((host, port), Handler)
    except OSError as error:
        raise BadInput(
            f"Cannot serve metrics on {host}:{port}: {error.strerror or error}.",
            "Does the same stage run already? PIPELINE_OBSERVABILITY__PORT chooses another; 0 takes any free one.",
        ) from None
    threading.Thread(target=server.serve_forever, args=(0.1,), name="health", daemon=True).start()
    return server
