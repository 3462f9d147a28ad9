"""The documents against the repository: links, commands, make targets, settings."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from pipeline.settings import Settings
from tests.commandline import parse

ROOT = Path(__file__).parents[2]
PLACES = ("*.md", "docs/*.md", "deploy/**/*.md", "schemas/*.md")
DOCUMENTS = sorted(path for place in PLACES for path in ROOT.glob(place) if ".terraform" not in path.parts)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
TARGETS = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
USAGE = typer.BadParameter.__mro__[1]
"""What the command line raises for arguments that it does not take."""
PLACEHOLDER = re.compile(r"\.\.\.|[|\[\]<>]|\b(STAGE|FILE|TABLE|DAY)\b")


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(path: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def code(text: str) -> Iterator[str]:
    """Lines of shell blocks, continued ones joined, and what stands between single back-ticks."""
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    for block in blocks:
        yield from block.replace("\\\n", " ").splitlines()
    yield from re.findall(r"`([^`]+)`", re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL))


def commands(text: str) -> Iterator[list[str]]:
    for line in code(text):
        command = re.sub(r"\s+", " ", line.split("  #")[0]).strip().removeprefix("$ ").removeprefix(".venv/bin/")
        if command.startswith("pipeline ") and not PLACEHOLDER.search(command):
            yield shlex.split(command)[1:]


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_every_link_leads_somewhere(path: Path) -> None:
    broken = []
    for found in LINK.finditer(path.read_text()):
        link = found[1] or found[2]
        if re.match(r"https?:|mailto:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_every_command_is_one(path: Path) -> None:
    wrong = []
    for arguments in commands(path.read_text()):
        try:
            parse(arguments)
        except KeyError as error:
            wrong.append(f"pipeline {' '.join(arguments)}: there is no {error}")
        except USAGE as error:
            if "Missing" not in str(error):  # a sentence may leave out what an example would have
                wrong.append(f"pipeline {' '.join(arguments)}: {error}")
        except IndexError:
            pass  # a group of commands
    assert not wrong


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_every_make_target_is_one(path: Path) -> None:
    called = {word for line in code(path.read_text()) for word in re.findall(r"^make ([a-z-]+)", line.strip())}
    assert called <= TARGETS


def test_every_make_target_is_documented() -> None:
    text = "\n".join(path.read_text() for path in DOCUMENTS)
    silent = {target for target in TARGETS if not re.search(rf"make (?:[a-z-]+ )*{re.escape(target)}\b", text)}
    assert silent <= {"help"}


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_every_setting_that_is_named_exists(path: Path) -> None:
    known = {f"PIPELINE_{name}".upper() for name in Settings.model_fields} | {
        f"PIPELINE_{group}__{name}".upper()
        for group, field in Settings.model_fields.items()
        for name in getattr(field.annotation, "model_fields", {})
    }
    assert set(re.findall(r"PIPELINE_[A-Z_]+[A-Z]", path.read_text())) <= known


def test_enough_questions_are_answered() -> None:
    asked = re.findall(r"^\*\*(\d+)\. .*?\*\* ", (ROOT / "docs/INTERVIEW_PREP.md").read_text(), re.MULTILINE)
    assert [int(number) for number in asked] == list(range(1, len(asked) + 1))
    assert len(asked) >= 28
