"""A table followed by the entries of its log, by who looks at it every few seconds: what is in it, who has committed
how much, and when. delta-rs's table object makes its whole state anew for an entry, reads the log once more for each
application transaction, and lets no other thread run while it tells the time of a commit.
"""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec
import polars as pl
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError
from deltalake.fs import DeltaStorageHandler

from contracts.tables import Table
from pipeline.lake.delta import Lake, translated
from pipeline.lake.layout import impatient
from pipeline.lake.logged import Contents, DataFile

T = TypeVar("T")


class _Transaction(msgspec.Struct, rename="camel"):
    app_id: str
    version: int


class _Add(msgspec.Struct, rename="camel"):
    path: str
    size: int
    stats: str | None = None


class _Remove(msgspec.Struct, rename="camel"):
    path: str


class _CommitInfo(msgspec.Struct, rename="camel"):
    timestamp: int


class _Action(msgspec.Struct, rename="camel"):
    """A line of an entry, as Delta's protocol names its parts ("Actions")."""

    txn: _Transaction | None = None
    add: _Add | None = None
    remove: _Remove | None = None
    commit_info: _CommitInfo | None = None
    meta_data: object = None
    protocol: object = None


class _Stats(msgspec.Struct, rename="camel"):
    num_records: int = 0
    max_values: dict[str, Any] = {}


_action = msgspec.json.Decoder(_Action).decode
_stats = msgspec.json.Decoder(_Stats).decode
_TRANSACTION = pl.Struct({"appId": pl.String(), "version": pl.Int64()})


class Followed:
    """A table as it was at the last `look`."""

    table: DeltaTable
    """For its address, identity and layout, which are those of `version`; its own version and files are older."""
    version: int
    contents: Contents
    transactions: dict[str, int]
    """App id -> version of its last transaction, of all of them."""
    committed_at: datetime | None
    """Time of the newest commit."""

    def __init__(self, lake: Lake, definition: Table) -> None:
        self._lake = lake
        self._definition = definition
        self._log: DeltaStorageHandler | None = None
        """None: to be opened."""

    def look(self, *, anew: bool = False) -> None:
        """Take up what is new; `anew`, and after an error: the whole table. A table that was deleted and made again
        at its address has no newer entry: only a look anew sees it.

        Raises as `Lake.open`.
        """
        log, self._log = (None if anew else self._log), None
        if log is None or not self._followed(log):
            log = self._opened()
        self._log = log

    def _followed(self, log: DeltaStorageHandler) -> bool:
        """Take up all new entries; False where one of them changes more than contents and progress."""
        with translated(f"read what is new in {self.table.table_uri}"):
            while entry := _entry(log, self.version + 1):
                actions = _actions(entry)
                if any(action.meta_data or action.protocol for action in actions):
                    return False
                self._take(actions)
                self.version += 1
        return True

    def _take(self, actions: list[_Action]) -> None:
        for action in actions:  # an entry names each path once at most
            if action.add:
                self.contents.files[action.add.path] = _data_file(action.add)
            if action.remove:
                self.contents.files.pop(action.remove.path, None)
        self._note(actions)

    def _note(self, actions: list[_Action]) -> None:
        self.transactions |= {action.txn.app_id: action.txn.version for action in actions if action.txn}
        times = [action.commit_info.timestamp for action in actions if action.commit_info]
        self.committed_at = datetime.fromtimestamp(times[-1] / 1000, UTC) if times else None

    def _opened(self) -> DeltaStorageHandler:
        self.table = self._lake.open(self._definition)
        self.version = self.table.version()
        self.contents = Contents.of(self.table)
        log = DeltaStorageHandler(self.table.table_uri, self._lake.storage_options)
        with translated(f"read the log of {self.table.table_uri}"):
            first, self.transactions = self._from_checkpoint(log)
            for version in range(first, self.version + 1):
                self._note(_actions(_required(log, version)))
        return log

    def _from_checkpoint(self, log: DeltaStorageHandler) -> tuple[int, dict[str, int]]:
        """The first version to read after the last checkpoint, and the transactions that this has."""
        told = _read(log, "_last_checkpoint")
        last = json.loads(told)["version"] if told else None
        if last is None or last > self.version:
            return 0, {}
        uri = f"{self.table.table_uri.rstrip('/')}/_delta_log/{last:020d}.checkpoint.parquet"
        options = impatient(self._lake.storage_options)
        rows = pl.scan_parquet(uri, storage_options=options).select(pl.col("txn").cast(_TRANSACTION)).drop_nulls()
        known = {txn["appId"]: txn["version"] for txn in rows.collect()["txn"].to_list() if txn["appId"] is not None}
        return min(last + 1, self.version), known  # the newest commit itself says when it was


def _actions(entry: bytes) -> list[_Action]:
    return [_decoded(_action, line) for line in entry.splitlines() if line]


def _decoded(decode: Callable[[bytes | str], T], text: bytes | str) -> T:
    try:
        return decode(text)
    except msgspec.MsgspecError as error:
        raise DeltaError(f"an entry of the log is none: {error}") from error


def _entry(log: DeltaStorageHandler, version: int) -> bytes | None:
    return _read(log, f"{version:020d}.json")


def _required(log: DeltaStorageHandler, version: int) -> bytes:
    entry = _entry(log, version)
    if entry is None:
        raise FileNotFoundError(f"the log has no entry {version}")
    return entry


def _read(log: DeltaStorageHandler, name: str) -> bytes | None:
    try:
        with log.open_input_file(f"_delta_log/{name}") as file:
            return bytes(file.read())
    except FileNotFoundError:
        return None


def _data_file(add: _Add) -> DataFile:
    stats = _decoded(_stats, add.stats or "{}")
    times = {name: at for name, value in stats.max_values.items() if (at := _time(value)) is not None}
    return DataFile(stats.num_records, add.size, times)


def _time(value: object) -> datetime | None:
    """A timestamp as the log has it; None of what is none."""
    if not isinstance(value, str):
        return None
    try:
        found = datetime.fromisoformat(value)
    except ValueError:
        return None
    return found if found.tzinfo else None
