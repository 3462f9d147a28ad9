"""Alerts and dashboards as code: `python -m dashboards` writes what Prometheus and Grafana read."""
