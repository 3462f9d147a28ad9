-- The facts, and the ledger that says which version of Gold they show.

CREATE SCHEMA IF NOT EXISTS analytics;

-- fact_sensor_5min: a sensor's rows on one slice, beside dim_sensor's; loads and most queries read only their windows' blocks
CREATE TABLE IF NOT EXISTS analytics.fact_sensor_5min (
    "sensor_id" VARCHAR(512) ENCODE ZSTD NOT NULL,
    "sensor_type" VARCHAR(512) ENCODE ZSTD NOT NULL,
    "location" VARCHAR(512) ENCODE ZSTD NOT NULL,
    "window_start" TIMESTAMPTZ ENCODE RAW NOT NULL,
    "count" BIGINT ENCODE AZ64 NOT NULL,
    "avg" DOUBLE PRECISION ENCODE ZSTD NOT NULL,
    "min" DOUBLE PRECISION ENCODE ZSTD NOT NULL,
    "max" DOUBLE PRECISION ENCODE ZSTD NOT NULL,
    "std" DOUBLE PRECISION ENCODE ZSTD,
    "anomaly_count" BIGINT ENCODE AZ64 NOT NULL,
    "health_pct" DOUBLE PRECISION ENCODE ZSTD,
    "event_date" DATE ENCODE AZ64 NOT NULL,
    "p50" DOUBLE PRECISION ENCODE ZSTD NOT NULL,
    "p95" DOUBLE PRECISION ENCODE ZSTD NOT NULL,
    "p99" DOUBLE PRECISION ENCODE ZSTD NOT NULL,
    "sum" DOUBLE PRECISION ENCODE ZSTD NOT NULL,
    "m2" DOUBLE PRECISION ENCODE ZSTD NOT NULL,
    "expected_count" BIGINT ENCODE AZ64,
    "reported_count" BIGINT ENCODE AZ64,
    PRIMARY KEY ("window_start", "sensor_id", "sensor_type", "location")
) DISTKEY ("sensor_id") COMPOUND SORTKEY ("window_start");

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

-- fact_location_hourly: a copy on each node while it is small; loads and most queries read only their windows' blocks
CREATE TABLE IF NOT EXISTS analytics.fact_location_hourly (
    "location" VARCHAR(512) ENCODE ZSTD NOT NULL,
    "sensor_type" VARCHAR(512) ENCODE ZSTD NOT NULL,
    "hour" TIMESTAMPTZ ENCODE RAW NOT NULL,
    "count" BIGINT ENCODE AZ64 NOT NULL,
    "avg" DOUBLE PRECISION ENCODE ZSTD NOT NULL,
    "min" DOUBLE PRECISION ENCODE ZSTD NOT NULL,
    "max" DOUBLE PRECISION ENCODE ZSTD NOT NULL,
    "std" DOUBLE PRECISION ENCODE ZSTD,
    "anomaly_count" BIGINT ENCODE AZ64 NOT NULL,
    "health_pct" DOUBLE PRECISION ENCODE ZSTD,
    "event_date" DATE ENCODE AZ64 NOT NULL,
    "sensor_count" BIGINT ENCODE AZ64 NOT NULL,
    "sensors_expected" BIGINT ENCODE AZ64 NOT NULL,
    PRIMARY KEY ("hour", "location", "sensor_type")
) DISTSTYLE AUTO COMPOUND SORTKEY ("hour");

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

-- fact_daily_summary: a copy on each node while it is small; loads and most queries read only their windows' blocks
CREATE TABLE IF NOT EXISTS analytics.fact_daily_summary (
    "location" VARCHAR(512) ENCODE ZSTD NOT NULL,
    "sensor_type" VARCHAR(512) ENCODE ZSTD NOT NULL,
    "event_date" DATE ENCODE RAW NOT NULL,
    "count" BIGINT ENCODE AZ64 NOT NULL,
    "avg" DOUBLE PRECISION ENCODE ZSTD NOT NULL,
    "min" DOUBLE PRECISION ENCODE ZSTD NOT NULL,
    "max" DOUBLE PRECISION ENCODE ZSTD NOT NULL,
    "std" DOUBLE PRECISION ENCODE ZSTD,
    "anomaly_count" BIGINT ENCODE AZ64 NOT NULL,
    "health_pct" DOUBLE PRECISION ENCODE ZSTD,
    "sensor_count" BIGINT ENCODE AZ64 NOT NULL,
    "sensors_expected" BIGINT ENCODE AZ64 NOT NULL,
    "anomaly_rate" DOUBLE PRECISION ENCODE ZSTD NOT NULL,
    PRIMARY KEY ("event_date", "location", "sensor_type")
) DISTSTYLE AUTO COMPOUND SORTKEY ("event_date");

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

-- load_ledger: a row a load, read as a whole
CREATE TABLE IF NOT EXISTS analytics.load_ledger (
    "table_name" VARCHAR(512) ENCODE RAW NOT NULL,
    "gold_table_id" VARCHAR(512) ENCODE ZSTD NOT NULL,
    "gold_version" BIGINT ENCODE AZ64 NOT NULL,
    "row_count" BIGINT ENCODE AZ64 NOT NULL,
    "loaded_at" TIMESTAMPTZ ENCODE AZ64 NOT NULL,
    PRIMARY KEY ("table_name", "gold_version")
) DISTSTYLE ALL COMPOUND SORTKEY ("table_name");

COMMENT ON TABLE analytics.load_ledger IS 'Which version of a Gold table, by its id in the lake, a fact table shows: the highest of its rows.';
