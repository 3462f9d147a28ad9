"""Silver, one reading at a time in plain Python: what the tests hold the product against; and readings that are hard
on it.

The oracle shares no code with the product. It knows one registry, by hand, before and after a correction.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

from hypothesis import strategies as st

from contracts.registry import parse_registry
from pipeline.settings import Detection
from tests.gold_oracle import Entry

Row = dict[str, Any]

START = datetime(2026, 3, 1, tzinfo=UTC)
REVISED = START + timedelta(seconds=40)
"""Since when the registry below is stricter."""

RULES = Detection(
    window=6, min_readings=3, threshold=2.0, jump_threshold=2.5, drift_threshold=1.5, shift_after=4, lateness_s=10
)

YAML = """
types:
  temperature:
    unit: degC
    physical: [-90, 150]
    operating: [-10, 40]
    interval: 10s
    noise_floor: 0.5
    stuck_after: 3
    max_rate: 4
    revisions:
      - from: 2026-03-01T00:00:40Z
        physical: [-50, 100]
        stuck_after: null
  pressure:
    unit: hPa
    physical: [300, 1100]
    operating: [900, 1050]
    interval: 10s
    noise_floor: 2
sensors:
  known:
    - type: temperature
      location: here
      to: 2026-03-01T00:00:20Z
      operating: [0, 21]
      max_rate: null
    - type: temperature
      location: here
      from: 2026-03-01T00:00:20Z
      stuck_after: 2
"""
REGISTRY = parse_registry(YAML)
CORRECTED = parse_registry(
    YAML.replace("physical: [-50, 100]", "physical: [-60, 300]").replace(
        "operating: [900, 1050]", "operating: [900, 990]"
    )
)

INTERVALS = {"temperature": timedelta(seconds=10), "pressure": timedelta(seconds=10)}
ENTRIES = [
    Entry("known", "temperature", "here", INTERVALS["temperature"], until=START + timedelta(seconds=20)),
    Entry("known", "temperature", "here", INTERVALS["temperature"], since=START + timedelta(seconds=20)),
]
"""The same of it, as Gold's oracle takes it."""


Limits = Callable[[str, str, datetime], dict[str, Any] | None]


def limits(sensor: str, sensor_type: str, at: datetime, *, corrected: bool = False) -> dict[str, Any] | None:
    """What the registry above says, by hand."""
    if sensor_type == "pressure":
        high = 990 if corrected else 1050
        return {"physical": (300, 1100), "operating": (900, high), "floor": 2, "stuck": None, "rate": None}
    if sensor_type != "temperature":
        return None
    said: dict[str, Any] = {"physical": (-90, 150), "operating": (-10, 40), "floor": 0.5, "stuck": 3, "rate": 4}
    if at >= REVISED:
        said |= {"physical": (-60, 300) if corrected else (-50, 100), "stuck": None}
    if sensor == "known":
        said |= {"operating": (0, 21), "rate": None} if at < START + timedelta(seconds=20) else {"stuck": 2}
    return said


UNITS = {"temperature": "degC", "pressure": "hPa"}
RULES_IN_ORDER = ("zscore", "operating_range", "stuck", "rate_of_change", "jump", "drift")

CONVERSIONS = {
    ("temperature", "degC"): (1, 0),
    ("temperature", "degF"): (5 / 9, -160 / 9),
    ("temperature", "K"): (1, -273.15),
    ("pressure", "hPa"): (1, 0),
    ("pressure", "kPa"): (10, 0),
}


@dataclass
class Series:
    baseline: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    seen: list[tuple[datetime, float]] = field(default_factory=list)
    scored: int = 0
    recent: float = 0.0
    surprise: float = 0.0
    spread: float = 0.0
    former: tuple[float, float] | None = None


class Reference:
    """The definitions, read aloud."""

    def __init__(self, rules: Detection, limits: Limits = limits) -> None:
        self.rules = rules
        self.limits = limits
        self.first: dict[Any, tuple[float, str]] = {}
        self.series: dict[tuple[str, str], Series] = {}

    def take(self, reading: dict[str, Any]) -> Any:
        identity = (reading["sensor_id"], reading["event_id"], reading["timestamp"])
        said = (reading["value"], reading["unit"])
        if identity in self.first:
            return "duplicate" if self.first[identity] == said else "conflict"
        self.first[identity] = said
        limit = self.limits(reading["sensor_id"], reading["sensor_type"], reading["timestamp"])
        conversion = CONVERSIONS.get((reading["sensor_type"], reading["unit"]))
        if limit is None or conversion is None:
            return "unknown_unit"
        value = reading["value"] * conversion[0] + conversion[1]
        if not limit["physical"][0] <= value <= limit["physical"][1]:
            return "physical_range"
        return self.score(
            self.series.setdefault((reading["sensor_id"], reading["sensor_type"]), Series()),
            reading["timestamp"],
            value,
            limit,
        )

    def score(self, series: Series, at: datetime, value: float, limit: dict[str, Any]) -> dict[str, Any]:
        rules, flags = self.rules, set()
        z = mean = std = None
        if len(series.baseline) >= rules.min_readings:
            mean = sum(series.baseline) / len(series.baseline)
            std = math.sqrt(sum((x - mean) ** 2 for x in series.baseline) / (len(series.baseline) - 1))
            z = (value - mean) / max(std, limit["floor"])
            flags = {"zscore"} if abs(z) > rules.threshold else set()
            flags |= self.moved(series, value, mean, std, limit["floor"])
        known = bool(flags) and series.former is not None and fits(value, series.former, limit["floor"], rules)
        if known:
            flags = set()
        if not limit["operating"][0] <= value <= limit["operating"][1]:
            flags.add("operating_range")
        late = any(at < other - timedelta(seconds=rules.lateness_s) for other, _ in series.seen)
        before = series.seen[-1] if series.seen else None
        series.seen.append((at, value))
        last = [x for _, x in series.seen[-(limit["stuck"] or 0) :]]
        if limit["stuck"] and len(last) == limit["stuck"] and len(set(last)) == 1:
            flags.add("stuck")
        if before and limit["rate"] is not None and at > before[0]:
            rate = abs(value - before[1]) / (at - before[0]).total_seconds()
            if rate > limit["rate"]:
                flags.add("rate_of_change")
        if "stuck" not in flags:
            self.learn(series, value, bool(flags), known, None if mean is None or std is None else (mean, std))
        return {
            "value": value,
            "zscore": z,
            "baseline_mean": mean,
            "baseline_std": std,
            "anomaly_rules": [rule for rule in RULES_IN_ORDER if rule in flags],
            "is_anomaly": bool(flags),
            "is_late": late,
        }

    def moved(self, series: Series, value: float, mean: float, std: float, floor: float) -> set[str]:
        """Against the recent values, and those against the baseline."""
        rules, flags = self.rules, set()
        if series.scored == 0:
            series.recent, series.surprise, series.spread = mean, std * std, std * std / 7
        series.scored += 1
        assert series.scored <= 1000, "from there on the averages are exponential"
        step, usual = value - series.recent, max(series.surprise, floor * floor)
        learnt = series.scored > rules.window
        if learnt and not series.refused and abs(step) > rules.jump_threshold * math.sqrt(usual):
            flags.add("jump")
        series.surprise += (min(step * step, 4 * usual) - series.surprise) / series.scored
        reach = rules.threshold * math.sqrt(usual)
        series.recent += sorted([-reach, step, reach])[1] / 4
        moved, usual = series.recent - mean, max(series.spread, floor * floor / 7)
        limit = rules.drift_threshold * math.sqrt(usual)
        both = (moved > limit and value - mean > limit) or (moved < -limit and value - mean < -limit)
        if learnt and both:
            flags.add("drift")
        series.spread += (min(moved * moved, 4 * usual) - series.spread) / series.scored
        return flags

    def learn(
        self, series: Series, value: float, flagged: bool, known: bool, statistics: tuple[float, float] | None
    ) -> None:
        """What becomes of the baseline."""
        rules = self.rules
        if flagged or known:
            series.refused.append(value)
            if len(series.refused) == rules.shift_after:
                series.former = None if known else statistics
                series.baseline, series.refused = series.refused[-rules.window :], []
                series.recent = sum(series.baseline) / len(series.baseline)
        else:
            series.recent = value if series.refused else series.recent
            series.baseline, series.refused = [*series.baseline, value][-rules.window :], []
        if len(series.baseline) == rules.window:
            series.former = None


def fits(value: float, level: tuple[float, float], floor: float, rules: Detection) -> bool:
    mean, std = level
    return abs(value - mean) <= rules.threshold * max(std, floor)


def silver(rows: Iterable[Row], reference: Reference) -> tuple[dict[int, Row], dict[int, Row]]:
    """What silver/readings and silver/quarantine have of these rows of Bronze, by raw_offset: every column but those
    of how a row came to be, and quarantine's words."""
    readings, quarantine = {}, {}
    for row in sorted(rows, key=lambda row: (row["batch_partition"], row["batch_offset"], row["batch_row"])):
        kept = {name: value for name, value in row.items() if name not in ("ingested_at", "ingest_date")}
        kept["event_date"] = row["timestamp"].date()
        fate = reference.take(row)
        if isinstance(fate, dict):
            sent = {"original_value": row["value"], "original_unit": row["unit"], "unit": UNITS[row["sensor_type"]]}
            readings[row["raw_offset"]] = kept | sent | fate
        elif fate != "duplicate":
            quarantine[row["raw_offset"]] = kept | {"rule": fate}
    return readings, quarantine


def reading(offset: int, **given: Any) -> Row:
    """A row of Bronze."""
    at = given.pop("at", offset)
    return {
        "event_id": f"event-{offset}",
        "sensor_id": "one",
        "sensor_type": "temperature",
        "location": "here",
        "timestamp": START + timedelta(seconds=at),
        "value": 20.0,
        "unit": "degC",
        "label": None,
        "raw_partition": 0,
        "raw_offset": offset,
        "raw_timestamp": START,
        "batch_partition": 0,
        "batch_offset": offset // 10,
        "batch_row": offset % 10,
        "ingested_at": START,
        "ingest_date": date(2026, 3, 1),
    } | given


HOSTILE = st.lists(
    st.fixed_dictionaries(
        {
            "sensor_id": st.sampled_from(["one", "one", "one", "known", "two"]),
            "sensor_type": st.sampled_from(["temperature"] * 5 + ["pressure", "ghost"]),
            "event_id": st.sampled_from(["a", "b", "c", "d", "e", "f"]),
            "at": st.sampled_from(
                [-301, 0, 1, 2, 3, 5, 8, 9.999999, 10, 19.999999, 20, 21, 39.999999, 40, 41, 60, 3600]
            ),
            "value": st.sampled_from(
                [20.0, 20.0, 20.0, 20.25, 19.5, 21.0, 39.0, 40.0, 41, 68.0, 99.5, 101, 290.0, 1000.0, 0.0]
            )
            | st.sampled_from([-0.0, 1e308, -1e308, 1e-320, 149.9999]),
            "unit": st.sampled_from(["degC"] * 6 + ["degF", "K", "kPa", "hPa", "", "10**10**10", "☃"]),
            "location": st.sampled_from(["here", "there"]),
        }
    ),
    min_size=1,
    max_size=70,
)


@st.composite
def smooth(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Long series with a few faults: what fills baselines, shifts levels and gets stuck."""
    random = draw(st.randoms(use_true_random=False))
    level, rows = 20.0, []
    for number in range(draw(st.integers(50, 150))):
        level = random.choice([level] * 12 + [18.0, 23.0, 60.0])
        value = random.choice([level, level + 0.5, level - 0.25, level + random.gauss(0, 0.3)])
        rows.append(
            {
                "sensor_id": random.choice(["one", "known"]),
                "event_id": f"{number if random.random() < 0.9 else max(0, number - 1)}",
                "at": number - (number - random.choice([1, 12])) % 7 * random.choice([0, 0, 0, 3]),
                "value": value,
            }
        )
    return rows
