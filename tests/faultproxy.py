"""An HTTP proxy in front of the object store that fails as it is told to."""

import threading
import time
from collections.abc import Callable
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

Fault = Callable[[str, str], int | float | str | None]
"""(method, path) -> what happens. None: the store answers; a whole number: this HTTP status instead; any other
number: the store answers so many seconds late; `silence`: the connection is closed without passing the request on;
`lost`: it is passed on, and its answer dropped; `truncated`: only half of the answer comes, and then nothing."""

CODES = {
    403: "ExpiredToken",
    409: "OperationAborted",
    412: "PreconditionFailed",
    500: "InternalError",
    503: "SlowDown",
}
"""What S3 calls these statuses in the answer's body."""

INJECTED = "injected, not what the store said"
"""Their message."""


class FaultProxy:
    """A context manager; `fault` may be exchanged at any time."""

    def __init__(self, target: str) -> None:
        address = urlsplit(target)
        self.fault: Fault = lambda _method, _path: None
        self.requests: list[tuple[str, str]] = []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except ConnectionError:
                    self.close_connection = True

            def pass_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                proxy.requests.append((self.command, self.path))
                fault = proxy.fault(self.command, self.path)
                if isinstance(fault, int):
                    self.refuse(fault)
                    return
                if fault == "silence":
                    self.close_connection = True
                    return
                if isinstance(fault, float):
                    time.sleep(fault)  # the fault itself: the store is slow
                connection = HTTPConnection(address.hostname or "", address.port, timeout=30)
                connection.request(self.command, self.path, body, dict(self.headers))
                answer = connection.getresponse()
                content = answer.read()
                connection.close()
                if fault == "lost":
                    self.close_connection = True
                    return
                self.send_response_only(answer.status, answer.reason)
                for name, value in answer.getheaders():
                    if name.lower() not in {"transfer-encoding", "connection", "content-length"}:
                        self.send_header(name, value)
                length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
                self.send_header("Content-Length", length or "0")
                self.end_headers()
                if fault == "truncated":
                    content = content[: len(content) // 2]
                    self.close_connection = True
                if self.command != "HEAD":
                    self.wfile.write(content)

            def refuse(self, status: int) -> None:
                content = b"" if self.command == "HEAD" or status not in CODES else _error(CODES[status])
                self.send_response(status)
                self.send_header("Content-Type", "application/xml")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = pass_on  # noqa: N815 - the names are given

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint_url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


def _error(code: str) -> bytes:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{INJECTED}</Message></Error>".encode()
