"""The files that COPY reads, proven from their own metadata."""

import io
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

from contracts.warehouse import DIMENSIONS, FACTS, Relation
from pipeline import settings as config
from pipeline.errors import BadInput
from pipeline.lake.delta import Lake
from pipeline.warehouse.export import expire, export, parquet

RELATIONS = [*(fact.relation for fact in FACTS), *(dimension.relation for dimension in DIMENSIONS)]

EXPECTED = {
    # INT96, Arrow's older choice, has no logical type, and nanoseconds, which Redshift reads as years far off; a time
    # that is not adjusted to UTC would be a reader's local time.
    pl.Datetime("us", "UTC"): ("INT64", "Timestamp(isAdjustedToUTC=true, timeUnit=microseconds", "TIMESTAMP_MICROS"),
    # Polars counts in UINT32, which Redshift has no type for: BIGINT takes INT64, without a logical type.
    pl.Int64(): ("INT64", "None", "NONE"),
    pl.Int32(): ("INT32", "None", "NONE"),
    pl.Float64(): ("DOUBLE", "None", "NONE"),
    pl.Boolean(): ("BOOLEAN", "None", "NONE"),
    # Without the logical type the bytes would be VARBYTE, and the days a number.
    pl.String(): ("BYTE_ARRAY", "String", "UTF8"),
    pl.Date(): ("INT32", "Date", "DATE"),
}
"""Physical, logical and converted type; COPY goes by the converted type where a reader does not know the logical."""

VALUES = {
    pl.String(): "x",
    pl.Float64(): 0.5,
    pl.Boolean(): True,
    pl.Date(): date(2026, 3, 1),
    pl.Datetime("us", "UTC"): datetime(2026, 3, 1, 0, 5, 0, 123_456, tzinfo=UTC),
}


def a_row(relation: Relation) -> pl.DataFrame:
    row = {
        name: datetime(2026, 3, 1, 0, 5, 0, 123_456, tzinfo=UTC)
        if isinstance(type, pl.Datetime)
        else VALUES.get(type, 7)
        for name, type in relation.schema.items()
    }
    return pl.DataFrame([row], schema=relation.schema)


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda relation: relation.name)
def test_every_column_has_the_types_that_copy_takes_in_the_order_of_the_table(relation: Relation) -> None:
    shuffled = a_row(relation).select(reversed(relation.schema.names()))
    file = pq.ParquetFile(io.BytesIO(parquet(shuffled, relation)))
    assert file.schema.names == relation.schema.names()  # by place, and none is left out, the partition's neither
    for place, type in enumerate(relation.schema.values()):
        column = file.schema.column(place)
        physical, logical, converted = EXPECTED[type]
        assert (column.physical_type, column.converted_type) == (physical, converted)
        assert str(column.logical_type).startswith(logical)
    assert file.metadata.row_group(0).column(0).compression == "SNAPPY"
    assert b"ARROW:schema" not in (file.metadata.metadata or {})


def test_counts_of_another_width_become_int64() -> None:
    relation = FACTS[0].relation
    frame = a_row(relation).with_columns(pl.col("count").cast(pl.UInt32))
    file = pq.ParquetFile(io.BytesIO(parquet(frame, relation)))
    assert file.schema.column(relation.schema.names().index("count")).physical_type == "INT64"


def test_a_microsecond_is_kept() -> None:
    relation = FACTS[0].relation
    written = pl.read_parquet(parquet(a_row(relation), relation))
    assert written["window_start"].to_list() == [datetime(2026, 3, 1, 0, 5, 0, 123_456, tzinfo=UTC)]


def test_a_lake_that_is_not_on_s3_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="Redshift reads from S3 only"):
        export(Lake(config.Lake(uri=str(tmp_path))), FACTS[0].relation, [])


def test_exports_go_when_their_newest_file_is_old_enough(tmp_path: Path) -> None:
    lake = Lake(config.Lake(uri=str(tmp_path)))
    for name in ("_exports/fact/old/0.parquet", "_exports/fact/old/manifest.json", "gold/x/0.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    now, week = datetime.now(UTC), timedelta(days=7)
    assert expire(lake, keep=week, now=now) == 0
    assert expire(lake, keep=week, now=now + timedelta(days=8), dry_run=True) == 2
    assert (tmp_path / "_exports/fact/old/0.parquet").exists()
    assert expire(lake, keep=week, now=now + timedelta(days=8)) == 2
    assert not (tmp_path / "_exports/fact/old/0.parquet").exists()
    assert (tmp_path / "gold/x/0.parquet").exists()
    assert expire(Lake(config.Lake(uri=str(tmp_path / "none"))), keep=week, now=now) == 0
