CREATE TEMPORARY TABLE "staging" ("sensor_id" TEXT, "sensor_type" TEXT, "location" TEXT, "registered" BOOLEAN, "unit" TEXT, "expected_interval_s" DOUBLE PRECISION, "physical_low" DOUBLE PRECISION, "physical_high" DOUBLE PRECISION, "operating_low" DOUBLE PRECISION, "operating_high" DOUBLE PRECISION, "registry_version" TEXT);

DELETE FROM "analytics"."dim_sensor" USING "staging" WHERE "dim_sensor"."sensor_id" = "staging"."sensor_id" AND "dim_sensor"."sensor_type" = "staging"."sensor_type";

INSERT INTO "analytics"."dim_sensor" ("sensor_id", "sensor_type", "location", "registered", "unit", "expected_interval_s", "physical_low", "physical_high", "operating_low", "operating_high", "registry_version") SELECT "sensor_id", "sensor_type", "location", "registered", "unit", "expected_interval_s", "physical_low", "physical_high", "operating_low", "operating_high", "registry_version" FROM "staging";

DROP TABLE "staging";

