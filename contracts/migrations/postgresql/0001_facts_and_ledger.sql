-- The facts, and the ledger that says which version of Gold they show.

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

CREATE TABLE IF NOT EXISTS analytics.load_ledger (
    table_name TEXT NOT NULL,
    gold_table_id TEXT NOT NULL,
    gold_version BIGINT NOT NULL,
    row_count BIGINT NOT NULL,
    loaded_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (table_name, gold_version)
);

COMMENT ON TABLE analytics.load_ledger IS 'Which version of a Gold table, by its id in the lake, a fact table shows: the highest of its rows';
