"""How Redshift is reached. What it does with a load: tests/integration/test_warehouse_dialects.py."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import psycopg
import pytest
from botocore.stub import Stubber
from psycopg import errors
from pydantic import SecretStr

from contracts.warehouse import FACTS
from pipeline import settings as config
from pipeline.errors import AccessDenied, BadInput, ContractBroken, NotSetUp, PipelineError, Unreachable
from pipeline.warehouse.errors import translated
from pipeline.warehouse.redshift import Credentials, Redshift
from pipeline.warehouse.session import Session

NOW = datetime(2026, 3, 1, tzinfo=UTC)
SERVERLESS = config.Warehouse(dialect="redshift", host="wg.example", port=5439, database="dev", workgroup="fleet")


@pytest.fixture
def iam(monkeypatch: pytest.MonkeyPatch) -> Stubber:
    """botocore's own double of the API: it checks requests and answers against the service's model."""
    client = boto3.client(
        "redshift-serverless", region_name="eu-west-1", aws_access_key_id="x", aws_secret_access_key="x"
    )
    monkeypatch.setattr(boto3, "client", lambda name, region_name: client)
    stubber = Stubber(client)
    stubber.activate()
    return stubber


ASKED = {"workgroupName": "fleet", "dbName": "dev", "durationSeconds": 900}


def answer(number: int, expires: datetime) -> dict[str, Any]:
    return {"dbUser": f"IAMR:loader{number}", "dbPassword": f"secret{number}", "expiration": expires}


def test_a_password_is_kept_until_it_is_about_to_expire(iam: Stubber) -> None:
    iam.add_response("get_credentials", answer(1, NOW + timedelta(seconds=900)), ASKED)
    iam.add_response("get_credentials", answer(2, NOW + timedelta(seconds=1800)), ASKED)
    credentials = Credentials(SERVERLESS)
    assert credentials.get(NOW) == ("IAMR:loader1", "secret1")
    assert credentials.get(NOW + timedelta(seconds=839)) == ("IAMR:loader1", "secret1")
    assert credentials.get(NOW + timedelta(seconds=840)) == ("IAMR:loader2", "secret2")
    iam.assert_no_pending_responses()


def test_without_a_workgroup_user_and_password_are_those_of_the_settings() -> None:
    cluster = config.Warehouse(dialect="redshift", user="loader", password=SecretStr("given"))
    assert Credentials(cluster).get(NOW) == ("loader", "given")


@pytest.mark.parametrize(
    ("code", "expected", "says"),
    [
        ("ResourceNotFoundException", NotSetUp, "PIPELINE_WAREHOUSE__WORKGROUP"),
        ("AccessDeniedException", AccessDenied, "redshift-serverless:GetCredentials"),
        ("ConflictException", Unreachable, "aws redshift-serverless get-workgroup --workgroup-name fleet"),
        ("InternalServerException", Unreachable, "get-workgroup"),
    ],
)
def test_why_there_are_no_credentials_is_told(
    iam: Stubber, code: str, expected: type[PipelineError], says: str
) -> None:
    iam.add_client_error("get_credentials", code, "no")
    with pytest.raises(expected) as told:
        Credentials(SERVERLESS).get(NOW)
    assert says in str(told.value)


@pytest.mark.parametrize(("ca_file", "trusted"), [(None, "system"), (Path("/etc/ca.pem"), "/etc/ca.pem")])
def test_a_session_is_over_verified_tls_and_binds_nothing_on_the_server(
    iam: Stubber, monkeypatch: pytest.MonkeyPatch, ca_file: Path | None, trusted: str
) -> None:
    iam.add_response("get_credentials", answer(1, datetime.now(UTC) + timedelta(hours=1)), ASKED)
    opened: dict[str, Any] = {}
    ran: list[str] = []

    class Opened:
        def execute(self, statement: str) -> None:
            ran.append(statement)

    def connect(**given: Any) -> Opened:
        opened.update(given)
        return Opened()

    monkeypatch.setattr(Session, "connect", connect)
    Redshift(SERVERLESS.model_copy(update={"ca_file": ca_file}), None).connect()
    expected = {
        "host": "wg.example",
        "port": 5439,
        "dbname": "dev",
        "user": "IAMR:loader1",
        "password": "secret1",
        "sslmode": "verify-full",
        "sslrootcert": trusted,
        "client_encoding": "utf8",
        "prepare_threshold": None,
        "cursor_factory": psycopg.ClientCursor,
        "autocommit": True,
    }
    assert expected.items() <= opened.items()
    assert ran == ["SET timezone TO 'UTC'", "SET extra_float_digits TO 2"]


def test_a_load_without_a_role_names_the_setting() -> None:
    with pytest.raises(BadInput, match="PIPELINE_WAREHOUSE__IAM_ROLE"):
        Redshift(SERVERLESS, None).prepare(FACTS[0].relation, [])


def test_a_cluster_that_is_paused_is_told_with_the_command_that_resumes_it() -> None:
    with pytest.raises(Unreachable, match="aws redshift resume-cluster"), translated(SERVERLESS):
        raise psycopg.OperationalError("connection to server failed: Connection refused")


def test_what_was_noted_of_a_rejected_load_is_in_the_error_and_a_defect_stays_one() -> None:
    with pytest.raises(ContractBroken, match="row 7"), translated(SERVERLESS, lambda: "  f.parquet, row 7"):
        raise errors.InternalError_("Load into table 'staging' failed.")
    with pytest.raises(errors.SyntaxError), translated(SERVERLESS):
        raise errors.SyntaxError("syntax error at or near")
