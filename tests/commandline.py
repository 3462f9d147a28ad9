"""Does the command line take these arguments?"""

from collections.abc import Sequence

import typer.core
import typer.main

from apps.cli import app


def parse(arguments: Sequence[str]) -> str:
    """The command's name, e.g. `lake vacuum`; runs nothing.

    Raises where a command or an option is unknown, or a value is not one that it takes.
    """
    command, left, name = typer.main.get_command(app), list(arguments), []
    while isinstance(command, typer.core.TyperGroup):
        name.append(left.pop(0))
        command = command.commands[name[-1]]
    command.make_context(" ".join(name), left)
    return " ".join(name)
