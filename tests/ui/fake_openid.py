"""A fake OpenID Connect provider: the three endpoints that a login by authorization code needs, for one client."""

import json
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlencode, urlsplit

CLIENT, SECRET, USER = "dashboard", "a secret of the client", "ada@example.org"


@dataclass
class Provider:
    """Where it listens, and what it gave out: each code is good for one token, each token for this user."""

    url: str
    codes: dict[str, str] = field(default_factory=dict)
    """Code -> the address that it was sent to."""
    tokens: set[str] = field(default_factory=set)

    def page(self, asked: dict[str, str]) -> str:
        """Asks the user, as RFC 6749 (4.1.1) has it. Raises KeyError where the client forgot something."""
        assert (asked["response_type"], asked["client_id"]) == ("code", CLIENT)
        code = secrets.token_urlsafe()
        self.codes[code] = asked["redirect_uri"]
        answer = urlencode({"code": code, "state": asked["state"]})
        return f'<p>Log in to <b>{CLIENT}</b>?</p><a href="{escape(asked["redirect_uri"])}?{answer}">As {USER}</a>'

    def token(self, asked: dict[str, str]) -> dict[str, object] | None:
        """For a code that was given out, to the client itself (4.1.3); None: refused."""
        sent_to = self.codes.pop(asked.get("code", ""), None)
        mine = (asked.get("client_id"), asked.get("client_secret")) == (CLIENT, SECRET)
        if not mine or sent_to != asked.get("redirect_uri") or asked.get("grant_type") != "authorization_code":
            return None
        token = secrets.token_urlsafe()
        self.tokens.add(token)
        return {"access_token": token, "token_type": "Bearer", "expires_in": 3600}


@contextmanager
def provider() -> Iterator[Provider]:
    """One that runs, on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = urlsplit(self.path)
            if path.path == "/authorize":
                asked = {name: values[0] for name, values in parse_qs(path.query).items()}
                self._say(200, "text/html", running.page(asked))
            elif path.path == "/userinfo" and self.headers["Authorization"].removeprefix("Bearer ") in running.tokens:
                self._say(200, "application/json", json.dumps({"sub": "1", "email": USER}))
            elif path.path == "/favicon.ico":
                self._say(200, "image/x-icon", "")
            else:
                self._say(404, "text/plain", "not here")

        def do_POST(self) -> None:
            text = self.rfile.read(int(self.headers["Content-Length"])).decode()
            given = running.token({name: values[0] for name, values in parse_qs(text).items()})
            told = given if given else {"error": "invalid_grant"}
            self._say(200 if given else 401, "application/json", json.dumps(told))

        def _say(self, status: int, kind: str, text: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            """Nothing on standard error."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running = Provider(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield running
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
