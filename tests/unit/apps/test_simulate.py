"""simulate: what it refuses before it looks for Kafka."""

from pathlib import Path
from typing import Any

import pytest

from apps.simulate import run
from pipeline.errors import BadInput
from pipeline.settings import Settings

WITHOUT_A_FILE: dict[str, tuple[dict[str, Any], str]] = {
    "no events": ({"max_events": 0}, "--max-events is 0"),
    "a negative rate": ({"rate": -1.0}, "--rate is -1.0"),
    "a rate without end": ({"rate": float("inf")}, "--rate is inf"),
    "full speed without end": ({"rate": 0.0}, "would never end"),
    "a speed that is none": ({"speed": "fast"}, "--speed is fast: it can be max, real, or a factor"),
    "a speed of zero": ({"speed": "0"}, "--speed is 0"),
    "a speed that is not a number": ({"speed": "nan"}, "--speed is nan"),
    "columns of no file": ({"mapping": {"value": "v"}}, "--replay-csv FILE"),
    "constants of no file": ({"constants": {"unit": "degC"}}, "--replay-csv FILE"),
    "the speed of no file": ({"speed": "real"}, "--replay-csv FILE"),
    "a shift of no file": ({"shift_to_now": True}, "--replay-csv FILE"),
    "a rate that cannot be": ({"late_rate": 1.5}, "late rates are"),
    "a manifest in no directory": ({"manifest": Path("/nowhere/sent.json")}, "there is no directory /nowhere"),
}


@pytest.mark.parametrize(("arguments", "said"), WITHOUT_A_FILE.values(), ids=WITHOUT_A_FILE)
def test_a_fleet_is_refused_for(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        run(Settings(), **arguments)


FILES: dict[str, tuple[bytes | None, dict[str, Any], str]] = {
    "it is not there": (None, {}, r"x\.csv cannot be read: No such file"),
    "it is empty": (b"", {}, r"x\.csv is empty: there is no header"),
    "it says so but is not compressed": (b"\x1f\x8b", {}, r"x\.csv is damaged, cut off or unreadable"),
    "columns are missing": (b"ts,v\n", {}, r"has no column sensor_id, .*Its columns are: ts, v"),
    "its pace is given twice": (
        b"ts,v\n",
        {"rate": 5.0, "speed": "real"},
        "--rate and --speed contradict each other",
    ),
}


@pytest.mark.parametrize(("data", "arguments", "said"), FILES.values(), ids=FILES)
def test_a_file_is_refused_where(tmp_path: Path, data: bytes | None, arguments: dict[str, Any], said: str) -> None:
    if data is not None:
        (tmp_path / "x.csv").write_bytes(data)
    with pytest.raises(BadInput, match=said):
        run(Settings(), replay_csv=tmp_path / "x.csv", **arguments)


def test_a_directory_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read: Is a directory"):
        run(Settings(), replay_csv=tmp_path)
