import json
from pathlib import Path
from zlib import crc32

import fsspec
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.registry import load_registry
from pipeline.core.refine import IDENTITY, State, refine
from pipeline.errors import SchemaTooNew, SchemaTooOld
from pipeline.settings import Detection
from pipeline.silver.statestore import MAX_VALUE, Manifest, StateStore, buckets_of
from tests.examples import examples


@pytest.fixture
def store(tmp_path: Path) -> StateStore:
    return store_in(tmp_path)


def store_in(directory: Path) -> StateStore:
    return StateStore(fsspec.filesystem("file", auto_mkdir=True), f"{directory}/_state/")


def objects(directory: Path) -> list[Path]:
    return sorted((directory / "_state").iterdir())


@settings(max_examples=examples(25))
@given(
    steps=st.lists(st.dictionaries(st.integers(0, 7), st.binary(max_size=200), max_size=8), min_size=1, max_size=12),
    outbox=st.binary(max_size=50),
)
def test_each_version_reads_back_as_the_last_value_of_every_bucket(
    tmp_path_factory: pytest.TempPathFactory, steps: list[dict[int, bytes]], outbox: bytes
) -> None:
    directory = tmp_path_factory.mktemp("store")
    store = store_in(directory)
    expected: dict[int, bytes] = {}
    base: Manifest | None = None
    for version, values in enumerate(steps):
        manifest = store.put(version, 8, values, outbox, base)
        expected |= values
        before, base = base, manifest
        store.drop((before.names if before else frozenset()) - manifest.names)
        found = store.load(version, manifest.attempt)
        assert found is not None
        assert found.manifest == manifest
        assert found.values == expected
        assert found.outbox == outbox
        assert {path.name for path in objects(directory)} == manifest.names


def test_a_version_that_was_never_written_is_none(store: StateStore) -> None:
    assert store.load(3, 1) is None


def test_two_attempts_at_a_version_are_kept_apart(store: StateStore) -> None:
    first = store.put(1, 1, {0: b"first"}, b"", None)
    second = store.put(1, 1, {0: b"second"}, b"", None)
    for manifest, value in ((first, b"first"), (second, b"second")):
        found = store.load(1, manifest.attempt)
        assert found is not None
        assert found.values[0] == value


@pytest.mark.parametrize("length", [0, 10, 30, 400, -60, -1])
def test_a_damaged_object_is_no_state(store: StateStore, tmp_path: Path, length: int) -> None:
    base = store.put(1, 2, {1: b"superseded", 0: bytes(300)}, b"", None)
    manifest = store.put(2, 2, {1: b"x" * 300}, b"outbox", base)
    for path in objects(tmp_path):
        whole = path.read_bytes()
        path.write_bytes(whole[:length])
        assert store.load(2, manifest.attempt) is None
        path.write_bytes(whole)
    assert store.load(2, manifest.attempt) is not None


def test_an_object_that_an_older_version_left_and_that_is_gone_is_no_state(store: StateStore) -> None:
    base = store.put(1, 2, {0: b"a", 1: b"b"}, b"", None)
    manifest = store.put(2, 2, {1: b"c"}, b"", base)
    store.drop(base.names)
    assert store.load(2, manifest.attempt) is None


def test_orphans_are_past_objects_that_the_version_does_not_name(store: StateStore, tmp_path: Path) -> None:
    base = store.put(1, 2, {0: b"a", 1: b"b"}, b"", None)
    superseded = store.put(2, 2, {1: b"c"}, b"", base)
    failed = store.put(3, 2, {1: b"failed"}, b"", superseded)
    current = store.put(3, 2, {1: b"d"}, b"", superseded)
    store.put(4, 2, {1: b"of another writer"}, b"", current)
    (tmp_path / "_state" / "notes.txt").touch()
    orphans = store.orphans(current)
    assert superseded.names - base.names <= orphans
    assert not orphans & (current.names | failed.names)  # for all that can be told, it may still be committed
    store.drop(orphans | {"00000000000000000001-0000000000000000.state"})
    assert len(objects(tmp_path)) == len(current.names) + 3
    after = store.put(5, 2, {0: b"e", 1: b"f"}, b"", None)
    assert failed.names - base.names <= store.orphans(after)


def test_an_empty_directory_has_no_orphans(tmp_path: Path) -> None:
    manifest = store_in(tmp_path / "elsewhere").put(1, 1, {}, b"", None)
    assert store_in(tmp_path).orphans(manifest) == frozenset()


def test_superseded_bytes_are_bounded_by_a_full_rewrite(store: StateStore, tmp_path: Path) -> None:
    buckets = range(64)
    base = None
    for version in range(64):
        full = base is None or base.wasteful
        values = {bucket: bytes(4_096) for bucket in (buckets if full else buckets[version:])}
        manifest = store.put(version, 64, values, b"", None if full else base)
        store.drop((base.names if base else frozenset()) - manifest.names)
        base = manifest
    assert sum(path.stat().st_size for path in objects(tmp_path)) < 6 * 64 * 4_096


@pytest.mark.parametrize(("version", "error"), [(2, SchemaTooNew), (0, SchemaTooOld)])
def test_an_unknown_format_is_refused(
    store: StateStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int, error: type[Exception]
) -> None:
    monkeypatch.setattr("pipeline.silver.statestore.FORMAT", version)
    manifest = store.put(1, 1, {0: b"a"}, b"", None)
    monkeypatch.undo()
    assert json.dumps({"format": version})[1:-1].replace(" ", "").encode() in objects(tmp_path)[0].read_bytes()
    with pytest.raises(error, match=f"format {version}; this pipeline"):
        store.load(1, manifest.attempt)


def state_of(count: int) -> State:
    """So many sensors, with 60 values of two types each."""
    sensors = pl.DataFrame({"sensor_id": [f"sensor-{number}" for number in range(count)]})
    units = pl.DataFrame({"sensor_type": ["temperature", "humidity"], "unit": ["degC", "percent"]})
    start = pl.datetime(2026, 4, 1, time_unit="us", time_zone="UTC")
    readings = (
        sensors.join(units, how="cross")
        .join(pl.DataFrame({"number": range(60)}), how="cross")
        .with_columns(
            event_id=pl.format("{} {}", "sensor_type", "number"),
            timestamp=start + pl.duration(minutes="number"),
            value=20.0 + pl.col("number") % 7,
            raw_partition=0,
            raw_offset=pl.int_range(pl.len()),
        )
    )
    nothing = readings.clear().select(*IDENTITY, "value", "unit")
    _, state = refine(readings, State.empty(Detection()), load_registry(), Detection(), nothing)
    return state


@pytest.mark.parametrize("count", [1, 50, 3_000])
def test_all_buckets_together_are_the_state_and_each_is_small(count: int) -> None:
    state = state_of(count)
    buckets, values = buckets_of(state, state.sensor_ids, 1)
    assert all(len(value) < MAX_VALUE for value in values.values())
    assert sum(map(len, values.values())) * 4 > buckets * MAX_VALUE or buckets == 1
    parts = [State.from_bytes(value) for value in values.values()]
    assert len(parts) == buckets
    for bucket, part in zip(values, parts, strict=True):
        assert {crc32(sensor.encode()) % buckets for sensor in part.sensor_ids} == {bucket}
    assert State.merge([State.empty(Detection()), *parts]).to_bytes() == state.to_bytes()


def test_only_the_buckets_of_the_changed_sensors_are_written() -> None:
    state = state_of(100)
    _, every = buckets_of(state, state.sensor_ids, 16)
    buckets, values = buckets_of(state, ["sensor-7", "sensor-8", "one that is not in it"], 16)
    changed = {crc32(name) % 16 for name in (b"sensor-7", b"sensor-8", b"one that is not in it")}
    assert buckets == 16
    assert values == {bucket: every[bucket] for bucket in changed}


def test_buckets_that_grew_too_large_are_all_written_anew() -> None:
    state = state_of(1_500)
    buckets, values = buckets_of(state, ["sensor-7"], 1)
    assert buckets == 4
    assert set(values) == set(range(4))
