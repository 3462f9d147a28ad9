"""The rules that hold the code together: imports go one way, files stay small, commands are documented."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import typer.main

from apps.cli import app

ROOT = Path(__file__).parents[2]
PACKAGES = {"contracts": set(), "pipeline": {"contracts"}, "apps": {"contracts", "pipeline"}}
LAYERS = (
    {"core", "wire", "broker"},
    {"lake"},
    {"silver", "gold", "detection", "warehouse", "simulation", "monitoring", "evaluation"},
)
"""Packages of pipeline: each may import those of the layers below it, and the modules at the root all of them do."""
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
FEW_LINES = 400
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{named(path)}:{node.lineno} imports relatively"
            yield node.module or ""


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_imports_go_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    foreign = {name.split(".")[0] for name in imports(path)} & (PACKAGES.keys() | {"tests", "benchmarks"})
    assert foreign <= PACKAGES[package] | {package}


def test_packages_of_the_pipeline_import_one_way() -> None:
    packages = {path.name for path in (ROOT / "pipeline").iterdir() if (path / "__init__.py").exists()}
    assert packages == set().union(*LAYERS)
    wrong = []
    for path in sorted((ROOT / "pipeline").rglob("*.py")):
        home = path.relative_to(ROOT / "pipeline").parts[0]
        layer = next((rank for rank, layer in enumerate(LAYERS) if home in layer), -1)
        allowed = set().union(*LAYERS[: max(layer, 0)]) | {home}
        for name in imports(path):
            first, _, rest = name.partition(".")
            imported = rest.split(".")[0]
            if first == "pipeline" and imported in packages - allowed:
                wrong.append(f"{named(path)} imports {name}")
    assert not wrong


HOMES = {
    "quixstreams": "pipeline/broker/quix.py",
    "pandera": "contracts/validation.py",
    "pyarrow": "pipeline/arrow.py",
}


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_libraries_come_without_what_nobody_uses_of_them(path: Path) -> None:
    """What they bring along is a good part of a stage's start."""
    elsewhere = {library for library, home in HOMES.items() if home != named(path)}
    assert elsewhere.isdisjoint({name.split(".")[0] for name in set(imports(path)) - {"pyarrow.parquet"}})


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_files_are_small(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= FEW_LINES, f"{named(path)} has {lines} lines"


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("path", [path for path in MODULES if path.name not in ("settings.py",)], ids=named)
def test_only_settings_read_the_environment(path: Path) -> None:
    """demo hands its own environment on to its children, local services need a PATH, Ray's are told by it not to
    report home, and Polars not to count requests."""
    tree = ast.parse(path.read_text())
    reads = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
    ]
    allowed = ("apps/demo.py", "apps/local.py", "apps/process.py", "pipeline/engine.py", "pipeline/__init__.py")
    assert not reads or named(path) in allowed


@pytest.mark.parametrize("path", [path for path in MODULES if path.name != "layout.py"], ids=named)
def test_tables_are_read_through_the_layout_which_fills_in_what_an_older_one_lacks(path: Path) -> None:
    assert "scan_delta" not in path.read_text()


def commands(group: typer.core.TyperGroup, prefix: str = "") -> Iterator[tuple[str, typer.core.TyperCommand]]:
    for name, command in group.commands.items():
        if isinstance(command, typer.core.TyperGroup):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


COMMANDS = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_it_does_in_a_line(name: str) -> None:
    first = (COMMANDS[name].help or "").splitlines()[0]
    assert first.endswith(".") or ". " in first
    assert len(first.split(". ")[0]) <= 66, "longer lines are cut in `pipeline --help`"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_is(name: str) -> None:
    silent = [option.name for option in COMMANDS[name].params if not getattr(option, "help", None)]
    assert not silent


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_documents(name: str) -> None:
    text = "\n".join(path.read_text() for path in DOCUMENTS)
    words = name.split()
    last = words[-1]
    pattern = rf"`?{' '.join(words[:-1])} ?[^`\n]*\b{re.escape(last)}\b" if words[:-1] else rf"\b{re.escape(last)}\b"
    assert re.search(pattern, text)
