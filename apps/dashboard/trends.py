"""Sensor trends: values over time with their baseline and anomalies, at the resolution that the range asks for."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from io import BytesIO

import polars as pl
from bokeh.models import MultiChoice, Select

from apps.dashboard.charts import Lines
from apps.dashboard.controls import Download, RangeControl
from apps.dashboard.frame import Card, Session, html, note, nothing, show, when_changed, widget
from apps.dashboard.series import Catalogue, Resolution, Series, Shown, candidates, chosen
from apps.dashboard.theme import MOST_SERIES
from apps.dashboard.view import fixed, link
from apps.dashboard.words import count, esc, number, percent, unit_of, utc_text

ALL = "all locations"


class Trends:
    """The page."""

    def __init__(self, session: Session) -> None:
        self._session = session
        address = session.address
        self._type = next(iter(address.texts("type", 1)), "")
        self._location = next(iter(address.texts("location", 1)), "")
        self._sensors = address.texts("sensor", MOST_SERIES)
        self._catalogue = pl.DataFrame()
        self._setting = False
        self._shown: Shown | None = None
        self._range = RangeControl(address.range(), self._changed)
        self._type_box = widget(Select, title="Type", width=150)
        self._location_box = widget(Select, title="Location", width=170)
        self._sensor_box = widget(
            MultiChoice, title=f"Sensors (up to {MOST_SERIES})", max_items=MOST_SERIES, width=330,
            option_limit=50, search_option_limit=50, placeholder="Choose to compare",
        )  # fmt: skip
        for box in (self._type_box, self._location_box):
            when_changed(box, "value", self._narrowed)
        when_changed(self._sensor_box, "value", self._picked)
        self._lines = Lines(session.theme, self._range.zoom)
        self._lines.show(visible=False)
        self._about = html()
        self._table = html()
        self._downloads = [
            Download(f"Download {label}", partial(self._file, kind))
            for kind, label in (("csv", "CSV"), ("parquet", "Parquet"))
        ]

    def cards(self) -> Sequence[Card]:
        """Controls, the chart, figures by sensor."""
        boxes = (self._type_box, self._location_box, self._sensor_box, self._range.view)
        return [
            Card("controls", [boxes], bare=True),
            Card("chart", [self._about, self._lines.plot, self._lines.strip]),
            Card("figures", [self._table, tuple(each.view for each in self._downloads)], 12, "In this range"),
        ]

    def update(self, now: datetime) -> None:
        """Follow the catalogue and the series."""
        catalogue = self._session.ask(Catalogue())
        if catalogue.value is not None and self._session.is_new("catalogue", catalogue):
            self._catalogue = catalogue.value
            self._offer()
        if catalogue.value is None or self._catalogue.is_empty():
            self._nothing(note(catalogue, self._session, now) or nothing(*_waiting(catalogue.value)))
            return
        sensors = chosen(self._catalogue, self._type, self._location, self._sensors)
        answer = self._session.ask(Series(self._type, sensors, self._range.value))
        if answer.value is None:
            if answer.problem:
                self._nothing(note(answer, self._session, now))
            return
        if self._session.is_new("series", answer):
            self._draw(answer.value, sensors, note(answer, self._session, now))

    def _draw(self, shown: Shown, sensors: tuple[str, ...], head: str) -> None:
        self._shown = shown
        if shown.points.is_empty():
            self._nothing(head + nothing("No readings in this range", self._way_out(sensors)))
            return
        self._lines.show(visible=True)
        self._offer_files(True)
        self._lines.draw(shown, sensors)
        show(self._about, head + self._told(shown, sensors))
        show(self._table, figures(shown, sensors, self._lines.colours))

    def _told(self, shown: Shown, sensors: tuple[str, ...]) -> str:
        parts = [f"<b>{esc(unit_of(shown.unit))}</b>, {shown.resolution.value}"]
        if len(sensors) > 1:
            parts += [
                f'<span class="key"><span class="sw" style="background:{colour}"></span>{esc(sensor)}</span>'
                for sensor, colour in zip(sensors, self._lines.colours, strict=False)
            ]
        if len(sensors) == 1 and not shown.band.is_empty():
            parts.append("band: where a reading is no outlier")
        elif shown.resolution is not Resolution.RAW and len(sensors) == 1:
            parts.append("band: smallest to largest value")
        return f'<div class="muted">{"&ensp; ".join(parts)}{self._session.left_out}</div>'

    def _way_out(self, sensors: tuple[str, ...]) -> str:
        known = self._catalogue.filter(pl.col("sensor_id").is_in(list(sensors)))
        newest = known["newest"].max()
        if not isinstance(newest, datetime):
            return "No sensor of this name in the newest week of Gold."
        around = fixed(newest - timedelta(hours=6), newest + timedelta(minutes=5))
        href = link("trends", around, type=self._type, location=self._location, sensor=list(sensors))
        return (
            f'The newest is of {self._session.clock(newest, datetime.now(UTC))}: <a href="{esc(href)}">go there</a>.'
        )

    def _nothing(self, text: str) -> None:
        self._lines.show(visible=False)
        self._offer_files(False)
        show(self._about, text)
        show(self._table, "")

    def _offer(self) -> None:
        """Put what there is into the boxes, and what was chosen before stays chosen."""
        if self._catalogue.is_empty():
            return
        types = sorted(self._catalogue["sensor_type"].unique())
        if self._type not in types:
            self._type = self._likely_type()
        places = sorted(candidates(self._catalogue, self._type, "")["location"].unique())
        names = candidates(self._catalogue, self._type, self._location)["sensor_id"].unique().sort().to_list()
        self._setting = True
        try:
            self._type_box.update(options=types, value=self._type)
            offered = sorted({*places, *filter(None, [self._location])})
            self._location_box.update(options=[("", ALL), *offered], value=self._location)
            sensors = chosen(self._catalogue, self._type, self._location, self._sensors)
            options = [(name, esc(name)) for name in sorted({*names, *sensors})]  # the box takes labels for HTML
            self._sensor_box.update(options=options, value=list(sensors))
        finally:
            self._setting = False

    def _likely_type(self) -> str:
        """Of the sensors that the address names, else what is most out of the ordinary at its location."""
        known = self._catalogue.filter(pl.col("sensor_id").is_in(list(self._sensors)))
        at_place = self._catalogue.filter(pl.col("location") == self._location)
        best = next(rows for rows in (known, at_place, self._catalogue) if len(rows))
        return str(best.sort("anomalies", descending=True)["sensor_type"][0])

    def _narrowed(self) -> None:
        if not self._setting:
            self._type, self._location, self._sensors = self._type_box.value, self._location_box.value, ()
            self._offer()
            self._changed()

    def _picked(self) -> None:
        if not self._setting:
            self._sensors = tuple(self._sensor_box.value)
            self._offer()
            self._changed()

    def _changed(self) -> None:
        self._session.forget("series")
        self._session.set_query(
            type=self._type, location=self._location, sensor=list(self._sensors), **self._range.value.query()
        )
        self.update(datetime.now(UTC))

    def _offer_files(self, offered: bool) -> None:
        for each in self._downloads:
            each.view.disabled = not offered

    def _file(self, kind: str) -> tuple[str, bytes]:
        """Name and content of what is shown, as a file."""
        shown, out = self._shown, BytesIO()
        assert shown is not None
        named = {"sensor_type": pl.lit(self._type), "unit": pl.lit(shown.unit)}
        rows = shown.points.with_columns(**named).rename({"start": "time"})
        if kind == "csv":
            rows.write_csv(out, datetime_format="%Y-%m-%dT%H:%M:%S%.fZ")
        else:
            rows.write_parquet(out)
        name = f"{self._type}-{utc_text(shown.start)}-{utc_text(shown.end)}.{kind}".replace(":", "")
        return name, out.getvalue()


def _waiting(catalogue: pl.DataFrame | None) -> tuple[str, str]:
    return ("Reading the lake …", "") if catalogue is None else ("No data yet", "Gold has no rows.")


def figures(shown: Shown, sensors: tuple[str, ...], colours: Sequence[str]) -> str:
    """A row for each sensor: readings, mean, extremes, anomalies."""
    summed = shown.points.group_by("sensor_id").agg(
        pl.col("count").sum(),
        avg=(pl.col("avg") * pl.col("count")).sum() / pl.col("count").sum(),
        min=pl.col("min").min(),
        max=pl.col("max").max(),
        anomalies=pl.col("anomaly_count").sum(),
    )
    by_sensor = {row["sensor_id"]: row for row in summed.iter_rows(named=True)}
    unit = esc(unit_of(shown.unit))
    head = "".join(
        f'<th class="r">{name}</th>' for name in ("Readings", "Mean", "Smallest", "Largest", "Anomalies", "")
    )
    rows = ""
    for sensor, colour in zip(sensors, colours, strict=False):
        row = by_sensor.get(sensor)
        name = f'<td class="s"><span class="sw" style="background:{colour}"></span>{esc(sensor)}</td>'
        if row is None:
            rows += f'<tr>{name}<td class="r muted" colspan="6">no readings in this range</td></tr>'
            continue
        values = "".join(f'<td class="r">{number(row[key], 4)} {unit}</td>' for key in ("avg", "min", "max"))
        rate = percent(row["anomalies"] / row["count"], 2)
        rows += (
            f'<tr>{name}<td class="r">{count(row["count"])}</td>{values}'
            f'<td class="r">{count(row["anomalies"])}</td><td class="r muted">{rate}</td></tr>'
        )
    return (
        f'<div class="wide"><table><thead><tr><th>Sensor</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )
