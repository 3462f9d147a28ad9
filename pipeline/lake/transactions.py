"""Application transactions of a table, all of them at once: what delta-rs reads anew for each that is asked for."""

import json
from collections.abc import Mapping
from typing import Any

import polars as pl
from deltalake import DeltaTable

from pipeline.lake.delta import Lake, translated

_LOG = pl.Schema({"txn": pl.Struct({"appId": pl.String(), "version": pl.Int64()})})


class Transactions:
    """Follows one table's. Costs the commits that are new; the first time those since the last checkpoint, and it."""

    def __init__(self, lake: Lake, path: str) -> None:
        self._lake = lake
        self._log = f"{path}/_delta_log"
        self._known: dict[str, int] = {}
        self._of: tuple[str, int] | None = None
        """Identity of the table, and its version that is known."""

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
        rows = pl.scan_parquet(file, storage_options=self._lake.storage_options or None)
        known |= _versions(rows.select(txn=pl.col("txn")).collect())
        return int(last["version"]) + 1

    def _committed(self, first: int, last: int) -> dict[str, int]:
        entries = [self._lake.uri(f"{self._log}/{version:020d}.json") for version in range(first, last + 1)]
        rows = pl.scan_ndjson(entries, schema=_LOG, storage_options=self._lake.storage_options or None)
        return _versions(rows.collect())


def _versions(rows: pl.DataFrame) -> dict[str, int]:
    """Of rows in the order of their commits."""
    told = rows.drop_nulls("txn").unnest("txn").drop_nulls("appId")
    return dict(told.select("appId", "version").iter_rows())
