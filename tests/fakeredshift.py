"""A fake Redshift: sessions of a real PostgreSQL that take Redshift's statements and hold them to Redshift's rules.

No emulation of COPY from a Parquet manifest is to be had for Python 3.11 (rs-mock needs 3.12, and DuckDB has neither
sessions nor locks), so this one is for the tests alone. What it checks, from the database developer's guide:

- a statement is one that sqlglot reads in Redshift's dialect; TRUNCATE commits; MERGE takes only a table as source;
- primary keys are not enforced; a transaction sees one snapshot, taken by its first read, and LOCK is none;
- COPY of Parquet: columns by place, as many in each file as in the table; a manifest with the length of every file,
  all of which have to be there; times without a zone; VARCHAR counts bytes; nothing is skipped; what was wrong is in
  SYS_LOAD_ERROR_DETAIL, and the transaction is over.

What it cannot show: permissions of the IAM role, Spectrum's own reading of Parquet, the planner, the speed. That
is what `pipeline warehouse selftest` is for.
"""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import polars as pl
import psycopg
import pyarrow.parquet as pq
import sqlglot
from psycopg import errors, sql
from sqlglot import exp

from pipeline import settings as config
from pipeline.lake.delta import Lake
from pipeline.warehouse.redshift import Redshift, prepared
from pipeline.warehouse.session import Session, bounds

_LAYOUT = (exp.DistKeyProperty, exp.DistStyleProperty, exp.SortKeyProperty)

_PARQUET = {
    "bigint": ("INT64", "None"),
    "integer": ("INT32", "None"),
    "double precision": ("DOUBLE", "None"),
    "boolean": ("BOOLEAN", "None"),
    "date": ("INT32", "Date"),
    "timestamp without time zone": ("INT64", "Timestamp(isAdjustedToUTC=true, timeUnit=microseconds"),
    "character varying": ("BYTE_ARRAY", "String"),
}
"""Type of a staging column -> physical type of the Parquet column, and how its logical type begins."""

Hook = Callable[[str, psycopg.Connection[Any]], None]


class Server:
    """A database of a fake Redshift. `before` is called with each statement, and may raise, or end the session."""

    def __init__(self, postgres: config.Warehouse, lake: Lake) -> None:
        self.statements: list[str] = []
        self.before: Hook = lambda statement, connection: None
        self.files = lake.files()
        self._postgres = postgres
        with self._session() as connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS public.sys_load_error_detail (session_id int, start_time timestamptz,"
                " file_name char(256), line_number int, column_name char(127), column_type char(10), error_code int,"
                " error_message char(512))"
            )

    def connect(self) -> Session:
        connection = self._session()
        connection.execute("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        connection.cursor_factory = type("Cursor", (RedshiftCursor,), {"server": self})
        return prepared(connection)

    def note(self, session: int, file: str, column: str, type: str, code: int, message: str) -> None:
        with self._session() as connection:
            connection.execute(
                "INSERT INTO public.sys_load_error_detail VALUES (%s, %s, %s, 0, %s, %s, %s, %s)",
                (session, datetime.now(UTC), file, column, type[:10], code, message),
            )

    def _session(self) -> Session:
        given = self._postgres
        return Session.connect(
            host=given.host,
            port=given.port,
            dbname=given.database,
            user=given.user,
            autocommit=True,
            sslmode="disable",
            **bounds(given.timeout_s),
        )


class FakeRedshift(Redshift):
    """The real dialect, whose sessions are those of a fake server."""

    def __init__(self, settings: config.Warehouse, lake: Lake, server: Server) -> None:
        super().__init__(settings, lake)
        self._server = server

    def connect(self) -> Session:
        return self._server.connect()


class RedshiftCursor(psycopg.ClientCursor[tuple[Any, ...]]):
    """Runs Redshift's statements on PostgreSQL."""

    server: Server

    def execute(self, query: Any, params: Any = None, **options: Any) -> "RedshiftCursor":
        text = self.mogrify(query, params)
        self.server.statements.append(text)
        self.server.before(text, self.connection)
        if re.fullmatch(r'LOCK TABLE "\w+"\."\w+"', text):  # sqlglot does not know it
            return self._run(text)
        tree = sqlglot.parse_one(text, read="redshift")
        match tree:
            case exp.Command():
                raise errors.SyntaxError(f"syntax error: {text}")
            case exp.Copy():
                _Copy(self, tree).run()
                return self
            case exp.TruncateTable():
                self._run(tree.sql("postgres"))
                return self._run("COMMIT; BEGIN")
            case exp.Merge() if not isinstance(tree.args["using"], exp.Table):
                raise errors.FeatureNotSupported("MERGE: the source has to be a table")
            case exp.Create() | exp.Alter():
                return self._run(_stripped(tree).sql("postgres"))
            case _:
                return self._run(tree.sql("postgres"))

    def _run(self, text: str) -> "RedshiftCursor":
        super().execute(text.encode())
        return self

    def plain(self, query: sql.Composed) -> "RedshiftCursor":
        """Ask PostgreSQL itself."""
        super().execute(query)
        return self


def _stripped(tree: exp.Expression) -> exp.Expression:
    """Without what PostgreSQL does not know, and without the keys that Redshift does not enforce."""
    for properties in tree.find_all(exp.Properties):
        properties.set("expressions", [each for each in properties.expressions if not isinstance(each, _LAYOUT)])
    for constraint in list(tree.find_all(exp.ColumnConstraint)):
        if isinstance(constraint.kind, exp.EncodeColumnConstraint):
            constraint.pop()
    for key in list(tree.find_all(exp.PrimaryKey)):
        key.pop()
    return tree


class _Copy:
    """COPY table FROM manifest IAM_ROLE role FORMAT AS PARQUET MANIFEST."""

    def __init__(self, cursor: RedshiftCursor, tree: exp.Copy) -> None:
        options = {parameter.this.name.upper(): parameter.expression for parameter in tree.args["params"]}
        if options.keys() != {"FORMAT", "MANIFEST"} or options["FORMAT"].name.upper() != "PARQUET":
            raise errors.FeatureNotSupported(f"COPY: {tree.sql('redshift')}")
        if not re.fullmatch(r"arn:aws:iam::\d{12}:role/[\w/-]+", tree.args["credentials"].args["iam_role"].name):
            raise errors.InvalidParameterValue("COPY: the IAM role is not an ARN")
        self._cursor = cursor
        self._table = tree.this.name
        self._manifest = tree.args["files"][0].name

    def run(self) -> None:
        files = self._cursor.server.files
        if not files.exists(self._manifest):
            raise errors.InternalError_(f"The specified S3 prefix '{self._manifest}' does not exist")
        entries = json.loads(files.cat_file(self._manifest))["entries"]
        if not entries:
            raise errors.InternalError_("The manifest names no files")
        for entry in entries:
            url = entry["url"]
            if "content_length" not in entry.get("meta", {}):
                raise errors.InternalError_(f"The manifest has no meta.content_length for {url}")
            if not files.exists(url):
                raise errors.InternalError_(f'Mandatory url "{url}" in manifest does not exist')
            if files.size(url) != entry["meta"]["content_length"]:
                self._reject(url, "", "", 15001, "content_length is not the length of the file")
            with files.open(url) as opened:
                self._file(url, pq.ParquetFile(opened))

    def _file(self, url: str, file: pq.ParquetFile) -> None:
        columns = self._cursor.plain(
            sql.SQL(
                "SELECT attname, format_type(atttypid, NULL), atttypmod FROM pg_catalog.pg_attribute"
                " WHERE attrelid = {}::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum"
            ).format(sql.Literal(self._table))
        ).fetchall()
        if len(columns) != len(file.schema):
            message = f"Unmatched number of columns: table {len(columns)}, file {len(file.schema)}"
            self._reject(url, "", "", 15007, message)
        frame = pl.DataFrame(pl.from_arrow(file.read()))
        for place, (name, type, modifier) in enumerate(columns):
            found = file.schema.column(place)
            physical, logical = _PARQUET.get(type, ("none: not supported by COPY from Parquet", ""))
            if found.physical_type != physical or not str(found.logical_type).startswith(logical):
                self._reject(url, name, type, 15004, f"{found.physical_type} {found.logical_type} is not {type}")
            if type == "character varying":
                longest = frame.to_series(place).str.len_bytes().max()
                if longest is not None and longest > modifier - 4:
                    self._reject(url, name, type, 1204, "String length exceeds DDL length")
        frame.columns = [name for name, _, _ in columns]
        frame = frame.with_columns(pl.col(pl.Datetime("us", "UTC")).dt.replace_time_zone(None))
        names = sql.SQL(", ").join(map(sql.Identifier, frame.columns))
        with self._cursor.copy(sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(self._table), names)) as copy:
            for row in frame.iter_rows():
                copy.write_row(row)

    def _reject(self, url: str, column: str, type: str, code: int, message: str) -> None:
        self._cursor.server.note(self._cursor.connection.info.backend_pid, url, column, type, code, message)
        raise errors.InternalError_(
            f"Load into table '{self._table}' failed. Check 'sys_load_error_detail' system table for details."
        )
