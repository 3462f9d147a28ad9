"""The command line from outside: what it prints, where, and how it exits."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from apps import cli
from pipeline import __version__
from pipeline.errors import AccessDenied, BadInput, Conflict, PipelineError, Unreachable

LIGHT = {"apps", "pipeline", "typer", "shellingham", "annotated_doc"}
"""All that the command line may load before it knows the command; the last two come with Typer."""


def pipeline(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PIPELINE_")}
    return subprocess.run(
        [sys.executable, "-m", "apps.cli", *arguments],
        capture_output=True,
        text=True,
        env=inherited | environment,
        timeout=60,
        check=False,
    )


def test_help_loads_nothing_but_the_command_line() -> None:
    """What it takes then is measured by `make bench-start`: 300 ms at most."""
    script = """if True:
        import sys
        before = set(sys.modules)
        from apps.cli import app
        app(["--help"], standalone_mode=False)
        loaded = {name.partition(".")[0] for name in set(sys.modules) - before}
        print(*sorted(loaded - set(sys.stdlib_module_names)))
    """
    seen = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert set(seen.stdout.splitlines()[-1].split()) == LIGHT


def test_no_command_shows_the_help() -> None:
    shown = pipeline()
    assert shown.returncode == 2
    assert "reconcile" in shown.stdout + shown.stderr


def test_the_version_is_the_packages() -> None:
    assert pipeline("--version").stdout == f"pipeline {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        pytest.param(["nothing"], "No such command 'nothing'", id="unknown command"),
        pytest.param(["ingest", "--nothing"], "No such option", id="unknown option"),
        pytest.param(["simulate", "--map", "timestamp"], "write it as in --map timestamp=ts", id="half a mapping"),
        pytest.param(["query"], "Missing argument", id="missing argument"),
        pytest.param(["reconcile", "--dry-run"], "goes with --repair", id="nothing to try"),
        pytest.param(["reconcile", "--since", "yesterday"], "2026-01-31T12:00:00Z", id="no time"),
        pytest.param(["backfill", "--offsets", "9-1"], "FIRST-LAST", id="offsets backwards"),
        pytest.param(["dlq", "replay"], "Missing option", id="missing option"),
    ],
)
def test_a_wrong_command_line_exits_2_and_says_what_is_wrong(arguments: list[str], told: str) -> None:
    ended = pipeline(*arguments)
    assert ended.returncode == 2
    assert told in ended.stderr
    assert ended.stdout == ""


def test_wrong_settings_exit_2_and_name_the_variable() -> None:
    ended = pipeline("ingest", PIPELINE_KAFKA__PARTITIONS="0")
    assert ended.returncode == 2
    assert "PIPELINE_KAFKA__PARTITIONS" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_wrong_registry_exits_2(tmp_path: Path) -> None:
    ended = pipeline("detect", PIPELINE_REGISTRY=str(tmp_path / "absent.yaml"))
    assert ended.returncode == 2
    assert "absent.yaml" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_unreachable_system_exits_3_says_what_to_check_and_shows_no_traceback() -> None:
    address = "127.0.0.1:1"
    ended = pipeline("topics", "create", PIPELINE_KAFKA__BOOTSTRAP_SERVERS=address, PIPELINE_KAFKA__TIMEOUT_S="1")
    assert ended.returncode == 3
    assert ended.stderr.startswith(f"Error: Kafka at {address} did not answer in 1 s")
    assert "PIPELINE_KAFKA__BOOTSTRAP_SERVERS" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


def test_debug_shows_the_traceback_wherever_it_stands() -> None:
    for arguments in (["--debug", "config"], ["config", "--debug"]):
        ended = pipeline(*arguments, PIPELINE_KAFKA__PARTITIONS="0")
        assert ended.returncode == 1
        assert "Traceback" in ended.stderr


def test_a_defect_is_one_line_and_exits_1() -> None:
    script = (
        "import sys, types; from apps import cli\n"
        "def run(**_): raise RuntimeError('first\\nsecond')\n"
        "sys.modules['apps.config'] = types.SimpleNamespace(run=run)\n"
        "sys.argv = ['pipeline', 'config']; cli.main()"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr == "Error: RuntimeError: first\n  This is a defect: run with --debug and report it.\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [(BadInput("w", "t"), 2), (AccessDenied("w", "t"), 1), (Unreachable("w", "t"), 3), (Conflict("w"), 3)],
)
def test_an_error_ends_in_its_exit_code(
    error: PipelineError, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(**_: object) -> None:
        raise error

    monkeypatch.setattr("apps.config.run", run)
    monkeypatch.setattr(sys, "argv", ["pipeline", "config"])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == code
    told = capsys.readouterr().err
    assert told.startswith("Error: w\n")
    assert ("  t\n" in told) == bool(error.todo)


def test_config_names_every_variable_and_masks_secrets() -> None:
    shown = pipeline("config", "--json", PIPELINE_KAFKA__PASSWORD="hunter22", PIPELINE_KAFKA__PARTITIONS="7")
    settings = json.loads(shown.stdout)
    assert settings["PIPELINE_KAFKA__PARTITIONS"] == 7
    assert settings["PIPELINE_KAFKA__PASSWORD"] == "**********"
    assert "hunter22" not in shown.stdout
    assert "pipeline-local" not in shown.stdout
    assert len(settings) > 30


def test_config_says_what_differs_from_the_default() -> None:
    lines = pipeline("config", PIPELINE_KAFKA__PARTITIONS="7").stdout.splitlines()
    line = next(line for line in lines if line.startswith("PIPELINE_KAFKA__PARTITIONS="))
    assert line.startswith("PIPELINE_KAFKA__PARTITIONS=7  #")
    assert line.endswith("default: 4")


def test_config_with_a_wrong_variable_shows_the_defaults_and_exits_2() -> None:
    shown = pipeline("config", PIPELINE_KAFKA__PARTITIONS="x")
    assert shown.returncode == 2
    assert "PIPELINE_KAFKA__PARTITIONS=4" in shown.stdout
    assert "PIPELINE_KAFKA__PARTITIONS" in shown.stderr


def test_nothing_is_coloured_off_a_terminal() -> None:
    for arguments in (["--help"], ["config"], ["nothing"]):
        shown = pipeline(*arguments)
        assert "\x1b" not in shown.stdout + shown.stderr


def test_a_stage_stops_with_exit_0_on_sigterm_while_it_waits_for_its_source(tmp_path: Path) -> None:
    environment = {
        "PIPELINE_LAKE__URI": str(tmp_path / "lake"),
        "PIPELINE_LAKE__ENDPOINT_URL": "",
        "PIPELINE_OBSERVABILITY__PORT": "0",
    }
    with subprocess.Popen(
        [sys.executable, "-m", "apps.cli", "gold"], env=os.environ | environment, stderr=subprocess.PIPE, text=True
    ) as stage:
        assert stage.stderr is not None
        for line in stage.stderr:
            if "nothing to do yet" in line:
                break
        stage.terminate()
        started = time.monotonic()
        assert stage.wait(30) == 0
        assert time.monotonic() - started < 15


def test_the_level_of_logs_may_be_said_on_the_command_line() -> None:
    """The broker's port is nobody's: the retries of a stage are warnings."""
    nowhere = {
        "PIPELINE_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1",
        "PIPELINE_KAFKA__TIMEOUT_S": "0.5",
        "PIPELINE_RETRY_S": "0.1",
        "PIPELINE_OBSERVABILITY__PORT": "0",
    }
    quiet, loud = (
        pipeline("ingest", "--log-level", "error", **nowhere),
        pipeline("ingest", "--log-level", "info", **nowhere),
    )
    assert quiet.returncode == loud.returncode == 3
    assert "started version" not in quiet.stderr
    assert "started version" in loud.stderr
