"""What changed in a table since a version, in bounded memory."""

from collections.abc import Iterator

import polars as pl
from deltalake import DeltaTable

from pipeline.arrow import pa
from pipeline.lake.delta import translated
from pipeline.lake.layout import lacking

CHANGE = "_change_type"
"""The feed's column that says `insert` or `delete`. Compaction is not in the feed; a replace is delete + insert."""

NOTHING = -1
"""Progress of a reader that has read nothing: version 0 comes next."""


def batches(table: DeltaTable, first: int, last: int, columns: list[str]) -> Iterator[pl.DataFrame]:
    """Rows of the change feed of versions `first` to `last`, both included, piece by piece: `columns` and CHANGE.

    Raises as `delta.translated` says.
    """
    wanted, missing = [*columns, CHANGE], lacking(table)
    with translated(f"read the changes {first}-{last} of {table.table_uri}"):
        feed = table.load_cdf(
            starting_version=first, ending_version=last, columns=[name for name in wanted if name not in missing]
        )
        try:
            # through pyarrow, since delta-rs's own reader raises bare Exceptions
            for batch in pa.RecordBatchReader.from_stream(feed):
                rows = pl.DataFrame(pl.from_arrow(batch))
                yield rows.select(
                    pl.lit(None, missing[name]).alias(name) if name in missing else name for name in wanted
                )
        except pa.ArrowException as error:
            text = str(error)
            raise (FileNotFoundError(text) if "not found" in text else OSError(text)) from error
