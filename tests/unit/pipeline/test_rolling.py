import struct
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

from contracts.registry import SeriesNames
from pipeline.core.rolling import FORMAT, State
from pipeline.errors import SchemaTooNew, SchemaTooOld, TerminalError
from pipeline.settings import Detection

RULES = Detection(window=4, shift_after=3)
NEVER = -(2**63)


def named(series: Iterable[tuple[str, str]]) -> SeriesNames:
    keys = list(series)
    sensors, types = (sorted({key[part] for key in keys}) for part in (0, 1))
    numbers = np.array([(sensors.index(sensor), types.index(kind)) for sensor, kind in keys], dtype=np.int64)
    return SeriesNames(sensors, types, *numbers.reshape(-1, 2).T)


def changed(state: State, series: tuple[str, str], newest: int = 7, **fields: Any) -> State:
    """The state with these fields of one series' record, and this newest event time of its sensor."""
    state, places = state.entered(named([series]))
    _, records = state.read(places)
    for name, value in fields.items():
        if name in {"baseline", "pending"}:
            records[name][0, : len(value)] = value
        else:
            records[name] = value
    return state.written(places, np.array([newest]), records)


def holding(baselines: dict[tuple[str, str], list[float]], rules: Detection = RULES, newest: int = 7) -> State:
    """A state with these baselines."""
    state, places = State.empty(rules).entered(named(baselines))
    _, records = state.read(places)
    for record, values in zip(records, baselines.values(), strict=True):
        record["accepted"] = len(values)
        record["baseline"][: len(values)] = values
        record["repeats"], record["last"], record["newest_us"] = 1, values[-1], newest
    return state.written(places, np.full(len(places.sensor), newest), records)


def record(state: State, sensor: str, sensor_type: str = "t") -> Any:
    state, places = state.entered(named([(sensor, sensor_type)]))
    return state.read(places)[1][0]


def baseline(state: State, sensor: str, sensor_type: str = "t") -> list[float]:
    found = record(state, sensor, sensor_type)
    values: list[float] = found["baseline"][: found["accepted"]].tolist()
    return values


def test_a_state_comes_back_from_its_bytes() -> None:
    state = holding({("a", "t"): [1.0, 2.0], ("a", "u"): [3.0], ("ü\U0001f321", "t"): [4.0, 5.0, 6.0, 7.0]})

    again = State.from_bytes(state.to_bytes())

    assert (again.series, again.sensors, again.window, again.shift_after) == (3, 2, 4, 3)
    assert baseline(again, "ü\U0001f321") == [4.0, 5.0, 6.0, 7.0]
    assert baseline(again, "a", "u") == [3.0]
    assert again.newest_us(["a", "new"]).tolist() == [7, NEVER]
    assert again.to_bytes() == state.to_bytes()


def test_an_empty_state_comes_back_too() -> None:
    assert State.from_bytes(State.empty(RULES).to_bytes()).to_bytes() == State.empty(RULES).to_bytes()


def test_the_bytes_do_not_depend_on_the_way_there() -> None:
    whole = holding({("a", "t"): [1.0], ("b", "t"): [2.0], ("c", "t"): [3.0]})
    former = holding({("c", "t"): [9.0, 9.0, 9.0], ("b", "t"): [2.0]})

    assert State.merge([former, whole.select(["a", "c"])]).to_bytes() == whole.to_bytes()


def test_a_full_series_takes_under_650_bytes() -> None:
    rules = Detection()
    values = {(f"sensor-{number:05}", "temperature"): [float(number)] * rules.window for number in range(1000)}

    assert len(holding(values, rules).to_bytes()) / 1000 < 650


def test_a_change_leaves_the_former_state_as_it_was() -> None:
    before = holding({("a", "t"): [1.0], ("b", "t"): [2.0]})
    kept, bytes_before = before, before.to_bytes()

    for number in range(100):
        after = changed(changed(kept, ("a", "t"), number, baseline=[number]), (f"new-{number}", "t"))
        branch = changed(kept, ("a", "t"), -1, baseline=[-1.0])
        assert (baseline(after, "a"), after.newest_us(["a"])[0]) == ([number], number)
        assert (baseline(branch, "a"), branch.newest_us(["a"])[0]) == ([-1.0], -1)
        assert baseline(after, "b") == [2.0]
        kept = after

    assert before.to_bytes() == bytes_before
    assert (before.series, kept.series) == (2, 102)


def test_what_it_holds_does_not_grow_with_the_number_of_changes() -> None:
    state = holding({(f"{number}", "t"): [1.0] for number in range(10)})
    for number in range(1000):
        state = changed(state, (f"{number % 10}", "t"), number)

    assert len(state._store.records) <= 2 * 10


def test_a_series_of_a_new_type_leaves_the_others_alone() -> None:
    state = changed(holding({("a", "t"): [1.0], ("b", "t"): [2.0]}), ("b", "u"), accepted=1, baseline=[3.0])

    assert (state.series, state.sensors) == (3, 2)
    assert [baseline(state, "a"), baseline(state, "b"), baseline(state, "b", "u")] == [[1.0], [2.0], [3.0]]
    assert baseline(state, "a", "u") == []


def test_a_new_series_of_a_known_sensor_and_type_leaves_the_former_state_as_it_was() -> None:
    before = holding({("a", "t"): [1.0], ("b", "u"): [2.0]})
    bytes_before = before.to_bytes()

    after = changed(before, ("a", "u"), accepted=1, baseline=[3.0])

    assert (after.series, before.to_bytes()) == (3, bytes_before)


def test_nothing_is_remembered_of_a_new_series() -> None:
    state, places = holding({("a", "t"): [1.0]}).entered(named([("a", "t"), ("new", "t")]))
    newest_us, records = state.read(places)

    assert newest_us.tolist() == [7, NEVER]
    assert records[1] == np.zeros(1, dtype=records.dtype)[0]


def test_what_is_read_is_a_copy() -> None:
    state, places = holding({("a", "t"): [1.0]}).entered(named([("a", "t")]))
    newest_us, records = state.read(places)
    newest_us[:], records["baseline"][:] = 99, 99.0

    assert (baseline(state, "a"), state.newest_us(["a"]).tolist()) == ([1.0], [7])


def test_select_has_the_sensors_with_all_their_series() -> None:
    part = holding({("a", "t"): [1.0], ("a", "u"): [2.0], ("b", "t"): [3.0]}).select(["a", "unknown"])

    assert (part.sensor_ids, part.series) == (["a"], 2)
    assert part.newest_us(["a", "b"]).tolist() == [7, NEVER]


def test_some_sensors_bytes_are_those_of_a_state_that_has_no_others() -> None:
    state = holding({("b", "t"): [3.0], ("a", "u"): [2.0], ("c", "v"): [4.0], ("a", "t"): [1.0]})

    for some in (["a", "unknown"], ["b"], ["c", "b", "a"], []):
        assert state.to_bytes(some) == state.select(some).to_bytes()


def test_batches_that_touch_fewer_and_fewer_series_keep_the_others() -> None:
    series = [(f"s{number:02}", "t") for number in range(20)]
    state = holding({each: [float(number)] for number, each in enumerate(series)})
    for turn in range(8):
        entered, places = state.entered(named(each for number, each in enumerate(series) if number % 8 >= turn))
        _, records = entered.read(places)
        records["last"] += 100.0
        state = entered.written(places, np.full(len(places.sensor), 7), records)

    last = [record(state, sensor)["last"] for sensor, _ in series]
    assert last == [number + 100.0 * (number % 8 + 1) for number in range(20)]


def test_merge_of_parts_is_the_whole() -> None:
    whole = holding({(name, "t"): [1.0, 2.0] for name in "abcdef"})

    assert State.merge([whole.select(part) for part in ("ab", "c", "", "def")]).to_bytes() == whole.to_bytes()


def test_in_a_merge_the_later_counts() -> None:
    merged = State.merge([holding({("a", "t"): [1.0]}), holding({("a", "t"): [2.0]}, newest=3)])

    assert (merged.series, baseline(merged, "a"), merged.newest_us(["a"]).tolist()) == (1, [2.0], [3])


@pytest.mark.parametrize("states", [[], [State.empty(RULES), State.empty(Detection(window=5, shift_after=3))]])
def test_states_that_do_not_fit_together_do_not_merge(states: list[State]) -> None:
    with pytest.raises(ValueError, match="states merge where"):
        State.merge(states)


def test_for_the_same_settings_a_state_is_fitted_already() -> None:
    state = holding({("a", "t"): [1.0]})

    assert state.fitted(RULES) is state


@pytest.mark.parametrize(("window", "kept"), [(9, [1.0, 2.0, 3.0, 4.0]), (3, [2.0, 3.0, 4.0])])
def test_another_window_keeps_the_newest_values(window: int, kept: list[float]) -> None:
    fitted = holding({("a", "t"): [1.0, 2.0, 3.0, 4.0], ("b", "t"): [5.0]}).fitted(Detection(window=window))

    assert (fitted.window, baseline(fitted, "a"), baseline(fitted, "b")) == (window, kept, [5.0])
    assert fitted.newest_us(["a"]).tolist() == [7]


@pytest.mark.parametrize(("shift_after", "kept"), [(9, [1.0, 2.0]), (2, [2.0])])
def test_another_shift_keeps_the_newest_refused_values_but_one_fewer(shift_after: int, kept: list[float]) -> None:
    state = changed(holding({("a", "t"): [0.0]}), ("a", "t"), refused=2, pending=[1.0, 2.0])

    found = record(state.fitted(Detection(window=4, shift_after=shift_after)), "a")

    assert found["pending"][: found["refused"]].tolist() == kept


def test_every_number_of_a_record_comes_back_from_its_bytes() -> None:
    numbers = {
        "repeats": 3, "newest_us": 11, "last_us": 9, "last": 2.5, "learnt": 70, "recent": 2.25, "surprise": 0.5,
        "spread": 0.125, "former": 1, "former_mean": -4.0, "former_std": 0.75, "accepted": 2, "baseline": [1.0, 2.0],
        "refused": 2, "pending": [7.0, 8.0],
    }  # fmt: skip
    state = changed(State.empty(RULES), ("a", "t"), **numbers)

    found = record(State.from_bytes(state.to_bytes()), "a")
    assert set(numbers) == set(found.dtype.names)
    assert {name: found[name].tolist() for name in numbers} == numbers | {
        "baseline": [1.0, 2.0, 0.0, 0.0],
        "pending": [7.0, 8.0, 0.0],
    }


def test_a_state_of_format_1_is_read_and_what_it_did_not_know_begins_anew() -> None:
    integers, floats = struct.Struct("<2q"), struct.Struct("<2d")
    columns = [
        integers.pack(5, 6), integers.pack(0, 1), integers.pack(0, 0),  # newest_us of the sensors, sensor, type
        integers.pack(2, 1), integers.pack(0, 2), integers.pack(1, 1), integers.pack(5, 6), integers.pack(5, 6),
        floats.pack(2.0, 9.0), floats.pack(1.0, 2.0), struct.pack("<d", 3.0), floats.pack(8.0, 9.0),
    ]  # fmt: skip
    names = bytes.fromhex("9292a161a16291a174")  # MessagePack of [["a", "b"], ["t"]]
    header = struct.pack("<4sHHHxxIII", b"ROLL", 1, 4, 3, 2, 2, len(names))
    state = State.from_bytes(header + names + b"".join(columns))

    assert (baseline(state, "a"), baseline(state, "b")) == ([1.0, 2.0], [3.0])
    assert record(state, "b")["pending"].tolist() == [8.0, 9.0, 0.0]
    assert (record(state, "a")["learnt"], record(state, "a")["former"]) == (0, 0)
    assert state.newest_us(["a", "b"]).tolist() == [5, 6]
    assert State.from_bytes(state.to_bytes()).to_bytes() == state.to_bytes()


@pytest.mark.parametrize(("version", "error"), [(FORMAT + 1, SchemaTooNew), (0, SchemaTooOld)])
def test_a_state_of_an_unknown_version_is_refused(version: int, error: type[Exception]) -> None:
    data = bytearray(State.empty(RULES).to_bytes())
    data[4] = version

    with pytest.raises(error, match=f"A rolling state has format {version}; this pipeline"):
        State.from_bytes(bytes(data))


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"JUNK" + data[4:],
        lambda data: data + b"\x00" * 8,
        lambda data: data[:40] + b"\xff" + data[41:],
    ],
)
def test_what_is_not_a_whole_state_is_refused(damage: Callable[[bytes], bytes]) -> None:
    data = holding({("a", "t"): [1.0, 2.0]}).to_bytes()

    with pytest.raises(TerminalError):
        State.from_bytes(damage(data))


def test_a_state_that_was_cut_off_anywhere_is_refused() -> None:
    data = holding({("a", "t"): [1.0, 2.0]}).to_bytes()

    for end in range(len(data)):
        with pytest.raises(TerminalError):
            State.from_bytes(data[:end])


@pytest.mark.parametrize(("name", "count"), [("accepted", 5), ("accepted", -1), ("refused", 4), ("refused", 3)])
def test_counts_that_the_compiled_loop_could_not_hold_are_refused(name: str, count: int) -> None:
    data = changed(holding({("a", "t"): [1.0]}), ("a", "t"), **{name: count}).to_bytes()

    with pytest.raises(TerminalError, match=name):
        State.from_bytes(data)
