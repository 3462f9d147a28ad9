"""Who may do what: a real broker with passwords, certificates and tokens, and an authoriser that lets nobody pass."""

import base64
import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trustme
from aws_msk_iam_sasl_signer import MSKAuthTokenProvider
from confluent_kafka.admin import (
    AdminClient,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from pydantic import SecretStr

from apps import bronze, detect, ingest, simulate
from apps import topics as topics_command
from pipeline import settings as config
from pipeline.broker import kafka as broker
from pipeline.broker import offsets
from pipeline.broker.kafka_acls import ACCESS
from pipeline.errors import AccessDenied, BadInput, NotSetUp
from pipeline.settings import Settings
from tests.services import MAVEN, ApacheKafka, choose_broker, unique

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.skipif(choose_broker() != MAVEN, reason="needs a broker of its own, with jars from Maven"),
]

PASSWORD = "of-the-stage"
LIFETIME_S = 4.0
"""Of a token, as far as the client knows. For the broker it is good for longer: one that ends in seconds makes the
two renew it faster than the broker allows, on a busy machine."""


class Certificates:
    """An authority; the broker's certificate, and one of each stage."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.authority = trustme.CA()
        self.ca_file = directory / "ca.pem"
        self.authority.cert_pem.write_to_path(str(self.ca_file))
        self._directory = directory

    def issue(self, name: str, *addresses: str) -> tuple[Path, Path]:
        """Files of a certificate and its key, PKCS 8; the broker wants both in one."""
        leaf = self.authority.issue_cert(*(addresses or [f"{name}.example"]), common_name=name)
        key = load_pem_private_key(leaf.private_key_pem.bytes(), None)
        key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        chain = b"".join(each.bytes() for each in leaf.cert_chain_pems)
        cert_file, key_file = self._directory / f"{name}.pem", self._directory / f"{name}.key"
        cert_file.write_bytes(chain)
        key_file.write_bytes(key_pem)
        return cert_file, key_file


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("secure") / "certificates")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[ApacheKafka]:
    """A broker with three guarded doors; through the plain one comes nobody but ourselves, who may do everything."""
    cert_file, key_file = certificates.issue("broker", "127.0.0.1")
    both = cert_file.with_name("broker-both.pem")
    both.write_bytes(key_file.read_bytes() + cert_file.read_bytes())
    jaas = "org.apache.kafka.common.security"
    more = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(both),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(certificates.ca_file),
        "listener.name.mtls.ssl.client.auth": "required",
        "ssl.principal.mapping.rules": r"RULE:^.*CN=([a-z]+).*$/$1/,DEFAULT",
        "sasl.enabled.mechanisms": "SCRAM-SHA-512,OAUTHBEARER",
        "listener.name.scram.sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "listener.name.scram.scram-sha-512.sasl.jaas.config": f"{jaas}.scram.ScramLoginModule required;",
        "listener.name.token.sasl.enabled.mechanisms": "OAUTHBEARER",
        "listener.name.token.oauthbearer.sasl.jaas.config": (
            f'{jaas}.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker";'
        ),
    }
    doors = {"SCRAM": "SASL_SSL", "MTLS": "SSL", "TOKEN": "SASL_SSL"}
    with ApacheKafka(tmp_path_factory.mktemp("guarded"), more, doors) as running:
        admin = AdminClient({"bootstrap.servers": running.bootstrap_servers})
        how = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        users = [UserScramCredentialUpsertion(name, how, PASSWORD.encode()) for name in [*ACCESS, "stranger"]]
        for future in admin.alter_user_scram_credentials(users).values():
            future.result()
        yield running


@pytest.fixture
def operator(guarded: ApacheKafka, tmp_path: Path) -> Settings:
    """Settings of somebody who may do everything; topics of one's own, and the stages' rights to them."""
    settings = Settings(
        kafka=config.Kafka(
            bootstrap_servers=guarded.bootstrap_servers,
            topic_prefix=unique("t") + ".",
            group_prefix=unique("g"),
            partitions=2,
            timeout_s=5.0,
        ),
        lake=config.Lake(uri=str(tmp_path / "lake")),
        observability=config.Observability(port=0),
        state_dir=tmp_path / "state",
        retry_s=5.0,
    )
    topics_command.create(settings)
    topics_command.acls(settings, "User:{stage}", do=True)
    return settings


def by_password(
    operator: Settings, guarded: ApacheKafka, certificates: Certificates, user: str, password: str = PASSWORD
) -> Settings:
    return _changed(
        operator,
        bootstrap_servers=guarded.listeners["SCRAM"],
        sasl_mechanism="SCRAM-SHA-512",
        username=user,
        password=SecretStr(password),
        ca_file=certificates.ca_file,
    )


def by_certificate(operator: Settings, guarded: ApacheKafka, certificates: Certificates, user: str) -> Settings:
    cert_file, key_file = certificates.issue(user)
    return _changed(
        operator,
        bootstrap_servers=guarded.listeners["MTLS"],
        ca_file=certificates.ca_file,
        cert_file=cert_file,
        key_file=key_file,
    )


def _changed(settings: Settings, **changes: object) -> Settings:
    own = config.Kafka(**(settings.kafka.model_dump() | changes))
    return settings.model_copy(update={"kafka": own})


def test_every_stage_does_its_work_with_its_own_rights_and_no_others(
    operator: Settings, guarded: ApacheKafka, certificates: Certificates, tmp_path: Path
) -> None:
    """The devices by certificate, the stages by password."""
    simulate.run(
        by_certificate(operator, guarded, certificates, "simulate"), max_events=1000, rate=0, anomaly_rate=0.1
    )
    for name, stage in {"ingest": ingest, "detect": detect, "bronze": bronze}.items():
        stage.run(by_password(operator, guarded, certificates, name), until_caught_up=True)
    rows = sorted(path.name for path in (tmp_path / "lake" / "bronze" / "readings").glob("*/*.parquet"))
    assert rows
    assert sum(offsets.end_offsets(operator, broker.ANOMALIES).values()) > 0

    with pytest.raises(AccessDenied, match="ACLs"):
        simulate.run(by_password(operator, guarded, certificates, "ingest"), max_events=1, rate=0)
    with pytest.raises(NotSetUp, match="pipeline topics acls"):  # what one may not see is as if it were not there
        ingest.run(by_password(operator, guarded, certificates, "bronze"), until_caught_up=True)


def test_who_cannot_prove_who_he_is_is_told_at_once(
    operator: Settings, guarded: ApacheKafka, certificates: Certificates, tmp_path: Path
) -> None:
    began = time.monotonic()
    stranger = by_password(operator, guarded, certificates, "ingest", password="hidden")
    for ask in (broker.check, partial(offsets.end_offsets, name=broker.RAW)):
        with pytest.raises(AccessDenied, match="PIPELINE_KAFKA__PASSWORD") as told:
            ask(stranger)
        assert "hidden" not in str(told.value)
    elsewhere = Certificates(tmp_path / "elsewhere")
    for wrong in (
        by_certificate(operator, guarded, certificates, "ingest").kafka.model_copy(
            update={"cert_file": None, "key_file": None}
        ),
        by_certificate(operator, guarded, certificates, "ingest").kafka.model_copy(
            update={"ca_file": elsewhere.ca_file}
        ),
    ):
        with pytest.raises(AccessDenied, match=r"(?s)certificate.*PIPELINE_KAFKA__C"):
            broker.check(operator.model_copy(update={"kafka": wrong}))
    assert time.monotonic() - began < 30


@pytest.mark.thorough
@pytest.mark.slow
def test_tokens_of_msk_are_renewed_before_they_end(
    operator: Settings, guarded: ApacheKafka, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Apache's broker knows no AWS: it takes a token that nobody signed."""
    given: list[float] = []

    def sign(region: str) -> tuple[str, float]:
        given.append(time.time())
        said = {"sub": "ingest", "iat": time.time() - 1, "exp": time.time() + 3600}
        parts = (base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in ({"alg": "none"}, said))
        return b".".join([*parts, b""]).decode(), (time.time() + LIFETIME_S) * 1000

    monkeypatch.setattr(MSKAuthTokenProvider, "generate_auth_token", sign)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    settings = _changed(
        operator,
        bootstrap_servers=guarded.listeners["TOKEN"],
        sasl_mechanism="AWS_MSK_IAM",
        region="eu-central-1",
        ca_file=certificates.ca_file,
    )
    simulate.run(by_password(operator, guarded, certificates, "simulate"), max_events=50, rate=0)
    ingest.run(settings, until_caught_up=True)  # consumer, transactional producer, admin client
    assert sum(offsets.end_offsets(operator, broker.READINGS).values()) > 0
    simulate.run(by_password(operator, guarded, certificates, "simulate"), max_events=50, rate=0)
    signed = len(given)
    with broker.consumer(settings, settings.group("look")) as consumer:
        consumer.subscribe([broker.topic(settings, broker.READINGS)])
        messages = [*consumer.consume(1000, LIFETIME_S), *consumer.consume(1000, LIFETIME_S)]
        assert len(given) >= signed + 3  # the first, and one for each lifetime
        ingest.run(settings, until_caught_up=True)
        messages += consumer.consume(1, 30.0)
    assert messages
    assert [message.error() for message in messages if message.error() is not None] == []


def test_rights_are_printed_for_kafkas_own_tool(operator: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    topics_command.acls(operator, "User:CN={stage}", do=False)
    lines = capsys.readouterr().out.splitlines()
    raw = broker.topic(operator, broker.RAW)
    start = f"kafka-acls.sh --bootstrap-server {operator.kafka.bootstrap_servers} --add --allow-principal"
    assert f"{start} 'User:CN=ingest' --operation Read --topic '{raw}'" in lines
    assert all(line.startswith(start) for line in lines)
    with pytest.raises(BadInput, match="one of its own"):
        topics_command.acls(operator, "User:pipeline", do=False)
