"""What is sent to the broker's client, and what is refused before anything is sent."""

import base64
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from pydantic import SecretStr

from pipeline.broker.kafka_security import connection, msk_token
from pipeline.errors import AccessDenied, BadInput
from pipeline.settings import Kafka

ELSEWHERE = "b-1.example.com:9098,b-2.example.com:9098"
USER: dict[str, Any] = {"username": "u", "password": SecretStr("secret")}


@pytest.mark.parametrize(
    ("settings", "protocol"),
    [
        (Kafka(), "plaintext"),
        (Kafka(bootstrap_servers="localhost:9092, [::1]:9092"), "plaintext"),
        (Kafka(bootstrap_servers="localhost:9092,kafka:9092"), "ssl"),
        (Kafka(bootstrap_servers=ELSEWHERE), "ssl"),
        (Kafka(bootstrap_servers=ELSEWHERE, allow_plaintext=True), "ssl"),
        (Kafka(bootstrap_servers=ELSEWHERE, security_protocol="PLAINTEXT", allow_plaintext=True), "plaintext"),
        (Kafka(bootstrap_servers=ELSEWHERE, sasl_mechanism="SCRAM-SHA-512", **USER), "sasl_ssl"),
        (Kafka(sasl_mechanism="PLAIN", **USER), "sasl_ssl"),
        (Kafka(security_protocol="SASL_PLAINTEXT", sasl_mechanism="PLAIN", **USER), "sasl_plaintext"),
        (Kafka(sasl_mechanism="AWS_MSK_IAM", region="eu-west-1"), "sasl_ssl"),
        (Kafka(ca_file=Path(__file__)), "ssl"),
    ],
)
def test_off_this_machine_everything_is_encrypted_unless_insisted(settings: Kafka, protocol: str) -> None:
    assert connection(settings)["security.protocol"] == protocol


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (Kafka(bootstrap_servers=ELSEWHERE, security_protocol="PLAINTEXT"), "PIPELINE_KAFKA__ALLOW_PLAINTEXT"),
        (
            Kafka(bootstrap_servers=ELSEWHERE, security_protocol="SASL_PLAINTEXT", sasl_mechanism="PLAIN", **USER),
            "SASL_PLAINTEXT would not encrypt",
        ),
        (Kafka(security_protocol="SASL_SSL"), "mechanism is not set"),
        (Kafka(security_protocol="SSL", sasl_mechanism="PLAIN", **USER), "protocol is SSL"),
        (Kafka(sasl_mechanism="SCRAM-SHA-256", username="u"), "PIPELINE_KAFKA__PASSWORD"),
        (Kafka(sasl_mechanism="AWS_MSK_IAM"), "PIPELINE_KAFKA__REGION"),
        (Kafka(cert_file=Path(__file__)), "PIPELINE_KAFKA__KEY_FILE"),
        (Kafka(ca_file=Path("nowhere.pem")), "PIPELINE_KAFKA__CA_FILE"),
    ],
)
def test_settings_that_contradict_each_other_or_would_leak_are_refused(settings: Kafka, told: str) -> None:
    with pytest.raises(BadInput, match=told) as refused:
        connection(settings)
    assert "secret" not in str(refused.value)


def test_certificate_and_key_reach_the_client() -> None:
    here = Path(__file__)
    sent = connection(Kafka(ca_file=here, cert_file=here, key_file=here, key_password=SecretStr("k")))
    assert {name: value for name, value in sent.items() if name.startswith("ssl")} == {
        "ssl.ca.location": str(here),
        "ssl.certificate.location": str(here),
        "ssl.key.location": str(here),
        "ssl.key.password": "k",
    }


def test_a_token_for_msk_is_a_signed_request_that_ends_in_a_quarter_of_an_hour(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    token, ends = connection(Kafka(sasl_mechanism="AWS_MSK_IAM", region="eu-west-1"))["oauth_cb"]("")
    request = urlsplit(base64.urlsafe_b64decode(token + "==").decode())
    asked = parse_qs(request.query)
    assert request.hostname == "kafka.eu-west-1.amazonaws.com"
    assert asked["Action"] == ["kafka-cluster:Connect"]
    assert asked["X-Amz-Credential"][0].startswith("AKIAEXAMPLE/")
    assert 600 < ends - time.time() < 1000


def test_without_credentials_the_reason_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in {
        "AWS_SHARED_CREDENTIALS_FILE": "/nowhere",
        "AWS_CONFIG_FILE": "/nowhere",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(AccessDenied, match="no AWS credentials"):
        msk_token("eu-west-1", "")
    assert "no AWS credentials" in caplog.text
