import json
import re
import unicodedata

import pytest

from contracts import derive
from contracts.tables import TABLES
from contracts.wire import Reading, Reason


@pytest.mark.parametrize("name", sorted(derive.files()))
def test_the_checked_in_file_is_what_the_contracts_say(name: str) -> None:
    assert (derive.DIRECTORY / name).read_text(encoding="utf-8") == derive.files()[name], (
        "run: python -m contracts.derive"
    )


def test_nothing_else_lies_beside_them() -> None:
    assert {path.name for path in derive.DIRECTORY.iterdir()} == {*derive.files(), "released"}


def test_every_column_of_every_table_is_in_the_dictionary_with_a_meaning() -> None:
    lines = derive.dictionary().splitlines()
    for table in TABLES:
        begin = lines.index(f"## {table.path}")
        section = lines[begin : next((n for n in range(begin + 1, len(lines)) if lines[n].startswith("## ")), None)]
        cells = [line.strip("| ").split(" | ") for line in section if line.startswith("| `")]
        assert [cell[0].strip("`") for cell in cells] == table.schema.names()
        assert all(len(cell[-1]) > 3 for cell in cells)


def test_bounds_are_told_in_words() -> None:
    lines = derive.dictionary()
    assert "| `health_pct` | float64 | % | yes | >= 0, <= 100 | Share of expected slots with a reading |" in lines
    assert "| `sensor_id` | string |  |  | 1 to 128 characters | The sensor |" in lines
    assert "\nUnique by `location`, `sensor_type`, `hour`. Partitioned by `event_date`.\n" in lines
    assert "\nIn every row: `percentiles_in_order`: min <= p50 <= p95 <= p99 <= max. " in lines
    assert "`unknown_unit`, `physical_range`, `conflict`" in lines
    assert all(f"`{reason}`" in lines for reason in Reason)


def test_every_measured_number_has_a_unit() -> None:
    contract = derive.contract()["tables"]
    without = [
        f"{path}.{name}"
        for path, table in contract.items()
        for name, column in table["columns"].items()
        if column["type"] in ("Float64", "Int64") and not column["unit"] and not name.endswith("_offset")
    ]
    assert not without


def test_the_wires_schema_asks_for_every_field_and_allows_others() -> None:
    schema = derive.wire_schema()
    assert schema["required"] == list(Reading.__struct_fields__)
    assert set(schema["properties"]) == set(Reading.__struct_fields__)
    assert schema.get("additionalProperties", True) is True


@pytest.mark.parametrize("text", ["a\tb", "\x00", "\x7f", "\x9f", "\n", "a b", "é", "\xa0"])
def test_the_wires_schema_and_the_decoder_agree_on_characters(text: str) -> None:
    pattern = derive.wire_schema()["properties"]["location"]["pattern"]
    assert bool(re.search(pattern, text)) == all(unicodedata.category(letter) != "Cc" for letter in text)


def test_the_wires_schema_bounds_what_has_bounds() -> None:
    properties = derive.wire_schema()["properties"]
    assert properties["value"]["minimum"] == -properties["value"]["maximum"] == -1.7976931348623157e308
    assert (properties["location"]["minLength"], properties["location"]["maxLength"]) == (1, 128)
    assert properties["unit"]["maxLength"] == 65_536


def test_the_lakes_schemas_are_delta_schemas() -> None:
    silver = derive.lake_schemas()["tables"]["silver/readings"]["schema"]
    types = {field["name"]: field["type"] for field in silver["fields"]}
    assert types["timestamp"] == "timestamp"
    assert types["anomaly_rules"]["elementType"] == "string"
    json.dumps(silver)
