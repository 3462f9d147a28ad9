"""The lake: Delta tables on an object store, opened, appended to and replaced with their progress.

Progress commits with the data: every commit of a stage carries application transactions (`app id -> version`),
and a restart reads them back. A writer appends with the table object whose progress it read: delta-rs refuses
the commit when another writer moved any of its app ids in between, and nothing else fences it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date

import pandera.errors
import polars as pl
import s3fs
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from contracts.tables import SCHEMA_VERSION, Table
from pipeline import settings as config
from pipeline.errors import AccessDenied, Conflict, ContractBroken, NotSetUp, SchemaTooNew, Unreachable

SCHEMA_APP_ID = "schema"
"""Application transaction whose version is the table's schema version (delta-rs takes no properties of ours)."""

CONFIGURATION = {
    "delta.enableChangeDataFeed": "true",
    "delta.checkpointInterval": "100",
}


class Lake:
    """The tables below one root, e.g. `s3://lake`."""

    def __init__(self, settings: config.Lake) -> None:
        self._settings = settings
        self.storage_options = storage_options(settings)

    def uri(self, path: str) -> str:
        """Address of a table, or of any other path below the root."""
        return f"{self._settings.uri.rstrip('/')}/{path}"

    def open(self, table: Table) -> DeltaTable:
        """Open a table at its newest version.

        Raises NotSetUp where there is none, SchemaTooNew where a newer pipeline wrote it, Unreachable and
        AccessDenied as the store says.
        """
        with translated(f"open {self.uri(table.path)}"):
            try:
                opened = DeltaTable(self.uri(table.path), storage_options=self.storage_options)
            except TableNotFoundError:
                raise NotSetUp(
                    f"There is no table {self.uri(table.path)}.",
                    "The stage that writes it creates it: start that.",
                ) from None
        version = progress(opened, SCHEMA_APP_ID)
        if version is not None and version > SCHEMA_VERSION:
            raise SchemaTooNew(
                f"{self.uri(table.path)} has schema version {version}; this pipeline knows up to {SCHEMA_VERSION}.",
                "Run the newer version of the pipeline that wrote it.",
            )
        return opened

    def ensure(self, table: Table) -> DeltaTable:
        """Open a table, creating it, empty, where it is missing. Two creators at once are one table."""
        try:
            return self.open(table)
        except NotSetUp:
            pass
        with translated(f"create {self.uri(table.path)}"):
            try:
                DeltaTable.create(
                    self.uri(table.path),
                    schema=pl.DataFrame(schema=table.schema).to_arrow().schema,
                    partition_by=[table.partition_by],
                    name=table.path,
                    description=table.description,
                    configuration=CONFIGURATION,
                    storage_options=self.storage_options,
                    commit_properties=CommitProperties(app_transactions=[Transaction(SCHEMA_APP_ID, SCHEMA_VERSION)]),
                )
            except (CommitFailedError, DeltaError) as error:
                if "already exists" not in str(error).lower():
                    raise
        return self.open(table)

    def files(self) -> s3fs.S3FileSystem:
        """The store as a file system, for what is not a table (states, exports)."""
        settings = self._settings
        secret = settings.secret_access_key
        return s3fs.S3FileSystem(
            key=settings.access_key_id,
            secret=secret.get_secret_value() if secret else None,
            endpoint_url=settings.endpoint_url,
            client_kwargs={"region_name": settings.region},
            config_kwargs={"connect_timeout": settings.timeout_s, "read_timeout": settings.timeout_s},
            use_listings_cache=False,
            skip_instance_cache=True,
        )


def storage_options(settings: config.Lake) -> dict[str, str]:
    """What delta-rs and Polars need to reach the store."""
    options = {"region": settings.region, "timeout": f"{settings.timeout_s}s", "connect_timeout": "3s"}
    if settings.endpoint_url:
        options["endpoint_url"] = settings.endpoint_url
        options["allow_http"] = str(settings.endpoint_url.startswith("http://")).lower()
    if settings.access_key_id and settings.secret_access_key:
        options["access_key_id"] = settings.access_key_id
        options["secret_access_key"] = settings.secret_access_key.get_secret_value()
    return {f"aws_{key}": value for key, value in options.items()}


def progress(table: DeltaTable, app_id: str) -> int | None:
    """The version that the last commit of `app_id` carried, as this table object sees it; None before the first."""
    version: int | None = table.transaction_version(app_id)
    return version


def append(table: DeltaTable, definition: Table, frame: pl.DataFrame, versions: Mapping[str, int]) -> None:
    """Add rows and set progress (`app id -> version`) in one commit of *this* table object.

    Raises ContractBroken before anything is written, Conflict where another writer moved the progress.
    """
    _write(table, definition, frame, versions, mode="append", predicate=None)


def replace(
    table: DeltaTable, definition: Table, frame: pl.DataFrame, versions: Mapping[str, int], predicate: str
) -> None:
    """Delete the rows that `predicate` (SQL) selects, add `frame` and set progress, in one commit.

    Every row of `frame` must satisfy the predicate. Raises as `append` does.
    """
    _write(table, definition, frame, versions, mode="overwrite", predicate=predicate)


def _write(
    table: DeltaTable,
    definition: Table,
    frame: pl.DataFrame,
    versions: Mapping[str, int],
    mode: str,
    predicate: str | None,
) -> None:
    checked = validated(frame, definition)
    with translated(f"commit to {table.table_uri}"):
        write_deltalake(  # type: ignore[call-overload]  # the overloads do not allow a mode in a variable
            table,
            checked.to_arrow(compat_level=pl.CompatLevel.oldest()),
            mode=mode,
            predicate=predicate,
            commit_properties=CommitProperties(
                app_transactions=[Transaction(app_id, version) for app_id, version in versions.items()]
            ),
        )


def validated(frame: pl.DataFrame, definition: Table) -> pl.DataFrame:
    """The frame in its contract's column order, after every check on every value. Raises ContractBroken."""
    try:
        checked = definition.contract.validate(frame.select(definition.schema.names()), lazy=True)
    except (pandera.errors.SchemaErrors, pl.exceptions.ColumnNotFoundError) as error:
        raise ContractBroken(
            f"{len(frame)} rows break the contract of {definition.path} and were not committed: {error}",
            "This is a defect of the stage that writes the table, not of the data: report it with this message.",
        ) from error
    return pl.DataFrame(checked)


def changes(table: DeltaTable, first: int, last: int) -> pl.DataFrame:
    """The change feed of versions `first` to `last`, both included: the table's columns and `_change_type`,
    `_commit_version`. Compaction adds nothing to it; a replace is delete + insert.
    """
    with translated(f"read the changes {first}-{last} of {table.table_uri}"):
        feed = table.load_cdf(starting_version=first, ending_version=last).read_all()
    return pl.DataFrame(feed).drop("_commit_timestamp")


def days(column: str, values: list[date]) -> str:
    """SQL predicate: the partition column is one of these days."""
    quoted = ", ".join(f"'{value}'" for value in values)
    return f"{column} in ({quoted})" if values else "false"


_DENIED = ("AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch", "Forbidden", "ExpiredToken")
_CONFLICT = ("Concurrent transaction", "Invalid table version", "conflict", "Commit failed")


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn what delta-rs and the store raise into an error of ours that says what was tried."""
    try:
        yield
    except (DeltaError, OSError) as error:
        text = str(error)
        if any(mark in text for mark in _DENIED):
            raise AccessDenied(
                f"The object store refused to {doing}: {text}",
                "Check PIPELINE_LAKE__ACCESS_KEY_ID and PIPELINE_LAKE__SECRET_ACCESS_KEY, or the role's policy.",
            ) from error
        if isinstance(error, CommitFailedError) or any(mark in text for mark in _CONFLICT):
            raise Conflict(f"Another writer was first: could not {doing}: {text}") from error
        raise Unreachable(
            f"Could not {doing}: {text}",
            "Is the object store up? Check PIPELINE_LAKE__ENDPOINT_URL; `pipeline doctor` tests it.",
        ) from error
