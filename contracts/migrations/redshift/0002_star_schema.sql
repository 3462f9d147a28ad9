-- Dimensions, views, and in the ledger the checksum and the manifest of each load.

ALTER TABLE analytics.load_ledger ADD COLUMN "row_checksum" VARCHAR(512) ENCODE ZSTD;

ALTER TABLE analytics.load_ledger ADD COLUMN "manifest" VARCHAR(2048) ENCODE ZSTD;

COMMENT ON TABLE analytics.load_ledger IS 'Which version of a Gold table, by its id in the lake, a fact table shows: the highest of its rows.';

COMMENT ON COLUMN analytics.load_ledger."table_name" IS 'The fact table';

COMMENT ON COLUMN analytics.load_ledger."gold_table_id" IS 'Id of the Gold table';

COMMENT ON COLUMN analytics.load_ledger."gold_version" IS 'Version of it that the load brought the fact table to';

COMMENT ON COLUMN analytics.load_ledger."row_count" IS 'Rows that the load wrote';

COMMENT ON COLUMN analytics.load_ledger."loaded_at" IS 'When the load committed';

COMMENT ON COLUMN analytics.load_ledger."row_checksum" IS 'Of these rows, as pipeline.checksum says';

COMMENT ON COLUMN analytics.load_ledger."manifest" IS 'What COPY read; null: rows were streamed';

-- dim_sensor: beside the rows of fact_sensor_5min: their join moves nothing between nodes
CREATE TABLE IF NOT EXISTS analytics.dim_sensor (
    "sensor_id" VARCHAR(512) ENCODE RAW NOT NULL,
    "sensor_type" VARCHAR(512) ENCODE ZSTD NOT NULL,
    "location" VARCHAR(512) ENCODE ZSTD,
    "registered" BOOLEAN ENCODE RAW NOT NULL,
    "unit" VARCHAR(512) ENCODE ZSTD,
    "expected_interval_s" DOUBLE PRECISION ENCODE ZSTD,
    "physical_low" DOUBLE PRECISION ENCODE ZSTD,
    "physical_high" DOUBLE PRECISION ENCODE ZSTD,
    "operating_low" DOUBLE PRECISION ENCODE ZSTD,
    "operating_high" DOUBLE PRECISION ENCODE ZSTD,
    "registry_version" VARCHAR(512) ENCODE ZSTD NOT NULL,
    PRIMARY KEY ("sensor_id", "sensor_type")
) DISTKEY ("sensor_id") COMPOUND SORTKEY ("sensor_id");

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

-- dim_location: small, and joined by every fact
CREATE TABLE IF NOT EXISTS analytics.dim_location (
    "location" VARCHAR(512) ENCODE RAW NOT NULL,
    "registered_sensors" BIGINT ENCODE AZ64 NOT NULL,
    "registry_version" VARCHAR(512) ENCODE ZSTD NOT NULL,
    PRIMARY KEY ("location")
) DISTSTYLE ALL COMPOUND SORTKEY ("location");

COMMENT ON TABLE analytics.dim_location IS 'A location that was seen in Gold or is registered.';

COMMENT ON COLUMN analytics.dim_location."location" IS 'Where sensors stand';

COMMENT ON COLUMN analytics.dim_location."registered_sensors" IS 'Series that the registry lists there now';

COMMENT ON COLUMN analytics.dim_location."registry_version" IS 'Version of the registry that says so';

-- dim_date: small, and joined by every fact
CREATE TABLE IF NOT EXISTS analytics.dim_date (
    "event_date" DATE ENCODE RAW NOT NULL,
    "year" INTEGER ENCODE AZ64 NOT NULL,
    "quarter" INTEGER ENCODE AZ64 NOT NULL,
    "month" INTEGER ENCODE AZ64 NOT NULL,
    "day" INTEGER ENCODE AZ64 NOT NULL,
    "iso_year" INTEGER ENCODE AZ64 NOT NULL,
    "iso_week" INTEGER ENCODE AZ64 NOT NULL,
    "iso_weekday" INTEGER ENCODE AZ64 NOT NULL,
    "is_weekend" BOOLEAN ENCODE RAW NOT NULL,
    PRIMARY KEY ("event_date")
) DISTSTYLE ALL COMPOUND SORTKEY ("event_date");

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

-- load_lock: empty
CREATE TABLE IF NOT EXISTS analytics.load_lock (
    "holder" VARCHAR(512) ENCODE ZSTD
) DISTSTYLE ALL;

COMMENT ON TABLE analytics.load_lock IS 'Always empty: whoever loads holds its lock, which keeps nobody from reading the ledger.';

COMMENT ON COLUMN analytics.load_lock."holder" IS 'Never written';

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
