"""A Prometheus and an Alertmanager of one's own, and a place that takes what they send."""

import json
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from apps.local import HOST, Service, free_ports
from apps.process import Process
from tests.tools import require


def ask(url: str, body: object = None) -> Any:
    """GET, or POST of JSON; the answer's JSON, None where it has none."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        text = answer.read()
    return json.loads(text) if text else None


def answers(url: str) -> bool:
    """Does it answer with 200?"""
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:
        return False


class Alertmanager(Service):
    """With a configuration of its own."""

    def __init__(self, directory: Path, configuration: Path) -> None:
        (port,) = free_ports(1)
        self.url = f"http://{HOST}:{port}"
        self.address = f"{HOST}:{port}"
        command = [
            require("prometheus-alertmanager"), f"--config.file={configuration}", "--cluster.listen-address=",
            f"--storage.path={directory / 'alertmanager'}", f"--web.listen-address={self.address}",
        ]  # fmt: skip
        super().__init__([Process("Alertmanager", command, directory / "alertmanager.log")], {"Alertmanager": port})

    def answers(self) -> bool:
        """Is it ready?"""
        return answers(f"{self.url}/-/ready")

    def post(self, alerts: Sequence[Mapping[str, Any]]) -> None:
        """As Prometheus does."""
        ask(f"{self.url}/api/v2/alerts", list(alerts))

    def alerts(self) -> list[dict[str, Any]]:
        """Those that are active, silenced ones too."""
        return list(ask(f"{self.url}/api/v2/alerts"))


class Prometheus(Service):
    """Scrapes `targets` (job -> HOST:PORT), with rules, and tells an Alertmanager."""

    def __init__(
        self,
        directory: Path,
        targets: Mapping[str, str],
        rules: Path,
        *,
        every: str = "1s",
        alertmanager: Alertmanager | None = None,
        environment: str = "test",
    ) -> None:
        (port,) = free_ports(1)
        self.url = f"http://{HOST}:{port}"
        configuration = directory / "prometheus.yaml"
        configuration.parent.mkdir(parents=True, exist_ok=True)
        jobs = [
            {"job_name": job, "static_configs": [{"targets": [target], "labels": {"environment": environment}}]}
            for job, target in targets.items()
        ]
        told = [{"static_configs": [{"targets": [alertmanager.address]}]}] if alertmanager else []
        content = {
            "global": {"scrape_interval": every, "scrape_timeout": "1s", "evaluation_interval": every},
            "rule_files": [str(rules)],
            "alerting": {"alertmanagers": told},
            "scrape_configs": jobs,
        }
        configuration.write_text(yaml.safe_dump(content))
        command = [
            require("prometheus"), f"--config.file={configuration}", f"--storage.tsdb.path={directory / 'tsdb'}",
            f"--web.listen-address={HOST}:{port}", "--web.console.templates=.", "--web.console.libraries=.",
        ]  # fmt: skip
        super().__init__([Process("Prometheus", command, directory / "prometheus.log")], {"Prometheus": port})

    def answers(self) -> bool:
        """Is it ready?"""
        return answers(f"{self.url}/-/ready")

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The samples of an instant query."""
        answer = ask(f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': expr})}")
        return list(answer["data"]["result"])

    def rules(self) -> list[dict[str, Any]]:
        """Every rule, with its state."""
        groups = ask(f"{self.url}/api/v1/rules")["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]


class Webhook:
    """Remembers what is posted to it."""

    def __init__(self) -> None:
        self.received: list[dict[str, Any]] = []
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                webhook.received.append(json.loads(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Nobody reads it."""

        self._server = ThreadingHTTPServer((HOST, 0), Handler)
        self.url = f"http://{HOST}:{self._server.server_port}/"

    def seen(self, alert: str, status: str) -> list[dict[str, Any]]:
        """The alerts of that name in what came, in that state."""
        return [
            each
            for message in list(self.received)
            for each in message["alerts"]
            if each["labels"]["alertname"] == alert and each["status"] == status
        ]

    @contextmanager
    def open(self) -> Iterator["Webhook"]:
        """Listen as long as the context lasts."""
        thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()
