"""The books: is every reading where it belongs? Pure comparisons of one layer with the next, each gap named.

A comparison takes narrow frames (keys and fingerprints, never payloads) and returns an Entry. A fingerprint is a
64-bit hash of the columns that must be the same on both sides: two rows that differ pass as equal once in 2**64.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import polars as pl

from pipeline.broker.spans import Range, Ranges, clipped, size, told

Finding = dict[str, Any]
"""One named fault: `step`, and where it is (partition and offsets, or series and window), and what is wrong."""

RAW_KEY = ("raw_partition", "raw_offset")
ORDER = ("batch_partition", "batch_offset", "batch_row")
WINDOW_KEY = ("sensor_id", "sensor_type", "location", "window_start")

IDENTITY = ("sensor_id", "event_id", "timestamp")
"""A reading with the same identity as an earlier one is its copy, or in conflict with it."""
CARRIED = ("sensor_type", "location", "label", "raw_timestamp", *ORDER)
"""What the layers pass on unchanged, beside identity and measurement."""


@dataclass(frozen=True)
class Entry:
    """Two layers compared: what was counted, and every fault found."""

    step: str
    counts: dict[str, int]
    gaps: list[Finding] = field(default_factory=list)
    """In the first layer, missing in the next."""
    repeats: list[Finding] = field(default_factory=list)
    """More than once in the next layer, where it must be once."""
    changed: list[Finding] = field(default_factory=list)
    """There, but not as it was."""
    extra: list[Finding] = field(default_factory=list)
    """In the next layer, and nowhere in the first."""
    unknown: list[str] = field(default_factory=list)
    """Why this comparison proves nothing, or not everything."""
    partitions: list[dict[str, int]] = field(default_factory=list)
    """Counts by partition, where the layers have any."""
    in_flight: int = 0
    """Rows or messages of the first layer that the next has yet to take."""

    @property
    def balanced(self) -> bool:
        """No fault was found."""
        return not (self.gaps or self.repeats or self.changed or self.extra)

    @property
    def told(self) -> bool:
        """Whether the comparison could be made, and of all there was at the time of the cut."""
        return not (self.unknown or self.in_flight)


@dataclass(frozen=True)
class Books:
    """All comparisons, in the way of a reading."""

    entries: list[Entry]

    @property
    def balanced(self) -> bool:
        """Every comparison was made and found no fault."""
        return all(entry.balanced and entry.told for entry in self.entries)

    @property
    def exit_code(self) -> int:
        """0 balanced; 1 a fault was found; 2 none was, but not everything could be told."""
        if not all(entry.balanced for entry in self.entries):
            return 1
        return 0 if self.balanced else 2

    def to_dict(self) -> dict[str, Any]:
        """The report: a flat summary for programs, and each comparison under `steps`."""
        counts: dict[str, int | None] = dict.fromkeys(COUNTS)
        for entry in self.entries:
            counts.update({name: count for name, count in entry.counts.items() if counts.get(name, 0) is None})
        return {
            "balanced": self.balanced,
            **counts,
            **{kind: [each for entry in self.entries for each in getattr(entry, kind)] for kind in FAULTS},
            "in_flight": sum(entry.in_flight for entry in self.entries),
            "unknown": [f"{entry.step}: {why}" for entry in self.entries for why in entry.unknown],
            "steps": [asdict(entry) | {"balanced": entry.balanced} for entry in self.entries],
        }


FAULTS = ("gaps", "repeats", "changed", "extra")
COUNTS = ("raw", "dead", "bronze", "silver", "duplicates", "quarantine", "late", "gold", "warehouse")


def fingerprints(value: str = "value", unit: str = "unit") -> list[pl.Expr]:
    """What is compared of a reading: `identity`, `measured` and `carried`, each UInt64.

    value, unit: names of the columns that hold them as sent (in Silver `original_value`, `original_unit`).
    """
    return [
        pl.struct(IDENTITY).hash().alias("identity"),
        pl.struct(pl.col(value).alias("value"), pl.col(unit).alias("unit")).hash().alias("measured"),
        pl.struct(CARRIED).hash().alias("carried"),
    ]


def holes(placed: pl.DataFrame, start: Mapping[int, int], cut: Mapping[int, int]) -> dict[int, list[Range]]:
    """Half-open offset ranges below the cut without any row, by partition.

    placed: raw_partition, raw_offset of everything that has a place. start: first offset to look at, by partition
    (0 where absent); cut: the first offset not to look at.
    """
    found: dict[int, list[Range]] = {}
    for partition, end in cut.items():
        begin = start.get(partition, 0)
        offsets = (
            placed.filter(pl.col("raw_partition") == partition)
            .select(pl.col("raw_offset").cast(pl.Int64).unique().sort())
            .filter(pl.col("raw_offset").is_between(begin, end, closed="left"))["raw_offset"]
        )
        edges = pl.concat([pl.Series([begin - 1]), offsets, pl.Series([end])])
        steps = pl.DataFrame({"after": edges[:-1], "before": edges[1:]}).filter(
            pl.col("before") - pl.col("after") > 1
        )
        found[partition] = [(after + 1, before) for after, before in steps.iter_rows()]
    return found


def raw_against_bronze(
    readings: pl.DataFrame,
    dead: pl.DataFrame,
    *,
    cut: Mapping[int, int],
    ends: Mapping[int, int],
    holes: Ranges,
    lows: Mapping[int, int],
    missing: Mapping[int, list[int]],
) -> Entry:
    """Every raw message below the cut is one row of bronze/readings or one dead letter.

    readings, dead: raw_partition, raw_offset of the two tables, all rows that are judged. cut: offsets that ingest
    has committed. ends, lows: watermarks of the raw topic, the high ones asked after the tables were read. holes:
    offsets below the cut without a row. missing: those of them at which there is a message; at the others above
    `lows` are markers of transactions, and what lies below has expired in Kafka, so that nobody can look.
    """
    placed = pl.concat(
        [
            frame.select(
                pl.col("raw_partition").cast(pl.Int32),
                pl.col("raw_offset").cast(pl.Int64),
                pl.lit(name).alias("place"),
            )
            for name, frame in (("readings", readings), ("dead_letters", dead))
        ]
    )
    bounds = pl.DataFrame(
        {"raw_partition": list(ends), "cut": [cut.get(p, 0) for p in ends], "end": list(ends.values())},
        schema={"raw_partition": pl.Int32, "cut": pl.Int64, "end": pl.Int64},
    )
    judged = placed.join(bounds, on="raw_partition", how="left")
    phantom = judged.filter(pl.col("end").is_null() | (pl.col("raw_offset") >= pl.col("end")))
    below = judged.filter(pl.col("raw_offset") < pl.col("cut"))
    twice = below.group_by(RAW_KEY).agg("place").filter(pl.col("place").list.len() > 1).sort(RAW_KEY)
    rows_of = {(p, place): count for p, place, count in below.group_by("raw_partition", "place").len().iter_rows()}
    here = clipped(holes, above=lows)
    lost = [(partition, offset) for partition, offsets in missing.items() for offset in offsets]
    expired = clipped(holes, below=lows)
    step = "raw -> bronze"
    return Entry(
        step,
        counts={
            "raw": below.select(RAW_KEY).n_unique() + len(lost),
            "dead": sum(count for (_, place), count in rows_of.items() if place == "dead_letters"),
            "bronze": sum(count for (_, place), count in rows_of.items() if place == "readings"),
        },
        gaps=ranges(step, pl.DataFrame(lost, schema=dict.fromkeys(RAW_KEY, pl.Int64), orient="row")),
        repeats=[
            {"step": step, "partition": partition, "offset": offset, "places": places}
            for partition, offset, places in twice.iter_rows()
        ],
        extra=ranges(step, phantom.select(RAW_KEY).unique()),
        unknown=[f"{where} are in no table and have expired in Kafka" for where in told(expired)],
        partitions=[
            {
                "partition": partition,
                "low": lows.get(partition, 0),
                "cut": end,
                "readings": int(rows_of.get((partition, "readings"), 0)),
                "dead": int(rows_of.get((partition, "dead_letters"), 0)),
                "gaps": (gaps := len(missing.get(partition, ()))),
                "markers": size({partition: here.get(partition, ())}) - gaps,
                "expired": size({partition: expired.get(partition, ())}),
            }
            for partition, end in sorted(cut.items())
        ],
    )


def bronze_against_silver(
    bronze: pl.DataFrame, silver: pl.DataFrame, quarantine: pl.DataFrame, earlier: pl.DataFrame | None = None
) -> Entry:
    """Every Bronze row is one row of Silver or of quarantine, unchanged, or a copy of one before it.

    Each frame: RAW_KEY and the fingerprints `identity`, `measured` (value and unit as sent) and `carried`; bronze
    also ORDER, quarantine `is_conflict`, silver `is_late`. Silver and quarantine must cover exactly these rows.
    earlier: what was accepted before these rows and may be what they are copies of: RAW_KEY, ORDER, `identity` and
    `measured`.
    """
    known = ["identity", "measured", *RAW_KEY, *ORDER]
    before = bronze.select(known).clear() if earlier is None else earlier.select(known)
    step = "bronze -> silver"
    shared = [*RAW_KEY, "identity", "measured", "carried"]
    kept = pl.concat(
        [
            silver.select(*shared, pl.lit("readings").alias("place"), pl.lit(value=False).alias("is_conflict")),
            quarantine.select(*shared, pl.lit("quarantine").alias("place"), "is_conflict"),
        ]
    )
    twice = kept.group_by(RAW_KEY).agg("place").filter(pl.col("place").list.len() > 1).sort(RAW_KEY)
    both = bronze.select(shared).join(kept.unique(RAW_KEY, keep="first"), on=RAW_KEY, how="inner", suffix="_after")
    changed = both.filter(pl.any_horizontal(pl.col(name) != pl.col(f"{name}_after") for name in shared[2:]))
    extra = kept.join(bronze, on=RAW_KEY, how="anti")

    rest = bronze.join(kept, on=RAW_KEY, how="anti")
    firsts = (
        pl.concat([before, bronze.select(known)])
        .join(rest.select("identity").unique(), on="identity", how="semi")
        .sort(ORDER)
        .group_by("identity", maintain_order=True)
        .agg(pl.col(*RAW_KEY, "measured").first())
    )
    accepted = kept.filter(~pl.col("is_conflict")).unique(RAW_KEY)
    first_kept = firsts.join(pl.concat([accepted.select(RAW_KEY), before.select(RAW_KEY)]), on=RAW_KEY, how="semi")
    copies = rest.join(first_kept.select("identity", "measured"), on=["identity", "measured"], how="semi")
    lost = rest.join(copies, on=RAW_KEY, how="anti")

    ordered = accepted.join(bronze.select(*RAW_KEY, *ORDER), on=RAW_KEY, how="left")
    again = pl.concat([before.select(*known[:1], *known[2:]), ordered.select(*known[:1], *known[2:])])
    not_first = (
        again.filter(pl.col("identity").is_duplicated())
        .sort(ORDER)
        .filter(~pl.col("identity").is_first_distinct())
        .join(ordered, on=RAW_KEY, how="semi")
    )
    return Entry(
        step,
        counts={
            "bronze": bronze.height,
            "silver": silver.height,
            "duplicates": copies.height,
            "quarantine": quarantine.height,
            "late": int(silver["is_late"].sum()),
        },
        gaps=ranges(step, lost.select(RAW_KEY)),
        repeats=[
            *(
                {"step": step, "partition": partition, "offset": offset, "places": places}
                for partition, offset, places in twice.iter_rows()
            ),
            *(
                {
                    "step": step,
                    "partition": partition,
                    "offset": offset,
                    "why": "a copy of an earlier reading was kept",
                }
                for partition, offset in not_first.select(RAW_KEY).iter_rows()
            ),
        ],
        changed=[
            {
                "step": step,
                "partition": row["raw_partition"],
                "offset": row["raw_offset"],
                "what": [what for name, what in _WHAT.items() if row[name] != row[f"{name}_after"]],
            }
            for row in changed.sort(RAW_KEY).iter_rows(named=True)
        ],
        extra=ranges(step, extra.select(RAW_KEY).unique()),
    )


_WHAT = {"identity": "sensor, event id or time", "measured": "value or unit as sent", "carried": "another column"}


def windows(step: str, before: pl.DataFrame, after: pl.DataFrame, counts: dict[str, int]) -> Entry:
    """Every window of one layer is in the next, once, with the same count.

    before, after: WINDOW_KEY and `count`, and further figures that must be equal. A count that is too small is a
    gap, one that is too large a repeat.
    """
    figures = [name for name in before.columns if name not in (*WINDOW_KEY, "count")]
    keyed = after.group_by(WINDOW_KEY).agg(
        pl.col("count").sum(), pl.len().alias("rows"), *(pl.col(name).first() for name in figures)
    )
    both = before.join(keyed, on=WINDOW_KEY, how="full", coalesce=True, suffix="_found").sort(WINDOW_KEY)
    absent, unasked = pl.col("rows").is_null(), pl.col("count").is_null()
    fewer, more = pl.col("count_found") < pl.col("count"), pl.col("count_found") > pl.col("count")
    return Entry(
        step,
        counts=counts,
        gaps=_window_findings(step, both.filter(absent | fewer)),
        repeats=_window_findings(step, both.filter((more | (pl.col("rows") > 1)) & ~unasked)),
        changed=[
            {**_window(step, row), "what": [name for name in figures if row[name] != row[f"{name}_found"]]}
            for row in both.filter(
                pl.col("count") == pl.col("count_found"),
                pl.any_horizontal(
                    *(pl.col(name) != pl.col(f"{name}_found") for name in figures), pl.lit(value=False)
                ),
            ).iter_rows(named=True)
        ],
        extra=_window_findings(step, both.filter(unasked)),
    )


def ranges(step: str, keys: pl.DataFrame) -> list[Finding]:
    """Raw offsets as findings, runs of neighbours as one: `partition`, `from`, `to` (included), `count`."""
    runs = (
        keys.select(pl.col(RAW_KEY).cast(pl.Int64))
        .sort(RAW_KEY)
        .with_columns(run=(pl.col("raw_offset").diff() != 1).fill_null(value=True).cum_sum().over("raw_partition"))
        .group_by("raw_partition", "run", maintain_order=True)
        .agg(first=pl.col("raw_offset").first(), last=pl.col("raw_offset").last(), count=pl.len())
    )
    return [
        {
            "step": step,
            "partition": row["raw_partition"],
            "from": row["first"],
            "to": row["last"],
            "count": row["count"],
        }
        for row in runs.iter_rows(named=True)
    ]


def _window_findings(step: str, rows: pl.DataFrame) -> list[Finding]:
    return [
        {
            **_window(step, row),
            "expected": row["count"] or 0,
            "found": row["count_found"] or 0,
            "rows": row["rows"] or 0,
        }
        for row in rows.iter_rows(named=True)
    ]


def _window(step: str, row: dict[str, Any]) -> Finding:
    start = {"window_start": row["window_start"].isoformat()}
    return {"step": step, **{name: row[name] for name in WINDOW_KEY[:3]}, **start}
