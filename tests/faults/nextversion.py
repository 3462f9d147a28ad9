"""The version after this one, which there is not yet: its readings have a column more, `firmware`."""

import os
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import polars as pl

FIRMWARE = "2.0"
"""What its ingest writes into the new column."""


def become() -> None:
    """Be that version, in this process; before anything else of the product is imported."""
    from contracts.tables import BronzeReadings
    from contracts.validation import pa

    class NextReadings(BronzeReadings):
        """bronze/readings with what is new."""

        firmware: str = pa.Field(nullable=True, description="What the device runs")

        class Config:
            strict = True

    tables: Any = import_module("contracts.tables")
    before = tables.BRONZE_READINGS
    after = tables.Table(before.path, NextReadings, before.partition_by, before.key)
    tables.SCHEMA_VERSION += 1
    tables.BRONZE_READINGS = after
    tables.TABLES = tuple(after if each is before else each for each in tables.TABLES)

    import_module("pipeline.wire.decode")  # has the columns of the wire, where nothing is new
    microbatch: Any = import_module("pipeline.wire.microbatch")
    microbatch.SCHEMA_VERSION += 1
    version = str(microbatch.SCHEMA_VERSION)
    microbatch.READING_SCHEMA = pl.Schema({**microbatch.READING_SCHEMA, "firmware": pl.String()})
    microbatch._HEADERS = [(microbatch.SCHEMA_HEADER, version.encode())]
    columns = pl.DataFrame(schema=microbatch.READING_SCHEMA).to_arrow(compat_level=pl.CompatLevel.oldest()).schema
    microbatch._SCHEMA = columns.with_metadata({microbatch.SCHEMA_HEADER: version})

    ingest: Any = import_module("apps.ingest")
    detector: Any = import_module("pipeline.detection.detector")
    ingest.pack = lambda valid, partitions: microbatch.pack(valid.with_columns(firmware=pl.lit(FIRMWARE)), partitions)
    detector.unpack = lambda value: microbatch.unpack(value).drop_columns(["firmware"])


def migrate(environment: Mapping[str, str]) -> None:
    """Be that version, and do what its `pipeline lake migrate` does."""
    os.environ.update(environment)
    become()
    from apps import lake
    from pipeline.settings import Settings

    lake.migrate(Settings())
