"""What the demo refuses before it starts anything, and where it listens."""

from pathlib import Path

import pytest

from apps import demo
from pipeline.errors import BadInput
from pipeline.settings import Kafka, Lake, Settings, Warehouse, environment
from pipeline.stage import PORTS, port_of


def test_an_offset_moves_every_port_and_the_state() -> None:
    moved = demo.shifted(Settings(), 100)
    assert environment(moved) == {
        "PIPELINE_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:9192",
        "PIPELINE_LAKE__ENDPOINT_URL": "http://127.0.0.1:8433",
        "PIPELINE_WAREHOUSE__PORT": "15532",
        "PIPELINE_OBSERVABILITY__PORT_OFFSET": "100",
        "PIPELINE_DASHBOARD__PORT": "5106",
        "PIPELINE_DASHBOARD__MONITOR": "127.0.0.1:9208",
        "PIPELINE_STATE_DIR": ".demo/ports-100/state",
    }


def test_each_stage_is_where_status_looks_for_it() -> None:
    moved = demo.shifted(Settings(), 100)
    assert {name: port_of(name, moved) for name in PORTS} == {name: port + 100 for name, port in PORTS.items()}


def test_without_an_offset_a_second_shell_needs_no_variable() -> None:
    assert environment(demo.shifted(Settings(), 0)) == {}


def test_bad_data_of_the_fleet_leaves_room_to_the_objectives() -> None:
    shares = dict(zip(demo.FLEET[::2], map(float, demo.FLEET[1::2]), strict=True))
    promised = Settings().objectives
    assert 0 < shares["--malformed-rate"] <= (1 - promised.quality) / 2
    assert 0 < shares["--late-rate"] <= promised.late_share / 2


@pytest.mark.parametrize(
    ("settings", "variable"),
    [
        (Settings(kafka=Kafka(bootstrap_servers="broker.example:9092")), "PIPELINE_KAFKA__BOOTSTRAP_SERVERS"),
        (Settings(lake=Lake(endpoint_url=None)), "PIPELINE_LAKE__ENDPOINT_URL"),
        (Settings(warehouse=Warehouse(host="cluster.example")), "PIPELINE_WAREHOUSE__HOST"),
        (Settings(lake=Lake(uri="/tmp/lake")), "PIPELINE_LAKE__URI"),
    ],
)
def test_settings_of_another_stack_are_refused(settings: Settings, variable: str) -> None:
    with pytest.raises(BadInput, match=variable):
        demo.run(settings)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no file .*absent\.csv"):
        demo.run(Settings(), replay_csv=tmp_path / "absent.csv")


def test_a_fleet_is_never_done() -> None:
    with pytest.raises(BadInput, match="--replay-csv"):
        demo.run(Settings(), until_done=True)


def test_a_report_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "some.csv").touch()
    with pytest.raises(BadInput, match="there is no directory"):
        demo.run(
            Settings(), replay_csv=tmp_path / "some.csv", until_done=True, report=tmp_path / "absent" / "out.json"
        )
