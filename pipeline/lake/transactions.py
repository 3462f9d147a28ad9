"""A table's log, followed by who looks again and again: all application transactions at once, and the time of the
newest commit. delta-rs reads the log anew for each of them, and lets no other thread run while it asks for the time.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import polars as pl
from deltalake import DeltaTable

from pipeline.lake.delta import Lake, translated
from pipeline.lake.layout import impatient

_LOG = pl.Schema(
    {
        "txn": pl.Struct({"appId": pl.String(), "version": pl.Int64()}),
        "commitInfo": pl.Struct({"timestamp": pl.Int64()}),
    }
)


class Transactions:
    """Follows one table's. Costs the commits that are new; the first time those since the last checkpoint, and it."""

    def __init__(self, lake: Lake, path: str) -> None:
        self._lake = lake
        self._log = f"{path}/_delta_log"
        self._known: dict[str, int] = {}
        self._of: tuple[str, int] | None = None
        """Identity of the table, and its version that is known."""

        self.committed_at: datetime | None = None
        """Time of the newest commit that `at` has seen."""

    def at(self, table: DeltaTable) -> Mapping[str, int]:
        """App id -> version of its last transaction, as of this table object's version. Raises as the lake does."""
        identity, version = str(table.metadata().id), table.version()
        begun, known = self._of, dict(self._known)
        if begun is None or begun[0] != identity or begun[1] > version:
            begun, known = None, {}
        self._of = None  # what fails begins anew: part of the log may be gone
        with translated(f"read the transactions of {table.table_uri}"):
            first = begun[1] + 1 if begun else self._from_checkpoint(known, version)
            if first <= version:
                known |= self._committed(first, version)
        self._known, self._of = known, (identity, version)
        return known

    def _from_checkpoint(self, known: dict[str, int], version: int) -> int:
        """Take up what the last checkpoint has, where it is not newer; the first version after it."""
        try:
            told = self._lake.files().cat_file(self._lake.uri(f"{self._log}/_last_checkpoint"))
        except FileNotFoundError:
            return 0
        last: dict[str, Any] = json.loads(told)
        if last["version"] > version:
            return 0
        file = self._lake.uri(f"{self._log}/{last['version']:020d}.checkpoint.parquet")
        rows = pl.scan_parquet(file, storage_options=impatient(self._lake.storage_options))
        known |= _versions(rows.select(txn=pl.col("txn")).collect())
        return min(int(last["version"]) + 1, version)  # the commit itself says when it was

    def _committed(self, first: int, last: int) -> dict[str, int]:
        entries = [self._lake.uri(f"{self._log}/{version:020d}.json") for version in range(first, last + 1)]
        log = pl.scan_ndjson(entries, schema=_LOG, storage_options=impatient(self._lake.storage_options))
        timestamp = pl.col("commitInfo").struct["timestamp"]
        rows = log.filter(pl.col("txn").is_not_null() | timestamp.is_not_null()).select("txn", at=timestamp).collect()
        times = [at for at in rows["at"].to_list() if at is not None]
        self.committed_at = datetime.fromtimestamp(times[-1] / 1000, UTC) if times else None
        return _versions(rows)


def _versions(rows: pl.DataFrame) -> dict[str, int]:
    """Of rows in the order of their commits."""
    told = (txn for txn in rows["txn"].to_list() if txn and txn["appId"] is not None)
    return {txn["appId"]: txn["version"] for txn in told}
