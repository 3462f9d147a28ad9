"""`pipeline registry`: what it prints of a registry, and of Silver's sensors that are not in it."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from apps import cli, registry
from contracts.registry import RegistryError, load_registry
from contracts.tables import SILVER_READINGS
from pipeline import settings as config
from pipeline.errors import BadInput, NotSetUp
from pipeline.lake.delta import Lake, append
from pipeline.settings import Settings
from tests.gold_oracle import Reading
from tests.silver_rows import silver

OLD = """\
types:
  co2:
    unit: ppm
    physical: [0, 100000]
    operating: [300, 2000]
    interval: 1min
    noise_floor: 5
    revisions: [{from: 2026-02-01, operating: [300, 1500]}]
sensors:
  air-1:
    - {type: co2, location: attic, to: 2026-03-01, interval: 10s}
    - {type: co2, location: cellar, from: 2026-03-01}
"""
NEW = (
    OLD.replace("[300, 1500]", "[300, 1200]")
    .replace("interval: 10s", "interval: 30s")
    .replace(", to: 2026-03-01", "")
    .replace("    - {type: co2, location: cellar, from: 2026-03-01}\n", "  air-2: [{type: co2, location: barn}]\n")
)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "old.yaml"
    path.write_text(OLD)
    return path


@pytest.fixture
def settings(tmp_path: Path, file: Path) -> Settings:
    return Settings(registry=file, lake=config.Lake(uri=str(tmp_path / "lake")), retry_s=0)


def shown(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_check_says_what_a_registry_holds(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    registry.check(settings, None)
    version = load_registry(settings.registry).version
    assert capsys.readouterr().out == f"{settings.registry}: version {version}, types co2, 1 sensors\n"


def test_check_names_each_mistake_with_its_place(settings: Settings, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(
        OLD.replace("noise_floor", "noise_flor").replace("type: co2, location: attic", "type: co, location: attic")
    )
    with pytest.raises(RegistryError) as told:
        registry.check(settings, wrong)
    assert [line.removeprefix(f"{wrong}: ") for line in str(told.value).splitlines()] == [
        "line 2, column 3: types.co2.noise_floor: is missing",
        "line 7, column 5: types.co2.noise_flor: is not a setting",
    ]


@pytest.mark.parametrize(
    ("time", "sensor", "expected"),
    [
        ("2026-01-01", None, [(None, None, 2000, 60), ("air-1", "attic", 2000, 10)]),
        ("2026-02-10", None, [(None, None, 1500, 60), ("air-1", "attic", 1500, 10)]),
        ("2026-02-10", "air-1", [("air-1", "attic", 1500, 10)]),
        ("2026-03-01", "air-1", [("air-1", "cellar", 1500, 60)]),
        ("2026-03-01", "air-9", [(None, None, 1500, 60)]),
    ],
)
def test_show_tells_what_holds_at_a_time(
    settings: Settings, capsys: pytest.CaptureFixture[str], time: str, sensor: str | None, expected: list[Any]
) -> None:
    registry.show(settings, at=at(time), sensor=sensor, as_json=True)
    told = shown(capsys)
    assert told["at"] == f"{time}T00:00:00Z"
    columns = ("sensor_id", "location", "operating_high", "interval_s")
    assert [tuple(row[name] for name in columns) for row in told["series"]] == expected
    assert all(row["registered"] == (row["sensor_id"] is not None) for row in told["series"])


def test_show_says_that_a_sensor_is_not_registered(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    registry.show(settings, at=at("2026-02-10"), sensor="air-9", as_json=False)
    told = capsys.readouterr().out
    assert "air-9 is not registered then: it is judged by its type.\n" in told
    assert "300 to 1500" in told
    assert "0 to 100000" in told


def test_diff_names_each_setting_that_differs(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (other := tmp_path / "new.yaml").write_text(NEW)
    assert registry.diff(file, other) == 1
    assert capsys.readouterr().out.splitlines() == [
        '- sensors.air-1 as co2 from 2026-03-01T00:00:00Z.location: "cellar"',
        "~ sensors.air-1 as co2.interval: 10s -> 30s",
        "- sensors.air-1 as co2.to: 2026-03-01T00:00:00Z",
        '+ sensors.air-2 as co2.location: "barn"',
        "~ types.co2 from 2026-02-01T00:00:00Z.operating: [300.0, 1500.0] -> [300.0, 1200.0]",
    ]
    assert registry.diff(other, other) == 0
    assert "They say the same" in capsys.readouterr().out


def readings(*series: tuple[str, str, str]) -> list[Reading]:
    return [
        Reading(sensor, "co2", location, at(time) + timedelta(seconds=number), 500.0)
        for number, (sensor, location, time) in enumerate(series)
    ]


def test_unregistered_lists_the_series_whose_readings_no_entry_holds_for(
    file: Path, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(OLD.replace(", from: 2026-03-01}", ", from: 2026-03-05}"))
    lake = Lake(settings.lake)
    rows = readings(
        ("air-1", "attic", "2026-02-10"),
        ("air-1", "attic", "2026-03-02"),  # between two entries
        ("air-1", "cellar", "2026-03-05"),
        ("air-9", "barn", "2026-01-01"),  # before what is asked for
        ("air-9", "barn", "2026-02-10"),
        ("air-9", "shed", "2026-02-11"),
        ("air-8", "yard", "2026-01-31"),
    )
    append(lake.ensure(SILVER_READINGS), SILVER_READINGS, silver(rows), {})
    registry.unregistered(settings, since=at("2026-02-01"), as_json=True)
    assert shown(capsys)["series"] == [
        {
            "sensor_id": "air-1",
            "sensor_type": "co2",
            "location": "attic",
            "rows": 1,
            "newest": "2026-03-02T00:00:01.000000Z",
        },
        {
            "sensor_id": "air-9",
            "sensor_type": "co2",
            "location": "shed",
            "rows": 2,
            "newest": "2026-02-11T00:00:05.000000Z",
        },
    ]
    registry.unregistered(settings, since=at("2026-02-01"), as_json=False)
    assert "2 series since 2026-02-01T00:00:00Z that registry" in capsys.readouterr().out


def test_without_silver_there_is_nothing_to_list(settings: Settings) -> None:
    with pytest.raises(NotSetUp, match="silver/readings"):
        registry.unregistered(settings, since=at("2026-02-01"), as_json=True)


def test_the_commands_take_times_files_and_sensors(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apps.commands.registry.tool_settings", lambda name: settings)
    (other := tmp_path / "new.yaml").write_text(NEW)
    command, run = cli.app, CliRunner().invoke
    assert run(command, ["registry", "check"]).exit_code == 0
    assert run(command, ["registry", "check", str(other)]).exit_code == 0
    assert run(command, ["registry", "diff", str(settings.registry), str(other)]).exit_code == 1
    told = run(command, ["registry", "show", "--at", "2026-01-01T01:00:00+01:00", "--sensor", "air-1", "--json"])
    assert json.loads(told.stdout)["at"] == "2026-01-01T00:00:00Z"
    wrong = run(command, ["registry", "show", "--at", "yesterday"])
    assert isinstance(wrong.exception, BadInput)
