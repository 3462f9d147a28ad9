"""`pipeline topics create`."""

import typer

from pipeline import kafka
from pipeline.settings import Settings


def create(settings: Settings) -> None:
    """Create the topics that are missing and say which; check the ones that exist."""
    created = kafka.create_topics(settings)
    for name in created:
        typer.echo(f"created {name}: {settings.kafka.partitions} partitions, {settings.kafka.replication} replicas")
    if not created:
        typer.echo("All topics exist, as they should be.")
