"""The warehouse's dialect for Redshift: rows go through files on S3, which COPY reads by an IAM role."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import psycopg
from psycopg import sql

from contracts.warehouse import LOCK, Dialect, Relation
from pipeline import settings as config
from pipeline.errors import AccessDenied, BadInput, NotSetUp, PipelineError, Unreachable
from pipeline.lake.delta import Lake
from pipeline.warehouse.export import Exported, export
from pipeline.warehouse.plan import STAGING, name
from pipeline.warehouse.session import Session, bounds

_BEFORE_EXPIRY = timedelta(seconds=60)
"""A password that expires sooner is not used for a new connection."""

_SHOWN = 10

_REJECTED = (
    "SELECT TRIM(file_name), line_number, TRIM(column_name), TRIM(column_type), error_code, TRIM(error_message)"
    " FROM sys_load_error_detail WHERE session_id = {} ORDER BY start_time DESC LIMIT {}"
)


class Redshift:
    """See `pipeline.warehouse.facts.WarehouseDialect`. `lake` may be absent where nothing is loaded."""

    dialect: Dialect = "redshift"
    snapshot: tuple[str, ...] = ()
    """Every transaction sees one state of the database: isolation is serializable or snapshot."""

    def __init__(self, settings: config.Warehouse, lake: Lake | None) -> None:
        self._settings = settings
        self._lake = lake
        self._credentials = Credentials(settings)

    def connect(self) -> Session:
        """A session in UTC and UTF-8, over TLS with the server's name verified.

        Raises AccessDenied, NotSetUp and Unreachable where IAM gives no credentials.
        """
        given = self._settings
        user, password = self._credentials.get(datetime.now(UTC))
        connection = Session.connect(
            host=given.host,
            port=given.port,
            dbname=given.database,
            user=user,
            password=password,
            sslmode=given.sslmode or "verify-full",
            sslrootcert=str(given.ca_file) if given.ca_file else "system",
            **bounds(given.timeout_s),
            client_encoding="utf8",  # the server calls it UNICODE, which psycopg does not know
            application_name="pipeline",
            prepare_threshold=None,  # and no DEALLOCATE, which it refuses
            cursor_factory=psycopg.ClientCursor,  # it binds no parameters for COPY and DDL
            autocommit=True,  # transactions are opened by blocks
        )
        return prepared(connection)

    def lock(self) -> list[sql.Composed]:
        """Keep other loaders out. A lock is always against readers too, so it is not the ledger's; and it comes
        before the transaction's snapshot, which is taken by the first statement that reads."""
        wait = sql.Literal(round(self._settings.timeout_s * 1000))
        return [
            sql.SQL("SET LOCAL statement_timeout TO {}").format(wait),
            sql.SQL("LOCK TABLE {}").format(name(LOCK)),
            sql.SQL("SET LOCAL statement_timeout TO 0").format(),
        ]

    def prepare(self, relation: Relation, frames: Iterable[pl.DataFrame], *, dry_run: bool = False) -> "Files":
        """Write the files, which takes long, before the transaction. Raises BadInput without a role or a lake."""
        role = self._settings.iam_role
        if not role or self._lake is None:
            raise BadInput(
                "Redshift's COPY needs an IAM role to read the exports with.",
                "Set PIPELINE_WAREHOUSE__IAM_ROLE to its ARN; it is attached to the workgroup or cluster.",
            )
        return Files(export(self._lake, relation, frames, dry_run=dry_run), role)

    def rejected(self, connection: psycopg.Connection[tuple[Any, ...]]) -> str:
        """The newest rows of SYS_LOAD_ERROR_DETAIL of this session, one a line."""
        query = sql.SQL(_REJECTED).format(sql.Literal(connection.info.backend_pid), sql.Literal(_SHOWN))
        try:
            rows = connection.execute(query).fetchall()
        except psycopg.Error as error:  # what was refused matters more than why this cannot be told
            return f"  (SYS_LOAD_ERROR_DETAIL cannot be read: {' '.join(str(error).split())})"
        return "\n".join(
            f"  {file}, row {line}, column {column} ({type}): error {code}: {message}"
            for file, line, column, type, code, message in rows
        )


def prepared(connection: Session) -> Session:
    """The session's settings: UTC, and floats in all 17 digits, of which the server would send 15."""
    connection.execute("SET timezone TO 'UTC'")
    connection.execute("SET extra_float_digits TO 2")
    return connection


class Files:
    """Rows in files on S3. See `pipeline.warehouse.facts.Staged`."""

    def __init__(self, exported: Exported, role: str) -> None:
        self.exported = exported
        self.rows = exported.rows
        self.checksum = exported.checksum
        self.manifest: str | None = exported.manifest if exported.entries else None
        self._role = role

    def statement(self) -> sql.Composed:
        """COPY by the manifest; no key is in it."""
        return sql.SQL("COPY {} FROM {} IAM_ROLE {} FORMAT AS PARQUET MANIFEST").format(
            sql.Identifier(STAGING), sql.Literal(self.exported.manifest), sql.Literal(self._role)
        )

    def copy(self, cursor: psycopg.Cursor[tuple[Any, ...]]) -> None:
        """Fill the staging table; COPY refuses a manifest that names no files."""
        if self.manifest:
            cursor.execute(self.statement())


class Credentials:
    """User and password for a new connection: from IAM where there is a workgroup, kept until they are about to
    expire; else those of the settings. An open session outlives its password."""

    def __init__(self, settings: config.Warehouse) -> None:
        self._settings = settings
        self._until = datetime.min.replace(tzinfo=UTC)
        self._pair: tuple[str, str | None] = ("", None)

    def get(self, now: datetime) -> tuple[str, str | None]:
        """Raises AccessDenied, NotSetUp (no such workgroup) and Unreachable."""
        given = self._settings
        if given.workgroup is None:
            return given.user, given.password.get_secret_value() if given.password else None
        if now + _BEFORE_EXPIRY >= self._until:
            answer = self._ask(given.workgroup)
            self._pair, self._until = (answer["dbUser"], answer["dbPassword"]), answer["expiration"]
        return self._pair

    def _ask(self, workgroup: str) -> dict[str, Any]:
        import boto3  # a fifth of load's start, and nothing that PostgreSQL needs
        from botocore.exceptions import BotoCoreError, ClientError

        client = boto3.client("redshift-serverless", region_name=self._settings.region)
        try:
            return dict(
                client.get_credentials(workgroupName=workgroup, dbName=self._settings.database, durationSeconds=900)
            )
        except (ClientError, BotoCoreError) as error:
            raise _denied(workgroup, error) from error


def _denied(workgroup: str, error: Exception) -> PipelineError:
    code = getattr(error, "response", {}).get("Error", {}).get("Code", type(error).__name__)
    what = f"No credentials for the Redshift workgroup {workgroup}: {error}"
    if code == "ResourceNotFoundException":
        return NotSetUp(what, "Check PIPELINE_WAREHOUSE__WORKGROUP and PIPELINE_WAREHOUSE__REGION.")
    if code in {
        "AccessDeniedException",
        "NoCredentialsError",
        "UnrecognizedClientException",
        "ExpiredTokenException",
    }:
        return AccessDenied(
            what, "Allow this role redshift-serverless:GetCredentials on the workgroup; is AWS_PROFILE the right one?"
        )
    return Unreachable(
        what, f"Is it AVAILABLE? `aws redshift-serverless get-workgroup --workgroup-name {workgroup}` tells."
    )
