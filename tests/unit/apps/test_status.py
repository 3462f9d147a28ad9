"""status and monitor over a lake on disk; broker and warehouse are away, or metrics are given."""

import json
import math
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from deltalake import DeltaTable

from apps import silence
from apps.breaches import Recorder, breaches
from apps.monitor import Monitor
from apps.silence import Ear
from apps.status import Observer, show_history, told_by
from apps.vitals import own
from contracts.tables import BRONZE_READINGS
from pipeline.broker.offsets import Survey
from pipeline.errors import PipelineError, Unreachable
from pipeline.lake.delta import Lake
from pipeline.lake.followed import Followed
from pipeline.lake.layout import scan_files
from pipeline.monitoring.objectives import Verdict
from pipeline.monitoring.status import Samples, StageFacts, judge
from pipeline.settings import Objectives, Settings
from pipeline.simulation.fleet import Fleet
from pipeline.stage import PORTS
from tests.fleet_lake import FleetLake

SENSORS = 8


def settings_of(root: Path) -> Settings:
    """A lake on disk; broker, warehouse and monitor are away."""
    return Settings.model_validate(
        {
            "lake": {"uri": str(root)},
            "kafka": {"bootstrap_servers": "127.0.0.1:1", "timeout_s": 0.2},
            "warehouse": {"port": 1, "timeout_s": 1},
            "observability": {"port": 0},
            "dashboard": {"monitor": "127.0.0.1:1"},
        }
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, datetime]:
    """Ten minutes of a fleet that ended just now: settings of the lake, and the end."""
    settings = settings_of(tmp_path_factory.mktemp("lake"))
    now = datetime.now(UTC)
    FleetLake(settings).fill(Fleet(sensors=SENSORS, seed=1), now - timedelta(minutes=2), now, interval_s=5.0)
    return settings, now


def test_the_ear_hears_each_sensor_and_reads_only_files_that_are_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, now = Settings.model_validate({"lake": {"uri": str(tmp_path)}}), datetime.now(UTC)
    FleetLake(settings).fill(Fleet(sensors=SENSORS, seed=1), now - timedelta(minutes=2), now, interval_s=5.0)
    ear = Ear(Lake(settings.lake))
    first = ear.listen(now + timedelta(seconds=5))
    assert len(first) == SENSORS
    assert first["newest"].max() > now - timedelta(seconds=10)
    assert ear.p95_s is not None
    read: list[int] = []

    def counted(table: DeltaTable, files: list[str]) -> pl.LazyFrame:
        read.append(len(files))
        return scan_files(table, files)

    monkeypatch.setattr(silence, "scan_files", counted)
    again = ear.listen(now + timedelta(seconds=6))
    assert again.sort("sensor_id").equals(first.sort("sensor_id"))
    fleet = FleetLake(settings)
    fleet._offset = 20_000
    raw = {"sensor_id": "new", "sensor_type": "temperature", "location": "l", "unit": "degC", "value": 20.0}
    fleet.take(
        [json.dumps(raw | {"event_id": "e", "timestamp": now.isoformat()}).encode()],
        [int(now.timestamp() * 1000)],
        [None],
    )
    fleet.follow()
    assert set(ear.listen(now + timedelta(seconds=7))["sensor_id"]) == {*first["sensor_id"], "new"}
    assert read == [0, 1]


def test_without_broker_warehouse_and_monitor_nothing_is_made_up(world: tuple[Settings, datetime]) -> None:
    settings, now = world
    observer = Observer(settings)
    status = observer.look(now)
    marks = {(line.part, line.what): line.mark for line in status.lines}
    assert marks["system", "kafka"] == marks["system", "warehouse"] == "breached"
    assert marks["system", "lake"] == "ok"
    assert marks["stage", "monitor"] == "breached"
    assert marks["stage", "ingest"] == marks["objective", "lag"] == marks["sensors", "silent"] == "unknown"
    assert marks["objective", "freshness of bronze"] == "ok"
    assert marks["objective", "freshness of warehouse"] == "unknown"
    assert status.exit_code == 1
    assert breaches(Lake(settings.lake)) == []  # who only looks writes nothing


def served(**silent: float) -> Samples:
    """What a monitor serves that sees nothing wrong."""
    return {
        "pipeline_ready": [({"stage": "monitor"}, 1.0)],
        "pipeline_loop_still_seconds": [({"stage": "monitor"}, 0.2)],
        "pipeline_system_up": [({"system": name}, 1.0) for name in ("kafka", "lake", "warehouse")],
        "pipeline_stalled_seconds": [({"stage": name}, 0.0) for name in PORTS],
        "pipeline_table_rows": [({"table": name}, 0.0) for name in ("bronze/dead_letters", "silver/quarantine")],
        "pipeline_silent_sensors": [({"sensor_type": name}, count) for name, count in silent.items()],
    }


def test_what_monitor_counts_as_silent_is_named(world: tuple[Settings, datetime]) -> None:
    settings, now = world
    observer = Observer(settings)
    said = {name: told_by(name, {"pipeline_ready": [({"stage": name}, 1.0)]}) for name in PORTS}
    assert observer.facts(served(temperature=0.0), said, now).silent == []
    assert observer.facts(served(temperature=float("nan")), said, now).silent is None
    later = now + timedelta(hours=1)
    named = observer.facts(served(temperature=2.0), said, later).silent
    assert named is not None
    assert len(named) == SENSORS
    assert 3200 < (named[0].for_s or 0) < 3700  # of what is older than 15 minutes, the window's end is known


def test_a_monitor_at_another_address_speaks_for_itself(world: tuple[Settings, datetime]) -> None:
    settings, now = world
    facts = Observer(settings).facts(served(), {"monitor": StageFacts(answers=None)}, now)
    assert facts.stages["monitor"] == StageFacts(answers=True, ready=True, still_s=0.2, stalled_s=None)


def test_figures_of_a_monitor_that_hangs_in_a_round_are_unknown_not_old(world: tuple[Settings, datetime]) -> None:
    settings, now = world
    hangs = served(temperature=0.0) | {"pipeline_loop_still_seconds": [({"stage": "monitor"}, 20.0)]}
    said = {name: StageFacts(answers=True, ready=True, still_s=0.1) for name in PORTS}
    status = judge(
        Observer(settings).facts(hangs, said | {"monitor": told_by("monitor", hangs)}, now), Objectives(), 60
    )
    assert {line.mark for line in status.lines if line.part in ("system", "lag", "objective", "sensors")} == {
        "unknown"
    }
    marks = {line.what: line.mark for line in status.lines if line.part == "stage"}
    assert marks["monitor"] == marks["ingest"] == "unknown"
    assert status.exit_code == 2


def lag(value: float) -> list[Verdict]:
    return [Verdict("lag", value, 100.0, "messages")]


def test_an_open_breach_is_continued_by_the_next_process_and_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings.model_validate({"lake": {"uri": str(tmp_path)}})
    lake, start = Lake(settings.lake), datetime(2026, 3, 1, tzinfo=UTC)
    assert breaches(lake) == []
    show_history(settings, start, as_json=False)
    assert "No breach since 2026-03-01" in capsys.readouterr().out
    Recorder(lake).note(lag(150), start)
    show_history(settings, start, as_json=False)
    assert "open" in capsys.readouterr().out
    Recorder(lake).note(lag(90), start + timedelta(minutes=3))
    show_history(settings, start, as_json=True)
    (shown,) = json.loads(capsys.readouterr().out)["breaches"]
    assert (shown["started_at"], shown["ended_at"]) == ("2026-03-01T00:00:00+00:00", "2026-03-01T00:03:00+00:00")
    assert (shown["worst"], shown["limit"]) == (150.0, 100.0)


def test_what_the_store_does_not_take_is_written_when_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, start = (
        Lake(Settings.model_validate({"lake": {"uri": str(tmp_path)}}).lake),
        datetime(2026, 3, 1, tzinfo=UTC),
    )
    recorder = Recorder(lake)
    recorder.note(lag(10), start)
    with monkeypatch.context() as patched:
        patched.setattr(lake, "ensure", _away)
        with pytest.raises(PipelineError):
            recorder.note(lag(150), start + timedelta(seconds=5))
        with pytest.raises(PipelineError):
            recorder.note(lag(50), start + timedelta(seconds=10))
    recorder.note(lag(50), start + timedelta(seconds=15))
    (breach,) = breaches(lake)
    assert breach.started_at == start + timedelta(seconds=5)
    assert breach.ended_at == start + timedelta(seconds=10)


def _away(_table: object) -> None:
    raise PipelineError("the store is away")


def test_monitor_notes_breaches_and_judges_quality_by_what_came(world: tuple[Settings, datetime]) -> None:
    settings, now = world
    fleet = FleetLake(settings)
    with closing(Monitor(settings)) as monitor:
        monitor.measure(now + timedelta(hours=1))
        assert math.isnan(own()["pipeline_quality_ratio"][0][1])  # nothing came yet
        fleet._offset = 10_000
        raw = {"sensor_id": "a", "sensor_type": "temperature", "location": "l", "unit": "degC"}
        good = [raw | {"event_id": str(n), "timestamp": now.isoformat(), "value": 20.0 + n} for n in range(3)]
        values = [json.dumps(each).encode() for each in good]
        fleet.take([*values, b"not json"], [int(now.timestamp() * 1000)] * 4, [None] * 4)
        fleet.follow()
        monitor.measure(now + timedelta(hours=1, seconds=5))
        samples = own()
        fleet.take([*values, b"not json"], [int(now.timestamp() * 1000)] * 4, [None] * 4)
        monitor.measure(now + timedelta(hours=1, seconds=10))
        behind = own()  # Silver has yet to read it: that is no lack of quality
        monitor.measure(now + timedelta(hours=1, minutes=20))
        still = own()
    assert behind["pipeline_quality_ratio"][0][1] == 0.75
    assert math.isnan(still["pipeline_quality_ratio"][0][1])
    assert samples["pipeline_quality_ratio"][0][1] == 0.75
    assert samples["pipeline_dead_ratio"][0][1] == 0.25
    logs = {labels["table"]: value for labels, value in samples["pipeline_table_log_entries"]}
    assert logs["silver/readings"] >= 1
    unread = {labels["table"]: value for labels, value in samples["pipeline_table_unread_version"]}
    versions = {labels["table"]: value for labels, value in samples["pipeline_table_version"]}
    assert unread["silver/readings"] == versions["silver/readings"] + 1
    began = {each.objective for each in breaches(Lake(settings.lake))}
    assert {"freshness of bronze", "freshness of silver", "freshness of gold", "quality", "dead letters"} <= began


def test_monitor_counts_the_silent_while_the_stream_flows_and_nobody_when_it_stands_still(
    world: tuple[Settings, datetime], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, now = world
    end = 0

    def watermarks(_survey: Survey, *names: str) -> dict[str, dict[int, tuple[int, int]]]:
        return {name: {0: (0, end)} for name in names}

    monkeypatch.setattr(Survey, "watermarks", watermarks)
    monkeypatch.setattr(Survey, "committed", lambda *_: {})

    def counted(monitor: Monitor, at: datetime) -> float:
        monitor.measure(at)
        return sum(value for _, value in own()["pipeline_silent_sensors"])

    FleetLake(settings).follow()
    with closing(Monitor(settings, record=False)) as monitor:
        assert counted(monitor, now + timedelta(seconds=5)) == 0
        assert counted(monitor, now + timedelta(minutes=5)) >= SENSORS
        end = 1000  # input comes, and nobody commits
        assert counted(monitor, now + timedelta(minutes=6)) >= SENSORS
        assert math.isnan(counted(monitor, now + timedelta(minutes=7)))
    stalled = {labels["stage"]: value for labels, value in own()["pipeline_stalled_seconds"]}
    assert stalled["ingest"] == 60.0


def test_an_hour_in_which_the_lake_began_tells_nothing_of_the_sensors_health(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    hour = now.replace(minute=0, second=0, microsecond=0) - timedelta(hours=1)

    def health(place: Path, begun: datetime) -> float:
        settings = settings_of(place)
        _begin(settings, begun)
        FleetLake(settings).fill(Fleet(sensors=SENSORS, seed=1), hour, hour + timedelta(minutes=6), interval_s=10.0)
        with closing(Monitor(settings, record=False)) as monitor:
            monitor.measure(now)
        return own()["pipeline_sensor_health_ratio"][0][1]

    assert health(tmp_path / "old", hour) == pytest.approx(0.1, abs=0.01)
    # late readings of a new lake, say, are a part of what this hour had
    assert math.isnan(health(tmp_path / "new", hour + timedelta(seconds=1)))


def _begin(settings: Settings, at: datetime) -> None:
    """Bronze, as if it was made then."""
    table = Lake(settings.lake).ensure(BRONZE_READINGS)
    (first,) = Path(settings.lake.uri, BRONZE_READINGS.path, "_delta_log").glob("*0.json")
    made = f'"createdTime":{table.metadata().created_time}'
    log = first.read_text()
    assert made in log
    first.write_text(log.replace(made, f'"createdTime":{int(at.timestamp() * 1000)}'))


def test_monitor_lives_through_an_outage_of_the_store_knows_nothing_and_is_back(
    world: tuple[Settings, datetime], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, now = world
    of_the_lake = ("pipeline_table_rows", "pipeline_sensor_health_ratio", "pipeline_unregistered_sensors",
                   "pipeline_table_log_entries", "pipeline_late_ratio", "pipeline_digest_age_seconds")  # fmt: skip

    def away(*_: object, **__: object) -> None:
        raise Unreachable("the store is away")

    def answers() -> bool:
        return {labels["system"]: value for labels, value in own()["pipeline_system_up"]}["lake"] == 1

    with closing(Monitor(settings, record=False)) as monitor:
        monitor.measure(now)
        assert answers()
        with monkeypatch.context() as patched:
            patched.setattr(Followed, "look", away)
            patched.setattr(Lake, "open", away)
            for seconds in (5, 10):
                monitor.measure(now + timedelta(seconds=seconds))
                assert not answers()
                told = own()
                assert all(math.isnan(value) for name in of_the_lake for _, value in told[name])
        monitor.measure(now + timedelta(seconds=15))
        assert answers()
        assert not math.isnan(own()["pipeline_unregistered_sensors"][0][1])


def test_what_was_told_before_the_store_went_away_in_the_middle_of_a_round_is_forgotten(
    world: tuple[Settings, datetime], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, now = world

    def away(*_: object, **__: object) -> None:
        raise Unreachable("the store is away")

    def fresh() -> list[float]:
        return [age for labels, age in own()["pipeline_freshness_seconds"] if labels["layer"] != "warehouse"]

    with closing(Monitor(settings, record=False)) as monitor:
        monitor.measure(now)
        assert not any(map(math.isnan, fresh()))
        monkeypatch.setattr(Ear, "listen", away)  # the last that is asked of it
        monitor.measure(now + timedelta(seconds=5))
    assert all(map(math.isnan, fresh()))
