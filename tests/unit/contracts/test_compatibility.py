"""What may change in the contracts from one release to the next, and what may not."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contracts import compatibility, derive
from contracts.compatibility import changes
from pipeline import __version__

Contract = dict[str, Any]

RELEASED: Contract = {
    "schema_version": 1,
    "reading": {
        "required": ["sensor_id", "value"],
        "properties": {
            "sensor_id": {"type": "string", "minLength": 1, "maxLength": 128},
            "value": {"type": "number", "minimum": -10},
        },
    },
    "anomaly": {"properties": {"zscore": {"type": "number"}}},
    "dead_letter_reasons": ["not_json", "tombstone"],
    "dead_letter_headers": ["dlq.reason"],
    "tables": {
        "gold/hourly": {
            "partition_by": "event_date",
            "key": ["location", "hour"],
            "columns": {
                "location": {
                    "type": "String",
                    "nullable": False,
                    "unit": None,
                    "checks": {"str_length": {"min_value": 1, "max_value": 128, "exact_value": None}},
                },
                "rule": {
                    "type": "String",
                    "nullable": True,
                    "unit": None,
                    "checks": {"isin": {"allowed_values": ["conflict", "range"]}},
                },
                "health": {
                    "type": "Float64",
                    "nullable": True,
                    "unit": "%",
                    "checks": {
                        "greater_than": {"min_value": 0},
                        "less_than_or_equal_to": {"max_value": 100},
                        "finite": {"says": "Neither NaN nor infinite."},
                    },
                },
                "count": {"type": "Int64", "nullable": False, "unit": None, "checks": {}},
            },
            "row_checks": {"in_order": {"says": "min <= max."}},
        }
    },
}


def table(said: Contract) -> Any:
    return said["tables"]["gold/hourly"]


def column(said: Contract, name: str) -> Any:
    return table(said)["columns"][name]


def field(said: Contract, name: str) -> Any:
    return said["reading"]["properties"][name]


def new_column(said: Contract, *, nullable: bool, version: int = 2) -> None:
    table(said)["columns"]["note"] = {"type": "String", "nullable": nullable, "unit": None, "checks": {}}
    said["schema_version"] = version


def instead(checks: dict[str, Any], name: str, other: str, value: dict[str, Any]) -> None:
    del checks[name]
    checks[other] = value


BREAKING: dict[str, tuple[Callable[[Contract], object], str]] = {
    "a table is gone": (lambda said: said["tables"].clear(), "the table gold/hourly is gone"),
    "a column is gone": (lambda said: table(said)["columns"].pop("count"), "gold/hourly.count is gone"),
    "a type is narrower": (
        lambda said: column(said, "count").update(type="Int32"),
        "gold/hourly.count: type was Int64, is Int32",
    ),
    "another unit": (lambda said: column(said, "health").update(unit="1"), "gold/hourly.health: unit was %, is 1"),
    "nullable becomes required": (
        lambda said: column(said, "rule").update(nullable=False),
        "gold/hourly.rule may no longer be null",
    ),
    "required becomes nullable": (
        lambda said: column(said, "count").update(nullable=True),
        "gold/hourly.count may now be null",
    ),
    "a new column that is required": (
        lambda said: new_column(said, nullable=False),
        "gold/hourly.note is new and may not be null",
    ),
    "a new column without a new version": (
        lambda said: new_column(said, nullable=True, version=1),
        "tables have new columns, but SCHEMA_VERSION is still 1",
    ),
    "the version skips one": (lambda said: said.update(schema_version=3), "it can be that, or 2, not 3"),
    "the version goes back": (lambda said: said.update(schema_version=0), "it can be that, or 2, not 0"),
    "another key": (
        lambda said: table(said).update(key=["hour", "location"]),
        "gold/hourly: key was ['location', 'hour'], is ['hour', 'location']",
    ),
    "another partition": (
        lambda said: table(said).update(partition_by="hour"),
        "gold/hourly: partition_by was event_date, is hour",
    ),
    "a new check of a column": (
        lambda said: column(said, "count")["checks"].update(finite={"says": "x"}),
        "gold/hourly.count: the check finite is new",
    ),
    "a new lower bound": (
        lambda said: column(said, "count")["checks"].update(greater_than={"min_value": 0}),
        "gold/hourly.count: the lower bound was None, is 0 (excluded)",
    ),
    "a higher lower bound": (
        lambda said: column(said, "health")["checks"].update(greater_than={"min_value": 1}),
        "gold/hourly.health: the lower bound was 0 (excluded), is 1 (excluded)",
    ),
    "a lower upper bound": (
        lambda said: column(said, "health")["checks"].update(less_than_or_equal_to={"max_value": 99}),
        "gold/hourly.health: the upper bound was 100, is 99",
    ),
    "an upper bound that no longer belongs to it": (
        lambda said: instead(
            column(said, "health")["checks"], "less_than_or_equal_to", "less_than", {"max_value": 100}
        ),
        "gold/hourly.health: the upper bound was 100, is 100 (excluded)",
    ),
    "a shorter text": (
        lambda said: column(said, "location")["checks"]["str_length"].update(max_value=64),
        "gold/hourly.location: max_value was 128, is 64",
    ),
    "a longer least text": (
        lambda said: column(said, "location")["checks"]["str_length"].update(min_value=2),
        "gold/hourly.location: min_value was 1, is 2",
    ),
    "a value less": (
        lambda said: column(said, "rule")["checks"]["isin"].update(allowed_values=["range"]),
        "gold/hourly.rule: the value conflict is no longer allowed",
    ),
    "a check that says something else": (
        lambda said: column(said, "health")["checks"]["finite"].update(says="Positive."),
        "gold/hourly.health: the check finite said",
    ),
    "a new check of rows": (
        lambda said: table(said)["row_checks"].update(sorted={"says": "x"}),
        "gold/hourly: the check sorted is new",
    ),
    "a check of rows that says something else": (
        lambda said: table(said)["row_checks"].update(in_order={"says": "min < max."}),
        "gold/hourly: the check in_order said",
    ),
    "a dead letter reason less": (
        lambda said: said["dead_letter_reasons"].remove("tombstone"),
        "the dead letter reason tombstone is gone",
    ),
    "a dead letter header less": (
        lambda said: said["dead_letter_headers"].clear(),
        "the dead letter header dlq.reason is gone",
    ),
    "devices have to send more": (
        lambda said: said["reading"].update(required=["sensor_id", "value", "unit"]),
        "reading.unit is required now",
    ),
    "devices may send less": (
        lambda said: field(said, "sensor_id").update(maxLength=64),
        "reading.sensor_id: maxLength was 128, is 64",
    ),
    "devices may send no less than": (
        lambda said: field(said, "value").update(minimum=0),
        "reading.value: minimum was -10, is 0",
    ),
    "devices may send other characters": (
        lambda said: field(said, "sensor_id").update(pattern="^[a-z]*$"),
        "reading.sensor_id: pattern was None, is ^[a-z]*$",
    ),
    "a field of the wire is gone": (
        lambda said: said["reading"]["properties"].pop("value"),
        "the field of a reading value is gone",
    ),
    "a field of an anomaly is gone": (
        lambda said: said["anomaly"]["properties"].clear(),
        "the field of an anomaly zscore is gone",
    ),
    "a field of an anomaly is another": (
        lambda said: said["anomaly"]["properties"].update(zscore={"type": "string"}),
        "anomaly.zscore was {'type': 'number'}, is {'type': 'string'}",
    ),
}

ADDITIVE: dict[str, tuple[Callable[[Contract], object], str]] = {
    "a new table": (lambda said: said["tables"].update(other=table(said)), "the table other is new"),
    "a new column that may be null": (lambda said: new_column(said, nullable=True), "gold/hourly.note is new"),
    "a new reason": (
        lambda said: said["dead_letter_reasons"].append("too_big"),
        "the dead letter reason too_big is new",
    ),
    "a new header": (
        lambda said: said["dead_letter_headers"].append("dlq.x"),
        "the dead letter header dlq.x is new",
    ),
    "a new field that devices may send": (
        lambda said: said["reading"]["properties"].update(quality={"type": "string"}),
        "the field of a reading quality is new",
    ),
    "a new field of anomalies": (
        lambda said: said["anomaly"]["properties"].update(more={}),
        "the field of an anomaly more is new",
    ),
    "a longer text": (
        lambda said: column(said, "location")["checks"]["str_length"].update(max_value=None),
        "gold/hourly.location: max_value was 128, is None",
    ),
    "a value more": (
        lambda said: column(said, "rule")["checks"]["isin"]["allowed_values"].append("stuck"),
        "gold/hourly.rule: the value stuck is now allowed",
    ),
    "a lower bound that now belongs to it": (
        lambda said: instead(
            column(said, "health")["checks"], "greater_than", "greater_than_or_equal_to", {"min_value": 0}
        ),
        "gold/hourly.health: the lower bound was 0 (excluded), is 0",
    ),
    "a bound less": (
        lambda said: column(said, "health")["checks"].pop("less_than_or_equal_to"),
        "gold/hourly.health: the upper bound was 100, is None",
    ),
    "a check less": (
        lambda said: column(said, "health")["checks"].pop("finite"),
        "gold/hourly.health: the check finite is gone",
    ),
    "a check of rows less": (
        lambda said: table(said)["row_checks"].clear(),
        "gold/hourly: the check in_order is gone",
    ),
    "a pattern less": (
        lambda said: field(said, "sensor_id").pop("maxLength"),
        "reading.sensor_id: maxLength was 128, is None",
    ),
}


def changed(how: Callable[[Contract], object]) -> Contract:
    said = copy.deepcopy(RELEASED)
    how(said)
    return said


@pytest.mark.parametrize("name", BREAKING)
def test_a_breaking_change_is_named(name: str) -> None:
    how, what = BREAKING[name]
    breaking = [change.what for change in changes(RELEASED, changed(how)) if change.breaking]
    assert len(breaking) == 1
    assert what in breaking[0]


@pytest.mark.parametrize("name", ADDITIVE)
def test_an_additive_change_passes_and_is_told(name: str) -> None:
    how, what = ADDITIVE[name]
    found = changes(RELEASED, changed(how))
    assert [(change.breaking, change.what) for change in found] == [(False, what)]


def test_the_same_contract_has_no_changes_whatever_the_descriptions() -> None:
    again = changed(lambda said: field(said, "value").update(description="another"))
    assert changes(RELEASED, again) == []


def test_the_contracts_break_nothing_of_the_last_release() -> None:
    released = json.loads(compatibility.last_release().read_text(encoding="utf-8"))
    now = json.loads(json.dumps(derive.contract()))
    breaking = [change.what for change in changes(released, now) if change.breaking]
    assert not breaking, f"breaking since {compatibility.last_release().stem}: {'; '.join(breaking)}"


def test_the_contract_of_this_release_is_kept() -> None:
    assert compatibility.last_release().stem == __version__, "run: python -m contracts.derive --release"


def test_the_command_tells_what_changed_and_fails_at_a_breaking_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compatibility, "RELEASED", tmp_path)
    before = derive.contract()
    (tmp_path / "0.9.0.json").write_text("{}")
    (tmp_path / "0.10.0.json").write_text(json.dumps(before))
    assert compatibility.main() == 0
    before["dead_letter_reasons"].append("not_nice")
    (tmp_path / "0.10.0.json").write_text(json.dumps(before))
    assert compatibility.main() == 1
    assert capsys.readouterr().out == (
        "0 changes since 0.10.0, 0 of them breaking\n"
        "BREAKING  the dead letter reason not_nice is gone\n"
        "1 changes since 0.10.0, 1 of them breaking\n"
    )


def test_a_release_keeps_its_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(derive, "DIRECTORY", tmp_path)
    monkeypatch.setattr(derive, "RELEASED", tmp_path / "released")
    derive.main([])
    assert {path.name for path in tmp_path.iterdir()} == set(derive.files())
    derive.main(["--release"])
    assert (tmp_path / "released" / f"{__version__}.json").read_text() == derive.files()["contract.json"]
