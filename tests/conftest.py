"""Services for the tests. The worker processes share them, and they start when the first test asks; each test has
its own topics, consumer groups, lake and database on them.
"""

import gc
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hypothesis
import psycopg
import pytest
from pydantic import SecretStr

from apps.local import ObjectStore, Postgres
from pipeline import settings as config
from pipeline.settings import Settings
from tests.services import EMBEDDED, Store, choose_broker, running_kafka, shared, unique
from tests.tools import missing

hypothesis.settings.register_profile("thorough", deadline=None)  # a busy machine is no defect
hypothesis.settings.register_profile("quick", deadline=None, max_examples=25)  # `make test` without ALL asks for it
hypothesis.settings.load_profile("thorough")

gc.disable()  # until all is collected: half a million objects that stay need no looking through, again and again


def pytest_collection_finish() -> None:
    """From here on the garbage collector works, and leaves alone what is there."""
    gc.freeze()
    gc.enable()


def pytest_report_header() -> str:
    """Which broker the tests that need Kafka run on, and which tests are left out for lack of a program."""
    left_out = f"; not here, so what needs them is skipped: {', '.join(missing())}" if missing() else ""
    return f"broker: {choose_broker()}{left_out}"


def pytest_configure(config: pytest.Config) -> None:
    """CI insists on a real Kafka. The settings of whoever runs the tests are none of the tests' business."""
    if os.environ.get("CI") == "true" and choose_broker() == EMBEDDED:
        raise pytest.UsageError("CI=true insists on a real Kafka: install Docker, or java and mvn.")
    for name in [name for name in os.environ if name.startswith("PIPELINE_")]:
        del os.environ[name]


@pytest.fixture(autouse=True)
def logs_as_they_were() -> Iterator[None]:
    """A tool that runs within a test sets the level for the whole process: the next test hears all again."""
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that all worker processes of this run have in common."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def kafka(services: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Bootstrap servers of a broker."""

    @contextmanager
    def start() -> Iterator[dict[str, str]]:
        with running_kafka(tmp_path_factory.mktemp("kafka")) as bootstrap_servers:
            yield {"bootstrap_servers": bootstrap_servers}

    with shared(services / "kafka", start) as address:
        yield address["bootstrap_servers"]


@pytest.fixture(scope="session")
def store(services: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """An S3 store and its bucket."""

    @contextmanager
    def start() -> Iterator[dict[str, str]]:
        with ObjectStore(tmp_path_factory.mktemp("store")) as service:
            yield {"endpoint_url": service.endpoint_url, "bucket": service.bucket}

    with shared(services / "store", start) as address:
        yield Store(**address)


@pytest.fixture(scope="session")
def postgres_port(services: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Where a PostgreSQL server listens."""

    @contextmanager
    def start() -> Iterator[dict[str, str]]:
        with Postgres(tmp_path_factory.mktemp("postgres")) as service:
            yield {"port": str(service.port)}

    with shared(services / "postgres", start) as address:
        yield int(address["port"])


@pytest.fixture
def lake_settings(request: pytest.FixtureRequest, tmp_path: Path) -> config.Lake:
    """A lake of one's own, empty: on S3 for a test with the mark `s3`, in a directory for any other."""
    if not request.node.get_closest_marker("s3"):
        return config.Lake(uri=str(tmp_path / "lake"))
    store: Store = request.getfixturevalue("store")
    return config.Lake(
        uri=f"s3://{store.bucket}/{unique('lake-')}",
        endpoint_url=store.endpoint_url,
        access_key_id="pipeline",
        secret_access_key=SecretStr("pipeline-local"),
    )


@pytest.fixture
def postgres(postgres_port: int) -> Iterator[config.Warehouse]:
    """A database of one's own, empty."""
    database = unique("warehouse_")
    address = {"host": "127.0.0.1", "port": postgres_port, "user": "postgres", "autocommit": True}
    with psycopg.connect(**address) as connection:
        connection.execute(f"CREATE DATABASE {database}")
    yield config.Warehouse(port=postgres_port, database=database, sslmode="disable")
    with psycopg.connect(**address) as connection:
        connection.execute(f"DROP DATABASE {database} WITH (FORCE)")


@pytest.fixture
def settings(kafka: str, lake_settings: config.Lake, postgres: config.Warehouse, tmp_path: Path) -> Settings:
    """Everything for one pipeline of one's own: topics, groups, lake, database; any free port for the probes."""
    return Settings(
        kafka=config.Kafka(
            bootstrap_servers=kafka,
            topic_prefix=unique("t") + ".",
            group_prefix=unique("g"),
            partitions=4,
            static_members=choose_broker() != EMBEDDED,
        ),
        lake=lake_settings,
        warehouse=postgres,
        observability=config.Observability(port=0),
        state_dir=tmp_path / "state",
        retry_s=5.0,
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow ones first, so that no worker is left alone with them at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
