"""What psycopg raises, as errors of ours: where it happened, and which command repairs it."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
from psycopg import errors

from contracts.warehouse import SCHEMA
from pipeline import settings as config
from pipeline.errors import (
    AccessDenied,
    Conflict,
    ContractBroken,
    NotSetUp,
    PipelineError,
    Unreachable,
)

_DENIED = re.compile(r"password|authentication|pg_hba|role .* does not exist|permission denied", re.IGNORECASE)
_NO_DATABASE = re.compile(r"database .* does not exist")
_CONFLICT = re.compile(
    r"\b1023\b|Serializable isolation violation|could not serialize|conflict with concurrent"  # Redshift, as XX000
    r"|pg_namespace_nspname_index|pg_type_typname_nsp_index|tuple concurrently updated"  # two that set up at once
)
_DIFFERS = "`pipeline warehouse status` compares its tables with their contract, and names what repairs them."

_BUSY = (
    errors.SerializationFailure,
    errors.DeadlockDetected,
    errors.LockNotAvailable,
    errors.QueryCanceled,  # Redshift: the time to wait for a lock was over
)
_RACED = (errors.DuplicateSchema, errors.DuplicateTable)
"""Two that set up at once: IF NOT EXISTS does not see what another transaction is about to commit."""
_MISSING = (errors.UndefinedTable, errors.InvalidSchemaName, errors.UndefinedColumn)

_REFUSED = (
    psycopg.DataError,
    psycopg.IntegrityError,
    psycopg.InternalError,
    psycopg.NotSupportedError,
    errors.DatatypeMismatch,
)


@contextmanager
def translated(settings: config.Warehouse, details: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Turn what psycopg raises into an error of ours. `details` tells what the warehouse noted of a rejected load.

    Raises Unreachable, Conflict, AccessDenied, NotSetUp, and ContractBroken where the rows were refused.
    """
    try:
        yield
    except psycopg.Error as error:
        raise _translate(settings, error, details) from error


def _translate(settings: config.Warehouse, error: psycopg.Error, details: Callable[[], str]) -> PipelineError:
    where = f"The warehouse at {settings.host}:{settings.port}, database {settings.database},"
    text = " ".join(str(error).split())
    if isinstance(error, _BUSY + _RACED) or _CONFLICT.search(text):
        return Conflict(f"{where} had another loader at work: {text}")
    if isinstance(error, _MISSING):
        return NotSetUp(f"{where} is not set up: {text}", "Run `pipeline warehouse init`; it keeps what is there.")
    if isinstance(error, errors.InsufficientPrivilege):
        return AccessDenied(
            f"{where} denies user {settings.user}: {text}",
            f"Grant the user USAGE and CREATE on the schema {SCHEMA}, and all on its tables.",
        )
    if isinstance(error, errors.DependentObjectsStillExist):
        return NotSetUp(
            f"{where} has views of yours on a table to be created anew: {text}", "Drop them, and try again."
        )
    if isinstance(error, psycopg.OperationalError):
        return _failed(where, settings, text)
    if not isinstance(error, _REFUSED):
        raise error
    said = details()
    return ContractBroken(f"{where} refused the rows: {text}" + (f"\n{said}" if said else ""), _DIFFERS)


def _failed(where: str, settings: config.Warehouse, text: str) -> PipelineError:
    if _NO_DATABASE.search(text):
        return NotSetUp(f"{where} is not there: {text}", "Create it, or check PIPELINE_WAREHOUSE__DATABASE.")
    if _DENIED.search(text):
        return AccessDenied(
            f"{where} refused user {settings.user}: {text}",
            "Check PIPELINE_WAREHOUSE__USER and PIPELINE_WAREHOUSE__PASSWORD.",
        )
    todo = "Is it up? Check PIPELINE_WAREHOUSE__HOST and PIPELINE_WAREHOUSE__PORT; `pipeline doctor` tests it."
    if settings.dialect == "redshift":
        todo += (
            " A cluster may be paused: `aws redshift resume-cluster --cluster-identifier NAME`. A workgroup"
            " resumes by itself: is it AVAILABLE (`aws redshift-serverless get-workgroup --workgroup-name NAME`), and"
            " does its security group let this host in?"
        )
    return Unreachable(f"{where} does not answer: {text}", todo)
