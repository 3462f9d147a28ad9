"""A TCP proxy that can fall silent: it goes on taking connections and bytes, and passes none of them on."""

import socket
import threading
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Self


class SilentProxy:
    """A context manager. While `silent` is set, whoever connects waits, and so does whoever is connected."""

    def __init__(self, host: str, port: int) -> None:
        self.silent = threading.Event()
        self._target = host, port
        self._server = socket.create_server(("127.0.0.1", 0))
        self._open = ExitStack()

    @property
    def port(self) -> int:
        """Where it listens, on 127.0.0.1."""
        return int(self._server.getsockname()[1])

    def _serve(self) -> None:
        with suppress(OSError):  # it was closed
            while True:
                here, _ = self._server.accept()
                there = socket.create_connection(self._target)
                for each in (here, there):
                    self._open.callback(_close, each)
                for source, sink in ((here, there), (there, here)):
                    threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):  # one of the two was closed
            while read := source.recv(65_536):
                if not self.silent.is_set():
                    sink.sendall(read)
        _close(sink)

    def __enter__(self) -> Self:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _close(self._server)
        self._open.close()


def _close(connection: socket.socket) -> None:
    with suppress(OSError):  # it is no longer connected
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
