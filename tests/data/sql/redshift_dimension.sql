CREATE TEMPORARY TABLE "staging" ("sensor_id" VARCHAR(512), "sensor_type" VARCHAR(512), "location" VARCHAR(512), "registered" BOOLEAN, "unit" VARCHAR(512), "expected_interval_s" DOUBLE PRECISION, "physical_low" DOUBLE PRECISION, "physical_high" DOUBLE PRECISION, "operating_low" DOUBLE PRECISION, "operating_high" DOUBLE PRECISION, "registry_version" VARCHAR(512)) DISTKEY ("sensor_id");

DELETE FROM "analytics"."dim_sensor" USING "staging" WHERE "dim_sensor"."sensor_id" = "staging"."sensor_id" AND "dim_sensor"."sensor_type" = "staging"."sensor_type";

INSERT INTO "analytics"."dim_sensor" ("sensor_id", "sensor_type", "location", "registered", "unit", "expected_interval_s", "physical_low", "physical_high", "operating_low", "operating_high", "registry_version") SELECT "sensor_id", "sensor_type", "location", "registered", "unit", "expected_interval_s", "physical_low", "physical_high", "operating_low", "operating_high", "registry_version" FROM "staging";

DROP TABLE "staging";

