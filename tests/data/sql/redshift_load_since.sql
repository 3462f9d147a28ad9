SET LOCAL statement_timeout TO 10000;

LOCK TABLE "analytics"."load_lock";

SET LOCAL statement_timeout TO 0;

CREATE TEMPORARY TABLE "staging" ("sensor_id" VARCHAR(512), "sensor_type" VARCHAR(512), "location" VARCHAR(512), "window_start" TIMESTAMP, "count" BIGINT, "avg" DOUBLE PRECISION, "min" DOUBLE PRECISION, "max" DOUBLE PRECISION, "std" DOUBLE PRECISION, "anomaly_count" BIGINT, "health_pct" DOUBLE PRECISION, "event_date" DATE, "p50" DOUBLE PRECISION, "p95" DOUBLE PRECISION, "p99" DOUBLE PRECISION, "sum" DOUBLE PRECISION, "m2" DOUBLE PRECISION, "expected_count" BIGINT, "reported_count" BIGINT) DISTKEY ("sensor_id");

COPY "staging" FROM 's3://lake/_exports/fact_sensor_5min/4f5e/manifest.json' IAM_ROLE 'arn:aws:iam::123456789012:role/pipeline-copy' FORMAT AS PARQUET MANIFEST;

DELETE FROM "analytics"."fact_sensor_5min" WHERE "window_start" >= '2026-03-01 00:00:00+00:00'::timestamptz;

INSERT INTO "analytics"."fact_sensor_5min" ("sensor_id", "sensor_type", "location", "window_start", "count", "avg", "min", "max", "std", "anomaly_count", "health_pct", "event_date", "p50", "p95", "p99", "sum", "m2", "expected_count", "reported_count") SELECT "sensor_id", "sensor_type", "location", "window_start" AT TIME ZONE 'UTC', "count", "avg", "min", "max", "std", "anomaly_count", "health_pct", "event_date", "p50", "p95", "p99", "sum", "m2", "expected_count", "reported_count" FROM "staging";

DROP TABLE "staging";

DELETE FROM "analytics"."load_ledger" WHERE table_name = 'fact_sensor_5min' AND gold_version = 7;

INSERT INTO "analytics"."load_ledger" (table_name, gold_table_id, gold_version, row_count, loaded_at, row_checksum, manifest) VALUES ('fact_sensor_5min', '0c3f-id', 7, 2, '2026-03-01 00:00:00+00:00'::timestamptz, '0000000000000abc', 's3://lake/_exports/fact_sensor_5min/4f5e/manifest.json');

