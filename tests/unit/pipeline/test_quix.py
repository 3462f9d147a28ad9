"""What Quix Streams is imported without, and that nobody else misses it."""

import subprocess
import sys


def said(script: str) -> str:
    """What it printed. Warnings of what others import are none of it."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_stage_starts_without_clients_of_a_schema_registry() -> None:
    script = "import sys, apps.bronze; print([name for name in sys.modules if name.startswith(('httpx', 'authlib'))])"
    assert said(script) == "[]"


def test_whoever_wants_the_real_ones_afterwards_gets_them() -> None:
    script = """
import pipeline.broker.quix, confluent_kafka.schema_registry, httpx
from confluent_kafka.schema_registry import SchemaRegistryClient
SchemaRegistryClient({"url": "http://localhost"})
print(httpx.codes.OK.value, pipeline.broker.quix.Application.__module__)
"""
    assert said(script) == "200 quixstreams.app"
