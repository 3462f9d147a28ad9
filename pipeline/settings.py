"""Every setting, once. Built at the entry point and passed down; nothing else reads the environment.

Environment variables: `PIPELINE_<GROUP>__<NAME>`, e.g. `PIPELINE_KAFKA__BOOTSTRAP_SERVERS`; `null` stands for None.
The defaults point at the local stack that `pipeline demo` starts.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from pipeline.errors import BadInput


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Kafka(_Group):
    """The broker and how to reach it."""

    bootstrap_servers: str = "127.0.0.1:9092"
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] | None = Field(
        None, description="None: encrypted (SASL_SSL with a mechanism, else SSL), PLAINTEXT on this machine"
    )
    allow_plaintext: bool = Field(False, description="Let PLAINTEXT go to another machine")
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "AWS_MSK_IAM"] | None = None
    username: str | None = None
    password: SecretStr | None = None
    region: str | None = Field(None, description="AWS region of the cluster, for AWS_MSK_IAM")
    ca_file: Path | None = Field(None, description="Who may sign the broker's certificate (PEM); None: the system's")
    cert_file: Path | None = Field(None, description="Our certificate (PEM), where the broker asks for one")
    key_file: Path | None = Field(None, description="Its key (PEM)")
    key_password: SecretStr | None = None
    partitions: PositiveInt = Field(4, description="Of each topic; of sensors.readings part of the state's identity")
    replication: PositiveInt = Field(1, description="Replicas of each topic (3 on MSK)")
    topic_prefix: str = Field("", description="Put before each topic's name")
    group_prefix: str = Field("pipeline", description="Consumer groups and transactional ids start with it")
    instance: str = Field("0", description="Ordinal of this replica: makes transactional ids stable")
    static_members: bool = Field(
        False,
        description="Replicas come back to their partitions by their `instance`, at once; the demo's broker cannot",
    )
    timeout_s: PositiveFloat = Field(10.0, description="For one request to the broker")


class Lake(_Group):
    """The Delta lake and its object store."""

    uri: str = Field("s3://lake", description="Root of the tables: s3://bucket[/prefix], or a local path")
    endpoint_url: str | None = Field("http://127.0.0.1:8333", description="None: AWS's own")
    region: str = "us-east-1"
    access_key_id: str | None = Field("pipeline", description="None: the AWS credential chain")
    secret_access_key: SecretStr | None = SecretStr("pipeline-local")
    timeout_s: PositiveFloat = Field(10.0, description="For one request to the store")


class Warehouse(_Group):
    """Redshift, or PostgreSQL in its place."""

    dialect: Literal["postgresql", "redshift"] = "postgresql"
    host: str = "127.0.0.1"
    port: PositiveInt = 15432
    database: str = "postgres"
    user: str = Field("postgres", description="Not used with a workgroup, whose IAM credentials name one")
    password: SecretStr | None = None
    workgroup: str | None = Field(None, description="Of Redshift Serverless: log in with IAM, without a password")
    iam_role: str | None = Field(None, description="ARN of the role by which Redshift's COPY reads the exports")
    region: str = Field("us-east-1", description="Of Redshift; the lake's bucket has to be in it too")
    sslmode: Literal["disable", "prefer", "require", "verify-full"] | None = Field(
        None, description="None: verify-full for Redshift, prefer for PostgreSQL"
    )
    ca_file: Path | None = Field(None, description="Certificates to trust; None: the system's")
    timeout_s: PositiveFloat = Field(
        10.0, description="For connecting, for waiting on another loader, and until a silent one is tested"
    )


class Ingest(_Group):
    """raw JSON -> micro-batches."""

    max_messages: PositiveInt = Field(20_000, description="Raw messages in one transaction, at most")
    linger_s: PositiveFloat = Field(0.05, description="Longest wait for more of them after a first")
    clock_skew_s: float = Field(300.0, ge=0, description="How far in the future an event time may be")
    dead_ceiling: float = Field(
        0.2, ge=0, le=1, description="Share of dead letters in a window that raises the alert"
    )
    dead_window: PositiveInt = Field(10_000, description="Raw messages in a window, one window after the other")
    strict: bool = Field(False, description="Stop above the ceiling, before the batch that passes it is committed")


class Bronze(_Group):
    """Micro-batches -> Delta."""

    commit_interval_s: PositiveFloat = 1.0
    commit_every: PositiveInt = Field(10_000, description="Messages in one commit, at most: bounds the buffer")
    commit_bytes: PositiveInt = Field(16 * 1_048_576, description="Bytes of messages that make a commit")


class Detection(_Group):
    """Scores and rules, the same in the stream and in Silver."""

    window: int = Field(60, ge=2, le=1000, description="Accepted values in the baseline")
    min_readings: int = Field(10, ge=2, description="Fewest of them that give a score")
    threshold: PositiveFloat = Field(5.0, description="|z| above it is an anomaly")
    jump_threshold: PositiveFloat = Field(6.0, description="The same, for the distance from the recent values")
    drift_threshold: PositiveFloat = Field(7.0, description="The same, for theirs from the baseline")
    shift_after: int = Field(8, ge=2, description="Consecutive refused values that become the new baseline")
    lateness_s: PositiveFloat = Field(600.0, description="Further behind its series than this is late")


class Detect(_Group):
    """What the stream alone has: how soon it answers, what it remembers, silence."""

    commit_interval_s: PositiveFloat = Field(0.05, description="Between two commits where all is read; else 3 s")
    commit_bytes: PositiveInt = Field(32 * 1_048_576, description="Bytes of micro-batches that make a commit")
    identities: int = Field(32, ge=1, description="Readings of a sensor, the latest ones, that a copy is known by")
    dropout_after: PositiveFloat = Field(3.0, description="Expected intervals without a reading that are a dropout")


class Job(_Group):
    """An incremental job over the lake."""

    interval_s: PositiveFloat = 1.0
    max_rows: PositiveInt = Field(500_000, description="Rows worked on at a time: bounds memory")


class Quarantine(_Group):
    """How much of it is too much."""

    ceiling: float = Field(
        0.05, ge=0, le=1, description="Share of the readings of a window; above it an alert is raised"
    )
    window: PositiveInt = Field(10_000, description="Readings in a window, one window after the other")
    strict: bool = Field(
        False, description="Stop Silver above the ceiling, before the rows that pass it are committed"
    )


class Observability(_Group):
    """Metrics, probes and logs."""

    host: str = "127.0.0.1"
    port: int = Field(-1, ge=-1, le=65535, description="-1: the stage's own; 0: any free one")
    port_offset: int = Field(0, ge=0, description="Added to the stages' own ports, as `pipeline demo` does")
    wedged_after_s: PositiveFloat = Field(60.0, description="Liveness fails when the loop stood still for so long")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["auto", "text", "json"] = Field("auto", description="auto: text on a terminal, else JSON")
    runbooks: str = Field("docs/OPERATIONS.md", description="Where alerts link to, as those who get them can open it")


class Objectives(_Group):
    """What is promised. Alerts are generated from it (`python -m dashboards`), so that no threshold stands twice."""

    bronze_freshness_s: PositiveFloat = Field(60.0, description="Longest time since the newest event in Bronze")
    silver_freshness_s: PositiveFloat = Field(120.0, description="The same in Silver")
    gold_freshness_s: PositiveFloat = Field(600.0, description="In Gold: since the start of the newest window")
    warehouse_freshness_s: PositiveFloat = Field(900.0, description="The same in the warehouse")
    latency_p95_s: PositiveFloat = Field(
        60.0, description="95 % of batches are committed so long after their oldest message came; a bucket's bound"
    )
    lag: PositiveInt = Field(10_000, description="Most messages that a consumer group may be behind, of a topic")
    quality: float = Field(
        0.99, gt=0, lt=1, description="Least share of readings, but for copies, that become rows of Silver"
    )
    sensor_health: float = Field(0.9, gt=0, lt=1, description="Least share of expected readings that come")
    dead_share: float = Field(0.05, gt=0, lt=1, description="Largest share of raw messages that are dead letters")
    late_share: float = Field(0.05, gt=0, lt=1, description="Largest share of Silver's readings that came late")

    @property
    def freshness_s(self) -> Mapping[str, float]:
        """By layer."""
        return {
            "bronze": self.bronze_freshness_s,
            "silver": self.silver_freshness_s,
            "gold": self.gold_freshness_s,
            "warehouse": self.warehouse_freshness_s,
        }


class Monitor(_Group):
    """Freshness and lag, as metrics."""

    interval_s: PositiveFloat = 5.0
    warehouse_interval_s: PositiveFloat = Field(
        5.0, description="Between two questions to the warehouse: one that is always asked never idles"
    )
    quality_window_s: PositiveFloat = Field(300.0, description="What came within it is judged: quality, dead, late")


class Notify(_Group):
    """Who gets the daily digest. Alerts go through Alertmanager."""

    smtp_host: str | None = Field(None, description="Mail server; None: no mail")
    smtp_port: PositiveInt = 587
    smtp_tls: Literal["starttls", "tls", "none"] = "starttls"
    smtp_user: str | None = None
    smtp_password: SecretStr | None = None
    mail_from: str = Field("", description="Sender, as user@example.com")
    mail_to: str = Field("", description="Recipients, with spaces between them")
    slack_webhook: SecretStr | None = Field(None, description="Address of an incoming webhook; None: no Slack")
    dashboard_url: str | None = Field(None, description="Where readers find the dashboard")
    grafana_url: str | None = Field(None, description="Where readers find Grafana")

    @property
    def links(self) -> Mapping[str, str]:
        """Title -> address."""
        known = {"Dashboard": self.dashboard_url, "Grafana": self.grafana_url}
        return {title: address for title, address in known.items() if address}


class Dashboard(_Group):
    """The Panel app."""

    host: str = Field("127.0.0.1", description="Another than this machine's own needs a login")
    port: PositiveInt = 5006
    max_sessions: PositiveInt = Field(200, description="Pages open at a time; who comes after is told so")
    origins: str = Field("", description="Other host:port that browsers have it by (behind a proxy), with spaces")
    password: SecretStr | None = Field(None, description="What viewers log in with, under any name")
    oauth_provider: Literal["auth0", "azure", "bitbucket", "generic", "github", "gitlab", "google", "okta"] | None = (
        Field(None, description="Instead of a password; `generic` is OpenID Connect by PANEL_OAUTH_* variables")
    )
    oauth_key: str | None = Field(None, description="Client id")
    oauth_secret: SecretStr | None = Field(None, description="Client secret")
    oauth_redirect_uri: str | None = Field(None, description="Address that the provider sends viewers back to")
    cookie_secret: SecretStr | None = Field(None, description="Signs logins; None: they end with the process")
    monitor: str = Field(
        "127.0.0.1:9108", pattern=r"^[^:/]+:\d+$", description="host:port of monitor's metrics: lags"
    )


class Settings(BaseSettings):
    """All of them, frozen."""

    model_config = SettingsConfigDict(
        env_prefix="PIPELINE_",
        env_nested_delimiter="__",
        env_parse_none_str="null",
        frozen=True,
        extra="forbid",
        nested_model_default_partial_update=True,
    )

    kafka: Kafka = Kafka()
    lake: Lake = Lake()
    warehouse: Warehouse = Warehouse()
    ingest: Ingest = Ingest()
    bronze: Bronze = Bronze()
    detection: Detection = Detection()
    detect: Detect = Detect()
    silver: Job = Job(max_rows=250_000)  # what takes twice as much memory for a row, and no more time
    gold: Job = Job()
    load: Job = Job()
    quarantine: Quarantine = Quarantine()
    observability: Observability = Observability()
    objectives: Objectives = Objectives()
    monitor: Monitor = Monitor()
    notify: Notify = Notify()
    dashboard: Dashboard = Dashboard()
    registry: Path | None = Field(None, description="Sensor registry (YAML); None: the one that comes along")
    state_dir: Path = Field(Path(".demo/state"), description="Local state of detect; one per replica")
    retry_s: float = Field(
        60.0,
        ge=0,
        description="How long a stage tries to reach Kafka, S3 or the warehouse before it gives up",
    )

    def group(self, stage: str) -> str:
        """Consumer group of a stage; `<it>-<instance>` is its transactional id."""
        return f"{self.kafka.group_prefix}-{stage}"


def load_settings() -> Settings:
    """Read the settings from the environment.

    Raises BadInput naming each variable that is wrong.
    """
    try:
        return Settings()
    except ValidationError as error:
        wrong = [
            f"PIPELINE_{'__'.join(str(part) for part in problem['loc']).upper()}: {problem['msg']}"
            for problem in error.errors()
        ]
        raise BadInput("Settings are wrong: " + "; ".join(wrong), "See `pipeline config` for all of them.") from None


def environment(settings: Settings) -> dict[str, str]:
    """The variables that make `load_settings` in another process return the same settings: what differs from the
    defaults, secrets in plain text.
    """
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    return dict(_differences("PIPELINE", settings.model_dump(), defaults))


def _differences(prefix: str, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        default, variable = defaults[name], f"{prefix}{'_' if prefix == 'PIPELINE' else '__'}{name.upper()}"
        if isinstance(value, dict):
            yield from _differences(variable, value, default.model_dump())
        elif value != default:
            plain = value.get_secret_value() if isinstance(value, SecretStr) else value
            yield variable, "null" if plain is None else str(plain)
