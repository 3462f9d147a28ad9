"""What a stage loads: nothing that costs its start and its memory and that it does not work with."""

import subprocess
import sys

import pytest

COMPILED = {"numba", "llvmlite"}
STREAM = {"quixstreams", "confluent_kafka", "rocksdict"}
NOWHERE = {"pandas", "hypothesis", "httpx", "s3fs", "pint", "panel", "boto3"}


@pytest.mark.parametrize(
    ("stage", "without"),
    [
        ("ingest", {"deltalake", "psycopg"}),
        ("bronze", COMPILED | {"psycopg"}),
        ("detect", {"deltalake", "psycopg"}),
        ("silver", STREAM | {"psycopg"}),
        ("gold", STREAM | COMPILED | {"psycopg"}),
        ("load", STREAM | COMPILED),
    ],
)
def test_a_stage_loads_only_what_it_works_with(stage: str, without: set[str]) -> None:
    script = f"import sys, apps.{stage}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not set(loaded.stdout.split()) & (without | NOWHERE)


def test_nothing_comes_later_with_a_first_conversion_or_a_first_check() -> None:
    script = """if True:
        import sys, apps.bronze
        import numpy as np, polars as pl
        from contracts.tables import BRONZE_READINGS
        from pipeline.arrow import pa
        from pipeline.lake.quality import validated
        from pipeline.lake.delta import _session
        pa.array(np.zeros(1)), pa.scalar(b"")
        pa.array(["a"]).dictionary_encode().indices.to_numpy(zero_copy_only=False)
        validated(pl.DataFrame(schema=BRONZE_READINGS.schema), BRONZE_READINGS)
        _session()
        print(*sys.modules)
    """
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not set(loaded.stdout.split()) & {"pandas", "hypothesis", "httpx"}


def test_a_table_still_becomes_one_of_pandas() -> None:
    script = "from pipeline.arrow import pa; import pandas; print(pa.table({'a': [1]}).to_pandas()['a'].tolist())"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert shown.stdout == "[1]\n"
