-- Derived from contracts/ by `python -m contracts.derive`: change it there.

CREATE SCHEMA IF NOT EXISTS analytics;

CREATE TABLE IF NOT EXISTS analytics.fact_sensor_5min (
    "sensor_id" TEXT NOT NULL,
    "sensor_type" TEXT NOT NULL,
    "location" TEXT NOT NULL,
    "window_start" TIMESTAMPTZ NOT NULL,
    "count" BIGINT NOT NULL,
    "avg" DOUBLE PRECISION NOT NULL,
    "min" DOUBLE PRECISION NOT NULL,
    "max" DOUBLE PRECISION NOT NULL,
    "std" DOUBLE PRECISION,
    "anomaly_count" BIGINT NOT NULL,
    "health_pct" DOUBLE PRECISION,
    "event_date" DATE NOT NULL,
    "p50" DOUBLE PRECISION NOT NULL,
    "p95" DOUBLE PRECISION NOT NULL,
    "p99" DOUBLE PRECISION NOT NULL,
    "sum" DOUBLE PRECISION NOT NULL,
    "m2" DOUBLE PRECISION NOT NULL,
    "expected_count" BIGINT,
    "reported_count" BIGINT,
    PRIMARY KEY ("window_start", "sensor_id", "sensor_type", "location")
);

COMMENT ON TABLE analytics.fact_sensor_5min IS 'A series at a location in a 5-minute window.';

COMMENT ON COLUMN analytics.fact_sensor_5min."sensor_id" IS 'The sensor';

COMMENT ON COLUMN analytics.fact_sensor_5min."sensor_type" IS 'What they measure';

COMMENT ON COLUMN analytics.fact_sensor_5min."location" IS 'Where the sensors stand';

COMMENT ON COLUMN analytics.fact_sensor_5min."window_start" IS 'Start of the window, included; it ends 5 minutes later, excluded';

COMMENT ON COLUMN analytics.fact_sensor_5min."count" IS 'Readings';

COMMENT ON COLUMN analytics.fact_sensor_5min."avg" IS 'Mean';

COMMENT ON COLUMN analytics.fact_sensor_5min."min" IS 'Smallest value';

COMMENT ON COLUMN analytics.fact_sensor_5min."max" IS 'Largest value';

COMMENT ON COLUMN analytics.fact_sensor_5min."std" IS 'Standard deviation (ddof 1); null for one reading';

COMMENT ON COLUMN analytics.fact_sensor_5min."anomaly_count" IS 'Readings that a rule flags';

COMMENT ON COLUMN analytics.fact_sensor_5min."health_pct" IS 'Share of expected slots with a reading';

COMMENT ON COLUMN analytics.fact_sensor_5min."event_date" IS 'UTC day; partition column';

COMMENT ON COLUMN analytics.fact_sensor_5min."p50" IS 'Median (exact, linear interpolation)';

COMMENT ON COLUMN analytics.fact_sensor_5min."p95" IS '95th percentile (exact, linear interpolation)';

COMMENT ON COLUMN analytics.fact_sensor_5min."p99" IS '99th percentile (exact, linear interpolation)';

COMMENT ON COLUMN analytics.fact_sensor_5min."sum" IS 'Sum, so that means compose';

COMMENT ON COLUMN analytics.fact_sensor_5min."m2" IS 'Sum of squared deviations from the mean, so that std composes';

COMMENT ON COLUMN analytics.fact_sensor_5min."expected_count" IS 'Expected-interval slots in the window; null: interval longer than it';

COMMENT ON COLUMN analytics.fact_sensor_5min."reported_count" IS 'Slots of them with a reading; 0 where it only reported outside its active range';

CREATE TABLE IF NOT EXISTS analytics.fact_location_hourly (
    "location" TEXT NOT NULL,
    "sensor_type" TEXT NOT NULL,
    "hour" TIMESTAMPTZ NOT NULL,
    "count" BIGINT NOT NULL,
    "avg" DOUBLE PRECISION NOT NULL,
    "min" DOUBLE PRECISION NOT NULL,
    "max" DOUBLE PRECISION NOT NULL,
    "std" DOUBLE PRECISION,
    "anomaly_count" BIGINT NOT NULL,
    "health_pct" DOUBLE PRECISION,
    "event_date" DATE NOT NULL,
    "sensor_count" BIGINT NOT NULL,
    "sensors_expected" BIGINT NOT NULL,
    PRIMARY KEY ("hour", "location", "sensor_type")
);

COMMENT ON TABLE analytics.fact_location_hourly IS 'A location and sensor type in an hour (UTC).';

COMMENT ON COLUMN analytics.fact_location_hourly."location" IS 'Where the sensors stand';

COMMENT ON COLUMN analytics.fact_location_hourly."sensor_type" IS 'What they measure';

COMMENT ON COLUMN analytics.fact_location_hourly."hour" IS 'Start of the hour';

COMMENT ON COLUMN analytics.fact_location_hourly."count" IS 'Readings';

COMMENT ON COLUMN analytics.fact_location_hourly."avg" IS 'Mean';

COMMENT ON COLUMN analytics.fact_location_hourly."min" IS 'Smallest value';

COMMENT ON COLUMN analytics.fact_location_hourly."max" IS 'Largest value';

COMMENT ON COLUMN analytics.fact_location_hourly."std" IS 'Standard deviation (ddof 1); null for one reading';

COMMENT ON COLUMN analytics.fact_location_hourly."anomaly_count" IS 'Readings that a rule flags';

COMMENT ON COLUMN analytics.fact_location_hourly."health_pct" IS 'Share of expected slots with a reading';

COMMENT ON COLUMN analytics.fact_location_hourly."event_date" IS 'UTC day; partition column';

COMMENT ON COLUMN analytics.fact_location_hourly."sensor_count" IS 'Sensors with a reading';

COMMENT ON COLUMN analytics.fact_location_hourly."sensors_expected" IS 'Active sensors of the registry, and any other that reported';

CREATE TABLE IF NOT EXISTS analytics.fact_daily_summary (
    "location" TEXT NOT NULL,
    "sensor_type" TEXT NOT NULL,
    "event_date" DATE NOT NULL,
    "count" BIGINT NOT NULL,
    "avg" DOUBLE PRECISION NOT NULL,
    "min" DOUBLE PRECISION NOT NULL,
    "max" DOUBLE PRECISION NOT NULL,
    "std" DOUBLE PRECISION,
    "anomaly_count" BIGINT NOT NULL,
    "health_pct" DOUBLE PRECISION,
    "sensor_count" BIGINT NOT NULL,
    "sensors_expected" BIGINT NOT NULL,
    "anomaly_rate" DOUBLE PRECISION NOT NULL,
    PRIMARY KEY ("event_date", "location", "sensor_type")
);

COMMENT ON TABLE analytics.fact_daily_summary IS 'A location and sensor type in a day (UTC: event_date).';

COMMENT ON COLUMN analytics.fact_daily_summary."location" IS 'Where the sensors stand';

COMMENT ON COLUMN analytics.fact_daily_summary."sensor_type" IS 'What they measure';

COMMENT ON COLUMN analytics.fact_daily_summary."event_date" IS 'UTC day; partition column';

COMMENT ON COLUMN analytics.fact_daily_summary."count" IS 'Readings';

COMMENT ON COLUMN analytics.fact_daily_summary."avg" IS 'Mean';

COMMENT ON COLUMN analytics.fact_daily_summary."min" IS 'Smallest value';

COMMENT ON COLUMN analytics.fact_daily_summary."max" IS 'Largest value';

COMMENT ON COLUMN analytics.fact_daily_summary."std" IS 'Standard deviation (ddof 1); null for one reading';

COMMENT ON COLUMN analytics.fact_daily_summary."anomaly_count" IS 'Readings that a rule flags';

COMMENT ON COLUMN analytics.fact_daily_summary."health_pct" IS 'Share of expected slots with a reading';

COMMENT ON COLUMN analytics.fact_daily_summary."sensor_count" IS 'Sensors with a reading';

COMMENT ON COLUMN analytics.fact_daily_summary."sensors_expected" IS 'Active sensors of the registry, and any other that reported';

COMMENT ON COLUMN analytics.fact_daily_summary."anomaly_rate" IS 'anomaly_count / count';

CREATE TABLE IF NOT EXISTS analytics.dim_sensor (
    "sensor_id" TEXT NOT NULL,
    "sensor_type" TEXT NOT NULL,
    "location" TEXT,
    "registered" BOOLEAN NOT NULL,
    "unit" TEXT,
    "expected_interval_s" DOUBLE PRECISION,
    "physical_low" DOUBLE PRECISION,
    "physical_high" DOUBLE PRECISION,
    "operating_low" DOUBLE PRECISION,
    "operating_high" DOUBLE PRECISION,
    "registry_version" TEXT NOT NULL,
    PRIMARY KEY ("sensor_id", "sensor_type")
);

COMMENT ON TABLE analytics.dim_sensor IS 'A series that was seen in Gold or is registered, with what the registry says of it now.';

COMMENT ON COLUMN analytics.dim_sensor."sensor_id" IS 'The sensor';

COMMENT ON COLUMN analytics.dim_sensor."sensor_type" IS 'What it measures';

COMMENT ON COLUMN analytics.dim_sensor."location" IS 'Where it is registered; null: it is not, now';

COMMENT ON COLUMN analytics.dim_sensor."registered" IS 'Does the registry list it now, at this location?';

COMMENT ON COLUMN analytics.dim_sensor."unit" IS 'Canonical unit of its type; null: the type is unknown';

COMMENT ON COLUMN analytics.dim_sensor."expected_interval_s" IS 'Expected time between readings';

COMMENT ON COLUMN analytics.dim_sensor."physical_low" IS 'Lowest value that is physically possible';

COMMENT ON COLUMN analytics.dim_sensor."physical_high" IS 'Highest value that is physically possible';

COMMENT ON COLUMN analytics.dim_sensor."operating_low" IS 'Lowest value that is no anomaly';

COMMENT ON COLUMN analytics.dim_sensor."operating_high" IS 'Highest value that is no anomaly';

COMMENT ON COLUMN analytics.dim_sensor."registry_version" IS 'Version of the registry that says so';

CREATE TABLE IF NOT EXISTS analytics.dim_location (
    "location" TEXT NOT NULL,
    "registered_sensors" BIGINT NOT NULL,
    "registry_version" TEXT NOT NULL,
    PRIMARY KEY ("location")
);

COMMENT ON TABLE analytics.dim_location IS 'A location that was seen in Gold or is registered.';

COMMENT ON COLUMN analytics.dim_location."location" IS 'Where sensors stand';

COMMENT ON COLUMN analytics.dim_location."registered_sensors" IS 'Series that the registry lists there now';

COMMENT ON COLUMN analytics.dim_location."registry_version" IS 'Version of the registry that says so';

CREATE TABLE IF NOT EXISTS analytics.dim_date (
    "event_date" DATE NOT NULL,
    "year" INTEGER NOT NULL,
    "quarter" INTEGER NOT NULL,
    "month" INTEGER NOT NULL,
    "day" INTEGER NOT NULL,
    "iso_year" INTEGER NOT NULL,
    "iso_week" INTEGER NOT NULL,
    "iso_weekday" INTEGER NOT NULL,
    "is_weekend" BOOLEAN NOT NULL,
    PRIMARY KEY ("event_date")
);

COMMENT ON TABLE analytics.dim_date IS 'A UTC day of Gold, with its place in the calendar.';

COMMENT ON COLUMN analytics.dim_date."event_date" IS 'UTC day';

COMMENT ON COLUMN analytics.dim_date."year" IS 'Year';

COMMENT ON COLUMN analytics.dim_date."quarter" IS 'Quarter, 1 to 4';

COMMENT ON COLUMN analytics.dim_date."month" IS 'Month, 1 to 12';

COMMENT ON COLUMN analytics.dim_date."day" IS 'Day of the month';

COMMENT ON COLUMN analytics.dim_date."iso_year" IS 'Year of the ISO 8601 week';

COMMENT ON COLUMN analytics.dim_date."iso_week" IS 'ISO 8601 week, 1 to 53';

COMMENT ON COLUMN analytics.dim_date."iso_weekday" IS '1: Monday, to 7: Sunday';

COMMENT ON COLUMN analytics.dim_date."is_weekend" IS 'Saturday or Sunday';

CREATE TABLE IF NOT EXISTS analytics.load_ledger (
    "table_name" TEXT NOT NULL,
    "gold_table_id" TEXT NOT NULL,
    "gold_version" BIGINT NOT NULL,
    "row_count" BIGINT NOT NULL,
    "loaded_at" TIMESTAMPTZ NOT NULL,
    "row_checksum" TEXT,
    "manifest" TEXT,
    PRIMARY KEY ("table_name", "gold_version")
);

COMMENT ON TABLE analytics.load_ledger IS 'Which version of a Gold table, by its id in the lake, a fact table shows: the highest of its rows.';

COMMENT ON COLUMN analytics.load_ledger."table_name" IS 'The fact table';

COMMENT ON COLUMN analytics.load_ledger."gold_table_id" IS 'Id of the Gold table';

COMMENT ON COLUMN analytics.load_ledger."gold_version" IS 'Version of it that the load brought the fact table to';

COMMENT ON COLUMN analytics.load_ledger."row_count" IS 'Rows that the load wrote';

COMMENT ON COLUMN analytics.load_ledger."loaded_at" IS 'When the load committed';

COMMENT ON COLUMN analytics.load_ledger."row_checksum" IS 'Of these rows, as pipeline.checksum says';

COMMENT ON COLUMN analytics.load_ledger."manifest" IS 'What COPY read; null: rows were streamed';

CREATE TABLE IF NOT EXISTS analytics.schema_migrations (
    "version" BIGINT NOT NULL,
    "name" TEXT NOT NULL,
    "checksum" TEXT NOT NULL,
    "applied_at" TIMESTAMPTZ NOT NULL,
    PRIMARY KEY ("version")
);

COMMENT ON TABLE analytics.schema_migrations IS 'The migrations that were applied.';

COMMENT ON COLUMN analytics.schema_migrations."version" IS 'Its number';

COMMENT ON COLUMN analytics.schema_migrations."name" IS 'Its name';

COMMENT ON COLUMN analytics.schema_migrations."checksum" IS 'SHA-256 of its text';

COMMENT ON COLUMN analytics.schema_migrations."applied_at" IS 'When';

CREATE OR REPLACE VIEW analytics.latest_health AS
SELECT latest."location", latest."sensor_type", latest."hour", latest."health_pct", latest."sensor_count",
       latest."sensors_expected", latest."count", latest."anomaly_count"
FROM (
    SELECT "location", "sensor_type", "hour", "health_pct", "sensor_count", "sensors_expected", "count",
           "anomaly_count",
           ROW_NUMBER() OVER (PARTITION BY "location", "sensor_type" ORDER BY "hour" DESC) AS recency
    FROM analytics.fact_location_hourly
    WHERE "hour" >= (SELECT MAX("hour") - INTERVAL '7 days' FROM analytics.fact_location_hourly)
) AS latest
WHERE latest.recency = 1;

COMMENT ON VIEW analytics.latest_health IS 'The newest hour of each location and sensor type, of the last 7 days of data';

CREATE OR REPLACE VIEW analytics.top_anomalies AS
SELECT flagged."sensor_id", flagged."sensor_type", flagged."location", sensor."unit",
       flagged."anomaly_count", flagged."count",
       CAST(flagged."anomaly_count" AS DOUBLE PRECISION) / flagged."count" AS anomaly_rate,
       flagged.last_anomaly,
       RANK() OVER (ORDER BY flagged."anomaly_count" DESC) AS place
FROM (
    SELECT "sensor_id", "sensor_type", "location",
           CAST(SUM("anomaly_count") AS BIGINT) AS "anomaly_count",
           CAST(SUM("count") AS BIGINT) AS "count",
           MAX(CASE WHEN "anomaly_count" > 0 THEN "window_start" END) AS last_anomaly
    FROM analytics.fact_sensor_5min
    WHERE "window_start" >= (SELECT MAX("window_start") - INTERVAL '7 days' FROM analytics.fact_sensor_5min)
    GROUP BY "sensor_id", "sensor_type", "location"
) AS flagged
LEFT JOIN analytics.dim_sensor AS sensor
    ON sensor."sensor_id" = flagged."sensor_id" AND sensor."sensor_type" = flagged."sensor_type"
WHERE flagged."anomaly_count" > 0;

COMMENT ON VIEW analytics.top_anomalies IS 'Series by their flagged readings in the last 7 days of data, most first';

CREATE OR REPLACE VIEW analytics.hourly_trend AS
SELECT trend."hour", trend."location", trend."sensor_type", trend."count", trend."avg",
       trend."avg" - LAG(trend."avg")
           OVER (PARTITION BY trend."location", trend."sensor_type" ORDER BY trend."hour") AS avg_change,
       trend."anomaly_count", trend."health_pct", calendar."iso_weekday", calendar."is_weekend"
FROM analytics.fact_location_hourly AS trend
LEFT JOIN analytics.dim_date AS calendar ON calendar."event_date" = trend."event_date";

COMMENT ON VIEW analytics.hourly_trend IS 'Each hour of a location and sensor type beside the one before that has data';
