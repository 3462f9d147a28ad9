"""What silver/quarantine is still to get of a commit of silver/readings: two tables cannot commit together.

It is written beside the state before the commit that decides whether it counts, and delivered after it; a crash
between the two is completed at the next start.
"""

from dataclasses import dataclass, field

import polars as pl
from deltalake import DeltaTable

from contracts.tables import SILVER_QUARANTINE
from pipeline.arrow import pa
from pipeline.lake import delta as lake

_REPLACES = b"replaces"


@dataclass(frozen=True)
class Outbox:
    """Rows for quarantine (its columns), added; after a rebuild in place of those that `replaces` (SQL) selects."""

    rows: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=SILVER_QUARANTINE.schema))
    replaces: str | None = None

    def to_bytes(self) -> bytes:
        """As an Arrow file."""
        table = self.rows.to_arrow()
        if self.replaces is not None:
            table = table.replace_schema_metadata({_REPLACES: self.replaces.encode()})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
            writer.write_table(table)
        return bytes(sink.getvalue())

    @classmethod
    def from_bytes(cls, data: bytes) -> "Outbox":
        """What `to_bytes` wrote."""
        table = pa.ipc.open_file(data).read_all()
        replaces = (table.schema.metadata or {}).get(_REPLACES)
        rows = pl.DataFrame(pl.from_arrow(table))
        everything = pl.concat([cls().rows, rows], how="diagonal")  # null: what the version before did not write
        return cls(everything, None if replaces is None else replaces.decode())

    def deliver(self, quarantine: DeltaTable, versions: dict[str, int]) -> None:
        """One commit of quarantine, with its progress; none where there is nothing to do.

        Raises as `pipeline.lake.delta.append`.
        """
        if self.replaces is not None:
            lake.replace(quarantine, SILVER_QUARANTINE, self.rows, versions, self.replaces)
        elif len(self.rows):
            lake.append(quarantine, SILVER_QUARANTINE, self.rows, versions)
