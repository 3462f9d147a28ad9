"""Files that Redshift's COPY reads: Parquet below the lake's `_exports/`, and the manifest that names them.

COPY matches columns by place, so a file has exactly the relation's columns in its order, the partition column among
them. It cannot skip a bad row, nor a file that is missing or of another length than the manifest says.
"""

import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import polars as pl
import pyarrow.parquet as pq

from contracts.warehouse import Relation
from pipeline.arrow import pa
from pipeline.errors import BadInput
from pipeline.lake.delta import Lake, translated
from pipeline.warehouse import checksum
from pipeline.warehouse.plan import storable

EXPORTS = "_exports"

_ARROW: dict[pl.DataType, pa.DataType] = {
    pl.String(): pa.string(),
    pl.Int32(): pa.int32(),
    pl.Int64(): pa.int64(),
    pl.Float64(): pa.float64(),
    pl.Boolean(): pa.bool_(),
    pl.Date(): pa.date32(),
    pl.Datetime("us", "UTC"): pa.timestamp("us", tz="UTC"),
}


@dataclass(frozen=True)
class Exported:
    """What was written: `manifest` is its address; the entries are what it says."""

    manifest: str
    entries: tuple[dict[str, object], ...]
    rows: int
    checksum: int

    @property
    def text(self) -> str:
        """The manifest."""
        return json.dumps({"entries": list(self.entries)}, indent=2)


def parquet(frame: pl.DataFrame, relation: Relation) -> bytes:
    """One file: Snappy, INT64 microseconds adjusted to UTC, no Arrow schema, whose types only Arrow would know."""
    schema = pa.schema([(name, _ARROW[type]) for name, type in relation.schema.items()])
    table = storable(frame.select(relation.schema.names())).to_arrow(compat_level=pl.CompatLevel.oldest())
    out = io.BytesIO()
    pq.write_table(
        table.cast(schema),
        out,
        compression="snappy",
        version="2.6",
        coerce_timestamps="us",
        use_deprecated_int96_timestamps=False,
        store_schema=False,
    )
    return out.getvalue()


def export(lake: Lake, relation: Relation, frames: Iterable[pl.DataFrame], *, dry_run: bool = False) -> Exported:
    """Write a file for each frame that has rows, and the manifest last, in a directory of its own; `dry_run` only
    counts. Memory: one frame and its file.

    Raises BadInput where the lake is not on S3, and as `pipeline.lake.delta.translated` says.
    """
    directory = lake.uri(f"{EXPORTS}/{relation.name}/{uuid4().hex}").replace("s3a://", "s3://", 1)
    if not directory.startswith("s3://"):
        raise BadInput(
            f"Redshift reads from S3 only, and the lake is at {lake.uri('')}.",
            "Set PIPELINE_LAKE__URI to s3://BUCKET[/PREFIX], in the warehouse's region.",
        )
    files = lake.files()
    entries: list[dict[str, object]] = []
    rows = summed = 0
    for frame in frames:
        if frame.is_empty():
            continue
        content, url = parquet(frame, relation), f"{directory}/{len(entries):05d}.parquet"
        if not dry_run:
            with translated(f"write {url}"):
                files.pipe_file(url, content)
        entries.append({"url": url, "mandatory": True, "meta": {"content_length": len(content)}})
        rows += len(frame)
        summed = (summed + checksum.total(storable(frame.select(relation.schema.names())))) % 2**64
    made = Exported(f"{directory}/manifest.json", tuple(entries), rows, summed)
    if entries and not dry_run:
        with translated(f"write {made.manifest}"):
            files.pipe_file(made.manifest, made.text.encode())
    return made


def expire(lake: Lake, *, keep: timedelta, now: datetime, dry_run: bool = False) -> int:
    """Remove exports whose newest file is older than `keep`; how many files that are, or would be.

    A load reads its files within minutes; what is kept longer is for people who ask what was loaded.
    """
    files, root, removed = lake.files(), lake.uri(EXPORTS), 0
    with translated(f"list {root}"):
        found = files.find(root, detail=True)
        by_directory: dict[str, list[tuple[str, datetime]]] = {}
        for path, info in found.items():
            written = info.get("LastModified") or datetime.fromtimestamp(info["mtime"], UTC)
            by_directory.setdefault(path.rpartition("/")[0], []).append((path, written))
        for entries in by_directory.values():
            if max(written for _, written in entries) < now - keep:
                removed += len(entries)
                if not dry_run:
                    files.rm([path for path, _ in entries])
    return removed
