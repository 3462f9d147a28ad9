"""Run every stage from the image: as nobody, read-only, without a capability, against services of this machine.

    python deploy/image/check.py [IMAGE]

A broker, a store and a warehouse are started here (those of the demo), a few thousand readings go through the whole
pipeline, each stage in a container of its own on the host's network, and the books have to balance in the end.
"""

import json
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from apps.local import Broker, ObjectStore, Postgres, Service, free_ports

READINGS = 5000
STAGES = ("ingest", "detect", "bronze", "silver", "gold", "load")
RESTRICTED = ["--read-only", "--tmpfs", "/tmp", "--user", "10001:10001", "--cap-drop", "ALL",
              "--security-opt", "no-new-privileges", "--network", "host"]  # fmt: skip


def run(image: str, settings: dict[str, str], *command: str, more: tuple[str, ...] = ()) -> str:
    """What a container of it printed. Ends us, with its last words, where it failed."""
    environment = [part for name, value in settings.items() for part in ("--env", f"{name}={value}")]
    asked = ["docker", "run", *more, *RESTRICTED, *environment, image, *command]
    started = time.monotonic()
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"pipeline {' '.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    print(f"ok  pipeline {' '.join(command)}  ({time.monotonic() - started:.1f} s)", flush=True)
    return done.stdout


def serving(image: str, settings: dict[str, str], stage: str) -> None:
    """A stage that goes on until it is stopped: ready, then gone with exit code 0 at SIGTERM."""
    (port,) = free_ports(1)
    own = settings | {"PIPELINE_OBSERVABILITY__PORT": str(port), "PIPELINE_OBSERVABILITY__HOST": "127.0.0.1"}
    container = run(image, own, stage, more=("--detach",)).strip()
    try:
        end = time.monotonic() + 120
        while not answers(f"http://127.0.0.1:{port}/readyz"):
            if time.monotonic() > end:
                sys.exit(f"{stage} was not ready within two minutes.")
            time.sleep(0.2)  # between two looks
        subprocess.run(["docker", "stop", "--time", "30", container], check=True, capture_output=True)
        asked = ["docker", "inspect", "--format", "{{.State.ExitCode}}", container]
        code = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
        if code != "0":
            sys.exit(f"{stage} ended with {code} at SIGTERM.")
        print(f"ok  pipeline {stage}: ready, and ended in order", flush=True)
    finally:
        subprocess.run(["docker", "rm", "--force", "--volumes", container], check=False, capture_output=True)


def answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (URLError, ConnectionError, TimeoutError):
        return False


def main(image: str) -> None:
    """The whole check; ends with the image's size."""
    with ExitStack() as running:
        place = Path(running.enter_context(tempfile.TemporaryDirectory()))
        for name in ("broker", "store", "postgres"):
            (place / name).mkdir()
        broker, store, postgres = Broker(place / "broker"), ObjectStore(place / "store"), Postgres(place / "postgres")
        services: tuple[Service, ...] = (broker, store, postgres)
        for service in services:
            running.enter_context(service)
        settings = {
            "PIPELINE_KAFKA__BOOTSTRAP_SERVERS": broker.bootstrap_servers,
            "PIPELINE_LAKE__ENDPOINT_URL": store.endpoint_url,
            "PIPELINE_WAREHOUSE__PORT": str(postgres.port),
            "PIPELINE_OBSERVABILITY__PORT": "0",
        }
        print(run(image, settings, "--version", more=("--rm",)).strip())
        run(image, settings, "topics", "create", more=("--rm",))
        run(image, settings, "warehouse", "init", more=("--rm",))
        run(image, settings, "simulate", "--max-events", str(READINGS), "--rate", "0", more=("--rm",))
        for stage in STAGES:
            run(image, settings, stage, "--until-caught-up", more=("--rm",))
        books = json.loads(run(image, settings, "reconcile", "--json", more=("--rm",)))
        print(f"books: {json.dumps(books)[:300]}")
        for stage in ("monitor", "dashboard"):
            serving(image, settings, stage)
    size = ["docker", "image", "inspect", "--format", "{{.Size}}", image]
    found = subprocess.run(size, check=True, capture_output=True, text=True).stdout
    print(f"{image}: {int(found) / 1e6:.0f} MB")


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["iot-stream-pipeline:local"]))
