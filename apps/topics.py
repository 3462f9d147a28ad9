"""`pipeline topics`."""

import typer

from pipeline.broker import kafka, kafka_acls
from pipeline.errors import BadInput
from pipeline.settings import Settings


def create(settings: Settings) -> None:
    """Create the topics that are missing and say which; check the ones that exist."""
    created = kafka.create_topics(settings)
    for name in created:
        typer.echo(f"created {name}: {settings.kafka.partitions} partitions, {settings.kafka.replication} replicas")
    if not created:
        typer.echo("All topics exist, as they should be.")


def acls(settings: Settings, principal: str, *, do: bool) -> None:
    """Print every right of every stage as arguments of kafka-acls.sh, or create them (`do`).

    Raises BadInput where `principal` would be the same for all, AccessDenied where the broker does not let us.
    """
    if "{stage}" not in principal or ":" not in principal:
        raise BadInput(
            f"--principal {principal}: each stage needs one of its own.",
            "Write e.g. 'User:{stage}' or 'User:CN={stage}'.",
        )
    bindings = kafka_acls.acls(settings, principal)
    if do:
        kafka_acls.apply(settings, bindings)
        typer.echo(f"{len(bindings)} ACLs are in place.")
        return
    for binding in bindings:
        typer.echo(
            f"kafka-acls.sh --bootstrap-server {settings.kafka.bootstrap_servers} {kafka_acls.command(binding)}"
        )
