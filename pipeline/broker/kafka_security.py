"""How a client proves who it is, and to whom: encryption, SASL, certificates, MSK's IAM tokens.

Off this machine the connection is encrypted unless the settings insist otherwise.
"""

import logging
from functools import partial
from typing import Any

from pipeline import settings as config
from pipeline.errors import AccessDenied, BadInput

MSK_IAM = "AWS_MSK_IAM"
_WITH_PASSWORD = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
_THIS_MACHINE = ("localhost", "127.", "[::1]")

log = logging.getLogger(__name__)


def connection(kafka: config.Kafka) -> dict[str, Any]:
    """librdkafka's configuration of the connection. Raises BadInput where the settings contradict each other, or
    would send data, or a password, in plain text to another machine."""
    protocol = _protocol(kafka)
    _check(kafka, protocol)
    oauth = kafka.sasl_mechanism == MSK_IAM
    options = {
        "bootstrap.servers": kafka.bootstrap_servers,
        "security.protocol": protocol.lower(),
        "sasl.mechanism": "OAUTHBEARER" if oauth else kafka.sasl_mechanism,
        "oauth_cb": partial(msk_token, kafka.region or "") if oauth else None,
        "sasl.username": kafka.username,
        "sasl.password": kafka.password.get_secret_value() if kafka.password else None,
        "ssl.ca.location": str(kafka.ca_file) if kafka.ca_file else None,
        "ssl.certificate.location": str(kafka.cert_file) if kafka.cert_file else None,
        "ssl.key.location": str(kafka.key_file) if kafka.key_file else None,
        "ssl.key.password": kafka.key_password.get_secret_value() if kafka.key_password else None,
    }
    return {key: value for key, value in options.items() if value is not None}


def msk_token(region: str, _config: str) -> tuple[str, float]:
    """A token for MSK, signed with the credentials of the AWS chain, and when it ends (seconds since 1970).

    The client asks for another one in time, after about four fifths of its 15 minutes. Raises AccessDenied where
    there are no credentials, of which the client says only that it got no token; so it is logged.
    """
    import boto3
    from aws_msk_iam_sasl_signer import MSKAuthTokenProvider

    if boto3.Session().get_credentials() is None:
        denied = AccessDenied(
            "There are no AWS credentials to sign a token for MSK with.",
            "Give the process a role (IRSA on Kubernetes), or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
        )
        log.error("%s %s", denied.what, denied.todo)
        raise denied
    token, expires_ms = MSKAuthTokenProvider.generate_auth_token(region)
    return token, expires_ms / 1000


def _protocol(kafka: config.Kafka) -> str:
    if kafka.security_protocol is not None:
        return kafka.security_protocol
    if kafka.sasl_mechanism is not None:
        return "SASL_SSL"
    return "PLAINTEXT" if _here(kafka) and not (kafka.ca_file or kafka.cert_file) else "SSL"


def _here(kafka: config.Kafka) -> bool:
    """Whether all servers are on this machine."""
    servers = [server.strip() for server in kafka.bootstrap_servers.split(",")]
    return all(server.startswith(_THIS_MACHINE) for server in servers)


def _check(kafka: config.Kafka, protocol: str) -> None:
    if protocol.endswith("PLAINTEXT") and not _here(kafka) and not kafka.allow_plaintext:
        raise BadInput(
            f"Kafka at {kafka.bootstrap_servers} is on another machine: {protocol} would not encrypt the way there.",
            "Leave PIPELINE_KAFKA__SECURITY_PROTOCOL out (SSL, or SASL_SSL with a mechanism); where the network is "
            "trusted, set PIPELINE_KAFKA__ALLOW_PLAINTEXT=true.",
        )
    mechanism = kafka.sasl_mechanism
    if protocol.startswith("SASL") != (mechanism is not None):
        raise BadInput(
            f"Kafka's security protocol is {protocol}, but the SASL mechanism is {mechanism or 'not set'}.",
            "Set PIPELINE_KAFKA__SASL_MECHANISM with SASL_SSL, and with no other protocol.",
        )
    if mechanism in _WITH_PASSWORD and not (kafka.username and kafka.password):
        raise BadInput(
            f"{mechanism} needs a user and a password.",
            "Set PIPELINE_KAFKA__USERNAME and PIPELINE_KAFKA__PASSWORD.",
        )
    if mechanism == MSK_IAM and not kafka.region:
        raise BadInput(f"{MSK_IAM} needs the region of the cluster.", "Set PIPELINE_KAFKA__REGION.")
    if bool(kafka.cert_file) != bool(kafka.key_file):
        raise BadInput(
            "A client certificate needs its key, and a key its certificate.",
            "Set both PIPELINE_KAFKA__CERT_FILE and PIPELINE_KAFKA__KEY_FILE, or neither.",
        )
    for what, path in {"CA_FILE": kafka.ca_file, "CERT_FILE": kafka.cert_file, "KEY_FILE": kafka.key_file}.items():
        if path and not path.is_file():
            raise BadInput(f"There is no file {path}.", f"Check PIPELINE_KAFKA__{what}.")
