"""`pipeline detect-eval` from a file to its table, its JSON and its picture."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from apps import detect_eval
from apps.detect_eval import severity
from pipeline.errors import BadInput
from pipeline.settings import Detection, Settings

START = datetime(2026, 3, 1, tzinfo=UTC)
COLUMNS = {"sensor_type": "temperature", "location": "here", "unit": "degC", "sensor_id": "one"}


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """100 readings, the last but 9 a spike, and a row that is none."""
    rows = ["time,value"]
    for number in range(100):
        value = 80 if number == 90 else 20 + number % 3
        rows.append(f"{(START + timedelta(seconds=10 * number)).isoformat()},{value}")
    path = tmp_path / "series.csv"
    path.write_text("\n".join([*rows, "then,20", ""]))
    return path


def labels(path: Path, *windows: list[str], name: str = "one") -> Path:
    file = path.with_name("labels.json")
    file.write_text(json.dumps({name: windows}))
    return file


def at(number: int) -> str:
    return (START + timedelta(seconds=10 * number)).isoformat()


def line_of(kind: str, told: str) -> list[str]:
    return next(line for line in told.splitlines() if line.startswith(kind)).split()


def evaluated(file: Path, label_file: Path, **options: Any) -> None:
    given: dict[str, Any] = {
        "mapping": {"timestamp": "time"}, "constants": COLUMNS, "series": {}, "as_json": False, "plot": None,
    }  # fmt: skip
    detect_eval.run(Settings(), file, label_file, **given | options)


def test_json_has_what_was_found_and_the_picture_is_saved(series: Path, capsys: pytest.CaptureFixture[str]) -> None:
    windows, picture = labels(series, [at(88), at(95)], [at(40), at(50)]), series.with_suffix(".png")
    evaluated(series, windows, as_json=True, plot=picture)
    told = json.loads(capsys.readouterr().out)

    assert (told["readings"], told["left_out"], told["windows"], told["false_alarms"]) == (100, 1, 2, 0)
    assert told["kinds"][0] | {"precision": 1.0} == {
        "kind": "anomaly", "episodes": 2, "found": 1, "missed": 1, "recall": 0.5, "precision": 1.0,
        "delay_median": 2.0, "delay_max": 2,
    }  # fmt: skip
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert told["nab"]["standard"]["flags"]["found"] == 1
    assert told["nab"]["standard"]["best"]["score"] >= told["nab"]["standard"]["flags"]["score"]


def test_the_table_names_kinds_and_has_no_nab_score_where_windows_have_kinds(
    series: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated(series, labels(series, [at(90), at(90), "spike"]))
    told = capsys.readouterr().out

    assert "series.csv: 100 readings, 1 windows; 1 rows left out" in told
    assert line_of("spike", told)[:5] == ["spike", "1", "1", "0", "0.0"]
    assert "False alarms: 0 readings in 0 runs" in told
    assert "NAB" not in told


def test_what_was_never_found_has_no_delay(series: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluated(series, labels(series, [at(40), at(50)]))
    told = capsys.readouterr().out

    assert line_of("anomaly", told) == ["anomaly", "1", "0", "1", "-", "-"]
    assert "reward_low_FN_rate" in told


@pytest.mark.parametrize(
    ("change", "about"),
    [
        ({"plot": Path("/no/such/directory/x.png")}, "cannot be written"),
        ({"constants": COLUMNS | {"sensor_type": "no-such-type"}}, "no reading: 101 rows"),
        ({"mapping": {}}, "no column"),
    ],
)
def test_what_cannot_be_used_is_told(series: Path, change: dict[str, Any], about: str) -> None:
    with pytest.raises(BadInput, match=about):
        evaluated(series, labels(series, [at(88), at(95)]), **change)


def test_a_window_without_a_reading_is_a_mistake(series: Path) -> None:
    with pytest.raises(BadInput, match="1 windows have no reading"):
        evaluated(series, labels(series, ["2025-01-01", "2025-01-02"]))


@pytest.mark.parametrize("missing", ["series.csv", "labels.json"])
def test_a_file_that_is_not_there_is_told(series: Path, missing: str) -> None:
    file = labels(series, [at(88), at(95)])
    series.with_name(missing).unlink()

    with pytest.raises(BadInput, match="cannot be read"):
        evaluated(series, file)


def test_an_empty_file_is_told(series: Path) -> None:
    series.write_text("")

    with pytest.raises(BadInput, match="is empty"):
        evaluated(series, labels(series, [at(88), at(95)]))


def test_severity_is_half_where_a_rule_begins_to_flag() -> None:
    rows = [
        (None, []), (0.0, []), (5.0, []), (5.01, ["zscore"]), (15.0, ["zscore"]), (9.0, []), (1.0, ["stuck"]),
        (None, ["operating_range"]),
    ]  # fmt: skip
    frame = pl.DataFrame(
        {
            "zscore": [z for z, _ in rows],
            "anomaly_rules": pl.Series([rules for _, rules in rows], dtype=pl.List(pl.String)),
            "is_anomaly": [bool(rules) for _, rules in rows],
        }
    )
    found = frame.select(severity(Detection(threshold=5.0)))["severity"].to_list()

    assert found[:3] == [0.0, 0.0, 0.499]
    assert found[3] == pytest.approx(0.5005, abs=1e-4)
    assert found[4:] == [0.75, 0.499, 0.5, 0.5]
