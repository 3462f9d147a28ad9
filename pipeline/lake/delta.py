"""The lake: Delta tables on an object store, opened, appended to and replaced with their progress.

Progress commits with the data: every commit of a stage carries application transactions (`app id -> version`),
and a restart reads them back. A writer appends with the table object whose progress it read: delta-rs refuses
the commit when another writer moved any of its app ids in between, and nothing else fences it.
"""

import hashlib
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date, timedelta
from functools import cache
from typing import Any
from uuid import uuid4

import fsspec
import polars as pl
from botocore.exceptions import BotoCoreError
from deltalake import (
    ColumnProperties,
    CommitProperties,
    DeltaTable,
    Transaction,
    WriterProperties,
    write_deltalake,
)
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from contracts.tables import Table
from contracts.without import without
from pipeline import metrics
from pipeline import settings as config
from pipeline.arrow import pa
from pipeline.errors import AccessDenied, Conflict, NotSetUp, PipelineError, Unreachable
from pipeline.lake import layout
from pipeline.lake.quality import validated

LOG_RETENTION = timedelta(days=7)

CONFIGURATION = {
    "delta.enableChangeDataFeed": "true",
    "delta.checkpointInterval": "100",
    "delta.logRetentionDuration": f"interval {LOG_RETENTION.days} days",
    # Writers would do it at a checkpoint, whatever a reader of the change feed still needs: upkeep.py does it.
    "delta.enableExpiredLogCleanup": "false",
}


@cache
def _session() -> Any:
    """An AioSession for the process: each of its own would read botocore's description of S3 again, half a second of
    CPU. Imported here, for it brings an HTTP client along that most processes never need.
    """
    with without("httpx"):  # which it would use if it were told to, and which has a command line of its own
        from aiobotocore.session import AioSession

    return AioSession()


class Lake:
    """The tables below one root, e.g. `s3://lake`."""

    def __init__(self, settings: config.Lake) -> None:
        self._settings = settings
        self.storage_options = storage_options(settings)

    def uri(self, path: str) -> str:
        """Address of a table, or of any other path below the root."""
        return f"{self._settings.uri.rstrip('/')}/{path}"

    def open(self, table: Table) -> DeltaTable:
        """Open a table at its newest version, to read it: pipeline.lake.layout fills in what it does not have yet.

        Raises NotSetUp where there is none, SchemaTooNew and SchemaTooOld where its layout is more than one version
        off, Unreachable and AccessDenied as the store says.
        """
        with translated(f"open {self.uri(table.path)}"):
            try:
                opened = DeltaTable(self.uri(table.path), storage_options=self.storage_options)
            except TableNotFoundError:
                raise NotSetUp(
                    f"There is no table {self.uri(table.path)}.",
                    "The stage that writes it creates it: start that.",
                ) from None
        layout.require_readable(opened)
        return opened

    def rows(self, table: Table) -> pl.LazyFrame:
        """The rows of a table at its newest version; none where it has yet to be created. Raises else as `open`."""
        try:
            return layout.scan(self.open(table))
        except NotSetUp:
            return pl.LazyFrame(schema=table.schema)

    def ensure(self, table: Table) -> DeltaTable:
        """Open a table to write it; create it, empty, where it is missing. Two creators at once are one table.

        Raises MigrationDue where it has the layout of the version before, else as `open` does.
        """
        for counter in (metrics.LAKE_CONFLICTS, metrics.LAKE_FAILURES):
            counter.labels(table=table.path)
        try:
            opened = self.open(table)
        except NotSetUp:
            self._create(table)
            opened = self.open(table)
        layout.require_writable(opened)
        return opened

    def _create(self, table: Table) -> None:
        with translated(f"create {self.uri(table.path)}"):
            try:
                DeltaTable.create(
                    self.uri(table.path),
                    schema=pl.DataFrame(schema=table.schema).to_arrow().schema,
                    partition_by=[table.partition_by],
                    name=layout.named(table),
                    description=table.description,
                    configuration=CONFIGURATION,
                    storage_options=self.storage_options,
                )
            except (CommitFailedError, DeltaError) as error:
                if "already exists" not in str(error).lower():
                    raise

    def files(self) -> fsspec.AbstractFileSystem:
        """The store as a file system, for what is not a table (states, exports). Its paths are those of `uri`."""
        settings = self._settings
        if not _on_s3(settings):
            return fsspec.filesystem("file", auto_mkdir=True)
        secret = settings.secret_access_key
        return fsspec.filesystem(
            "s3",
            session=_session(),
            key=settings.access_key_id,
            secret=secret.get_secret_value() if secret else None,
            endpoint_url=settings.endpoint_url,
            client_kwargs={"region_name": settings.region},
            config_kwargs={
                "connect_timeout": min(settings.timeout_s, 3.0),
                "read_timeout": settings.timeout_s,
                "retries": {"mode": "standard", "total_max_attempts": 3},
            },
            use_listings_cache=False,  # others write, too
            skip_instance_cache=True,  # which keeps each client for good
        )

    def require_conditional_put(self) -> None:
        """Write one object twice, the second time only if it is not there: the fence under every commit.

        Raises NotSetUp where the store takes the second one: two writers there would overwrite each other's
        commits. Raises as `translated` says.
        """
        files, path = self.files(), self.uri(f"_checks/{uuid4()}")
        with translated(f"write to {self.uri('')}"):
            if _on_s3(self._settings):
                files.ls(self._settings.uri.split("/")[2])  # some stores would create a missing bucket at a put
            files.pipe_file(path, b"first", mode="create")
            try:
                files.pipe_file(path, b"second", mode="create")
            except OSError as error:
                if not _refused(error):
                    raise
                return
            finally:
                files.rm_file(path)
        raise NotSetUp(
            f"The object store of {self._settings.uri} ignores If-None-Match: it does not keep two writers apart.",
            "Use a store with conditional writes: S3 itself, SeaweedFS 4, MinIO.",
        )


def _refused(error: OSError) -> bool:
    """Did the store refuse a conditional put?"""
    answer = getattr(error.__cause__, "response", {}).get("ResponseMetadata", {})
    return isinstance(error, FileExistsError) or answer.get("HTTPStatusCode") in {409, 412}


def _on_s3(settings: config.Lake) -> bool:
    return settings.uri.startswith(("s3://", "s3a://"))


def storage_options(settings: config.Lake) -> dict[str, str]:
    """What delta-rs and Polars need to reach the store; nothing for a local path.

    An unreachable endpoint is given up after about 8 s: the stages have a retry loop of their own. (`max_retries`,
    which delta-rs knows too, would have to be text for delta-rs and a number for Polars.)
    """
    if not _on_s3(settings):
        return {}
    options = {"region": settings.region, "timeout": f"{settings.timeout_s}s", "connect_timeout": "3s"}
    if settings.endpoint_url:
        options["endpoint_url"] = settings.endpoint_url
        options["allow_http"] = str(settings.endpoint_url.startswith("http://")).lower()
    if settings.access_key_id and settings.secret_access_key:
        options["access_key_id"] = settings.access_key_id
        options["secret_access_key"] = settings.secret_access_key.get_secret_value()
    return {f"aws_{key}": value for key, value in options.items()} | {
        "retry_timeout": "8s",
        "backoff_config.init_backoff": "200ms",
        "backoff_config.max_backoff": "2s",
    }


def progress(table: DeltaTable, app_id: str) -> int | None:
    """The version that the last commit of `app_id` carried, as this table object sees it; None before the first.

    Raises as `translated` says, NotSetUp where the log lacks a part.
    """
    with translated(f"read the log of {table.table_uri}"):
        version: int | None = table.transaction_version(app_id)
    return version


def covering(app_id: str, source: DeltaTable, version: int) -> dict[str, int]:
    """Progress to commit: `version` of this very source is covered. A table that is made anew at the same address has
    another id, and its versions mean something else: so the id goes along, in a number that a transaction can hold.
    """
    return {app_id: version, _source_id(app_id): _fingerprint(source)}


def follows(table: DeltaTable, app_id: str, source: DeltaTable) -> bool:
    """Is the progress of `app_id` about this very source? What was committed before the source's id went along is
    taken to be; the next commit notes it."""
    noted = progress(table, _source_id(app_id))
    return noted is None or noted == _fingerprint(source)


def _source_id(app_id: str) -> str:
    return f"{app_id}#table"


def _fingerprint(table: DeltaTable) -> int:
    """63 bits of the id that a Delta table gets when it is created."""
    return int.from_bytes(hashlib.sha256(str(table.metadata().id).encode()).digest()[:8]) >> 1


def append(table: DeltaTable, definition: Table, frame: pl.DataFrame, versions: Mapping[str, int]) -> None:
    """Add rows and set progress (`app id -> version`) in one commit of *this* table object.

    Raises ContractBroken and MigrationDue before anything is written, Conflict where another writer moved the
    progress.
    """
    _write(table, definition, frame, versions, mode="append", predicate=None)


def replace(
    table: DeltaTable, definition: Table, frame: pl.DataFrame, versions: Mapping[str, int], predicate: str
) -> None:
    """Delete the rows that `predicate` (SQL) selects, add `frame` and set progress, in one commit.

    Every row of `frame` must satisfy the predicate. Raises as `append` does.
    """
    _write(table, definition, frame, versions, mode="overwrite", predicate=predicate)


def files_as(definition: Table) -> WriterProperties:
    """How a table's Parquet files are written. A dictionary of what hardly repeats (measurements, ids, offsets) is
    begun for nothing: without, and with zstd's fastest level, files are 40 % smaller than the default's, sooner.
    """
    own = [name for name, dtype in definition.schema.items() if dtype == pl.Float64 or name in _HARDLY_REPEAT]
    plain = ColumnProperties(dictionary_enabled=False)
    return WriterProperties(compression="ZSTD", compression_level=1, column_properties=dict.fromkeys(own, plain))


_HARDLY_REPEAT = frozenset({"event_id", "raw_offset"})


def _write(
    table: DeltaTable,
    definition: Table,
    frame: pl.DataFrame,
    versions: Mapping[str, int],
    mode: str,
    predicate: str | None,
) -> None:
    checked = layout.fitted(validated(frame, definition), table)
    with _counted(definition, checked.estimated_size()), translated(f"commit to {table.table_uri}"):
        write_deltalake(  # type: ignore[call-overload]  # the overloads do not allow a mode in a variable
            table,
            checked,  # as it is: its strings are views, which the writer reads without a copy
            mode=mode,
            predicate=predicate,
            writer_properties=files_as(definition),
            commit_properties=CommitProperties(
                app_transactions=[Transaction(app_id, version) for app_id, version in versions.items()]
            ),
        )


@contextmanager
def _counted(definition: Table, size: float) -> Iterator[None]:
    started = time.monotonic()
    try:
        yield
    except Conflict:
        metrics.LAKE_CONFLICTS.labels(table=definition.path).inc()
        raise
    except PipelineError:
        metrics.LAKE_FAILURES.labels(table=definition.path).inc()
        raise
    metrics.LAKE_COMMIT_SECONDS.labels(table=definition.path).observe(time.monotonic() - started)
    metrics.LAKE_BYTES.labels(table=definition.path).inc(size)


def changes(table: DeltaTable, first: int, last: int) -> pl.DataFrame:
    """The change feed of versions `first` to `last`, both included: this layout's columns and `_change_type`,
    `_commit_version`. Compaction adds nothing to it; a replace is delete + insert.
    """
    with translated(f"read the changes {first}-{last} of {table.table_uri}"):
        feed = table.load_cdf(starting_version=first, ending_version=last)
        # through pyarrow, since delta-rs's own reader raises bare Exceptions
        rows = pa.RecordBatchReader.from_stream(feed).read_all()
    missing = [pl.lit(None, dtype).alias(name) for name, dtype in layout.lacking(table).items()]
    return pl.DataFrame(pl.from_arrow(rows)).drop("_commit_timestamp").with_columns(missing)


def days(column: str, values: list[date]) -> str:
    """SQL predicate: the partition column is one of these days."""
    quoted = ", ".join(f"'{value}'" for value in values)
    return f"{column} in ({quoted})" if values else "false"


_DENIED = re.compile(
    r"403 Forbidden|AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|InvalidToken"
    r"|lacked the necessary privileges"
)
_MISSING = re.compile(r"NoSuchKey|Object at location .* not found|File not found")
_CONFLICT = re.compile(
    r"Concurrent|concurrent|Invalid table version|Transaction failed|[Vv]ersion \d+ already exists"
)
_NOISE = re.compile(
    r"\x1b\[[0-9;]*m|^Kernel error -> |, max_retries: \d+, retry_timeout: \w+|\?list-type=2\S*| in [\d.]+[nµm]?s\b"
)
_XML = re.compile(r"<\?xml.*?<Code>(?P<code>[^<]*)</Code>(?:.*?<Message>(?P<message>[^<]*)</Message>)?.*", re.DOTALL)


def cleaned(text: str) -> str:
    """One line of what delta-rs or the store said: no colours, arrows or XML, but the store's error code."""
    line = _XML.sub(lambda found: ": ".join(filter(None, found.groups())), text)
    return " ".join(_NOISE.sub("", re.sub(r"\s*(?:\x1b\[31m)?↳(?:\x1b\[0m)?\s*", ": ", line)).split())


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn what delta-rs, fsspec and the store raise into an error of ours that says what was tried.

    Raises AccessDenied, NotSetUp (no such bucket or file), Conflict or Unreachable.
    """
    try:
        yield
    except (DeltaError, OSError, BotoCoreError, pa.ArrowException) as error:
        text = cleaned(str(error))
        if isinstance(error, PermissionError) or _DENIED.search(text):
            raise AccessDenied(
                f"The object store refused to {doing}: {text}",
                "Check PIPELINE_LAKE__ACCESS_KEY_ID and PIPELINE_LAKE__SECRET_ACCESS_KEY, or the role's policy.",
            ) from error
        if "NoSuchBucket" in text or "bucket does not exist" in text:
            raise NotSetUp(
                f"Could not {doing}: there is no such bucket ({text}).",
                "Create the bucket, or check PIPELINE_LAKE__URI.",
            ) from error
        if isinstance(error, FileNotFoundError) or _MISSING.search(text):
            raise NotSetUp(
                f"Could not {doing}: a file is missing ({text}).",
                "Was it deleted, or vacuumed away before it was read? `pipeline rebuild` makes a table anew.",
            ) from error
        if isinstance(error, CommitFailedError) or _CONFLICT.search(text):
            raise Conflict(f"Another writer was first: could not {doing}: {text}") from error
        raise Unreachable(
            f"Could not {doing}: {text}",
            "Is the object store up? Check PIPELINE_LAKE__ENDPOINT_URL; `pipeline doctor` tests it.",
        ) from error
